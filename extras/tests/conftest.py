"""As in tests/: the project's root and the helpers of its tests are found; one thread."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ["OMP_NUM_THREADS"] = "1"                     # for the processes that tests start, too
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch                                # noqa: E402  (the lines above must come first)

torch.set_num_threads(1)
