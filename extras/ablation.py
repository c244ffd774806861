"""The paper's claims on one's own machine: train the rows of a table over several seeds, print it.

    python -m extras.ablation                                # all rows on drawn scenes, 3 seeds
    python -m extras.ablation --rows oasis spade+ --seeds 0 --steps 200        # quick, says little

Given again, the same command goes on where it stopped. Options that are not named in --help go to
every run. All runs share data, steps, batch, widths, padding, learning rates and judges; the seed
changes the initial weights, the order of the images, noise and coins.

Two judges read the images: metrics.py's segmenter, a U-Net like D, and torchvision's LR-ASPP on
MobileNetV3, which has nothing of D. Both are trained here, on the same real images.

--out holds ROW/seedS/ (a run each), segmenter.pt, lraspp.pt, ablation.csv, curves.png, sheet.png.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from tqdm import tqdm

import processes
import sample
import data
import losses
import metrics
import oasis
import train
from extras import scores
from data import UserError

ROWS = {                                            # name of the row: script and its options
    "oasis": "train",
    "oasis-no-noise": "train --noise-dim 0",
    "spade+": "extras.spade --lambda-vgg 0",
    "spade+noise": "extras.spade --lambda-vgg 0 --multimodal noise",
    "oasis-no-labelmix": "train --lambda-labelmix 0",
    "oasis-no-balance": "train --no-class-balance",
    "spade+encoder": "extras.spade --lambda-vgg 0 --multimodal encoder",
}
COLUMNS = ("miou", "miou_lraspp", "fd_segmenter", "ms_ssim", "colour", "seconds_per_step")


# ---- The second judge ----------------------------------------------------------------------------


def train_lraspp(network, dataset, size, steps):
    """Train torchvision's LR-ASPP on real images, enlarged to `size`."""
    device = next(network.parameters()).device
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.1            # 0.01 would leave its statistics 100 steps behind
    optimizer = torch.optim.Adam(network.parameters(), 6e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps, pct_start=0.1)
    batches = iter(data.make_loader(dataset, data.BatchSampler(len(dataset), 8, 0), 0))
    for _ in tqdm(range(steps), "training LR-ASPP", leave=False, disable=None):
        images, labels = (tensor.to(device) for tensor in next(batches))
        logits = network(F.interpolate(images, size, mode="bilinear"))["out"]
        logits = F.interpolate(logits, dataset.size, mode="bilinear")
        weights = losses.count_classes(labels, dataset.num_classes).clamp(min=1).float().rsqrt()
        if dataset.ignore_label is not None:
            weights[dataset.ignore_label] = 0       # all as for metrics.py's segmenter
        loss = F.cross_entropy(logits, labels, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def second_judge(out, dataset, device, steps):
    """LR-ASPP as a metrics.Segmenter, from out/lraspp.pt or trained now and kept there."""
    path = out / "lraspp.pt"
    # Its features are 8 times coarser than its input, so small images are enlarged.
    size = tuple(side * max(1, 128 // max(dataset.size)) for side in dataset.size)
    torch.manual_seed(0)
    network = lraspp_mobilenet_v3_large(num_classes=dataset.num_classes, weights=None,
                                        weights_backbone=None).to(device)
    if not path.exists():
        train_lraspp(network, dataset, size, steps)
        with data.write_whole(path) as partial:
            torch.save(network.state_dict(), partial)
    network.load_state_dict(sample.read_tensors(path))
    network.requires_grad_(False).eval()
    return metrics.Segmenter(lambda images: network(images)["out"], dataset, size=size)


# ---- One run -------------------------------------------------------------------------------------


class Run:
    """One training: a row of the table with one seed."""

    def __init__(self, row, seed, out, common):
        self.row, self.seed, self.folder = row, seed, out / row / f"seed{seed}"
        self.words = [*ROWS[row].split(), *common, f"--seed={seed}", f"--run-dir={self.folder}"]
        command = self.folder / "command.txt"
        if command.exists() and command.read_text() != " ".join(self.words):
            raise UserError(f"{self.folder}: was trained by other options; choose another --out")

    def train(self, jobs, processes):
        """Train what is missing in a process of its own, added to `processes`. True: complete."""
        if (self.folder / "complete").exists():
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "command.txt").write_text(" ".join(self.words))
        shutil.copy(self.folder.parents[1] / "segmenter.pt", self.folder)
        print(self.row, self.seed, flush=True)
        with open(self.folder / "output.txt", "w") as output:
            processes.append(subprocess.Popen(
                [sys.executable, "-m", *self.words,
                 *["--resume"] * (self.folder / "latest.pt").exists()],
                stdout=output, stderr=subprocess.STDOUT, cwd=Path(train.__file__).parent,
                env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads() // jobs or 1)}))
            code = processes[-1].wait()
        if code:
            said = [line for line in (self.folder / "output.txt").read_text().splitlines()
                    if line and "%|" not in line][-1:]                  # no progress bars
            print(f"{self.row}, seed {self.seed}: exit code {code}: {' '.join(said)}")
        else:
            (self.folder / "complete").touch()
        return code == 0

    def checkpoint(self):
        return sample.load_checkpoint(self.folder / "latest.pt")

    def measure(self, val_set, judge, device, maps):
        """{column: value}: the run's last scores, and those that training does not measure."""
        kept = self.folder / f"scores_{maps}_maps.json"
        if kept.exists():
            return json.loads(kept.read_text())
        checkpoint = self.checkpoint()
        result, log = dict(checkpoint["scores"][-1]), checkpoint["log"]
        G = sample.build_generator(checkpoint).to(device)
        second = metrics.Scorer(val_set, None, device, ["miou"], segmenter=judge)(G)
        result.update(miou_lraspp=second["miou"], miou_lraspp_real=second["miou_real"],
                      **scores.score(G, val_set, ("ms_ssim", "colour"), maps, device=device))
        # The median, because some rows hold the time of pictures and scores, too.
        result["seconds_per_step"] = statistics.median(
            (b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in zip(log, log[1:]))
        with data.write_whole(kept) as partial:
            partial.write_text(json.dumps(result))
        return result


# ---- The table and the pictures ------------------------------------------------------------------


def table(results):
    """[(row, seed, {column: value})] -> a markdown table, mean ± standard deviation over seeds."""
    real = (results[0][2].get(f"{name}_real", "") for name in COLUMNS)
    lines = [["", *COLUMNS, "seeds"], ["---"] * (len(COLUMNS) + 2),
             ["real images", *(value and f"{value:.3g}" for value in real), ""]]
    for row in dict.fromkeys(row for row, _, _ in results):
        of_row, cells = [values for name, _, values in results if name == row], []
        for values in ([result[column] for result in of_row] for column in COLUMNS):
            deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{deviation}")
        lines.append([row, *cells, str(len(of_row))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save_curves(runs, path):
    """The scores of each row over the steps: a line for the mean of the seeds, a dot for each."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="tight")
    for axis, name in zip(axes, ("miou", "fd_segmenter")):
        for row in dict.fromkeys(run.row for run in runs):
            scored = [run.checkpoint()["scores"] for run in runs if run.row == row]
            steps = [line["step"] for line in scored[0]]
            values = list(zip(*([line[name] for line in lines] for lines in scored)))
            curve, = axis.plot(steps, [statistics.mean(of_step) for of_step in values], label=row)
            axis.plot(steps, values, ".", color=curve.get_color())
        axis.set(xlabel="step", ylabel=name)
    axes[0].legend()
    figure.savefig(path, dpi=80)


@torch.no_grad()
def save_sheet(runs, val_set, device, path):
    """Every row's pictures of the same label maps from the same noise seeds, side by side."""
    columns = {run.row: sample.build_generator(run.checkpoint()).to(device) for run in runs}
    grid = []
    for i in range(0, len(val_set), max(1, len(val_set) // 5))[:5]:
        image, labels = val_set[i]
        for seed in (0, 1):
            painted = [G(labels[None].to(device),
                         oasis.noise_from_seeds([seed], G.noise_dim).to(device))
                       for G in columns.values()]
            grid.append([val_set.palette[labels],
                         *data.to_uint8(torch.cat([image[None].to(device), *painted]))])
    scale = max(1, 128 // val_set.size[0])
    data.picture_grid(grid, ["label map", "real", *columns], scale).save(path)


def ablate(args, common):
    """Train, measure, print. Returns False where a run failed."""
    out = Path(args.out).resolve()
    runs = [Run(row, seed, out, common) for seed in args.seeds for row in args.rows]
    s = train.parse_settings([*common, "--run-dir", str(out)])
    train_set, val_set = (data.open_dataset(
        s.preset, split, (s.height, s.width), s.data_root or None, seed=s.data_seed,
        subset=s.subset or None) for split in ("train", "val"))
    device = processes.start_processes()
    metrics.Scorer(val_set, train_set, device, ["miou"], run_dir=out,
                   segmenter_steps=s.segmenter_steps or None).prepare()
    judge, processes = second_judge(out, train_set, device, args.judge_steps), []

    def stop(number, frame):                    # each run ends its step and saves
        for process in processes:
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with ThreadPoolExecutor(args.jobs) as pool:
        complete = pool.map(lambda run: run.train(args.jobs, processes), runs)
        done = [run for run, is_complete in zip(runs, complete) if is_complete]
    results = [(run.row, run.seed, run.measure(val_set, judge, device, args.maps)) for run in done]
    if results:
        with open(out / "ablation.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "seed", *COLUMNS])
            writer.writerows([row, seed, *map(v.get, COLUMNS)] for row, seed, v in results)
        save_curves(done, out / "curves.png")
        save_sheet([run for run in done if run.seed == args.seeds[0]], val_set, device,
                   out / "sheet.png")
        print(f"\n{table(results)}\n\nMean ± standard deviation over the seeds; see also {out}.")
    return len(done) == len(runs)


@data.exit_in_words("extras.ablation")
def main(argv=None):
    """The command line. Exit code 0: done; 1: a run failed or was stopped; 2: a user's mistake."""
    parser = argparse.ArgumentParser("extras.ablation", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="(default: all)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    add("--out", default="runs/ablation", help="folder (default: runs/ablation)")
    add("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add("--judge-steps", type=int, default=600, help="training steps of LR-ASPP (default: 600)")
    add("--maps", type=int, default=40, help="label maps for MS-SSIM and colour (default: 40)")
    args, common = parser.parse_known_args(argv)
    for option in {"--seed", "--run-dir", "--resume"} & {w.split("=")[0] for w in common}:
        raise UserError(f"{option}: is chosen by the rows and by --seeds and --out")
    sys.exit(0 if ablate(args, common) else 1)


if __name__ == "__main__":
    main()
