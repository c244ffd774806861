"""Exercise 6: what the vector part of the noise decides, and what the field decides.

    python course/solutions/06_vector_and_field.py                       # assets/toy.pt
    python course/solutions/06_vector_and_field.py runs/mine/latest.pt   # any model with both

Every label map is painted three times: with the noise of seed i; with the vector of another seed;
with the field of another seed. Between two pictures of one map two things are measured:

    colour     how far the mean colour moves, on the scale 0 … 255
    texture    correlation of what 5×5 means leave over, in grey, three pixels or more away from
               class borders. 1: the same texture. 0: two textures that have nothing in common.
"""

import torch
from common import datasets, open_model

import oasis
import sample
from textures import inner, texture


def swap(noise, other, pixel_noise):
    """(B, C, H, W) twice -> (the first with the other's vector, the first with the other's field)."""
    vector, field = noise[:, :-pixel_noise], noise[:, -pixel_noise:]
    other_vector, other_field = other[:, :-pixel_noise], other[:, -pixel_noise:]
    return torch.cat([other_vector, field], 1), torch.cat([vector, other_field], 1)


def compare(first, second, mask):
    """Two images of each label map, (B, 3, H, W) in [−1, 1] -> (colour, texture), two floats."""
    colour = 127.5 * (first.mean((2, 3)) - second.mean((2, 3))).abs().mean().item()
    both = torch.stack([texture(first)[mask], texture(second)[mask]])
    return colour, torch.corrcoef(both)[0, 1].item()


@torch.no_grad()
def main():
    args, checkpoint = open_model(__doc__)
    G, val_set = sample.build_generator(checkpoint), datasets(checkpoint)[1]
    if not 0 < G.pixel_noise < G.noise_dim:
        raise SystemExit("this model's noise has only one of the two parts")
    count = args.num_images or 50
    labels = torch.stack([val_set[i][1] for i in range(count)])
    noise, other = (oasis.draw_noise(range(seed, seed + count), labels.shape[1:], G.noise_dim,
                                     G.pixel_noise) for seed in (0, 1000))
    first, mask = G(labels, noise), inner(labels)
    for title, swapped in zip(("another vector", "another field"),
                              swap(noise, other, G.pixel_noise)):
        colour, correlation = compare(first, G(labels, swapped), mask)
        print(f"{title:15s} colour moves by {colour:5.2f}   correlation of textures "
              f"{correlation:5.2f}")


if __name__ == "__main__":
    main()
