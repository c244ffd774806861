"""Exercise 8: what the discriminator reads in photographs, and where it sees through G.

    python tests/exercises/08_mistakes.py runs/ablation/oasis/seed0
"""

import torch
from common import make_scorer, open_run

import oasis


@torch.no_grad()
def mean_probabilities(D, images, labels, num_classes):
    """What D answers where class c is: (sums (N, N+1), pixels (N,)) float64.

    Row c, column k: Σ over pixels of class c of the probability of answer k; column N is "fake".
    """
    answers = D(images).softmax(1).permute(0, 2, 3, 1).flatten(0, 2).double()      # (B·H·W, N+1)
    sums = answers.new_zeros(num_classes, answers.shape[1])
    sums.index_add_(0, labels.flatten(), answers)
    return sums, torch.bincount(labels.flatten(), minlength=num_classes).double()


def over(D, batches, num_classes):
    """The same over batches (…, images, labels, …) -> mean answers (N, N+1), NaN where no pixel."""
    totals = [mean_probabilities(D, images, labels, num_classes)
              for _, images, labels, *_ in batches]
    sums, pixels = (sum(parts) for parts in zip(*totals))
    return sums / pixels[:, None]


def main():
    folder, checkpoint = open_run()
    G, D = oasis.generator_from(checkpoint), oasis.discriminator_from(checkpoint)
    scorer = make_scorer(folder, checkpoint, names=["miou"])
    names, classes = scorer.dataset.class_names, scorer.dataset.num_classes
    scorer(G)                                   # fills scorer.per_class
    with torch.no_grad():
        real = over(D, scorer.batches("real"), classes)
        drawn = over(D, scorer.draw(G), classes)
    print("Per cent:   in photographs                              in generated images")
    print("class      itself   fake   worst mistake              itself   fake   IoU of the class")
    for c, name in enumerate(names):
        mistakes = real[c, :classes].clone()
        mistakes[c] = 0
        worst = f"{names[mistakes.argmax()]} {100 * mistakes.max():.0f}"
        iou, iou_real = (100 * value for value in scorer.per_class[name])
        print(f"{name:10s} {100 * real[c, c]:6.0f} {100 * real[c, -1]:6.0f}   {worst:24s} "
              f"{100 * drawn[c, c]:8.0f} {100 * drawn[c, -1]:6.0f} {iou:7.0f} (real {iou_real:.0f})")


if __name__ == "__main__":
    main()
