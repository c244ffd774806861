"""Exercise 9: how far the noise of a single pixel is seen, for four pixels side by side.

    python tests/exercises/09_one_pixel.py runs/ablation/oasis/seed0
"""

import torch
from common import datasets, open_run

import oasis
from pictures import reach


@torch.no_grad()
def change_of(G, labels, pixel, seeds=(0, 1)):
    """|x̂ after − x̂ before|, (H, W), where one pixel (row, column) has the other seed's noise.

    G in float64, whose rounding hides nothing. labels (H, W) int64.
    """
    a, b = oasis.noise_from_seeds(seeds, G.noise_dim).double()
    before = oasis.replicate_noise(a[None], *labels.shape).clone()
    after = before.clone()
    after[0, :, pixel[0], pixel[1]] = b
    return (G(labels[None], after) - G(labels[None], before)).abs()[0].mean(0)


def distances(change, pixel):
    """How far from the pixel anything changed at all: up, down, left, right. 0s: nowhere else."""
    rows, columns = change.nonzero().unbind(1)
    return [(pixel[0] - rows.min()).item(), (rows.max() - pixel[0]).item(),
            (pixel[1] - columns.min()).item(), (columns.max() - pixel[1]).item()]


def main():
    _, checkpoint = open_run()
    G = oasis.generator_from(checkpoint).double()
    middle = (reach(G) // G.size_multiple + 2) * G.size_multiple   # room for the reach all around
    size = 2 * middle
    labels = datasets(checkpoint, (size, size))[1][0][1]
    print(f"{size}×{size}; the noise of one pixel is another:\n"
          f"pixel        divides by   up down left right   pixels   sum of change")
    for stride in [2 ** k for k in reversed(range(G.num_blocks))]:
        pixel = middle + stride % G.size_multiple, middle + stride % G.size_multiple
        change = change_of(G, labels, pixel)
        print(f"({pixel[0]:3d}, {pixel[1]:3d}) {stride:10d}  ",
              *(f"{d:4d}" for d in distances(change, pixel)),
              f"{(change > 0).sum():10d} {change.sum():12.4f}")


if __name__ == "__main__":
    main()
