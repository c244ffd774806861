"""data.py: ids, alignment, order, refusals, files written whole, pictures."""

import importlib
import io
import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys
import unicodedata
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import tiny_datasets as tiny
import toy
from data import UserError

ROOT = os.path.dirname(data.__file__)
# name: (preset, N, function that makes it, stored ids, stored id -> class id by definition)
LAYOUTS = {
    "ade20k": ("ade20k", 151, tiny.make_ade20k, tiny.ADE_IDS, lambda stored: stored),
    "coco": ("coco-stuff", 183, tiny.make_coco, tiny.COCO_IDS, lambda s: 0 if s == 255 else s + 1),
    "cityscapes": ("cityscapes", 35, tiny.make_cityscapes, tiny.CITYSCAPES_IDS, lambda s: s),
    "folder": ("folder", 5, tiny.make_folder, tiny.FOLDER_IDS, lambda stored: stored),
}


def refusal(call, *parts):
    """The call raises UserError: one sentence that holds all the parts."""
    with pytest.raises(UserError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence and "Traceback" not in sentence
    assert all(str(part) in sentence for part in parts), sentence
    return sentence


def first(batches, count):
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_id_arrives_as_the_definition_says(layout, tmp_path):
    preset, num_classes, make, ids, definition = LAYOUTS[layout]
    written = make(tmp_path)
    for split, count in (("train", 5), ("val", 2)):
        dataset = data.open_dataset(preset, split, (64, 96), tmp_path)
        assert len(dataset) == count and dataset.name == preset and dataset.split == split
        assert dataset.num_classes == num_classes == len(dataset.class_names)
        assert dataset.palette.shape == (num_classes, 3)
        for i, name in enumerate(dataset.names):
            image, labels = dataset[i]
            assert (labels.numpy() == np.vectorize(definition)(written[split, name])).all()
            assert labels.dtype == torch.int64 and image.dtype == torch.float32
            assert image.shape == (3, 64, 96) and -1 <= image.min() and image.max() <= 1
    assert dataset.ignore_label == {"folder": 4}.get(preset, 0)


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (128, 128)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_photo_and_labels_stay_aligned(layout, size, tmp_path):
    # The photos are painted from the labels. Wherever a pixel's neighbourhood has one label, its
    # colour must name that label, after every resize, crop and flip.
    preset, _, make, ids, definition = LAYOUTS[layout]
    make(tmp_path)
    dataset = data.open_dataset(preset, "train", size, tmp_path, seed=3)
    class_of_corner = np.array([definition(stored) for stored in sorted(ids)])
    for key in [0, 1, 2, *itertools.product(range(3), range(4))]:
        image, labels = dataset[key]
        pixels = data.to_uint8(image[None])[0].astype(int)
        distance = ((pixels[:, :, None] - tiny.CORNERS[:len(ids)].astype(int)) ** 2).sum(-1)
        told = class_of_corner[distance.argmin(-1)]
        windows = torch.nn.functional.pad(labels[None].float(), (4, 4, 4, 4), mode="replicate")
        windows = windows.unfold(1, 9, 1).unfold(2, 9, 1)[0].flatten(2)
        inside = (windows == labels[..., None]).all(-1).numpy()
        assert inside.mean() > 0.2
        assert (told[inside] == labels.numpy()[inside]).all()


def test_training_view_crops_and_flips_by_seed_epoch_and_index(tmp_path):
    tiny.make_ade20k(tmp_path)
    one, same, other = (data.open_dataset("ade20k", "train", (64, 64), tmp_path, seed=s)
                        for s in (0, 0, 1))
    views = [one[(0, epoch)][0] for epoch in range(12)]
    assert len({view.numpy().tobytes() for view in views}) > 8               # they vary
    assert all(torch.equal(same[(0, e)][0], views[e]) for e in reversed(range(12)))
    assert not all(torch.equal(other[(0, e)][0], views[e]) for e in range(12))
    # Cityscapes is only flipped: every view is the evaluation view or its mirror image.
    tiny.make_cityscapes(tmp_path)
    street = data.open_dataset("cityscapes", "train", (64, 96), tmp_path)
    flips = [[torch.equal(street[(i, epoch)][0], street[i][0].flip(2)) for epoch in range(12)]
             for i in range(2)]
    assert all(torch.equal(street[(0, e)][0], street[0][0]) != flips[0][e] for e in range(12))
    assert flips[0] != flips[1] and all(0 < sum(row) < 12 for row in flips)  # each its own coin


def test_class_tables():
    # An independent list of COCO's 91 things (never annotated ones are N/A there).
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights as Weights
    things = Weights.COCO_V1.meta["categories"][1:]
    names = data.read_class_table("coco-stuff")[0][1:]
    assert len(names) == len(set(names)) == 182
    matches = [a == b for a, b in zip(names, things) if b != "N/A"]
    assert len(matches) == 80 and all(matches)
    for preset, num_classes in (("ade20k", 151), ("coco-stuff", 183), ("cityscapes", 35),
                                ("folder", 5), ("toy", len(toy.CLASSES))):
        table, stored = (f(preset, num_classes) for f in (data.id_table, data.file_ids))
        assert table.shape == (256,) and stored.dtype == np.uint8
        assert (table[stored] == np.arange(num_classes)).all() and (table >= 0).sum() == num_classes
    assert data.id_table("cityscapes", 35)[[33, 34, 255]].tolist() == [33, -1, 34]
    assert data.id_table("coco-stuff", 183)[[0, 181, 182, 255]].tolist() == [1, 182, -1, 0]


def test_other_ways_the_archives_lie_on_disk(tmp_path):
    # ADE20K's root may be given itself; COCO's label maps may be unpacked among the photos.
    tiny.make_ade20k(tmp_path / "a")
    inner = tmp_path / "a" / "ADEChallengeData2016"
    assert len(data.open_dataset("ade20k", "val", (64, 96), inner)) == 2
    written = tiny.make_coco(tmp_path / "c", labels="{}2017")
    (tmp_path / "c" / "train2017" / "._000000000009.jpg").write_bytes(b"a note of the system")
    assert len(data.open_dataset("coco-stuff", "train", (64, 96), tmp_path / "c")) == 5
    tiny.make_coco(tmp_path / "i", photos="{}_img", labels="{}_label")
    val = data.open_dataset("coco-stuff", "val", (64, 96), tmp_path / "i")
    assert (val[0][1].numpy() == (written["val", val.names[0]] + np.uint8(1))).all()
    # The val split of a folder may be called validation, or be the test split.
    tiny.make_folder(tmp_path / "f")
    for old, new in (("val", "validation"), ("validation", "test")):
        for kind in ("images", "labels"):
            (tmp_path / "f" / kind / old).rename(tmp_path / "f" / kind / new)
        assert len(data.open_dataset("folder", "val", (64, 96), tmp_path / "f")) == 2


# ---- Reading one file ----------------------------------------------------------------------------

@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_ids_of_every_bit_depth(bits, tmp_path):
    # Written byte by byte with zlib, since PIL itself writes no grey png of 2 or 4 bits.
    ids = np.random.default_rng(bits).integers(0, min(2 ** bits, 9), (8, 16))
    planes = (ids[..., None] >> np.arange(bits)[::-1]) & 1
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in planes.reshape(8, -1))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 16, 8, bits, 0, 0, 0, 0)),
              (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks)
    (tmp_path / "labels.png").write_bytes(png)
    table = data.id_table("folder", 9)
    assert (data.read_label_map(tmp_path / "labels.png", table) == ids).all()
    half = data.read_label_map(tmp_path / "labels.png", table, (4, 8))
    assert (half == ids[1::2, 1::2]).all()                   # nearest neighbour


def test_photos_are_read_alike_at_reduced_scale(tmp_path):
    # A jpg with grain: decoding at reduced scale and then resizing must give the picture that full
    # decoding gives. What differs is less than bilinear from bicubic.
    scene = toy.draw_scene(1, 2, 480, 640)[0]
    grain = np.random.default_rng(0).normal(0, 6, scene.shape)
    Image.fromarray((scene + grain).clip(0, 255).astype(np.uint8)).save(tmp_path / "a.jpg")
    for size in ((120, 160), (100, 150), (64, 64)):
        fast = data.read_photo(tmp_path / "a.jpg", size).astype(int)
        with Image.open(tmp_path / "a.jpg") as photo:
            full = np.asarray(photo.resize(size[::-1], Image.BICUBIC)).astype(int)
            bilinear = np.asarray(photo.resize(size[::-1], Image.BILINEAR))
        error = np.abs(fast - full)
        assert error.mean() < min(0.5, np.abs(bilinear - full).mean())
        assert np.percentile(error, 99) <= 4 and np.abs((fast - full).mean()) < 0.1


TURNS = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
         5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
         7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a)}       # EXIF, tag 274


@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
@pytest.mark.parametrize("turn", TURNS)
def test_every_exif_turn(kind, turn, tmp_path, capsys):
    # What the tag says is to be done to the stored pixels, done with NumPy.
    tiny.make_folder(tmp_path, train=1)
    stored = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    upright = TURNS[turn](stored)
    exif = Image.Exif()
    exif[274] = turn
    (tmp_path / PHOTO).unlink()
    photo = tmp_path / PHOTO.replace("jpg", kind)
    Image.fromarray(stored).save(photo, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    labels = tiny.blocks(0, range(4), upright.shape[:2])
    Image.fromarray(labels).save(tmp_path / LABEL)
    dataset = data.open_dataset("folder", "train", (16, 16), tmp_path)
    assert (dataset.read(0)[0] == upright).all() and (dataset.read(0)[1] == labels).all()
    small = np.asarray(Image.fromarray(upright).resize((16, 16), Image.BICUBIC))
    assert (dataset.read(0, (16, 16))[0] == small).all()
    data.main(["--preset", "folder", "--data-root", str(tmp_path)])
    assert ("note: 1 train photos are turned" in capsys.readouterr().out) == (turn > 1)
    # Label maps of the unturned pixels: where the sizes differ, the sentence says why.
    Image.fromarray(tiny.blocks(0, range(4), (32, 32))).save(tmp_path / LABEL)
    sentence = refusal(lambda: dataset[0], "{}x{}".format(*upright.shape), "32x32", photo.name)
    assert ("turned as its EXIF tag says" in sentence) == (turn > 1)


ODD_TAGS = [(282, 2, b"300 dpi\0"), (256, 5, struct.pack("<II", 24, 1)),
            (37380, 10, struct.pack("<ii", -1, 0))]       # tag, type, content


@pytest.mark.parametrize("tag, kind, content", ODD_TAGS, ids=["text", "fraction", "1/0"])
def test_an_odd_exif_tag_does_not_keep_a_photo_from_being_turned(tag, kind, content, tmp_path):
    """Text for a number, or a division by 0, as some cameras write. PIL cannot write them back."""
    count = len(content) if kind == 2 else 1
    exif = (b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
            + b"".join(sorted([struct.pack("<HHII", 274, 3, 1, 6),
                               struct.pack("<HHII", tag, kind, count, 38)],
                              key=lambda entry: struct.unpack("<H", entry[:2])))
            + struct.pack("<I", 0) + content)
    stored = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    turned = data.read_photo(tmp_path / "photo.png", upright=True)
    assert (turned == np.rot90(stored, -1)).all()


def test_photos_of_archives_stay_as_stored(tmp_path):
    # Their label maps were made for the stored pixels. A jpg is decoded at reduced scale, too.
    tiny.make_folder(tmp_path, train=1, val=1)
    path = tmp_path / PHOTO
    with Image.open(path) as photo:
        upright = np.asarray(photo).astype(int)
    exif = Image.Exif()
    exif[274] = 6                                             # "turn a quarter to see it upright"
    Image.fromarray(np.rot90(upright).astype(np.uint8)).save(path, exif=exif, quality=98)
    image = data.to_uint8(data.open_dataset("folder", "train", (64, 96), tmp_path)[0][0][None])
    assert np.abs(image[0] - upright).mean() < 6
    small = data.read_photo(path, (16, 24), upright=True).astype(int)
    assert np.abs(small - upright.reshape(16, 4, 24, 4, 3).mean((1, 3))).mean() < 8
    assert data.read_photo(path).shape == (96, 64, 3)         # as stored, where nobody asks


@pytest.mark.parametrize("ending", data.PHOTOS)
def test_photos_of_every_format(ending, tmp_path, capsys):
    tiny.make_folder(tmp_path, train=1)
    (tmp_path / PHOTO).unlink()
    scene = toy.draw_scene(0, 1, 64, 96)[0]
    mode = {".pgm": "L", ".gif": "P"}.get(ending, "RGB")
    picture = Image.fromarray(scene).convert(mode)
    photo = tmp_path / PHOTO.replace(".jpg", ending.upper())
    try:
        picture.save(photo, {".jfif": "JPEG"}.get(ending))
    except (KeyError, ValueError, OSError):
        pytest.skip(f"this PIL writes no {ending}")
    image = data.open_dataset("folder", "train", (64, 96), tmp_path).read(0)[0].astype(int)
    error = np.abs(image - np.asarray(picture.convert("RGB"))).mean()
    lossy = ending in (".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".jp2")
    assert error < 8 if lossy else error == 0
    data.main(["--preset", "folder", "--data-root", str(tmp_path)])
    assert "train: 1 photos" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_painted_over_white(mode, tmp_path):
    # A colour hidden under alpha 0 must not become the photograph.
    colours = np.random.default_rng(0).integers(0, 200, (4, 8, 3)).astype(np.uint8)
    alpha = np.zeros((4, 8), np.uint8)
    alpha[:, 4:] = 255
    if mode == "P":
        picture = Image.fromarray(np.arange(32, dtype=np.uint8).reshape(4, 8))
        picture.putpalette(colours.tobytes())
        picture.save(tmp_path / "a.png", transparency=alpha.tobytes())
    elif mode == "RGB":
        colours[:, :4] = 7
        Image.fromarray(colours).save(tmp_path / "a.png", transparency=(7, 7, 7))
    else:
        picture = Image.fromarray(colours).convert(mode[:-1])
        colours = np.asarray(picture.convert("RGB"))
        picture.putalpha(Image.fromarray(alpha))
        picture.save(tmp_path / "a.png")
    photo = data.read_photo(tmp_path / "a.png")
    assert (photo[:, :4] == 255).all() and (photo[:, 4:] == colours[:, 4:]).all()
    assert (data.read_photo(tmp_path / "a.png", (4, 8)) == photo).all()


# ---- Label maps as people have them --------------------------------------------------------------

def make_labelled(root, classes, ids, save=lambda ids, path: Image.fromarray(ids).save(path)):
    """A folder data set whose label maps hold these ids, in blocks -> {(split, name): ids}."""
    written = tiny.make_folder(root, train=3, val=1)
    (root / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    for k, (split, name) in enumerate(written):
        written[split, name] = tiny.blocks(k, ids)
        save(written[split, name], root / "labels" / split / f"{name}.png")
    return written


def with_palette(colours):
    """A way to save ids as a png with this palette, {id: (R, G, B)}."""
    def save(ids, path):
        picture = Image.fromarray(ids)
        table = np.zeros((256, 3), np.uint8)
        for k, colour in colours.items():
            table[k] = colour
        picture.putpalette(table.tobytes())
        picture.save(path)
    return save


def run_check(root, capsys, preset="folder"):
    """python data.py -> (exit code, what it printed, what it complained about)."""
    code = 0
    try:
        data.main(["--preset", preset, "--data-root", str(root)])
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err


VOC = with_palette({1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)})


@pytest.mark.parametrize("save", [lambda ids, path: Image.fromarray(ids).save(path), VOC])
@pytest.mark.parametrize("preset", data.OWN)
def test_255_is_no_label(preset, save, tmp_path, capsys):
    classes = ["background", "cell", "dust", "unknown"]
    written = make_labelled(tmp_path, classes, [0, 1, 2, 255], save)
    for split in ("train", "val"):
        dataset = data.open_dataset(preset, split, (64, 96), tmp_path)
        assert dataset.ignore_label == 3
        for k, name in enumerate(dataset.names):
            expected = np.where(written[split, name] == 255, 3, written[split, name])
            assert (dataset[k][1].numpy() == expected).all()
            assert (dataset.read(k)[1] == expected).all()
    code, out, _ = run_check(tmp_path, capsys, preset)
    assert code == 0 and "warning" not in out
    # The ignored class may be marked, and stand anywhere. Its own id means the same.
    (tmp_path / "classes.txt").write_text("background\nedge ignore\ndust\n", encoding="utf-8")
    labels = data.open_dataset(preset, "train", (64, 96), tmp_path)[0][1].numpy()
    raw = written["train", "street.0"]
    assert (labels == np.where(raw == 255, 1, raw)).all()


def test_255_without_an_ignored_class_is_refused_with_both_remedies(tmp_path, capsys):
    make_labelled(tmp_path, ["background", "cell"], [0, 255])
    code, _, errors = run_check(tmp_path, capsys)
    assert code == 2 and errors.count("[255]") == 4
    assert 'add the line "unknown" to classes.txt' in errors
    assert "mask of 0 and 255 must become one of 0 and 1" in errors
    # For ADE20K's ids that would be wrong advice.
    tiny.make_ade20k(tmp_path / "ade")
    path = tmp_path / "ade/ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    Image.new("L", (96, 64), 255).save(path)
    dataset = data.open_dataset("ade20k", "train", (64, 96), tmp_path / "ade")
    assert "unknown" not in refusal(lambda: dataset[0], path, "[255]", "151 classes")


def test_with_256_classes_255_is_one_of_them(tmp_path):
    classes = ["void", *(f"thing {k}" for k in range(1, 256))]
    written = make_labelled(tmp_path, classes, [0, 7, 254, 255])
    dataset = data.open_dataset("folder", "train", (64, 96), tmp_path)
    assert (dataset[0][1].numpy() == written["train", "street.0"]).all()


@pytest.mark.parametrize("mode", ["I;16", "LA", "1", "P"])
def test_ids_in_other_modes_of_png(mode, tmp_path, capsys):
    def save(ids, path):
        if mode == "I;16":
            picture = Image.fromarray(ids.astype(np.uint16))
        elif mode == "1":
            picture = Image.fromarray(ids.astype(bool))
        else:
            picture = Image.fromarray(ids)
            if mode == "LA":
                picture.putalpha(255)
            else:
                picture.putpalette(bytes(range(200)) * 3)
        picture.save(path)
    ids = [0, 1] if mode == "1" else [0, 1, 2]
    written = make_labelled(tmp_path, ["sky", "road", "car"], ids, save)
    with Image.open(tmp_path / LABEL) as picture:
        assert picture.mode in (mode, "I")     # as an older PIL opens 16 bits
    dataset = data.open_dataset("folder", "train", (64, 96), tmp_path)
    for k, name in enumerate(dataset.names):
        assert (dataset.read(k)[1] == written["train", name]).all()
        assert (dataset[k][1].numpy() == written["train", name]).all()
    half = dataset.read(0, (32, 48))[1]
    assert (half == written["train", "street.0"][1::2, 1::2]).all()
    assert run_check(tmp_path, capsys)[0] == 0


def test_a_palette_that_contradicts_the_colours_is_refused(tmp_path, capsys):
    classes = ["sky 10 20 30", "road 200 20 30", "void 0 0 0", "car"]
    colours = {0: (10, 20, 30), 1: (200, 20, 30), 2: (0, 0, 0)}
    for palette, good in ((colours, True), ({**colours, 0: (10, 20, 31)}, False),
                          ({0: (200, 20, 30), 1: (10, 20, 30)}, False),       # reordered
                          ({k: (k, k, k) for k in range(256)}, True),         # says nothing
                          ({**colours, 3: (1, 2, 3), 9: (5, 5, 5)}, True)):   # car: none was given
        make_labelled(tmp_path, classes, [0, 1, 2, 3], with_palette(palette))
        code, _, errors = run_check(tmp_path, capsys)
        assert code == (0 if good else 2)
        if not good:
            assert "street.0.png" in errors and "classes.txt" in errors
            assert "python -m extras.prepare colours" in errors
    make_labelled(tmp_path, ["sky", "road", "void", "car"], [0, 1, 2, 3], VOC)   # no colours given
    assert run_check(tmp_path, capsys)[0] == 0


# ---- What the check says -------------------------------------------------------------------------

def test_shares_and_absent_classes(tmp_path, capsys):
    # A mask of 0 and 255 beside an ignored class: no pixel is of the class "cell".
    written = make_labelled(tmp_path, ["background", "cell", "unknown"], [0, 0, 0, 255])
    code, out, _ = run_check(tmp_path, capsys)
    assert code == 0
    rows = {row.split()[1]: row.split() for row in out.splitlines() if row[:4].strip().isdigit()}
    known = np.mean([(ids == 0).mean() for (split, _), ids in written.items() if split == "train"])
    assert rows["background"][2:] == [f"{known:.3%}", "100.0%"]
    assert rows["unknown"][4] == "(ignored)"
    assert rows["cell"][2:] == ["0.000%", "0.0%"]
    warning = [line for line in out.splitlines() if line.startswith("warning")]
    assert len(warning) == 1 and "cell (1)" in warning[0] and "3 training label maps" in warning[0]
    assert "a mask of 0 and 255 must become one of 0 and 1" in warning[0]
    # train.py asks so, after it has read some files.
    dataset = data.open_dataset("folder", "train", (64, 96), tmp_path)
    assert data.list_warnings(dataset) == [] and data.check_dataset(dataset, most=500) == []
    assert data.list_warnings(dataset) == warning
    assert dataset.counted == 3 and dataset.maps.tolist() == [3, 0, 3]
    assert dataset.pixels.sum() == 3 * 64 * 96
    val = data.open_dataset("folder", "val", (64, 96), tmp_path)
    assert data.check_dataset(val) == [] and data.list_warnings(val) == []
    few = data.open_dataset("folder", "train", (64, 96), tmp_path)
    data.check_dataset(few, most=1)
    assert few.counted == 1


def test_coco_of_another_edition_is_noticed(tmp_path, capsys):
    tiny.make_coco(tmp_path)
    assert "no label map holds 255" not in run_check(tmp_path, capsys, "coco-stuff")[1]
    for path in tmp_path.rglob("*.png"):                     # 0 for unknown, the others one higher
        with Image.open(path) as picture:
            ids = np.asarray(picture)
        Image.fromarray(np.where(ids == 255, 0, ids + 1).clip(max=181).astype(np.uint8)).save(path)
    code, out, _ = run_check(tmp_path, capsys, "coco-stuff")
    assert code == 0 and "no label map holds 255" in out and "one too high" in out


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_file_names_in_either_unicode_form_are_equal(form, tmp_path):
    tiny.make_folder(tmp_path, train=1)
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    for path, own in ((PHOTO, form), (LABEL, other)):
        name = unicodedata.normalize(own, f"allée{Path(path).suffix}")
        (tmp_path / path).rename((tmp_path / path).with_name(name))
    dataset = data.open_dataset("folder", "train", (64, 96), tmp_path)
    assert dataset.names == ["allée"] and dataset[0][0].shape == (3, 64, 96)
    shutil.copy(tmp_path / "images/train" / unicodedata.normalize(form, "allée.jpg"),
                tmp_path / "images/train" / unicodedata.normalize(other, "allée.jpg"))
    refusal(lambda: data.open_dataset("folder", "train", (64, 96), tmp_path), "another file")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_good_folders_of_every_kind_pass(layout, tmp_path, capsys):
    preset, num_classes, make, _, _ = LAYOUTS[layout]
    make(tmp_path)
    code, out, errors = run_check(tmp_path, capsys, preset)
    assert code == 0 and errors == "" and f"{preset} train: 5 photos" in out
    assert sum(row[:4].strip().isdigit() for row in out.splitlines()) == 2 * num_classes


def test_the_check_of_drawn_scenes(capsys):
    data.main([])
    out = capsys.readouterr().out
    assert "toy train: 20000 photos" in out and "warning" not in out and "meadow" in out


def test_a_file_cut_or_damaged_anywhere_ends_in_words(tmp_path):
    # Many lengths and flipped bytes: a picture comes back, or a UserError; never another error.
    ids, path, table = tiny.blocks(0, range(5), (16, 16)), tmp_path / "x", data.id_table("toy", 5)
    for kind, read in (("PNG", lambda: data.read_label_map(path, table)),
                       ("PNG", lambda: data.read_photo(path, (8, 8))),
                       ("JPEG", lambda: data.read_photo(path, (8, 8), upright=True))):
        buffer = io.BytesIO()
        Image.fromarray(ids).save(buffer, kind)
        whole, refused, rng = buffer.getvalue(), 0, np.random.default_rng(0)
        versions = [whole[:n] for n in range(len(whole))]
        for place in rng.integers(0, len(whole), 150):
            versions.append(whole[:place] + bytes([rng.integers(256)]) + whole[place + 1:])
        for version in versions:
            path.write_bytes(version)
            try:
                read()
            except UserError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
        assert refused > 0.5 * len(whole)


def test_workers_ignore_ctrl_c_on_windows_too(monkeypatch):
    """It has no process groups, and sends Ctrl-C to all processes of a console."""
    monkeypatch.delattr(os, "setpgrp")
    before = signal.getsignal(signal.SIGINT)
    try:
        data.leave_process_group(0)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# ---- Refusals ------------------------------------------------------------------------------------

PHOTO, LABEL = "images/train/street.0.jpg", "labels/train/street.0.png"


def put(path, mode, value=1, kind=None, size=(96, 64)):
    return lambda root: Image.new(mode, size, value).save(root / path, kind)


def cut(path, end):
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:end])


SPOILS = {    # what is done to a good folder dataset, and what the sentence must name
    "no folder": (shutil.rmtree, ["mine"]),
    "no classes.txt": (lambda r: (r / "classes.txt").unlink(), ["classes.txt"]),
    "empty classes.txt": (cut("classes.txt", 0), ["classes.txt"]),
    "missing folder": (lambda r: shutil.rmtree(r / "labels/train"),
                       ["labels/train: there is no such folder", "must hold files", ".png"]),
    "empty split": (lambda r: [p.unlink() for p in (r / "images/train").iterdir()],
                    ["images/train: this folder is empty of files", ".jpg or .jpeg", ".webp"]),
    "only ignored": (lambda r: [put(p, "L", 4)(r) for p in (r / "labels/train").iterdir()],
                     ["train", "all pixels are of the class that is ignored, unlabelled"]),
    "no label map": (lambda r: (r / LABEL).unlink(), [PHOTO, "label map is missing"]),
    "no photo": (lambda r: (r / PHOTO).unlink(), [LABEL, "photo is missing"]),
    "two of one name": (put("images/train/street.0.png", "L"), ["images/train", "street.0"]),
    "sizes differ": (put(PHOTO, "RGB", size=(90, 64)), [PHOTO, "64x90", "64x96"]),
    "id out of range": (put(LABEL, "L", 77), [LABEL, 77, "5 classes"]),
    "id 5 of 5": (put(LABEL, "L", 5), [LABEL, "[5]"]),
    "colour labels": (put(LABEL, "RGB"), [LABEL, "RGB", "extras.prepare colours"]),
    "transparent labels": (put(LABEL, "LA", (1, 254)), [LABEL, "LA", "opaque"]),
    "coloured labels with alpha": (put(LABEL, "RGBA"), [LABEL, "RGBA", "extras.prepare colours"]),
    "jpeg labels": (put(LABEL, "L", kind="JPEG"), [LABEL, "JPEG"]),
    "16-bit ids out of range": (put(LABEL, "I;16", 300), [LABEL, "[300]", "5 classes"]),
    "label map that is no png": (put(LABEL, "RGB", kind="WEBP"), [LABEL, "is a WEBP"]),
    "16-bit photo": (put(PHOTO, "I;16", kind="PNG"), [PHOTO, "more than 8 bits"]),
    "text as label map": (lambda r: (r / LABEL).write_bytes(b"sky"), [LABEL, "cannot be read"]),
    "empty label map": (cut(LABEL, 0), [LABEL, "cannot be read"]),
    "empty photo": (cut(PHOTO, 0), [PHOTO, "cannot be read"]),
    "cut label map": (cut(LABEL, -40), [LABEL, "cannot be read"]),
    "cut photo": (cut(PHOTO, -40), [PHOTO, "cannot be read"]),
}


@pytest.mark.parametrize("how", SPOILS)
def test_bad_folders_are_refused_in_words(how, tmp_path, capsys, monkeypatch):
    root, (spoil, parts) = tmp_path / "mine", SPOILS[how]
    tiny.make_folder(root)
    spoil(root)
    if how != "only ignored":                                # which is a matter of all label maps
        refusal(lambda: data.open_dataset("folder", "train", (64, 64), root)[0], *parts)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        data.main(["--preset", "folder", "--data-root", str(root)])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.strip().splitlines()[-1].startswith("data.py: ")
    assert all(str(part) in errors for part in parts), errors
    assert sorted(tmp_path.rglob("*")) == before


def test_all_problems_are_reported_not_the_first(tmp_path):
    tiny.make_folder(tmp_path, train=12)
    cut(PHOTO, 500)(tmp_path)
    put("labels/train/street.1.png", "L", 9)(tmp_path)
    put("labels/train/street.2.png", "RGB")(tmp_path)
    put("images/train/street.3.png", "L", size=(64, 64))(tmp_path)
    (tmp_path / "labels/train/street.4.png").unlink()
    (tmp_path / "images/train/street.5.png").unlink()
    problems = data.check_dataset(
        data.open_dataset("folder", "train", (64, 64), tmp_path, complete=False))
    assert len(problems) == 6
    assert all(sum(f"street.{k}." in problem for problem in problems) == 1 for k in range(6))
    command = [sys.executable, "data.py", "--preset", "folder", "--data-root", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2 and run.stderr.count("street.") >= 6 and "Trace" not in run.stderr


def test_bad_requests_are_refused_in_words(tmp_path):
    tiny.make_folder(tmp_path)
    open_folder = partial(data.open_dataset, "folder", "train", (64, 64))
    for nothing in (None, ""):
        refusal(lambda: open_folder(nothing), "--data-root", "none was given")
    refusal(lambda: open_folder(tmp_path / "nowhere"), "--data-root", "nowhere is none")
    for number in (0, -1):
        refusal(lambda: open_folder(tmp_path, num_images=number), number, "at least 1")
        refusal(lambda: data.open_dataset("toy", "val", (8, 8), num_images=number), number)
    for number in (0, -1, 6):
        refusal(lambda: data.BatchSampler(5, number, 0), f"--batch-size {number}", "5 training")


@pytest.mark.parametrize("batch_size, processes", [(20, 8), (6, 4), (4, 8), (7, 2)])
def test_a_batch_that_cannot_be_shared_says_what_can(batch_size, processes):
    refusal(lambda: data.BatchSampler(100, batch_size, 0, world_size=processes),
            f"--batch-size {batch_size}", f"no multiple of the {processes} processes")


def test_toy_reads_no_files(tmp_path, capsys):
    tiny.make_folder(tmp_path)
    refusal(lambda: data.open_dataset("toy", "train", (8, 8), tmp_path), tmp_path, "--preset small")
    assert len(data.open_dataset("toy", "val", (8, 8), "")) == 200      # as checkpoints store it


@pytest.mark.parametrize("value", ["0", "-1", "nan", "word", "not/there", ""])
def test_no_value_of_an_option_ends_in_a_traceback(value, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (["--preset", value], ["--data-root", value], [value], ["--subset", value],
                    *(["--preset", preset, "--data-root", value] for preset in data.SIZES)):
        with pytest.raises(SystemExit) as ended:
            data.main(command)
        assert ended.value.code == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("data.py: ") or ": error: " in last           # argparse's sentence


def test_classes_file(tmp_path):
    for text in ("", "sky\n\nroad\n", "sky\nsky\n", "a ignore\nb ignore\n", "\udcff\n",
                 "void\nroad\nunknown\n", "\n".join(map(str, range(257)))):
        (tmp_path / "classes.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
        refusal(lambda: data.read_classes(tmp_path / "classes.txt"), "classes.txt")
    (tmp_path / "classes.txt").write_text("sky\nbackground\ntraffic light 1 2 3\nego car ignore\n",
                                          encoding="utf-8")
    names, palette, ignore_label = data.read_classes(tmp_path / "classes.txt")
    assert names == ["sky", "background", "traffic light", "ego car"] and ignore_label == 3
    assert palette[2].tolist() == [1, 2, 3] and palette[3].tolist() == [0, 0, 0]
    # As Windows writes it: a mark in front, other ends of lines; an accent in two ways.
    text = "Sky\r\nUnlabelled 5 6 7\r\nallée\r\n"
    for form in ("NFC", "NFD"):
        written = unicodedata.normalize(form, text).encode("utf-8-sig")
        (tmp_path / "classes.txt").write_bytes(written)
        names, palette, ignore_label = data.read_classes(tmp_path / "classes.txt")
        assert names == ["Sky", "Unlabelled", "allée"] and ignore_label == 1
        assert palette[1].tolist() == [5, 6, 7]


def test_number_of_images(tmp_path):
    tiny.make_folder(tmp_path)
    everything = data.open_dataset("folder", "train", (64, 64), tmp_path)
    two = data.open_dataset("folder", "train", (64, 64), tmp_path, num_images=2)
    assert two.names == everything.names[:2] and torch.equal(two[1][0], everything[1][0])


def test_toy_scenes_are_a_function_of_seed_split_and_index():
    one, two = (data.open_dataset("toy", "train", (32, 32), seed=4) for _ in range(2))
    val = data.open_dataset("toy", "val", (32, 32), seed=4)
    other = data.open_dataset("toy", "train", (32, 32), seed=5, num_images=30_000)
    assert (len(one), len(val), len(other)) == (20_000, 200, 30_000)
    late, early = two[7], two[2]                              # another order of asking
    assert torch.equal(one[2][0], early[0]) and torch.equal(one[7][1], late[1])
    pictures = [dataset[i][0] for dataset in (one, val, other) for i in range(3)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(pictures, 2))
    assert data.check_dataset(one) == [] and one.ignore_label == toy.UNKNOWN


def test_order_is_a_function_of_seed_and_step():
    whole = first(data.BatchSampler(23, 4, seed=5), 30)                      # 5 steps an epoch
    for epoch in range(6):
        pairs = sum(whole[5 * epoch:5 * epoch + 5], [])
        assert {e for _, e in pairs} == {epoch} and len({i for i, _ in pairs}) == 20
    assert whole == first(data.BatchSampler(23, 4, seed=5), 30)
    assert whole != first(data.BatchSampler(23, 4, seed=6), 30)
    for start in (0, 1, 4, 5, 17):                    # a resumed run: the exact next batch
        assert first(data.BatchSampler(23, 4, 5, start_step=start), 5) == whole[start:start + 5]
    for world in (2, 4):                              # shared out, the batch stays the same
        shares = [first(data.BatchSampler(23, 4, 5, rank, world), 30) for rank in range(world)]
        for step, batch in enumerate(whole):
            assert [shares[k % world][step][k // world] for k in range(4)] == batch


def test_any_number_of_workers_gives_the_same_batches(tmp_path):
    tiny.make_ade20k(tmp_path)
    dataset = data.open_dataset("ade20k", "train", (32, 32), tmp_path)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    runs = [first(data.make_loader(dataset, data.BatchSampler(5, 2, 0), workers), 7)
            for workers in (0, 1, 2)]
    for run in runs[1:]:
        for (images, labels), (first_images, first_labels) in zip(run, runs[0]):
            assert torch.equal(images, first_images) and torch.equal(labels, first_labels)
    resumed = next(iter(data.make_loader(dataset, data.BatchSampler(5, 2, 0, start_step=4), 1)))
    assert torch.equal(resumed[0], runs[0][4][0])
    assert torch.equal(torch.get_rng_state(), torch_state)   # the global generators: untouched
    assert (np.random.get_state()[1] == numpy_state).all()


def test_an_error_in_a_worker_is_still_one_sentence(tmp_path):
    tiny.make_folder(tmp_path)
    dataset = data.open_dataset("folder", "train", (64, 64), tmp_path)
    (tmp_path / "images/train/street.2.jpg").write_bytes(b"nothing")
    batches = iter(data.make_loader(dataset, data.BatchSampler(5, 5, 0), 1))
    assert refusal(lambda: next(batches), "street.2.jpg").startswith(str(tmp_path))


def test_workers_outlive_signals_to_the_group_but_not_the_main_process(tmp_path):
    # The main process holds its loader until the interpreter ends, and must still end at once.
    code = ("import data, signal\n"
            "for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, lambda *_: None)\n"
            "dataset = data.open_dataset('toy', 'train', (32, 32), num_images=8)\n"
            "batches = iter(data.make_loader(dataset, data.BatchSampler(8, 2, 0), 2))\n"
            "next(batches); next(batches)       # one of each worker: both have begun\n"
            "print('ready', flush=True); input(); next(batches)\n"
            "print(len([next(batches) for _ in range(9)]), flush=True)\n")
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == "ready\n"
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(process.pid, number)
    assert process.communicate("go on\n", timeout=30)[0] == "9\n" and process.returncode == 0


# ---- Files and pictures --------------------------------------------------------------------------

def test_files_are_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with data.write_whole(target) as path:
        assert path.parent == target.parent and path.suffix == ".txt"        # PIL needs the ending
        path.write_text("first", encoding="utf-8")

    def fail():
        with data.write_whole(target) as path:
            path.write_text("sec", encoding="utf-8")
            raise OSError(28, "No space left on device")
    refusal(fail, target, "cannot be written", "No space left on device")
    with pytest.raises(KeyboardInterrupt):
        with data.write_whole(target) as path:
            path.write_text("sec", encoding="utf-8")
            raise KeyboardInterrupt
    assert target.read_text(encoding="utf-8") == "first"
    assert len(list(target.parent.iterdir())) == 1

    def write(path):
        with data.write_whole(path) as partial:
            partial.write_bytes(b"")
    refusal(lambda: write(target / "below"), target / "below", "cannot be written")
    refusal(lambda: write(""), "cannot be written")


def test_a_full_disk_ends_in_words(tmp_path):
    # The system lets no file grow beyond 4,000 bytes here. torch.save has its own error for that.
    code = ("import resource, sys, torch, data\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
            "with data.exit_in_words('x.py'), data.write_whole(sys.argv[1]) as path:\n"
            "    torch.save(torch.zeros(9999), path)\n")
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.pt")], cwd=ROOT, text=True,
                         capture_output=True)
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
    assert run.stderr.startswith(f"x.py: {tmp_path / 'a.pt'}: cannot be written")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_kept_by_one_process(tmp_path):
    code = ("import data, sys\n"
            "with data.exit_in_words('x.py'):\n"
            "    lock = data.lock_folder(sys.argv[1])\n"
            "    print('has it', flush=True); input()\n")
    folder = tmp_path / "new" / "run"
    command = [sys.executable, "-c", code, str(folder)]
    start = partial(subprocess.Popen, command, cwd=ROOT, text=True, stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first_run = start()
    assert first_run.stdout.readline() == "has it\n"
    second_run = start()
    errors = second_run.communicate()[1]
    assert second_run.returncode == 2 and "another run is using this folder" in errors
    assert str(folder) in errors and "Traceback" not in errors
    first_run.communicate("\n")
    third_run = start()                                      # free again
    assert third_run.communicate("\n")[0] == "has it\n"
    (tmp_path / "file").write_bytes(b"")
    refusal(lambda: data.lock_folder(tmp_path / "file"), "file", "cannot be written")
    refusal(lambda: data.lock_folder(tmp_path / "file" / "run"), "file", "cannot be written")


def test_windows_has_another_lock(tmp_path, monkeypatch):
    calls = []

    class Msvcrt:
        LK_NBLCK = 7

        def locking(self, number, mode, count):
            calls.append((mode, count))
            if len(calls) > 1:
                raise PermissionError(13, "Permission denied")

    monkeypatch.setitem(sys.modules, "fcntl", None)          # importing it is an ImportError now
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt())
    data.lock_folder(tmp_path)
    refusal(lambda: data.lock_folder(tmp_path), tmp_path, "another run is using this folder")
    assert calls == [(7, 1), (7, 1)]


def test_workers_start_as_on_windows(tmp_path):
    # There, workers are new interpreters, which get the data set as a pickle, and there is no
    # setpgrp and no fcntl.
    tiny.make_folder(tmp_path / "mine")
    script = tmp_path / "script.py"
    script.write_text("import os, sys\n"
                      "del os.setpgrp\n"
                      "sys.modules['fcntl'] = None\n"
                      "import torch, data\n"
                      "if __name__ == '__main__':\n"
                      "    torch.multiprocessing.set_start_method('spawn')\n"
                      "    ds = data.open_dataset('folder', 'train', (16, 16), sys.argv[1])\n"
                      "    batches = iter(data.make_loader(ds, data.BatchSampler(5, 5, 0), 1))\n"
                      "    print(next(batches)[1].sum().item())\n", encoding="utf-8")
    run = subprocess.run([sys.executable, script, str(tmp_path / "mine")], text=True,
                         capture_output=True, env={**os.environ, "PYTHONPATH": ROOT})
    here = data.open_dataset("folder", "train", (16, 16), tmp_path / "mine")
    batch = next(iter(data.make_loader(here, data.BatchSampler(5, 5, 0), 0)))
    assert run.stdout == f"{batch[1].sum().item()}\n", run.stderr


@pytest.mark.parametrize("script", ["data", "train", "sample", "metrics"])
def test_outputs_in_the_encoding_of_windows(script, monkeypatch):
    # A file there is written in cp1252, which lacks many signs, β and ↑ among them.
    out, errors = (io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", errors)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main(["--help"])
    assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended, data.exit_in_words("x.py"):
        print("β ↑ é")
        raise UserError("no folder β")
    out.flush()
    errors.flush()
    printed = out.buffer.getvalue().decode("cp1252")
    assert ended.value.code == 2 and "usage" in printed and "? ? é" in printed
    assert errors.buffer.getvalue().decode("cp1252").strip() == "x.py: no folder ?"


def test_palettes_are_distinct_and_stable():
    palette = data.make_palette(256, ignore_label=2).astype(int)
    distance = np.sqrt(((palette[:, None] - palette) ** 2).sum(-1))
    assert distance[~np.eye(256, dtype=bool)].min() >= 8 and palette[2].tolist() == [0, 0, 0]
    assert (palette[:35] == data.make_palette(35, ignore_label=2)).all()


def test_pictures():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5).expand(1, 3, 2, 5)
    assert data.to_uint8(values)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
    red = np.full((5, 8, 3), (255, 0, 0), np.uint8)
    sheet = np.asarray(data.picture_grid([[red, red], [red]], ["a", "b"], scale=3))
    assert (sheet == (255, 0, 0)).all(-1).sum() == 9 * 3 * 5 * 8     # three, nine times as big


def test_the_check_counts(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.make_cityscapes(tmp_path)
    data.main(["--preset", "cityscapes", "--data-root", "."])
    printed = capsys.readouterr().out
    assert "train: 5 photos" in printed and "val: 2 photos" in printed
