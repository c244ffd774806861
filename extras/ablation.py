"""The paper's claims on one's own machine: train the rows of a table over several seeds, print it.

    python -m extras.ablation                                # the paper's claims, drawn scenes
    python -m extras.ablation --rows oasis spade+ --seeds 0 --steps 200       # quick, says little
    python -m extras.ablation --rates --out runs/ablation    # first: choose learning rates
    python -m extras.ablation --rows parts                   # what each part of OASIS buys
    python -m extras.ablation --rows pixels                  # noise at every pixel, and padding
    python -m extras.ablation --preset small --data-root my_photos --steps 4000 --out runs/photos

Given again, the same command goes on where it stopped. Options that are not named in --help go to
every run. All runs share data, steps, batch, width of G, padding and judges; the seed changes the
initial weights, the order of the images, noise and coins. A run has one process on one core.

--rates trains one row of each method with every pair of --grid, and writes rates.csv with the pair
of the lowest fd_segmenter. After that, a row takes the rates of its method from there. Every method
gets the same grid, the same number of steps and the same seed. Without rates.csv the presets
decide. Rates that are given by hand go to every row.

A difference between two rows counts if it is at least two standard deviations, the root of the mean
of both rows' variances over seeds. A row of one seed has no variance: not decided.

--out holds ROW/seedS/ (a run each), segmenter.pt and lraspp.pt (the judges, see extras.judges),
ablation.csv, table.md, curves.png, sheet.png.
"""

import argparse
import csv
import json
import math
import shutil
import statistics
import sys
from pathlib import Path

import data
import processes
import sample
import train
from data import UserError
from extras.jobs import Job, run_jobs
from extras.judges import Judges
from extras.tables import markdown, save_curves, save_sheet, write_csv, write_tables

# ---- The rows ------------------------------------------------------------------------------------

# Name of the row: its module and options. K of --pixel-noise is 0 in the paper; 16 is ours.
ROWS = {
    "colour-table": "extras.colour_table",
    "oasis": "train --pixel-noise 0",
    "oasis+pixels": "train --pixel-noise 16",
    "oasis-no-labelmix": "train --pixel-noise 0 --lambda-labelmix 0",
    "oasis-no-balance": "train --pixel-noise 0 --no-class-balance",
    "oasis-no-noise": "train --pixel-noise 0 --noise-dim 0",
    "oasis-patch": "extras.parts --part patch-discriminator --pixel-noise 0",
    "spade+": "extras.spade --lambda-vgg 0",
    "spade+noise": "extras.spade --lambda-vgg 0 --multimodal noise --pixel-noise 0",
    "spade+pixels": "extras.spade --lambda-vgg 0 --multimodal noise --pixel-noise 16",
    "spade+encoder": "extras.spade --lambda-vgg 0 --multimodal encoder",
    "pix2pixhd": "extras.pix2pixhd --lambda-vgg 0",
    "pix2pixhd+noise": "extras.pix2pixhd --lambda-vgg 0 --multimodal noise --pixel-noise 0",
    "ccfpse": "extras.ccfpse --lambda-vgg 0",
    "ccfpse+noise": "extras.ccfpse --lambda-vgg 0 --multimodal noise --pixel-noise 0",
}
CLAIMS = list(ROWS)
# What OASIS with noise at every pixel, the preset of short trainings, is without one of its parts.
PARTS = {
    "no-labelmix": "train --pixel-noise 16 --lambda-labelmix 0",
    "no-balance": "train --pixel-noise 16 --no-class-balance",
    "no-average": "train --pixel-noise 16 --ema-decay 0",
    "no-spectral-norm": "extras.parts --part no-spectral-norm --pixel-noise 16",
    "no-skips": "extras.parts --part no-skips --pixel-noise 16",
    "no-frozen-norm": "train --pixel-noise 16 --frozen-norm 0",
    "zeros": "train --pixel-noise 16 --padding zeros",
}
# How many channels of the noise are drawn at every pixel, and both kinds of padding.
PIXELS = {
    "oasis-zeros": "train --pixel-noise 0 --padding zeros",
    "oasis+pixels-4": "train --pixel-noise 4",
    "oasis+pixels-64": "train --pixel-noise 64",
}
ROWS.update(PIXELS)
GROUPS = {"claims": CLAIMS, "parts": ["oasis+pixels", "oasis", "oasis-no-noise"],
          "pixels": ["oasis", "oasis+pixels", "part-zeros", *PIXELS]}
for part, words in PARTS.items():
    ROWS[f"part-{part}"] = words
    GROUPS["parts"].append(f"part-{part}")
METHODS = ["oasis", "spade+", "pix2pixhd", "ccfpse"]        # the rows whose rates are chosen

# Rows that are compared: the first minus the second.
PAIRS = [("oasis", "spade+"), ("oasis", "spade+noise"), ("oasis-no-noise", "spade+"),
         ("oasis+pixels", "spade+pixels"), ("oasis+pixels", "oasis"),
         ("spade+pixels", "spade+noise"), ("oasis", "oasis-no-noise"), ("spade+noise", "spade+"),
         ("oasis", "oasis-patch"), ("oasis-patch", "spade+noise"), ("oasis", "oasis-no-labelmix"),
         ("oasis", "oasis-no-balance"), ("spade+noise", "spade+encoder"), ("oasis", "pix2pixhd"),
         ("oasis", "pix2pixhd+noise"), ("oasis", "ccfpse"), ("oasis", "ccfpse+noise"),
         ("spade+", "pix2pixhd"), ("spade+", "ccfpse"), ("oasis", "colour-table"),
         ("oasis+pixels", "oasis-no-noise"), ("part-zeros", "oasis-zeros"),
         ("oasis-zeros", "oasis"), ("oasis+pixels", "oasis+pixels-4"),
         ("oasis+pixels", "oasis+pixels-64")]
for part in PARTS:
    PAIRS.append(("oasis+pixels", f"part-{part}"))


def expand_rows(names):
    """Rows and groups of rows -> rows, each once, in the given order."""
    rows = []
    for name in names:
        rows += GROUPS.get(name, [name])
    return list(dict.fromkeys(rows))


# ---- Learning rates ------------------------------------------------------------------------------


def read_pair(text):
    """ "1e-3,4e-3" -> the rates of G and of D, as they stand there."""
    pair = text.split(",")
    if len(pair) != 2 or not all(float(rate) > 0 for rate in pair):
        raise argparse.ArgumentTypeError(f"{text!r}: must be two rates above 0, G's and D's")
    return tuple(pair)


def chosen_rates(out, row):
    """Options of the rates that rates.csv chose for a row or its method; [] without any.

    Its method: the row of rates.csv with the longest name that the row's name begins with.
    """
    path, best, options = out / "rates.csv", "", []
    if not path.exists():
        return []
    name = row.replace("part-", "oasis-")
    with open(path, newline="") as file:
        for line in csv.DictReader(file):
            fits = name.startswith(line["row"]) and len(line["row"]) > len(best)
            if line["chosen"] == "yes" and fits:
                best, options = line["row"], [f"--lr-g={line['lr_g']}", f"--lr-d={line['lr_d']}"]
    return options


def choose_rates(args, common, out):
    """Train each row with each pair of rates; write and print rates.csv. False: stopped."""
    jobs = {}
    for row in args.rows:
        for pair in args.grid:
            rates = [f"--lr-g={pair[0]}", f"--lr-d={pair[1]}"]
            folder = out / "rates" / row / "_".join(pair)
            jobs[row, pair] = make_job(row, args.seeds[0], folder, rates, common)
    share_segmenter(jobs.values(), out)
    complete, stopped = run_jobs(list(jobs.values()), args.jobs)
    if stopped:
        return False
    lines = [["row", "lr_g", "lr_d", "fd_segmenter", "miou", "chosen"]]
    for row in args.rows:
        found = {}
        for pair in args.grid:
            # A training that failed, say because a loss was not finite, cannot be chosen.
            found[pair] = {"fd_segmenter": math.inf, "miou": math.nan}
            if jobs[row, pair] in complete:
                path = jobs[row, pair].folder / "latest.pt"
                found[pair] = sample.load_checkpoint(path)["scores"][-1]
        best = min(values["fd_segmenter"] for values in found.values())
        for (lr_g, lr_d), values in found.items():
            distance, miou = values["fd_segmenter"], values["miou"]
            chosen = "yes" if distance == best < math.inf else ""
            lines.append([row, lr_g, lr_d, round(distance, 4), round(miou, 4), chosen])
    write_csv(out / "rates.csv", lines)
    print("\n" + markdown(lines))
    return True


# ---- Runs and their scores -----------------------------------------------------------------------


def make_job(row, seed, folder, rates, common):
    """The Job of a row and a seed. The row's own options come last, as the last one counts."""
    words = ROWS[row].split()
    name = " ".join([row, f"seed {seed}"] + rates)
    return Job(name, folder, words[:1] + rates + common + words[1:] + [f"--seed={seed}"])


def make_jobs(args, common, out):
    """{(row, seed): Job}: all rows of one seed, then the next seed."""
    jobs = {}
    for seed in args.seeds:
        for row in args.rows:
            folder = out / row / f"seed{seed}"
            if row != "colour-table":
                jobs[row, seed] = make_job(row, seed, folder, chosen_rates(out, row), common)
            elif seed == args.seeds[0]:         # it learns nothing, so one is enough
                jobs[row, seed] = make_job(row, seed, folder, [], common)
    return jobs


def share_segmenter(jobs, out):
    """All runs are scored by one segmenter; each keeps a copy."""
    for job in jobs:
        if not job.is_complete:
            job.folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(out / "segmenter.pt", job.folder)


def count_trained(checkpoint):
    """How many numbers the training changed, of G and D: Adam keeps a mean of each. 0: none."""
    total = 0
    for name in ("optimizer_G", "optimizer_D"):
        for of_parameter in checkpoint.get(name, {"state": {}})["state"].values():
            total += of_parameter["exp_avg"].numel()
    return total


def seconds_per_step(log):
    """The median over the rows of log.csv, because some hold the time of pictures and scores."""
    rates = []
    for before, after in zip(log, log[1:]):
        rates.append((after["seconds"] - before["seconds"]) / (after["step"] - before["step"]))
    return statistics.median(rates) if rates else math.nan


def measure(folder, judges):
    """{column: value} of a run; kept in its folder."""
    kept = folder / f"scores_{judges.maps}_maps_{judges.lraspp_steps}_steps.json"
    if kept.exists():
        return json.loads(kept.read_text())
    checkpoint = sample.load_checkpoint(folder / "latest.pt")
    result = judges.measure(sample.build_generator(checkpoint).to(judges.device))
    if checkpoint["scores"] and "d_miou" in checkpoint["scores"][-1]:
        result["d_miou"] = checkpoint["scores"][-1]["d_miou"]
    if checkpoint["log"]:
        result["seconds_per_step"] = seconds_per_step(checkpoint["log"])
    result["parameters"] = count_trained(checkpoint)
    with data.write_whole(kept) as partial:
        partial.write_text(json.dumps(result))
    return result


# ---- The command line ----------------------------------------------------------------------------


def ablate(args, common):
    """Train, measure, print. Returns False where a run failed or was stopped."""
    out = Path(args.out).resolve()
    settings = train.parse_settings(common + ["--run-dir", str(out)])
    train_set, val_set = train.open_datasets(settings)
    device = processes.start_processes()
    jobs = make_jobs(args, common, out) if not args.rates else {}
    judges = Judges(train_set, val_set, device, out, args.maps, settings.segmenter_steps or None,
                    args.judge_steps)
    if args.rates:
        return choose_rates(args, common, out)
    if args.no_training:
        jobs = {run: job for run, job in jobs.items() if job.is_complete}
    share_segmenter(jobs.values(), out)
    complete, stopped = run_jobs(list(jobs.values()), args.jobs)
    if stopped:
        print("Stopped, all is saved; the same command goes on.")
    results, runs = [], {}
    for (row, seed), job in jobs.items():
        if job in complete and not stopped:
            results.append((row, seed, measure(job.folder, judges)))
            runs[row, seed] = job.folder
    if results:
        save_curves(runs, out / "curves.png")
        save_sheet(runs, val_set, device, out / "sheet.png", args.scale, args.empty_real)
        write_tables(out, results, PAIRS)
    return len(complete) == len(jobs) and not stopped


@data.exit_in_words("extras.ablation")
def main(argv=None):
    """The command line. Exit code 0: done; 1: a run failed or was stopped; 2: a user's mistake."""
    parser = argparse.ArgumentParser("extras.ablation", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = list(GROUPS) + list(ROWS)
    add("--rows", nargs="+", choices=names, metavar="ROW",
        help=f"rows, or groups of them: {', '.join(names)} (default: claims; with --rates "
             f"{' '.join(METHODS)})")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    add("--out", default="runs/ablation", help="folder (default: runs/ablation)")
    add("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add("--judge-steps", type=int, default=600, help="training steps of LR-ASPP (default: 600)")
    add("--maps", type=int, default=40,
        help="label maps for diversity, colour and texture (default: 40)")
    add("--rates", action="store_true", help="choose learning rates, with the first seed")
    add("--grid", type=read_pair, nargs="+", metavar="G,D",
        default=[("5e-4", "2e-3"), ("1e-3", "1e-3"), ("1e-3", "4e-3"), ("2e-3", "5e-3")],
        help="pairs of rates to try (default: 5e-4,2e-3 1e-3,1e-3 1e-3,4e-3 2e-3,5e-3)")
    add("--no-training", action="store_true",
        help="table and pictures of those rows and seeds that are complete")
    add("--scale", type=int, help="enlargement of the sheet (default: by image size)")
    add("--empty-real", action="store_true", help="no photographs on the sheet")
    args, common = parser.parse_known_args(argv)
    args.rows = expand_rows(args.rows or (METHODS if args.rates else ["claims"]))
    given = {word.split("=")[0] for word in common}
    for option in ("--seed", "--run-dir", "--resume"):
        if option in given:
            raise UserError(f"{option}: is chosen by the rows and by --seeds and --out")
    if args.rates and given & {"--lr-g", "--lr-d"}:
        raise UserError("--lr-g, --lr-d: --rates chooses them; --grid names the pairs to try")
    sys.exit(0 if ablate(args, common) else 1)


if __name__ == "__main__":
    main()
