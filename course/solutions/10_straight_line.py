"""Exercise 10: half-way between two noises, along the straight line and along the sphere.

    python course/solutions/10_straight_line.py
"""

import torch
from common import make_scorer, open_model

import oasis
import sample

WAYS = {                                        # from two noises to one; (C,) or (C, H, W)
    "one end": lambda a, b: a,
    "sphere, half-way": lambda a, b: sample.interpolate(a, b, 3)[1],
    "line, half-way": lambda a, b: (a + b) / 2,
    "z = 0": lambda a, b: 0 * a,
    "2 z": lambda a, b: 2 * a,
}


class Between(torch.nn.Module):
    """A generator whose image i has the noise way(a, b), of seeds i and i + 10,000."""

    def __init__(self, generator, way):
        super().__init__()
        self.generator, self.way = generator, way
        self.noise_dim, self.pixel_noise = generator.noise_dim, generator.pixel_noise
        self.lengths, self.colours = [], []

    def forward(self, labels, noise):
        """noise: that of the seeds i, which the scorer draws."""
        first = 10_000 + len(self.lengths)
        others = oasis.draw_noise(range(first, first + len(labels)), labels.shape[1:],
                                  self.noise_dim, self.pixel_noise)
        z = torch.stack([self.way(*pair) for pair in zip(noise, others)])
        images = self.generator(labels, z)
        at_a_pixel = z.flatten(2)[:, :, 0] if z.ndim == 4 else z                   # (B, C)
        self.lengths += at_a_pixel.norm(dim=1).tolist()
        self.colours.append(images.mean((2, 3)))
        return images


def main():
    args, checkpoint = open_model(__doc__)
    scorer = make_scorer(args, checkpoint)
    for name, way in WAYS.items():
        generator = Between(sample.build_generator(checkpoint), way)
        scores = scorer(generator)
        spread = torch.cat(generator.colours).std(0).mean()
        print(f"{name:17s} length {sum(generator.lengths) / len(generator.lengths):6.3f}   "
              f"miou {scores['miou']:.3f}   fd_segmenter {scores['fd_segmenter']:6.2f}   "
              f"spread of mean colours {spread:.3f}")


if __name__ == "__main__":
    main()
