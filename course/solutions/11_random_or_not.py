"""Exercise 11: is a texture random, or made from the label map?

    python course/solutions/11_random_or_not.py                       # assets/toy.pt
    python course/solutions/11_random_or_not.py runs/vector/latest.pt # trained with --pixel-noise 0

Texture is what is left of an image without its 5×5 means, in grey, three pixels or more away from
all class borders. Two images of one label map are compared, in the same light:

    roughness      mean size of the texture, of images in −1 … 1
    correlation    of both textures. 0: each is drawn anew. 1: it comes again, so it is made from
                   the label map and from positions.
"""

import numpy as np
import torch
from common import datasets, open_model

import oasis
import sample
import toy
from textures import inner, texture


def compare(first, second, mask):
    """Two images of each label map -> (roughness, correlation of the two textures)."""
    a, b = texture(first)[mask], texture(second)[mask]
    return a.abs().mean().item(), torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def draw_again(val_set, count, again):
    """The first scenes with textures drawn anew, number `again` of them: (count, 3, H, W)."""
    images = []
    for i in range(count):
        number = val_set.files[val_set.names[i]][0]
        flat, labels = toy.draw_scene(val_set.seed, number, *val_set.size, texture=False)
        image = toy.add_texture(flat / 255, labels, np.random.default_rng((number, again)))
        images.append(torch.from_numpy(image).permute(2, 0, 1).float() * 2 - 1)
    return torch.stack(images)


def paint_twice(G, labels, still=False):
    """Two images of each map: the same vector, another field (where the noise has a field).

    still: both fields have the same numbers at every pixel of the image.
    """
    count, size, K = len(labels), labels.shape[1:], G.pixel_noise
    noise = oasis.draw_noise(range(count), size, G.noise_dim, K)
    again = oasis.draw_noise(range(1000, 1000 + count), size, G.noise_dim, K)
    if K == 0:                      # another vector is all that can be changed
        return G(labels, noise), G(labels, again)
    again[:, :-K] = noise[:, :-K]
    if still:
        noise[:, -K:], again[:, -K:] = noise[:, -K:, :1, :1], again[:, -K:, :1, :1]
    return G(labels, noise), G(labels, again)


@torch.no_grad()
def main():
    args, checkpoint = open_model(__doc__)
    G, val_set = sample.build_generator(checkpoint), datasets(checkpoint)[1]
    count = args.num_images or 50
    labels = torch.stack([val_set[i][1] for i in range(count)])
    mask = inner(labels)
    real = draw_again(val_set, count, 0), draw_again(val_set, count, 1)
    for title, pair in (("real scenes", real), ("painted", paint_twice(G, labels)),
                        ("fields held still", paint_twice(G, labels, still=True))):
        roughness, correlation = compare(*pair, mask)
        print(f"{title:17s} roughness {roughness:.4f}   correlation of two {correlation:.2f}")


if __name__ == "__main__":
    main()
