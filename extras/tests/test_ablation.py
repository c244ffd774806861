"""A tiny table: two rows, one seed; the same command goes on; mistakes."""

import re
import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import oasis                        # noqa: E402  (the line above must come first)
from extras import ablation         # noqa: E402
import sample

TINY = ("--judge-steps 2 --maps 2 --segmenter-steps 2 --steps 4 --channels 2 --num-blocks 3 --spade-hidden 4 --d-channels 4 8 "
        "--height 32 --width 32 --batch-size 2 --log-every 1 --score-every 2 --picture-every 4 --checkpoint-every 2").split()
ROWS = ["oasis-no-noise", "spade+noise"]


def run(out, *words):
    with pytest.raises(SystemExit) as e:
        ablation.main(["--out", str(out), "--seeds", "3", *(words if "--rows" in words else ["--rows", *ROWS, *words]), *TINY])
    return e.value.code


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation") / "a folder"
    assert run(out) == 0
    return out


def test_the_table_and_the_pictures(done, capsys):
    """The table again from what is kept; nothing is trained, which the checkpoints' times tell."""
    files = [done / row / "seed3" / "latest.pt" for row in ROWS]
    before = [file.stat().st_mtime_ns for file in files]
    assert run(done) == 0 and [file.stat().st_mtime_ns for file in files] == before
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in
            (line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|"))}
    assert rows[""] == [*ablation.COLUMNS, "seeds"]
    for row, file in zip(ROWS, files):
        checkpoint = sample.load_checkpoint(file)
        assert rows[row][0] == f"{checkpoint['scores'][-1]['miou']:.3g}" and rows[row][-1] == "1"
        assert checkpoint["settings"]["seed"] == 3 and [line["step"] for line in checkpoint["scores"]] == [2, 4]
        assert (file.with_name("segmenter.pt")).read_bytes() == (done / "segmenter.pt").read_bytes()
    assert rows[ROWS[0]][3] == "1" and float(rows[ROWS[1]][3]) < 1      # without noise: no diversity
    assert rows["real images"][0] and rows["real images"][1]
    assert {"sheet.png", "curves.png", "ablation.csv", "lraspp.pt"} <= {path.name for path in done.iterdir()}


def test_a_run_that_was_stopped_goes_on_and_one_that_fails_is_named(done, capsys, monkeypatch):
    folder = done / ROWS[0] / "seed3"
    (folder / "complete").unlink()
    monkeypatch.setitem(ablation.ROWS, "large", "train --noise-dim -1")
    assert run(done, "--rows", ROWS[0], "large") == 1
    printed = capsys.readouterr().out
    assert re.search("large, seed 3: exit code 1: .*-1", printed) and f"| {ROWS[0]} |" in printed
    assert (folder / "complete").exists() and not (done / "large" / "seed3" / "complete").exists()


def test_mean_and_spread_over_seeds():
    results = [(row, seed, dict.fromkeys(ablation.COLUMNS, value))
               for row, seed, value in (("a", 0, 0.5), ("a", 1, 0.7), ("b", 0, 0.25))]
    lines = ablation.table(results).splitlines()
    assert lines[3].startswith(f"| a | 0.6 ± {statistics.stdev([0.5, 0.7]):.2g} |") and lines[3].endswith("| 2 |")
    assert lines[4].startswith("| b | 0.25 | 0.25 |") and lines[4].endswith("| 1 |")


def test_mistakes_are_one_sentence_and_exit_code_2(done, capsys):
    for words, sentence in ((["--seed", "3"], "--seed: is chosen by the rows"),
                            (["--lr-g", "0.5"], "oasis-no-noise.seed3: was trained by other options")):
        assert run(done, *words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and re.search(sentence, error), error
