"""Exercise 10: half-way between two noises, along the straight line and along the sphere.

    python tests/exercises/10_straight_line.py runs/ablation/oasis/seed0
"""

import torch
from common import make_scorer, open_run

import oasis
from pictures import interpolate


def ends(a, b):
    return a


def line(a, b):
    return torch.stack([(x + y) / 2 for x, y in zip(a, b)])


def sphere(a, b):
    return torch.stack([interpolate(x, y, 3)[1] for x, y in zip(a, b)])


def twice_as_long(a, b):
    return 2 * a


def nothing(a, b):
    return torch.zeros_like(a)


def scored(scorer, G, choose):
    """Scores where image i has the noise choose(a, b) between seed i and seed i + count."""
    contrasts, lengths, drawn = [], [], []
    for half, _, labels, indices in scorer.batches("scoring"):
        a = scorer.noise(indices, G)
        z = choose(a, scorer.noise([i + scorer.count for i in indices], G))
        images = G(labels, z)
        lengths += z.norm(dim=1).tolist()
        contrasts += images.flatten(1).std(1).tolist()
        drawn.append((half, images, labels))
    scores = scorer.compare(drawn)
    mean_image_distance = torch.cat([images for _, images, _ in drawn]).mean((2, 3)).std(0).mean()
    return {"length": sum(lengths) / len(lengths), "miou": scores["miou"],
            "fd_segmenter": scores["fd_segmenter"], "contrast": sum(contrasts) / len(contrasts),
            "spread of mean colour": mean_image_distance.item()}


@torch.no_grad()
def main():
    folder, checkpoint = open_run()
    G, scorer = oasis.generator_from(checkpoint), make_scorer(folder, checkpoint)
    for choose in (ends, sphere, line, nothing, twice_as_long):
        values = scored(scorer, G, choose)
        print(f"{choose.__name__:14s}", *(f"{name} {v:.3f}  " for name, v in values.items()))


if __name__ == "__main__":
    main()
