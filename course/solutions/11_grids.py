"""Exercise 11: is a texture random, or made from the label map?

    python course/solutions/11_grids.py runs/vector/latest.pt         # --pixel-noise 0
    python course/solutions/11_grids.py runs/baseline/latest.pt       # the preset's 16 channels

Texture is what is left of an image without its 3×3 means, in grey, three pixels or more away from
all class borders. Random texture differs between two images of one label map: correlation 0. What
G makes from the label map comes again with every noise vector.
"""

import numpy as np
import torch
import torch.nn.functional as F
from common import datasets, open_model

import oasis
import sample
import toy


def texture(images):
    """Images (B, 3, H, W) -> grey value minus its 3×3 mean, (B, H, W)."""
    grey = images.mean(1, keepdim=True)
    return (grey - F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, stride=1))[:, 0]


def inner(labels, distance=3):
    """Pixels whose neighbours up to this distance have the same class: (B, H, W) bool."""
    size, values = 2 * distance + 1, labels[:, None].float()
    padded = F.pad(values, 4 * (distance,), mode="replicate")
    same = F.max_pool2d(padded, size, 1) == -F.max_pool2d(-padded, size, 1)
    return same[:, 0]


def compare(first, second, mask):
    """Two images of each label map -> (roughness, correlation of the two textures)."""
    a, b = texture(first)[mask], texture(second)[mask]
    return a.abs().mean().item(), torch.corrcoef(torch.stack([a, b]))[0, 1].item()


@torch.no_grad()
def main():
    args, checkpoint = open_model(__doc__)
    G, val_set = sample.build_generator(checkpoint), datasets(checkpoint)[1]
    count = args.num_images or 50
    labels = torch.stack([val_set[i][1] for i in range(count)])
    painted = [G(labels, oasis.draw_noise(range(seed, seed + count), labels.shape[1:],
                                          G.noise_dim, G.pixel_noise)) for seed in (0, 1000)]
    # A scene again, in its own mood, with other random numbers for its texture.
    real = [torch.stack([draw(val_set, i, again) for i in range(count)]) for again in (0, 1)]
    for title, pair in (("real", real), ("generated", painted)):
        roughness, correlation = compare(*pair, inner(labels))
        print(f"{title:10s} roughness {roughness:.4f}   correlation of two {correlation:.2f}")


def draw(val_set, index, again):
    """Scene number index as an image (3, H, W); again: the number of its texture.

    A photograph cannot be taken again: its correlation with itself, 1, says nothing.
    """
    if val_set.name != "toy":
        return val_set[index][0]
    number = val_set.files[val_set.names[index]][0]
    flat, labels = toy.draw_scene(val_set.seed, number, *val_set.size, texture=False)
    rng = np.random.default_rng((index, again))
    image = torch.from_numpy(toy.add_texture(flat / 255, labels, rng)).float()
    return image.permute(2, 0, 1) * 2 - 1


if __name__ == "__main__":
    main()
