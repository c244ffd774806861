"""Several gloo processes on the CPU make the run that one process makes, and end together."""

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


def start(photos, run, *more):
    """torchrun with two processes, in a process group of its own; returns it and its workers' ids."""
    job = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py",
         *TINY, "--data-root", photos, "--run-dir", run, "--steps", "100000", *more], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True)
    end = time.monotonic() + 120
    while not (run / "latest.pt").exists() or oasis.load_checkpoint(run / "latest.pt")["step"] == 0:
        assert job.poll() is None and time.monotonic() < end, job.communicate()
        time.sleep(0.05)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    assert len(children) == 2
    return job, sorted(map(int, children))                           # rank 0 was started first


def finish(job, seconds=25):
    """What it printed: torchrun's own lines, the progress bar, and the sentences of train.py."""
    output = job.communicate(timeout=seconds)[0]
    assert job.returncode == 1, output
    assert not re.search(r"\[rank\d\].*Error", output), output       # no traceback but torchrun's own
    return output


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_process_ends_the_job_in_seconds_and_resuming_may_use_another_number(tmp_path, photos, rank):
    """Both ranks: the survivor says why, and how to go on. Then three processes do so, then one."""
    run = tmp_path / "run"
    job, children = start(photos, run)
    began = time.monotonic()
    os.kill(children[rank], signal.SIGKILL)
    output = finish(job)
    assert time.monotonic() - began < 20
    assert (f"train.py: another process of this run ended, or could not be reached; the last checkpoint, if "
            f"there is one, is whole; go on by: torchrun --nproc_per_node=2 train.py --run-dir {run} "
            f"--resume\n") in output
    step = oasis.load_checkpoint(run / "latest.pt")["step"]
    for world_size, sentence in [(3, "2 processes so far, now by 3.* takes 2 images instead of 3; batch norm"),
                                 (1, "3 processes so far, now by 1.* takes 6 images instead of 2; ")][:2 - rank]:
        done = subprocess.run([sys.executable, ROOT / "tests" / "forked.py", "train", str(world_size),
                               "--run-dir", run, "--resume", "--steps", str(step + world_size + rank)],
                              cwd=ROOT, capture_output=True, text=True, timeout=170)
        assert done.returncode == 0, done.stderr
        assert len(re.findall(f"was trained by {sentence}", done.stdout)) == 1, done.stdout
        resumed = oasis.load_checkpoint(run / "latest.pt")
        assert resumed["step"] == step + world_size + rank and resumed["processes"] == world_size
        assert all(v.isfinite().all() for v in resumed["generator"].values())
        step += 3
