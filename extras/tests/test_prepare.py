"""extras/prepare.py: the example, colours to ids, shares, outdoor images, bad values."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import data                                 # noqa: E402  (the lines above must come first)
import tiny_datasets as tiny                # noqa: E402
import toy                                  # noqa: E402
from extras import prepare                  # noqa: E402


def run(*arguments):
    prepare.main([str(argument) for argument in arguments])


def refuse(capsys, *arguments):
    """The command ends with exit code 2 and one sentence, which is returned."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    sentence = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in sentence
    return sentence


def test_the_example_passes_the_check_and_holds_what_was_drawn(tmp_path, capsys):
    folder = tmp_path / "photos"
    run("example", folder)
    for preset in ("small", "folder"):
        data.main(["--preset", preset, "--data-root", str(folder)])
        assert "warning" not in capsys.readouterr().out        # every class occurs in training
    pairs = 0
    for split, scenes in prepare.EXAMPLE_SCENES.items():
        dataset = data.open_dataset("small", split, (96, 128), folder)
        assert dataset.class_names == toy.CLASSES and (dataset.palette == toy.PALETTE).all()
        assert dataset.ignore_label == toy.UNKNOWN
        for k, index in enumerate(scenes):
            image, labels = dataset.read(k)
            drawn, ids = toy.draw_scene(0, index, 192, 256)
            assert (labels == ids).all() and np.abs(image.astype(int) - drawn).mean() < 4
            pairs += 1
    assert pairs == 3
    assert "exists already" in refuse(capsys, "example", folder)


def test_colours_become_ids(tmp_path, capsys):
    classes, source, out = tmp_path / "classes.txt", tmp_path / "coloured", tmp_path / "labels"
    classes.write_text("sky 200 20 30\nroad 10 0 0\nvoid 0 0 0 ignore\n", encoding="utf-8")
    palette = np.array([(200, 20, 30), (10, 0, 0), (0, 0, 0)], np.uint8)
    source.mkdir()
    for k in range(3):
        Image.fromarray(palette[tiny.blocks(k, range(3))]).save(source / f"{k}.png")
    command = ["colours", source, "--classes", classes, "--out"]
    run(*command, out)
    for k in range(3):
        ids = tiny.blocks(k, range(3))
        assert (data.read_label_map(out / f"{k}.png", data.id_table("folder", 3)) == ids).all()
        with Image.open(out / f"{k}.png") as picture:                        # viewers see colours
            assert (np.asarray(picture.convert("RGB")) == palette[ids]).all()
    # A second run, a colour of no class, transparency, a jpeg, two classes of one colour.
    assert "exists already" in refuse(capsys, *command, out)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(source / "9.png")
    sentence = refuse(capsys, *command, tmp_path / "b")
    assert "9.png: 64 pixels" in sentence and "(1 2 3)" in sentence
    Image.new("RGBA", (8, 8), (10, 0, 0, 0)).save(source / "9.png")
    assert "9.png: has transparent" in refuse(capsys, *command, tmp_path / "b")
    Image.new("I;16", (8, 8)).save(source / "9.png")
    assert "9.png: has more than 8 bits" in refuse(capsys, *command, tmp_path / "b")
    Image.new("RGB", (8, 8)).save(source / "9.png", "JPEG")
    assert "9.png: is a jpeg" in refuse(capsys, *command, tmp_path / "b")
    classes.write_text("sky 1 1 1\nroad 1 1 1\n", encoding="utf-8")
    assert "colour of its own" in refuse(capsys, *command, tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.txt", "coloured", "labels"]


def test_a_reordered_palette_is_mended_by_colours(tmp_path, capsys):
    # The refusal of data.py names this command. It must work on the same file.
    classes, source, out = tmp_path / "classes.txt", tmp_path / "coloured", tmp_path / "labels"
    classes.write_text("road 10 0 0\nsky 200 20 30\nvoid 0 0 0 ignore\n", encoding="utf-8")
    names, palette, ignore_label = data.read_classes(classes)
    ids = tiny.blocks(0, range(3))
    source.mkdir()
    Image.fromarray(palette[ids]).quantize(3).save(source / "a.png")
    table = data.id_table("folder", 3, ignore_label)
    with pytest.raises(data.UserError, match="extras.prepare colours"):
        data.read_label_map(source / "a.png", table, palette=palette)
    run("colours", source, "--classes", classes, "--out", out)
    assert (data.read_label_map(out / "a.png", table, palette=palette) == ids).all()


def test_shares(tmp_path, capsys):
    written = tiny.make_folder(tmp_path)
    run("shares", "--preset", "folder", "--data-root", tmp_path)
    share = np.mean([(ids == 3).mean() for (split, _), ids in written.items() if split == "train"])
    assert f"   3 car                      {share:8.3%}   100.0%" in capsys.readouterr().out
    run("shares", "--preset", "toy")
    assert "200 training images" in capsys.readouterr().out


@pytest.mark.parametrize("links", [True, False])
def test_outdoor_images_become_a_data_set(links, tmp_path, capsys, monkeypatch):
    # Even images hold sky, odd ones a ceiling; the fifth holds neither and follows its category.
    written = tiny.make_ade20k(tmp_path / "ade")
    out = tmp_path / "new" / "outdoors"
    if not links:
        def refuse_links(source, target):
            raise OSError("another disk")
        monkeypatch.setattr(os, "link", refuse_links)
    run("outdoors", "--data-root", tmp_path / "ade", "--out", out)
    data.main(["--preset", "folder", "--data-root", str(out)])
    for split, chosen in (("train", ["1", "3", "5"]), ("val", ["1"])):
        before = data.open_dataset("ade20k", split, (64, 64), tmp_path / "ade")
        after = data.open_dataset("folder", split, (64, 64), out)
        assert [name[-1] for name in after.names] == chosen
        assert after.class_names == before.class_names and len(after.class_names) == 151
        assert after.class_names[0] == "unknown" and after.ignore_label == 0
        assert (after.palette == before.palette).all()
        for k, name in enumerate(after.names):
            image, labels = after.read(k)
            same_image, same_labels = before.read(before.names.index(name))
            assert (labels == written[split, name]).all() and (labels == same_labels).all()
            assert (image == same_image).all()
            for old, new in zip(before.files[name], after.files[name]):
                assert os.path.samefile(old, new) == links
    assert "exists already" in refuse(capsys, "outdoors", "--data-root", tmp_path / "ade",
                                      "--out", out)
    shutil.rmtree(out)
    shutil.rmtree(tmp_path / "ade/ADEChallengeData2016/annotations/validation")
    assert "annotations/validation" in refuse(capsys, "outdoors", "--data-root", tmp_path / "ade",
                                              "--out", out)
    assert list(out.parent.iterdir()) == []                                  # nothing half done


def test_outdoor_photos_with_an_exif_turn_stay_aligned(tmp_path):
    tiny.make_ade20k(tmp_path / "ade")
    photo = tmp_path / "ade/ADEChallengeData2016/images/training/ADE_train_00000001.jpg"
    exif = Image.Exif()
    exif[274] = 3                                                            # upside down
    with Image.open(photo) as picture:
        picture.load()
    picture.save(photo, exif=exif, quality=98)
    run("outdoors", "--data-root", tmp_path / "ade", "--out", tmp_path / "out")
    before = data.open_dataset("ade20k", "train", (64, 96), tmp_path / "ade").read(0)
    after = data.open_dataset("folder", "train", (64, 96), tmp_path / "out").read(0)
    assert (before[0] == after[0]).all() and (before[1] == after[1]).all()


def test_the_rule_for_outdoor_images():
    # Undecided images go with the majority of their category; without one they are dropped.
    votes = {"a": True, "b": True, "c": False, "d": None, "e": None, "f": False, "g": None}
    categories = dict(a="beach", b="beach", c="beach", d="beach", e="attic", f="attic")
    assert prepare.choose_outdoors(votes, categories) == ["a", "b", "d"]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "word", "not/there", ""])
def test_no_value_of_an_option_ends_in_a_traceback(value, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.make_folder("good")
    tiny.make_ade20k("ade")
    good_classes = "good/classes.txt"
    commands = [["colours", value, "--classes", good_classes, "--out", "out"],
                ["colours", "good/labels/train", "--classes", value, "--out", "out"],
                ["colours", "good/labels/train", "--classes", "good", "--out", "out"],
                ["colours", "good/images/train", "--classes", good_classes, "--out", value],
                ["shares", "--preset", value],
                ["shares", "--preset", "folder", "--data-root", value],
                ["shares", "--preset", "toy", "--data-root", "good"],
                ["outdoors", "--data-root", value, "--out", "out"],
                ["outdoors", "--data-root", "ade", "--out", "good/classes.txt/below"],
                ["example", "good/classes.txt/below"], [value]]
    for command in commands:
        refuse(capsys, *command)
    assert {path.name for path in tmp_path.iterdir()} - {"not"} == {"ade", "good"}
    assert not Path("not").exists() or not list(Path("not").iterdir())
    if value:
        run("example", value)
        assert (tmp_path / value / "classes.txt").exists()
    else:
        assert "exists" in refuse(capsys, "example", value)
