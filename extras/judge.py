"""Judge a model of the toy scenes: figures beyond mIoU, and two sheets to look at.

    python -m extras.judge --checkpoint runs/toy/latest.pt        # or nothing: as for sample.py

Prints the scores of metrics.py and, for the toy's 200 validation scenes,

  colour       earth mover's distance between the LAB histograms of painted and real images, and the
               same distance between two halves of the real ones, its floor: do moods come as often?
  roughness    mean |x - 3x3 mean| of pixels at least 3 px from any class border, painted minus
               real: inside (8 px from the image's border on) and in the outermost 4 px. Texture
               that is too strong or too weak shows here, and frames.
  moods        each of --seeds pictures of one label map as a mixture of the named moods: which of
               them prevails, how much (largest weight), and how far the picture is from that
               mixture. Random texture is a part of that distance; real scenes have it, too.
  stripes      the share of stripes in the texture of each class (extras.stripes), painted and real.

Sheets, everything as it comes: judge_pictures.png, 24 validation scenes as label map, real, painted
with seeds 0, 1, ...; judge_seeds.png, seeds 0, 1, ... on the first validation scene. The noise is
of the kind the model was trained with, one vector per image or with a part at every pixel. Needs
scikit-image.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter
from scipy.optimize import nnls

import data
import metrics
import sample
import toy
from extras.scores import colour_distance
from extras.stripes import paint_maps, read_scenes, stripe_shares, table


def distance_from_border(size):
    """(H, W): for each pixel, how many pixels lie between it and the image's border."""
    down = np.minimum(np.arange(size[0]), np.arange(size[0])[::-1])
    across = np.minimum(np.arange(size[1]), np.arange(size[1])[::-1])
    return np.minimum(down[:, None], across)


def roughness(images, labels):
    """(inside, rim) of images (n, H, W, 3) uint8 with label maps (n, H, W), see the header."""
    window = (1, 7, 7)
    plain = maximum_filter(labels, window) == minimum_filter(labels, window)
    smooth = uniform_filter(images / 255, (1, 3, 3, 1), mode="nearest")
    rough = abs(images / 255 - smooth).mean(axis=3)
    border = distance_from_border(labels.shape[1:])
    return rough[plain & (border >= 8)].mean(), rough[plain & (border < 4)].mean()


def mood_weights(images, labels):
    """Images (n, H, W, 3) uint8 of one label map -> (weights of the named moods (n, M), distance).

    A flat scene is linear in its weights, so the nearest mixture is a non-negative least-squares
    fit. Random texture has mean 0, and hardly changes the fit. distance (n,): what the fit leaves,
    mean difference of pixels in 0 ... 1.
    """
    moods = [toy.light(labels, mood).ravel() for mood in toy.MOODS.values()]
    moods = np.stack(moods, axis=1)
    orthogonal, triangle = np.linalg.qr(moods)       # the same fit with M numbers for an image
    images = images.reshape(len(images), -1) / 255
    weights = []
    for image in images:
        weights.append(nnls(triangle, orthogonal.T @ image)[0])
    weights = np.stack(weights)
    return weights, abs(images - weights @ moods.T).mean(axis=1)


def judge_moods(seeds, real, labels):
    """{name: value}. seeds: pictures of the first label map. real: the scenes of all label maps."""
    weights, distance = mood_weights(seeds, labels[0])
    scores = {}
    for k, name in enumerate(toy.MOODS):
        scores[f"seeds that look most like {name}"] = int((weights.argmax(axis=1) == k).sum())
    drawn = np.stack([toy.draw_mood(0, i) for i in range(1000)])
    scores["largest weight"] = weights.max(axis=1).mean()
    scores["largest weight, scenes"] = drawn.max(axis=1).mean()
    scores["distance to that mixture"] = distance.mean()
    of_scenes = [mood_weights(real[i:i + 1], labels[i])[1] for i in range(min(24, len(real)))]
    scores["distance to that mixture, scenes"] = np.mean(of_scenes)
    return scores


def save_sheets(folder, labels, real, painted, seeds, palette):
    """judge_pictures.png and judge_seeds.png: everything as it comes, enlarged where small."""
    scale = max(1, 256 // labels.shape[1])
    rows = []
    for start in range(0, min(24, len(real)), 4):
        row = []
        for i in range(start, min(start + 4, len(real))):
            row += [palette[labels[i]], real[i], painted[i]]
        rows.append(row)
    captions = ["label map", "real", "painted"] * 4
    save_grid(Path(folder, "judge_pictures.png"), rows, captions, scale)
    rows = []
    for start in range(0, len(seeds), 8):
        rows.append(list(seeds[start:start + 8]))
    save_grid(Path(folder, "judge_seeds.png"), rows, None, scale)


def save_grid(path, rows, captions, scale):
    with data.write_whole(path) as partial:
        data.picture_grid(rows, captions, scale).save(partial)


def judge(path, folder=".", num_seeds=64):
    """Print all figures of a checkpoint of the toy, write the sheets. Returns {name: value}."""
    checkpoint, train_set, val_set = metrics.open_run(path)
    if list(val_set.class_names) != toy.CLASSES:
        raise data.UserError(f"{path}: was not trained on the drawn scenes of toy.py")
    G, D = sample.build_generator(checkpoint), sample.build_discriminator(checkpoint)
    real, labels = read_scenes(val_set)
    painted = paint_maps(G, labels, range(len(labels)))
    seeds = paint_maps(G, labels[:1].repeat(num_seeds, axis=0), range(num_seeds))
    save_sheets(folder, labels, real, painted, seeds, val_set.palette)

    # A segmenter that trained beside the model reads; assets/toy.pt holds one, a run's folder too.
    own = checkpoint.get("segmenter")
    run_dir = None if own else Path(path).parent
    scorer = metrics.Scorer(val_set, train_set, "cpu", ("miou", "fd_segmenter", "d_miou"),
                            segmenter=own, run_dir=run_dir)
    scores = dict(scorer(G, D))
    scores["d_miou / miou_real"] = scores["d_miou"] / scores["miou_real"]
    scores["colour"] = colour_distance(painted, real)
    scores["colour_real"] = colour_distance(real[::2], real[1::2])
    scores["colour / floor"] = scores["colour"] / scores["colour_real"]
    more = np.subtract(roughness(painted, labels), roughness(real, labels))
    scores["roughness inside"], scores["roughness rim"] = more
    scores |= judge_moods(seeds, real, labels)
    for name, value in scores.items():
        print(f"{name:34} {value}" if isinstance(value, int) else f"{name:34} {value:.4f}")

    shares = {"real": stripe_shares(real, labels), "painted": stripe_shares(painted, labels)}
    print("stripes")
    print("\n".join(table(val_set.class_names, shares)))
    for heading, of_classes in shares.items():
        for k, texture in of_classes.items():
            scores[f"stripes {heading} {val_set.class_names[k]}"] = texture.share
    return scores


def main(argv=None):
    parser = argparse.ArgumentParser(prog="extras.judge", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a run's latest.pt (without: as for sample.py)")
    parser.add_argument("--seeds", type=int, default=64, metavar="N",
                        help="pictures of one label map (default: 64)")
    parser.add_argument("--out", default=".", metavar="DIR", help="folder of the two sheets")
    args = parser.parse_args(argv)
    with data.exit_in_words("extras.judge"):
        path = sample.find_checkpoint(args.checkpoint)
        print(path)
        judge(path, args.out, args.seeds)


if __name__ == "__main__":
    main()
