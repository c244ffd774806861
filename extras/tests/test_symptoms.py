"""extras/symptoms.py: a tiny table with a failure."""

import re

import pytest
from PIL import Image

import sample
from extras import symptoms

TINY = ("--steps 2 --height 32 --width 32 --batch-size 2 --channels 2 --num-blocks 3 "
        "--spade-hidden 4 --d-channels 4 8 --segmenter-steps 2 --checkpoint-every 2 "
        "--precision fp32 --maps 2").split()


def run(out, *words):
    with pytest.raises(SystemExit) as exit_of:
        symptoms.main(["--out", str(out), *words, *TINY])
    return exit_of.value.code or 0


def test_last_losses():
    log = []
    for step in range(1, 101):
        log.append(dict(dict.fromkeys(symptoms.TERMS, float(step)), step=step))
    found = symptoms.last_losses(log)
    assert found["first_G"] == 1 and found["loss_D_fake"] == sum(range(51, 101)) / 50
    assert symptoms.last_losses([]) == {}


def test_rows_pictures_and_a_run_that_fails(tmp_path, capsys, monkeypatch):
    broken = symptoms.Row("--lr-g -1", "it says why", "a negative rate", "a positive one")
    monkeypatch.setitem(symptoms.ROWS, "broken", broken)
    assert run(tmp_path, "--rows", "one-vector", "broken", "--jobs", "2") == 0
    text = (tmp_path / "symptoms.md").read_text()
    assert text.strip() in capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1 and len(cells) == 5

    perfect, vector, failed = cells[2:]
    checkpoint = sample.load_checkpoint(tmp_path / "one-vector" / "latest.pt")
    log = checkpoint["log"]
    assert checkpoint["settings"]["pixel_noise"] == 0 and len(log) == 2
    assert vector[4] == f"{log[0]['loss_G']:.3g}"
    assert vector[6] == f"{(log[0]['loss_D_real'] + log[1]['loss_D_real']) / 2:.3g}"
    assert perfect[5] == perfect[6] and 0.3 < float(perfect[7]) < 0.7
    assert re.search("it says why .*--lr-g -1.0: must be at least 0", failed[1])
    assert set(failed[4:-1]) == {"–"}

    sizes = {Image.open(tmp_path / f"{row}.png").size for row in ("one-vector", "broken")}
    assert len(sizes) == 1 and (tmp_path / "losses.png").exists()
    before = (tmp_path / "one-vector" / "latest.pt").stat().st_mtime_ns
    assert run(tmp_path, "--rows", "one-vector") == 0                   # nothing is trained again
    assert (tmp_path / "one-vector" / "latest.pt").stat().st_mtime_ns == before


def test_mistakes_are_one_sentence(tmp_path, capsys):
    assert run(tmp_path, "--run-dir=here") == 2
    assert "--run-dir: is chosen by --out" in capsys.readouterr().err
