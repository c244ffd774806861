"""Tests import the modules from the project's root, and compute with one thread.

Two processes share the tests (`pytest -n 2`). Two threads in each would wait for one another.
"""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"                     # for the processes that tests start, too
os.environ["CUDA_VISIBLE_DEVICES"] = ""                 # results equal to the bit are a CPU's
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch                                # noqa: E402  (the lines above must come first)

torch.set_num_threads(1)
