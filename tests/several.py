"""Tiny runs of train.py, here or in processes of their own, one for each rank.

A fork server imports torch and train.py once; every process is a fork of it and starts at once.
"""

import multiprocessing
import os
import socket
import time
from pathlib import Path

import torch

import data
import train

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["several"])

TINY = ("--preset toy --height 32 --width 32 --channels 2 --num-blocks 3 --spade-hidden 4 "
        "--d-channels 4 8 --batch-size 6 --metrics none --segmenter-steps 2 --log-every 1 "
        "--picture-every 1000 --score-every 1000 --checkpoint-every 1000").split()


def settings(run_dir, *more):
    return train.parse_settings([*TINY, "--run-dir", str(run_dir), *map(str, more)])


def checkpoint(run_dir):
    return torch.load(run_dir / "latest.pt", weights_only=True)


def slow_main(arguments, dtype=torch.float32):
    """train.main with a pause in every step, so that a signal comes in the midst of them."""
    torch.set_default_dtype(dtype)
    update = train.update_average
    train.update_average = lambda *a: (time.sleep(0.3), update(*a))
    train.main(arguments)


def train_five_steps(settings):
    """train.train, which waits in its sixth step for whoever kills it."""
    count = iter(range(5))

    def update(*arguments):
        if next(count, None) is None:
            time.sleep(3600)
        return train.training_step(*arguments)
    train.train(settings, update=update)


def begin(threads, environment, log, function, arguments):
    """What a new process does first: a session of its own, its output into a file."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    os.environ.update(environment)
    torch.set_num_threads(threads)          # as many as the test: sums round alike
    with data.exit_in_words("train.py"):
        function(*arguments)


def start(function, *arguments, processes=1, log=os.devnull):
    """function(*arguments) in so many processes that find each other as those of torchrun do."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        common = dict(WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
    jobs = [context.Process(target=begin, args=(
        torch.get_num_threads(), dict(common, RANK=str(rank), LOCAL_RANK=str(rank)), str(log),
        function, arguments)) for rank in range(processes)]
    for job in jobs:
        job.start()
    return jobs


def wait(jobs, seconds=180):
    """Exit codes; a process that hangs is killed, and its code is −9."""
    end = time.monotonic() + seconds
    for job in jobs:
        job.join(max(0, end - time.monotonic()))
        job.kill()
        job.join()
    return [job.exitcode for job in jobs]


def run(function, *arguments, **options):
    """start and wait; all must succeed."""
    codes = wait(start(function, *arguments, **options))
    assert not any(codes), codes


def wait_until(condition, jobs=(), seconds=180):
    """Until then all the jobs must live."""
    end = time.monotonic() + seconds
    while not condition():
        assert all(job.is_alive() for job in jobs) and time.monotonic() < end
        time.sleep(0.005)


def members_of_session(leader):
    """Processes that still run in the session that a process of `start` leads."""
    status = (path.read_text() for path in Path("/proc").glob("[0-9]*/stat"))
    fields = [text.rsplit(")", 1)[1].split() for text in status]
    return [one for one in fields if one[3] == str(leader) and one[0] != "Z"]
