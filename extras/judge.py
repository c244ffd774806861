"""Judge a model of the toy scenes: figures beyond mIoU, and two sheets to look at.

    python -m extras.judge --checkpoint runs/toy/latest.pt        # or nothing: assets/toy.pt

Prints the scores of metrics.py and, for the toy's 200 validation scenes,

  colour       earth mover's distance between the LAB histograms of generated and real images, over
               the same distance between two halves of the real ones: do moods come as often?
  roughness    mean |x - 3x3 mean| of pixels at least 3 px from any class border, generated minus
               real: inside (8 px from the image's border on) and in the outermost 4 px. Woven
               texture and frames show here.
  moods        of 64 seeds on one label map, how many look most like each named mood, and how far
               they are from the scene in that mood (mean difference of pixels in 0 ... 1).

Sheets: judge_pictures.png, 24 validation scenes as label map, real, generated with seeds 0, 1, ...;
judge_seeds.png, seeds 0 to 63 on the first validation scene. Needs scikit-image.
"""

import argparse

import numpy as np
import torch
from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter
from scipy.stats import wasserstein_distance
from skimage.color import rgb2lab

import data
import metrics
import oasis
import sample
import toy


def roughness(images, labels):
    """(inside, rim) of images (n, H, W, 3) uint8 with label maps (n, H, W), see the header."""
    window = (1, 7, 7)
    plain = maximum_filter(labels, window) == minimum_filter(labels, window)
    smooth = uniform_filter(images / 255, (1, 3, 3, 1), mode="nearest")
    rough = abs(images / 255 - smooth).mean(-1)
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in labels.shape[1:])
    from_border = np.minimum(rows[:, None], columns)                         # (H, W), 0 outermost
    return rough[plain & (from_border >= 8)].mean(), rough[plain & (from_border < 4)].mean()


def colour_distance(a, b):
    """Earth mover's distance between two sets of images (n, H, W, 3) uint8, in LAB units.

    One distance for each of L, a and b, rounded to whole numbers; their mean.
    """
    bins = np.arange(-128, 129) - 0.5
    a, b = ([np.histogram(channel, bins)[0] for channel in rgb2lab(images).reshape(-1, 3).T]
            for images in (a, b))
    values = bins[:-1] + 0.5
    return np.mean([wasserstein_distance(values, values, p, q) for p, q in zip(a, b)])


def nearest_moods(images, labels, mixtures=300):
    """Images (n, H, W, 3) uint8 of one label map -> (number of the nearest named mood, distance).

    The distance is that to the nearest scene of the label map, in a named mood or in a mixture.
    """
    moods = [*toy.MOODS.values(), *(toy.draw_mood(1, i) for i in range(mixtures))]
    scenes = np.stack([toy.light(labels, mood) for mood in moods])
    away = np.stack([abs(image / 255 - scenes).mean((1, 2, 3)) for image in images])
    return away[:, :len(toy.MOODS)].argmin(1), away.min(1)


def paint_all(generator, labels, seeds):
    """uint8 (n, H, W, 3): label maps (n, H, W), each with its seed's noise, 16 at a time."""
    noise = oasis.noise_from_seeds(seeds, generator.noise_dim)
    return np.concatenate([sample.paint(generator, *batch)
                           for batch in zip(labels.split(16), noise.split(16))])


def save_sheets(folder, labels, real, fake, seeds, palette, scale=4):
    """judge_pictures.png and judge_seeds.png: everything as it comes, `scale` times as large."""
    rows = []
    for start in range(0, 24, 4):
        rows.append([picture for i in range(start, min(start + 4, len(real)))
                     for picture in (data.colourise(labels[i], palette), real[i], fake[i])])
    data.picture_grid(rows, scale=scale).save(f"{folder}/judge_pictures.png")
    rows = [list(seeds[start:start + 8]) for start in range(0, len(seeds), 8)]
    data.picture_grid(rows, scale=scale).save(f"{folder}/judge_seeds.png")


def judge(checkpoint, folder="."):
    """Print all figures of a toy checkpoint (a dictionary), write the sheets. Returns {name: value}."""
    settings = checkpoint["settings"]
    size = settings["height"], settings["width"]
    train_set, val_set = (data.open_dataset("toy", split, size, seed=settings["data_seed"])
                          for split in ("train", "val"))
    G, D = oasis.build_generator(checkpoint), oasis.build_discriminator(checkpoint)
    images, labels = (torch.stack(t) for t in zip(*(val_set[i] for i in range(len(val_set)))))
    real, fake = data.to_uint8(images), paint_all(G, labels, range(len(labels)))
    seeds = paint_all(G, labels[:1].expand(64, -1, -1), range(64))
    save_sheets(folder, labels.numpy(), real, fake, seeds, val_set.palette)

    scorer = metrics.Scorer(val_set, train_set, torch.device("cpu"),
                            ("miou", "fd_segmenter", "d_miou"),
                            segmenter=checkpoint.get("segmenter"))
    scores = dict(scorer(G, D))
    scores["d_miou / miou_real"] = scores["d_miou"] / scores["miou_real"]
    scores["colour"] = colour_distance(fake, real)
    scores["colour_real"] = colour_distance(real[::2], real[1::2])
    scores["colour / floor"] = scores["colour"] / scores["colour_real"]
    rough_fake, rough_real = (roughness(x, labels.numpy()) for x in (fake, real))
    scores["roughness inside"], scores["roughness rim"] = np.subtract(rough_fake, rough_real)
    nearest, away = nearest_moods(seeds, labels[0].numpy())
    for k, name in enumerate(toy.MOODS):
        scores[f"seeds that look like {name}"] = int((nearest == k).sum())
    scores["distance to the nearest scene"] = away.mean()
    for name, value in scores.items():
        print(f"{name:28} {value:.4f}" if isinstance(value, float) else f"{name:28} {value}")
    return scores


def main(argv=None):
    parser = argparse.ArgumentParser(prog="extras.judge", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a run's latest.pt (without: as for sample.py)")
    parser.add_argument("--output", default=".", help="folder of the two sheets")
    args = parser.parse_args(argv)
    with oasis.exit_in_words("judge.py"):
        path = oasis.find_checkpoint(args.checkpoint)
        print(path)
        judge(oasis.load_checkpoint(path), args.output)


if __name__ == "__main__":
    main()
