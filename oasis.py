"""OASIS: the discriminator, the 3D noise and the generator.

The networks of "You Only Need Adversarial Supervision for Semantic Image Synthesis" (Schönfeld et
al., ICLR 2021). The generator G paints an image from a label map and noise. The discriminator D is
a segmentation network: for every pixel it names one of the N classes of the label map, or the class
"fake". Nothing else teaches G. Widths and initial weights, which the paper does not give, are those
of the authors' code.

    python oasis.py        # the parameter counts of the paper's models

Conventions, the same in all files:

    label map t  (B, H, W) int64, values 0 … N−1; the paper counts from 1. N includes "unknown"
                 where there is one (as in the authors' code); in real_loss its weight is 0
    image x      (B, 3, H, W) float in [−1, 1], RGB; x̂ = G(z, t) is an image painted by G
    noise z      (B, C), one vector per image, or (B, C, H, W), one per pixel; the paper's C is 64
    logits       (B, N+1, H, W), what D computes; the paper's D(x) is their softmax over channels.
                 The fake class is the last channel, N; for the paper it is class N+1
    sizes        always (height, width); in comments those of the default, full-size model

Calls take the label map first, G(labels, noise), where the paper writes G(z, t).
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from processes import BatchNorm     # nn.BatchNorm2d(affine=False), over the batch of all GPUs

LEAK = 0.2        # slope of every leaky ReLU, in both networks
INIT_GAIN = 0.02  # of the Xavier-normal initial weights; init_gain in train.py rescales them


# ---- Building blocks -----------------------------------------------------------------------------


class Convolution(nn.Conv2d):
    """nn.Conv2d that keeps spectral normalisation in float32 where autocast runs in bfloat16."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight            # a spectrally normalised weight is computed when read
        return self._conv_forward(x, weight, self.bias)


def convolution(in_channels, out_channels, kernel, spectral, bias=True, stride=1, padding="zeros"):
    """A convolution that keeps the size (odd kernel, stride 1), with OASIS's initial weights.

    spectral: divide the weight by its largest singular value (Miyato et al., 2018), estimated with
    two vectors, u and v, that each pass in training refines. That bounds how fast the output can
    change with the input. Layers that have it: as in the authors' code. stride: for extras/.
    """
    layer = Convolution(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias,
                        padding_mode=padding)
    nn.init.xavier_normal_(layer.weight, INIT_GAIN)
    if bias:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer) if spectral else layer


def leaky_relu(x):
    """Leaky ReLU in place: for an x that nothing else reads."""
    return F.leaky_relu(x, LEAK, inplace=True)


def upsample(x, size):
    """Nearest-neighbour resizing to (height, width). Autocast would run this in float32."""
    with torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x, size, mode="nearest")


def shrink(condition, s):
    """Label map and noise shrunk by s: every s-th pixel. (B, C+N, H, W) -> (B, C+N, H/s, W/s)"""
    return condition[:, :, ::s, ::s].contiguous(memory_format=torch.channels_last)


# ---- Discriminator D (Sec. 2, "Segmentation-based discriminator"; Figure 2, right) ---------------
#
# A U-Net: an encoder halves the image at each block, a decoder doubles it again, and skip
# connections carry fine detail across. D is not given the label map. It has to find the classes in
# the image, and so must learn what each of them looks like.
#
#     block      image    encoder                      |  decoder                          last
#     channels       3 -> 128  128  256  256  512  512 -> 512  256  256  128  128   64 -> N+1
#     side         256    128   64   32   16    8    4 |    8   16   32   64  128  256    256
#
# After each decoder block but that of side 256, the encoder's features are concatenated.


class DiscriminatorBlock(nn.Module):
    """Layers of a residual block: two of 3×3; on the shortcut 1×1 where the width changes."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv_1 = convolution(in_channels, out_channels, 3, spectral=True)
        self.conv_2 = convolution(out_channels, out_channels, 3, spectral=True)
        self.conv_s = nn.Identity()
        if in_channels != out_channels:
            self.conv_s = convolution(in_channels, out_channels, 1, spectral=True)


class DownBlock(DiscriminatorBlock):
    """Halves the size at its end, by 2×2 average pooling."""

    def forward(self, x, first):
        """x (B, in, h, w) -> (B, out, h/2, w/2). first: x is an image, which is not activated."""
        # A 1×1 convolution gives the same before or after average pooling. After it there are four
        # times fewer pixels to compute. ceil_mode keeps an odd last row or column.
        shortcut = self.conv_s(F.avg_pool2d(x, 2, ceil_mode=True))
        if not first:
            x = F.leaky_relu(x, LEAK)                     # not in place: the decoder reads x, too
        x = self.conv_2(leaky_relu(self.conv_1(x)))
        return F.avg_pool2d(x, 2, ceil_mode=True) + shortcut


class UpBlock(DiscriminatorBlock):
    """Doubles the size at its start, by repeating pixels."""

    def forward(self, x, size):
        """x (B, in, h, w) -> (B, out, *size); size: of the features to join, or the image."""
        shortcut = upsample(self.conv_s(x), size)
        x = self.conv_1(upsample(F.leaky_relu(x, LEAK), size))
        x = self.conv_2(leaky_relu(x))
        return x + shortcut


class Discriminator(nn.Module):
    """D(x): a segmentation of an image into N real classes and one fake class.

    Args:
        num_classes: N. The output has N + 1 channels; the last, number N, is the fake class.
        channels: widths of the encoder blocks, finest first. The decoder mirrors them.
    """

    def __init__(self, num_classes, channels=(128, 128, 256, 256, 512, 512)):
        super().__init__()
        channels = list(channels)
        self.config = dict(num_classes=num_classes, channels=channels)
        self.encoder = nn.ModuleList()
        width = 3                                                       # of the image
        for out in channels:                                            # 128 128 256 256 512 512
            self.encoder.append(DownBlock(width, out))
            width = out
        self.decoder = nn.ModuleList()
        skips = channels[-2::-1]                                        # 512 256 256 128 128
        for out in skips:
            self.decoder.append(UpBlock(width, out))
            width = out + out                                           # the block's and the skip's
        self.decoder.append(UpBlock(width, channels[0] // 2))           # 64
        self.last = convolution(channels[0] // 2, num_classes + 1, 1, spectral=False)

    def encode(self, images):
        """images (B, 3, H, W) -> [images, (B, 128, H/2, W/2), … (B, 512, H/64, W/64)]"""
        features = [images]
        for block in self.encoder:
            features.append(block(features[-1], first=features[-1] is images))
        return features

    def forward(self, images):
        """images (B, 3, H, W) in [−1, 1] -> logits (B, N+1, H, W) of a softmax over N+1 classes."""
        features = self.encode(images)
        x = features.pop()                                              # (B, 512, H/64, W/64)
        for block in self.decoder:
            skip = features.pop()                                       # twice as large as x
            x = block(x, skip.shape[2:])                                # … (B, 64, H, W)
            if skip is not images:              # the image is in the list for its size only
                x = torch.cat([skip, x], 1)
        return self.last(x)                                             # (B, N+1, H, W)


# ---- 3D noise (Sec. 2, "3D noise") ---------------------------------------------------------------
#
# One 64-dimensional Gaussian vector per image, repeated at every pixel and concatenated with the
# label map (Generator.condition): a "3D" tensor of (64 + N) × H × W numbers. G sees this tensor at
# its input and in every SPADE layer. At test time a second vector may stand inside any region. Then
# the region changes, and what lies near it, within the receptive field of G (Figure 1).
#
# Training with fresh noise at every pixel is ours. With one vector, G can tell two pixels of a
# uniform area apart only by their distances to the borders of area and image. It cannot paint the
# random detail of leaves or asphalt. Yet D demands it, so G makes detail out of these distances:
# stripes, grids. With pixel_noise K, the last K channels are drawn anew at every pixel, in training
# and at test time. They come to decide texture, the others the whole look (course/answers.md, 6).
# StyleGAN has noise at every pixel for the same reason (Karras et al., 2019).


def noise_from_seeds(seeds, noise_dim=64):
    """One Gaussian vector per seed, (len(seeds), noise_dim) float32, equal on all devices."""
    vectors = [torch.randn(noise_dim, generator=torch.Generator().manual_seed(int(seed)),
                           dtype=torch.float32) for seed in seeds]
    return torch.stack(vectors)


def draw_noise(seeds, size, noise_dim=64, pixel_noise=0):
    """The noise of one image per seed, on the CPU, whatever other images are in the batch.

    Returns noise_from_seeds, (B, C). With pixel_noise K > 0, (B, C, H, W): the first C − K numbers
    of each vector, repeated, and in the last K channels a new number at every pixel.
    """
    vectors = noise_from_seeds(seeds, noise_dim)
    if pixel_noise == 0:
        return vectors
    noise = vectors[:, :, None, None].repeat(1, 1, *size)                     # (B, C, H, W)
    for z, seed in zip(noise, seeds):
        rng = torch.Generator().manual_seed(int(seed))
        torch.randn(noise_dim, generator=rng, dtype=torch.float32)       # skip those of the vector
        z[-pixel_noise:] = torch.randn(pixel_noise, *size, generator=rng, dtype=torch.float32)
    return noise


def local_noise(outside, inside, region):
    """The noise `inside` where the region is true, `outside` elsewhere (Figure 1, local).

    outside, inside: (B, C), or both (B, C, H, W). region: bool, (H, W) for all images or (B, H, W).
    Returns (B, C, H, W), the noise argument of the generator.
    """
    region = torch.as_tensor(region, device=inside.device)
    region = region.expand(len(inside), *region.shape[-2:])[:, None]          # (B, 1, H, W)
    if inside.ndim == 2:
        outside, inside = outside[:, :, None, None], inside[:, :, None, None]
    return torch.where(region, inside, outside)


# ---- SPADE and the generator's block -------------------------------------------------------------


class SPADE(nn.Module):
    """Spatially-adaptive normalisation (Park et al., 2019): batch_norm(x) · (1 + γ) + β.

    Normalising can remove what the label says. Take a batch that is all sky, without noise:
    convolved, all pixels are equal (borders aside), and value − mean is 0. A batch of all sea gives
    0 as well. γ and β put the label back: β is one number at sky, another at sea. Both have a value
    at every pixel, computed from the label map, in OASIS concatenated with the noise.
    """

    def __init__(self, features, condition_channels, hidden, padding):
        super().__init__()
        self.norm = BatchNorm(features)
        self.shared = convolution(condition_channels, hidden, 3, spectral=False, padding=padding)
        # γ and β from one layer: faster than two. Each half is initialised as a layer of its own.
        self.gamma_beta = convolution(hidden, 2 * features, 3, spectral=False, padding=padding)
        for half in self.gamma_beta.weight.data.chunk(2):
            nn.init.xavier_normal_(half, INIT_GAIN)

    def forward(self, x, condition):
        """x (B, features, h, w), condition (B, C+N, h, w) -> the shape of x."""
        hidden = F.relu(self.shared(condition), inplace=True)             # (B, hidden, h, w)
        gamma, beta = self.gamma_beta(hidden).chunk(2, dim=1)             # (B, features, h, w)
        return self.norm(x) * (1 + gamma) + beta


class GeneratorBlock(nn.Module):
    """Residual block: (SPADE, leaky ReLU, 3×3 convolution) twice, added to a shortcut."""

    def __init__(self, in_channels, out_channels, condition_channels, hidden, padding):
        super().__init__()
        middle = min(in_channels, out_channels)
        self.norm_0 = SPADE(in_channels, condition_channels, hidden, padding)
        self.conv_0 = convolution(in_channels, middle, 3, spectral=True, padding=padding)
        self.norm_1 = SPADE(middle, condition_channels, hidden, padding)
        self.conv_1 = convolution(middle, out_channels, 3, spectral=True, padding=padding)
        self.learned_shortcut = in_channels != out_channels
        if self.learned_shortcut:
            self.norm_s = SPADE(in_channels, condition_channels, hidden, padding)
            self.conv_s = convolution(in_channels, out_channels, 1, spectral=True, bias=False)

    def forward(self, x, condition):
        """x (B, in, h, w), condition (B, C+N, h, w) -> (B, out, h, w)"""
        shortcut = x
        if self.learned_shortcut:
            shortcut = self.conv_s(self.norm_s(x, condition))
        x = self.conv_0(leaky_relu(self.norm_0(x, condition)))
        x = self.conv_1(leaky_relu(self.norm_1(x, condition)))
        return shortcut + x


# ---- Generator G (Sec. 2; Figure 2, right) -------------------------------------------------------
#
#     layer       first    blocks                        last
#     channels  C+N -> 1024 -> 1024 1024  512  256  128   64 -> 3
#     side        8       8       8   16   32   64  128  256  256
#
# Before each block but the first, pixels are repeated to double the size. Every SPADE layer sees
# the condition, label map and noise in one tensor, shrunk to the size of its x.


class Generator(nn.Module):
    """G(z, t): paints an image from a label map and noise.

    SPADE's generator without its first block ("decreasing the parameter count by 24M"), plus noise.

    Args:
        num_classes: N, the number of labels in the input, "unknown" included.
        noise_dim: channels C of the noise (the paper: 64). 0 makes a generator without noise.
        channels: width of the last block; the first layer is up to 16 times as wide.
        num_blocks: residual blocks. Between two of them the image doubles in size, so the first
            block works at 1/2^(num_blocks−1) of the size, by default 1/32.
        spade_hidden: width of the hidden layer inside each SPADE.
        padding: "zeros", or "replicate", which is ours. Zeros tell G where the image
            ends, and G can paint a frame there. Repeated pixels hardly tell.
        pixel_noise: K of the noise that G is trained with (draw_noise); kept for checkpoints.
    """

    def __init__(self, num_classes, noise_dim=64, channels=64, num_blocks=6, spade_hidden=128,
                 padding="zeros", pixel_noise=0):
        super().__init__()
        self.config = dict(num_classes=num_classes, noise_dim=noise_dim, channels=channels,
                           num_blocks=num_blocks, spade_hidden=spade_hidden, padding=padding,
                           pixel_noise=pixel_noise)
        self.num_classes, self.noise_dim, self.pixel_noise = num_classes, noise_dim, pixel_noise
        self.size_multiple = 2 ** (num_blocks - 1)
        condition_channels = noise_dim + num_classes
        width = channels * min(16, 2 ** num_blocks)                       # 1024
        self.first = convolution(condition_channels, width, 3, spectral=False, padding=padding)
        self.blocks = nn.ModuleList()
        for i in range(1, num_blocks + 1):
            out = channels * min(16, 2 ** (num_blocks - i))               # 1024 1024 512 256 128 64
            self.blocks.append(
                GeneratorBlock(width, out, condition_channels, spade_hidden, padding))
            width = out
        self.last = convolution(width, 3, 3, spectral=False, padding=padding)

    def forward(self, labels, noise):
        """labels (B, H, W) int64, noise (B, C) or (B, C, H, W) -> images (B, 3, H, W) in [−1, 1].

        H and W should be multiples of `size_multiple`, as in training (sample.paint sees to that).
        """
        condition = self.condition(labels, noise)                         # (B, C+N, H, W)
        x = self.first(shrink(condition, self.size_multiple))             # (B, 1024, H/32, W/32)
        for i, block in enumerate(self.blocks):
            here = shrink(condition, self.size_multiple // 2 ** i)        # (B, C+N, h, w)
            x = block(upsample(x, here.shape[2:]), here)                  # … (B, 64, H, W)
        return torch.tanh(self.last(leaky_relu(x)))                       # (B, 3, H, W)

    def condition(self, labels, noise):
        """Sec. 2, "3D noise": noise and one-hot label map, concatenated: (B, C+N, H, W)."""
        dtype = self.first.weight.dtype
        if torch.is_autocast_enabled(labels.device.type):    # the precision of the convolutions
            dtype = torch.get_autocast_dtype(labels.device.type)
        noise = noise.to(dtype)
        if noise.ndim == 2:                                  # one vector, the same at every pixel
            noise = noise[:, :, None, None].expand(-1, -1, *labels.shape[1:])
        one_hot = labels[..., None] == torch.arange(self.num_classes, device=labels.device)
        # Channels last in memory, the order in which convolutions are fastest.
        condition = torch.cat([noise.permute(0, 2, 3, 1), one_hot.to(dtype)], -1)  # (B, H, W, C+N)
        return condition.permute(0, 3, 1, 2)                                       # (B, C+N, H, W)


# ---- python oasis.py -----------------------------------------------------------------------------


def count_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def main():
    """Parameters of the paper's models, G and D: 93M to 97M. Table 1 says 94M for all data."""
    print("                    N   generator  discriminator        both")
    for name, n in (("ADE20K", 151), ("COCO-Stuff", 183), ("Cityscapes", 35)):
        with torch.device("meta"):          # tensors that have a shape and no numbers
            g, d = count_parameters(Generator(n)), count_parameters(Discriminator(n))
        print(f"{name:14s} {n:6d}  {g:10,}  {d:13,}  {g + d:10,}")


if __name__ == "__main__":
    main()
