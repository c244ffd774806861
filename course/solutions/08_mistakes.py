"""Exercise 8: what D reads in real images, and where it sees through G.

    python course/solutions/08_mistakes.py
"""

import torch
from common import datasets, make_scorer, open_model

import losses
import metrics
import oasis
import sample


def mean_answers(D, batches, num_classes):
    """D's mean probabilities over the pixels of each class: (N, N+1), NaN where there is no pixel.

    batches: (images, labels). Row c is the true class, the last column the answer "fake".
    """
    sums = torch.zeros(num_classes, num_classes + 1, dtype=torch.float64)
    pixels = torch.zeros(num_classes, dtype=torch.int64)
    for images, labels in batches:
        answers = D(images).softmax(1).permute(0, 2, 3, 1).flatten(0, 2)     # (B·H·W, N+1)
        sums.index_add_(0, labels.flatten(), answers.double())
        pixels += losses.count_classes(labels, num_classes)
    return sums / pixels[:, None]


@torch.no_grad()
def main():
    args, checkpoint = open_model(__doc__)
    G, D = sample.build_generator(checkpoint), sample.build_discriminator(checkpoint)
    train_set, val_set = datasets(checkpoint)
    names, N = val_set.class_names, val_set.num_classes
    scenes = [val_set[i] for i in range(args.num_images or len(val_set))]
    real, painted = [], []
    for i, (image, labels) in enumerate(scenes):
        noise = oasis.draw_noise([i], labels.shape, G.noise_dim, G.pixel_noise)
        real.append((image[None], labels[None]))
        painted.append((G(labels[None], noise), labels[None]))
    real = 100 * mean_answers(D, real, N)
    painted = 100 * mean_answers(D, painted, N)
    counts = sum(losses.count_classes(train_set[i][1], N) for i in range(100))
    alpha = losses.class_weights(None, N, train_set.ignore_label, counts)
    scorer = make_scorer(args, checkpoint, ["miou"])
    scorer(G)
    iou = 100 * metrics.class_iou(scorer.sums["miou"])
    iou_real = 100 * metrics.class_iou(scorer.real["miou"])
    print("Per cent         in real images              in generated images")
    print("class        itself fake  worst mistake   itself fake   best bet     IoU (real)")
    for c, name in enumerate(names):
        wrong = real[c, :N].clone()
        wrong[c] = -1
        worst = f"{names[wrong.argmax()]} {wrong.max():.0f}"
        print(f"{name:12s} {real[c, c]:6.0f} {real[c, N]:4.0f}  {worst:13s} {painted[c, c]:8.0f} "
              f"{painted[c, N]:4.0f} {100 / (1 + alpha[c]):10.0f} {iou[c]:8.0f} ({iou_real[c]:.0f})")


if __name__ == "__main__":
    main()
