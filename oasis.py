"""OASIS: the generator, the discriminator and the 3D noise.

The networks of "You Only Need Adversarial Supervision for Semantic Image Synthesis" (Schönfeld,
Sushko, Zhang, Gall, Schiele, Khoreva). The generator G paints a photograph from a label map and a
noise tensor; the discriminator D is a segmentation network that names, for every pixel, one of
the N classes of the label map or the extra class "fake". Nothing else supervises G: no VGG
network, no encoder.

    python oasis.py        # prints the shape of every stage and the parameter counts

Conventions, used by all files of this project:

    N            number of labels a label map may hold, "unknown" included where there is one
    label map t  (B, H, W) int64, values 0 … N−1; made one-hot inside the generator, never before
    image x      (B, 3, H, W) float in [−1, 1], RGB; x̂ = G(z, t) is a generated one
    noise z      (B, 64, H, W), or (B, 64): one vector per image that holds for all its pixels
    logits D(x)  (B, N+1, H, W); channels 0 … N−1 the real classes, channel N, the last, "fake"
    sizes        always (height, width)

Reading order: noise → SPADE → generator → discriminator → speed on a CPU → checkpoints.
"""

import ctypes
import pickle
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

LEAK = 0.2        # slope of every leaky ReLU, in both networks
INIT_GAIN = 0.02  # gain of the Xavier-normal initial weights


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model; the message says which."""


# ---- 3D noise (Sec. 2, "3D noise") -------------------------------------------------------------
#
# One 64-dimensional Gaussian vector per image, replicated to the size of the label map and
# concatenated with it. G sees this tensor at its input and again in every SPADE layer. During
# training all pixels share one vector. Because the tensor has a value per pixel and because G is
# made of convolutions, a different vector may be put anywhere at test time: everywhere (global
# re-sampling: another scene), or inside a mask (local re-sampling: another bed in the same room,
# Figure 1).


def sample_noise(batch, noise_dim, height, width, generator=None):
    """Global noise: one standard normal vector per image, the same at every pixel.

    Returns (batch, noise_dim, height, width). The result is an expanded view that takes no memory
    for its pixels; clone() it before writing into it. `generator` is a CPU torch.Generator.
    """
    z = torch.randn(batch, noise_dim, generator=generator)
    return replicate_noise(z, height, width)


def replicate_noise(z, height, width):
    """(B, C) or (B, C, H, W) -> (B, C, H, W): a vector per image becomes the paper's 3D tensor."""
    return z[:, :, None, None].expand(-1, -1, height, width) if z.ndim == 2 else z


def resample_noise(noise, mask, generator=None):
    """Local noise: inside the mask a new vector per image, outside it the old noise.

    noise: (B, C, H, W). mask: bool, true where the picture shall change; (H, W), (B, H, W) or
    (B, 1, H, W). Returns a new (B, C, H, W) tensor.
    """
    batch, noise_dim, height, width = noise.shape
    fresh = sample_noise(batch, noise_dim, height, width, generator).to(noise)
    mask = mask.expand(batch, height, width)[:, None] if mask.ndim < 4 else mask
    return torch.where(mask.to(noise.device), fresh, noise)


def noise_from_seeds(seeds, noise_dim=64):
    """One noise vector per seed: (len(seeds), noise_dim).

    Each image has a seed of its own and the numbers are drawn on the CPU, so a sample depends
    neither on the batch it was drawn in nor on the device.
    """
    return torch.stack([
        torch.randn(noise_dim, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds
    ])


# ---- Building blocks ---------------------------------------------------------------------------


def convolution(in_channels, out_channels, kernel, spectral, bias=True, stride=1):
    """A size-preserving (or, with a stride, dividing) convolution with OASIS's initial weights.

    Spectral normalisation divides the weight by its largest singular value, which bounds how fast
    the layer's output can change. It keeps the two players of a GAN from running away from each
    other.
    """
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)
    nn.init.xavier_normal_(layer.weight, INIT_GAIN)
    if bias:
        nn.init.zeros_(layer.bias)
    # On the meta device (python oasis.py) weights have shapes but no numbers to normalise.
    return spectral_norm(layer) if spectral and not layer.weight.is_meta else layer


def nearest(x, **size):
    """Nearest-neighbour resizing, in the precision that x has.

    It only copies numbers, but autocast on a GPU takes it for arithmetic and turns the picture
    into float32: more memory, and a copy back before every convolution that follows.
    """
    with torch.autocast("cuda", enabled=False):
        return F.interpolate(x, **size, mode="nearest")


@torch.no_grad()
def scale_weights(network, factor):
    """Multiply every layer's weight; a factor of 50 turns the initial gain of 0.02 into 1.

    A spectrally normalised layer computes the same as before, but learns differently: a step of
    Adam has about the size of the learning rate, whatever the weight's. It turns a small weight
    far and a large one little. Small weights grow until steps and weights fit together; a training
    of hundreds of thousands of steps has the time for that, one of a few hundred has not.
    """
    for parameter in network.parameters():
        if parameter.ndim > 1:                     # weights, not biases
            parameter.mul_(factor)


class SPADE(nn.Module):
    """Spatially-adaptive normalisation: batch norm with a scale and shift painted by the label map.

    A plain normalisation layer weakens what the label map says. In the extreme, a batch of nothing
    but sky, subtracting the mean removes exactly what the label "sky" has added. SPADE (Park et
    al., 2019) says it anew after every normalisation, as a scale γ and a shift β for each pixel and
    channel. OASIS's change is the input: γ and β are computed from the label map *and* the 3D
    noise.
    """

    def __init__(self, features, condition_channels, hidden):
        super().__init__()
        self.norm = nn.BatchNorm2d(features, affine=False)
        self.shared = convolution(condition_channels, hidden, 3, spectral=False)
        # γ and β are two convolutions of the same tensor: one layer with twice the outputs is
        # faster. Xavier's formula counts outputs, so each half is initialised as the layer it
        # stands for.
        self.gamma_beta = convolution(hidden, 2 * features, 3, spectral=False)
        for half in self.gamma_beta.weight.data.chunk(2):
            nn.init.xavier_normal_(half, INIT_GAIN)

    def forward(self, x, condition):
        """x (B, features, h, w) -> the same shape.

        condition: noise and labels at that size, (B, C+N, h, w), or their short form, a LookUp.
        """
        hidden = F.relu(convolve(self.shared, condition))        # (B, hidden, h, w)
        gamma, beta = self.gamma_beta(hidden).chunk(2, dim=1)    # (B, features, h, w) each
        return torch.addcmul(beta, self.norm(x), 1 + gamma)      # norm(x) · (1 + γ) + β


class GeneratorBlock(nn.Module):
    """Residual block: (SPADE, leaky ReLU, 3×3 convolution) twice, added to a shortcut.

    Where the width changes, the shortcut is a 1×1 convolution with a SPADE of its own.
    """

    def __init__(self, in_channels, out_channels, condition_channels, hidden):
        super().__init__()
        middle = min(in_channels, out_channels)
        self.norm_0 = SPADE(in_channels, condition_channels, hidden)
        self.conv_0 = convolution(in_channels, middle, 3, spectral=True)
        self.norm_1 = SPADE(middle, condition_channels, hidden)
        self.conv_1 = convolution(middle, out_channels, 3, spectral=True)
        self.learned_shortcut = in_channels != out_channels
        if self.learned_shortcut:
            self.norm_s = SPADE(in_channels, condition_channels, hidden)
            self.conv_s = convolution(in_channels, out_channels, 1, spectral=True, bias=False)

    def forward(self, x, condition):
        """x (B, in, h, w) and the condition at that size -> (B, out, h, w)"""
        shortcut = self.conv_s(self.norm_s(x, condition)) if self.learned_shortcut else x
        x = self.conv_0(F.leaky_relu(self.norm_0(x, condition), LEAK))
        x = self.conv_1(F.leaky_relu(self.norm_1(x, condition), LEAK))
        return shortcut + x


# ---- Generator G -------------------------------------------------------------------------------


class Generator(nn.Module):
    """G(z, t): paints an image from a label map and noise (Sec. 2).

    It is SPADE's generator without its first block, and with noise where SPADE has none.

    Args:
        num_classes: N, the number of labels in the input, "unknown" included.
        noise_dim: channels of the noise (the paper: 64). 0 makes a generator without noise.
        channels: width c of the last block; the first blocks are 16 times as wide.
        num_blocks: residual blocks. Between two the picture doubles in size, so the first block
            works at 1/2^(num_blocks−1), the paper's 1/32.
        spade_hidden: width of the hidden layer inside each SPADE.
    """

    def __init__(self, num_classes, noise_dim=64, channels=64, num_blocks=6, spade_hidden=128):
        super().__init__()
        self.config = dict(num_classes=num_classes, noise_dim=noise_dim, channels=channels,
                           num_blocks=num_blocks, spade_hidden=spade_hidden)
        self.num_classes, self.noise_dim, self.num_blocks = num_classes, noise_dim, num_blocks
        self.size_multiple = 2 ** (num_blocks - 1)
        condition_channels = noise_dim + num_classes
        # Widths double from the last block backwards and stop at 16: 16 16 16 8 4 2 1 for six
        # blocks.
        widths = [channels * min(16, 2 ** (num_blocks - i)) for i in range(num_blocks + 1)]
        self.first = convolution(condition_channels, widths[0], 3, spectral=False)
        self.blocks = nn.ModuleList(
            GeneratorBlock(widths[i], widths[i + 1], condition_channels, spade_hidden)
            for i in range(num_blocks)
        )
        self.last = convolution(widths[-1], 3, 3, spectral=False)

    def forward(self, labels, noise):
        """labels (B, H, W) int64, noise (B, C, H, W) or (B, C) -> images (B, 3, H, W) in [−1, 1].

        H and W must be multiples of `size_multiple`; anything else is a ValueError.
        """
        pyramid = self.condition_pyramid(labels, noise)         # (B, C+N, h, w), coarse to fine
        return self.paint(convolve(self.first, pyramid[0]), pyramid)      # (B, 3, H, W)

    def paint(self, x, pyramid):
        """From the first features (B, 16c, H/32, W/32) to images; SPADE may start elsewhere."""
        for i, (block, condition) in enumerate(zip(self.blocks, pyramid)):
            if i > 0:
                x = nearest(x, scale_factor=2)
            x = block(x, condition)                             # … (B, c, H, W)
        return torch.tanh(self.last(F.leaky_relu(x, LEAK)))     # (B, 3, H, W)

    def condition_pyramid(self, labels, noise):
        """Noise and one-hot labels, concatenated, at the size of every block (coarsest first).

        Nearest-neighbour shrinking by 2^k just keeps every 2^k-th pixel. All SPADE layers of a
        block share one tensor, or on a CPU its short form, made once.
        """
        self.check_input(labels, noise)
        batch, height, width = labels.shape
        strides = [2 ** k for k in reversed(range(self.num_blocks))]
        if labels.device.type == "cpu" and noise.ndim == 2:
            return [LookUp(labels[:, ::s, ::s], noise, self.num_classes) for s in strides]
        # In the precision of the convolutions that read it, else each makes a copy of its own.
        dtype = self.first.weight.dtype
        if labels.is_cuda and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
        condition = torch.empty(
            (batch, self.noise_dim + self.num_classes, height, width), device=labels.device,
            dtype=dtype, memory_format=torch.channels_last).zero_()
        condition[:, :self.noise_dim] = replicate_noise(noise, height, width)
        condition[:, self.noise_dim:].scatter_(1, labels[:, None], 1)
        return [condition[:, :, ::s, ::s].contiguous(memory_format=torch.channels_last)
                for s in strides]

    def check_input(self, labels, noise):
        """Refuse sizes and ids the network cannot take, in words, not by a failure deep inside."""
        height, width = labels.shape[1:]
        m = self.size_multiple
        if height % m or width % m:
            raise ValueError(f"a label map of {height}×{width} cannot be drawn: this generator "
                             f"halves the size {self.num_blocks - 1} times, so height and width "
                             f"must be multiples of {m}")
        vector = (len(labels), self.noise_dim)
        if tuple(noise.shape) not in (vector, (*vector, height, width)):
            raise ValueError(f"noise of shape {tuple(noise.shape)} given, expected {vector} or "
                             f"{(*vector, height, width)}")
        # On a GPU this check would wait for the device; there the data loader has done it already.
        if labels.device.type == "cpu" and labels.numel():
            low, high = labels.aminmax()
            if low < 0 or high >= self.num_classes:
                raise ValueError(f"label map holds ids {low} to {high}, this generator knows 0 to "
                                 f"{self.num_classes - 1}")


# ---- Discriminator D (Sec. 2, "Segmentation-based discriminator"; Figure 2, right) -------------
#
# A U-Net: an encoder that halves the picture at each block, a decoder that doubles it again, and
# skip connections that carry the encoder's fine detail across. D never receives the label map as
# an input. To be rewarded it has to find the classes in the picture itself, which is what forces
# it to learn what things look like, and what makes its gradient worth a perceptual loss to G.


class DownBlock(nn.Module):
    """Residual encoder block: two 3×3 convolutions, then 2×2 average pooling. Halves the size."""

    def __init__(self, in_channels, out_channels, first=False):
        super().__init__()
        self.first = first      # the first block sees pixels, which need no activation before them
        self.conv_1 = convolution(in_channels, out_channels, 3, spectral=True)
        self.conv_2 = convolution(out_channels, out_channels, 3, spectral=True)
        self.learned_shortcut = in_channels != out_channels
        if self.learned_shortcut:
            self.conv_s = convolution(in_channels, out_channels, 1, spectral=True)

    def forward(self, x):
        """(B, in, h, w) -> (B, out, h/2, w/2)"""
        # A 1×1 convolution and average pooling may be swapped; after the pooling it costs a
        # quarter.
        shortcut = shrink(x)
        if self.learned_shortcut:
            shortcut = self.conv_s(shortcut)
        x = self.conv_1(x if self.first else F.leaky_relu(x, LEAK))
        x = self.conv_2(F.leaky_relu(x, LEAK))
        return shrink(x) + shortcut


class UpBlock(nn.Module):
    """Residual decoder block: nearest-neighbour doubling, then two 3×3 convolutions."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv_1 = convolution(in_channels, out_channels, 3, spectral=True)
        self.conv_2 = convolution(out_channels, out_channels, 3, spectral=True)
        self.learned_shortcut = in_channels != out_channels
        if self.learned_shortcut:
            self.conv_s = convolution(in_channels, out_channels, 1, spectral=True)

    def forward(self, x, size):
        """(B, in, h, w) -> (B, out, *size); size: (2h, 2w), or one less for odd sizes."""
        # A 1×1 convolution and nearest-neighbour doubling may be swapped, too.
        shortcut = self.conv_s(x) if self.learned_shortcut else x
        shortcut = nearest(shortcut, size=size)
        x = self.conv_1(nearest(F.leaky_relu(x, LEAK), size=size))
        x = self.conv_2(F.leaky_relu(x, LEAK))
        return x + shortcut


def shrink(x):
    """2×2 average pooling; an odd last row or column is averaged on its own instead of dropped."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


class Discriminator(nn.Module):
    """D(x): segments an image into N real classes and one fake class (Sec. 2).

    Args:
        num_classes: N. The output has N + 1 channels; the last, index N, is the fake class.
        channels: widths of the encoder blocks, finest first. The decoder mirrors them.
    """

    def __init__(self, num_classes, channels=(128, 128, 256, 256, 512, 512)):
        super().__init__()
        channels = list(channels)
        self.config = dict(num_classes=num_classes, channels=channels)
        self.num_classes = num_classes
        self.encoder = nn.ModuleList(
            DownBlock(c_in, c_out, first=i == 0)
            for i, (c_in, c_out) in enumerate(zip([3] + channels, channels)))
        outputs = channels[-2::-1] + [channels[0] // 2]          # 512 256 256 128 128 64
        skips = [0] + channels[-2::-1]                           #   0 512 256 256 128 128
        inputs = [a + b for a, b in zip(channels[-1:] + outputs, skips)]
        self.decoder = nn.ModuleList(UpBlock(c_in, c_out) for c_in, c_out in zip(inputs, outputs))
        self.last = convolution(outputs[-1], num_classes + 1, 1, spectral=False)

    def forward(self, images):
        """images (B, 3, H, W) in [−1, 1] -> logits (B, N+1, H, W), for a softmax over N+1."""
        x, skips = images, [images]
        for block in self.encoder:
            x = block(x)                                         # (B, 512, H/64, W/64) in the end
            skips.append(x)
        skips.pop()                                              # the deepest features are x itself
        for i, block in enumerate(self.decoder):
            skip = skips.pop()
            x = block(x, skip.shape[2:])                         # (B, 64, H, W) in the end
            if i < len(self.decoder) - 1:
                x = torch.cat([skip, x], dim=1)
        return self.last(x)                                      # (B, N+1, H, W)


# ---- Speed on a CPU ----------------------------------------------------------------------------
#
# Two things that change no result. First: a 3×3 convolution of a one-hot map multiplies mostly by
# zero. Of the N products at each of the nine taps one counts, so the result is a sum of nine rows
# of the weight, which a table can look up. Where all pixels of an image share one noise vector its
# part is the same at each pixel and goes into the table, too. That is a third of G's multiply-adds;
# looking them up saves a fifth of an image's time (results/tricks.txt). Second: keep_freed_memory.


class LookUp:
    """The condition in short form: which nine table rows each output pixel adds up.

    labels (B, h, w) int64, noise (B, C), one vector per image. Stands for the (B, C+N, h, w) tensor
    of Generator.condition_pyramid wherever that would enter a 3×3 convolution.
    """

    def __init__(self, labels, noise, num_classes):
        self.size, self.noise, self.num_classes = labels.shape, noise, num_classes
        batch, height, width = labels.shape
        # Row (image, tap, class); class N, all zeros, is the zero padding around the image.
        padded = F.pad(labels, (1, 1, 1, 1), value=num_classes).int()
        first_row = torch.arange(batch, dtype=torch.int32)[:, None, None] * 9
        self.rows = torch.stack([
            (first_row + 3 * i + j) * (num_classes + 1) + padded[:, i:i + height, j:j + width]
            for i in range(3) for j in range(3)], dim=-1).view(-1, 9)              # (B·h·w, 9)

    def convolve(self, weight, bias):
        """conv2d of what this stands for: weight (out, C+N, 3, 3), bias (out,) -> (B, out, h, w)"""
        of_noise, of_labels = weight.flatten(2).permute(2, 1, 0).split(
            [self.noise.shape[1], self.num_classes], dim=1)              # (9, C or N, out)
        table = of_labels + torch.einsum("bc,tco->bto", self.noise, of_noise)[:, :, None]
        table = F.pad(table, (0, 0, 0, 1)).flatten(0, 2)                 # (B·9·(N+1), out)
        out = F.embedding_bag(self.rows, table, mode="sum") + bias       # (B·h·w, out)
        return out.view(*self.size, -1).permute(0, 3, 1, 2)              # channels-last as it is


def convolve(layer, condition):
    """layer(condition), for the condition in either form."""
    if isinstance(condition, LookUp):
        return condition.convolve(layer.weight, layer.bias)
    return layer(condition)


def keep_freed_memory():
    """Ask Linux's C library to keep freed memory for the next tensor; elsewhere it does nothing.

    By default it hands every large block back to the system at once, and gets the next one page by
    page, zeroed. On two CPU cores that makes a training step of the full-size model 7 % slower at
    128×128 (results/tricks.txt).
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:                     # not Linux with glibc
        return
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4           # their numbers in malloc.h
    libc.mallopt(M_MMAP_MAX, 0)                     # no block comes from the system on its own …
    libc.mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)     # … and none goes back


# ---- Checkpoints -------------------------------------------------------------------------------


def read_tensors(path):
    """torch.load, weights only, on the CPU; whatever is wrong with a file ends in one sentence."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror})") from e
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile,
            KeyError, IndexError, AttributeError, TypeError, ValueError) as e:
        # The last five come from PyTorch's reader when it takes other bytes for a pickle.
        raise CheckpointError(f"{path}: not a checkpoint, or one that was cut off "
                              f"({path.stat().st_size:,} bytes); use another file") from e


def load_checkpoint(path):
    """A run's latest.pt or best.pt, written by train.py, as a dictionary. CheckpointError."""
    checkpoint = read_tensors(path)
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != "oasis-run-1":
        raise CheckpointError(f"{path}: not a checkpoint of train.py; of the authors' released "
                              f"*.pth files sample.py draws with --preset")
    return checkpoint


def restore(network, state, path_or_what):
    """load_state_dict with a one-sentence error; returns the network in eval mode."""
    try:
        network.load_state_dict(state)
    except RuntimeError as e:
        raise CheckpointError(f"{path_or_what}: the weights belong to another model") from e
    return network.eval()


def generator_from(checkpoint):
    """The EMA generator of a run's checkpoint, in eval mode: the one whose images are reported."""
    return restore(Generator(**checkpoint["generator_args"]), checkpoint["ema"], "checkpoint")


def discriminator_from(checkpoint):
    """The discriminator of a run's checkpoint, in eval mode."""
    return restore(Discriminator(**checkpoint["discriminator_args"]), checkpoint["discriminator"],
                   "checkpoint")


# The authors' files name the same tensors differently. Each pair is applied in turn, in this order.
RELEASED_NAMES = (
    ("body_down.", "encoder."), ("body_up.", "decoder."), ("layer_up_last.", "last."),
    ("conv_img.", "last."), ("fc.", "first."), ("body.", "blocks."),
    (".mlp_shared.0.", ".shared."), (".first_norm.", ".norm."),
    (".conv1.0.", ".conv_1."), (".conv1.1.", ".conv_1."), (".conv1.2.", ".conv_1."),
    (".conv2.1.", ".conv_2."),
    (".weight_orig", ".parametrizations.weight.original"),
    (".weight_u", ".parametrizations.weight.0._u"), (".weight_v", ".parametrizations.weight.0._v"),
)


def translate_released(state):
    """Tensor names of the released code -> names of this file; γ and β become one layer."""
    out = {}
    for name, tensor in state.items():
        if ".mlp_beta." in name:
            continue
        if ".mlp_gamma." in name:
            tensor = torch.cat([tensor, state[name.replace("gamma", "beta")]])
            name = name.replace("mlp_gamma", "gamma_beta")
        for old, new in RELEASED_NAMES:
            name = name.replace(old, new)
        out[name] = tensor
    return out


def load_released_generator(path, noise_dim=64):
    """G from the authors' `*_EMA.pth` or `*_G.pth`, in eval mode; CheckpointError for other files.

    The architecture is read off the tensors' shapes. noise_dim says how many of the input channels
    are noise, the one thing the shapes do not tell (0 for a model trained without 3D noise).
    """
    state = read_tensors(path)
    try:
        condition_channels = state["fc.weight"].shape[1]
        config = dict(
            num_classes=condition_channels - noise_dim, noise_dim=noise_dim,
            channels=state["conv_img.weight"].shape[1],
            num_blocks=1 + max(int(k.split(".")[1]) for k in state if k.startswith("body.")),
            spade_hidden=state["body.0.norm_0.mlp_shared.0.weight"].shape[0])
    except (KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path}: not a generator of the authors' released code") from e
    return restore(Generator(**config), translate_released(state), path)


def load_released_discriminator(path):
    """D from the authors' `*_D.pth`, in eval mode; CheckpointError for other files.

    The released code keeps the fake class in output channel 0; here it is the last, as in the
    paper, so channel 0 of the last layer moves to the end.
    """
    state = read_tensors(path)
    try:
        blocks = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("body_down."))
        channels = [state[f"body_down.{i}.conv2.1.weight_orig"].shape[0] for i in range(blocks)]
        num_classes = state["layer_up_last.weight"].shape[0] - 1
        state = translate_released(state)
        for name in ("last.weight", "last.bias"):
            state[name] = state[name].roll(-1, dims=0)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise CheckpointError(f"{path}: not a discriminator of the authors' released code") from e
    return restore(Discriminator(num_classes, channels), state, path)


# ---- python oasis.py ---------------------------------------------------------------------------


def print_shapes(network, *inputs):
    """One line per stage of a network: its name and the shape it hands on."""
    for name, module in network.named_modules():
        if (name in ("first", "last")
                or name.rpartition(".")[0] in ("blocks", "encoder", "decoder")):
            module.register_forward_hook(
                lambda _, __, output, name=name: print(f"    {name:12s} {tuple(output.shape)}"))
    network(*inputs)


def main():
    """The shape ladder of the paper's ADE20K model; the parameter counts of its three datasets."""
    with torch.device("meta"):      # tensors with a shape and no numbers: instant, and free
        G, D = Generator(151), Discriminator(151)
        labels, noise = torch.zeros(1, 256, 256, dtype=torch.int64), torch.zeros(1, 64)
        print("Generator, ADE20K: label map (1, 256, 256) and noise (1, 64)")
        print_shapes(G, labels, noise)
        print("Discriminator, ADE20K: image (1, 3, 256, 256); the last of 152 channels is 'fake'")
        print_shapes(D, torch.zeros(1, 3, 256, 256))
        print("\nParameters              N   generator  discriminator        both")
        for name, n in (("ADE20K", 151), ("COCO-Stuff", 183), ("Cityscapes", 35)):
            g, d = (sum(p.numel() for p in network(n).parameters())
                    for network in (Generator, Discriminator))
            print(f"  {name:16s} {n:6d}  {g:10,}  {d:13,}  {g + d:10,}")
        print("Table 1 says 94M for both together, whatever the dataset; it depends on N.")


if __name__ == "__main__":
    main()
