"""Train OASIS: the settings, the two updates, the moving average, the loop.

    python train.py                                          # drawn scenes, minutes on two cores
    python train.py --preset folder --data-root my_photos    # your own photographs and label maps
    python train.py --run-dir runs/toy --resume              # goes on where a run stopped
    torchrun --nproc_per_node=8 train.py --preset ade20k --data-root ADEChallengeData2016

A run folder holds latest.pt and best.pt (checkpoints), samples/ (pictures), log.csv (losses),
scores.csv, curves.png, segmenter.pt (the network that measures mIoU) and real_statistics.pt.

Noise and LabelMix coins are functions of (seed, step), batches of (seed, epoch), crops and flips of
(data_seed, epoch, image). So there is no random state to save, and a resumed run repeats what an
uninterrupted one does, bit for bit on a CPU. The number of processes changes rounding only.
"""

import argparse
import ast
import copy
import csv
import dataclasses
import hashlib
import inspect
import math
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from tqdm import tqdm

import data
import losses
import metrics
import oasis
from oasis import UserError, average_gradients, rank_and_size

# ---- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Settings:
    """Each field is an option, its text the --help. Defaults: the authors' model for ADE20K."""

    preset: str = "toy"
    """which data, with the settings that go with it"""
    data_root: str = ""
    """folder of the data set; toy needs none"""
    subset: str = ""
    """file with the names of the images to use, one per line"""
    height: int = 256
    """height of the images, a multiple of 2^(num_blocks-1)"""
    width: int = 256
    """width of the images, a multiple of 2^(num_blocks-1)"""
    workers: int = 8
    """processes that load images, for each GPU; their number changes no result"""

    channels: int = 64
    """width of the generator's last block; the first blocks are 16 times as wide"""
    num_blocks: int = 6
    """generator blocks"""
    spade_hidden: int = 128
    """width of the hidden layer inside each SPADE"""
    noise_dim: int = 64
    """length of the noise vector; 0: no noise"""
    d_channels: tuple = (128, 128, 256, 256, 512, 512)
    """widths of the discriminator's encoder blocks"""
    padding: str = "zeros"
    """the generator's padding: zeros as in the paper, or replicate, which avoids frames"""
    init_gain: tuple = (oasis.INIT_GAIN, oasis.INIT_GAIN)
    """Xavier gain of the initial weights, of G and of D; short trainings need more than 0.02"""

    epochs: int = 200
    """passes over the training images"""
    steps: int = 0
    """train so many steps instead of epochs (0: epochs)"""
    batch_size: int = 32
    """images per step, over all processes together"""
    lr_g: float = 1e-4
    """Adam's learning rate for the generator"""
    lr_d: float = 4e-4
    """Adam's learning rate for the discriminator"""
    beta2: float = 0.999
    """Adam's β2; β1 is 0"""
    lr_decay: float = 0.0
    """share of the steps, at the end, over which both learning rates fall to 0"""
    lambda_labelmix: float = 10.0
    """weight λ of the LabelMix loss; 0 leaves it out"""
    no_class_balance: bool = False
    """α = 1 for every class but unknown"""
    frozen_norm: float = 0.0
    """share of the steps, at the end, with the statistics of G's batch norm frozen"""
    ema_decay: float = 0.9999
    """decay of the generator's moving average"""
    precision: str = "fp32"
    """fp32, or bf16: networks in bfloat16; losses and statistics stay in float32"""
    compile: bool = False
    """torch.compile networks and losses: some minutes at the start, faster steps on a GPU"""
    seed: int = 0
    """decides initial weights, order of the images, noise and coins"""
    data_seed: int = 0
    """decides the data: drawn scenes, crops and flips"""

    run_dir: str = ""
    """folder of the run (default: runs/PRESET)"""
    resume: bool = False
    """go on with the run in --run-dir"""
    log_every: int = 100
    """steps between two rows of losses in log.csv"""
    picture_every: int = 1000
    """steps between two grids of pictures"""
    score_every: int = 5000
    """steps between two scorings"""
    checkpoint_every: int = 1000
    """steps between two checkpoints"""
    metrics: str = "miou,fd_segmenter,fid"
    """scores, separated by commas, or none; metrics.py --help explains them"""
    segmenter_steps: int = 0
    """training steps of the network behind mIoU (0: by image size); one that exists is kept"""

    def __post_init__(self):
        for name in ("lr_decay", "frozen_norm", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: a share is a number from 0 to 1")


# The paper prints the decay of the average (0.9999) and 64 noise channels, and follows "the
# experimental setting of (Park et al., 2019)" (Sec. 3). Learning rates, batch sizes, epochs and λ
# are those of the authors' code.
PRESETS = {
    "ade20k": {},
    "coco-stuff": dict(epochs=100),
    "cityscapes": dict(height=256, width=512, batch_size=20, lr_g=4e-4, lambda_labelmix=5.0,
                       ema_decay=0.999),        # of the released models; the paper says 0.9999
    "folder": dict(batch_size=8, ema_decay=0.999, workers=2),
    # Chosen for good pictures after minutes on two CPU cores: results/LOG.md.
    "toy": dict(height=64, width=64, workers=0, channels=16, num_blocks=4, spade_hidden=32,
                d_channels=(32, 64, 96, 128), padding="replicate", init_gain=(1.0, 5.0),
                steps=1800, batch_size=4, lr_g=2e-3, lr_d=5e-3, beta2=0.99, lr_decay=1.0,
                frozen_norm=0.5, lambda_labelmix=2.0, ema_decay=0.995, log_every=10,
                picture_every=100, score_every=600, checkpoint_every=100,
                metrics="miou,fd_segmenter,d_miou"),
}

# Only these may change when a run is resumed. The others define the run.
CHANGEABLE = ("data_root", "workers", "epochs", "steps", "lr_g", "lr_d", "lr_decay", "frozen_norm",
              "ema_decay", "lambda_labelmix", "precision", "compile", "run_dir", "resume",
              "log_every", "picture_every", "score_every", "checkpoint_every", "metrics",
              "segmenter_steps")


def parse_arguments(argv=None, settings_class=Settings, presets=PRESETS):
    """Command line -> settings: defaults and preset (--resume: the run's), then what is given."""
    changes = "\n".join(f"  {preset}: " + ", ".join(f"{k} {v}" for k, v in values.items())
                        for preset, values in presets.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"Defaults: ade20k's. What the presets change:\n{changes}",
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS)
    choices = {"preset": presets, "precision": ["fp32", "bf16"], "padding": ["zeros", "replicate"]}
    texts = field_texts(settings_class)
    for name, field in settings_class.__dataclass_fields__.items():
        how = dict(type=field.type, choices=choices.get(name))
        if field.type is bool:
            how = dict(action="store_true")
        elif field.type is tuple:
            how = dict(type=type(field.default[0]), nargs=2 if name == "init_gain" else "+")
        default = f" (default: {field.default})" if field.default else ""
        parser.add_argument("--" + name.replace("_", "-"), help=texts[name] + default, **how)
    given = vars(parser.parse_args(argv))
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    preset = given.get("preset", settings_class.preset)
    given = {"run_dir": f"runs/{preset}", **({"steps": 0} if "epochs" in given else {}), **given}
    for name in {"data_root", "subset"} & {k for k, v in given.items() if v}:
        given[name] = str(Path(given[name]).resolve())      # for --resume from any folder
    if not given.get("resume"):
        return settings_class(**{**presets[preset], "preset": preset, **given})
    own = oasis.load_checkpoint(Path(given["run_dir"], "latest.pt"))["settings"]
    for name in given.keys() - set(CHANGEABLE):
        if given[name] != own[name]:
            raise UserError(f"{name} {given[name]}: the run in {given['run_dir']} was started with "
                            f"{own[name]}, which cannot change")
    return settings_class(**{**own, **given})


def field_texts(settings_class):
    """{field: the text under it in the class}, of a dataclass and those it builds on."""
    texts = {}
    for c in reversed(settings_class.__mro__[:-1]):
        body = ast.parse(inspect.getsource(c)).body[0].body
        texts.update((field.target.id, text.value.value) for field, text in zip(body, body[1:])
                     if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr))
    return texts


# ---- Networks, optimizers, counters --------------------------------------------------------------


def make_networks(s, num_classes):
    """G and D as the settings s say, untrained."""
    return (oasis.Generator(num_classes, s.noise_dim, s.channels, s.num_blocks, s.spade_hidden,
                            s.padding), oasis.Discriminator(num_classes, s.d_channels))


class State:
    """What training changes: G, D, the average of G, two optimizers, counters, the rows so far."""

    PARTS = ("generator", "discriminator", "ema", "optimizer_G", "optimizer_D")
    VALUES = ("step", "seconds", "log", "scores", "frozen")

    def __init__(self, settings, networks, num_classes, device):
        torch.manual_seed(settings.seed)              # for the initial weights, and nothing else
        G, D = (network.to(device, memory_format=torch.channels_last)
                for network in networks(settings, num_classes))
        for network, gain in zip((G, D), settings.init_gain):
            oasis.scale_weights(network, gain / oasis.INIT_GAIN)
        self.generator, self.discriminator = G, D
        self.ema = copy.deepcopy(G).requires_grad_(False)
        # β1 = 0, no momentum: older gradients answer an opponent that has changed since.
        self.optimizer_G, self.optimizer_D = (
            torch.optim.Adam(network.parameters(), betas=(0.0, settings.beta2), fused=True)
            for network in (G, D))                    # set_learning_rates gives the rates
        self.step, self.seconds, self.frozen = 0, 0.0, False     # frozen: see freeze_statistics
        self.log, self.scores = [], []                # rows {"step": …, "loss_G": …} of the files

    def checkpoint(self, settings, dataset):
        """All of it as tensors and plain values, which torch.load(weights_only=True) reads."""
        G, D = self.generator, self.discriminator
        return {
            "format": "oasis-run-2", "settings": dataclasses.asdict(settings),
            "dataset": {"preset": settings.preset, "class_names": list(dataset.class_names),
                        "palette": dataset.palette.tolist(), "ignore_label": dataset.ignore_label,
                        "size": [settings.height, settings.width]},
            # "oasis.Generator" and its arguments: how oasis.build_generator makes it again.
            "generator_class": f"{type(G).__module__}.{type(G).__name__}",
            "generator_args": G.config,
            "discriminator_class": f"{type(D).__module__}.{type(D).__name__}",
            "discriminator_args": D.config,
            **{name: getattr(self, name).state_dict() for name in self.PARTS},
            **{name: getattr(self, name) for name in self.VALUES},
        }

    def load(self, checkpoint):
        """The reverse of checkpoint()."""
        for name in self.PARTS:
            getattr(self, name).load_state_dict(checkpoint[name])
        for name in self.VALUES:
            setattr(self, name, checkpoint.get(name, getattr(self, name)))     # older: no frozen


def start_or_resume(settings, state, train_set):
    """Load the checkpoint of a run that goes on; never write over a run. UserError."""
    path = Path(settings.run_dir, "latest.pt")
    if not settings.resume and path.exists():
        raise UserError(f"{settings.run_dir} holds a run already; go on with it by --resume, or "
                        f"choose another --run-dir")
    if settings.resume:
        checkpoint = oasis.load_checkpoint(path)
        about, names = checkpoint["dataset"], list(train_set.class_names)
        if (about["class_names"], about["ignore_label"]) != (names, train_set.ignore_label):
            raise UserError(f"{settings.data_root}: has other classes than the run {path}")
        if "optimizer_G" not in checkpoint:
            raise UserError(f"{path}: holds no optimizers, so the training cannot go on from it")
        state.load(checkpoint)


def set_learning_rates(state, settings, total_steps):
    """The rates of this step: constant, then falling to 0 over the last lr_decay of the steps.

    The paper keeps them constant (lr_decay 0). A short training ends the better for it.
    """
    left = (total_steps - state.step + 1) / total_steps
    factor = min(1, left / settings.lr_decay) if settings.lr_decay else 1
    state.optimizer_G.param_groups[0]["lr"] = settings.lr_g * factor
    state.optimizer_D.param_groups[0]["lr"] = settings.lr_d * factor


# ---- The moving average of G ---------------------------------------------------------------------
#
# G and D change against each other from step to step and do not come to rest. The average of G's
# weights over the last steps often paints better than G after any one of them (Yaz et al., 2018).
# All images that the paper reports come from it (Sec. 3).


@torch.no_grad()
def update_ema(ema, G, decay):
    """ema ← decay · ema + (1 − decay) · G, for the weights; the rest is refresh_ema's."""
    for average, current in zip(ema.parameters(), G.parameters()):
        average.lerp_(current, 1 - decay)


def batch_norms(network):
    """The layers with statistics, one inside every SPADE, as one module."""
    return torch.nn.ModuleList(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))


@torch.no_grad()
def measure_statistics(network, label_maps, seed):
    """Give batch norm the statistics of many images as one batch, and freeze them.

    The network, G or its average, paints training label maps with the noise of this seed. The rest
    of it is left in train mode. label_maps: this process's share of some batches, (B, H, W) each.
    """
    (rank, processes), device = rank_and_size(), next(network.parameters()).device
    for layer in batch_norms(network.train()):
        layer.reset_running_stats()
        layer.momentum = None                       # all batches count alike
    for i, labels in enumerate(label_maps):
        noise = torch.randn(len(labels) * processes, network.noise_dim,
                            generator=random_stream(seed, "average", i))[rank::processes]
        network(labels.to(device, torch.int64), noise.to(device))
    batch_norms(network).eval()


def refresh_ema(ema, G, label_maps, seed):
    """Measure the average's own statistics; once G's are frozen, copy those. Ends in eval mode.

    With the average's weights, G's statistics would shift colours, until they are frozen: then G's
    weights are trained for them, and the average follows. The result depends on what a checkpoint
    holds alone: refreshing more often changes nothing.
    """
    for buffer, current in zip(ema.buffers(), G.buffers()):
        buffer.copy_(current)                       # spectral norm's vectors, too
    if batch_norms(G)[0].training:
        measure_statistics(ema, label_maps, seed)
    ema.eval()


def freeze_statistics(state, settings, total_steps, label_maps):
    """In the last steps (frozen_norm) G trains with the batch-norm statistics of test time.

    Ours, for small batches. Normalised by their own statistics, four images cannot be far from
    their mean. At test time one image can, and is painted in colours that D never saw.
    """
    freeze = state.step > total_steps - int(settings.frozen_norm * total_steps)
    if freeze and not state.frozen:
        measure_statistics(state.generator, label_maps, settings.seed)
    state.frozen = freeze
    batch_norms(state.generator).train(not freeze)  # in every step: a resumed G is in train mode


def check_weights(state):
    """Before a checkpoint: all numbers are finite, and the same in every process. UserError."""
    for network in (state.generator, state.discriminator, state.ema):
        checksums = metrics.gather(
            sum(v.double().abs().sum() for v in network.state_dict().values()).item())
        if not math.isfinite(sum(checksums)) or len(set(checksums)) > 1:
            raise UserError(f"after step {state.step} weights are not finite, or not the same in "
                            f"all processes: checksums {checksums}. The last checkpoint is from "
                            f"before; lower learning rates may help")


# ---- What a run draws and writes -----------------------------------------------------------------


def random_stream(seed, purpose, step):
    """A CPU generator of random numbers that depend on these arguments alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def draw(settings, step, images, labels, dataset, device, stop):
    """Draw noise and coins -> (the batch of training_step, on the device; whether to stop).

    Noise and coins are drawn for the whole batch; each process takes those of its own images.
    Class weights are counted over all processes. The wish to stop travels in the same message.
    """
    rank, processes = rank_and_size()
    own, size, N = slice(rank, None, processes), settings.batch_size, dataset.num_classes
    noise = torch.randn(size, settings.noise_dim,
                        generator=random_stream(settings.seed, "noise", step))[own]
    coins = torch.randint(0, 2, (size, N), generator=random_stream(settings.seed, "coins", step))
    message = torch.cat([losses.count_classes(labels, N), torch.tensor([int(stop)])])
    if dist.is_initialized():
        dist.all_reduce(message)                    # between the CPUs, while the GPUs work
    weights = losses.class_weights(labels, N, dataset.ignore_label, counts=message[:-1])
    if settings.no_class_balance:
        weights = (weights > 0).to(weights)         # "unknown" keeps its 0
    # Channels-last is the order in which convolutions are fastest. dtype: tests run in float64.
    images = images.to(device, noise.dtype, non_blocking=True, memory_format=torch.channels_last)
    labels = labels.to(device, non_blocking=True)
    mask = losses.labelmix_mask(labels, N, coins=coins[own])
    return (images, labels, noise.to(device), mask, weights.to(device)), bool(message[-1])


def training_batches(settings, train_set, start_step=0):
    """This process's share of every batch from start_step on, without an end."""
    sampler = data.BatchSampler(len(train_set), settings.batch_size, settings.seed,
                                *rank_and_size(), start_step)
    return iter(data.make_loader(train_set, sampler, settings.workers))


def save_curves(rows, path):
    """A panel for each loss and each score over the steps, that of real images dashed -> png."""
    names = list(dict.fromkeys(k for row in rows for k in row if k not in ("step", "seconds")))
    panels = [name for name in names if name.startswith("loss_") or not name.endswith("_real")]
    figure = Figure(figsize=(3.2 * len(panels), 3))
    axes = figure.subplots(1, len(panels), squeeze=False)
    for name in names:
        panel = name if name in panels else name.removesuffix("_real")
        axis = axes[0, panels.index(panel)]
        steps, values = zip(*((row["step"], row[name]) for row in rows if name in row))
        axis.plot(steps, values, "-" if name in panels else "--")
        axis.set_title(panel)
    with data.write_whole(path) as partial:
        figure.savefig(partial, dpi=80, format="png", bbox_inches="tight")


def last_is_best(rows):
    """Is the last scoring the best? By the first of these that was measured; the paper's is FID."""
    for name, sign in (("fid", 1), ("miou", -1), ("fd_segmenter", 1), ("d_miou", -1)):
        if name in rows[-1]:
            return all(sign * rows[-1][name] <= sign * row[name] for row in rows if name in row)


def save_run(settings, state, dataset, names):
    """Write the checkpoint under each of the names, log.csv, scores.csv and curves.png."""
    run_dir = Path(settings.run_dir)
    for name in names:
        with data.write_whole(run_dir / name) as partial:
            torch.save(state.checkpoint(settings, dataset), partial)
    for name, rows in (("log.csv", state.log), ("scores.csv", state.scores)):
        # Rows may have different columns, as --metrics may change on resume.
        columns = dict.fromkeys(column for row in rows for column in row)
        with data.write_whole(run_dir / name) as partial, open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    if state.log or state.scores:
        save_curves(state.log + state.scores, run_dir / "curves.png")


@torch.no_grad()
def save_pictures(ema, val_set, path, device, rows=6, noises=4):
    """A grid: in each row a validation label map, its photograph, what the average paints of it."""
    noise, grid = oasis.noise_from_seeds(range(noises), ema.noise_dim).to(device), []
    for image, labels in (val_set[i] for i in range(min(rows, len(val_set)))):
        painted = ema(labels.to(device).expand(noises, -1, -1), noise)
        grid.append([val_set.palette[labels], *data.to_uint8(image[None]),
                     *data.to_uint8(painted)])
    captions = ["label map", "real", *(f"noise {k}" for k in range(noises))]
    with data.write_whole(path) as partial:
        data.picture_grid(grid, captions, max(1, 192 // val_set.size[0])).save(partial, "png")


# ---- One step ------------------------------------------------------------------------------------


def training_step(G, D, optimizer_G, optimizer_D, batch, settings):
    """One update of D and one of G, on the same batch and the same generated images.

    batch: images x (B, 3, H, W), label maps t (B, H, W), noise z (B, 64), LabelMix mask M
    (B, 1, H, W), class weights α (N,). Returns the loss terms, {name: scalar}.
    """
    real, labels, noise, mask, weights = batch
    autocast = torch.autocast(real.device.type, torch.bfloat16, settings.precision == "bf16")

    # ---- D minimises Eq. 1 + λ · L_cons. x̂ is detached: this loss does not teach G.
    with autocast:
        fake = G(labels, noise)                                         # x̂ = G(z, t)
        images = [real, fake.detach()]
        if settings.lambda_labelmix > 0:
            images.append(losses.labelmix(*images, mask))
        logits = D(torch.cat(images))                                   # (3B, N+1, H, W)
        loss_real, loss_fake, loss_labelmix = losses.discriminator_losses(
            logits, labels, weights, mask)
    optimizer_D.zero_grad()
    (loss_real + loss_fake + settings.lambda_labelmix * loss_labelmix).backward()
    average_gradients(D)
    optimizer_D.step()

    # ---- G minimises Eq. 2: the D just updated should read t from the same x̂. (The authors' code
    # updates G first and paints a second x̂ for D. One x̂ for both saves a pass through G; trained
    # either way, the drawn scenes come out alike.)
    D.requires_grad_(False)                         # spares the gradients of D, which nobody needs
    with autocast:
        loss_G = losses.real_loss(D(fake), labels, weights)
    optimizer_G.zero_grad()
    loss_G.backward()
    average_gradients(G)
    optimizer_G.step()
    D.requires_grad_(True)

    terms = dict(loss_G=loss_G, loss_D_real=loss_real, loss_D_fake=loss_fake,
                 loss_labelmix=loss_labelmix)
    return {name: term.detach() for name, term in terms.items()}


# ---- The loop ------------------------------------------------------------------------------------


def train(settings, networks=make_networks, step=training_step):
    """A whole run, from its start or from its checkpoint. Returns the last scores, None if stopped.

    networks(settings, num_classes) -> (G, D), and step, called like training_step: a variant of
    the method, such as extras/spade.py, hands in its own.
    """
    s, run_dir = settings, Path(settings.run_dir)
    device, (rank, _) = oasis.start_processes(), rank_and_size()
    if s.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(
            including_emulation=False):
        raise UserError("--precision bf16: this GPU cannot compute in bfloat16; use fp32")
    torch.backends.cudnn.benchmark = True       # all steps have one shape: try what is fastest
    train_set, val_set = (data.open_dataset(
        s.preset, split, (s.height, s.width), s.data_root or None, seed=s.data_seed,
        subset=s.subset or None) for split in ("train", "val"))
    # An unreadable file, met in the middle, would cost hours: look at 500 of each set now.
    for problem in data.check_dataset(train_set, most=500) + data.check_dataset(val_set, most=500):
        raise UserError(f"{problem}; python data.py finds all such problems")
    state = State(s, networks, train_set.num_classes, device)
    start_or_resume(s, state, train_set)
    G, D, ema = state.generator, state.discriminator, state.ema
    if s.compile:       # in place: checkpoints keep their names. One graph per batch size
        G.compile(dynamic=False)
        D.compile(dynamic=False)
        for name in ("discriminator_losses", "real_loss"):
            setattr(losses, name, torch.compile(getattr(losses, name), dynamic=False))
    chosen = [] if s.metrics == "none" else s.metrics.split(",")
    scorer = metrics.Scorer(val_set, train_set, device, chosen, run_dir=run_dir, workers=s.workers,
                            segmenter_steps=s.segmenter_steps or None)
    label_maps = [labels.to(torch.uint8) for _, (_, labels) in zip(
        range(max(10, 128 // s.batch_size)), training_batches(s, train_set))]
    batches = training_batches(s, train_set, state.step)
    total_steps = s.steps or s.epochs * (len(train_set) // s.batch_size)
    signals, stop, scores = [], False, {}
    for number in (signal.SIGINT, signal.SIGTERM):      # Ctrl-C and SIGTERM wait for the step's end
        signal.signal(number, lambda number, frame: signals.append(number))
    began = time.monotonic() - state.seconds            # it goes on from the checkpoint's
    bar = tqdm(initial=state.step, total=total_steps, unit="step", disable=rank > 0, smoothing=0.05)

    while state.step < total_steps and not stop:
        state.step += 1

        def due(every):
            return state.step % every == 0 or state.step == total_steps

        # ---- Draw images, noise, coins, class weights.
        batch, stop = draw(s, state.step, *next(batches), train_set, device,
                           bool(signals) and state.step < total_steps)
        set_learning_rates(state, s, total_steps)
        freeze_statistics(state, s, total_steps, label_maps)

        # ---- Update D and G, then the average of G.
        terms = step(G, D, state.optimizer_G, state.optimizer_D, batch, s)
        update_ema(ema, G, s.ema_decay)
        state.seconds = time.monotonic() - began

        # ---- Log the losses of this step, as means over the processes.
        if due(s.log_every):
            values = oasis.mean_over_processes(torch.stack(list(terms.values()))).tolist()
            state.log.append({"step": state.step, "seconds": round(state.seconds, 1),
                              **dict(zip(terms, values))})
            bar.set_postfix({k.removeprefix("loss_"): f"{v:.2f}" for k, v in zip(terms, values)})

        # ---- Pictures and scores are of the average; checkpoints hold it, too.
        save, score = stop or due(s.checkpoint_every), bool(chosen) and due(s.score_every)
        if save or score or due(s.picture_every):
            refresh_ema(ema, G, label_maps, s.seed)
            check_weights(state)
        if rank == 0 and due(s.picture_every):
            save_pictures(ema, val_set, run_dir / f"samples/step_{state.step:06d}.png", device)
        if score:
            with torch.compiler.set_stance("force_eager"):      # D's graphs are for training
                scores = scorer(ema, D)
            state.scores.append({"step": state.step, **scores})
            if rank == 0:
                bar.write(f"step {state.step}: "
                          + ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))
        better = score and last_is_best(state.scores)
        if rank == 0 and (save or better):
            save_run(s, state, val_set, ["best.pt"] * better + ["latest.pt"] * save)
        bar.update()
    bar.close()
    metrics.gather(0)                               # wait until rank 0 has saved
    if rank == 0 and scores and not stop:
        metrics.show(scorer, scores)
    return None if stop else scores


@oasis.exit_in_words("train.py")
def main(argv=None):
    """The command line. Exit code 0: done; 1: stopped by a signal; 2: a mistake of the user."""
    scores = train(settings := parse_arguments(argv))
    if rank_and_size()[0] == 0:
        print(f"Stopped, all is saved; go on by --run-dir {settings.run_dir} --resume"
              if scores is None else f"Done: {settings.run_dir}. Next: python sample.py")
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(int(scores is None))


if __name__ == "__main__":
    main()
