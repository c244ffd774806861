"""extras/prepare.py: colours to ids, shares, the rule for outdoor images."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import data                                 # noqa: E402  (the lines above must come first)
import tiny_datasets as tiny                # noqa: E402
from extras import prepare                  # noqa: E402


def refuse(capsys, *arguments):
    """The command ends with exit code 2; returns its sentence."""
    with pytest.raises(SystemExit) as ended:
        prepare.main([str(a) for a in arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_colours_become_ids(tmp_path, capsys):
    classes, source, out = (tmp_path / n for n in ("classes.txt", "coloured", "labels"))
    classes.write_text("sky 200 20 30\nroad 10 0 0\nvoid 0 0 0 ignore\n")
    palette = np.array([(200, 20, 30), (10, 0, 0), (0, 0, 0)], np.uint8)
    source.mkdir()
    for k in range(3):
        Image.fromarray(palette[tiny.blocks(k, range(3))]).save(source / f"{k}.png")
    command = ["colours", source, "--classes", classes, "--out"]
    prepare.main([str(a) for a in [*command, out]])
    for k in range(3):
        ids = tiny.blocks(k, range(3))
        assert (data.read_label_map(out / f"{k}.png", data.id_table("folder", 3)) == ids).all()
        with Image.open(out / f"{k}.png") as picture:                        # viewers see colours
            assert (np.asarray(picture.convert("RGB")) == palette[ids]).all()
    # A second run, a colour of no class, a jpeg, two classes of one colour: nothing is written.
    assert "exists already" in refuse(capsys, *command, out)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(source / "9.png")
    assert "9.png: 64 pixels" in (text := refuse(capsys, *command, tmp_path / "b"))
    assert "(1 2 3)" in text
    Image.new("RGB", (8, 8)).save(source / "9.png", "JPEG")
    assert "9.png: is a jpeg" in refuse(capsys, *command, tmp_path / "b")
    classes.write_text("sky 1 1 1\nroad 1 1 1\n")
    assert "colour of its own" in refuse(capsys, *command, tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.txt", "coloured", "labels"]


def test_shares(tmp_path, capsys):
    written = tiny.make_folder(tmp_path)
    prepare.main(["shares", "--preset", "folder", "--data-root", str(tmp_path)])
    share = np.mean([(ids == 3).mean() for (split, _), ids in written.items() if split == "train"])
    assert f"   3 car                      {share:8.3%}       5" in capsys.readouterr().out


def test_outdoor_images_follow_the_rule(tmp_path, capsys):
    # Even images hold sky, odd ones a ceiling; the fifth holds neither and follows its category.
    tiny.make_ade20k(tmp_path)
    names = tmp_path / "names.txt"
    prepare.main(["outdoors", "--data-root", str(tmp_path), "--out", str(names)])
    for split, chosen in (("train", ["1", "3", "5"]), ("val", ["1"])):
        dataset = data.open_dataset("ade20k", split, (64, 64), tmp_path, subset=names)
        assert [name[-1] for name in dataset.names] == chosen
    # Undecided images go with the majority of their category; without one they are dropped.
    votes = {"a": True, "b": True, "c": False, "d": None, "e": None, "f": False, "g": None}
    categories = dict(a="beach", b="beach", c="beach", d="beach", e="attic", f="attic")
    assert prepare.choose_outdoors(votes, categories) == ["a", "b", "d"]
