"""What each trick is worth: a training step and a generated image, with all of them and without one.

    python tests/tricks.py                      # full-size ADE20K networks, 128×128, about five minutes
    python tests/tricks.py --size 256 -n 3      # the paper's size

Timed in turns, one run of each after the other and so on, so that a machine whose speed drifts does so for
all alike. Prints medians; "without" divided by "with" is what the trick gains.
"""

import argparse
import contextlib
import statistics
import time
from unittest import mock

import torch
import torch.nn.functional as F

import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import losses                               # noqa: E402  (the line above must come first)
import oasis                                # noqa: E402
import settings                             # noqa: E402
import train                                # noqa: E402

LEAK = oasis.LEAK


# ---- Each trick left out -----------------------------------------------------------------------------


def no_look_ups():
    """The whole condition is a tensor, convolved."""
    original = oasis.Generator.condition_pyramid
    return mock.patch.object(oasis.Generator, "condition_pyramid", lambda self, labels, noise: original(
        self, labels, oasis.replicate_noise(noise, *labels.shape[1:])))


def pyramid_in_every_norm():
    """The condition tensor is made at full size and shrunk in each SPADE layer."""
    def forward(self, x, condition):
        condition = F.interpolate(condition, x.shape[2:], mode="nearest")
        gamma, beta = self.gamma_beta(F.relu(self.shared(condition))).chunk(2, dim=1)
        return torch.addcmul(beta, self.norm(x), 1 + gamma)

    def pyramid(self, labels, noise):
        condition = torch.cat([oasis.replicate_noise(noise, *labels.shape[1:]), F.one_hot(
            labels, self.num_classes).permute(0, 3, 1, 2)], 1).contiguous(memory_format=torch.channels_last)
        first = F.interpolate(condition, scale_factor=1 / self.size_multiple, mode="nearest")
        return Pyramid(first, condition, self.num_blocks)

    class Pyramid(list):
        def __init__(self, first, condition, blocks):
            super().__init__([condition] * blocks)
            self.first = first

        def __getitem__(self, index):
            return self.first if index == 0 else super().__getitem__(index)

    both = contextlib.ExitStack()
    both.enter_context(mock.patch.object(oasis.SPADE, "forward", forward))
    both.enter_context(mock.patch.object(oasis.Generator, "condition_pyramid", pyramid))
    return both


def two_convolutions_for_gamma_and_beta():
    def forward(self, x, condition):
        hidden = F.relu(oasis.convolve(self.shared, condition))
        gamma, beta = (F.conv2d(hidden, w, b, padding=1) for w, b in zip(
            self.gamma_beta.weight.chunk(2), self.gamma_beta.bias.chunk(2)))
        return torch.addcmul(beta, self.norm(x), 1 + gamma)
    return mock.patch.object(oasis.SPADE, "forward", forward)


def shortcuts_on_the_large_side():
    def down(self, x):
        shortcut = oasis.shrink(self.conv_s(x) if self.learned_shortcut else x)
        x = self.conv_2(F.leaky_relu(self.conv_1(x if self.first else F.leaky_relu(x, LEAK)), LEAK))
        return oasis.shrink(x) + shortcut

    def up(self, x, size):
        shortcut = F.interpolate(x, size, mode="nearest")
        shortcut = self.conv_s(shortcut) if self.learned_shortcut else shortcut
        x = self.conv_1(F.interpolate(F.leaky_relu(x, LEAK), size, mode="nearest"))
        return self.conv_2(F.leaky_relu(x, LEAK)) + shortcut

    both = contextlib.ExitStack()
    both.enter_context(mock.patch.object(oasis.DownBlock, "forward", down))
    both.enter_context(mock.patch.object(oasis.UpBlock, "forward", up))
    return both


def plain_step(G, D, optimizer_G, optimizer_D, real, labels, noise, mask, weights, frozen=True, one_pass=True,
               one_fake=True):
    """train.training_step, from which three tricks can be taken away."""
    fake = G(labels, noise)
    images = [real, fake.detach(), losses.labelmix(real, fake.detach(), mask)]
    logits = D(torch.cat(images)).chunk(3) if one_pass else [D(x) for x in images]
    loss_D = (losses.real_loss(logits[0], labels, weights) + losses.fake_loss(logits[1])
              + 10 * losses.labelmix_loss(logits[2], logits[0], logits[1], mask))
    optimizer_D.zero_grad()
    loss_D.backward()
    optimizer_D.step()
    D.requires_grad_(not frozen)
    fake = fake if one_fake else G(labels, noise)
    loss_G = losses.real_loss(D(fake), labels, weights)
    optimizer_G.zero_grad()
    loss_G.backward()
    optimizer_G.step()
    D.requires_grad_(True)


# ---- Timing ------------------------------------------------------------------------------------------


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("-n", type=int, default=5)
    args = parser.parse_args(argv)
    s, _ = settings.parse_arguments(["--preset", "ade20k"])
    state = train.State(s, 151, torch.device("cpu"))
    cells = args.size // 16
    labels = torch.randint(0, 151, (1, cells, cells)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    real = (torch.rand(1, 3, args.size, args.size) * 2 - 1).contiguous(memory_format=torch.channels_last)
    batch = (real, labels, torch.randn(1, 64), losses.labelmix_mask(labels, 151),
             losses.class_weights(labels, 151, 0))
    plain_optimizers = [torch.optim.Adam(o.param_groups[0]["params"], 1e-4, (0.0, 0.999), foreach=False,
                                         fused=False) for o in (state.optimizer_G, state.optimizer_D)]

    def step(optimizers=(state.optimizer_G, state.optimizer_D), **without):
        plain_step(state.G, state.D, *optimizers, *batch, **without)
        train.update_ema(state.ema, state.G, 0.9999)

    def foreach_ema():
        plain_step(state.G, state.D, state.optimizer_G, state.optimizer_D, *batch)
        torch.optim.swa_utils.get_ema_multi_avg_fn(0.9999)(
            list(state.ema.parameters()), list(state.G.parameters()), None)

    nothing = contextlib.nullcontext
    variants = {                        # name: (what is patched, the step)
        "all tricks": (nothing, step),
        "without table look-ups": (no_look_ups, step),
        "… and the pyramid in every norm": (pyramid_in_every_norm, step),
        "without γ and β from one convolution": (two_convolutions_for_gamma_and_beta, step),
        "without 1×1 shortcuts on the small side": (shortcuts_on_the_large_side, step),
        "without D frozen in G's update": (nothing, lambda: step(frozen=False)),
        "without one pass of D over three images": (nothing, lambda: step(one_pass=False)),
        "without sharing x̂ between the updates": (nothing, lambda: step(one_fake=False)),
        "without fused Adam": (nothing, lambda: step(plain_optimizers)),
        "with a multi-tensor EMA (not kept)": (nothing, foreach_ema),
    }
    print(f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.size}×{args.size}, one "
          f"image, median of {args.n}", flush=True)
    measure("memory given back to the system", variants, args.n, state, batch)
    oasis.keep_freed_memory()
    measure("freed memory kept (keep_freed_memory)", variants, args.n, state, batch)
    for network in (state.G, state.D, state.ema):
        network.to(memory_format=torch.contiguous_format)
    measure("freed memory kept, without channels-last", {"all other tricks": (nothing, step)}, args.n, state,
            (real.contiguous(), *batch[1:]))


@torch.no_grad()
def generate(state, batch):
    state.ema.eval()(batch[1], batch[2])


def measure(title, variants, n, state, batch):
    """Times of all variants, in turns -> printed."""
    train_times, draw_times = ({name: [] for name in variants} for _ in range(2))
    for round_ in range(n + 2):                     # two rounds to warm up
        for name, (patch, step) in variants.items():
            with patch():
                for work, times in ((step, train_times), (lambda: generate(state, batch), draw_times)):
                    began = time.perf_counter()
                    work()
                    times[name] += [time.perf_counter() - began] * (round_ >= 2)
    print(f"\n| {title} | training step, s | an image, s |\n|---|---|---|")
    for name in variants:
        print(f"| {name} | {statistics.median(train_times[name]):.3f} | "
              f"{statistics.median(draw_times[name]):.3f} |", flush=True)


if __name__ == "__main__":
    main()
