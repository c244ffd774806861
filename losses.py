"""The losses of OASIS: weighted (N+1)-class cross-entropy (Eq. 1 and Eq. 2) and LabelMix.

And one that it does without: the perceptual loss, for the paper's comparisons.

    python losses.py       # draws losses.png: one LabelMix example and the class weights of a batch

The whole supervision of OASIS's two networks (Sec. 2):

    D minimises   real_loss(D(x), t)  +  fake_loss(D(G(z, t)))          (Eq. 1)
                  +  λ · labelmix_loss          (L_cons; the paper names no λ, see settings.py)
    G minimises   real_loss(D(G(z, t)), t)                              (Eq. 2)

For D every pixel of a photograph x belongs to the class its label map t names, and every pixel of a
generated image to class N + 1, "fake". G wants D to read the label map back from its image. A usual
discriminator answers one bit per image or patch; this one tells G, for every pixel, which class it
saw instead of the right one.

Conventions (see oasis.py): logits are (B, N+1, H, W) with "fake" in the last channel; the paper
counts its classes from 1, so its c = N + 1 is channel N here. Label maps are (B, H, W) int64. The
sums over i, j in Eq. 1 and 2 are taken as means over pixels, so that losses do not depend on the
image size.
"""

import argparse

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import distances

# ---- Class balance: the α_c of Eq. 1 -----------------------------------------------------------


def count_classes(labels, num_classes):
    """Pixels of each class: labels (B, H, W) int64 -> (N,) int64 on the same device."""
    ids = labels.flatten()
    # scatter_add counts without making a GPU wait for the CPU, which bincount would.
    counts = torch.zeros(num_classes, device=ids.device, dtype=torch.int64)
    return counts.scatter_add_(0, ids, torch.ones_like(ids))


def class_weights(labels, num_classes, ignore_label=None, counts=None):
    """α_c, the "inverse of per-pixel class frequency", counted in this batch (Sec. 2).

        α_c = B·H·W / (K · pixels of class c),      K = number of classes present

    Each class that is present contributes the same total weight, so a traffic light matters as
    much as the sky. Over the pixels of the batch the weights average to 1, which keeps the real
    terms at the size of the fake term. Absent classes and `ignore_label` get 0.

    labels: (B, H, W) int64. counts: count_classes of the whole batch, where `labels` are only one
    process's share of it. Returns (num_classes,) float32 on the labels' device.
    """
    if counts is None:
        counts = count_classes(labels, num_classes)
    present = counts > 0
    if ignore_label is not None:
        present[ignore_label] = False
    return present * counts.sum() / (present.sum() * counts).clamp(min=1)    # 0 for the absent


# ---- The (N+1)-class cross-entropy -------------------------------------------------------------


def real_loss(logits, labels, weights):
    """First term of Eq. 1 where logits = D(x); all of Eq. 2 where logits = D(G(z, t)).

        − mean over images and pixels of   Σ_{c=1..N} α_c · t_{i,j,c} · log D(·)_{i,j,c}

    t is one-hot, so the sum over c picks one term: the class the label map names. The softmax runs
    over all N+1 channels: calling a pixel "fake" takes probability away from its class. That is how
    one formula serves as D's reward for reading a photograph and as G's for passing as one.

    logits (B, N+1, H, W), labels (B, H, W) int64, weights (N,). Returns a scalar.
    """
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")      # (B, H, W)
    # The mean runs over all pixels, those of weight 0 included. F.cross_entropy(weight=…) divides
    # by the sum of the weights instead: the same for a whole batch, where they average to 1, but
    # not for one process's share of it.
    return (weights[labels] * cross_entropy).mean()


def fake_loss(logits):
    """Second term of Eq. 1, logits = D(G(z, t)):  − mean over pixels of  log D(G(z, t))_{i,j,N+1}.

    No class weights here: a generated image has only one class, fake. logits (B, N+1, H, W).
    """
    fake_class = torch.full_like(logits[:, 0], logits.shape[1] - 1, dtype=torch.int64)
    return F.cross_entropy(logits, fake_class)


# ---- LabelMix (Sec. 2, "LabelMix regularization") ----------------------------------------------
#
# Cut a generated image along the borders of its label map, put the photograph's segments in some
# of the holes, and D should say of every segment what it said before: its opinion of a segment
# must not depend on whether the neighbour is real. CutMix does this with random rectangles; the
# paper cuts along the label map to "encourage the generator to respect semantic class boundaries".
# One way to see that (ours, the paper does not say more): a rectangle leaves seams where no
# picture has any, and D can find those without looking at the objects.


def throw_coins(batch, num_classes, generator=None):
    """A fair coin, 0 or 1, for each class of each image: (B, N) int64 on the CPU."""
    return torch.randint(0, 2, (batch, num_classes), generator=generator)


def labelmix_mask(labels, num_classes, generator=None, coins=None):
    """M: one fair coin for each class of each image decides for all of the class's pixels.

    The coins are thrown into a (B, N) table first and looked up by label afterwards, so the
    classes of an image are independent of each other. labels (B, H, W) int64; `generator`: a CPU
    torch.Generator, or `coins` that throw_coins has thrown already. Returns (B, 1, H, W) float32:
    1 takes the real image, 0 the generated one.
    """
    if coins is None:
        coins = throw_coins(len(labels), num_classes, generator)
    coins = coins.to(labels.device, non_blocking=True)
    mask = coins.gather(1, labels.flatten(1)).view_as(labels)
    return mask[:, None].float()


def labelmix(real, fake, mask):
    """LabelMix(x, x̂, M) = M ⊙ x + (1 − M) ⊙ x̂; images or logits (B, C, H, W), M (B, 1, H, W)."""
    return torch.where(mask > 0, real, fake)    # M is 0 or 1, so this is a choice per pixel


def labelmix_loss(logits_of_mix, logits_real, logits_fake, mask):
    """L_cons = ‖ D(LabelMix(x, x̂, M)) − LabelMix(D(x), D(x̂), M) ‖² on logits, before λ.

    The mean over pixels and channels stands for the norm. All three logits (B, N+1, H, W) carry
    gradients: D may change its mind about the mix or about the originals.
    """
    return F.mse_loss(logits_of_mix, labelmix(logits_real, logits_fake, mask))


# ---- The perceptual loss (Sec. 1, Sec. 3: what OASIS makes superfluous) -------------------------

VGG19 = ("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth", "dcbb9e9d")


class PerceptualLoss(nn.Module):
    """How different a photograph looks to VGG19 from the image generated for the same label map.

        Σ_k w_k · mean |φ_k(x̂) − φ_k(x)|,      φ_k: the features after relu{k}_1, k = 1 … 5

    VGG19 (Simonyan & Zisserman, 2015) was trained to name what ImageNet's photographs show. Its
    features never answer to what G does, which is the paper's case against them: G may settle on
    whatever they like best, and lose its diversity (Sec. 3). Layers and weights are those of
    pix2pixHD and SPADE; λ_VGG = 10 is a setting.

    weights: a file of torchvision's VGG19; None: fetched once and checked. distances.MetricsError.
    """

    LAYERS = {1: 1 / 32, 6: 1 / 16, 11: 1 / 8, 20: 1 / 4, 29: 1.0}      # relu{1 … 5}_1: w_k

    def __init__(self, weights=None):
        super().__init__()
        with torch.device("meta"):
            network = torchvision.models.vgg19().features
        path = weights or distances.fetch(*VGG19)
        network = distances.load_weights(network, path, "features.")
        self.network = network[:max(self.LAYERS) + 1]
        # VGG19 knows images by the mean and standard deviation of ImageNet's, in [0, 1].
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def features(self, images):
        """(B, 3, H, W) in [−1, 1], at least 16×16 -> [φ_1, …, φ_5], (B, 64 … 512, H … H/16, …)"""
        x, features = ((images + 1) / 2 - self.mean) / self.std, []
        for i, layer in enumerate(self.network):
            x = layer(x)
            if i in self.LAYERS:
                features.append(x)
        return features

    def forward(self, fake, real):
        """Images (B, 3, H, W) twice -> a scalar, in float32; its gradient reaches `fake` alone."""
        with torch.no_grad():
            targets = self.features(real)
        return sum(weight * F.l1_loss(ours.float(), target.float()) for weight, ours, target
                   in zip(self.LAYERS.values(), self.features(fake), targets))


# ---- python losses.py --------------------------------------------------------------------------


def main(argv=None):
    """Draw one LabelMix example and the class weights of a batch of eight drawn scenes."""
    parser = argparse.ArgumentParser("losses.py", description=main.__doc__)
    parser.add_argument("--out", default="losses.png", metavar="FILE",
                        help="the picture (default: losses.png)")
    path = parser.parse_args(argv).out

    import matplotlib           # only this picture needs these
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    import toy

    # Two moods of one scene stand for x and x̂: the same label map, other colours everywhere.
    scenes = [toy.draw_scene(0, i, 128, 128, mood=("noon", "clear", "summer")) for i in range(8)]
    x, labels = (torch.from_numpy(a.copy()).long() for a in scenes[0])
    dusk = toy.draw_scene(0, 0, 128, 128, mood=("dusk", "clear", "autumn"))[0]
    x_hat = torch.from_numpy(dusk.copy())
    mask = labelmix_mask(labels[None], len(toy.CLASSES), torch.Generator().manual_seed(2))
    mix = labelmix(x.permute(2, 0, 1), x_hat.long().permute(2, 0, 1), mask[0]).permute(1, 2, 0)
    batch = torch.stack([torch.from_numpy(scene[1].copy()).long() for scene in scenes])
    weights = class_weights(batch, len(toy.CLASSES), ignore_label=0)
    share = torch.bincount(batch.flatten(), minlength=len(toy.CLASSES)) / batch.numel()

    figure = plt.figure(figsize=(12, 5.2))
    for i, (title, image) in enumerate([
            ("label map t", toy.PALETTE[labels]), ("real x", x), ("generated x̂ (stand-in)", x_hat),
            ("M: one coin per class", mask[0, 0]), ("M ⊙ x + (1 − M) ⊙ x̂", mix)]):
        axis = figure.add_subplot(2, 5, i + 1)
        axis.imshow(image, cmap="gray")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    for i, (title, values) in enumerate([("share of the pixels", share),
                                         ("class weight α", weights)]):
        axis = figure.add_subplot(2, 2, 3 + i)
        axis.bar(toy.CLASSES, values, color=toy.PALETTE / 255)
        axis.set_title(title, fontsize=10)
        axis.tick_params("x", rotation=45)
    figure.savefig(path, dpi=80, bbox_inches="tight")
    print(f"{path}: LabelMix, and class weights from {weights[weights > 0].min():.2f} "
          f"to {weights.max():.2f}; rare classes weigh more, unknown (α = 0) nothing")


if __name__ == "__main__":
    main()
