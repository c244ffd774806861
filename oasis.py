"""OASIS: the 3D noise, the generator and the segmentation discriminator.

The networks of "You Only Need Adversarial Supervision for Semantic Image Synthesis" (Schönfeld et
al., ICLR 2021). The generator G paints an image from a label map and noise. The discriminator D is
a segmentation network: it names, for every pixel, one of the N classes of the label map or the
class "fake". Nothing else supervises G. Widths and initial weights, which the paper does not
print, are those of the authors' released models.

    python oasis.py        # the parameter counts of the paper's models

Conventions, the same in all files:

    label map t  (B, H, W) int64, values 0 … N−1; the paper's one-hot t_{i,j,c} is 1 where it is c.
                 N counts every label that G can see, "unknown" included where there is one
    image x      (B, 3, H, W) float in [−1, 1], RGB; x̂ = G(z, t) is a generated image
    noise z      (B, C), one vector per image, or (B, C, H, W), one per pixel; the paper's C is 64
    logits       (B, N+1, H, W), what D computes; the paper's D(x) is their softmax over channels.
                 The fake class is the last channel, N (the paper counts from 1 and calls it N+1)
    sizes        always (height, width); in comments those of the default, full-size model

Reading order: noise, SPADE, G, D; then, to be left out at first: several processes, checkpoints.
"""

import contextlib
import importlib
import os
import pickle
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

LEAK = 0.2        # slope of every leaky ReLU, in both networks
INIT_GAIN = 0.02  # gain of the Xavier-normal initial weights


# ---- 3D noise (Sec. 2, "3D noise") ---------------------------------------------------------------
#
# One 64-dimensional Gaussian vector per image, repeated at every pixel and concatenated with the
# label map (Generator.condition). G sees this tensor at its input and in every SPADE layer. In
# training all pixels of an image share one vector. At test time a second vector may stand inside
# any region: G is made of convolutions, so that region changes, and what lies near it (Figure 1).


def noise_from_seeds(seeds, noise_dim=64):
    """One Gaussian vector per seed, (len(seeds), noise_dim) float32, whatever batch and device."""
    return torch.stack([torch.randn(noise_dim, generator=torch.Generator().manual_seed(int(seed)),
                                    dtype=torch.float32) for seed in seeds])


def local_noise(outside, inside, region):
    """The vector `inside` where the region is true, `outside` elsewhere (Figure 1, local).

    outside, inside: (B, C). region: bool, (H, W) for all images or (B, H, W). Returns
    (B, C, H, W), the noise argument of the generator.
    """
    region = torch.as_tensor(region, device=inside.device)
    region = region.expand(len(inside), *region.shape[-2:])[:, None]              # (B, 1, H, W)
    return torch.where(region, inside[:, :, None, None], outside[:, :, None, None])


# ---- Building blocks -----------------------------------------------------------------------------


class Convolution(nn.Conv2d):
    """nn.Conv2d that keeps spectral normalisation in float32 where autocast runs in bfloat16."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight            # a spectrally normalised weight is computed when read
        return self._conv_forward(x, weight, self.bias)


def convolution(in_channels, out_channels, kernel, spectral, bias=True, stride=1, padding="zeros"):
    """A convolution that keeps the size (for an odd kernel), with OASIS's initial weights.

    spectral: divide the weight by its largest singular value (Miyato et al., 2018). It bounds how
    fast the output can change with the input, which keeps GANs stable.
    """
    layer = Convolution(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias,
                        padding_mode=padding if kernel > 1 else "zeros")
    nn.init.xavier_normal_(layer.weight, INIT_GAIN)
    if bias:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer) if spectral else layer


def upsample(x, size):
    """Nearest-neighbour resizing to (height, width), which autocast would run in float32."""
    with torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x, size, mode="nearest")


@torch.no_grad()
def scale_weights(network, factor):
    """Multiply every weight, but no bias: another gain for the initial weights.

    Layers without spectral norm then start with larger outputs; those with it learn more slowly, as
    Adam's steps do not grow. With the default, 0.02, a training of minutes does not get far.
    """
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.mul_(factor)


class SPADE(nn.Module):
    """Spatially-adaptive normalisation (Park et al., 2019): batch norm, then x · (1 + γ) + β.

    Normalising removes the mean, and with it what the label says of a uniform area. γ and β, which
    differ from pixel to pixel, put it back. They are computed from the label map, in OASIS
    concatenated with the noise (Sec. 2, "3D noise"). BatchNorm: see "Several processes".
    """

    def __init__(self, features, condition_channels, hidden, padding):
        super().__init__()
        self.norm = BatchNorm(features, affine=False)
        self.shared = convolution(condition_channels, hidden, 3, spectral=False, padding=padding)
        # γ and β from one layer: faster than two. Each half is initialised as a layer of its own.
        self.gamma_beta = convolution(hidden, 2 * features, 3, spectral=False, padding=padding)
        for half in self.gamma_beta.weight.data.chunk(2):
            nn.init.xavier_normal_(half, INIT_GAIN)

    def forward(self, x, condition):
        """x (B, features, h, w), condition (B, C+N, h, w) -> the shape of x."""
        hidden = F.relu(self.shared(condition), inplace=True)              # (B, hidden, h, w)
        gamma, beta = self.gamma_beta(hidden).chunk(2, dim=1)              # (B, features, h, w)
        return torch.addcmul(beta, self.norm(x), 1 + gamma)                # norm(x) · (1 + γ) + β


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
        shortcut = self.conv_s(self.norm_s(x, condition)) if self.learned_shortcut else x
        x = self.conv_0(F.leaky_relu(self.norm_0(x, condition), LEAK, inplace=True))
        x = self.conv_1(F.leaky_relu(self.norm_1(x, condition), LEAK, inplace=True))
        return shortcut + x


# ---- Generator G (Sec. 2; Figure 2, right) -------------------------------------------------------


class Generator(nn.Module):
    """G(z, t): paints an image from a label map and noise.

    SPADE's generator without its first block ("decreasing the parameter count by 24M"), plus noise.

    Args:
        num_classes: N, the number of labels in the input, "unknown" included.
        noise_dim: channels of the noise (the paper: 64). 0 makes a generator without noise.
        channels: width c of the last block; the first blocks are 16 times as wide.
        num_blocks: residual blocks. Between two of them the image doubles in size, so the first
            block works at 1/2^(num_blocks−1) of the size, the paper's 1/32.
        spade_hidden: width of the hidden layer inside each SPADE.
        padding: "zeros" (the paper), or "replicate", which is ours. Zeros tell G where the borders
            of the image are, and frames and grids come from that. Repeated pixels do not.
    """

    def __init__(self, num_classes, noise_dim=64, channels=64, num_blocks=6, spade_hidden=128,
                 padding="zeros"):
        super().__init__()
        self.config = dict(num_classes=num_classes, noise_dim=noise_dim, channels=channels,
                           num_blocks=num_blocks, spade_hidden=spade_hidden, padding=padding)
        self.num_classes, self.noise_dim = num_classes, noise_dim
        self.size_multiple = 2 ** (num_blocks - 1)
        condition_channels = noise_dim + num_classes
        # Widths double from the last block backwards, up to 16c: 16 16 16 8 4 2 1 for six blocks.
        widths = [channels * min(16, 2 ** (num_blocks - i)) for i in range(num_blocks + 1)]
        self.first = convolution(condition_channels, widths[0], 3, spectral=False, padding=padding)
        self.blocks = nn.ModuleList(
            GeneratorBlock(c_in, c_out, condition_channels, spade_hidden, padding)
            for c_in, c_out in zip(widths, widths[1:]))
        self.last = convolution(widths[-1], 3, 3, spectral=False, padding=padding)

    def forward(self, labels, noise):
        """labels (B, H, W) int64, noise (B, C) or (B, C, H, W) -> images (B, 3, H, W) in [−1, 1].

        H and W must be multiples of `size_multiple`. Raises UserError.
        """
        condition = self.condition(labels, noise)                                 # (B, C+N, H, W)
        x = self.first(shrink(condition, self.size_multiple))                     # (B, 16c, H/32 …)
        for i, block in enumerate(self.blocks):
            here = shrink(condition, self.size_multiple // 2 ** i)                # (B, C+N, h, w)
            x = block(upsample(x, here.shape[2:]), here)                          # … (B, c, H, W)
        return torch.tanh(self.last(F.leaky_relu(x, LEAK, inplace=True)))         # (B, 3, H, W)

    def condition(self, labels, noise):
        """Sec. 2, "3D noise": noise and one-hot label map, concatenated: (B, C+N, H, W)."""
        self.check(labels)
        one_hot = labels[..., None] == torch.arange(self.num_classes, device=labels.device)
        one_hot = one_hot.permute(0, 3, 1, 2)                                     # (B, N, H, W)
        if noise.ndim == 2:                                 # one vector, the same at every pixel
            noise = noise[:, :, None, None].expand(-1, -1, *labels.shape[1:])     # (B, C, H, W)
        device, dtype = labels.device.type, self.first.weight.dtype
        if torch.is_autocast_enabled(device):               # the precision of the convolutions
            dtype = torch.get_autocast_dtype(device)
        return torch.cat([noise.to(dtype), one_hot.to(dtype)], 1)

    def check(self, labels):
        """Refuse sizes that do not divide and ids that do not exist (data.py checks training's)."""
        (height, width), m, n = labels.shape[1:], self.size_multiple, self.num_classes
        if height % m or width % m:
            raise UserError(f"a label map of {height}×{width} cannot be drawn: this generator "
                            f"needs multiples of {m} (--height, --width; sample.py --size)")
        if not self.training and not (labels.min() >= 0 and labels.max() < n):
            raise UserError(f"label map with ids outside 0 to {n - 1}")


def shrink(condition, s):
    """Nearest-neighbour shrinking by s keeps every s-th pixel: (B, C, H, W) -> (B, C, H/s, W/s)."""
    return condition[:, :, ::s, ::s].contiguous(memory_format=torch.channels_last)


# ---- Discriminator D (Sec. 2, "Segmentation-based discriminator"; Figure 2, right) ---------------
#
# A U-Net: an encoder halves the image at each block, a decoder doubles it again, and skip
# connections carry fine detail across. D is not given the label map. It has to find the classes in
# the image, and so must learn what each of them looks like.


class DiscriminatorBlock(nn.Module):
    """Residual block: two 3×3 convolutions, and a 1×1 convolution where the width changes."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv_1 = convolution(in_channels, out_channels, 3, spectral=True)
        self.conv_2 = convolution(out_channels, out_channels, 3, spectral=True)
        self.conv_s = (convolution(in_channels, out_channels, 1, spectral=True)
                       if in_channels != out_channels else nn.Identity())


class DownBlock(DiscriminatorBlock):
    """Halves the size at its end, by 2×2 average pooling."""

    def forward(self, x, first):
        """x (B, in, h, w) -> (B, out, h/2, w/2); first: x is an image and needs no activation."""
        # Pooling and a 1×1 convolution may be swapped: behind the pooling it costs a quarter.
        # ceil_mode: an odd last row or column is averaged on its own instead of dropped.
        shortcut = self.conv_s(F.avg_pool2d(x, 2, ceil_mode=True))
        x = self.conv_1(x if first else F.leaky_relu(x, LEAK))        # not in place: x is a skip
        x = self.conv_2(F.leaky_relu(x, LEAK, inplace=True))
        return F.avg_pool2d(x, 2, ceil_mode=True) + shortcut


class UpBlock(DiscriminatorBlock):
    """Doubles the size at its start, by repeating pixels."""

    def forward(self, x, size):
        """x (B, in, h, w) -> (B, out, *size); size: (2h, 2w), or one less where it was odd."""
        shortcut = upsample(self.conv_s(x), size)
        x = self.conv_1(upsample(F.leaky_relu(x, LEAK), size))
        x = self.conv_2(F.leaky_relu(x, LEAK, inplace=True))
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
        self.encoder = nn.ModuleList(
            DownBlock(c_in, c_out) for c_in, c_out in zip([3] + channels, channels))
        outputs = channels[-2::-1] + [channels[0] // 2]               # 512 256 256 128 128 64
        skips = [0] + channels[-2::-1]                                #   0 512 256 256 128 128
        inputs = [a + b for a, b in zip(channels[-1:] + outputs, skips)]
        self.decoder = nn.ModuleList(UpBlock(c_in, c_out) for c_in, c_out in zip(inputs, outputs))
        self.last = convolution(outputs[-1], num_classes + 1, 1, spectral=False)

    def encode(self, images):
        """images (B, 3, H, W) -> [images, (B, 128, H/2, W/2), … (B, 512, H/64, W/64)]"""
        features = [images]
        for i, block in enumerate(self.encoder):
            features.append(block(features[-1], first=i == 0))
        return features

    def forward(self, images):
        """images (B, 3, H, W) in [−1, 1] -> logits (B, N+1, H, W) of a softmax over N+1 classes."""
        *skips, x = self.encode(images)                               # x (B, 512, H/64, W/64)
        for block, skip in zip(self.decoder, reversed(skips)):
            x = block(x, skip.shape[2:])                              # … (B, 64, H, W)
            if skip is not images:                  # the image is in the list for its size only
                x = torch.cat([skip, x], 1)
        return self.last(x)                                           # (B, N+1, H, W)


# ---- Several processes ---------------------------------------------------------------------------
#
# torchrun starts one process per GPU, each takes an equal share of every batch, and together they
# compute the update that one process would compute from the whole batch:
#   1. batch norm takes the mean and variance of the whole batch (BatchNorm);
#   2. gradients are averaged after backward() (average_gradients): every loss is a mean over
#      images, so the mean of the shares' gradients is the gradient of the whole batch;
#   3. noise, LabelMix coins and class weights are those of the whole batch (train.draw).


def start_processes():
    """Join the processes that torchrun has started, if it has; returns this one's device."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if gpus and local_processes > gpus:
        raise UserError(f"{local_processes} processes need a GPU each, this machine has {gpus}")
    if gpus:
        torch.cuda.set_device(local_rank)
    if "RANK" in os.environ:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    return torch.device("cuda", local_rank) if gpus else torch.device("cpu")


def rank_and_size():
    """(number of this process, number of processes); (0, 1) where there is only one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def mean_over_processes(tensor):
    """Replace a tensor by its mean over all processes; returns it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


@torch.no_grad()
def average_gradients(network):
    """Replace every gradient by its mean over all processes: one flat message, after backward()."""
    if rank_and_size()[1] == 1:
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = mean_over_processes(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


class Normalize(torch.autograd.Function):
    """y = (x − mean) / √(variance + ε); mean and variance (C,) are those of the whole batch.

    They depend on x, in every process. So the gradient, with g = ∂L/∂y, is

        ∂L/∂x = (g − mean(g) − y · mean(g · y)) / √(variance + ε),

    and its two means run over the whole batch, too. Autograd does not differentiate through an
    exchange between processes, hence a Function with its own backward.
    """

    @staticmethod
    def forward(ctx, x, mean, variance, eps):
        y = F.batch_norm(x, mean, variance, training=False, eps=eps)       # (B, C, h, w)
        ctx.save_for_backward(y, (variance + eps).rsqrt())
        return y

    @staticmethod
    def backward(ctx, g):
        y, scale = ctx.saved_tensors
        means = torch.stack([t.mean((0, 2, 3), dtype=scale.dtype) for t in (g, g * y)])    # (2, C)
        means = mean_over_processes(means)
        # scale · g − scale · mean(g · y) · y − scale · mean(g), all in the precision of g.
        of_g, of_y, constant = (factor.to(g.dtype)[:, None, None] for factor in (
            scale, -scale * means[1], -scale * means[0]))
        return torch.addcmul(torch.addcmul(constant, of_g, g), of_y, y), None, None, None


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d without scale and shift, over the batch of all processes together.

    With one process it computes what nn.BatchNorm2d computes; the buffers are the same (but for
    momentum None). With several, whose shares of the batch are equal, a share's variance around the
    mean of the whole batch is its own variance + (its own mean − that mean)².
    """

    def forward(self, x):
        """x (B, C, h, w) -> the same shape; in eval mode by the statistics kept in training."""
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            # Sums over many pixels need more digits than bfloat16 has.
            wide = x.to(self.running_mean.dtype)
            own_variance, own_mean = torch.var_mean(wide, (0, 2, 3), correction=0)
            mean = mean_over_processes(own_mean.clone())                                   # (C,)
            variance = mean_over_processes(own_variance + (own_mean - mean) ** 2)          # (C,)
            self.num_batches_tracked += 1
            weight = self.momentum or 1 / self.num_batches_tracked
            n, shift = rank_and_size()[1] * x.numel() / x.shape[1], mean - self.running_mean
            self.running_mean += weight * shift
            self.running_var += weight * (variance * n / max(n - 1, 1) - self.running_var)
            if self.momentum is None:       # all batches as one: add the variance of their means
                self.running_var += weight * (1 - weight) * shift ** 2
        return Normalize.apply(x, mean, variance, self.eps)


# ---- Errors of the user, checkpoints -------------------------------------------------------------


class UserError(Exception):
    """A mistake of the user, in one sentence that names the culprit and what is possible."""

    def __init__(self, sentence):
        # From a DataLoader process an error arrives with a traceback before the sentence.
        super().__init__(str(sentence).rsplit("UserError: ", 1)[-1].strip())


@contextlib.contextmanager
def exit_in_words(script):
    """Decorates main() or surrounds code: a UserError ends it by its sentence and exit code 2."""
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(10)       # mostly rank 0 has the same error; torchrun ends this process then
        print(f"{script}: {error}", file=sys.stderr)
        sys.exit(2)


def find_checkpoint(path=None):
    """The path itself, else latest.pt of the newest run, else the model of this repository."""
    runs = sorted(Path("runs").glob("*/latest.pt"), key=lambda file: file.stat().st_mtime)
    included = Path(__file__).resolve().parent / "assets" / "toy.pt"
    return Path(path or (runs[-1] if runs else included))


def read_tensors(path):
    """What torch.save wrote, on the CPU; weights_only: a file can run no code. UserError."""
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError) as e:
        raise UserError(f"{path}: not a checkpoint, or one that was cut off") from e


def load_checkpoint(path):
    """A checkpoint of train.py as a dictionary; train.State says what is in it. UserError."""
    checkpoint = read_tensors(path)
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != "oasis-run-2":
        raise UserError(f"{path}: not a checkpoint of this edition's train.py; the authors' *.pth "
                        f"files become one by python -m extras.released")
    return checkpoint


def build_generator(checkpoint):
    """The averaged generator, whose images the paper reports; in eval mode, without gradients."""
    module, name = checkpoint["generator_class"].rsplit(".", 1)
    # Only a variant's generator lives elsewhere; a file must not choose what is imported.
    module = importlib.import_module(module if module.startswith("extras.") else "oasis")
    network = getattr(module, name)(**checkpoint["generator_args"])
    network.load_state_dict(checkpoint["ema"])
    return network.to(memory_format=torch.channels_last).requires_grad_(False).eval()


def build_discriminator(checkpoint):
    """D in eval mode, without gradients; None where the file has none, or a variant's."""
    if checkpoint.get("discriminator_class") != "oasis.Discriminator":
        return None
    network = Discriminator(**checkpoint["discriminator_args"])
    network.load_state_dict(checkpoint["discriminator"])
    return network.to(memory_format=torch.channels_last).requires_grad_(False).eval()


# ---- python oasis.py -----------------------------------------------------------------------------


def main():
    """The parameter counts of the paper's models (Table 1 says 94M, whatever the dataset)."""
    print("                    N   generator  discriminator        both")
    for name, n in (("ADE20K", 151), ("COCO-Stuff", 183), ("Cityscapes", 35)):
        with torch.device("meta"):          # tensors that have a shape and no numbers
            g, d = (sum(p.numel() for p in network(n).parameters())
                    for network in (Generator, Discriminator))
        print(f"{name:14s} {n:6d}  {g:10,}  {d:13,}  {g + d:10,}")


if __name__ == "__main__":
    main()
