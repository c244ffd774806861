"""extras/grids.py, made tiny: both trainings, the figure, the table; stopped and given again."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import sample
from extras import grids

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--num-images 12 --height 64 --width 64 --batch-size 2 --channels 2 --num-blocks 3 "
        "--spade-hidden 4 --d-channels 4 8 --picture-every 99 --checkpoint-every 1").split()


def run(out, *options):
    """In a process of its own, as a run keeps its folder to its process."""
    return subprocess.run([sys.executable, "-m", "extras.grids", "--out", out, *TINY, *options],
                          cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two steps, then the same command with three steps."""
    out = tmp_path_factory.mktemp("grids")
    for steps in ("2", "3"):
        done = run(out, "--steps", steps)
        assert done.returncode == 0, done.stderr
    return out


def test_only_the_noise_differs(out):
    without, pixel = (sample.load_checkpoint(out / f"noise{k}" / "latest.pt") for k in (0, 16))
    differing = set()
    for name, value in without["settings"].items():
        if pixel["settings"][name] != value:
            differing.add(name)
    assert differing == {"pixel_noise", "run_dir"}
    assert without["settings"]["pixel_noise"] == 0 and pixel["settings"]["pixel_noise"] == 16
    assert without["generator_args"]["pixel_noise"] == 0
    assert without["step"] == pixel["step"] == 3                 # went on after two


def test_figure_and_table(out):
    assert Image.open(out / "grids.png").size[0] > 1000
    with open(out / "stripes.csv") as file:
        rows = list(csv.DictReader(file))
    headings = {row["pictures"] for row in rows}
    assert headings == {"real", "one noise vector", "16 of 64 channels per pixel"}
    for row in rows:
        assert 0 <= float(row["stripe_share"]) <= 1 and int(row["windows"]) > 0


def test_a_finished_run_is_not_trained_again(out):
    before = (out / "noise16" / "latest.pt").stat().st_mtime_ns
    assert run(out, "--steps", "3").returncode == 0
    assert (out / "noise16" / "latest.pt").stat().st_mtime_ns == before


def test_runs_of_other_options_are_not_mixed(out):
    done = run(out, "--steps", "3", "--noise-dim", "32")
    assert done.returncode == 2 and "noise_dim" in done.stderr


def test_options_it_chooses_itself_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        grids.main(["--out", str(tmp_path), "--run-dir=elsewhere"])
    assert ended.value.code == 2 and "--run-dir" in capsys.readouterr().err


def test_a_stopped_training_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grids.train, "train", lambda settings: None)
    with pytest.raises(SystemExit) as ended:
        grids.main(["--out", str(tmp_path), *TINY])
    assert ended.value.code == 1 and "goes on" in capsys.readouterr().out
