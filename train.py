"""Train OASIS: settings, the loop, the moving average of G, checkpoints.

    python train.py                                          # drawn scenes, a few minutes on two CPU cores
    python train.py --preset folder --data-root my_photos    # your own photographs and label maps
    python train.py --preset cityscapes --data-root /data/cityscapes
    python train.py --run-dir runs/toy --resume              # goes on where a run stopped
    torchrun --nproc_per_node=8 train.py --preset ade20k --data-root /data/ADEChallengeData2016

Everything a run makes lies in its run folder: latest.pt and best.pt (checkpoints), samples/ (pictures
while it trains), log.csv (losses), scores.csv, curves.png, segmenter.pt (the network behind mIoU).

Nothing in the loop is drawn from a random state that has a history. Batches, crops, noise and LabelMix
coins are functions of (seed, step), so there is no random state to save: a run that was killed and
resumed draws what an uninterrupted one draws, and on the CPU both end in the same bits.
"""

import argparse
import copy
import csv
import dataclasses
import hashlib
import math
import os
import signal
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

import data
import losses
import metrics
import oasis

matplotlib.use("Agg")       # curves.png is drawn without a display
import matplotlib.pyplot as plt  # noqa: E402  (the line above must come first)


class SettingsError(ValueError):
    """A setting that cannot work; the message names it and says what is possible."""


class TrainingStopped(RuntimeError):
    """The run ended early, by a signal, a non-finite loss or a full disk; the message says how it goes on."""


# ---- Settings --------------------------------------------------------------------------------------


def option(default, text, group=None):
    """A field of Settings: its default, its --help text, and the --help group that it opens."""
    return dataclasses.field(default=default, metadata={"help": text, "group": group})


@dataclasses.dataclass
class Settings:
    """Everything a run can be told. The defaults are the paper's ADE20K model; PRESETS change them."""

    preset: str = option("toy", "which data, with the settings that go with it", "data")
    data_root: str = option("", "folder of the dataset; toy needs none")
    subset: str = option("", "file with the names of the training images to use, one per line")
    height: int = option(256, "height of the images")
    width: int = option(256, "width of the images")
    workers: int = option(8, "processes that load images; the pictures do not depend on it")

    channels: int = option(64, "width of the generator's last block", "model")
    num_blocks: int = option(6, "residual blocks of the generator; sizes must divide by 2^(blocks-1)")
    spade_hidden: int = option(128, "width of the hidden layer inside each SPADE")
    noise_dim: int = option(64, "length of the noise vector, the third dimension of the 3D noise")
    d_channels: tuple = option((128, 128, 256, 256, 512, 512), "widths of the discriminator's encoder")
    init_gain: float = option(oasis.INIT_GAIN, "Xavier gain of the initial weights")

    epochs: int = option(200, "passes over the training images", "training")
    steps: int = option(0, "train so many steps instead of epochs (0: use --epochs)")
    batch_size: int = option(32, "images per step, over all processes together")
    lr_g: float = option(1e-4, "Adam's learning rate for the generator")
    lr_d: float = option(4e-4, "Adam's learning rate for the discriminator")
    beta1: float = option(0.0, "Adam's β1: 0, gradients of a moving opponent should not be remembered")
    beta2: float = option(0.999, "Adam's β2")
    lambda_labelmix: float = option(10.0, "λ, weight of the LabelMix term; 0 leaves it out")
    ema_decay: float = option(0.9999, "decay of the generator's moving average")
    precision: str = option("fp32", "fp32, or bf16: networks in bfloat16, losses in float32")
    seed: int = option(0, "decides every random number of the run")

    run_dir: str = option("", "folder of the run (default: runs/PRESET)", "output")
    resume: bool = option(False, "go on with the run in --run-dir, from its latest.pt")
    log_every: int = option(100, "steps between two rows of log.csv")
    picture_every: int = option(1000, "steps between two picture grids")
    score_every: int = option(5000, "steps between two scorings; the last step is always scored")
    checkpoint_every: int = option(1000, "steps between two checkpoints")
    metrics: tuple = option(("miou", "fd_segmenter", "fid"), "scores to compute, see metrics.py --help")
    score_images: int = option(0, "validation images to score (0: all)")
    segmenter: str = option("", "segmenter.pt to score mIoU with (without: one is trained first)")
    segmenter_steps: int = option(0, "training steps of that network (0: by image size)")


# What each dataset changes (Sec. 3 and the paper's supplement).
PRESETS = {
    "ade20k": {},
    "ade20k-outdoors": {},
    "coco-stuff": dict(epochs=100),
    "cityscapes": dict(height=256, width=512, batch_size=20, lr_g=4e-4, lambda_labelmix=5.0,
                       ema_decay=0.999),        # the released models' decay; the paper says 0.9999
    "folder": dict(batch_size=8, ema_decay=0.999, workers=2),
    # Small enough for minutes on two CPU cores. Tuned for that, not for a comparison with the paper:
    # 0.02 is too small a gain for a training of 800 steps (see oasis.scale_weights).
    "toy": dict(height=64, width=64, workers=0, channels=8, num_blocks=4, spade_hidden=32,
                d_channels=(32, 64, 96, 128), init_gain=1.0, steps=800, batch_size=8, lr_g=1e-3,
                lr_d=7e-4, ema_decay=0.98, log_every=10, picture_every=100, score_every=200,
                checkpoint_every=100, metrics=("miou", "fd_segmenter")),
}

# These shape the networks or what they learn from; a resumed run cannot change them.
FIXED_ON_RESUME = ("preset", "subset", "height", "width", "channels", "num_blocks", "spade_hidden",
                   "noise_dim", "d_channels", "batch_size", "seed")


def parse_arguments(argv=None):
    """Command line -> (Settings, set of the names given). Every field of Settings is an option."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Defaults are the paper's; what a preset changes:\n" + "\n".join(
            f"  {name}: " + (", ".join(f"{k} {v}" for k, v in changes.items()) or "nothing")
            for name, changes in PRESETS.items()),
        argument_default=argparse.SUPPRESS)
    group = parser
    for field in dataclasses.fields(Settings):
        if field.metadata["group"]:
            group = parser.add_argument_group(field.metadata["group"])
        flag, default = "--" + field.name.replace("_", "-"), field.default
        text = field.metadata["help"] + ("" if default in ("", 0, False) else f" (default: {default})")
        if field.type is bool:
            group.add_argument(flag, action="store_true", help=text)
        elif field.type is tuple:
            group.add_argument(flag, nargs="+", type=type(default[0]), help=text)
        else:
            choices = {"preset": list(PRESETS), "precision": ["fp32", "bf16"]}.get(field.name)
            group.add_argument(flag, type=field.type, choices=choices, help=text)
    given = vars(parser.parse_args(argv))
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    preset = given.get("preset", Settings.preset)
    s = Settings(**{"preset": preset, **PRESETS[preset], **given})
    s.run_dir = s.run_dir or f"runs/{s.preset}"
    return s, set(given)


def check_settings(s, world_size):
    """Refuse what cannot work before anything is loaded or written; SettingsError."""
    for name in ("height", "width", "channels", "num_blocks", "spade_hidden", "batch_size", "log_every",
                 "picture_every", "score_every", "checkpoint_every"):
        if getattr(s, name) < 1:
            raise SettingsError(f"--{name.replace('_', '-')} {getattr(s, name)}: must be at least 1")
    for name in ("epochs", "steps", "workers", "noise_dim", "lambda_labelmix", "score_images",
                 "segmenter_steps"):
        if getattr(s, name) < 0:
            raise SettingsError(f"--{name.replace('_', '-')} {getattr(s, name)}: must not be negative")
    for name in ("ema_decay", "beta1", "beta2"):
        if not 0 <= getattr(s, name) < 1:
            raise SettingsError(f"--{name.replace('_', '-')} {getattr(s, name)}: must lie in [0, 1)")
    multiple = 2 ** (s.num_blocks - 1)
    for name in ("height", "width"):
        size, below = getattr(s, name), getattr(s, name) // multiple * multiple
        if size % multiple:
            nearest = " or ".join(str(n) for n in (below, below + multiple) if n)
            raise SettingsError(f"--{name} {size}: must be a multiple of {multiple}, as the generator "
                                f"halves it {s.num_blocks - 1} times; nearest: {nearest}")
    if s.batch_size * s.height * s.width == world_size * multiple ** 2:
        raise SettingsError(f"--batch-size {s.batch_size}: at {s.height}×{s.width} the first block would "
                            f"see one pixel in all, of which batch norm can take no variance; use more "
                            f"images or a larger size")
    if s.batch_size % world_size:
        raise SettingsError(f"--batch-size {s.batch_size}: must be a multiple of the number of "
                            f"processes, {world_size}, so that each gets the same share")
    unknown = set(s.metrics) - set(metrics.METRICS)
    if unknown:
        raise SettingsError(f"--metrics {' '.join(sorted(unknown))}: known are "
                            f"{' '.join(metrics.METRICS)}")


# ---- Several processes, one path -------------------------------------------------------------------


def start_processes():
    """Returns (rank, number of processes, device). Plain `python train.py` is rank 0 of 1."""
    on_gpu = torch.cuda.is_available()
    if "RANK" not in os.environ:                       # torchrun sets it
        return 0, 1, torch.device("cuda" if on_gpu else "cpu")
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    return dist.get_rank(), dist.get_world_size(), device


def random_stream(seed, purpose, step):
    """A CPU generator that is a function of its arguments alone: randomness without a history."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


# ---- The two updates -------------------------------------------------------------------------------

TERMS = ("loss_G", "loss_D_real", "loss_D_fake", "loss_labelmix")


def training_step(G, D, D_frozen, optimizer_G, optimizer_D, real, labels, noise, mask, weights,
                  lambda_labelmix):
    """One update of D and one of G on the same batch. Returns the four TERMS, detached, shape (4,).

    real (B, 3, H, W), labels (B, H, W), noise (B, 64), mask M (B, 1, H, W), weights α (N,).
    D_frozen is D without the wrapper that exchanges gradients between processes: in G's update D
    is a fixed judge. Both updates use the same x̂, drawn once: D learns from what G draws now, and G is
    judged by the D that has just learned.
    """
    fake = G(labels, noise)                                             # x̂ = G(z, t)

    # ---- D minimises Eq. 1 + λ·L_cons. It has no batch norm, so one pass over all images will do.
    x, x_hat = real, fake.detach()
    if lambda_labelmix > 0:
        mix = losses.labelmix(x, x_hat, mask)
        logits_real, logits_fake, logits_mix = D(torch.cat([x, x_hat, mix])).chunk(3)
        loss_labelmix = losses.labelmix_loss(logits_mix, logits_real, logits_fake, mask)
    else:
        logits_real, logits_fake = D(torch.cat([x, x_hat])).chunk(2)
        loss_labelmix = logits_real.new_zeros(())
    loss_D_real = losses.real_loss(logits_real, labels, weights)        # Eq. 1, first term
    loss_D_fake = losses.fake_loss(logits_fake)                         # Eq. 1, second term
    loss_D = loss_D_real + loss_D_fake + lambda_labelmix * loss_labelmix
    optimizer_D.zero_grad()
    loss_D.backward()
    optimizer_D.step()

    # ---- G minimises Eq. 2: every pixel of x̂ should be segmented as the class its label map names.
    D_frozen.requires_grad_(False)                     # saves computing gradients that nobody uses
    loss_G = losses.real_loss(D_frozen(fake), labels, weights)          # Eq. 2
    optimizer_G.zero_grad()
    loss_G.backward()
    optimizer_G.step()
    D_frozen.requires_grad_(True)

    return torch.stack([loss_G, loss_D_real, loss_D_fake, loss_labelmix]).detach()


# ---- The moving average of G -----------------------------------------------------------------------
#
# Two players that chase each other circle around the solution; the average of G's weights over the last
# steps lies nearer to it than any single step (Yaz et al., 2018). All images reported come from it.


@torch.no_grad()
def update_ema(ema, G, decay):
    """ema ← decay · ema + (1 − decay) · G, for the weights. What is no weight, refresh_ema sees to."""
    for average, current in zip(ema.parameters(), G.parameters()):
        average.lerp_(current, 1 - decay)


@torch.no_grad()
def refresh_ema(ema, G, label_batches, seed):
    """Give the averaged generator batch-norm statistics of its own, and end in eval mode.

    The statistics G collects are those of G's features, not of the average's; used with the average's
    weights they shift colours. So the averaged network draws a few training label maps and takes the
    mean of what it sees. Starting from G's buffers makes the result a function of weights and label maps
    alone: refreshing more often, or after a resume, changes nothing.
    """
    buffers = dict(G.named_buffers())
    for name, buffer in ema.named_buffers():
        buffer.copy_(buffers[name])                    # spectral norm's singular vectors, to start from
    for layer in ema.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None                      # plain mean over the batches
    ema.train()
    for i, labels in enumerate(label_batches):
        labels = labels.to(device=buffer.device, dtype=torch.int64)
        noise = torch.randn(len(labels), ema.noise_dim, generator=random_stream(seed, "ema", i))
        ema(labels, noise.to(buffer.device))
    ema.eval()
    if dist.is_initialized():
        for buffer in ema.buffers():
            dist.broadcast(buffer, src=0)


# ---- State, checkpoints ----------------------------------------------------------------------------


class State:
    """Everything that changes while training: two networks, the average, two optimizers, counters."""

    def __init__(self, s, num_classes, device):
        torch.manual_seed(s.seed)                      # initial weights, the only use of this generator
        def place(network):
            return network.to(device, memory_format=torch.channels_last)
        self.G = place(oasis.Generator(num_classes, s.noise_dim, s.channels, s.num_blocks,
                                       s.spade_hidden))
        self.D = place(oasis.Discriminator(num_classes, s.d_channels))
        for network in (self.G, self.D):
            oasis.scale_weights(network, s.init_gain / oasis.INIT_GAIN)
        self.ema = copy.deepcopy(self.G).requires_grad_(False)
        betas, fused = (s.beta1, s.beta2), device.type == "cuda"
        self.optimizer_G = torch.optim.Adam(self.G.parameters(), s.lr_g, betas, fused=fused)
        self.optimizer_D = torch.optim.Adam(self.D.parameters(), s.lr_d, betas, fused=fused)
        self.step, self.seconds, self.best = 0, 0.0, {}
        self.recent = torch.zeros(s.log_every, len(TERMS), device=device)   # losses since the last row

    def checkpoint(self, s, dataset):
        """A dictionary of tensors and plain values that torch.load(…, weights_only=True) reads."""
        return {
            "format": "oasis-run-1", "model": "oasis", "config": dataclasses.asdict(s),
            "dataset": {"preset": s.preset, "class_names": list(dataset.class_names),
                        "palette": dataset.palette.tolist(), "ignore_label": dataset.ignore_label,
                        "size": [s.height, s.width]},
            "generator_args": self.G.config, "discriminator_args": self.D.config,
            "generator": self.G.state_dict(), "discriminator": self.D.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer_G": self.optimizer_G.state_dict(), "optimizer_D": self.optimizer_D.state_dict(),
            "step": self.step, "seconds": self.seconds, "best": self.best, "recent": self.recent,
        }

    def load(self, checkpoint):
        """The reverse of checkpoint()."""
        for name in ("G", "D", "ema"):
            key = {"G": "generator", "D": "discriminator"}.get(name, name)
            getattr(self, name).load_state_dict(checkpoint[key])
        for name in ("optimizer_G", "optimizer_D"):
            getattr(self, name).load_state_dict(checkpoint[name])
        self.step, self.seconds, self.best = (checkpoint[k] for k in ("step", "seconds", "best"))
        if len(checkpoint["recent"]) == len(self.recent):      # else --log-every was changed
            self.recent.copy_(checkpoint["recent"])


def save_checkpoint(checkpoint, path):
    """Write beside the old file, then rename: at every moment one whole checkpoint lies at `path`."""
    partial = path.with_suffix(".tmp")
    try:
        with open(partial, "wb") as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as e:               # torch wraps some write errors in RuntimeError
        partial.unlink(missing_ok=True)
        reason = getattr(e, "strerror", None) or str(e).splitlines()[0]
        raise TrainingStopped(f"{path} could not be written ({reason}); the previous checkpoint is "
                              f"untouched, make room and go on with --resume") from e


def settings_of_resumed_run(s, given):
    """The run's own settings, with those changed that the command line names and that may change."""
    latest = Path(s.run_dir) / "latest.pt"
    if not latest.is_file():
        raise SettingsError(f"{s.run_dir} holds no latest.pt to resume from; leave out --resume to start")
    checkpoint = oasis.load_checkpoint(latest)
    resumed = Settings(**checkpoint["config"])
    for name in sorted(given - {"resume", "run_dir"}):
        old, new = getattr(resumed, name), getattr(s, name)
        if name in FIXED_ON_RESUME and new != old:
            raise SettingsError(f"--{name.replace('_', '-')} {new}: the run in {s.run_dir} was started "
                                f"with {old}, which a resumed run cannot change; start another --run-dir")
        setattr(resumed, name, new)
    resumed.run_dir = s.run_dir
    return resumed, checkpoint


# ---- What a run writes -----------------------------------------------------------------------------


def append_row(path, row):
    """One more line in a CSV file, with a header where the file is new."""
    new = not path.exists()
    with open(path, "a", newline="") as f:
        writer = csv.DictWriter(f, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def read_rows(path):
    """A CSV file as a list of {column: float}; [] where there is none."""
    if not path.exists():
        return []
    with open(path, newline="") as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]


def forget_rows_after(path, step):
    """A killed run may have logged beyond its last checkpoint; those steps are about to come again."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    path.unlink(missing_ok=True)
    for row in rows:
        append_row(path, row)


def log_losses(s, state, run_dir):
    """Mean of the losses since the last row -> log.csv. Stops the run where one is not finite.

    This is the one place where the CPU waits for the GPU's numbers; the steps between stay in flight.
    """
    count = (state.step - 1) % s.log_every + 1
    recent = state.recent[:count].cpu()
    for row, column in (~recent.isfinite()).nonzero().tolist():
        raise TrainingStopped(f"{TERMS[column]} is {recent[row, column]} at step "
                              f"{state.step - count + 1 + row}; {run_dir}/latest.pt is from before; "
                              f"try lower learning rates{', or fp32' * (s.precision != 'fp32')}")
    means = dict(zip(TERMS, recent.mean(0).tolist()))
    append_row(run_dir / "log.csv", {"step": state.step, "seconds": round(state.seconds, 1), **means})
    return means


@torch.no_grad()
def save_pictures(state, val_set, path, device, rows=6, noises=4):
    """A grid: each row a validation label map, its photograph, and what the average draws of it."""
    vectors = oasis.noise_from_seeds(range(noises), state.ema.noise_dim).to(device)
    grid = []
    for i in range(min(rows, len(val_set))):
        image, labels = val_set[i]
        drawn = state.ema(labels.to(device).expand(noises, -1, -1), vectors)
        grid.append([data.colourise(labels.numpy(), val_set.palette), *data.to_uint8(image[None]),
                     *data.to_uint8(drawn)])
    path.parent.mkdir(exist_ok=True)
    titles = ["label map", "real"] + [f"noise {k}" for k in range(noises)]
    data.picture_grid(grid, column_captions=titles).save(path)


def save_curves(run_dir):
    """curves.png: the four losses, and each score, over the steps."""
    log, scores = read_rows(run_dir / "log.csv"), read_rows(run_dir / "scores.csv")
    names = [n for n in (scores[0] if scores else {}) if n not in ("step", "seconds")]
    figure, axes = plt.subplots(1, 1 + len(names), figsize=(5 * (1 + len(names)), 3.5), squeeze=False)
    for term in TERMS:
        axes[0, 0].plot([r["step"] for r in log], [r[term] for r in log], label=term)
    axes[0, 0].legend()
    for axis, name in zip(axes[0, 1:], names):
        axis.plot([r["step"] for r in scores], [r[name] for r in scores], marker="o")
        axis.set_title(name)
    for axis in axes[0]:
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(run_dir / "curves.png", dpi=80)
    plt.close(figure)


# ---- The loop --------------------------------------------------------------------------------------


def open_data(s):
    """Training and validation set, checked; refuses what would end in an error an hour later."""
    size, root = (s.height, s.width), s.data_root or None
    train_set = data.open_dataset(s.preset, "train", size, root, seed=s.seed, subset=s.subset or None)
    val_set = data.open_dataset(s.preset, "val", size, root, seed=s.seed)
    if s.batch_size > len(train_set):
        raise SettingsError(f"--batch-size {s.batch_size}: the training set has only {len(train_set)} "
                            f"images; the batch may not be larger")
    problems = data.check_dataset(train_set, most=500) + data.check_dataset(val_set, most=500)
    if problems:
        raise data.DataError(problems[0] + f" (and {len(problems) - 1} more problems; python data.py "
                             f"lists all of them)" * (len(problems) > 1))
    return train_set, val_set


def training_batches(s, train_set, rank, world_size, start_step):
    """This process's share of every global batch from start_step on, without an end."""
    sampler = data.BatchSampler(len(train_set), s.batch_size, s.seed, rank, world_size, start_step)
    return iter(data.make_loader(train_set, sampler, s.workers))


def train(s, checkpoint=None, on_signal=None):
    """The whole run. `checkpoint`: the dictionary to go on from. Returns (final scores, Scorer).

    on_signal: a callable that is true once somebody asked the run to end (see main).
    """
    rank, world_size, device = start_processes()
    check_settings(s, world_size)
    train_set, val_set = open_data(s)
    state = State(s, train_set.num_classes, device)
    if checkpoint is not None:
        state.load(checkpoint)
    total_steps = s.steps or s.epochs * (len(train_set) // s.batch_size)
    G, D = state.G, state.D
    if world_size > 1:      # each process works on its share of the batch; gradients are averaged
        if device.type == "cuda":
            state.G = nn.SyncBatchNorm.convert_sync_batchnorm(state.G)
        G, D = (nn.parallel.DistributedDataParallel(
            network, device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False) for network in (state.G, state.D))

    run_dir = Path(s.run_dir)
    if rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        for name in ("log.csv", "scores.csv"):
            forget_rows_after(run_dir / name, state.step)
    scorer = metrics.Scorer(val_set, train_set, device, s.metrics, s.score_images or None,
                            s.segmenter or None, run_dir, workers=s.workers,
                            segmenter_steps=s.segmenter_steps or None)
    # The label maps of the first ten batches, whole batches on every process: see refresh_ema.
    first = training_batches(s, train_set, 0, 1, 0)
    label_batches = [next(first)[1].to(torch.int16) for _ in range(10)]
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=s.precision == "bf16")
    batches = training_batches(s, train_set, rank, world_size, state.step)
    bar = tqdm(initial=state.step, total=total_steps, unit="step", disable=rank > 0, smoothing=0.05)
    began, before, scores = time.monotonic(), state.seconds, {}

    for step in range(state.step + 1, total_steps + 1):
        real, labels = (t.to(device, non_blocking=True) for t in next(batches))
        real = real.contiguous(memory_format=torch.channels_last)
        # Noise is drawn for the whole batch and shared out, so it does not depend on world_size.
        # Class weights and LabelMix coins are those of each process's own images.
        noise = torch.randn(s.batch_size, s.noise_dim, generator=random_stream(s.seed, "noise", step))
        noise = noise[rank::world_size].to(device, non_blocking=True)
        coins = random_stream(s.seed, f"coins of {rank}/{world_size}", step)
        mask = losses.labelmix_mask(labels, train_set.num_classes, coins)
        weights = losses.class_weights(labels, train_set.num_classes, train_set.ignore_label)
        with autocast:
            terms = training_step(G, D, state.D, state.optimizer_G, state.optimizer_D, real, labels,
                                  noise, mask, weights, s.lambda_labelmix)
        update_ema(state.ema, state.G, s.ema_decay)

        state.step, state.recent[(step - 1) % s.log_every] = step, terms
        state.seconds = before + time.monotonic() - began
        stop = on_signal is not None and on_signal()
        report(s, state, scorer, val_set, label_batches, scores, bar, stop, step == total_steps)
        bar.update()
        if stop:
            raise TrainingStopped(f"stopped at step {step} as asked, everything saved; go on with: "
                                  f"python train.py --run-dir {s.run_dir} --resume")
    bar.close()
    return scores, scorer


def report(s, state, scorer, val_set, label_batches, scores, bar, stop, last):
    """Whatever is due after this step: log row, pictures, scores, checkpoint. Rank 0 writes."""
    run_dir, device = Path(s.run_dir), state.recent.device
    writes = not dist.is_initialized() or dist.get_rank() == 0

    def due(every):
        return last or state.step % every == 0

    save = stop or due(s.checkpoint_every)
    if writes and (save or due(s.log_every)):
        means = log_losses(s, state, run_dir)
        bar.set_postfix({k.removeprefix("loss_"): f"{v:.2f}" for k, v in means.items()})
    if save or due(s.picture_every) or due(s.score_every):
        refresh_ema(state.ema, state.G, label_batches, s.seed)
    if writes and due(s.picture_every):
        save_pictures(state, val_set, run_dir / "samples" / f"step_{state.step:06d}.png", device)
        save_curves(run_dir)
    if due(s.score_every):
        scores.clear()
        scores.update(scorer(state.ema, state.D))
        # The best checkpoint is the one with the lowest Fréchet distance, as for the paper's results.
        judge = "fid" if "fid" in scores else "fd_segmenter"
        better = judge in scores and scores[judge] < state.best.get(judge, math.inf)
        if better:
            state.best = {"step": state.step, **scores}
        if writes:
            append_row(run_dir / "scores.csv", {"step": state.step, **scores})
            bar.write(f"step {state.step}: " + ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))
            save_curves(run_dir)
            if better:
                save_checkpoint(state.checkpoint(s, val_set), run_dir / "best.pt")
    if writes and save:
        save_checkpoint(state.checkpoint(s, val_set), run_dir / "latest.pt")


def main(argv=None):
    """Command line. Exit code 0: done; 2: a mistake in the request; 1: the run had to stop."""
    s, given = parse_arguments(argv)
    checkpoint, asked_to_stop = None, []
    try:
        if s.resume:
            s, checkpoint = settings_of_resumed_run(s, given)
        elif (Path(s.run_dir) / "latest.pt").exists():
            raise SettingsError(f"{s.run_dir} already holds a run; go on with it by --resume, or choose "
                                f"another folder with --run-dir")
        s.data_root = str(Path(s.data_root).resolve()) if s.data_root else ""
        for number in (signal.SIGINT, signal.SIGTERM):       # finish the step, save, leave
            signal.signal(number, lambda *_: asked_to_stop.append(True))
        scores, scorer = train(s, checkpoint, lambda: bool(asked_to_stop))
        if os.environ.get("RANK", "0") == "0":
            print("\nScores of the averaged generator after the last step:")
            metrics.show(scorer, scores, per_class=False)
            print(f"\nDone: pictures, latest.pt and best.pt are in {s.run_dir}. Next: python sample.py")
    except (SettingsError, data.DataError, oasis.CheckpointError, metrics.MetricsError) as e:
        print(f"train.py: error: {e}", file=sys.stderr)
        sys.exit(2)
    except TrainingStopped as e:
        print(f"train.py: {e}", file=sys.stderr)
        sys.exit(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
