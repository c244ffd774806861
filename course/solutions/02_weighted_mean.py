"""Exercise 2: F.cross_entropy(weight=α) against the mean over all pixels, on real logits.

    python course/solutions/02_weighted_mean.py
"""

import torch
import torch.nn.functional as F
from common import datasets, open_model

import losses
import sample


def compare(logits, labels, num_classes, ignore_label, shares):
    """Both means over the whole batch, and averaged over `shares` equal parts of it: 4 floats.

    α is that of the whole batch each time, as train.prepare_batch counts it for several processes.
    """
    alpha = losses.class_weights(labels, num_classes, ignore_label)
    with_fake = F.pad(alpha, (0, 1))                    # no label names the fake class

    def ours(logits, labels):
        return losses.real_loss(logits, labels, alpha).item()

    def divided(logits, labels):
        return F.cross_entropy(logits, labels, with_fake).item()

    ours_of_shares = divided_of_shares = 0.0
    for part in zip(logits.chunk(shares), labels.chunk(shares)):
        ours_of_shares += ours(*part) / shares
        divided_of_shares += divided(*part) / shares
    return ours(logits, labels), divided(logits, labels), ours_of_shares, divided_of_shares


@torch.no_grad()
def main():
    args, checkpoint = open_model(__doc__, batches=(5, "batches of 8 images"))
    D, train_set = sample.build_discriminator(checkpoint), datasets(checkpoint)[0]
    print("               whole batch of 8        mean of 4 processes' 2 images")
    print("first image      ours     weight=          ours     weight=")
    for first in range(0, 8 * args.batches, 8):
        images, labels = map(torch.stack, zip(*(train_set[first + i] for i in range(8))))
        values = compare(D(images), labels, train_set.num_classes, train_set.ignore_label, 4)
        print(f"{first:11d}", *(f"{value:11.6f}" for value in values))


if __name__ == "__main__":
    main()
