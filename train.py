"""Train OASIS.

    python train.py                                          # toy.py's scenes, some minutes
    python train.py --preset small --data-root my_photos     # your own photographs, small networks
    python train.py --run-dir runs/toy --resume              # goes on where a run stopped
    torchrun --nproc_per_node=8 train.py --preset ade20k --data-root ADEChallengeData2016

Read from the top: the settings, one step, the average of G, the loop. That is the method. What
follows serves the loop: the batch, the state of a run and its files, the command line.

A run folder holds latest.pt and best.pt (checkpoints; best by FID, else fd_segmenter), samples/
(pictures), log.csv (losses), scores.csv, curves.png, segmenter.pt (the network of mIoU).
"""

import argparse
import copy
import csv
import dataclasses
import hashlib
import math
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

import data
import losses
import metrics
import oasis
import sample
from data import UserError
from processes import (BatchNorm, any_stop, average_gradients, catch_signals, fast_precision,
                       gather, mean_over_processes, rank_and_size, start_processes)

# ---- Settings ------------------------------------------------------------------------------------


def option(default, text, least=None, most=math.inf):
    """A field of Settings: an option of the command line, its --help, the range of its numbers."""
    return dataclasses.field(default=default, metadata=dict(help=text, least=least, most=most))


@dataclasses.dataclass
class Settings:
    """The values here are the authors' for ADE20K. A preset, by default toy, changes some."""

    preset: str = option("toy", "which data, with the settings that go with it")
    data_root: str = option("", "folder of the data set; toy needs none")
    height: int = option(256, "height of the images, a multiple of 2^(num_blocks-1)", 1)
    width: int = option(256, "width of the images, a multiple of 2^(num_blocks-1)", 1)
    workers: int = option(8, "processes that load images, for each GPU; changes no result", 0)

    channels: int = option(64, "width of G's last block; the first is up to 16 times as wide", 1)
    num_blocks: int = option(6, "blocks of G", 1, 12)
    spade_hidden: int = option(128, "width of the hidden layer inside each SPADE", 1)
    noise_dim: int = option(64, "channels of the noise; 0: no noise", 0)
    pixel_noise: int = option(0, "how many noise channels are drawn anew at every pixel (ours)", 0)
    d_channels: tuple = option((128, 128, 256, 256, 512, 512), "widths of D's encoder blocks", 2)
    padding: str = option("zeros", "G's padding: zeros; or replicate (ours), against frames")
    init_gain: tuple = option((0.02, 0.02), "Xavier gain of the initial weights, of G and of D", 0)

    epochs: int = option(200, "passes over the training images", 1)
    steps: int = option(0, "train this many steps instead of epochs (0: epochs)", 0)
    batch_size: int = option(32, "images per step, over all processes together", 1)
    lr_g: float = option(1e-4, "Adam's learning rate for G", 0)
    lr_d: float = option(4e-4, "Adam's learning rate for D", 0)
    beta2: float = option(0.999, "Adam's beta2; beta1 is 0", 0, 0.999999)
    lr_decay: float = option(0.0, "share of the steps, at the end, in which both rates fall", 0, 1)
    lambda_labelmix: float = option(10.0, "weight of the LabelMix loss; 0 leaves it out", 0)
    no_class_balance: bool = option(False, "class weight 1 for every class but unknown")
    frozen_norm: float = option(0.0, "share of steps, at the end, with G's batch norm fixed", 0, 1)
    ema_decay: float = option(0.9999, "decay of the average of G", 0, 1)
    precision: str = option("fp32", "fp32 (GPU: TF32); or bf16, slow on CPUs without it")
    compile: bool = option(False, "torch.compile: faster after a slow start; repeat at --resume")
    seed: int = option(0, "decides initial weights, order of images, noise and coins", 0)
    data_seed: int = option(0, "decides the data: drawn scenes, crops and flips", 0)

    run_dir: str = option("", "folder of the run; empty: runs/PRESET")
    resume: bool = option(False, "go on with the run in --run-dir, with its settings but --compile")
    log_every: int = option(100, "steps between two rows of losses in log.csv", 1)
    picture_every: int = option(5000, "steps between two grids of pictures", 1)
    score_every: int = option(5000, "steps between two scorings", 1)
    checkpoint_every: int = option(5000, "steps between two checkpoints", 1)
    metrics: str = option("miou,fd_segmenter,fid", "scores of metrics.py, with commas, or none")
    segmenter_steps: int = option(0, "training steps of mIoU's network (0: by image size)", 0)

    def __post_init__(self):
        check_settings(self)


# The paper prints the decay of the average (0.9999) and 64 noise channels, and follows "the
# experimental setting of (Park et al., 2019)" (Sec. 3). In the first three presets learning rates,
# batch sizes, epochs and λ are those of the authors' code. toy and small have few steps, and so
# other settings; results/LOG.md explains each. fd_segmenter, d_miou: scores, see metrics.METRICS.
# What a larger init_gain does to layers with and without spectral norm: see scale_weights.
SHORT = dict(padding="replicate", pixel_noise=16, init_gain=(1.0, 5.0), batch_size=4, beta2=0.99,
             workers=0, log_every=10, picture_every=100, checkpoint_every=100,
             metrics="miou,fd_segmenter,d_miou")
PRESETS = {
    "ade20k": {},
    "coco-stuff": dict(epochs=100),
    "cityscapes": dict(height=256, width=512, batch_size=20, lr_g=4e-4, lambda_labelmix=5.0,
                       ema_decay=0.999),        # of the released models; the paper has 0.9999
    # One's own data, or ADE20K-outdoors: "folder", for one GPU; "small", with small networks.
    "folder": dict(batch_size=8, ema_decay=0.999, workers=2, picture_every=1000,
                   checkpoint_every=1000),
    "small": dict(SHORT, height=96, width=128, channels=24, num_blocks=5, spade_hidden=48,
                  d_channels=(48, 96, 128, 192, 256), steps=6000, lr_g=1e-3, lr_d=3e-3,
                  lr_decay=0.75, frozen_norm=0.25, lambda_labelmix=5.0, ema_decay=0.998,
                  score_every=1000, precision=fast_precision()),    # bf16 if it is fast here
    "toy": dict(SHORT, height=64, width=64, channels=16, num_blocks=4, spade_hidden=32,
                d_channels=(32, 64, 96, 128), steps=1800, lr_g=2e-3, lr_d=5e-3, lr_decay=1.0,
                frozen_norm=0.5, lambda_labelmix=2.0, ema_decay=0.995, score_every=600),
}


# ---- One step ------------------------------------------------------------------------------------


def training_step(G, D, optimizer_G, optimizer_D, batch, settings):
    """One update of D, then one of G, on the same x̂ (the authors' code paints one for each).

    batch: images x (B, 3, H, W), label maps t (B, H, W), noise z (B, 64) or (B, 64, H, W),
    LabelMix mask M (B, 1, H, W), class weights α (N,). Returns the loss terms, {name: scalar}.
    """
    real, labels, noise, mask, weights = batch
    autocast = torch.autocast(real.device.type, torch.bfloat16, settings.precision == "bf16")

    # ---- D minimises Eq. 1 + λ · L_cons. x̂ is detached: this loss does not teach G.
    with autocast:
        fake = G(labels, noise)                                         # x̂ = G(z, t)
        images = [real, fake.detach()]
        if settings.lambda_labelmix > 0:
            images.append(losses.labelmix(real, fake.detach(), mask))
        logits = D(torch.cat(images))                                   # (3B, N+1, H, W)
        loss_real, loss_fake, loss_labelmix = losses.discriminator_losses(
            logits, labels, weights, mask)
    optimizer_D.zero_grad()
    (loss_real + loss_fake + settings.lambda_labelmix * loss_labelmix).backward()
    average_gradients(D)
    optimizer_D.step()

    # ---- G minimises Eq. 2: the D just updated should read t from the same x̂, painted only once.
    D.requires_grad_(False)                     # spares the gradients of D's weights, not needed
    with autocast:
        loss_G = losses.real_loss(D(fake), labels, weights)
    optimizer_G.zero_grad()
    loss_G.backward()
    average_gradients(G)
    optimizer_G.step()
    D.requires_grad_(True)

    return {"loss_G": loss_G.detach(), "loss_D_real": loss_real.detach(),
            "loss_D_fake": loss_fake.detach(), "loss_labelmix": loss_labelmix.detach()}


def set_learning_rates(state, settings):
    """Constant, as in the authors' code; or (ours) falling over the last lr_decay of the steps."""
    left = (state.total_steps - state.step + 1) / state.total_steps
    factor = min(1, left / settings.lr_decay) if settings.lr_decay else 1
    state.optimizer_G.param_groups[0]["lr"] = settings.lr_g * factor
    state.optimizer_D.param_groups[0]["lr"] = settings.lr_d * factor


# ---- The average of G ----------------------------------------------------------------------------
#
# G and D change against each other and do not come to rest. An average of G's weights, mostly of
# late steps, paints better than G itself (Yaz et al., 2018). The paper's models use it (Sec. 3).
#
# At test time batch norm uses statistics, a mean and a variance measured in training. G's would not
# fit averaged weights. So before each use the average paints from training label maps, and its own
# are measured, as in the authors' code (torch.optim.swa_utils.update_bn does something similar).
# Late in a short training (ours) G's statistics are measured once and fixed. From then on the
# average uses them, too: G's weights learn to work with these constants, and the weights of the
# average follow, some 1/(1 − decay) steps behind (toy: 200).
#
#     update_average       in every step: the weights of the average follow G's
#     prepare_average      before the average is used: gives statistics to it, to be saved with it
#     freeze_statistics    late in a short training: measures G's statistics once, and fixes them
#
# Statistics in use with the toy preset (the paper's presets: in all steps as here in 1 … 900):
#
#     step            1 … 900                    901                       902 … 1,800
#     G               those of each batch        measured, then fixed      fixed
#     the average     measured before each use   copied before each use    copied before each use


@torch.no_grad()
def update_average(average, G, decay):
    """average ← decay · average + (1 − decay) · G, for the weights."""
    torch._foreach_lerp_(list(average.parameters()), list(G.parameters()), 1 - decay)


def prepare_average(average, G, label_maps, settings):
    """Give statistics to the average: G's if these are fixed, else its own, measured anew."""
    # Buffers: the statistics, and spectral norm's u and v, which each pass in train() mode refines.
    for own, of_G in zip(average.buffers(), G.buffers()):
        own.copy_(of_G)
    if any(layer.training for layer in batch_norms(G)):     # G's statistics are not fixed yet
        measure_statistics(average, label_maps, settings)
    average.eval()


def freeze_statistics(G, state, settings, label_maps):
    """From the step state.first_frozen on (toy: 901; paper: never), G's statistics are fixed.

    In training, each image of a small batch pulls the batch's mean towards itself. At test time the
    mean is fixed: an image may lie farther from it than any in training, and get colours that D
    never saw. With fixed statistics G trains as it will be used, and D can correct such colours.
    """
    if state.step == state.first_frozen:
        measure_statistics(G, label_maps, settings)
    batch_norms(G).train(state.step < state.first_frozen)


@torch.no_grad()
def measure_statistics(network, label_maps, settings):
    """Paint (no autocast, as at test time); keep mean and variance over all pixels of all batches.

    label_maps: at least ten batches, (B, H, W) each, of this process; see first_label_maps.
    """
    device = next(network.parameters()).device
    network.train()             # each batch is normalised by itself; eval() would use what was kept
    for layer in batch_norms(network):
        layer.measure_anew()    # see processes.BatchNorm
    for i, labels in enumerate(label_maps):             # the same maps and noise in every call
        noise = training_noise(settings, network, "statistics", i)
        network(labels.to(device, torch.int64), noise.to(device))
    batch_norms(network).eval()


def batch_norms(network):
    """The batch-norm layers, one inside every SPADE, as one module."""
    layers = [m for m in network.modules() if isinstance(m, BatchNorm)]
    return torch.nn.ModuleList(layers)


# ---- The loop ------------------------------------------------------------------------------------


def make_networks(settings, num_classes):
    """G and D of the sizes that the settings say, untrained; State rescales them to init_gain."""
    s = settings
    G = oasis.Generator(num_classes, s.noise_dim, s.channels, s.num_blocks, s.spade_hidden,
                        s.padding, s.pixel_noise)
    return G, oasis.Discriminator(num_classes, s.d_channels)


def train(settings, make_networks=make_networks, update=training_step):
    """A whole run, from its start or from its checkpoint. Returns the last scores; None if stopped.

    make_networks(settings, num_classes) returns (G, D); update is called like training_step. A
    variant of the method, such as extras/spade.py, hands in both.
    """
    # ---- Open the data and the run. state.perfect, for curves.png: see losses_of_perfect_G.
    device = start_processes()
    train_set, val_set = open_datasets(settings)
    label_maps = first_label_maps(settings, train_set)
    scorer = open_scorer(settings, train_set, val_set, device)
    state = start_or_resume(settings, make_networks, train_set, device)
    state.perfect = losses_of_perfect_G(update, settings, label_maps, train_set)
    G, D, average = state.generator, state.discriminator, state.ema
    batches = training_batches(settings, train_set, state, device)
    stop = False

    with catch_signals() as signals, state.progress_bar() as bar:
        while state.step < state.total_steps and not stop:
            # ---- Take a batch (see training_step), set the rates and the kind of batch norm.
            state.step += 1
            batch = next(batches)
            set_learning_rates(state, settings)
            freeze_statistics(G, state, settings, label_maps)

            # ---- Update D and G, then the average of G.
            terms = update(G, D, state.optimizer_G, state.optimizer_D, batch, settings)
            update_average(average, G, settings.ema_decay)

            # ---- Log the losses if due: every so many steps and in the last. Ctrl-C ends the loop.
            stop = any_stop(signals)
            if state.due(settings.log_every):
                log_losses(state, terms, bar)

            # ---- Prepare the average, if it is used now.
            paint, save = state.due(settings.picture_every), state.due(settings.checkpoint_every)
            score = scorer is not None and state.due(settings.score_every)
            if paint or score or save or stop:
                prepare_average(average, G, label_maps, settings)
                check_finite(state)

            # ---- Paint, score, save.
            if paint:
                save_pictures(state, settings, val_set)
            if score:
                log_scores(state, scorer(average, D), bar)
            if save or score or stop:
                save_run(settings, state, val_set, latest=save or stop, scored=score)
            bar.update()
    return finish(state, scorer)


# ==================================================================================================
# The method ends here. What follows serves the loop.
# ==================================================================================================

# ---- The batch of a step -------------------------------------------------------------------------
#
# Noise and coins are functions of (seed, purpose, step), batches of (seed, epoch), crops and flips
# of (data_seed, epoch, image). So there is no random state to save. A resumed run repeats what an
# uninterrupted one does: bit for bit on a CPU with the same number of threads. The number of
# processes changes rounding only.


def random_stream(seed, purpose, step):
    """A CPU generator of random numbers that depend on these arguments alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def training_noise(settings, G, purpose, step):
    """The noise of a batch of G, for this process's share of it. Each image has its own seed."""
    rank, processes = rank_and_size()
    numbers = random_stream(settings.seed, purpose, step)
    seeds = torch.randint(2 ** 62, (settings.batch_size,), generator=numbers)
    size = settings.height, settings.width
    return oasis.draw_noise(seeds[rank::processes], size, G.noise_dim, G.pixel_noise)


def training_batches(settings, train_set, state, device):
    """The batches of training_step from the state's next step on, without an end."""
    step = state.step
    for images, labels in load_batches(settings, train_set, state.step):
        step += 1
        noise = training_noise(settings, state.generator, "noise", step)
        yield prepare_batch(settings, step, images, labels, noise, train_set, device)


def load_batches(settings, train_set, start_step=0):
    """This process's share (images, labels) of every batch from start_step on, without an end."""
    rank, processes = rank_and_size()
    sampler = data.BatchSampler(len(train_set), settings.batch_size, settings.seed, rank, processes,
                                start_step)
    return iter(data.make_loader(train_set, sampler, settings.workers))


def prepare_batch(settings, step, images, labels, noise, dataset, device):
    """This process's share of a batch -> (real, labels, noise, mask, weights), on the device.

    Coins are drawn for the whole batch, and class weights are counted over all processes.
    """
    rank, processes = rank_and_size()
    num_classes = dataset.num_classes
    counts = losses.count_classes(labels, num_classes)
    if dist.is_initialized():
        dist.all_reduce(counts)                     # between the CPUs, while the GPUs work
    weights = losses.class_weights(labels, num_classes, dataset.ignore_label, counts=counts)
    if settings.no_class_balance:
        weights = (weights > 0).to(weights)         # "unknown" keeps its 0
    coins = torch.randint(0, 2, (settings.batch_size, num_classes),
                          generator=random_stream(settings.seed, "coins", step))
    mask = losses.labelmix_mask(labels, num_classes, coins=coins[rank::processes])
    # Tests compute in float64: the default type decides. Channels-last is the order in memory in
    # which convolutions are fastest.
    images = send(images.to(torch.get_default_dtype()), device)
    images = images.contiguous(memory_format=torch.channels_last)
    noise = send(noise.to(torch.get_default_dtype()), device)
    return images, send(labels, device), noise, send(mask, device), send(weights, device)


def send(tensor, device):
    """The tensor on the device. From pinned memory it is sent while the CPU goes on."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def first_label_maps(settings, train_set):
    """Label maps for measure_statistics: ten batches, more where batches are small."""
    batches = load_batches(settings, train_set)
    maps = []
    for _ in range(max(10, 128 // settings.batch_size)):
        images, labels = next(batches)
        maps.append(labels.to(torch.uint8))
    return maps


# ---- The start of a run --------------------------------------------------------------------------


def open_datasets(settings):
    """The training set and the validation set. 500 files of each are read now, not after hours."""
    both = []
    for split in ("train", "val"):
        dataset = data.open_dataset(settings.preset, split, (settings.height, settings.width),
                                    settings.data_root or None, seed=settings.data_seed)
        for problem in data.check_dataset(dataset, most=500):
            raise UserError(f"{problem}; python data.py finds all such problems")
        both.append(dataset)
    if rank_and_size()[0] == 0:
        for warning in data.list_warnings(both[0]):     # such as a class that never occurs
            print(warning, file=sys.stderr)
    return both


def open_scorer(settings, train_set, val_set, device):
    """The metrics.Scorer of the settings' scores; None without scores."""
    if settings.metrics == "none":
        return None
    return metrics.Scorer(val_set, train_set, device, settings.metrics.split(","),
                          run_dir=settings.run_dir, workers=settings.workers,
                          segmenter_steps=settings.segmenter_steps or None)


def losses_of_perfect_G(update, settings, label_maps, train_set):
    """Where the losses would end if G were perfect: {name: value}, printed once.

    {} for a variant of the method, whose losses are others.

    No D could then tell painted from real. It could still name the class c of a pixel, and would
    give it the odds α_c to 1 against "fake", as the real term has the weight α_c and the fake term
    has 1. So D says c with probability α / (α + 1), and as means over the pixels

        loss_G = loss_D_real = mean of α · log(1 + 1/α)        loss_D_fake = mean of log(1 + α)

    A D that knows nothing gives log(N + 1) in both. The first loss_G can be far above that: a D
    with large initial weights is surely wrong at many pixels.
    """
    if update is not training_step:
        return {}
    num_classes = train_set.num_classes
    of_real = of_fake = 0.0
    for labels in label_maps:
        counts = sum(gather(losses.count_classes(labels.long(), num_classes)))
        alpha = losses.class_weights(labels, num_classes, train_set.ignore_label, counts).double()
        if settings.no_class_balance:
            alpha = (alpha > 0).double()
        share = counts / counts.sum() / len(label_maps)
        of_fake += (share * torch.log1p(alpha)).sum().item()
        # α · log(1 + 1/α) in a form that is 0 where α is 0.
        of_real += (share * (alpha * torch.log1p(alpha) - torch.xlogy(alpha, alpha))).sum().item()
    if rank_and_size()[0] == 0:
        print(f"with a perfect G: loss_G and loss_D_real {of_real:.2f}, loss_D_fake {of_fake:.2f}; "
              f"with a D that knows nothing: {math.log(num_classes + 1):.2f}")
    return {"loss_G": of_real, "loss_D_real": of_real, "loss_D_fake": of_fake}


def compile_in_place(G, D):
    """torch.compile, so that checkpoints keep their names. One graph per batch size."""
    G.compile(dynamic=False)
    D.compile(dynamic=False)
    losses.discriminator_losses = torch.compile(losses.discriminator_losses, dynamic=False)
    losses.real_loss = torch.compile(losses.real_loss, dynamic=False)


# ---- The state of a run, and its files -----------------------------------------------------------
#
# A checkpoint holds all that the rest of a run depends on: both networks, the average, Adam's means
# of the gradients and of their squares, the step, the settings; and the rows of losses and scores,
# so that log.csv goes on without a gap. Each process has the same state; the first one writes it.
#
# latest.pt is the last state, best.pt that of the best scores. Each file is written beside its
# place and then moved there (data.write_whole): a run that is killed at any moment leaves the old
# file or the new one, never half of one.


class State:
    """What training changes, and what a checkpoint keeps.

        generator, discriminator       G and D
        ema                            the average of G, an exponential moving average
        optimizer_G, optimizer_D       Adam, with its moments
        step, seconds                  how far the run is, in all its starts together
        log, scores                    the rows of log.csv and scores.csv so far

    start_or_resume adds what follows from the settings: total_steps and first_frozen.
    """

    PARTS = ("generator", "discriminator", "ema", "optimizer_G", "optimizer_D")
    VALUES = ("step", "seconds", "log", "scores")

    def __init__(self, settings, make_networks, num_classes, device):
        torch.manual_seed(settings.seed)            # for the initial weights, and nothing else
        G, D = make_networks(settings, num_classes)
        self.generator = G.to(device, memory_format=torch.channels_last)
        self.discriminator = D.to(device, memory_format=torch.channels_last)
        scale_weights(G, settings.init_gain[0])
        scale_weights(D, settings.init_gain[1])
        self.ema = copy.deepcopy(G).requires_grad_(False)
        # β1 = 0, no momentum: older gradients answer an opponent that has changed since.
        # set_learning_rates gives the rates.
        betas = (0.0, settings.beta2)
        self.optimizer_G = torch.optim.Adam(G.parameters(), betas=betas, fused=True)
        self.optimizer_D = torch.optim.Adam(D.parameters(), betas=betas, fused=True)
        self.step, self.seconds = 0, 0.0
        self.log, self.scores = [], []              # rows of log.csv and scores.csv
        self.last_file = Path(settings.run_dir, "latest.pt")

    def due(self, every):
        """Is this one of every so many steps, or the last?"""
        return self.step % every == 0 or self.step == self.total_steps

    def progress_bar(self):
        """The steps on the screen, in the first process only."""
        return tqdm(initial=self.step, total=self.total_steps, unit="step", smoothing=0.05,
                    disable=rank_and_size()[0] > 0)

    def checkpoint(self, settings, dataset):
        """All of it as tensors and plain values, which torch.load(weights_only=True) reads."""
        G, D = self.generator, self.discriminator
        content = {
            "format": "oasis-run-2", "settings": dataclasses.asdict(settings),
            "dataset": {"preset": settings.preset, "class_names": list(dataset.class_names),
                        "palette": dataset.palette.tolist(), "ignore_label": dataset.ignore_label,
                        "size": [settings.height, settings.width]},
            # "oasis.Generator" and its arguments: how sample.load_model makes it again.
            "generator_class": f"{type(G).__module__}.{type(G).__name__}",
            "generator_args": G.config,
            "discriminator_class": f"{type(D).__module__}.{type(D).__name__}",
            "discriminator_args": D.config,
        }
        for name in self.PARTS:
            content[name] = getattr(self, name).state_dict()
        for name in self.VALUES:
            content[name] = getattr(self, name)
        return content

    def load(self, checkpoint):
        """The reverse of checkpoint()."""
        for name in self.PARTS:
            getattr(self, name).load_state_dict(checkpoint[name])
        for name in self.VALUES:
            setattr(self, name, checkpoint[name])


@torch.no_grad()
def scale_weights(network, gain):
    """Another gain for the initial weights. Biases stay.

    Layers without spectral norm start with larger outputs. Those with it compute the same, but
    learn more slowly: Adam's steps stay as large as they were, and change a larger weight by less.
    """
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.mul_(gain / oasis.INIT_GAIN)


def count_steps(settings, train_set):
    """(the steps of a whole run, the first of them in which G's statistics are fixed)."""
    total = settings.steps or settings.epochs * (len(train_set) // settings.batch_size)
    return total, total - int(settings.frozen_norm * total) + 1


def start_or_resume(settings, make_networks, train_set, device):
    """A new State, or that of the run that goes on. Never writes over a run. UserError."""
    path = Path(settings.run_dir, "latest.pt")
    if not settings.resume and path.exists():
        raise UserError(f"{settings.run_dir} holds a run already: --resume, or another --run-dir")
    lock = data.lock_folder(settings.run_dir)
    state = State(settings, make_networks, train_set.num_classes, device)
    state.lock = lock                           # the folder is this run's while its state lives
    state.total_steps, state.first_frozen = count_steps(settings, train_set)
    if settings.resume:
        checkpoint = sample.load_checkpoint(path)
        check_same_run(checkpoint, settings, train_set)
        state.load(checkpoint)
        # With fewer steps than before, the run may go on in its last part without statistics that
        # were measured. The next step then measures them.
        before = argparse.Namespace(**checkpoint["settings"])
        if state.step < count_steps(before, train_set)[1]:
            state.first_frozen = max(state.first_frozen, state.step + 1)
    else:
        try_to_write(settings, state, train_set)
    if settings.compile:
        compile_in_place(state.generator, state.discriminator)
    state.began = time.monotonic() - state.seconds
    return state


def check_same_run(checkpoint, settings, train_set):
    """A run can only go on with its own classes and its optimizers. UserError."""
    about, names = checkpoint["dataset"], list(train_set.class_names)
    if (about["class_names"], about["ignore_label"]) != (names, train_set.ignore_label):
        raise UserError(f"{settings.data_root}: has other classes than the run {settings.run_dir}")
    if "optimizer_G" not in checkpoint:
        raise UserError(f"{settings.run_dir}/latest.pt: holds no optimizers to go on with")


def try_to_write(settings, state, dataset):
    """A full disk shows now, not at the first checkpoint."""
    if rank_and_size()[0] == 0:
        path = Path(settings.run_dir, "first_try.pt")
        with data.write_whole(path) as partial:
            torch.save(state.checkpoint(settings, dataset), partial)
        path.unlink()


def check_finite(state):
    """Before a checkpoint: all numbers are finite, and the same in every process. UserError.

    So latest.pt is always a state that a run can go on from.
    """
    for network in (state.generator, state.discriminator, state.ema):
        total = sum(tensor.double().abs().sum() for tensor in network.state_dict().values())
        checksums = gather(total.item())
        if not math.isfinite(sum(checksums)) or len(set(checksums)) > 1:
            raise UserError(f"after step {state.step} weights are not finite, or not the same in "
                            f"all processes: checksums {checksums}. The last checkpoint, "
                            f"{state.last_file}, is from before; lower learning rates may help")


def log_losses(state, terms, bar):
    """A row of log.csv: the terms of this step, as means over the processes. UserError."""
    values = mean_over_processes(torch.stack(list(terms.values()))).tolist()
    if not all(map(math.isfinite, values)):
        raise UserError(f"after step {state.step} a loss is not finite: "
                        f"{dict(zip(terms, values))}. The last checkpoint, "
                        f"{state.last_file}, is from before; lower learning rates may help")
    state.seconds = time.monotonic() - state.began
    state.log.append({"step": state.step, "seconds": round(state.seconds, 1),
                      **dict(zip(terms, values))})
    bar.set_postfix({k.removeprefix("loss_"): f"{v:.2f}" for k, v in zip(terms, values)})


def log_scores(state, scores, bar):
    """A row of scores.csv."""
    state.scores.append({"step": state.step, **scores})
    if rank_and_size()[0] == 0:
        bar.write(f"step {state.step}: " + ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))


def last_is_best(rows):
    """Is the last scoring the best? By the first of these that was measured; the paper's is FID.

    mIoU comes third: it stays flat, or rises, while colours collapse.
    """
    for name, sign in (("fid", 1), ("fd_segmenter", 1), ("miou", -1), ("d_miou", -1)):
        if name in rows[-1]:
            return all(sign * rows[-1][name] <= sign * row[name] for row in rows if name in row)


def save_run(settings, state, dataset, latest, scored):
    """Write latest.pt, and best.pt if the last scoring is the best; log.csv, scores.csv, curves."""
    if rank_and_size()[0] > 0:
        return
    run_dir = Path(settings.run_dir)
    state.seconds = time.monotonic() - state.began
    names = ["best.pt"] if scored and last_is_best(state.scores) else []
    for name in names + (["latest.pt"] if latest else []):
        with data.write_whole(run_dir / name) as partial:
            torch.save(state.checkpoint(settings, dataset), partial)
    try:
        save_tables(state, run_dir)
    except UserError as error:                      # Excel, on Windows, keeps a csv that it shows
        tqdm.write(f"{error}; the rows are in latest.pt and will be written with the next one")


def save_tables(state, run_dir):
    """log.csv, scores.csv and curves.png, all of them anew. UserError."""
    for name, rows in (("log.csv", state.log), ("scores.csv", state.scores)):
        # Rows may have different columns, as --metrics may change on resume.
        columns = dict.fromkeys(column for row in rows for column in row)
        with data.write_whole(run_dir / name) as partial, open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    if state.log or state.scores:
        metrics.save_curves(state.log + state.scores, state.perfect, run_dir / "curves.png")


def save_pictures(state, settings, val_set, rows=6, noises=4):
    """A grid: in each row a validation label map, its photograph, what the average paints of it."""
    if rank_and_size()[0] > 0:
        return
    G, grid = state.ema, []
    noise = oasis.draw_noise(range(noises), val_set.size, G.noise_dim, G.pixel_noise)
    for i in range(min(rows, len(val_set))):
        image, labels = val_set[i]
        painted = sample.paint(G, labels, noise)
        grid.append([val_set.palette[labels], *data.to_uint8(image[None]), *painted])
    captions = ["label map", "real"] + [f"noise {k}" for k in range(noises)]
    path = Path(settings.run_dir, f"samples/step_{state.step:06d}.png")
    with data.write_whole(path) as partial:
        data.picture_grid(grid, captions, max(1, 192 // val_set.size[0])).save(partial, "png")


def finish(state, scorer):
    """The end of train(): the scores' table. Returns the last scores, None for a stopped run."""
    gather(0)                                       # wait until the first process has saved
    if state.step < state.total_steps:
        return None
    scores = dict(state.scores[-1]) if state.scores else {}
    scores.pop("step", None)
    if scorer is not None and scores and rank_and_size()[0] == 0:
        metrics.show(scorer, scores)
    return scores


# ---- The command line ----------------------------------------------------------------------------
#
# A setting has its default in Settings. The preset replaces some defaults; a run that goes on puts
# its own settings in their place. What the command line says replaces both. So --help can only
# tell the values once preset and run are known: the command line is read twice.

CHOICES = {"preset": list(PRESETS), "precision": ["fp32", "bf16"],
           "padding": ["zeros", "replicate"]}
# Only these may change when a run is resumed. The others define the run.
CHANGEABLE = ("data_root", "workers", "epochs", "steps", "lr_g", "lr_d", "lr_decay", "frozen_norm",
              "ema_decay", "lambda_labelmix", "precision", "compile", "run_dir", "resume",
              "log_every", "picture_every", "score_every", "checkpoint_every", "metrics",
              "segmenter_steps")


def check_settings(settings):
    """Every number in its range; sizes that the generator can halve. UserError."""
    s = settings
    for field in dataclasses.fields(s):
        value, least, most = getattr(s, field.name), field.metadata["least"], field.metadata["most"]
        numbers = value if isinstance(value, tuple) else (value,)
        if least is not None and not all(least <= number <= most for number in numbers):
            words = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise UserError(f"{option_name(field)} {value}: must be {words}")
    multiple = 2 ** (s.num_blocks - 1)
    if s.height % multiple or s.width % multiple:
        raise UserError(f"--height {s.height} --width {s.width}: must be multiples of {multiple}")
    if s.pixel_noise > s.noise_dim:
        raise UserError(f"--pixel-noise {s.pixel_noise}: the noise has {s.noise_dim} channels")
    if s.precision == "bf16" and torch.cuda.is_available():
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError("--precision bf16: this GPU cannot compute in bfloat16; use fp32")
    if s.compile and s.padding == "replicate" and not torch.cuda.is_available():
        raise UserError("--compile: PyTorch cannot compile --padding replicate for a CPU")


def parse_settings(argv=None, settings_class=Settings, presets=PRESETS):
    """Command line -> settings. Later ones win: defaults, the preset, what the command line gives.

    With --resume the run's own settings stand in for the preset. UserError.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=settings_class.preset)
    first.add_argument("--run-dir")
    first.add_argument("--resume", action="store_true")
    first.add_argument("--epochs")
    known, _ = first.parse_known_args(argv)
    run_dir = known.run_dir or f"runs/{known.preset}"
    values = dataclasses.asdict(settings_class())
    own = {}
    if known.resume:
        # A setting that is younger than the run has its default: the preset may have changed since.
        own = sample.load_checkpoint(Path(run_dir, "latest.pt"))["settings"]
        own["compile"] = False                      # it must be asked for on each machine
        values.update((name, own[name]) for name in values.keys() & own.keys())
    else:
        values.update(presets.get(known.preset, {}), preset=known.preset)
    if known.epochs is not None:
        values["steps"] = 0

    parser = argparse.ArgumentParser(
        description=sys.modules[settings_class.__module__].__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"[values] are those of {run_dir if own else '--preset ' + known.preset}.")
    for field in dataclasses.fields(settings_class):
        add_option(parser, field, values[field.name])
    given = vars(parser.parse_args(argv))
    given["run_dir"] = run_dir
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = tuple(value)
        if name in own and name not in CHANGEABLE and given[name] != own[name]:
            raise UserError(f"{name} {value}: the run in {run_dir} was started with {own[name]}")
    if given["data_root"]:
        given["data_root"] = str(Path(given["data_root"]).resolve())    # --resume from any folder
    return settings_class(**given)


def option_name(field):
    """lr_g -> --lr-g"""
    return "--" + field.name.replace("_", "-")


def add_option(parser, field, value):
    """One field of the settings as an option, with the value that it has unless given."""
    if field.type is bool:
        parser.add_argument(option_name(field), action="store_true", default=value,
                            help=field.metadata["help"])
        return
    kind, nargs, shown = field.type, None, value
    if field.type is tuple:
        kind = type(field.default[0])
        nargs = 2 if field.name == "init_gain" else "+"
        shown = " ".join(map(str, value))
    shown = str(shown).replace("%", "%%")           # as argparse takes it for a format
    parser.add_argument(option_name(field), type=kind, nargs=nargs, default=value,
                        choices=CHOICES.get(field.name),
                        help=field.metadata["help"] + (f" [{shown}]" if shown != "" else ""))


@data.exit_in_words("train.py")
def main(argv=None):
    """Exit code 0: done; 1: stopped by a signal; 2: a mistake of the user."""
    settings = parse_settings(argv)
    scores = train(settings)
    if rank_and_size()[0] == 0:
        if scores is None:
            print(f"Stopped, all is saved; go on by --run-dir {settings.run_dir} --resume")
        else:
            path = Path(settings.run_dir, "latest.pt")
            print(f"Done. Next: python sample.py --checkpoint {path}")
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(1 if scores is None else 0)


if __name__ == "__main__":
    main()
