"""Tests import the modules from the repository root, run on two threads, and share one trained run."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory):
    """The folder of a run of `python train.py` with fewer steps: a generator that has really learned."""
    import train

    folder = tmp_path_factory.mktemp("toy") / "run"
    train.main(["--run-dir", str(folder), "--steps", "160", "--score-every", "160", "--score-images", "100",
                "--segmenter-steps", "200"])
    return folder
