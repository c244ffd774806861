"""The README's pictures that no other script draws. Run from the repository root, after a training:

    python assets/figures.py overview --run runs/toy    # assets/overview.png: the idea in one row
    python assets/figures.py strip --run runs/toy       # assets/strip.png: from noise to scene
    python assets/figures.py shapes                     # assets/shapes.png: both networks

All pictures are pngs of about 1000 pixels' width. What they show is read from the run and from the
networks; no number is typed in.
"""

import argparse
import io
import math
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))    # the project's modules

import data  # noqa: E402  (the line above must come first)
import layouts  # noqa: E402
import oasis  # noqa: E402
import pictures  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ZOOM = 2            # each pixel of a toy picture becomes ZOOM × ZOOM, so that 64 can be seen
GAP, MARGIN = 4, 14  # pixels between two pictures, and between two groups of them

# ---- Rows of small pictures --------------------------------------------------------------------


def write(picture, path):
    """Save a PIL picture as small as a png can be without loss, and say so."""
    with layouts.written_whole(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    print(f"{path}: {picture.width}×{picture.height}, {path.stat().st_size / 1e3:.0f} kB")


def captioned(groups):
    """{caption: rows of (H, W, 3) uint8 pictures} side by side, each under its caption."""
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 14)
    blocks = [data.picture_grid(rows, scale=ZOOM) for rows in groups.values()]
    top = 22
    sheet = Image.new("RGB", (sum(b.width for b in blocks) + MARGIN * (len(blocks) - 1),
                              top + max(b.height for b in blocks)), "white")
    pen, left = ImageDraw.Draw(sheet), 0
    for caption, block in zip(groups, blocks):
        sheet.paste(block, (left, top))
        pen.text((left + block.width / 2, top - 3), caption, "black", font, anchor="mb")
        left += block.width + MARGIN
    return sheet


def overview(run, out, region="sky", scenes=2):
    """One label map a row: four noises, four scenes; then the first with another's sky alone.

    Inside the region stands the noise of the second scene, or of the fourth, everywhere else that
    of the first. The label maps are the first of the validation set that hold most of the classes
    and give the region a fair share.
    """
    model = pictures.load_model(run / "latest.pt")
    val_set = data.open_dataset(model.preset, "val", model.size, model.data_root, seed=model.seed)
    wanted = pictures.class_id(region, model.class_names)
    noises = oasis.noise_from_seeds(range(4), model.generator.noise_dim)
    columns = {"label map": [], "four noises, four scenes": [], f"1st, {region} of 2nd": [],
               f"1st, {region} of 4th": []}
    for i in range(len(val_set)):
        labels = val_set[i][1].numpy()
        inside = pictures.class_region(labels, [wanted])
        if not 0.25 < inside.mean() < 0.6 or len(np.unique(labels)) < 0.7 * len(model.class_names):
            continue
        drawn = pictures.paint(model.generator, labels, noises)
        second, fourth = pictures.paint(model.generator, labels, pictures.local_noise(
            noises[0], noises[[1, 3]], inside))
        row = [data.colourise(labels, model.palette)], list(drawn), [second], [fourth]
        for column, cells in zip(columns.values(), row):
            column.append(cells)
        if len(columns["label map"]) == scenes:
            return write(captioned(columns), out / "overview.png")
    raise pictures.SampleError(f"{run}: fewer than {scenes} validation label maps have most of the "
                               f"classes and a fair share of {region}")


def strip(run, out, rows=(1, 3)):
    """What one noise becomes during the training, cut out of the run's own picture grids.

    A grid of train.save_pictures holds a label map a row; its columns are label map, photograph,
    noise 0, noise 1, … The steps shown are 0 and then four, each twice as late as the one before.
    """
    height, width = oasis.load_checkpoint(run / "latest.pt")["dataset"]["size"]
    grids = {int(path.stem.removeprefix("step_")): np.asarray(Image.open(path).convert("RGB"))
             for path in (run / "samples").glob("step_*.png")}
    if not grids:
        raise pictures.SampleError(f"{run}/samples holds no step_*.png; train.py makes them")
    last = max(grids)
    steps = sorted({0} | {min(grids, key=lambda step: abs(step - last / 2 ** k)) for k in range(4)})

    def cell(step, row, column):        # a border of GAP, a line of captions, GAP between cells
        y, x = 20 + row * (height + GAP), GAP + column * (width + GAP)
        return grids[step][y:y + height, x:x + width]

    columns = {"label map": [[cell(last, row, 0)] for row in rows]}
    columns |= {f"step {step}": [[cell(step, row, 2)] for row in rows] for step in steps}
    columns["a real one"] = [[cell(last, row, 1)] for row in rows]
    write(captioned(columns), out / "strip.png")


# ---- The shapes of the two networks ------------------------------------------------------------


def output_shapes(network, *inputs):
    """[(name, channels, height)] of every stage's output, in the order in which they are made."""
    found = []
    for name, module in network.named_modules():
        if (name in ("first", "last")
                or name.rpartition(".")[0] in ("blocks", "encoder", "decoder")):
            module.register_forward_hook(lambda _, __, output, name=name: found.append(
                (name, *output.shape[1:3])))
    network(*inputs)
    return found


def draw_bars(axis, shapes, colours):
    """A bar for each stage, its height the logarithm of the picture's. Returns their x positions.

    Above a bar stand its channels, below it the side of the picture in pixels.
    """
    for x, (name, channels, size) in enumerate(shapes):
        height, width = math.log2(size), 0.10 + 0.022 * math.sqrt(channels)
        axis.bar(x, height, width, -height / 2, color=colours[name.split(".")[0]],
                 edgecolor="black", linewidth=0.6)
        axis.text(x, height / 2 + 0.15, f"{channels}", ha="center", va="bottom", fontsize=9)
        axis.text(x, -height / 2 - 0.15, f"{size}²", ha="center", va="top", fontsize=8, color="0.4")
    for x in range(len(shapes) - 1):
        axis.annotate("", (x + 0.62, 0), (x + 0.42, 0), arrowprops=dict(arrowstyle="->", lw=0.8))
    axis.set_xlim(-0.6, 15.2)
    axis.axis("off")


def draw_generator(axis, G, size):
    """G: every block is given the label map and the noise, shrunk to its own size."""
    shapes = output_shapes(G, torch.zeros(1, size, size, dtype=torch.int64),
                           torch.zeros(1, G.noise_dim))
    draw_bars(axis, shapes, {"first": "#d9d9d9", "blocks": "#8fc1e3", "last": "#d9d9d9"})
    for x, (name, _, height) in enumerate(shapes[:-1]):
        axis.annotate("", (x, -math.log2(height) / 2 - 0.75), (x, -6.0),
                      arrowprops=dict(arrowstyle="->", color="#b5651d"))
    axis.text(-0.4, -6.1, f"label map (one-hot, {G.num_classes} channels) and 3D "
              f"noise ({G.noise_dim} channels), at each block's size", ha="left", va="top",
              color="#b5651d", fontsize=10)
    axis.text(len(shapes) - 0.6, 0, "tanh: image", va="center", fontsize=10)
    axis.set_ylim(-6.8, 5.2)
    axis.set_title(f"Generator: {len(G.blocks)} residual blocks with SPADE, ×2 between two",
                   loc="left", fontsize=11)


def draw_discriminator(axis, D, size):
    """D: a U-Net. An arc is a skip connection, drawn where the next block's input is wider."""
    shapes = [("image", 3, size)] + output_shapes(D, torch.zeros(1, 3, size, size))
    draw_bars(axis, shapes, {"image": "#d9d9d9", "encoder": "#f2b880", "decoder": "#9fd3a0",
                             "last": "#d9d9d9"})
    place = {name: (x, channels, side) for x, (name, channels, side) in enumerate(shapes)}
    for i, block in enumerate(D.decoder[1:]):
        end, channels, side = place[f"decoder.{i}"]
        if block.conv_1.in_channels > channels:
            start = next(x for name, (x, _, s) in place.items() if "encoder" in name and s == side)
            top = math.log2(side) / 2 + 0.9
            axis.annotate("", (end, top), (start, top), arrowprops=dict(
                arrowstyle="->", color="0.3", connectionstyle="arc3,rad=-0.22", lw=0.9))
    axis.text(len(shapes) - 0.6, 0, f"per pixel:\n{D.num_classes} classes\nand \"fake\"",
              va="center", fontsize=10)
    axis.set_ylim(-5, 7.5)
    axis.set_title("Discriminator: a U-Net that segments; arcs hand on fine detail", loc="left",
                   fontsize=11)


def shapes(run, out, num_classes=151, size=256):
    """G and D of the paper's ADE20K model. Built on the meta device: shapes without numbers."""
    with torch.device("meta"):
        G, D = oasis.Generator(num_classes), oasis.Discriminator(num_classes)
        figure, (upper, lower) = plt.subplots(2, 1, figsize=(10, 6.6), layout="constrained")
        draw_generator(upper, G, size)
        draw_discriminator(lower, D, size)
    figure.text(0.995, 0.005, "above a bar its channels, below it the side in pixels",
                ha="right", fontsize=8, color="0.4")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100, format="png")
    plt.close(figure)
    write(Image.open(drawn).convert("RGB").quantize(64), out / "shapes.png")


def main(argv=None):
    """Command line; a mistake ends in one sentence and exit code 2."""
    figures = {"overview": overview, "strip": strip, "shapes": shapes}
    parser = argparse.ArgumentParser("figures.py", description="Draw the README's pictures.")
    parser.add_argument("figure", choices=figures, help="which one")
    parser.add_argument("--run", type=Path, default=Path("runs/toy"), metavar="DIR",
                        help="the run to show (default: runs/toy); shapes needs none")
    parser.add_argument("--out", type=Path, default=Path("assets"), metavar="DIR",
                        help="where the png goes (default: assets)")
    args = parser.parse_args(argv)
    try:
        with layouts.readable(args.out, layouts.NOT_WRITTEN):
            args.out.mkdir(parents=True, exist_ok=True)
        figures[args.figure](args.run, args.out)
    except (oasis.CheckpointError, pictures.SampleError, data.DataError) as error:
        print(f"figures.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
