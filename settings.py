"""What a run of train.py can be told: every setting, and what each dataset's preset changes.

    python train.py --help        # the same as a command line

One dataclass is the whole configuration. Each field is an option of train.py with its default and
its help text; networks and functions get the values they need as arguments, never this object.
"""

import argparse
import dataclasses
import math
from pathlib import Path

import metrics
import oasis
from models import generator_blocks


class SettingsError(ValueError):
    """A setting that cannot work; the message names it and says what is possible."""


def option(default, text, group=None):
    """A field of Settings: its default, its --help text, and the --help group that it opens."""
    return dataclasses.field(default=default, metadata={"help": text, "group": group})


@dataclasses.dataclass
class Settings:
    """Everything a run can be told. Defaults are the paper's ADE20K model; PRESETS change them."""

    preset: str = option("toy", "which data, with the settings that go with it", "data")
    data_root: str = option("", "folder of the dataset; toy needs none")
    subset: str = option("", "file with the names of the training images to use, one per line")
    height: int = option(256, "height of the images")
    width: int = option(256, "width of the images")
    workers: int = option(8, "processes that load images, for each GPU; changes nothing else")

    model: str = option("oasis", "oasis, or a baseline of spade.py: spade, spade+", "model")
    multimodal: str = option("noise", "what makes several pictures of one label map: noise (3D), "
                             "encoder (SPADE's) or none")
    channels: int = option(64, "width of the generator's last block")
    num_blocks: int = option(6, "generator blocks of OASIS, SPADE has one more in front; height "
                             "and width divide by 2^(blocks-1)")
    spade_hidden: int = option(128, "width of the hidden layer inside each SPADE")
    noise_dim: int = option(64, "length of the noise vector, the third dimension of the 3D noise; "
                            "or of the encoder's latent vector")
    d_channels: tuple = option((128, 128, 256, 256, 512, 512), "discriminator's encoder widths")
    patch_channels: tuple = option((64, 128, 256, 512), "the same for SPADE's discriminator")
    init_gain_g: float = option(oasis.INIT_GAIN, "Xavier gain of the generator's initial weights")
    init_gain_d: float = option(oasis.INIT_GAIN, "the same for the discriminator")

    epochs: int = option(200, "passes over the training images", "training")
    steps: int = option(0, "train so many steps instead of epochs (0: use --epochs)")
    batch_size: int = option(32, "images per step, over all processes together")
    lr_g: float = option(1e-4, "Adam's learning rate for the generator")
    lr_d: float = option(4e-4, "Adam's learning rate for the discriminator")
    beta1: float = option(0.0, "Adam's β1; 0: yesterday's gradients came from another opponent")
    beta2: float = option(0.999, "Adam's β2")
    lambda_labelmix: float = option(10.0, "λ, weight of OASIS's LabelMix term; 0 leaves it out")
    no_class_balance: bool = option(False, "OASIS without class balance: α = 1 for every class")
    lambda_vgg: float = option(0.0, "λ, weight of the perceptual loss; 0 leaves it out")
    vgg_weights: str = option("", "file of torchvision's VGG19 (without: fetched once)")
    lambda_features: float = option(0.0, "λ, weight of SPADE's feature-matching loss")
    lambda_kl: float = option(0.05, "λ, weight of the KL term of SPADE's encoder")
    ema_decay: float = option(0.9999, "decay of the generator's moving average")
    precision: str = option("fp32", "fp32 (convolutions in TF32 on recent GPUs), or bf16: networks "
                            "in bfloat16, losses in float32")
    compile: bool = option(False, "torch.compile both networks: minutes of waiting, then faster "
                           "steps on a GPU (on several GPUs mostly D's part)")
    seed: int = option(0, "decides every random number of the training")
    data_seed: int = option(0, "decides what it learns from: the drawn scenes, crops and flips")

    run_dir: str = option("", "folder of the run (default: runs/PRESET, or runs/PRESET-MODEL)",
                          "output")
    resume: bool = option(False, "go on with the run in --run-dir, from its latest.pt")
    log_every: int = option(100, "steps between two rows of log.csv")
    picture_every: int = option(1000, "steps between two picture grids")
    score_every: int = option(5000, "steps between two scorings; the last step is always scored")
    checkpoint_every: int = option(1000, "steps between two checkpoints")
    metrics: str = option("miou,fd_segmenter,fid", "scores, see metrics.py --help; or none")
    score_images: int = option(0, "validation images to score (0: all)")
    segmenter: str = option("", "segmenter.pt to score mIoU with (without: one is trained first)")
    segmenter_steps: int = option(0, "training steps of that network (0: by image size)")


# What each dataset changes. The paper names the decay of the moving average, 64 noise channels and
# λ_VGG = 10, and follows "the experimental setting of (Park et al., 2019)" (Sec. 3). Learning
# rates, batch sizes, epochs and LabelMix's λ are those of the authors' code.
PRESETS = {
    "ade20k": {},
    "ade20k-outdoors": {},
    "coco-stuff": dict(epochs=100),
    "cityscapes": dict(height=256, width=512, batch_size=20, lr_g=4e-4, lambda_labelmix=5.0,
                       ema_decay=0.999),        # the released models' decay; the paper says 0.9999
    "folder": dict(batch_size=8, ema_decay=0.999, workers=2),
    # Small enough for minutes on two CPU cores. Tuned for that, not for a comparison with the
    # paper: 0.02 is too small a gain for a training of 800 steps (see oasis.scale_weights).
    "toy": dict(height=64, width=64, workers=0, channels=8, num_blocks=4, spade_hidden=32,
                d_channels=(32, 64, 96, 128), patch_channels=(32, 64, 96, 128),
                init_gain_g=1.0, init_gain_d=5.0, steps=800,
                batch_size=8, lr_g=1e-3, lr_d=2e-3, ema_decay=0.98, log_every=10,
                picture_every=100, score_every=200, checkpoint_every=100,
                metrics="miou,fd_segmenter"),
}

# What each model changes beyond that (Sec. 3). SPADE's reported images come from G itself, which is
# an average without memory; SPADE+ has the moving average of OASIS, and no feature matching.
MODELS = {
    "oasis": {},
    "spade": dict(multimodal="none", lambda_vgg=10.0, lambda_features=10.0, ema_decay=0.0),
    "spade+": dict(multimodal="none", lambda_vgg=10.0),
}
NOISE_DIMS = {"noise": 64, "encoder": 256, "none": 0}       # by multimodal

# These shape the networks or what they learn from; a resumed run cannot change them.
FIXED_ON_RESUME = ("preset", "subset", "height", "width", "model", "multimodal", "channels",
                   "num_blocks", "spade_hidden", "noise_dim", "d_channels", "patch_channels",
                   "init_gain_g", "init_gain_d", "batch_size", "seed", "data_seed")


def flag(name):
    """The command-line option of a field: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


def parse_arguments(argv=None):
    """Command line -> (Settings, set of the names given). Every field of Settings is an option."""
    parser = argparse.ArgumentParser(
        prog="train.py", description="Train OASIS, or SPADE; without arguments on drawn scenes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Defaults are the paper's; what a preset or model changes:\n" + "\n".join(
            f"  {name}: " + (", ".join(f"{k} {v}" for k, v in changes.items()) or "nothing")
            for name, changes in (PRESETS | MODELS).items()),
        argument_default=argparse.SUPPRESS)
    group = parser
    for field in dataclasses.fields(Settings):
        if field.metadata["group"]:
            group = parser.add_argument_group(field.metadata["group"])
        default = field.default
        shown = "" if default == "" or default is False else f" (default: {default})"
        text = field.metadata["help"] + shown
        if field.type is bool:
            group.add_argument(flag(field.name), action="store_true", help=text)
        elif field.type is tuple:
            group.add_argument(flag(field.name), nargs="+", type=type(default[0]), help=text)
        else:
            choices = {"preset": list(PRESETS), "precision": ["fp32", "bf16"],
                       "model": list(MODELS), "multimodal": list(NOISE_DIMS)}.get(field.name)
            group.add_argument(flag(field.name), type=field.type, choices=choices, help=text)
        if field.name == "multimodal":
            group.add_argument("--no-noise", action="store_const", const="none", dest="multimodal",
                               help="the same as --multimodal none")
    given = vars(parser.parse_args(argv))
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    preset = given.get("preset", Settings.preset)
    changes = dict(PRESETS[preset])
    if "epochs" in given and "steps" not in given:
        changes["steps"] = 0        # whoever asks for epochs does not want the preset's steps
    changes.update(MODELS[given.get("model", Settings.model)])
    multimodal = given.get("multimodal", changes.get("multimodal", Settings.multimodal))
    changes["noise_dim"] = NOISE_DIMS[multimodal]
    s = Settings(**{"preset": preset, **changes, **given})
    s.run_dir = s.run_dir or f"runs/{s.preset}" + f"-{s.model}" * (s.model != "oasis")
    return s, set(given)


def metric_names(s):
    """The scores that --metrics asks for, a list of names."""
    return [] if s.metrics == "none" else s.metrics.replace(" ", "").split(",")


def check_model(s):
    """Refuse combinations of settings that no model has; SettingsError."""
    is_oasis = s.model == "oasis"
    for name, wrong, sentence in (
            ("multimodal", is_oasis and s.multimodal == "encoder",
             "an image encoder belongs to SPADE (--model spade+); OASIS has noise or none"),
            ("lambda_features", is_oasis and s.lambda_features > 0,
             "feature matching belongs to --model spade, whose discriminator sees the label map"),
            ("no_class_balance", not is_oasis and s.no_class_balance,
             f"{s.model} has no class weights, there is nothing to balance"),
            ("noise_dim", s.multimodal == "none" and s.noise_dim > 0,
             "--multimodal none has no noise; choose noise or encoder"),
            ("noise_dim", s.multimodal == "encoder" and s.noise_dim < 1,
             "the encoder's latent vector needs at least one number"),
            ("metrics", not is_oasis and "d_miou" in metric_names(s),
             f"d_miou scores OASIS's discriminator as a segmenter; {s.model}'s only says real or "
             f"fake"),
            ("lambda_vgg", s.lambda_vgg > 0 and min(s.height, s.width) < 16,
             f"VGG19 halves the picture four times, {s.height}×{s.width} is too small for that"),
            ("vgg_weights", s.vgg_weights and not s.lambda_vgg,
             "the file is of no use without --lambda-vgg, say 10")):
        if wrong:
            raise SettingsError(f"{flag(name)} {getattr(s, name)}: {sentence}")


def check_settings(s, world_size):
    """Refuse what cannot work before anything is loaded or written; SettingsError."""
    def require(names, holds, sentence):
        for name in names.split():
            if not holds(getattr(s, name)):
                raise SettingsError(f"{flag(name)} {getattr(s, name)}: {sentence}")

    require("height width channels num_blocks spade_hidden batch_size log_every picture_every "
            "score_every checkpoint_every", lambda v: v >= 1, "must be at least 1")
    require("epochs steps workers noise_dim score_images segmenter_steps", lambda v: v >= 0,
            "must not be negative")
    require("seed data_seed", lambda v: 0 <= v < 2 ** 62, "must lie in [0, 2^62)")
    require("lambda_labelmix lambda_vgg lambda_features lambda_kl", lambda v: 0 <= v < math.inf,
            "must not be negative, nor infinite")
    require("ema_decay beta1 beta2", lambda v: 0 <= v < 1, "must lie in [0, 1)")
    require("lr_g lr_d init_gain_g init_gain_d", lambda v: 0 <= v < math.inf,
            "must be a finite number from 0 on")
    check_model(s)
    multiple = 2 ** (generator_blocks(s) - 1)
    for name in ("height", "width"):
        size, below = getattr(s, name), getattr(s, name) // multiple * multiple
        if size % multiple:
            nearest = " or ".join(str(n) for n in (below, below + multiple) if n)
            raise SettingsError(f"--{name} {size}: must be a multiple of {multiple}, as the "
                                f"generator halves it {generator_blocks(s) - 1} times; nearest: "
                                f"{nearest}")
    if s.batch_size * s.height * s.width == world_size * multiple ** 2:
        raise SettingsError(f"--batch-size {s.batch_size}: at {s.height}×{s.width} the first block "
                            f"would see one pixel in all, of which batch norm can take no "
                            f"variance; use more images or a larger size")
    if s.batch_size % world_size:
        raise SettingsError(f"--batch-size {s.batch_size}: must be a multiple of the number of "
                            f"processes, {world_size}, so that each gets the same share")
    for name in ("d_channels", "patch_channels"):
        if min(getattr(s, name)) < 2:
            raise SettingsError(f"{flag(name)} {' '.join(map(str, getattr(s, name)))}: each must "
                                f"be at least 2")
    if not s.epochs and not s.steps:
        raise SettingsError("--epochs 0: there is nothing to train; give --epochs or --steps")
    unknown = set(metric_names(s)) - set(metrics.METRICS)
    if unknown:
        raise SettingsError(f"--metrics {','.join(sorted(unknown))}: known are "
                            f"{','.join(metrics.METRICS)}, or none")


def settings_of_resumed_run(s, given):
    """(The run's own settings, changed where the command line says so and may; its checkpoint)."""
    latest = Path(s.run_dir) / "latest.pt"
    if not latest.is_file():
        raise SettingsError(f"{s.run_dir} holds no latest.pt to resume from; leave out --resume to "
                            f"start a run there")
    checkpoint = oasis.load_checkpoint(latest)
    try:
        # Runs from before data_seed drew their scenes by their only seed.
        resumed = Settings(**{"data_seed": checkpoint["config"]["seed"], **checkpoint["config"]})
    except TypeError as e:
        raise oasis.CheckpointError(f"{latest}: was written by another version of train.py, whose "
                                    f"settings differ; resume it with that one") from e
    for name in sorted(given - {"resume", "run_dir"}):
        old, new = getattr(resumed, name), getattr(s, name)
        if name in FIXED_ON_RESUME and new != old:
            raise SettingsError(f"{flag(name)} {new}: the run in {s.run_dir} was started with "
                                f"{old}, which resuming cannot change; start another --run-dir")
        setattr(resumed, name, new)
    if "epochs" in given and "steps" not in given:
        resumed.steps = 0
    resumed.run_dir = s.run_dir
    return resumed, checkpoint
