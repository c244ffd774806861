"""Train OASIS (or SPADE): the two updates, the moving average of G, checkpoints, the loop.

    python train.py                                          # drawn scenes, minutes on two cores
    python train.py --preset folder --data-root my_photos    # your own photographs and label maps
    python train.py --preset cityscapes --data-root cityscapes
    python train.py --run-dir runs/toy --resume              # goes on where a run stopped
    python train.py --model spade+                           # the paper's baseline, see spade.py
    torchrun --nproc_per_node=8 train.py --preset ade20k --data-root ADEChallengeData2016

Everything a run makes lies in its run folder: latest.pt and best.pt (checkpoints), samples/
(pictures while it trains), log.csv (losses), scores.csv, curves.png, segmenter.pt (the network
behind mIoU).

Nothing in the loop is drawn from a random state that has a history. Batches, crops, noise and
LabelMix coins are functions of (seed, step), so there is no random state to save: a run that was
killed and resumed draws what an uninterrupted one draws, and on the CPU both end in the same
bits.
"""

import contextlib
import copy
import csv
import dataclasses
import gc
import hashlib
import os
import sys
import time
from pathlib import Path

import matplotlib
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

import data
import losses
import metrics
import models
import oasis
import spade
from processes import (end, in_any_process, is_first, noted_signals, outside_cause,
                       resume_command, start_processes)
from settings import (SettingsError, check_settings, metric_names, parse_arguments,
                      settings_of_resumed_run)

matplotlib.use("Agg")       # curves.png is drawn without a display
import matplotlib.pyplot as plt  # noqa: E402  (the line above must come first)


class TrainingStopped(RuntimeError):
    """The run ended early: a signal, a non-finite loss, a full disk; the message says which.

    Either all processes meet it in the same step or rank 0 alone does, so rank 0 speaks.
    """


def random_stream(seed, purpose, step):
    """A CPU generator that is a function of its arguments alone: randomness without a history."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


# ---- The two updates ---------------------------------------------------------------------------


def training_step(G, D, D_frozen, optimizer_G, optimizer_D, real, labels, noise, mask, weights,
                  lambda_labelmix, perceptual=None, lambda_vgg=0.0,
                  precision=contextlib.nullcontext()):
    """One update of D and one of G on the same batch. Returns the terms, {name: detached scalar}.

    real (B, 3, H, W), labels (B, H, W), noise (B, 64), mask M (B, 1, H, W), weights α (N,).
    D_frozen is D without the wrapper that exchanges gradients between processes: in G's update D
    is a fixed judge. Both updates use the same x̂, drawn once: D learns from what G draws now,
    and G is judged by the D that has just learned. perceptual: a losses.PerceptualLoss for the
    paper's comparison, OASIS does without (None). precision: an autocast context; losses are
    float32 inside it, too.
    """
    # ---- D minimises Eq. 1 + λ·L_cons. It has no batch norm, so one pass over all images will do.
    with precision:
        fake = G(labels, noise)                                         # x̂ = G(z, t)
        x, x_hat = real, fake.detach()
        if lambda_labelmix > 0:
            mix = losses.labelmix(x, x_hat, mask)
            logits_real, logits_fake, logits_mix = D(torch.cat([x, x_hat, mix])).chunk(3)
            loss_labelmix = losses.labelmix_loss(logits_mix, logits_real, logits_fake, mask)
        else:
            logits_real, logits_fake = D(torch.cat([x, x_hat])).chunk(2)
            loss_labelmix = logits_real.new_zeros(())
        loss_D_real = losses.real_loss(logits_real, labels, weights)    # Eq. 1, first term
        loss_D_fake = losses.fake_loss(logits_fake)                     # Eq. 1, second term
        loss_D = loss_D_real + loss_D_fake + lambda_labelmix * loss_labelmix
        terms = {"loss_D_real": loss_D_real, "loss_D_fake": loss_D_fake,
                 "loss_labelmix": loss_labelmix}
    optimizer_D.zero_grad()
    loss_D.backward()
    optimizer_D.step()

    # ---- G minimises Eq. 2: D should find in every pixel of x̂ the class that the label map names.
    D_frozen.requires_grad_(False)                     # saves computing gradients that nobody uses
    with precision:
        loss = terms["loss_G"] = losses.real_loss(D_frozen(fake), labels, weights)      # Eq. 2
        if perceptual is not None:
            terms["loss_vgg"] = perceptual(fake, real)
            loss = loss + lambda_vgg * terms["loss_vgg"]
    optimizer_G.zero_grad()
    loss.backward()
    optimizer_G.step()
    D_frozen.requires_grad_(True)

    return {name: term.detach() for name, term in terms.items()}


def update(s, state, G, D, real, labels, noise, mask, weights, perceptual, precision):
    """The training step of the model that is trained. G, D: the state's, wrapped for DDP."""
    players = G, D, state.D, state.optimizer_G, state.optimizer_D
    if s.no_class_balance:
        weights = (weights > 0).float()     # 1 for the classes that are there, 0 for "unknown"
    if s.model == "oasis":
        return training_step(*players, real, labels, noise, mask, weights, s.lambda_labelmix,
                             perceptual, s.lambda_vgg, precision)
    return spade.training_step(*players, real, labels, noise, s.lambda_features,
                               s.lambda_kl if s.multimodal == "encoder" else None,
                               perceptual, s.lambda_vgg, precision)


# ---- The moving average of G -------------------------------------------------------------------
#
# Two players that chase each other circle around the solution; the average of G's weights over
# the last steps often lies nearer to it than a single step does (Yaz et al., 2018). All images
# reported come from it (Sec. 3). In a training as short as the toy's it does not pay: exercise 7.


@torch.no_grad()
def update_ema(ema, G, decay):
    """ema ← decay · ema + (1 − decay) · G, for the weights. refresh_ema sees to all else."""
    for average, current in zip(ema.parameters(), G.parameters()):
        average.lerp_(current, 1 - decay)


@torch.no_grad()
def refresh_ema(ema, G, label_batches, seed):
    """Give the averaged generator batch-norm statistics of its own, and end in eval mode.

    The statistics G collects are those of G's features, not of the average's; used with the
    average's weights they shift colours. So the averaged network draws a few training label maps
    and takes the mean of what it sees. Starting from G's buffers makes the result a function of
    what a checkpoint holds, the label maps and the seed: refreshing more often, or after a resume,
    changes nothing.
    """
    device, buffers = next(ema.parameters()).device, dict(G.named_buffers())
    for name, buffer in ema.named_buffers():
        buffer.copy_(buffers[name])             # spectral norm's singular vectors, to start from
    for layer in ema.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None                      # plain mean over the batches
    ema.train()
    for i, labels in enumerate(label_batches):
        noise = torch.randn(len(labels), ema.noise_dim, generator=random_stream(seed, "ema", i))
        ema(labels.to(device=device, dtype=torch.int64), noise.to(device))
    ema.eval()
    if dist.is_initialized():
        for buffer in ema.buffers():
            dist.broadcast(buffer, src=0)


# ---- State, checkpoints ------------------------------------------------------------------------


class State:
    """What changes while training: two networks, the average, two optimizers, counters."""

    def __init__(self, s, num_classes, device):
        def place(network):
            return network.to(device, memory_format=torch.channels_last)

        torch.manual_seed(s.seed)               # for the initial weights, and nothing else
        self.G, self.D = (place(network) for network in models.make_networks(s, num_classes))
        oasis.scale_weights(self.G, s.init_gain_g / oasis.INIT_GAIN)
        oasis.scale_weights(self.D, s.init_gain_d / oasis.INIT_GAIN)
        self.ema = copy.deepcopy(self.G).requires_grad_(False)
        betas = (s.beta1, s.beta2)
        self.optimizer_G = torch.optim.Adam(self.G.parameters(), s.lr_g, betas, fused=True)
        self.optimizer_D = torch.optim.Adam(self.D.parameters(), s.lr_d, betas, fused=True)
        self.step, self.seconds, self.best = 0, 0.0, {}
        # The losses of the steps since the last multiple of log_every, one row per step.
        self.terms = models.term_names(s)
        self.recent, self.recent_from = torch.zeros(s.log_every, len(self.terms), device=device), 0

    def checkpoint(self, s, dataset):
        """A dictionary of tensors and plain values that torch.load(…, weights_only=True) reads."""
        return {
            "format": "oasis-run-1", "model": s.model, "config": dataclasses.asdict(s),
            "dataset": {"preset": s.preset, "class_names": list(dataset.class_names),
                        "palette": dataset.palette.tolist(), "ignore_label": dataset.ignore_label,
                        "size": [s.height, s.width]},
            "generator_args": self.G.config, "discriminator_args": self.D.config,
            "generator": self.G.state_dict(), "discriminator": self.D.state_dict(),
            "ema": self.ema.state_dict(), "terms": self.terms,
            "optimizer_G": self.optimizer_G.state_dict(),
            "optimizer_D": self.optimizer_D.state_dict(),
            "step": self.step, "seconds": self.seconds, "best": self.best, "recent": self.recent,
            "processes": dist.get_world_size() if dist.is_initialized() else 1,
        }

    def load(self, checkpoint):
        """The reverse of checkpoint()."""
        self.G.load_state_dict(checkpoint["generator"])
        self.D.load_state_dict(checkpoint["discriminator"])
        self.ema.load_state_dict(checkpoint["ema"])
        for name in ("optimizer_G", "optimizer_D"):
            optimizer = getattr(self, name)
            # Moments come from the checkpoint, learning rates and betas from the settings.
            optimizer.load_state_dict({**checkpoint[name],
                                       "param_groups": optimizer.state_dict()["param_groups"]})
        self.step, self.seconds = checkpoint["step"], checkpoint["seconds"]
        self.best = checkpoint["best"]
        if (checkpoint.get("terms") == self.terms
                and len(checkpoint["recent"]) == len(self.recent)):
            self.recent.copy_(checkpoint["recent"])
        else:                                           # --log-every or a λ was changed
            self.recent_from = self.step


def save_checkpoint(checkpoint, path):
    """Write beside the old file, then rename: at every moment a whole checkpoint lies at `path`."""
    partial = path.with_suffix(".tmp")
    try:
        with open(partial, "wb") as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as e:        # torch wraps some write errors in RuntimeError
        partial.unlink(missing_ok=True)
        reason = getattr(e, "strerror", None) or str(e).splitlines()[0]
        raise TrainingStopped(f"{path} could not be written ({reason}); the previous checkpoint is "
                              f"untouched, make room and go on with --resume") from e


# ---- What a run writes -------------------------------------------------------------------------


def read_rows(path):
    """A CSV file as a list of {column: number}; [] where there is none."""
    if not path.exists():
        return []
    with open(path, newline="") as f:
        return [{k: int(v) if v.isdigit() else float(v) for k, v in row.items() if v}
                for row in csv.DictReader(f)]


def write_rows(path, rows):
    """The reverse. Rows may have different columns: a resumed run may be scored differently."""
    partial = path.with_suffix(".tmp")
    with open(partial, "w", newline="") as f:
        writer = csv.DictWriter(f, list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


def log_losses(s, state, run_dir, writes):
    """Mean of the last losses -> log.csv. Stops the run, everywhere, where one is not finite.

    On one GPU this is the one place where the CPU waits for its numbers; the steps between stay in
    flight.
    """
    filled = (state.step - 1) % s.log_every + 1
    count = min(filled, state.step - state.recent_from)
    recent = state.recent[filled - count:filled]        # a view: the checkpoint gets the means, too
    if dist.is_initialized():
        dist.all_reduce(recent)                         # not finite here: not finite everywhere
        recent /= dist.get_world_size()
    recent = recent.cpu()
    for row, column in (~recent.isfinite()).nonzero().tolist():
        raise TrainingStopped(f"{state.terms[column]} is {recent[row, column]} at step "
                              f"{state.step - count + 1 + row}; {run_dir}/latest.pt is from "
                              f"before; try lower learning rates"
                              f"{', or fp32' * (s.precision != 'fp32')}")
    means = dict(zip(state.terms, recent.mean(0).tolist()))
    if writes:
        row = {"step": state.step, "seconds": round(state.seconds, 1), **means}
        write_rows(run_dir / "log.csv", read_rows(run_dir / "log.csv") + [row])
    return means


def check_weights(state):
    """A step on finite losses can still end in other weights; those are never saved or scored."""
    for network in (state.G, state.D):
        if not all(parameter.isfinite().all() for parameter in network.parameters()):
            raise TrainingStopped(f"the weights of {type(network).__name__} are not finite after "
                                  f"step {state.step}; the last checkpoint is from before")


@torch.no_grad()
def save_pictures(state, val_set, path, device, rows=6, noises=4):
    """A grid: each row a validation label map, its photograph, and what the average draws of it."""
    noises = noises if state.ema.noise_dim else 1       # without noise there is one picture
    vectors = oasis.noise_from_seeds(range(noises), state.ema.noise_dim).to(device)
    rows, grid = min(rows, len(val_set)), []
    for i in range(rows):       # spread over the set: neighbours are often frames of one video
        image, labels = val_set[i * len(val_set) // rows]
        drawn = state.ema(labels.to(device).expand(noises, -1, -1), vectors)
        grid.append([data.colourise(labels.numpy(), val_set.palette), *data.to_uint8(image[None]),
                     *data.to_uint8(drawn)])
    path.parent.mkdir(exist_ok=True)
    titles = ["label map", "real"] + [f"noise {k}" for k in range(noises)]
    data.picture_grid(grid, column_captions=titles).save(path)


def save_curves(run_dir):
    """curves.png: the losses, and each score beside its value for real images, over steps."""
    log, scores = read_rows(run_dir / "log.csv"), read_rows(run_dir / "scores.csv")
    names = list(dict.fromkeys(n for row in scores for n in row
                               if n != "step" and not n.endswith("_real")))
    columns = 1 + len(names)
    figure, axes = plt.subplots(1, columns, figsize=(5 * columns, 3.5), squeeze=False)
    for term in dict.fromkeys(n for row in log for n in row if n.startswith("loss_")):
        points = [(r["step"], r[term]) for r in log if term in r]
        axes[0, 0].plot(*zip(*points), label=term)
    if log:
        axes[0, 0].legend()
    for axis, name in zip(axes[0, 1:], names):
        for column, style in ((name, "o-"), (f"{name}_real", "--")):
            points = [(r["step"], r[column]) for r in scores if column in r]
            if points:
                axis.plot(*zip(*points), style, label=column)
        axis.set_yscale("log" if name in metrics.DISTANCES else "linear")
        axis.legend()
    for axis in axes[0]:
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(run_dir / "curves.png", dpi=80)
    plt.close(figure)
    gc.collect()        # a figure refers to itself; uncollected, they pile up to 100 MB in a run


# ---- The loop ----------------------------------------------------------------------------------


def open_data(s):
    """Training and validation set, checked; refuses what would end in an error an hour later."""
    size, root = (s.height, s.width), s.data_root or None
    train_set = data.open_dataset(s.preset, "train", size, root, seed=s.data_seed,
                                  subset=s.subset or None)
    val_set = data.open_dataset(s.preset, "val", size, root, seed=s.data_seed)
    if s.batch_size > len(train_set):
        raise SettingsError(f"--batch-size {s.batch_size}: the training set has only "
                            f"{len(train_set)} images; the batch may not be larger")
    problems = data.check_dataset(train_set, most=500) + data.check_dataset(val_set, most=500)
    if problems:
        more = f" (and {len(problems) - 1} more problems; python data.py lists all of them)"
        raise data.DataError(problems[0] + more * (len(problems) > 1))
    return train_set, val_set


def training_batches(s, train_set, rank, world_size, start_step):
    """This process's share of every global batch from start_step on, without an end."""
    sampler = data.BatchSampler(len(train_set), s.batch_size, s.seed, rank, world_size, start_step)
    return iter(data.make_loader(train_set, sampler, s.workers))


def first_label_maps(s, train_set, count=10):
    """The label maps of the first batches, whole on every process: see refresh_ema.

    At most 16 at a time: whoever shares a batch among many small GPUs has room for no more.
    """
    batches = training_batches(s, train_set, 0, 1, 0)
    parts = -(-s.batch_size // 16)
    return [part for _ in range(count) for part in next(batches)[1].to(torch.uint8).chunk(parts)]


def spread(state, world_size, device):
    """(G, D) that share each batch among the processes and average their gradients."""
    if world_size == 1:
        return state.G, state.D
    if device.type == "cuda":
        state.G = nn.SyncBatchNorm.convert_sync_batchnorm(state.G)
    # Buffers need no broadcast: spectral norm's vectors follow from the weights, which are equal
    # everywhere, and the batch-norm statistics that count are the average's (refresh_ema).
    return [nn.parallel.DistributedDataParallel(
        network, [device] if device.type == "cuda" else None, broadcast_buffers=False)
        for network in (state.G, state.D)]


def draw(s, step, labels, train_set, rank, world_size):
    """What the losses need besides the batch: noise z (B, 64), LabelMix mask M, class weights α.

    All three are those of the whole batch, however many processes share it. Noise and coins are
    drawn for all images, and each process takes those of its own [rank::world_size]; the pixels
    of each class are added up over the processes, N integers a step. Every loss is a mean over
    images, and the shares are equal, so the mean of the processes' gradients, which is what
    DistributedDataParallel takes, is the gradient of the whole batch. One thing is left that sees
    a share only: batch norm, on CPUs; on GPUs it is synchronised (spread).
    """
    classes, own = train_set.num_classes, slice(rank, None, world_size)
    counts = losses.count_classes(labels, classes)
    summing = dist.all_reduce(counts, async_op=True) if dist.is_initialized() else None
    z = torch.randn(s.batch_size, s.noise_dim, generator=random_stream(s.seed, "noise", step))
    coins = losses.throw_coins(s.batch_size, classes, random_stream(s.seed, "coins", step))
    if summing:
        summing.wait()      # on a GPU it is the GPU's queue that waits, not this program
    return (z[own].to(labels.device, non_blocking=True),
            losses.labelmix_mask(labels, classes, coins=coins[own]),
            losses.class_weights(labels, classes, train_set.ignore_label, counts))


def take_up(s, state, checkpoint, train_set, total_steps, world_size):
    """Load the checkpoint, if this run can go on with it; say so if it was split otherwise."""
    if list(train_set.class_names) != checkpoint["dataset"]["class_names"]:
        raise SettingsError(f"{s.run_dir} was trained on other classes than {s.data_root} has "
                            f"now; start another --run-dir")
    state.load(checkpoint)
    if state.step >= total_steps:
        raise SettingsError(f"{s.run_dir} is complete, {state.step} steps of {total_steps}; more "
                            f"are trained by --resume --steps N")
    before = checkpoint.get("processes", world_size)
    if before != world_size and is_first():
        on_cpu = "; batch norm sees only those, on CPUs" * (state.recent.device.type == "cpu")
        print(f"{s.run_dir} was trained by {before} process{'es' * (before > 1)} so far, now by "
              f"{world_size}: a step's {s.batch_size} images, noise and losses stay the same, each "
              f"process takes {s.batch_size // world_size} images instead of "
              f"{s.batch_size // before}{on_cpu}")


def train(s, checkpoint=None):
    """The whole run. `checkpoint`: the dictionary to go on from. Returns (final scores, Scorer)."""
    rank, world_size, device = start_processes()
    check_settings(s, world_size)
    train_set, val_set = open_data(s)
    perceptual = models.perceptual_loss(s, device)
    state = State(s, train_set.num_classes, device)
    total_steps = s.steps or s.epochs * (len(train_set) // s.batch_size)
    resumed = checkpoint is not None
    if resumed:
        take_up(s, state, checkpoint, train_set, total_steps, world_size)
        checkpoint.clear()      # a gigabyte and a half of the full-size model's, in every process
    if s.compile:       # in place: names of weights, and so checkpoints, stay as they are
        state.G.compile(dynamic=False)      # D sees two batch sizes: one graph for each
        state.D.compile(dynamic=False)
    G, D = spread(state, world_size, device)
    run_dir = Path(s.run_dir)
    if rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        for name in ("log.csv", "scores.csv"):
            # A killed run may have logged beyond its checkpoint; those steps will come again.
            if (run_dir / name).exists():
                write_rows(run_dir / name, [row for row in read_rows(run_dir / name)
                                            if row["step"] <= state.step])
    scorer = metrics.Scorer(val_set, train_set, device, metric_names(s), s.score_images or None,
                            s.segmenter or None, run_dir, workers=s.workers,
                            segmenter_steps=s.segmenter_steps or None)
    label_batches = first_label_maps(s, train_set)
    batches = training_batches(s, train_set, rank, world_size, state.step)
    precision = torch.autocast(device.type, torch.bfloat16, enabled=s.precision == "bf16")
    bar = tqdm(initial=state.step, total=total_steps, unit="step", disable=rank > 0, smoothing=0.05)
    began, scores = time.monotonic() - state.seconds, {}
    if not resumed:             # step 0: the untrained networks, and proof that all of it works
        report(s, state, scorer, val_set, label_batches, scores, bar)

    with noted_signals() as signals, bar:
        for step in range(state.step + 1, total_steps + 1):
            real, labels = (t.to(device, non_blocking=True) for t in next(batches))
            real = real.contiguous(memory_format=torch.channels_last)
            noise, mask, weights = draw(s, step, labels, train_set, rank, world_size)
            terms = update(s, state, G, D, real, labels, noise, mask, weights, perceptual,
                           precision)
            update_ema(state.ema, state.G, s.ema_decay)

            state.recent[(step - 1) % s.log_every] = torch.stack([terms[n] for n in state.terms])
            state.step = step
            state.seconds = time.monotonic() - began
            stop = in_any_process(bool(signals))         # asked once: all act on one answer
            report(s, state, scorer, val_set, label_batches, scores, bar, stop,
                   last=step == total_steps)
            bar.update()
            if stop:
                # Rank 0 has saved when it comes here. Whoever left earlier would end the job:
                # torchrun ends all processes as soon as one has gone.
                in_any_process(stop)
                raise TrainingStopped(f"stopped after step {step} as asked, all is saved; go on "
                                      f"by: {resume_command(s.run_dir)}")
    return scores, scorer


def report(s, state, scorer, val_set, label_batches, scores, bar, stop=False, last=False):
    """Whatever is due at this step: log row, pictures, scores, checkpoint. Rank 0 writes."""
    run_dir, device = Path(s.run_dir), state.recent.device
    writes = not dist.is_initialized() or dist.get_rank() == 0

    def due(every):
        return last or state.step % every == 0

    save = stop or due(s.checkpoint_every)
    if state.step > 0 and (save or due(s.log_every)):
        means = log_losses(s, state, run_dir, writes)
        bar.set_postfix({k.removeprefix("loss_"): f"{v:.2f}" for k, v in means.items()})
    if save or due(s.picture_every) or due(s.score_every):
        check_weights(state)
        refresh_ema(state.ema, state.G, label_batches, s.seed)
    if writes and due(s.picture_every):
        save_pictures(state, val_set, run_dir / "samples" / f"step_{state.step:06d}.png", device)
    if scorer.metrics and due(s.score_every):
        scores.clear()
        scores.update(scorer(state.ema, state.D))
        # The best checkpoint is the one of lowest FID, as for the authors' reported results; where
        # FID is not measured, that of highest mIoU; else the first of the scores decides.
        judge = next((name for name in ("fid", "miou") if name in scores), next(iter(scores)))
        sign = 1 if "↑" in metrics.METRICS[judge] else -1
        better = (state.best.get("judge") != judge
                  or sign * scores[judge] > sign * state.best[judge])
        if better:
            state.best = {"judge": judge, "step": state.step, **scores}
        if writes:
            write_rows(run_dir / "scores.csv", read_rows(run_dir / "scores.csv")
                       + [{"step": state.step, **scores}])
            bar.write(f"step {state.step}: " + ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))
            if better:
                save_checkpoint(state.checkpoint(s, val_set), run_dir / "best.pt")
    if writes and (due(s.picture_every) or due(s.score_every)):
        save_curves(run_dir)
    if save and writes:
        save_checkpoint(state.checkpoint(s, val_set), run_dir / "latest.pt")


def main(argv=None):
    """Command line. Exit code 0: done; 2: a mistake in the request; 1: the run had to stop."""
    s, given = parse_arguments(argv)
    oasis.keep_freed_memory()
    checkpoint = None
    try:
        if Path(s.run_dir).exists() and not Path(s.run_dir).is_dir():
            raise SettingsError(f"--run-dir {s.run_dir}: is a file; name a folder")
        if s.resume:
            s, checkpoint = settings_of_resumed_run(s, given)
        elif (Path(s.run_dir) / "latest.pt").exists():
            raise SettingsError(f"{s.run_dir} already holds a run; go on with it by --resume, or "
                                f"choose another folder with --run-dir")
        s.data_root = str(Path(s.data_root).resolve()) if s.data_root else ""
        scores, scorer = train(s, checkpoint)
        if is_first():
            print("\nScores of the averaged generator after the last step:" if scores else "")
            metrics.show(scorer, scores, per_class=False)
            kept = "latest.pt and best.pt" if scores else "latest.pt"
            print(f"\nDone: pictures, {kept} are in {s.run_dir}. Next: python sample.py "
                  f"--checkpoint {s.run_dir}/latest.pt")
        # Only here: processes leave together. One that failed just ends, so that nobody waits.
        if dist.is_initialized():
            dist.destroy_process_group()
    except (SettingsError, data.DataError, oasis.CheckpointError, metrics.MetricsError) as e:
        end(f"error: {e}", 2)
    except TrainingStopped as e:
        if is_first():
            end(e, 1)
        sys.exit(1)
    except OSError as e:                            # a row or picture met a full disk
        end(e, 1)
    except torch.OutOfMemoryError:
        end(f"the GPU's memory does not hold --batch-size {s.batch_size} at {s.height}×{s.width}; "
            f"choose a smaller batch, size or --channels, or --precision bf16", 1)
    except RuntimeError as e:
        cause = outside_cause(e)
        if cause is None:
            raise
        end(f"{cause}; the last checkpoint, if there is one, is whole; go on by: "
            f"{resume_command(s.run_dir)}", 1)
    except KeyboardInterrupt:
        end("interrupted at once; the last checkpoint, if there is one, is whole", 1)


if __name__ == "__main__":
    main()
