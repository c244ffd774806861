"""data.py: ids, alignment, order, refusals, files written whole, pictures."""

import io
import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from functools import partial

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


def test_photos_are_turned_upright_in_folders_only(tmp_path):
    tiny.make_folder(tmp_path, train=1, val=1)
    path = tmp_path / "images/train/street.0.jpg"
    with Image.open(path) as photo:
        upright = np.asarray(photo).astype(int)
    exif = Image.Exif()
    exif[274] = 6                                             # "turn a quarter to see it upright"
    Image.fromarray(np.rot90(upright).astype(np.uint8)).save(path, exif=exif, quality=98)
    image = data.to_uint8(data.open_dataset("folder", "train", (64, 96), tmp_path)[0][0][None])
    assert np.abs(image[0] - upright).mean() < 6
    assert data.read_photo(path).shape == (96, 64, 3)         # as stored, where nobody asks


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
    "missing folder": (lambda r: shutil.rmtree(r / "labels/train"), ["labels/train"]),
    "empty split": (lambda r: [p.unlink() for p in (r / "images/train").iterdir()], ["es/train"]),
    "no label map": (lambda r: (r / LABEL).unlink(), [PHOTO, "label map is missing"]),
    "no photo": (lambda r: (r / PHOTO).unlink(), [LABEL, "photo is missing"]),
    "two of one name": (put("images/train/street.0.png", "L"), ["images/train", "street.0"]),
    "sizes differ": (put(PHOTO, "RGB", size=(90, 64)), [PHOTO, "64x90", "64x96"]),
    "id out of range": (put(LABEL, "L", 77), [LABEL, 77, "5 classes"]),
    "id 5 of 5": (put(LABEL, "L", 5), [LABEL, "[5]"]),
    "colour labels": (put(LABEL, "RGB"), [LABEL, "colours"]),
    "labels with alpha": (put(LABEL, "LA"), [LABEL]),
    "jpeg labels": (put(LABEL, "L", kind="JPEG"), [LABEL, "JPEG"]),
    "16-bit labels": (put(LABEL, "I;16"), [LABEL, "8-bit"]),
    "16-bit photo": (put(PHOTO, "I;16", kind="PNG"), [PHOTO, "more than 8 bits"]),
    "text as label map": (lambda r: (r / LABEL).write_text("sky"), [LABEL, "cannot be read"]),
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
    refusal(open_folder, "--data-root", "none was given")
    (tmp_path / "list.txt").write_text("elsewhere\n")
    refusal(lambda: open_folder(tmp_path, subset=tmp_path / "list.txt"), "list.txt")
    refusal(lambda: data.BatchSampler(5, 6, 0), "6", "5")
    refusal(lambda: data.BatchSampler(8, 6, 0, world_size=4), "6", "4, the number of processes")


def test_classes_file(tmp_path):
    for text in ("sky\n\nroad\n", "sky\nsky\n", "a ignore\nb ignore\n", "\udcff\n",
                 "void\nroad\nunknown\n", "\n".join(map(str, range(257)))):
        (tmp_path / "classes.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
        refusal(lambda: data.read_classes(tmp_path / "classes.txt"), "classes.txt")
    (tmp_path / "classes.txt").write_text("sky\nbackground\ntraffic light 1 2 3\nego car ignore\n")
    names, palette, ignore_label = data.read_classes(tmp_path / "classes.txt")
    assert names == ["sky", "background", "traffic light", "ego car"] and ignore_label == 3
    assert palette[2].tolist() == [1, 2, 3] and palette[3].tolist() == [0, 0, 0]
    (tmp_path / "classes.txt").write_text("Sky\nUnlabelled 5 6 7\n")
    assert data.read_classes(tmp_path / "classes.txt")[2] == 1


def test_subset_and_number_of_images(tmp_path):
    tiny.make_folder(tmp_path)
    (tmp_path / "list.txt").write_text("street.3\nstreet.1.jpg\n\n")
    for split, names in (("train", ["street.1", "street.3"]), ("val", ["street.1"])):
        chosen = data.open_dataset("folder", split, (64, 64), tmp_path,
                                   subset=tmp_path / "list.txt")
        everything = data.open_dataset("folder", split, (64, 64), tmp_path)
        assert chosen.names == names and torch.equal(chosen[0][0], everything[1][0])
    assert len(data.open_dataset("folder", "train", (64, 64), tmp_path, num_images=2)) == 2


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
        path.write_text("first")
    with pytest.raises(OSError):
        with data.write_whole(target) as path:
            path.write_text("sec")
            raise OSError("no space left on device")
    assert target.read_text() == "first" and len(list(target.parent.iterdir())) == 1


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
