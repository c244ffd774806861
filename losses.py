"""The losses of OASIS: weighted (N+1)-class cross-entropy (Eq. 1 and Eq. 2) and LabelMix.

Nothing else teaches the two networks (Sec. 2). x is a photograph, t its label map, and x̂ = G(z, t)
the image that G paints from t and noise z:

    D minimises   real_loss(D(x), t)  +  fake_loss(D(x̂))  +  λ · labelmix_loss  (Eq. 1 + λ L_cons)
    G minimises   real_loss(D(x̂), t)                                             (Eq. 2)

D learns to name the class of every pixel of a photograph, and to call every pixel of a painted
image "fake", class N+1. G learns to paint so that D reads t from x̂: the gradient tells, at every
pixel, how to change x̂ so that D names the right class. λ weighs LabelMix against the rest: the
paper's text adds L_cons without a factor, the authors' code has 5 or 10.

D(·) stands for D's logits here, (B, N+1, H, W); the paper's D(·) is their softmax, called p below.
α weighs the classes, see below. Label maps are (B, H, W) int64. Where Eq. 1 and 2 sum over pixels,
we take the mean, so that a loss does not depend on the image size.
"""

import torch
import torch.nn.functional as F

# ---- Class balance: α_c in Eq. 1 -----------------------------------------------------------------


def count_classes(labels, num_classes):
    """Pixels of each class: labels (B, H, W) int64 -> (N,) int64."""
    return torch.bincount(labels.flatten(), minlength=num_classes)


def class_weights(labels, num_classes, ignore_label=None, counts=None):
    """α_c of Eq. 1, counted over a batch: "the inverse of per-pixel class frequency" (Sec. 2).

        α_c = B·H·W / (K · pixels of c),      K: how many classes are present, without ignore_label

    Every class that is present gets the same total weight: a car counts as much as the sky. With
    1/K (from the authors' code) the weights average to 1 over the pixels, so the real term weighs
    as much as the fake term. Absent classes and ignore_label, the id of "unknown", get 0.

    counts: count_classes of the whole batch, where `labels` is only this GPU's share of it.
    Returns (N,) floats.
    """
    counts = count_classes(labels, num_classes) if counts is None else counts
    present = counts > 0
    if ignore_label is not None:
        present[ignore_label] = False
    weights = counts.sum() / (present.sum() * counts)          # infinite where a class is absent
    return torch.where(present, weights, 0.0)


# ---- The (N+1)-class cross-entropy ---------------------------------------------------------------


def at_least_float32(x):
    """x in float32 if it is narrower: bfloat16 keeps 8 significant bits, too few for a loss."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(logits, classes):
    """−log softmax(logits)[class] of every pixel: (B, N+1, H, W), (B, H, W) -> (B·H·W,)"""
    rows = logits.permute(0, 2, 3, 1).flatten(0, 2)     # (B·H·W, N+1): faster than four axes
    return F.cross_entropy(at_least_float32(rows), classes.flatten(), reduction="none")


def real_loss(logits, labels, weights):
    """First term of Eq. 1, for the logits of x; all of Eq. 2, for the logits of x̂ = G(z, t).

        − mean over images and pixels of  Σ_{c=1..N} α_c · t_{i,j,c} · log p_{i,j,c}

    t is one-hot: of the sum over c one term is left, the log-probability of the class in the label
    map. To raise it D must name the classes of a photograph, and G must paint so that D names them
    and does not say "fake" or another class. So one formula serves both.

    logits (B, N+1, H, W), labels (B, H, W) int64, weights α (N,). Returns a scalar.
    """
    # A mean over all pixels, so that the mean of several GPUs' losses is that of the whole batch.
    # F.cross_entropy(weight=α) would divide by the sum of its pixels' α, which GPUs do not share.
    return (weights[labels.flatten()] * cross_entropy(logits, labels)).mean()


def fake_loss(logits):
    """Second term of Eq. 1, logits of x̂:  − mean over pixels of  log p_{i,j,c=N+1}.

    No class weights: its one class is fake, the last channel. logits (B, N+1, H, W) -> a scalar.
    """
    fake = torch.full_like(logits[:, 0], logits.shape[1] - 1, dtype=torch.int64)
    return cross_entropy(logits, fake).mean()


# ---- LabelMix (Sec. 2, "LabelMix regularization") ------------------------------------------------
#
# Take some classes from the photograph and the others from the generated image of the same label
# map. D should say of each pixel of the mixture what it says of that pixel in the image it came
# from: its answer must not depend on whether the neighbours are real. CutMix mixes rectangles; the
# paper cuts along the label map, so that D, and G through D, "respect semantic class boundaries".


def labelmix_mask(labels, num_classes, generator=None, coins=None):
    """M: a fair coin for each class of each image decides for all its pixels (paper: no details).

    labels (B, H, W) int64. coins: (B, N) of 0 and 1; None: drawn here from `generator`, a
    torch.Generator. Returns (B, 1, H, W) float32: 1 takes the real image, 0 the generated one.
    """
    if coins is None:
        coins = torch.randint(0, 2, (len(labels), num_classes), generator=generator)
    mask = coins.to(labels.device).gather(1, labels.flatten(1)).view_as(labels)
    return mask[:, None].float()


def labelmix(real, fake, mask):
    """LabelMix(x, x̂, M) = M ⊙ x + (1 − M) ⊙ x̂, for images or logits (B, C, H, W)."""
    return torch.where(mask > 0, real, fake)        # M is 0 or 1: a choice for every pixel


def labelmix_loss(logits_of_mix, logits_real, logits_fake, mask):
    """L_cons = ‖ D_logits(LabelMix(x, x̂, M)) − LabelMix(D_logits(x), D_logits(x̂), M) ‖²

    The mean over pixels and channels stands for the norm, as in the authors' code. All three logits
    (B, N+1, H, W) carry gradients: D may change what it says of the mixture, or of the two images.
    """
    wanted = labelmix(logits_real, logits_fake, mask)
    return (at_least_float32(logits_of_mix) - at_least_float32(wanted)).square().mean()


def discriminator_losses(logits, labels, weights, mask):
    """The terms that D minimises: real loss, fake loss and LabelMix loss (before λ), three scalars.

    logits: of x, x̂ and their mixture in one batch (3B, N+1, H, W); (2B, …) without a mixture.
    """
    parts = logits.split(len(labels))
    consistency = torch.zeros((), device=logits.device)
    if len(parts) == 3:
        consistency = labelmix_loss(parts[2], parts[0], parts[1], mask)
    return real_loss(parts[0], labels, weights), fake_loss(parts[1]), consistency
