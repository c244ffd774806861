"""OASIS with one part changed: no spectral norm, D without skip connections, a patch discriminator.

    python -m extras.parts --part no-spectral-norm --run-dir runs/no-spectral-norm
    python -m extras.parts --part no-skips --run-dir runs/no-skips
    python -m extras.parts --part patch-discriminator --run-dir runs/patch

The parts that one option of train.py takes out (LabelMix, class balance, noise, the average, fixed
statistics, padding) need no code; extras.ablation lists them. All options of train.py apply.

no-spectral-norm     Layers of G and D may grow. Each weight stays divided by the largest singular
                     value that it had before training: so the start is as with spectral norm, and
                     Adam's steps have the same effect there. (Initial weights are drawn anew.)
no-skips             D's decoder sees its coarsest features only; its blocks are narrower, as
                     nothing is concatenated.
patch-discriminator  OASIS's G with SPADE's discriminators and hinge loss, everything else of OASIS
                     kept. Beside SPADE+ with noise it tells what G's one block less does, beside
                     OASIS what the segmentation discriminator does.
"""

import argparse
import dataclasses

import torch
from torch import nn
from torch.nn.utils import parametrize

import data
import oasis
import train
from extras import spade
from train import option

PARTS = ("no-spectral-norm", "no-skips", "patch-discriminator")


# ---- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Settings(spade.Settings):
    """Those of extras.spade, and the part."""

    part: str = option("no-spectral-norm", " or ".join(PARTS))


def parse_settings(argv=None):
    """Command line -> Settings: the presets of train.py; no perceptual loss. UserError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--part", choices=PARTS, default=Settings.part)
    known, _ = parser.parse_known_args(argv)
    model = "spade+" if known.part == "patch-discriminator" else "oasis"
    changes = dict(model=model, part=known.part, lambda_vgg=0.0)
    short_changes = {}
    for name in ("toy", "small"):
        short_changes[name] = dict(patch_channels=train.PRESETS[name]["d_channels"][:4])
    return spade.parse_variant(argv, Settings, changes, short_changes, "noise")


def make_networks(settings, num_classes):
    """G and D as the settings say, untrained."""
    s = settings
    G, D = train.make_networks(s, num_classes)
    if s.part == "patch-discriminator":
        D = spade.Discriminator(num_classes, s.patch_channels)
    elif s.part == "no-skips":
        D = DiscriminatorWithoutSkips(num_classes, s.d_channels)
    else:
        G = GeneratorWithoutSpectralNorm(**G.config)
        D = DiscriminatorWithoutSpectralNorm(num_classes, s.d_channels)
        # train.State gives the weights another gain, so the number that divides them follows.
        for network, gain in zip((G, D), s.init_gain):
            for module in network.modules():
                if isinstance(module, Divide):
                    module.norm *= gain / oasis.INIT_GAIN
    return G, D


# ---- Without spectral norm -----------------------------------------------------------------------


class Divide(nn.Module):
    """Divides a weight by the largest singular value that it has now, for ever after."""

    def __init__(self, weight):
        super().__init__()
        norm = torch.linalg.matrix_norm(weight.detach().flatten(1), 2)
        self.register_buffer("norm", norm)

    def forward(self, weight):
        return weight / self.norm


def drop_spectral_norm(network):
    """Replace spectral norm, everywhere in the network, by a division that stays as it is."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            parametrize.register_parametrization(module, "weight", Divide(module.weight))


class GeneratorWithoutSpectralNorm(oasis.Generator):
    """Arguments as in oasis.Generator."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        drop_spectral_norm(self)


class DiscriminatorWithoutSpectralNorm(oasis.Discriminator):
    """Arguments as in oasis.Discriminator."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        drop_spectral_norm(self)


# ---- Without skip connections --------------------------------------------------------------------


class DiscriminatorWithoutSkips(oasis.Discriminator):
    """An encoder and a decoder, and nothing beside them. Arguments as in oasis.Discriminator."""

    def __init__(self, num_classes, channels=(128, 128, 256, 256, 512, 512)):
        super().__init__(num_classes, channels)
        channels = list(channels)
        self.decoder = nn.ModuleList()
        width = channels[-1]
        for out in channels[-2::-1] + [channels[0] // 2]:               # 512 256 256 128 128 64
            self.decoder.append(oasis.UpBlock(width, out))
            width = out

    def forward(self, images):
        """images (B, 3, H, W) in [−1, 1] -> logits (B, N+1, H, W)."""
        features = self.encode(images)
        x = features.pop()                                              # (B, 512, H/64, W/64)
        for block in self.decoder:
            x = block(x, features.pop().shape[2:])                      # … (B, 64, H, W)
        return self.last(x)                                             # (B, N+1, H, W)


@data.exit_in_words("extras.parts")
def main(argv=None):
    """The command line. Exit code 0: done; 1: stopped by a signal; 2: a mistake of the user."""
    settings = parse_settings(argv)
    step = spade.oasis_step if settings.model == "oasis" else spade.spade_step
    spade.run(settings, make_networks, step)


if __name__ == "__main__":
    from extras import parts                # under its own name, which checkpoints hold
    parts.main()
