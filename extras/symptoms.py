"""Is my training healthy? Short trainings that are made to go wrong, one cause each.

    python -m extras.symptoms                           # about 25 minutes of one core
    python -m extras.symptoms --jobs 2                  # two at a time, on two cores
    python -m extras.symptoms --rows healthy d-too-strong --out results/symptoms

Trains the toy preset for 400 steps in each row, always with the same scenes, seed and initial
weights. --out holds ROW/ (a run each), ROW.png (one label map, its scene, four noises, as they
come), losses.png and symptoms.md: symptom, cause and setting beside the figures. Given again, the
same command goes on where it stopped. Options that are not named in --help go to every run.

Dashed in losses.png: where the losses would end if G were perfect (train.losses_of_perfect_G).
Dotted: log(N + 1), as a D that knows nothing gives each of its N + 1 answers the same probability.
"""

import argparse
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import data
import metrics
import oasis
import processes
import sample
import train
from data import UserError
from extras import scores
from extras.jobs import Job, run_jobs
from extras.tables import markdown

STEPS = 400
LAST = 50               # the last losses are means over so many steps, as single ones jump
TERMS = {"loss_G": "loss_G", "loss_D_real": "D_real", "loss_D_fake": "D_fake",
         "loss_labelmix": "LabelMix"}


@dataclass
class Row:
    """A training with one thing wrong, and what to say about it."""
    words: str          # options
    symptom: str
    cause: str
    setting: str        # what helps


# Symptoms as they were seen in these runs (results/symptoms), not as one would expect them.
ROWS = {
    "healthy": Row(
        "", "D_fake comes to the value of a perfect G at once, the others fall towards theirs",
        "–", "–"),
    "d-too-strong": Row(
        "--lr-g 1e-4",
        "D_fake falls below the value of a perfect G, loss_G stays above log(N + 1); clouds "
        "without things", "D learns much faster than G", "raise `--lr-g`, lower `--lr-d`"),
    "d-too-weak": Row(
        "--lr-d 1e-4", "D_real stays at log(N + 1); the layout in garish colours",
        "D hardly learns, so it teaches G little", "raise `--lr-d`"),
    "no-labelmix": Row(
        "--lambda-labelmix 0", "the LabelMix loss is 0; nothing else is seen in so few steps (900 "
        "steps, three seeds: colours are farther off)",
        "D may judge a class by its neighbours", "`--lambda-labelmix` 2 to 10"),
    "small-gain": Row(
        "--init-gain 0.02 0.02", "D_real and loss_G stay near log(N + 1) for hundreds of steps; "
        "blurred shapes", "the paper's initial weights want longer trainings",
        "`--init-gain 1 5` in short ones"),
    "rates-too-high": Row(
        "--lr-g 2e-2 --lr-d 5e-2", "the first loss_G is above 100; until the rates have fallen "
        "loss_G jumps and D_fake is near 0; colours at their limits",
        "each step overshoots", "lower `--lr-g` and `--lr-d` by 3 to 10"),
    "no-average": Row(
        "--ema-decay 0", "losses as if healthy; strong colours, coarse patterns, another look at "
        "every step; mIoU is lower, `fd_segmenter` better so early",
        "pictures of G itself, not of its average",
        "`--ema-decay` 0.995 (looks back 200 steps) and more"),
    "batch-statistics": Row(
        "--frozen-norm 0", "losses as if healthy; mIoU is lower, `fd_segmenter` and colour better "
        "so early",
        "each batch of four is normalised by itself in training, by fixed numbers in pictures",
        "`--frozen-norm` 0.25 to 0.5, or larger batches"),
    "one-vector": Row(
        "--pixel-noise 0", "areas are flat, later striped, never of random texture",
        "G has nothing that differs between two pixels of a meadow", "`--pixel-noise 16`"),
    "zero-padding": Row(
        "--pixel-noise 0 --padding zeros", "frames: lines along the picture's borders",
        "zeros tell G where the borders are", "`--padding replicate`"),
    "no-noise": Row(
        "--noise-dim 0 --pixel-noise 0", "every noise gives the same picture; bands in skies and "
        "roofs", "without noise one label map has one picture", "`--noise-dim 64`"),
}


def ends_of(settings, train_set, count=50):
    """train.losses_of_perfect_G in the first `count` batches of a training."""
    batches = train.load_batches(settings, train_set)
    label_maps = [next(batches)[1] for _ in range(count)]
    return train.losses_of_perfect_G(train.training_step, settings, label_maps, train_set)


# ---- One row -------------------------------------------------------------------------------------


def last_losses(log):
    """{name: mean over the last steps}, and "first_G", loss_G of the first step; {} without log."""
    if not log:
        return {}
    found = {"first_G": log[0]["loss_G"]}
    for name in TERMS:
        found[name] = statistics.mean(line[name] for line in log[-LAST:])
    return found


def measure(checkpoint, scorer, val_set, device, maps):
    """{name: figure} of a run's losses and pictures."""
    G = sample.build_generator(checkpoint).to(device)
    found = last_losses(checkpoint["log"])
    found.update(scorer(G))
    found.update(scores.score(G, val_set, ("colour", "noises"), maps, device=device))
    return found


def save_row(checkpoint, val_set, device, path):
    """One label map, its scene, and what the average of G paints with four noises."""
    image, labels = val_set[0]
    line = [val_set.palette[labels], data.to_uint8(image[None])[0]]
    if checkpoint is None:                              # it failed before its first checkpoint
        line += [np.full_like(line[1], 255)] * 4
    else:
        G = sample.build_generator(checkpoint).to(device)
        noise = oasis.draw_noise(range(4), labels.shape, G.noise_dim, G.pixel_noise)
        line += list(sample.paint(G, labels, noise))
    with data.write_whole(path) as partial:
        data.picture_grid([line], None, max(1, 128 // val_set.size[0])).save(partial, "png")


def save_losses(logs, ends, num_classes, path):
    """A panel for each row: losses over the steps, and dashed where a perfect G would end."""
    columns = 4
    lines = -(-len(logs) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * lines), layout="tight")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[len(logs):]:
        axis.axis("off")
    for axis, (row, log) in zip(axes, logs.items()):
        steps = [line["step"] for line in log]
        for name in ends:
            curve, = axis.plot(steps, [line[name] for line in log], label=TERMS[name], lw=0.8)
            axis.axhline(ends[name], ls="--", color=curve.get_color(), lw=1)
        axis.axhline(math.log(num_classes + 1), ls=":", color="grey", lw=1)
        axis.set(title=row, xlabel="step", ylabel="loss", ylim=(0, 6))
    axes[0].legend(fontsize=7)
    with data.write_whole(path) as partial:
        figure.savefig(partial, dpi=80, format="png")


# ---- The table -----------------------------------------------------------------------------------


def number(found, name):
    """A figure with three digits; – where there is none."""
    return f"{found[name]:.3g}" if name in found else "–"


def write_table(out, found, ends, num_classes, precision):
    """symptoms.md, which is printed, too. found: {row: {name: figure}}."""
    columns = list(TERMS) + ["miou", "fd_segmenter", "colour", "noises"]
    heading = ["run", "symptom", "cause", "setting", "first loss_G"] + list(TERMS.values())
    lines = [heading + ["mIoU ↑", "`fd_segmenter` ↓", "colour ↓", "noises ↑", "picture"]]
    perfect = ["a perfect G", "", "", "", ""]
    of_perfect = dict(ends)
    for figures in found.values():              # scores of real scenes, the same in every row
        for name in columns:
            if f"{name}_real" in figures:
                of_perfect[name] = figures[f"{name}_real"]
    for name in columns:
        perfect.append(number(of_perfect, name))
    lines.append(perfect + [""])
    for row, figures in found.items():
        about = ROWS[row]
        words = f"`{about.words}`" if about.words else "the preset"
        line = [f"{row}: {words}", about.symptom, about.cause, about.setting,
                number(figures, "first_G")]
        for name in columns:
            line.append(number(figures, name))
        if "failed" in figures:
            line[1] += f" ({figures['failed']})"
        lines.append(line + [f"![{row}]({row}.png)"])
    text = (f"{markdown(lines)}\n\nOne run each, {precision}. Losses: means over the last {LAST} "
            f"steps. A D that knows nothing: log(N + 1) = {math.log(num_classes + 1):.2f}. In the "
            f"line\nof a perfect G, scores are those of real scenes. noises: standard deviation "
            f"over noises of the\ncolours of one label map, 0 … 255.\n")
    with data.write_whole(out / "symptoms.md") as partial:
        partial.write_text(text, encoding="utf-8")
    print(text)


# ---- The command line ----------------------------------------------------------------------------


def show_symptoms(args, options):
    """Train, measure, write. Returns False if it was stopped."""
    out = Path(args.out)
    words = ["--preset=toy", f"--steps={STEPS}", f"--precision={processes.fast_precision()}"]
    words += options
    settings = train.parse_settings(words + ["--run-dir", str(out)])
    jobs = {}
    for row in args.rows:
        own = ["--metrics=none", "--log-every=1"] + ROWS[row].words.split()
        jobs[row] = Job(row, out / row, ["train"] + words + own)
    stopped = run_jobs(list(jobs.values()), args.jobs)[1]
    if stopped:
        print("Stopped, all is saved; the same command goes on.")
        return False

    device = processes.start_processes()
    train_set, val_set = train.open_datasets(settings)
    ends = ends_of(settings, train_set)
    scorer = metrics.Scorer(val_set, train_set, device, ["miou", "fd_segmenter"], run_dir=out,
                            segmenter_steps=settings.segmenter_steps or None)
    found, logs = {}, {}
    for row, job in jobs.items():
        path, checkpoint = job.folder / "latest.pt", None
        found[row], logs[row] = {}, []
        if path.exists():
            checkpoint = sample.load_checkpoint(path)
            found[row] = measure(checkpoint, scorer, val_set, device, args.maps)
            logs[row] = checkpoint["log"]
        if not job.is_complete:
            found[row]["failed"] = job.last_words()
        save_row(checkpoint, val_set, device, out / f"{row}.png")
    save_losses(logs, ends, train_set.num_classes, out / "losses.png")
    write_table(out, found, ends, train_set.num_classes, settings.precision)
    return True


@data.exit_in_words("extras.symptoms")
def main(argv=None):
    """The command line. Exit code 0: done; 1: stopped by a signal; 2: a mistake of the user."""
    parser = argparse.ArgumentParser("extras.symptoms", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW",
        help=f"{', '.join(ROWS)} (default: all)")
    add("--out", default="runs/symptoms", help="folder (default: runs/symptoms)")
    add("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add("--maps", type=int, default=40, help="label maps for colours (default: 40)")
    args, options = parser.parse_known_args(argv)
    for option in ("--run-dir", "--resume"):
        if any(word.split("=")[0] == option for word in options):
            raise UserError(f"{option}: is chosen by --out, and by what is there already")
    sys.exit(0 if show_symptoms(args, options) else 1)


if __name__ == "__main__":
    main()
