"""Several gloo processes on the CPU make the run that one process makes, and end together."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_datasets
import torch

import oasis

ROOT = Path(__file__).resolve().parent.parent
# Two pictures of 32 x 32 for each process, and networks so small that starting takes most of the time.
TINY = ["--preset", "folder", "--height", "32", "--width", "32", "--channels", "2", "--num-blocks", "3",
        "--spade-hidden", "4", "--d-channels", "4", "8", "--batch-size", "6", "--metrics", "none",
        "--log-every", "1", "--picture-every", "100000", "--checkpoint-every", "3", "--workers", "0"]


# ---- The same numbers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """What tests/forked.py finds in 1, 2 and 3 processes: {number: dictionary}."""
    out = tmp_path_factory.mktemp("shares")
    done = subprocess.run([sys.executable, ROOT / "tests" / "forked.py", "shares", out], timeout=170,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {world_size: torch.load(out / f"{world_size}.pt") for world_size in (1, 2, 3)}


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_gradient_is_that_of_the_whole_batch(shares, world_size):
    """Batch norm in eval mode: class weights, LabelMix and means must not see how the batch is split."""
    alone, split = shares[1], shares[world_size]
    largest = max(g.abs().max() for g in alone["gradients"])
    for a, b in zip(alone["gradients"], split["gradients"]):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-6 * largest)
    torch.testing.assert_close(split["terms"], alone["terms"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("world_size", [2, 3])
def test_after_steps_all_processes_hold_the_same_weights(shares, world_size):
    for digests in shares[world_size]["digests"]:
        assert len(digests) == world_size and len(set(digests)) == 1
    assert shares[world_size]["digests"][0] != shares[world_size]["digests"][1]      # G, D


@pytest.mark.parametrize("world_size", [2, 3])
def test_scores_do_not_depend_on_the_number_of_processes(shares, world_size):
    assert len(shares[1]["scores"]) == 7
    assert shares[world_size]["scores"] == pytest.approx(shares[1]["scores"], rel=1e-6, abs=1e-9)


# ---- The same end ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    tiny_datasets.write_folder(root, train=12, val=2)
    return root


def start(run, *command):
    """The command in a process group of its own, once it has made a first step; its workers' ids by rank."""
    job = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                           start_new_session=True)
    end = time.monotonic() + 120
    while not (run / "log.csv").exists():
        assert job.poll() is None and time.monotonic() < end, job.communicate()
        time.sleep(0.02)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    assert len(children) == 2
    return job, sorted(map(int, children))                           # rank 0 was started first


def finish(job, code=1):
    """What it printed: torchrun's own lines, the progress bar, and the sentences of train.py."""
    output = job.communicate(timeout=60)[0]
    assert job.returncode == code, output
    assert not re.search(r"(\[rank\d\]|train\.py\", line).*", output), output        # no traceback of ours
    return output


def steps_in(path):
    with open(path, newline="") as f:
        return [int(row["step"]) for row in csv.DictReader(f)]


def lost(run):
    return (f"train.py: another process of this run ended, or could not be reached; the last checkpoint, if "
            f"there is one, is whole; go on by: torchrun --nproc_per_node=2 train.py --run-dir {run} --resume\n")


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]


def test_a_dead_process_ends_a_job_of_torchrun_in_seconds(tmp_path, photos):
    run = tmp_path / "run"
    job, children = start(run, *TORCHRUN, *TINY, "--data-root", photos, "--run-dir", run)
    began = time.monotonic()
    os.kill(children[1], signal.SIGKILL)
    assert lost(run) in finish(job) and time.monotonic() - began < 20
    assert oasis.load_checkpoint(run / "latest.pt")["processes"] == 2


def test_resuming_with_another_number_of_processes_works_and_says_so(tmp_path, photos):
    """Of two processes rank 0 dies, and the other ends by itself; then three go on, then one."""
    run = tmp_path / "run"
    resume = ["--run-dir", run, "--resume", "--steps"]
    job, children = start(run, "tests/forked.py", "train", "2", *TINY, "--data-root", photos, "--run-dir", run,
                          "--checkpoint-every", "100000", "--", "3", *resume, "3", "--", "1", *resume, "6")
    os.kill(children[0], signal.SIGKILL)
    output = finish(job, code=0)
    assert lost(run) in output
    for before, now, images in [(2, 3, "2 images instead of 3; batch norm sees only those"),
                                (3, 1, "6 images instead of 2; batch norm sees only those")]:
        sentence = f"was trained by {before} processes so far, now by {now}: .* takes {images}"
        assert len(re.findall(sentence, output)) == 1, output
    resumed = oasis.load_checkpoint(run / "latest.pt")
    assert resumed["step"] == 6 and resumed["processes"] == 1
    assert all(v.isfinite().all() for v in resumed["generator"].values())
    assert steps_in(run / "log.csv") == [1, 2, 3, 4, 5, 6]


def test_sigterm_to_the_whole_job_saves_once_and_says_once_how_to_go_on(tmp_path):
    """As a scheduler does it: torchrun, both processes and those that load images get the signal, and
    torchrun sends it on to the processes. Until then it is one run: pictures and scores come once."""
    run = tmp_path / "run"
    job, _ = start(run, *TORCHRUN, *TINY[2:], "--preset", "toy", "--run-dir", run, "--workers", "1",
                   "--metrics", "miou", "--segmenter-steps", "2", "--score-images", "8", "--score-every", "2",
                   "--checkpoint-every", "100000")
    os.killpg(job.pid, signal.SIGTERM)
    output = finish(job)
    stopped = oasis.load_checkpoint(run / "latest.pt")["step"]
    assert output.count(f"train.py: stopped after step {stopped} as asked, all is saved; go on by: torchrun "
                        f"--nproc_per_node=2 train.py --run-dir {run} --resume\n") == 1, output
    assert output.count("train.py: ") == 1 and "Traceback" not in output.split("torch/distributed")[0]
    for name, steps in (("log.csv", range(1, stopped + 1)), ("scores.csv", range(0, stopped + 1, 2))):
        assert steps_in(run / name) == list(steps)
