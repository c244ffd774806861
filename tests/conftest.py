"""Tests import the modules from the project's root. A test process uses at most two threads.

With `pytest -n 2` two processes share the tests; then each has one thread.
"""

import os
import sys
from pathlib import Path

THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ["OMP_NUM_THREADS"] = str(THREADS)            # for the processes that tests start, too
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch                                # noqa: E402  (the lines above must come first)

torch.set_num_threads(THREADS)
