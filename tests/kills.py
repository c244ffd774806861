"""Kill a tiny run twenty times and more with SIGKILL, let it finish, and compare with one left alone.

    python tests/kills.py FOLDER             # starts are forks of this process: under half a minute
    python tests/kills.py FOLDER --fresh     # every start is a new `python train.py`: minutes

FOLDER/killed and FOLDER/whole are the two runs. Prints one line of JSON: the number of kills, how many
of them left a half-written checkpoint behind, and the most steps that one of them lost.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked                       # sets one thread before torch is imported
import tiny_datasets

import oasis
import train

STEPS, CHECKPOINT_EVERY, KILLS = 100, 3, 20
TINY = ["--preset", "folder", "--height", "16", "--width", "16", "--channels", "2", "--num-blocks", "2",
        "--spade-hidden", "4", "--d-channels", "4", "8", "--batch-size", "4", "--workers", "0",
        "--metrics", "none", "--log-every", "1", "--picture-every", "100", "--steps", str(STEPS),
        "--checkpoint-every", str(CHECKPOINT_EVERY)]


def last_step(run):
    """The last step that log.csv has a row of; 0 if there is none."""
    lines = (run / "log.csv").read_text().splitlines() if (run / "log.csv").exists() else []
    return int(lines[-1].split(",")[0]) if len(lines) > 1 else 0


def written(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def start(arguments, fresh):
    """Process id of a run of train.py."""
    if not fresh:
        return forked.fork(train.main, arguments)
    return subprocess.Popen([sys.executable, "train.py", *arguments], cwd=forked.ROOT,
                            stderr=subprocess.DEVNULL).pid


def kill_once(arguments, run, fresh, rng, startup, saving):
    """Start the run and kill it; returns (was the checkpoint half-written, steps lost).

    saving: strike as soon as a temporary checkpoint appears. Otherwise at a random moment, from the
    start of the process on, but within four steps, so that the run does not end before the kills do.
    """
    partial, first = run / "latest.tmp", last_step(run)
    before, moment = written(partial), time.monotonic() + rng.uniform(0, 1.3 * startup)
    pid = start(arguments, fresh)
    if saving:
        while written(partial) in (0, before):
            time.sleep(0.0002)
    else:
        while time.monotonic() < moment and last_step(run) < first + 4:
            time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, "it ended by itself"
    saved = oasis.load_checkpoint(run / "latest.pt")["step"] if (run / "latest.pt").exists() else 0
    return written(partial) not in (0, before), last_step(run) - saved


def main(folder, *options):
    fresh, folder, rng = "--fresh" in options, Path(folder), random.Random(0)
    tiny_datasets.write_folder(folder / "photos", train=8, val=2, size=(16, 16))
    arguments = {name: [*TINY, "--data-root", str(folder / "photos"), "--run-dir", str(folder / name)]
                 for name in ("whole", "killed")}
    run, found, startup = folder / "killed", [], time.monotonic()
    pid = start(arguments["whole"], fresh)
    while not last_step(folder / "whole"):
        time.sleep(0.001)
    startup = time.monotonic() - startup
    assert os.waitpid(pid, 0)[1] == 0

    def resumed():
        return arguments["killed"] + ["--resume"] * (run / "latest.pt").exists()

    while len(found) < KILLS or sum(half for half, _ in found) < KILLS // 4:
        found.append(kill_once(resumed(), run, fresh, rng, startup, saving=len(found) % 2 == 1))
    assert os.waitpid(start(resumed(), fresh), 0)[1] == 0
    print(json.dumps({"kills": len(found), "half_written": sum(half for half, _ in found),
                      "most_lost": max(lost for _, lost in found)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
