"""Exercise 9: how far the noise of a single pixel is seen, for four pixels side by side.

    python course/solutions/09_one_pixel.py
"""

import torch
from common import datasets, open_model

import oasis
import sample


@torch.no_grad()
def change_of(G, labels, pixel, seeds=(0, 1)):
    """|x̂ after − x̂ before|, (H, W), where one pixel (row, column) has the other seed's noise.

    G in float64, whose rounding hides nothing. labels (H, W) int64.
    """
    a, b = oasis.noise_from_seeds(seeds, G.noise_dim).double().split(1)
    region = torch.zeros(labels.shape, dtype=torch.bool)
    before = G(labels[None], oasis.local_noise(a, b, region))
    region[pixel] = True
    after = G(labels[None], oasis.local_noise(a, b, region))
    return (after - before).abs()[0].mean(0)


def distances(change, pixel):
    """How far from the pixel anything changed at all: up, down, left, right."""
    rows, columns = change.nonzero().unbind(1)
    return [(pixel[0] - rows.min()).item(), (rows.max() - pixel[0]).item(),
            (pixel[1] - columns.min()).item(), (columns.max() - pixel[1]).item()]


def main():
    _, checkpoint = open_model(__doc__)
    G = sample.build_generator(checkpoint).double()
    middle = 8 * G.size_multiple                        # no pixel reaches farther than that
    labels = datasets(checkpoint, (2 * middle, 2 * middle))[1][0][1]
    print(f"{2 * middle}×{2 * middle}, other noise at one pixel:\n"
          f"pixel        divides by   up down left right   pixels   sum of change")
    for stride in [2 ** k for k in reversed(range(len(G.blocks)))]:
        pixel = 2 * (middle + stride % G.size_multiple,)
        change = change_of(G, labels, pixel)
        print(f"({pixel[0]:3d}, {pixel[1]:3d}) {stride:10d}  ",
              *(f"{d:4d}" for d in distances(change, pixel)),
              f"{(change > 0).sum():10d} {change.sum():12.4f}")


if __name__ == "__main__":
    main()
