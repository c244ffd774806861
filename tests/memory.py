"""Memory and open files of a long run: 10,000 toy steps of small networks, about six minutes.

    python tests/memory.py results/memory.csv

Pictures, scores and checkpoints are made all along. Writes and prints one row per 1,000 steps.
"""

import csv
import os
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train                                # noqa: E402  (the line above must come first)

RUN = ["--height", "32", "--width", "32", "--channels", "2", "--num-blocks", "3", "--spade-hidden", "4",
       "--d-channels", "4", "8", "--batch-size", "4", "--segmenter-steps", "20", "--score-images", "40",
       "--picture-every", "500", "--score-every", "1000", "--checkpoint-every", "200"]


def main(path, steps=10_000, every=1000):
    rows, report = [], train.report

    def noting(s, state, *rest, **options):
        report(s, state, *rest, **options)
        if state.step and state.step % every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            rows.append({"step": state.step, "resident MiB": round(pages * resource.getpagesize() / 2**20, 1),
                         "open files": len(os.listdir("/proc/self/fd"))})
            print(rows[-1], flush=True)

    train.report = noting
    with tempfile.TemporaryDirectory() as folder:
        train.main([*RUN, "--steps", str(steps), "--run-dir", f"{folder}/run"])
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1])
