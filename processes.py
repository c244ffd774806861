"""Several processes as one run, and how a run ends that is told to, or that loses one of them.

    torchrun --nproc_per_node=8 train.py --preset ade20k --data-root ADEChallengeData2016

    # Two machines of eight GPUs that share a disk: the same line on both, host1 is one of them.
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=host1:29500 \\
        --rdzv_id=1 train.py --preset ade20k --data-root ADEChallengeData2016

Plain `python train.py` takes the same path as rank 0 of 1. What the processes share and what each
does alone is said where it happens in train.py: draw (batch, noise, coins, class weights), spread
(gradients, batch norm), report (rank 0 writes).
"""

import contextlib
import datetime
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from settings import SettingsError

# ---- One run -----------------------------------------------------------------------------------

# How long a process waits for the others. They meet in every step; the longest one of them stays
# away is while rank 0 writes pictures and checkpoints.
TIMEOUT = datetime.timedelta(minutes=10)


def start_processes():
    """Returns (rank, number of processes, device). Plain `python train.py` is rank 0 of 1.

    On GPUs there are two ways to meet: NCCL between the GPUs, gloo between the CPUs. A process
    that dies closes its gloo connections, so on CPUs the others get an error within a step
    (outside_cause). On GPUs they may be waiting inside an exchange that Python does not see, such
    as synchronised batch norm's; torchrun ends those, with SIGTERM and 30 s later with SIGKILL,
    and where there is no torchrun left, PyTorch's watchdog does after TIMEOUT.
    """
    on_gpu = torch.cuda.is_available()
    torch.backends.cudnn.benchmark = on_gpu         # all steps have one shape: try what is fastest
    if "RANK" not in os.environ:                       # torchrun sets it
        return 0, 1, torch.device("cuda" if on_gpu else "cpu")
    local_rank, device = int(os.environ["LOCAL_RANK"]), torch.device("cpu")
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise SettingsError(f"--nproc_per_node: process {local_rank} has no GPU, this machine "
                                f"has {torch.cuda.device_count()}")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    return dist.get_rank(), dist.get_world_size(), device


def is_first():
    """Is this the process that writes and speaks for all? True outside torchrun."""
    return os.environ.get("RANK", "0") == "0"


def in_any_process(flag):
    """Is it true in any process? Asked between the CPUs, so that no GPU is waited for."""
    if not dist.is_initialized():
        return flag
    votes = torch.tensor(int(flag))
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes)


# ---- How it ends -------------------------------------------------------------------------------


@contextlib.contextmanager
def noted_signals(patience=3.0):
    """Inside, Ctrl-C and SIGTERM only fill the list this yields: the step is finished first.

    A second one ends the program at once, if it comes `patience` seconds after the first. Sooner
    it is the same request once more: a scheduler sends SIGTERM to torchrun and to its processes,
    and torchrun sends it on.
    """
    noted, handlers = [], {}

    def note(number, _):
        if noted and time.monotonic() > noted[0] + patience:
            signal.signal(number, handlers[number])
            signal.raise_signal(number)
        noted.append(time.monotonic())

    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def resume_command(run_dir):
    """The command that goes on with this run in as many processes."""
    processes, here = (int(os.environ.get(f"{k}WORLD_SIZE", 1)) for k in ("", "LOCAL_"))
    nodes = f"--nnodes={processes // here} … " if processes > here else ""
    launcher = f"torchrun {nodes}--nproc_per_node={here}" if processes > 1 else "python"
    return f"{launcher} train.py --run-dir {run_dir} --resume"


def outside_cause(error):
    """What ended the run from outside, in words; None where the error is the program's own.

    PyTorch has an exception type for NCCL and for its store, but not for gloo, nor for a process
    of a DataLoader; those are known by their text.
    """
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        return "another process of this run ended, or could not be reached"
    if "DataLoader worker" in str(error):
        return "a process that loads images was ended from outside"
    return None


def end(sentence, code):
    """Say why the run ends, and exit."""
    if hasattr(signal, "SIGCHLD"):      # PyTorch's handler raises an error for each dead worker,
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)           # wherever the program is just then
    if dist.is_initialized():
        # torchrun sends SIGTERM as soon as one process has ended: this one speaks first, and in
        # a line of its own, below the progress bar of rank 0.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(file=sys.stderr)
    print(f"train.py: {sentence}", file=sys.stderr)
    sys.exit(code)
