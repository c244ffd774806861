"""Stripe share: how much of a picture's fine texture is lines parallel to its borders.

    python -m extras.stripes --checkpoint runs/toy/latest.pt      # or nothing: as for metrics.py

paints the validation label maps with a checkpoint, and prints for each class the stripe share of
the photographs and of the painted pictures. Any data set, any checkpoint.

A generator without noise at every pixel has no source of random detail. If the discriminator asks
for detail, it makes stripes and grids. In them all pixels of a row, or of a column, have something
in common. So take a window of 12×12 pixels that lies in one class, and of its pixels the brightness
minus the mean of the 5×5 pixels around. Then

    stripe share = (variance of the 12 row means + variance of the 12 column means) / variance

is 1 for rows or columns of one brightness each, and for sums of such (a plaid). It is 0.14 for
white noise. Street photographs have 0.3 to 0.65: façades and kerbs are lines, too.

A share is a mean over all windows of a class. Beside it stand the number of windows (below about
30, trust nothing) and the standard deviation of the texture, 0 … 255: where it is near 0, there is
no texture whose share would mean something.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import uniform_filter
from tqdm import tqdm

import data
import metrics
import oasis
import processes
import sample


@dataclass
class Texture:
    """The fine texture of one class."""
    share: float            # mean stripe share, 0 … 1
    deviation: float        # mean standard deviation within a window, on the scale 0 … 255
    windows: int            # number of windows


def cut(pixels, window):
    """(H, W) -> all windows at steps of half a window, (n, window, window)."""
    step = window // 2
    return sliding_window_view(pixels, (window, window))[::step, ::step].reshape(-1, window, window)


def windows_of(image, label_map, window):
    """Image (H, W, 3) uint8, label map (H, W) -> (class, stripe share, deviation), (n,) each.

    A window counts if it lies in one class and is not of one colour.
    """
    brightness = np.asarray(image, float).mean(axis=2)
    detail = cut(brightness - uniform_filter(brightness, 5), window)
    classes = cut(np.asarray(label_map), window).reshape(len(detail), -1)
    variance = detail.var(axis=(1, 2))
    valid = (classes == classes[:, :1]).all(axis=1) & (variance > 1e-9)
    detail, variance = detail[valid], variance[valid]
    stripes = detail.mean(axis=2).var(axis=1) + detail.mean(axis=1).var(axis=1)
    return classes[valid, 0], stripes / variance, np.sqrt(variance)


def stripe_shares(images, labels, window=12):
    """Images (n, H, W, 3) uint8 and label maps (n, H, W) -> {class id: Texture}.

    Sizes may differ from image to image. A class without a window is left out.
    """
    parts = []
    for image, label_map in zip(images, labels):
        if min(image.shape[:2]) >= window:
            parts.append(windows_of(image, label_map, window))
    found = {}
    if parts:
        classes, shares, deviations = (np.concatenate(values) for values in zip(*parts))
        for k in np.unique(classes):
            here = classes == k
            found[int(k)] = Texture(float(shares[here].mean()), float(deviations[here].mean()),
                                    int(here.sum()))
    return found


def read_scenes(dataset, count=None):
    """The first scenes of a data set -> (images (n, H, W, 3) uint8, label maps (n, H, W) int64)."""
    images, label_maps = [], []
    for i in range(min(count or len(dataset), len(dataset))):
        image, labels = dataset[i]
        images.append(data.to_uint8(image[None])[0])
        label_maps.append(labels.numpy())
    return np.stack(images), np.stack(label_maps)


def paint_maps(generator, label_maps, seeds):
    """Label maps (n, H, W), a seed for each -> what the generator paints, (n, H, W, 3) uint8.

    The noise is of the kind the generator was trained with. It is drawn for 16 maps at a time, as
    noise at every pixel of many pictures would fill the memory.
    """
    painted = []
    for start in tqdm(range(0, len(seeds), 16), "painting", leave=False, disable=None):
        part = slice(start, start + 16)
        noise = oasis.draw_noise(seeds[part], label_maps.shape[1:], generator.noise_dim,
                                 generator.pixel_noise)
        painted.append(sample.paint(generator, label_maps[part], noise))
    return np.concatenate(painted)


def table(class_names, columns):
    """{heading: {class id: Texture}} -> lines of a table, a class in each that has a window."""
    headings = [f"{heading:>30.28s}" for heading in columns]
    lines = [" " * 22 + "".join(headings),
             " " * 22 + "       share deviation windows" * len(columns)]
    for k, name in enumerate(class_names):
        cells = []
        for shares in columns.values():
            # Without a window there is no share; a picture may be of one colour there.
            found = shares.get(k, Texture(float("nan"), 0, 0))
            cells.append(f"{found.share:12.2f} {found.deviation:9.1f} {found.windows:7d}")
        if any(k in shares for shares in columns.values()):
            lines.append(f"{name:22.22s}" + "".join(cells))
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(prog="extras.stripes", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", metavar="FILE", help="(default: as for metrics.py)")
    parser.add_argument("--data-root", metavar="DIR", help="(default: as in training)")
    parser.add_argument("--num-images", type=int, metavar="N", help="the first N (default: all)")
    parser.add_argument("--seed", type=int, default=0,
                        help="image i gets the noise of seed + i (default 0)")
    args = parser.parse_args(argv)
    with data.exit_in_words("extras.stripes"):
        path = sample.find_checkpoint(args.checkpoint)
        checkpoint, _, val_set = metrics.open_run(path, args.data_root)
        generator = sample.build_generator(checkpoint).to(processes.start_processes())
        real, label_maps = read_scenes(val_set, args.num_images)
        painted = paint_maps(generator, label_maps, range(args.seed, args.seed + len(real)))
        print(f"{path}, step {checkpoint['step']}, noise at every pixel: {generator.pixel_noise} "
              f"of {generator.noise_dim} channels; {len(real)} images of {val_set.name}")
        columns = {"real": stripe_shares(real, label_maps),
                   "painted": stripe_shares(painted, label_maps)}
        print("\n".join(table(val_set.class_names, columns)))


if __name__ == "__main__":
    main()
