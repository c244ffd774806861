"""A colour table: each pixel gets the mean colour of its class. The least that a score can mean.

    python -m extras.colour_table --run-dir runs/colour-table                   # drawn scenes
    python -m extras.colour_table --preset small --data-root my_photos --run-dir runs/colour-table
    python metrics.py --checkpoint runs/colour-table/latest.pt --metrics miou,fd_segmenter

The mean colours are counted over training images; nothing is learned, no noise, no texture, no
light. But every pixel follows the label map, so a judge that knows classes by their colours gives
it a good mIoU. The file is a checkpoint that sample.py, metrics.py and all extras take.
Options are those of train.py. Only the data, their size and --run-dir matter.
"""

import dataclasses
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import embedding
from tqdm import tqdm

import data
import losses
import train

MOST = 2000         # training images that are counted


class ColourTable(nn.Module):
    """A generator without noise: one colour for each class. It is called as oasis.Generator is."""

    def __init__(self, num_classes):
        super().__init__()
        self.config = dict(num_classes=num_classes)
        self.num_classes, self.noise_dim, self.pixel_noise = num_classes, 0, 0
        self.size_multiple = 1
        self.colours = nn.Parameter(torch.zeros(num_classes, 3))        # in [−1, 1]

    def forward(self, labels, noise=None):
        """labels (B, H, W) int64 -> images (B, 3, H, W) in [−1, 1]. The noise changes nothing."""
        return embedding(labels, self.colours).permute(0, 3, 1, 2)


def mean_colours(dataset, most=MOST):
    """(N, 3) in [−1, 1]: the mean colour of each class; grey, 0, of a class without a pixel."""
    sums = torch.zeros(dataset.num_classes, 3, dtype=torch.float64)
    counts = torch.zeros(dataset.num_classes, dtype=torch.int64)
    for i in tqdm(range(min(most, len(dataset))), "colours", leave=False, disable=None):
        image, labels = dataset[i]
        sums.index_add_(0, labels.flatten(), image.flatten(1).T.double())
        counts += losses.count_classes(labels, dataset.num_classes)
    return (sums / counts.clamp(min=1)[:, None]).float()


def make_checkpoint(settings, dataset):
    """What train.py's checkpoints hold, but for what training needs."""
    G = ColourTable(dataset.num_classes)
    G.colours.data = mean_colours(dataset)
    return {"format": "oasis-run-2", "settings": dataclasses.asdict(settings), "step": 0,
            "dataset": {"preset": settings.preset, "class_names": list(dataset.class_names),
                        "palette": dataset.palette.tolist(), "ignore_label": dataset.ignore_label,
                        "size": [settings.height, settings.width]},
            "generator_class": "extras.colour_table.ColourTable", "generator_args": G.config,
            "ema": G.state_dict(), "log": [], "scores": []}


@data.exit_in_words("extras.colour_table")
def main(argv=None):
    """The command line. Exit code 0: done; 2: a mistake of the user."""
    settings = train.parse_settings(argv)
    train_set = train.open_datasets(settings)[0]
    path = Path(settings.run_dir, "latest.pt")
    checkpoint = make_checkpoint(settings, train_set)
    with data.write_whole(path) as partial:
        torch.save(checkpoint, partial)
    print(f"{path}: the mean colours of {train_set.num_classes} classes")


if __name__ == "__main__":
    main()
