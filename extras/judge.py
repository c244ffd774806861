"""Judge a model of the toy scenes: figures beyond mIoU, and two sheets to look at.

    python -m extras.judge --checkpoint runs/toy/latest.pt        # or nothing: assets/toy.pt

Prints the scores of metrics.py and, for the toy's 200 validation scenes,

  colour       earth mover's distance between the LAB histograms of generated and real images, over
               the same distance between two halves of the real ones: do moods come as often?
  roughness    mean |x - 3x3 mean| of pixels at least 3 px from any class border, generated minus
               real: inside (8 px from the image's border on) and in the outermost 4 px. Woven
               texture and frames show here.
  moods        each of 64 seeds on one label map as a mixture of the named moods: which of them
               prevails, how much (largest weight), and how far the picture is from that mixture.

Sheets: judge_pictures.png, 24 validation scenes as label map, real, generated with seeds 0, 1, ...;
judge_seeds.png, seeds 0 to 63 on the first validation scene. Needs scikit-image.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter
from scipy.optimize import nnls

import data
import metrics
import oasis
import sample
import toy
from extras.scores import colour_distance


def roughness(images, labels):
    """(inside, rim) of images (n, H, W, 3) uint8 with label maps (n, H, W), see the header."""
    window = (1, 7, 7)
    plain = maximum_filter(labels, window) == minimum_filter(labels, window)
    smooth = uniform_filter(images / 255, (1, 3, 3, 1), mode="nearest")
    rough = abs(images / 255 - smooth).mean(-1)
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in labels.shape[1:])
    from_border = np.minimum(rows[:, None], columns)                         # (H, W), 0 outermost
    return rough[plain & (from_border >= 8)].mean(), rough[plain & (from_border < 4)].mean()


def mood_weights(images, labels):
    """Images (n, H, W, 3) uint8 of one label map -> (weights of the named moods (n, M), distance).

    A scene is linear in its weights, so the nearest mixture is a non-negative least-squares fit.
    distance (n,): what it leaves, mean difference of pixels in 0 ... 1.
    """
    moods = np.stack([toy.light(labels, mood).ravel() for mood in toy.MOODS.values()], axis=1)
    orthogonal, triangle = np.linalg.qr(moods)       # the same fit with M numbers for an image
    images = images.reshape(len(images), -1) / 255
    weights = np.stack([nnls(triangle, orthogonal.T @ image)[0] for image in images])
    return weights, abs(images - weights @ moods.T).mean(1)


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
                     for picture in (palette[labels[i]], real[i], fake[i])])
    data.picture_grid(rows, scale=scale).save(f"{folder}/judge_pictures.png")
    rows = [list(seeds[start:start + 8]) for start in range(0, len(seeds), 8)]
    data.picture_grid(rows, scale=scale).save(f"{folder}/judge_seeds.png")


def judge(path, folder="."):
    """Print all figures of a checkpoint of the toy, write the sheets. Returns {name: value}."""
    checkpoint, train_set, val_set = metrics.open_run(path)
    G, D = sample.build_generator(checkpoint), sample.build_discriminator(checkpoint)
    images, labels = (torch.stack(t) for t in zip(*(val_set[i] for i in range(len(val_set)))))
    real, fake = data.to_uint8(images), paint_all(G, labels, range(len(labels)))
    seeds = paint_all(G, labels[:1].expand(64, -1, -1), range(64))
    save_sheets(folder, labels.numpy(), real, fake, seeds, val_set.palette)

    scorer = metrics.Scorer(val_set, train_set, "cpu", ("miou", "fd_segmenter", "d_miou"),
                            segmenter=checkpoint.get("segmenter"), run_dir=Path(path).parent
                            if "segmenter" not in checkpoint else None)
    scores = dict(scorer(G, D))
    scores["d_miou / miou_real"] = scores["d_miou"] / scores["miou_real"]
    scores["colour"] = colour_distance(fake, real)
    scores["colour_real"] = colour_distance(real[::2], real[1::2])
    scores["colour / floor"] = scores["colour"] / scores["colour_real"]
    rough_fake, rough_real = (roughness(x, labels.numpy()) for x in (fake, real))
    scores["roughness inside"], scores["roughness rim"] = np.subtract(rough_fake, rough_real)
    weights, away = mood_weights(seeds, labels[0].numpy())
    for k, name in enumerate(toy.MOODS):
        scores[f"seeds that look most like {name}"] = int((weights.argmax(1) == k).sum())
    drawn = np.stack([toy.draw_mood(0, i) for i in range(1000)])
    scores["largest weight"] = weights.max(1).mean()
    scores["largest weight, scenes"] = drawn.max(1).mean()
    scores["distance to that mixture"] = away.mean()
    for name, value in scores.items():
        print(f"{name:32} {value:.4f}" if isinstance(value, float) else f"{name:32} {value}")
    return scores


def main(argv=None):
    parser = argparse.ArgumentParser(prog="extras.judge", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a run's latest.pt (without: as for sample.py)")
    parser.add_argument("--output", default=".", help="folder of the two sheets")
    args = parser.parse_args(argv)
    with data.exit_in_words("judge.py"):
        path = sample.find_checkpoint(args.checkpoint)
        print(path)
        judge(path, args.output)


if __name__ == "__main__":
    main()
