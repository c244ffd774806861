"""The paper's claims on one's own machine: trains the rows of a table, and prints it.

    python ablation.py                                  # ablation.txt on drawn scenes, seeds 0 1 2
    python ablation.py --seeds 0 --steps 200            # quicker, and less to be believed
    python ablation.py --rows mine.txt --jobs 2 --preset folder --data-root my_photos
    python ablation.py --vgg-weights vgg19-dcbb9e9d.pth # with the rows of the perceptual loss

A row is a line `name: options of train.py`; options that ablation.py does not know go to every run.
All runs learn from the same images (--data-seed), are scored by one segmenter and have the same
sizes, steps and learning rates, unless their row says otherwise; seeds differ in initial weights,
order of the images, noise and coins. A run that is complete is not trained again and one that was
stopped goes on, so the same command, given again, finishes the table.
"""

import argparse
import dataclasses
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import data
import layouts
import metrics
import models
import oasis
import settings
import train

DIVERSITY_IMAGES = 40       # label maps for MS-SSIM, 20 samples each
OWN_OPTIONS = ("--seed", "--run-dir", "--segmenter", "--resume")


@dataclasses.dataclass
class Run:
    """One training: a row of the table with one seed."""
    row: str
    seed: int
    folder: Path
    options: list               # of train.py, without --resume
    settings: settings.Settings


# ---- Which runs ----------------------------------------------------------------------------------


def read_rows(path):
    """A file of lines `name: options` -> {name: [options]}; # begins a comment.

    Raises SettingsError or data.DataError.
    """
    rows = {}
    for number, line in enumerate(layouts.read_lines(Path(path), "names the table's rows"), 1):
        name, colon, options = line.partition("#")[0].strip().partition(":")
        if name and not colon:
            raise settings.SettingsError(f"{path}, line {number}: write NAME: OPTIONS of train.py")
        if name in rows:
            raise settings.SettingsError(f"{path}, line {number}: a second row named {name!r}")
        if name:
            try:
                rows[name] = shlex.split(options)
            except ValueError as e:                     # a quotation mark without its partner
                raise settings.SettingsError(f"{path}, line {number}: {e}") from e
    return rows


def folder_name(row):
    """SPADE+ with encoder -> spade-plus-with-encoder"""
    return re.sub(r"\W+", "-", row.lower().replace("+", " plus")).strip("-")


def plan(args, common):
    """Every row with every seed -> [Run]; rows with VGG only where its weights are named."""
    runs, left_out = [], []
    if args.vgg_weights and not Path(args.vgg_weights).is_file():
        raise settings.SettingsError(f"--vgg-weights {args.vgg_weights}: there is no such file")
    for row, options in read_rows(args.rows).items():
        for seed in args.seeds:
            folder = Path(args.out) / folder_name(row) / f"seed{seed}"
            options_of_run = [*common, *options, "--seed", str(seed), "--run-dir", str(folder),
                              "--segmenter", str(Path(args.out) / "segmenter.pt")]
            s, _ = settings.parse_arguments(options_of_run)
            if s.lambda_vgg and not s.vgg_weights:
                if not args.vgg_weights:
                    left_out += [row] * (row not in left_out)
                    continue
                s.vgg_weights = args.vgg_weights
                options_of_run += ["--vgg-weights", args.vgg_weights]
            settings.check_settings(s, 1)
            runs.append(Run(row, seed, folder, options_of_run, s))
    if left_out:
        print(f"Left out, as --vgg-weights FILE is not given: {'; '.join(left_out)}")
    folders = [run.folder for run in runs]
    for run in runs:
        if folders.count(run.folder) > 1:
            raise settings.SettingsError(f"{run.row}, seed {run.seed}: another row or seed would "
                                         f"share its folder {run.folder}; choose another name")
    return runs


def steps_done(run):
    """Steps of the run so far. SettingsError where its folder holds a run of other settings."""
    latest = run.folder / "latest.pt"
    if not latest.exists():
        return 0
    checkpoint = oasis.load_checkpoint(latest)
    for name, asked in dataclasses.asdict(run.settings).items():
        was = checkpoint["config"].get(name)
        if was != asked and name not in ("resume", "run_dir", "data_root", "segmenter"):
            raise settings.SettingsError(
                f"{run.folder}: was trained with {settings.flag(name)} {was}, not {asked}; choose "
                f"another --out for another table")
    return checkpoint["step"]


# ---- One run -------------------------------------------------------------------------------------


def finish(run, total_steps, scorer, jobs, processes):
    """Train what is missing, measure -> the run's line of the table, {column: value}, or None.

    `processes`: a list that the process of the training is put in, to be ended with this program.
    """
    done, title = steps_done(run), f"{run.row}, seed {run.seed}"
    if done < total_steps:
        print(f"{title}: from step {done} to {total_steps}", flush=True)
        run.folder.mkdir(parents=True, exist_ok=True)
        threads = str(max(1, torch.get_num_threads() // jobs))
        command = [sys.executable, train.__file__, *run.options, *["--resume"] * (done > 0)]
        with open(run.folder / "output.txt", "w", encoding="utf-8") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT,
                                       env={**os.environ, "OMP_NUM_THREADS": threads})
            processes.append(process)
            code = process.wait()
        if code:
            said = (run.folder / "output.txt").read_text(encoding="utf-8")
            why = re.findall(r"train\.py: .*", said) or said.splitlines()      # or a traceback
            print(f"{title}: exit code {code}: {' '.join(why[-1:])}", flush=True)
            return None
    kept = run.folder / "ablation.json"
    if done < total_steps or not kept.exists():
        result = measure(run, scorer)
        with layouts.written_whole(kept) as temporary:
            temporary.write_text(json.dumps(result), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def measure(run, scorer):
    """The last scores of the run, its diversity, speed and size -> {column: value}."""
    checkpoint = oasis.load_checkpoint(run.folder / "latest.pt")
    scores = [{"step": 0}, *train.read_rows(run.folder / "scores.csv")][-1]
    with torch.no_grad():
        diversity = scorer.diversity(models.generator_from(checkpoint).to(scorer.device))
    log = train.read_rows(run.folder / "log.csv")
    # The median, because some rows hold the time of pictures and scores, too.
    speeds = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in zip(log, log[1:])]
    with torch.device("meta"):
        networks = models.make_networks(run.settings, scorer.dataset.num_classes)
    del scores["step"]
    return {"row": run.row, "seed": run.seed, **scores, **diversity,
            "seconds_per_step": statistics.median(speeds) if speeds else float("nan"),
            "parameters": sum(p.numel() for network in networks for p in network.parameters())}


# ---- The table -----------------------------------------------------------------------------------


def table(results):
    """[{column: value}] of all runs -> a markdown table of mean ± standard deviation by row."""
    rows = list(dict.fromkeys(result["row"] for result in results))
    names = [name for name in dict.fromkeys(name for result in results for name in result)
             if name not in ("row", "seed") and not name.endswith("_real")]
    lines = [["", *names, "seeds"], ["---"] * (len(names) + 2)]
    for row in rows:
        of_row = [result for result in results if result["row"] == row]
        cells = [describe([result[name] for result in of_row if name in result], name)
                 for name in names]
        lines.append([row, *cells, str(len(of_row))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe(values, name):
    """Mean ± standard deviation over the seeds (n − 1); parameters are counted, not measured."""
    if not values or name == "parameters":
        return f"{values[0]:,}" if values else "–"
    spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{spread}"


def run_all(args, common):
    """Train and measure every run, print the table -> False where one of them failed."""
    runs = plan(args, common)
    if not runs:
        raise settings.SettingsError(f"--rows {args.rows}: there is no row to train")
    for run in runs:
        steps_done(run)                 # refuses other tables' folders before an hour is spent
    first, out = runs[0].settings, Path(args.out)
    train_set, val_set = train.open_data(first)
    with layouts.readable(out, layouts.NOT_WRITTEN):
        out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = metrics.Scorer(val_set, train_set, device, ["ms_ssim"], DIVERSITY_IMAGES)
    # Trains the segmenter that all runs share, the first time.
    metrics.Scorer(val_set, train_set, device, ["miou"], run_dir=out,
                   segmenter_steps=first.segmenter_steps or None)
    processes = []

    def one(run):
        s = run.settings
        total_steps = s.steps or s.epochs * (len(train_set) // s.batch_size)
        return finish(run, total_steps, scorer, args.jobs, processes)

    def stop(*_):                       # SIGTERM reaches this program only; Ctrl-C the runs, too
        for process in processes:
            process.terminate()         # lets its step end, and saves
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGTERM, stop)
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            results = list(pool.map(one, runs))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            signal.signal(signal.SIGTERM, handler)
    finished = [result for result in results if result]
    if finished:
        train.write_rows(out / "ablation.csv", finished)
        print(f"\n{table(finished)}\n\nMean ± standard deviation over the seeds. {first.preset} at "
              f"{first.height}×{first.width}; ms_ssim on {scorer.count} label maps; seconds per "
              f"step: the median, {args.jobs} run(s) at a time on {device}. Of real images: "
              + ", ".join(f"{name.removesuffix('_real')} {value:.4g}"
                          for name, value in finished[0].items() if name.endswith("_real")))
    return len(finished) == len(results)


def main(argv=None):
    """Command line. Exit code 0: done; 1: a run failed or was stopped; 2: a mistaken request."""
    parser = argparse.ArgumentParser(
        "ablation.py", description=__doc__.split("\n\n")[0], allow_abbrev=False,
        epilog="All other options go to every run of train.py; see python train.py --help.")
    parser.add_argument("--rows", default=str(Path(__file__).with_name("ablation.txt")),
                        metavar="FILE", help="lines `name: options` (default: ablation.txt)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--out", default="runs/ablation", help="folder (default: runs/ablation)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--vgg-weights", default="", metavar="FILE",
                        help="torchvision's VGG19, for the rows that have the perceptual loss")
    args, common = parser.parse_known_args(argv)
    try:
        for option in OWN_OPTIONS:
            if any(word.split("=")[0] == option for word in common):
                raise settings.SettingsError(f"{option}: is chosen for each run by ablation.py; it "
                                             f"knows --seeds, --out")
        if args.jobs < 1:
            raise settings.SettingsError(f"--jobs {args.jobs}: must be at least 1")
        sys.exit(0 if run_all(args, common) else 1)
    except (settings.SettingsError, data.DataError, oasis.CheckpointError,
            metrics.MetricsError) as e:
        print(f"ablation.py: error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:       # the runs have got the same signal, and save
        print("ablation.py: stopped; the same command goes on with it", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
