"""Pix2pixHD, the first row of Table 1: the label map is an image, and G translates it.

    python -m extras.pix2pixhd --lambda-vgg 0 --run-dir runs/pix2pixhd       # without VGG
    python -m extras.pix2pixhd --lambda-vgg 0 --multimodal noise --run-dir runs/pix2pixhd+noise
    python -m extras.pix2pixhd --preset ade20k --data-root ADEChallengeData2016

"High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs" (Wang, Liu, Zhu,
Tao, Kautz, Catanzaro, 2018). G reads the label map once, at its input, shrinks it to 1/16 of the
size and paints from there. In between every layer is normalised, which takes away what the label
says of a uniform area: the reason for SPADE. The discriminators are SPADE's, without spectral norm.

    D minimises   ½ · (least_squares(D(x, t), 1) + least_squares(D(x̂, t), 0))
    G minimises   least_squares(D(x̂, t), 1)  +  10 · feature_matching_loss  +  10 · PerceptualLoss

Every least_squares is a sum over the two discriminators. Conventions are those of oasis.py and
spade.py. Neither noise nor latent vector is part of the method: it paints one image of a label map.
--multimodal noise concatenates OASIS's noise with the one-hot label map, as in SPADE+.

What differs from the released training: the batch is that of the preset (released: 1), and the
learning rates fall step by step instead of epoch by epoch. --padding changes nothing here. Edges
between instances and the feature encoder are left out: ADE20K has no instances in this setting, and
the encoder is not part of Table 1.
"""

import dataclasses

import torch
from torch import nn

import data
import losses
import oasis
from extras import spade
from oasis import convolution
from train import option

# ---- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Settings(spade.BaselineSettings):
    """Defaults: Pix2pixHD for ADE20K."""

    num_blocks: int = option(6, "G halves the image num_blocks − 2 times: the paper's 4", 3, 12)
    residual_blocks: int = option(9, "blocks at the smallest size", 0)
    d_channels: tuple = option((64, 128, 256, 512), "widths of the two discriminators", 1)
    beta1: float = option(0.5, "Adam's beta1", 0, 0.999999)


def parse_settings(argv=None):
    """Command line -> Settings. UserError."""
    # init_gain (0.02, 0.02) leaves the initial weights as draw_weights draws them. The images come
    # from G itself: an average without memory.
    changes = dict(lr_g=2e-4, lr_d=2e-4, lr_decay=0.5, ema_decay=0.0, init_gain=(0.02, 0.02),
                   lambda_features=10.0)
    # A short training needs larger steps.
    short = dict(lr_g=1e-3, lr_d=1e-3, lr_decay=1.0)
    return spade.parse_variant(argv, Settings, changes, dict(toy=short, small=short),
                               choices=("none", "noise"))


def make_networks(settings, num_classes):
    """G and D as the settings say, untrained."""
    s = settings
    G = Generator(num_classes, s.noise_dim, s.channels, s.num_blocks - 2, s.residual_blocks,
                  s.pixel_noise)
    D = spade.Discriminator(num_classes, s.d_channels, spectral=False)
    draw_weights(D)
    return G, D


def draw_weights(network):
    """The initial weights, N(0, 0.02²), and biases as PyTorch draws them."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.reset_parameters()
            nn.init.normal_(layer.weight, std=0.02)


# ---- Generator -----------------------------------------------------------------------------------
#
#     layer        first    down                         residual   up                     last
#     channels  C+N -> 64 ->  128  256  512 1024     9 ×     1024 ->  512  256  128   64 ->   3
#     side         256  256   128   64   32   16                16     32   64  128  256    256


def norm_and_relu(channels):
    """Norm per image and channel, without scale and shift, and ReLU."""
    return nn.Sequential(nn.InstanceNorm2d(channels), nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    """x + f(x), f: 3×3 convolution, norm, ReLU, 3×3 convolution, norm. Nothing after the sum."""

    def __init__(self, channels):
        super().__init__()
        self.conv_1 = convolution(channels, channels, 3, spectral=False, padding="reflect")
        self.conv_2 = convolution(channels, channels, 3, spectral=False, padding="reflect")
        self.norm_1 = norm_and_relu(channels)
        self.norm_2 = nn.InstanceNorm2d(channels)

    def forward(self, x):
        """x (B, channels, h, w) -> the same shape."""
        return x + self.norm_2(self.conv_2(self.norm_1(self.conv_1(x))))


class Generator(nn.Module):
    """G(t), or G(z, t): translates a label map into an image.

    Args:
        num_classes, noise_dim, pixel_noise: as in oasis.Generator; noise is ours.
        channels: width c of the first and of the last layer. Each halving doubles the width.
        halvings: how often the image is halved, and doubled again.
        residual_blocks: blocks at the smallest size.

    A norm takes away what the bias before it adds. These biases are kept because the released
    networks have them, and Table 1 counts them: 21,376 of 182,907,395 numbers.
    """

    def __init__(self, num_classes, noise_dim=0, channels=64, halvings=4, residual_blocks=9,
                 pixel_noise=0):
        super().__init__()
        self.config = dict(num_classes=num_classes, noise_dim=noise_dim, channels=channels,
                           halvings=halvings, residual_blocks=residual_blocks,
                           pixel_noise=pixel_noise)
        self.num_classes, self.noise_dim, self.pixel_noise = num_classes, noise_dim, pixel_noise
        self.size_multiple = 2 ** (halvings + 1)        # two pixels at least: one has no reflection
        self.first = convolution(noise_dim + num_classes, channels, 7, spectral=False,
                                 padding="reflect")
        self.first_norm = norm_and_relu(channels)
        width = channels
        self.down = nn.ModuleList()
        for _ in range(halvings):                                         # 128 256 512 1024
            self.down.append(nn.Sequential(
                convolution(width, 2 * width, 3, spectral=False, stride=2),
                norm_and_relu(2 * width)))
            width = 2 * width
        self.residual = nn.ModuleList()
        for _ in range(residual_blocks):
            self.residual.append(ResidualBlock(width))
        self.up = nn.ModuleList()
        for _ in range(halvings):                                         # 512 256 128 64
            self.up.append(nn.Sequential(
                nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1),
                norm_and_relu(width // 2)))
            width = width // 2
        self.last = convolution(width, 3, 7, spectral=False, padding="reflect")
        draw_weights(self)

    # Noise and one-hot label map, concatenated, as OASIS does it.
    condition = oasis.Generator.condition

    def forward(self, labels, noise):
        """labels (B, H, W) int64, noise (B, C) or (B, C, H, W) -> images (B, 3, H, W) in [−1, 1].

        C is 0 without noise. H and W should be multiples of `size_multiple`.
        """
        x = self.condition(labels, noise)                                 # (B, C+N, H, W)
        x = self.first_norm(self.first(x))                                # (B, c, H, W)
        for layer in self.down:
            x = layer(x)                                                  # … (B, 16c, H/16, W/16)
        for block in self.residual:
            x = block(x)                                                  # (B, 16c, H/16, W/16)
        for layer in self.up:
            x = layer(x)                                                  # … (B, c, H, W)
        return torch.tanh(self.last(x))                                   # (B, 3, H, W)


# ---- Losses and step -----------------------------------------------------------------------------


def least_squares(output, target):
    """Mean (D(·, t) − target)² over patches, summed over the scales. output: D's, a list."""
    loss = 0
    for features in output:
        logits = losses.at_least_float32(features[-1])
        loss = loss + (logits - target).square().mean()
    return loss


def pix2pixhd_step(G, D, optimizer_G, optimizer_D, batch, settings, perceptual=None):
    """One update of G and one of D; see train.training_step. perceptual: a spade.PerceptualLoss.

    As released: all losses are computed with the weights before the step, then G changes, then D.
    """
    real, labels, noise, _, _ = batch               # mask and class weights are OASIS's
    precision = torch.autocast(real.device.type, torch.bfloat16, settings.precision == "bf16")
    for optimizer in (optimizer_G, optimizer_D):    # train.py starts Adam with beta1 = 0
        optimizer.param_groups[0]["betas"] = (settings.beta1, settings.beta2)

    with precision:
        fake = G(labels, noise)                                           # x̂

        # ---- What D minimises.
        of_real = D(real, labels)
        loss_real = least_squares(of_real, 1)
        loss_fake = least_squares(D(fake.detach(), labels), 0)
        loss_D = (loss_real + loss_fake) / 2

        # ---- What G minimises.
        D.requires_grad_(False)
        of_fake = D(fake, labels)
        loss_G = least_squares(of_fake, 1)
        loss_features = spade.feature_matching_loss(of_fake, of_real)
        loss = loss_G + settings.lambda_features * loss_features
        terms = dict(loss_G=loss_G, loss_features=loss_features, loss_D_real=loss_real,
                     loss_D_fake=loss_fake)
        if perceptual is not None:
            terms["loss_vgg"] = perceptual.to(real.device)(fake, real)
            loss = loss + settings.lambda_vgg * terms["loss_vgg"]

    # ---- The two updates.
    spade.update(optimizer_G, G, loss)
    D.requires_grad_(True)
    spade.update(optimizer_D, D, loss_D)
    return {name: term.detach() for name, term in terms.items()}


@data.exit_in_words("extras.pix2pixhd")
def main(argv=None):
    """The command line. Exit code 0: done; 1: stopped by a signal; 2: a mistake of the user."""
    spade.run(parse_settings(argv), make_networks, pix2pixhd_step)


if __name__ == "__main__":
    from extras import pix2pixhd            # under its own name, which checkpoints hold
    pix2pixhd.main()
