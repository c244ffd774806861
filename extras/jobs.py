"""Trainings one after another, or several at a time, each in a process of its own on one core.

For extras.ablation and extras.symptoms. A job is a command and the folder of its run:

    job = Job("oasis, seed 0", Path("runs/a"), ["train", "--preset=toy", "--steps=900"])
    complete, stopped = run_jobs([job], at_a_time=2)

The folder keeps command.txt, output.txt and, once the command has ended well, a file `complete`.
Given again, a complete job is not run, and any other goes on from its latest.pt.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import processes
from data import UserError


@dataclass
class Job:
    """One training."""
    name: str           # what the screen calls it
    folder: Path        # of the run
    words: list         # the module and its options, without --run-dir and --resume

    def __post_init__(self):
        command = self.folder / "command.txt"
        if command.exists() and command.read_text() != self.text:
            raise UserError(f"{self.folder}: was trained by other options; choose another --out")

    @property
    def text(self):
        """The command as command.txt keeps it."""
        return " ".join([*self.words, f"--run-dir={self.folder}"])

    @property
    def is_complete(self):
        return (self.folder / "complete").exists()

    def start(self, core):
        """Start the process, on this core alone if one is named. Its output goes to output.txt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "command.txt").write_text(self.text)
        command = [sys.executable, "-m", *self.words, f"--run-dir={self.folder}"]
        if (self.folder / "latest.pt").exists():
            command.append("--resume")
        print(self.name, flush=True)
        with open(self.folder / "output.txt", "w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT,
                                       env=dict(os.environ, OMP_NUM_THREADS="1"))
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        return process

    def end(self, code):
        """Note that the process has ended with this exit code, and say what it said last."""
        if code == 0:
            (self.folder / "complete").touch()
        else:
            print(f"{self.name}: exit code {code}: {self.last_words()}", flush=True)

    def last_words(self):
        """The last line of the output that is not a progress bar."""
        last = ""
        for line in (self.folder / "output.txt").read_text(errors="replace").splitlines():
            if line.strip() and "%|" not in line:
                last = line
        return last


def places(at_a_time):
    """A core for each process that runs at the same time; None where it may use all."""
    if torch.cuda.is_available() or not hasattr(os, "sched_getaffinity"):
        return [None] * at_a_time
    cores = sorted(os.sched_getaffinity(0))
    return [cores[i % len(cores)] for i in range(at_a_time)]


def run_jobs(jobs, at_a_time=1):
    """Run the jobs that are not complete. Returns (those that are complete now, was it stopped?).

    Ctrl-C and SIGTERM are passed on: each training ends its step, saves and stops.
    """
    waiting = [job for job in jobs if not job.is_complete]
    free = places(at_a_time)
    running = []                                            # (job, process, core)
    told = False
    with processes.catch_signals() as signals:
        while running or (waiting and not signals):
            while waiting and free and not signals:
                job, core = waiting.pop(0), free.pop(0)
                running.append((job, job.start(core), core))
            time.sleep(0.2)
            if signals and not told:
                told = True
                for _, process, _ in running:
                    process.terminate()
            for entry in list(running):
                job, process, core = entry
                if process.poll() is not None:
                    running.remove(entry)
                    free.append(core)
                    job.end(process.returncode)
    return [job for job in jobs if job.is_complete], bool(signals)
