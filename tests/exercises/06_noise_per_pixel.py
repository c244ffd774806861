"""Exercise 6: a run scored with one noise vector per image, and with one per pixel.

    python tests/exercises/06_noise_per_pixel.py runs/noise-per-pixel
"""

import torch
from common import label_batches, make_scorer, open_run

import metrics
import oasis


def noise_per_pixel(seeds, noise_dim, size):
    """A different vector at every pixel: (len(seeds), noise_dim, *size), one seed per image."""
    return torch.stack([torch.randn(noise_dim, *size, generator=torch.Generator().manual_seed(seed))
                        for seed in seeds])


class PerPixel(metrics.Scorer):
    """Scores images that were drawn with a noise of their own at every pixel."""

    def noise(self, seeds, generator):
        return noise_per_pixel(seeds, generator.noise_dim, self.dataset.size)


@torch.no_grad()
def take_statistics(G, batches, noise_of):
    """Batch-norm statistics of G's own for this kind of noise; see train.refresh_ema."""
    for layer in G.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None                       # plain mean over the batches
    G.train()
    for i, labels in enumerate(batches):
        G(labels.long(), noise_of(range(i * len(labels), (i + 1) * len(labels)), G))
    G.eval()


def main():
    folder, checkpoint = open_run()
    G = oasis.generator_from(checkpoint)
    for title, kind in (("one vector per image", metrics.Scorer), ("one per pixel", PerPixel)):
        scorer = make_scorer(folder, checkpoint, kind)
        take_statistics(G, label_batches(checkpoint), scorer.noise)
        scores = scorer(G) | make_scorer(folder, checkpoint, kind, ["ms_ssim"], 40)(G)
        print(f"{title:21s}", *(f"{name} {value:.3f}  " for name, value in scores.items()
                                if not name.endswith("_real")))


if __name__ == "__main__":
    main()
