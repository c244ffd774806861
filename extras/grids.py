"""Where grids come from: the same scenes, learnt without and with noise at every pixel.

    python -m extras.grids                              # ten minutes or so on two cores
    python -m extras.grids --out results/grids          # keeps the figure under version control

Trains the toy preset twice, on the same drawn scenes in the same order, from the same initial
weights. Only --pixel-noise differs: 0, as in the paper, and 16 of the 64 channels. Then both paint
the validation label maps, and one figure shows what is real, what the two paint, and below it how
much of the texture is stripes (extras.stripes).

The scenes have random texture: grass, leaves, clouds. G with one noise vector per image knows
nothing that differs between two pixels of a meadow. D asks for texture all the same, so G makes it
from what it knows of positions: stripes and grids. With noise at every pixel it need not.

Options that are not named in --help go to both trainings: --steps, --seed, --padding zeros, or
--preset small --data-root my_photos. Given again, the same command goes on where it stopped.

--out holds noise0/ and noise16/ (a run each), grids.png and stripes.csv.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import data
import metrics
import sample
import train
from data import UserError
from extras.stripes import paint_maps, read_scenes, stripe_shares, table
from processes import fast_precision

STEPS = 1500                # instead of the preset's 1,800
CLEAR = 30                  # a class with fewer windows is not drawn: its share would be chance


def train_one(folder, pixel_noise, options):
    """Train, or go on, until the run in this folder is complete. False: it was stopped."""
    words = ["--preset=toy", f"--steps={STEPS}", f"--precision={fast_precision()}",
             "--metrics=none", *options, f"--pixel-noise={pixel_noise}", f"--run-dir={folder}"]
    settings = train.parse_settings(words)
    latest = folder / "latest.pt"
    if latest.exists():
        checkpoint = sample.load_checkpoint(latest)
        settings = train.parse_settings([*words, "--resume"])
        if settings.steps and checkpoint["step"] >= settings.steps:
            return True
    return train.train(settings) is not None


def compare(folders, num_images=None):
    """Paint the validation label maps with the run of each folder, {heading: folder}.

    Returns (pictures, shares, label maps, validation set): pictures {heading: (n, H, W, 3)} and
    shares {heading: {class id: Texture}} begin with the real ones. Image i has the noise of seed i.
    """
    pictures, shares = {}, {}
    for heading, folder in folders.items():
        checkpoint, _, val_set = metrics.open_run(folder / "latest.pt")
        if not pictures:
            pictures["real"], label_maps = read_scenes(val_set, num_images)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = sample.build_generator(checkpoint).to(device)
        pictures[heading] = paint_maps(generator, label_maps, range(len(label_maps)))
    for heading, images in pictures.items():
        shares[heading] = stripe_shares(images, label_maps)
    return pictures, shares, label_maps, val_set


def write_shares(path, shares, class_names):
    """The shares as a csv file, a row for each heading and class."""
    with data.write_whole(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["pictures", "class", "stripe_share", "deviation", "windows"])
        for heading, of_classes in shares.items():
            for k, texture in of_classes.items():
                writer.writerow([heading, class_names[k], round(texture.share, 4),
                                 round(texture.deviation, 2), texture.windows])


def draw_shares(axis, found, real, classes):
    """A bar for each class, and a line where the bar of the real pictures ends."""
    for place, k in enumerate(classes):
        end = real[k].share
        if k in found:
            share = found[k].share
            axis.barh(place, share, color="#8fa9c4" if found is real else "#d9925b", height=0.7)
            axis.text(max(share, end) + 0.03, place, f"{share:.2f}", va="center", fontsize=10)
        axis.plot([end, end], [place - 0.45, place + 0.45], color="#34495e", lw=2)
    axis.set(xlim=(0, 1.2), ylim=(len(classes) - 0.4, -0.6), xticks=[0, 0.5, 1], yticks=[])
    axis.set_xlabel("stripe share; the line: real", fontsize=9)
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right", "left"]].set_visible(False)


def save_figure(path, pictures, shares, label_maps, val_set, rows=3):
    """Columns: label map, real, then each run. Rows: the first scenes. Bars below."""
    rows, (height, width) = min(rows, len(label_maps)), val_set.size
    classes = [k for k, texture in shares["real"].items() if texture.windows >= CLEAR]
    columns = {"label map": val_set.palette[label_maps], **pictures}
    across, of_bars = 2.6, 0.6 + 0.35 * len(classes)                # inches: a column, the bars
    down = across * height / width
    figure = Figure(figsize=(across * len(columns), (down + 0.1) * rows + of_bars + 0.3),
                    layout="constrained")
    axes = figure.subplots(rows + 1, len(columns), squeeze=False,
                           height_ratios=[down] * rows + [of_bars])
    for c, (heading, images) in enumerate(columns.items()):
        axes[0, c].set_title(heading, fontsize=11)
        for r in range(rows):
            axes[r, c].imshow(images[r], interpolation="nearest")
            axes[r, c].axis("off")
        if heading in shares:
            draw_shares(axes[rows, c], shares[heading], shares["real"], classes)
    names = axes[rows, 0]                                           # below the label maps
    names.set(xlim=(0, 1), ylim=(len(classes) - 0.4, -0.6))
    names.axis("off")
    for place, k in enumerate(classes):
        names.text(1, place, val_set.class_names[k], ha="right", va="center", fontsize=11)
    with data.write_whole(path) as partial:
        figure.savefig(partial, dpi=120)


def heading_of(pixel_noise, noise_dim):
    """What a column is called."""
    if pixel_noise == 0:
        return "one noise vector"
    return f"{pixel_noise} of {noise_dim} channels per pixel"


@data.exit_in_words("extras.grids")
def main(argv=None):
    """The command line. Exit code 0: done; 1: stopped by a signal; 2: a mistake of the user."""
    parser = argparse.ArgumentParser("extras.grids", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/grids", help="folder (default: runs/grids)")
    parser.add_argument("--pixel-noise", type=int, nargs="+", default=[0, 16], metavar="K",
                        help="a training for each (default: 0 16)")
    parser.add_argument("--num-images", type=int, metavar="N",
                        help="measure on the first N validation scenes (default: all)")
    args, options = parser.parse_known_args(argv)
    for option in ("--run-dir", "--resume"):
        if any(word.split("=")[0] == option for word in options):
            raise UserError(f"{option}: is chosen by --out, and by what is there already")
    folders = {}
    for pixel_noise in args.pixel_noise:
        folder = Path(args.out, f"noise{pixel_noise}")
        print(f"{folder}: --pixel-noise {pixel_noise}", flush=True)
        if not train_one(folder, pixel_noise, options):
            print("Stopped, all is saved; the same command goes on.")
            sys.exit(1)
        noise_dim = sample.load_checkpoint(folder / "latest.pt")["generator_args"]["noise_dim"]
        folders[heading_of(pixel_noise, noise_dim)] = folder
    pictures, shares, label_maps, val_set = compare(folders, args.num_images)
    save_figure(Path(args.out, "grids.png"), pictures, shares, label_maps, val_set)
    write_shares(Path(args.out, "stripes.csv"), shares, val_set.class_names)
    print("\n".join(table(val_set.class_names, shares)))
    print(f"{args.out}/grids.png and stripes.csv")


if __name__ == "__main__":
    main()
