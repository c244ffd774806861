"""Exercise 6: a model scored with one noise vector per image, and with one per pixel.

    python course/solutions/06_noise_per_pixel.py runs/pixels/latest.pt
"""

import torch
from common import label_batches, make_scorer, open_model

import oasis
import sample


class PerImage(torch.nn.Module):
    """A generator that notes how much each image changes with its seed."""

    pixel_noise = 0             # the noise that it is given is not used

    def __init__(self, generator):
        super().__init__()
        self.generator, self.noise_dim = generator, generator.noise_dim
        self.painted, self.changes = 0, []

    def noise(self, seeds, size):
        return oasis.noise_from_seeds(seeds, self.noise_dim)

    def forward(self, labels, _):
        seeds = range(self.painted, self.painted + len(labels))
        self.painted += len(labels)
        first, second = (self.generator(labels, self.noise([i + more for i in seeds],
                                                           labels.shape[1:]))
                         for more in (0, 10_000))
        self.changes += (second - first).abs().mean((1, 2, 3)).tolist()
        return first


class PerPixel(PerImage):
    """The same with another vector at every pixel."""

    def noise(self, seeds, size):
        return oasis.draw_noise(seeds, size, self.noise_dim, pixel_noise=self.noise_dim)


@torch.no_grad()
def take_statistics(generator, batches):
    """Batch-norm statistics for this kind of noise, as train.measure_statistics takes them."""
    for layer in generator.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None                       # all batches count alike
    generator.train()
    for labels in batches:
        generator(labels.long(), None)
    generator.eval()
    generator.painted, generator.changes = 0, []


def main():
    args, checkpoint = open_model(__doc__)
    scorer = make_scorer(args, checkpoint)
    for title, kind in (("one vector per image", PerImage), ("one per pixel", PerPixel)):
        generator = kind(sample.build_generator(checkpoint))
        take_statistics(generator, label_batches(checkpoint)[1])
        scores = scorer(generator)
        change = sum(generator.changes) / len(generator.changes)
        print(f"{title:21s} miou {scores['miou']:.3f}   fd_segmenter {scores['fd_segmenter']:.2f}   "
              f"change with the seed {change:.3f}")


if __name__ == "__main__":
    main()
