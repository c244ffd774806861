"""Exercise 2: F.cross_entropy(weight=α) against the mean over all pixels, on real logits.

    python tests/exercises/02_weighted_mean.py runs/ablation/oasis/seed0
"""

import torch
import torch.nn.functional as F
from common import datasets, open_run

import losses
import oasis


def compare(logits, labels, num_classes, ignore_label, shares):
    """Both means over the whole batch, and averaged over `shares` equal parts of it -> 4 floats.

    α is counted in the whole batch each time, as train.draw does for several processes.
    """
    weights = losses.class_weights(labels, num_classes, ignore_label)
    parts = list(zip(logits.chunk(shares), labels.chunk(shares)))
    ours, plain = losses.real_loss, F.cross_entropy
    return [loss.item() for loss in (
        ours(logits, labels, weights), plain(logits, labels, weights_for(weights, logits)),
        sum(ours(*part, weights) for part in parts) / shares,
        sum(plain(*part, weights_for(weights, logits)) for part in parts) / shares)]


def weights_for(weights, logits):
    """α with an entry for the fake class, which no label names."""
    return F.pad(weights, (0, logits.shape[1] - len(weights)))


@torch.no_grad()
def main():
    _, checkpoint = open_run()
    D = oasis.discriminator_from(checkpoint)
    train_set = datasets(checkpoint)[0]
    print("             whole batch of 8           mean of 4 processes' 2 images")
    print("first image      ours      weight=          ours      weight=")
    for first in range(0, 40, 8):
        images, labels = map(torch.stack, zip(*(train_set[first + i] for i in range(8))))
        values = compare(D(images), labels, train_set.num_classes, train_set.ignore_label, 4)
        print(f"{first:11d}", *(f"{value:12.6f}" for value in values))


if __name__ == "__main__":
    main()
