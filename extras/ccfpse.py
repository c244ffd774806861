"""CC-FPSE, the second row of Table 1: the label map decides the weights of G's convolutions.

    python -m extras.ccfpse --lambda-vgg 0 --run-dir runs/ccfpse             # without VGG
    python -m extras.ccfpse --lambda-vgg 0 --multimodal noise --run-dir runs/ccfpse+noise
    python -m extras.ccfpse --lambda-vgg 0 --multimodal encoder --run-dir runs/ccfpse+encoder
    python -m extras.ccfpse --preset ade20k --data-root ADEChallengeData2016

"Learning to Predict Layout-to-image Conditional Convolutions for Semantic Image Synthesis" (Liu,
Yin, Shao, Wang, Li, 2019). In SPADE the label map decides a scale and a shift for every pixel. Here
it decides, for every pixel, the nine weights of a 3×3 convolution in each channel, and a gate. A
feature pyramid reads the label map first, so these weights know more than the pixel's own class.
D reads the image alone, at three sizes. It is asked at every place whether the image is real, and
whether it fits the classes there.

    D minimises   hinge_loss_D(D(x, t), D(x̂, t))
    G minimises   hinge_loss_G(D(x̂, t))  +  15 · feature_matching_loss  +  10 · PerceptualLoss
                  +  0.05 · kl_loss   (with the encoder)

Losses, step and encoder are SPADE's. 15 in ours is 20 in the released loss: that divides the sum
over four features by four, ours by the three outputs of D. Conventions are those of oasis.py. But
D(x, t) is a list: for each output a list of features, of which the last are the logits.

--multimodal noise gives OASIS's noise to G wherever it reads the label map; it is not part of the
method. What differs from the released training: the batch is that of the preset, D is updated
before G and from the same images, and learning rates fall step by step. The released networks have
26,112 more parameters, in layers that they never use.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

import data
import oasis
import train
from data import UserError
from extras import spade
from oasis import LEAK, convolution, leaky_relu, shrink, upsample
from processes import BatchNorm
from train import option

# ---- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Settings(spade.BaselineSettings):
    """Defaults: CC-FPSE for ADE20K."""

    spade_hidden: int = option(128, "width of the hidden layer before weights, gates, γ and β", 1)
    d_channels: tuple = option((64, 128, 256, 512, 512), "widths of D's layers, three or more", 1)
    lambda_kl: float = option(0.05, "weight of the encoder's KL loss", 0)


def parse_settings(argv=None):
    """Command line -> Settings. UserError."""
    # The images come from G itself: an average without memory.
    changes = dict(lr_g=1e-4, lr_d=4e-4, lr_decay=0.5, ema_decay=0.0, lambda_features=15.0)
    # A short training needs larger steps. The gain of D is 1, as D's last layers have no spectral
    # norm: they would start with logits far from 0.
    short_changes = {}
    for name in ("toy", "small"):
        preset = train.PRESETS[name]
        short_changes[name] = dict(lr_g=preset["lr_g"], lr_d=preset["lr_d"],
                                   lr_decay=preset["lr_decay"], init_gain=(1.0, 1.0))
    settings = spade.parse_variant(argv, Settings, changes, short_changes)
    scale = 2 ** len(settings.d_channels)
    if len(settings.d_channels) < 3 or settings.height * settings.width < 2 * scale ** 2:
        raise UserError(f"--d-channels {' '.join(map(str, settings.d_channels))}: D needs three "
                        f"layers at least, and two pixels at 1/{scale} of the size")
    return settings


def make_networks(settings, num_classes):
    """G and D as the settings say, untrained. G has one block more than OASIS's."""
    s = settings
    shape = s.channels, s.num_blocks + 1, s.spade_hidden, s.padding
    if s.multimodal == "encoder":
        G = EncoderGenerator(num_classes, (s.height, s.width), s.noise_dim, *shape)
    else:
        G = Generator(num_classes, s.noise_dim, *shape, s.pixel_noise)
    return G, Discriminator(num_classes, s.d_channels)


# ---- Conditional convolution ---------------------------------------------------------------------
#
# Memory: the map of weights has nine numbers for each number of x. In the last block of the
# full-size model these are 9 · 128 channels at 256×256, 302 MB for one image in float32. A training
# step keeps the map, and backward makes its gradient, as large again.


def conditional_convolution(x, weights, padding="zeros"):
    """A 3×3 convolution of each channel by itself, with other weights at every pixel.

        y[b, c, i, j]  =  Σ_{m, n = 0..2}  w[b, 3m + n, c, i, j] · x[b, c, i + m − 1, j + n − 1]

    x (B, C, h, w), weights w (B, 9·C, h, w): C channels for each of the nine neighbours, which are
    counted row by row. padding: "zeros" or "replicate", for neighbours outside the image.
    Returns (B, C, h, w).
    """
    height, width = x.shape[2:]
    around = F.pad(x, (1, 1, 1, 1), "replicate" if padding == "replicate" else "constant")
    y = 0
    for k, weight in enumerate(weights.chunk(9, dim=1)):                 # (B, C, h, w)
        row, column = k // 3, k % 3
        y = y + weight * around[:, :, row:row + height, column:column + width]
    return y


# ---- Generator -----------------------------------------------------------------------------------
#
#     block               0     1     2     3     4     5     6    last
#     channels   1024 -> 1024  1024  1024   512   256   128   64 -> 3
#     side                8    16    16    32    64   128   256   256
#
# Level l of the pyramid is 1/2^l of the size. A block at level l is conditioned on the label map,
# shrunk to the level, and on the pyramid's map of the level.


class ScaledBatchNorm(nn.Module):
    """Batch norm over all processes, then scale and shift of each channel."""

    def __init__(self, features):
        super().__init__()
        self.norm = BatchNorm(features)
        self.scale = nn.Parameter(torch.ones(features))
        self.shift = nn.Parameter(torch.zeros(features))

    def forward(self, x):
        """x (B, features, h, w) -> the same shape."""
        scale, shift = self.scale.to(x.dtype), self.shift.to(x.dtype)     # bfloat16 under autocast
        return self.norm(x) * scale[:, None, None] + shift[:, None, None]


def pyramid_layer(in_channels, out_channels, kernel, stride, padding):
    """Convolution with spectral norm, batch norm, leaky ReLU."""
    return nn.Sequential(
        convolution(in_channels, out_channels, kernel, True, False, stride, padding),
        ScaledBatchNorm(out_channels), nn.LeakyReLU(LEAK, inplace=True))


class Pyramid(nn.Module):
    """The label map, read from fine to coarse and back: a map of features for each level."""

    def __init__(self, condition_channels, channels, levels, padding):
        super().__init__()
        self.down = nn.ModuleList()                     # finest level first, as all lists here
        self.side = nn.ModuleList()
        self.out = nn.ModuleList()
        self.down.append(pyramid_layer(condition_channels, channels, 3, 1, padding))
        for _ in range(levels - 1):
            self.down.append(pyramid_layer(channels, channels, 3, 2, padding))
            self.side.append(pyramid_layer(channels, channels, 1, 1, padding))
            self.out.append(pyramid_layer(channels, channels, 3, 1, padding))

    def forward(self, condition):
        """condition (B, C+N, H, W) -> [(B, 64, H, W), (B, 64, H/2, W/2), … (B, 64, H/32, W/32)]"""
        fine_to_coarse = []
        x = condition
        for layer in self.down:
            x = layer(x)
            fine_to_coarse.append(x)
        maps = [x]                                      # of the coarsest level; the finer go before
        for level in reversed(range(len(self.side))):
            d = fine_to_coarse[level]
            maps.insert(0, self.out[level](upsample(maps[0], d.shape[2:]) + self.side[level](d)))
        return maps


def predictor(condition_channels, hidden, out_channels, padding):
    """Two 3×3 convolutions that compute weights or a gate from the condition."""
    return nn.Sequential(
        convolution(condition_channels, hidden, 3, spectral=False, padding=padding),
        nn.ReLU(inplace=True),
        convolution(hidden, out_channels, 3, spectral=False, padding=padding))


class GeneratorBlock(nn.Module):
    """Twice (batch norm, conditional convolution, 1×1 convolution, gate); added to a shortcut.

    The conditional convolution mixes neighbours, the 1×1 convolution mixes channels. The gate, a
    number between 0 and 1 for every pixel and channel, decides what passes. Where the width
    changes, the shortcut is a 1×1 convolution behind a SPADE layer.
    """

    def __init__(self, in_channels, out_channels, condition_channels, hidden, padding):
        super().__init__()
        self.padding = padding
        middle = min(in_channels, out_channels)
        self.norm_1, self.norm_2 = ScaledBatchNorm(in_channels), ScaledBatchNorm(middle)
        self.weights_1 = predictor(condition_channels, hidden, 9 * in_channels, padding)
        self.weights_2 = predictor(condition_channels, hidden, 9 * middle, padding)
        self.pointwise_1 = convolution(in_channels, middle, 1, spectral=False)
        self.pointwise_2 = convolution(middle, out_channels, 1, spectral=False)
        self.gate_1 = predictor(condition_channels, hidden, middle, padding)
        self.gate_2 = predictor(condition_channels, hidden, out_channels, padding)
        self.learned_shortcut = in_channels != out_channels
        if self.learned_shortcut:
            self.norm_s = oasis.SPADE(in_channels, condition_channels, hidden, padding)
            self.conv_s = convolution(in_channels, out_channels, 1, spectral=True, bias=False)

    def forward(self, x, condition):
        """x (B, in, h, w), condition (B, C+N+64, h, w) -> (B, out, h, w)"""
        shortcut = x
        if self.learned_shortcut:
            shortcut = self.conv_s(self.norm_s(x, condition))
        x = conditional_convolution(self.norm_1(x), self.weights_1(condition), self.padding)
        x = leaky_relu(self.pointwise_1(x) * torch.sigmoid(self.gate_1(condition)))
        x = conditional_convolution(self.norm_2(x), self.weights_2(condition), self.padding)
        x = leaky_relu(self.pointwise_2(x) * torch.sigmoid(self.gate_2(condition)))
        return shortcut + x


class Generator(nn.Module):
    """G(t), or G(z, t). Arguments as in oasis.Generator.

    num_blocks: 7 of full size, of which the second and the third work at the same level.
    """

    def __init__(self, num_classes, noise_dim=0, channels=64, num_blocks=7, hidden=128,
                 padding="zeros", pixel_noise=0):
        super().__init__()
        self.config = dict(num_classes=num_classes, noise_dim=noise_dim, channels=channels,
                           num_blocks=num_blocks, hidden=hidden, padding=padding,
                           pixel_noise=pixel_noise)
        self.num_classes, self.noise_dim, self.pixel_noise = num_classes, noise_dim, pixel_noise
        self.levels = spade.block_levels(num_blocks)                      # 5 4 4 3 2 1 0
        self.size_multiple = 2 ** self.levels[0]                          # 32
        condition_channels = noise_dim + num_classes
        self.pyramid = Pyramid(condition_channels, channels, num_blocks - 1, padding)
        width = channels * min(16, 2 ** num_blocks)                       # 1024
        self.first = convolution(condition_channels, width, 3, spectral=False, padding=padding)
        self.blocks = nn.ModuleList()
        for i in range(1, num_blocks + 1):
            out = channels * min(16, 2 ** (num_blocks - i))          # 1024 1024 1024 512 256 128 64
            self.blocks.append(
                GeneratorBlock(width, out, condition_channels + channels, hidden, padding))
            width = out
        self.last = convolution(width, 3, 3, spectral=False, padding=padding)

    # Noise and one-hot label map, concatenated; the first layer, then paint.
    condition = oasis.Generator.condition
    forward = spade.Generator.forward

    def paint(self, x, condition):
        """x (B, 16c, H/32, W/32), condition (B, C+N, H, W) -> images (B, 3, H, W)."""
        maps = self.pyramid(condition)
        for block, level in zip(self.blocks, self.levels):
            here = torch.cat([shrink(condition, 2 ** level), maps[level]], 1)  # (B, C+N+c, h, w)
            x = block(upsample(x, here.shape[2:]), here)                  # … (B, c, H, W)
        return torch.tanh(self.last(leaky_relu(x)))                       # (B, 3, H, W)


class EncoderGenerator(spade.PaintsFromPhotographs, Generator):
    """CC-FPSE's generator with SPADE's image encoder."""

    def __init__(self, num_classes, image_size, noise_dim=256, channels=64, num_blocks=7,
                 hidden=128, padding="zeros"):
        super().__init__(num_classes, 0, channels, num_blocks, hidden, padding)
        self.add_encoder(image_size, noise_dim, channels)


# ---- Discriminator -------------------------------------------------------------------------------


def layer_of_D(in_channels, out_channels, kernel, stride=1):
    """Convolution with spectral norm, norm per image, leaky ReLU."""
    return nn.Sequential(convolution(in_channels, out_channels, kernel, True, False, stride),
                         nn.InstanceNorm2d(out_channels), nn.LeakyReLU(LEAK))


class Discriminator(nn.Module):
    """D(x, t): reads the image as a feature pyramid; compares each place with its classes.

    channels: widths of the layers, each of which halves the image. Outputs are at 1/4 of the size,
    1/8, … down to the last layer but one.
    """

    def __init__(self, num_classes, channels=(64, 128, 256, 512, 512)):
        super().__init__()
        self.config = dict(num_classes=num_classes, channels=list(channels))
        side, width = 4 * channels[0], 2 * channels[0]                    # 256, 128
        self.down = nn.ModuleList()
        in_channels = 3
        for out in channels:
            self.down.append(layer_of_D(in_channels, out, 3, stride=2))
            in_channels = out
        self.side, self.out = nn.ModuleList(), nn.ModuleList()            # of levels 2, 3, …
        for out in channels[1:]:
            self.side.append(layer_of_D(out, side, 1))
        for _ in channels[1:-1]:
            self.out.append(layer_of_D(side, width, 3))
        self.logit = convolution(width, 1, 1, spectral=False)
        self.match = convolution(width, width, 1, spectral=False)
        self.embedding = convolution(num_classes, width, 1, spectral=False)

    def forward(self, images, labels):
        """images (B, 3, H, W), labels (B, H, W) int64 -> for each output its list of features.

        Features and logits, (B, 1, h, w): [[f_2, logits_2], [f_3, logits_3], [f_4, f_5, logits_4]].
        """
        features = []
        x = images
        for layer in self.down:
            x = layer(x)                                                  # (B, 64 … 512, H/2 …)
            features.append(x)
        features = features[1:]                                           # of levels 2, 3, 4, 5
        embedding = self.embedding(spade.one_hot(labels, self.config["num_classes"], images))
        pyramid = self.side[-1](features[-1])                             # (B, 256, H/32, W/32)
        output = []
        for i in reversed(range(len(self.out))):
            f = features[i]
            pyramid = F.interpolate(pyramid, f.shape[2:], mode="bilinear") + self.side[i](f)
            u = self.out[i](pyramid)                                      # (B, 128, h, w)
            classes = F.adaptive_avg_pool2d(embedding, u.shape[2:])       # their mean over a place
            logits = self.logit(u) + (self.match(u) * classes).sum(1, keepdim=True)
            output.insert(0, [f, logits])
        output[-1].insert(1, features[-1])
        return output


@data.exit_in_words("extras.ccfpse")
def main(argv=None):
    """The command line. Exit code 0: done; 1: stopped by a signal; 2: a mistake of the user."""
    spade.run(parse_settings(argv), make_networks, spade.spade_step)


if __name__ == "__main__":
    from extras import ccfpse               # under its own name, which checkpoints hold
    ccfpse.main()
