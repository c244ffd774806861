"""Tests import the modules from the repository root and share one trained run.

With `pytest -n 2` two processes share the tests, one thread each; without, one process has two threads.
"""

import os
import sys
from pathlib import Path

import pytest

THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ["OMP_NUM_THREADS"] = str(THREADS)            # for the processes that tests start, too
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch                                # noqa: E402  (the lines above must come first)
from filelock import FileLock               # noqa: E402

torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory, worker_id):
    """The folder of a run of `python train.py`, half as wide and shorter: a generator that has really learned."""
    import train

    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent         # the parent is all workers'
    with FileLock(shared / "toy.lock"):
        if not (shared / "toy-done").exists():
            train.main(["--run-dir", str(shared / "toy-run"), "--steps", "160", "--score-every", "160",
                        "--channels", "4", "--spade-hidden", "16", "--d-channels", "16", "32", "48", "64",
                        "--score-images", "100", "--segmenter-steps", "200"])
            (shared / "toy-done").touch()
    return shared / "toy-run"
