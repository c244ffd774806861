"""The figures of the README, each by one command.

    python -m extras.figures                         # all of them, into assets/
    python -m extras.figures scenes walk --out .     # two of them, into this folder

  scenes      label maps, and what G paints of each from four noises
  sky         the same with other noise in the sky only (Figure 1)
  walk        a walk from one noise to another, also as walk.gif
  recreated   what D sees in a scene, and what G makes of that (Figure 4)
  losses      a LabelMix example, and the class weights of a batch
  one_class   what G cannot paint (extras.one_class)
  networks    both networks, as they are: the paper's for ADE20K (extras.drawing); 15 seconds

The pictures are painted by the model of --checkpoint, else of the newest run, else assets/toy.pt.
The first four are sheets of sample.py. The first three are painted at --size, which may be larger
than the size the model was trained at: G knows a thing by its borders, whatever its size. D does
not. It knows things of the size it was trained on, so recreated keeps that size, as do the others.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import data
import losses
import oasis
import sample
from data import UserError
from extras import drawing, one_class

# The options of sample.py that make a sheet of five columns at most.
SHEETS = {"scenes": "--num 4 --limit 3",
          "sky": "--resample-class sky --num 4 --limit 2",
          "walk": "--interpolate 4 --limit 2",
          "recreated": "--recreate --num 2 --limit 2"}
FIGURES = [*SHEETS, "losses", "one_class", "networks"]


def draw_sheet(name, path, args):
    """A contact sheet of sample.py, and the gif of a walk."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--checkpoint", str(path), "--out", folder, *SHEETS[name].split()]
        if name != "recreated":
            words += ["--size", str(args.size[0]), str(args.size[1])]
        if args.data_root:
            words += ["--data-root", args.data_root]
        sample.main(words)
        sheet, = Path(folder).glob("contact_sheet*.png")
        keep(sheet, Path(args.out, f"{name}.png"))
        for gif in sorted(Path(folder).glob("*.gif"))[:1]:
            keep(gif, Path(args.out, f"{name}.gif"))


def keep(file, path):
    with data.write_whole(path) as partial:
        shutil.copyfile(file, partial)


def read_scenes(model, count, data_root=None):
    """The model and its first validation scenes -> (images (n, 3, H, W), label maps (n, H, W))."""
    val_set = data.open_dataset(model.preset, "val", model.size,
                                data_root or model.settings["data_root"] or None,
                                seed=model.settings["data_seed"])
    images, label_maps = zip(*[val_set[i] for i in range(min(count, len(val_set)))])
    return torch.stack(images), torch.stack(label_maps)


def paint_one(model, labels, seed=0):
    """Label map (H, W) -> the picture that G paints of it, (H, W, 3) uint8."""
    G = model.generator
    noise = oasis.draw_noise([seed], labels.shape, G.noise_dim, G.pixel_noise)
    return sample.paint(G, labels, noise)[0]


# ---- losses --------------------------------------------------------------------------------------


def draw_losses(path, args):
    """x, x̂, a mask and their LabelMix; below, the class weights of a batch of eight."""
    model = sample.load_model(path)
    images, label_maps = read_scenes(model, 8, args.data_root)
    num_classes, labels = len(model.class_names), label_maps[:1]
    x = torch.from_numpy(data.to_uint8(images[:1]))                     # (1, H, W, 3)
    x_hat = torch.from_numpy(paint_one(model, labels[0]))[None]
    mask = losses.labelmix_mask(labels, num_classes, torch.Generator().manual_seed(2))
    mix = losses.labelmix(x, x_hat, mask[0, 0, :, :, None])
    pictures = {"label map t": model.palette[labels[0]], "real x": x[0], "painted x̂": x_hat[0],
                "mask M, a coin per class": mask[0, 0], "M ⊙ x + (1 − M) ⊙ x̂": mix[0]}

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplot_mosaic("01234;wwwww")
    for i, (title, picture) in enumerate(pictures.items()):
        axes[str(i)].imshow(np.asarray(picture), cmap="gray", interpolation="nearest")
        axes[str(i)].set_title(title, fontsize=10)
        axes[str(i)].axis("off")
    weights = losses.class_weights(label_maps, num_classes, model.ignore_label)
    present = [k for k in range(num_classes) if (label_maps == k).any()]
    axes["w"].bar([model.class_names[k] for k in present], weights[present].numpy(),
                  color=model.palette[present] / 255)
    axes["w"].set_title("class weight α: rare classes weigh more, unknown nothing", fontsize=10)
    axes["w"].tick_params("x", labelsize=9, rotation=90 if len(present) > 16 else 0)
    save_figure(figure, Path(args.out, "losses.png"), dpi=100)


def save_figure(figure, path, dpi):
    with data.write_whole(path) as partial:
        figure.savefig(partial, dpi=dpi)


# ---- networks ------------------------------------------------------------------------------------


def square(picture):
    """The middle of a picture (H, W) or (H, W, 3), as high as it is wide."""
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return picture[top:top + side, left:left + side]


def draw_networks(path, args):
    """The paper's networks for ADE20K. The pictures are those of the model at hand."""
    model = sample.load_model(path)
    images, label_maps = read_scenes(model, 1, args.data_root)
    labels = label_maps[0]
    pictures = {"label map": square(model.palette[labels]),
                "noise": torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).numpy(),
                "real": square(data.to_uint8(images)[0]),
                "painted": square(paint_one(model, labels))}
    G, D = oasis.Generator(151), oasis.Discriminator(151)
    figure = drawing.draw_networks(G, D, (256, 256), pictures)
    save_figure(figure, Path(args.out, "networks.png"), dpi=200)


def main(argv=None):
    parser = argparse.ArgumentParser("extras.figures", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="(default: all)")
    parser.add_argument("--checkpoint", metavar="FILE", help="(default: as for sample.py)")
    parser.add_argument("--data-root", metavar="DIR", help="(default: as in training)")
    parser.add_argument("--size", type=int, nargs=2, default=[192, 256], metavar=("H", "W"),
                        help="of the pictures in sheets (default: 192 256)")
    parser.add_argument("--out", default="assets", metavar="DIR", help="(default: assets)")
    args = parser.parse_args(argv)
    with data.exit_in_words("extras.figures"):
        path = sample.find_checkpoint(args.checkpoint)
        for name in args.names or FIGURES:
            if name in SHEETS:
                draw_sheet(name, path, args)
            elif name == "losses":
                draw_losses(path, args)
            elif name == "one_class":
                one_class.draw(path, Path(args.out, "one_class.png"))
            elif name == "networks":
                draw_networks(path, args)
            else:
                raise UserError(f"there is no figure {name}; there are {', '.join(FIGURES)}")
            print(f"{args.out}/{name}.png")


if __name__ == "__main__":
    main()
