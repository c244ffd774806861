"""data.py, layouts.py and toy.py: ids, alignment, order, refusals, and the drawn scenes."""

import io
import itertools
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import data
import layouts
import tiny_datasets as tiny
import toy

# preset: (writer, stored ids, stored id -> class id as the layout's definition says)
LAYOUTS = {
    "ade20k": ("ade20k", tiny.write_ade20k, tiny.ADE_IDS, lambda stored: stored),
    "coco": ("coco-stuff", tiny.write_coco, tiny.COCO_IDS, lambda s: 0 if s == 255 else s + 1),
    "coco-img": ("coco-stuff", tiny.write_coco_train_img, tiny.COCO_IDS,
                 lambda s: 0 if s == 255 else s + 1),
    "cityscapes": ("cityscapes", tiny.write_cityscapes, tiny.CITYSCAPES_IDS, lambda stored: stored),
    "folder": ("folder", tiny.write_folder, tiny.FOLDER_IDS, lambda stored: stored),
}
NUM_CLASSES = {"ade20k": 151, "coco-stuff": 183, "cityscapes": 35, "folder": 5}


def refusal(call, *parts):
    """The call raises DataError: one sentence that holds all the parts."""
    with pytest.raises(data.DataError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence and "Traceback" not in sentence
    for part in parts:
        assert str(part) in sentence, sentence
    return sentence


# ---- The published layouts -----------------------------------------------------------------------

@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_id_arrives_as_the_definition_says(layout, tmp_path):
    preset, write, ids, definition = LAYOUTS[layout]
    written = write(tmp_path)
    for split, count in (("train", 5), ("val", 2)):
        dataset = data.open_dataset(preset, split, (64, 96), tmp_path)
        assert len(dataset) == count
        assert dataset.num_classes == NUM_CLASSES[preset] == len(dataset.class_names)
        assert dataset.palette.shape == (dataset.num_classes, 3)
        for i, name in enumerate(dataset.names):
            image, labels = dataset[i]
            expected = np.vectorize(definition)(written[split, name])
            assert (labels.numpy() == expected).all()
            assert labels.dtype == torch.int64 and image.dtype == torch.float32
            assert image.shape == (3, 64, 96) and -1 <= image.min() and image.max() <= 1
    assert dataset.ignore_label == (4 if preset == "folder" else 0)


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (128, 128)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_photo_and_labels_stay_aligned(layout, size, tmp_path):
    # The photos are painted from the labels: wherever a pixel's neighbourhood has one label, its
    # colour must name that label, after every resize, crop and flip.
    preset, write, ids, definition = LAYOUTS[layout]
    write(tmp_path)
    dataset = data.open_dataset(preset, "train", size, tmp_path, seed=3)
    class_of_corner = np.array([definition(stored) for stored in sorted(ids)])
    for key in itertools.chain(range(3), itertools.product(range(3), range(4))):
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
    tiny.write_ade20k(tmp_path)
    one, same, other = (data.open_dataset("ade20k", "train", (64, 64), tmp_path, seed=s)
                        for s in (0, 0, 1))
    views = [one[(0, epoch)][0] for epoch in range(12)]
    assert len({view.numpy().tobytes() for view in views}) > 8               # they vary
    assert all(torch.equal(same[(0, e)][0], views[e]) for e in reversed(range(12)))
    assert not all(torch.equal(other[(0, e)][0], views[e]) for e in range(12))
    # Cityscapes is only flipped: every view is the evaluation view or its mirror image.
    tiny.write_cityscapes(tmp_path)
    street = data.open_dataset("cityscapes", "train", (64, 96), tmp_path)
    flips = np.zeros((3, 12), bool)
    for (i, epoch), _ in np.ndenumerate(flips):
        view, plain = street[(i, epoch)][0], street[i][0]
        flips[i, epoch] = torch.equal(view, plain.flip(2))
        assert flips[i, epoch] or torch.equal(view, plain)
    assert flips.any(1).all() and not flips.all(1).any()
    assert (flips[0] != flips[1]).any()                      # each image has its own coin


def test_class_tables():
    # An independent list of COCO's 91 things (never annotated ones are N/A there).
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights as Weights
    things = Weights.COCO_V1.meta["categories"][1:]
    assert len(layouts.COCO_STUFF_NAMES) == len(set(layouts.COCO_STUFF_NAMES)) == 182
    matches = [a == b for a, b in zip(layouts.COCO_STUFF_NAMES, things) if b != "N/A"]
    assert len(matches) == 80 and all(matches)
    train_ids = layouts.cityscapes_train_ids()
    assert train_ids.shape == (35,) and train_ids[34] == 255                  # license plate
    assert sorted(train_ids[train_ids != 255]) == list(range(19))
    assert [train_ids[k] for k in (7, 11, 23, 26, 33)] == [0, 2, 10, 13, 18]  # road ... bicycle


def test_outdoor_images_follow_the_rule(tmp_path):
    # Even images hold sky, odd ones a ceiling; the fifth holds neither and follows its category.
    tiny.write_ade20k(tmp_path)
    dataset = data.open_dataset("ade20k-outdoors", "train", (64, 64), tmp_path)
    assert [name[-1] for name in dataset.names] == ["1", "3", "5"]
    # Undecided pictures go with the majority of their category; without one they are dropped.
    votes = {"a": True, "b": True, "c": False, "d": None, "e": None, "f": False, "g": None}
    categories = dict(a="beach", b="beach", c="beach", d="beach", e="attic", f="attic")
    assert layouts.choose_outdoors(votes, categories) == {"a", "b", "d"}
    # An explicit list replaces the rule.
    (tmp_path / "list.txt").write_text("ADE_train_00000002.jpg\nADE_val_00000001\n")
    for split in ("train", "val"):
        chosen = data.open_dataset("ade20k-outdoors", split, (64, 64), tmp_path,
                                   subset=tmp_path / "list.txt")
        assert chosen.names == [f"ADE_{split}_0000000{2 if split == 'train' else 1}"]


def test_other_ways_the_archives_lie_on_disk(tmp_path):
    # ADE20K's root may be given itself; COCO's label maps may be unpacked among the photos.
    tiny.write_ade20k(tmp_path / "a")
    inner = tmp_path / "a" / "ADEChallengeData2016"
    assert len(data.open_dataset("ade20k", "val", (64, 96), inner)) == 2
    tiny.write_coco(tmp_path / "c", labels="{}2017")
    assert len(data.open_dataset("coco-stuff", "train", (64, 96), tmp_path / "c")) == 5
    # Notes that an operating system leaves beside the files are not photos.
    (tmp_path / "c" / "train2017" / "._000000000009.jpg").write_bytes(b"note")
    assert len(data.open_dataset("coco-stuff", "train", (64, 96), tmp_path / "c")) == 5
    # The val split of a folder may be called validation, or be the test split.
    tiny.write_folder(tmp_path / "f")
    for old, new in (("val", "validation"), ("validation", "test")):
        for kind in ("images", "labels"):
            (tmp_path / "f" / kind / old).rename(tmp_path / "f" / kind / new)
        assert len(data.open_dataset("folder", "val", (64, 96), tmp_path / "f")) == 2


def test_full_ade_release_is_recognised(tmp_path):
    (tmp_path / "ADE20K_2021_17_01" / "images" / "ADE").mkdir(parents=True)
    for root in (tmp_path, tmp_path / "ADE20K_2021_17_01"):
        refusal(lambda: data.open_dataset("ade20k", "train", (64, 64), root),
                "full ADE20K release", "ADEChallengeData2016.zip")


# ---- Reading one file ----------------------------------------------------------------------------

@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [False, True])
def test_ids_of_every_bit_depth(bits, palette, tmp_path):
    # Written byte by byte with zlib, since PIL itself writes no grey png of 2 or 4 bits.
    import struct
    import zlib
    ids = np.random.default_rng(bits).integers(0, min(2 ** bits, 9), (8, 16))
    planes = (ids[..., None] >> np.arange(bits)[::-1]) & 1
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in planes.reshape(8, -1))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 16, 8, bits, 3 if palette else 0, 0, 0, 0))]
    chunks += [(b"PLTE", bytes(range(3 * 2 ** bits % 256 or 252)))] * palette
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks)
    (tmp_path / "labels.png").write_bytes(png)
    assert (data.read_label_map(tmp_path / "labels.png", 9) == ids).all()


def test_label_map_in_colours(tmp_path):
    palette = layouts.make_palette(5)
    ids = tiny.blocks(0, range(5))
    Image.fromarray(palette[ids]).save(tmp_path / "colours.png")
    assert (data.read_label_map(tmp_path / "colours.png", 5, palette=palette) == ids).all()
    refusal(lambda: data.read_label_map(tmp_path / "colours.png", 5), "colours.png", "convert")
    refusal(lambda: data.read_label_map(tmp_path / "colours.png", 5, palette=palette[:4]),
            "colours.png", f"{(ids == 4).sum()} pixels", "no class")


def test_photos_are_read_alike_at_reduced_scale(tmp_path):
    # A drawn scene, with grain, saved as jpg: decoding at reduced scale and then resizing must give
    # the picture that full decoding gives; what differs is less than bilinear from bicubic.
    scene = toy.draw_scene(1, 2, 480, 640)[0]
    grain = np.random.default_rng(0).normal(0, 6, scene.shape)
    Image.fromarray((scene + grain).clip(0, 255).astype(np.uint8)).save(tmp_path / "a.jpg")
    for size in ((120, 160), (100, 150), (64, 64)):
        fast = data.read_photo(tmp_path / "a.jpg", size).astype(int)
        with Image.open(tmp_path / "a.jpg") as photo:
            full = np.asarray(photo.resize(size[::-1], Image.BICUBIC)).astype(int)
            bilinear = np.asarray(photo.resize(size[::-1], Image.BILINEAR))
        error = np.abs(fast - full)
        assert error.mean() < np.abs(bilinear - full).mean()
        assert error.mean() < 0.5 and np.percentile(error, 99) <= 4, (size, error.mean())
        assert np.abs((fast - full).mean()) < 0.1                            # as bright


def test_photos_are_turned_upright_in_folders_only(tmp_path):
    scene = toy.draw_scene(0, 0, 48, 96)[0]
    exif = Image.Exif()
    exif[274] = 6                                             # "turn a quarter to see it upright"
    Image.fromarray(np.rot90(scene).copy()).save(tmp_path / "a.jpg", exif=exif, quality=98)
    upright = data.read_photo(tmp_path / "a.jpg", (48, 96), (48, 96), upright=True)
    assert np.abs(upright.astype(int) - scene).mean() < 6
    assert data.read_photo(tmp_path / "a.jpg", (96, 48), (96, 48)).shape == (96, 48, 3)


def test_resize_labels_agrees_with_pil():
    rng = np.random.default_rng(0)
    for _ in range(20):
        old, new = rng.integers(1, 90, 2), rng.integers(1, 90, 2)
        labels = rng.integers(0, 200, old).astype(np.uint8)
        expected = np.asarray(Image.fromarray(labels).resize(tuple(new[::-1]), Image.NEAREST))
        # Where a centre falls exactly between two pixels, PIL's rounding may pick either one.
        clear = [(2 * np.arange(n) + 1) * o % (2 * n) != 0 for n, o in zip(new, old)]
        clear = np.logical_and.outer(*clear)
        assert (data.resize_labels(labels, tuple(new)) == expected)[clear].all()


def test_a_file_cut_or_damaged_anywhere_ends_in_words(tmp_path):
    # Every prefix length and many flipped bytes: a picture comes back, or a DataError; never else.
    ids, path = tiny.blocks(0, range(5), (16, 16)), tmp_path / "x"
    for ending, read in ((".png", lambda: data.read_label_map(path, 5)),
                         (".png", lambda: data.read_photo(path, (8, 8))),
                         (".jpg", lambda: data.read_photo(path, (8, 8)))):
        buffer = io.BytesIO()
        Image.fromarray(ids).save(buffer, {".png": "PNG", ".jpg": "JPEG"}[ending])
        whole, refused, rng = buffer.getvalue(), 0, np.random.default_rng(0)
        versions = [whole[:n] for n in range(len(whole))]
        for place in rng.integers(0, len(whole), 150):
            versions.append(whole[:place] + bytes([rng.integers(256)]) + whole[place + 1:])
        for version in versions:
            path.write_bytes(version)
            try:
                read()
            except data.DataError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
        assert refused > 0.5 * len(whole)


# ---- Refusals ------------------------------------------------------------------------------------

def spoil(root, how):
    """Damage one thing in a good folder dataset; returns what the sentence must name."""
    photo, label = root / "images/train/street.0.jpg", root / "labels/train/street.0.png"
    if how == "no such root":
        shutil.rmtree(root)
        return [root]
    if how == "no classes":
        (root / "classes.txt").unlink()
        return ["classes.txt"]
    if how == "empty classes":
        (root / "classes.txt").write_text("")
        return ["classes.txt", "0 classes"]
    if how == "missing folder":
        shutil.rmtree(root / "labels" / "train")
        return ["labels/train"]
    if how == "empty folder":
        for path in (root / "images" / "train").iterdir():
            path.unlink()
        return ["images/train"]
    if how == "photo without label":
        label.unlink()
        return ["street.0.jpg", "no label map"]
    if how == "label without photo":
        photo.unlink()
        return ["street.0.png", "no photo"]
    if how == "two photos of one name":
        Image.new("RGB", (96, 64)).save(photo.with_suffix(".png"))
        return ["street.0", "same name"]
    if how == "sizes differ":
        Image.new("RGB", (90, 64)).save(photo)
        return ["street.0.jpg", "90x64", "96x64"]
    if how == "id out of range":
        Image.fromarray(np.full((64, 96), 77, np.uint8)).save(label)
        return ["street.0.png", "77", "0-4"]
    if how == "colour labels":
        Image.new("RGB", (96, 64)).save(label)
        return ["street.0.png", "colour", "--convert-colours"]
    if how == "jpeg labels":
        Image.new("L", (96, 64)).save(label, "JPEG")
        return ["street.0.png", "jpeg"]
    if how == "16-bit ids":
        Image.fromarray(np.ones((64, 96), np.uint16)).save(label)
        return ["street.0.png", "16-bit"]
    broken = {"cut photo": photo, "cut label": label}[how]
    broken.write_bytes(broken.read_bytes()[:-40])
    return [broken.name, "cannot be read"]


SPOILS = ["no such root", "no classes", "empty classes", "missing folder", "empty folder",
          "photo without label", "label without photo", "two photos of one name", "sizes differ",
          "id out of range", "colour labels", "jpeg labels", "16-bit ids", "cut photo", "cut label"]


@pytest.mark.parametrize("how", SPOILS)
def test_bad_folders_are_refused_in_words(how, tmp_path, capsys, monkeypatch):
    root = tmp_path / "mine"
    tiny.write_folder(root)
    parts = spoil(root, how)
    # When opened or, for what only reading shows, when the image is loaded.
    refusal(lambda: data.open_dataset("folder", "train", (64, 64), root)[0], *parts)
    # The command: exit code 2, the culprit named, the error line last, nothing written.
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert data.main(["--preset", "folder", "--data-root", str(root)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("data.py: error: ")
    assert all(any(str(part) in line for line in errors) for part in parts), errors
    assert sorted(tmp_path.rglob("*")) == before


def test_all_problems_are_reported_not_the_first(tmp_path, capsys):
    tiny.write_folder(tmp_path, train=12)
    for k, how in enumerate(("cut", "big id", "colour", "size", "no label", "no photo")):
        photo = tmp_path / f"images/train/street.{k}{('.jpg', '.png')[k % 2]}"
        label = tmp_path / f"labels/train/street.{k}.png"
        if how == "cut":
            photo.write_bytes(photo.read_bytes()[:500])
        elif how == "big id":
            Image.fromarray(np.full((64, 96), 9, np.uint8)).save(label)
        elif how == "colour":
            Image.new("RGB", (96, 64)).save(label)
        elif how == "size":
            Image.new("RGB", (64, 64)).save(photo)
        else:
            (label if how == "no label" else photo).unlink()
    dataset = data.open_dataset("folder", "train", (64, 64), tmp_path, complete=False)
    problems = data.check_dataset(dataset)
    assert len(problems) == 6
    for k in range(6):
        assert sum(f"street.{k}." in problem for problem in problems) == 1
    assert data.main(["--preset", "folder", "--data-root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("street.") >= 6


def test_bad_requests_are_refused_in_words(tmp_path):
    tiny.write_folder(tmp_path)
    refusal(lambda: data.open_dataset("imagenet", "train", (64, 64)), "imagenet", "toy", "folder")
    refusal(lambda: data.open_dataset("toy", "test", (64, 64)), "'test'", "train", "val")
    refusal(lambda: data.open_dataset("toy", "train", (0, 64)), "(0, 64)")
    refusal(lambda: data.open_dataset("toy", "train", (64, 64), seed=-1), "-1")
    refusal(lambda: data.open_dataset("folder", "train", (64, 64)), "data root", "none was given")
    refusal(lambda: data.open_dataset("folder", "train", (64, 64), tmp_path, num_images=0), "0")
    (tmp_path / "list.txt").write_text("elsewhere\n")
    refusal(lambda: data.open_dataset("folder", "train", (64, 64), tmp_path,
                                      subset=tmp_path / "list.txt"), "list.txt")
    refusal(lambda: data.open_dataset("folder", "train", (64, 64), tmp_path, subset="no.txt"),
            "no.txt")
    refusal(lambda: data.BatchSampler(5, 6, 0), "6", "5")
    refusal(lambda: data.BatchSampler(8, 6, 0, world_size=4), "6", "4 processes")
    refusal(lambda: data.read_label_map(tmp_path / "none.png", 5), "none.png")


@pytest.mark.parametrize("text, part", [
    ("sky\n\nroad\n", "line 2 is empty"), ("sky\nsky\n", "'sky'"),
    ("a ignore\nb ignore\n", "a, b"), ("sk\udcffy\n", "not a text file in UTF-8"),
    ("void\nroad\nunknown\n", "void, unknown")])
def test_bad_classes_are_refused(text, part, tmp_path):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
    refusal(lambda: layouts.read_classes(tmp_path / "classes.txt"), "classes.txt", part)


def test_classes_file(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nbackground\ntraffic light 1 2 3\nego car ignore\n")
    names, palette, ignore_label = layouts.read_classes(tmp_path / "classes.txt")
    assert names == ["sky", "background", "traffic light", "ego car"] and ignore_label == 3
    assert palette[2].tolist() == [1, 2, 3] and palette[3].tolist() == [0, 0, 0]
    (tmp_path / "classes.txt").write_text("Sky\nUnlabelled 5 6 7\n")
    assert layouts.read_classes(tmp_path / "classes.txt")[2] == 1


def test_a_real_command_and_its_help():
    # One real process for each: the exit codes and streams that a shell sees.
    run = [subprocess.run([sys.executable, "data.py", *arguments], capture_output=True, text=True)
           for arguments in (["--help"], ["--preset", "nosuch"], ["--preset", "folder"])]
    assert [result.returncode for result in run] == [0, 2, 2]
    for option in ("--preset", "--data-root", "--convert-colours", "--benchmark", "--subset"):
        assert option in run[0].stdout
    assert "data.py: error: " in run[1].stderr and "ade20k-outdoors" in run[1].stderr
    assert run[2].stderr.startswith("data.py: error: ") and "Traceback" not in run[2].stderr


def test_files_that_are_not_what_they_should_be_are_named(tmp_path):
    """16 bits per channel, which PIL would clip; a list without its file; devices and lists nobody has."""
    tiny.write_folder(tmp_path, train=1, val=1)
    photo, = (tmp_path / "images/val").iterdir()
    Image.fromarray(np.full((64, 96), 1000, np.uint16)).save(photo.with_suffix(".png"))
    if photo.suffix != ".png":
        photo.unlink()
    dataset = data.open_dataset("folder", "val", (64, 64), tmp_path)
    refusal(lambda: dataset[0], f"{photo.stem}.png", "more than 8 bits")
    (tmp_path / "classes.txt").unlink()
    refusal(lambda: data.open_dataset("folder", "val", (64, 64), tmp_path), "classes.txt: is missing")
    refusal(lambda: data.open_dataset("toy", "train", (64, 64), subset="names.txt"), "--subset names.txt")
    refusal(lambda: data.pick_device("abacus"), "--device abacus: this machine has cpu")


# ---- Small datasets ------------------------------------------------------------------------------

@pytest.mark.parametrize("count", [1, 5])
def test_a_dataset_of_one_and_of_five(count, tmp_path):
    # Its photos, 20 x 24 pixels, are smaller than the crop: they are enlarged.
    tiny.write_folder(tmp_path, train=count, val=1, size=(20, 24))
    dataset = data.open_dataset("folder", "train", (64, 64), tmp_path)
    assert data.check_dataset(dataset) == []
    batches = iter(data.make_loader(dataset, data.BatchSampler(count, count, 0), 0))
    for _ in range(3):
        images, labels = next(batches)
        assert images.shape == (count, 3, 64, 64) and labels.shape == (count, 64, 64)


def test_subset_and_number_of_images(tmp_path):
    tiny.write_folder(tmp_path)
    (tmp_path / "list.txt").write_text("street.3\nstreet.1.jpg\n\n")
    chosen = data.open_dataset("folder", "train", (64, 64), tmp_path, subset=tmp_path / "list.txt")
    everything = data.open_dataset("folder", "train", (64, 64), tmp_path)
    assert chosen.names == ["street.1", "street.3"]
    assert torch.equal(chosen[1][0], everything[3][0])
    assert data.open_dataset("folder", "train", (64, 64), tmp_path, num_images=2).names \
        == everything.names[:2]


# ---- The order of the images ---------------------------------------------------------------------

def first_batches(sampler, count):
    return list(itertools.islice(sampler, count))


def test_batches_cover_each_epoch_once():
    batches = first_batches(data.BatchSampler(10, 3, seed=1), 9)             # 3 steps an epoch
    for epoch in range(3):
        pairs = sum(batches[3 * epoch:3 * epoch + 3], [])
        assert {e for _, e in pairs} == {epoch} and len({i for i, _ in pairs}) == 9
    assert batches[0] != batches[3] != batches[6]


def test_order_depends_on_seed_epoch_and_rank_alone():
    whole = first_batches(data.BatchSampler(23, 4, seed=5), 30)
    assert whole == first_batches(data.BatchSampler(23, 4, seed=5), 30)
    assert whole != first_batches(data.BatchSampler(23, 4, seed=6), 30)
    for start in (0, 1, 4, 5, 17):                    # a resumed run: the exact next batch
        assert first_batches(data.BatchSampler(23, 4, 5, start_step=start), 5) \
            == whole[start:start + 5]
    for world in (2, 4):                              # shared out, the batch stays the same
        shares = [first_batches(data.BatchSampler(23, 4, 5, rank, world), 30)
                  for rank in range(world)]
        for step, batch in enumerate(whole):
            assert [shares[k % world][step][k // world] for k in range(4)] == batch


def test_any_number_of_workers_gives_the_same_batches(tmp_path):
    tiny.write_ade20k(tmp_path)
    dataset = data.open_dataset("ade20k", "train", (32, 32), tmp_path)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    runs = []
    for workers in (0, 1, 2):
        loader = data.make_loader(dataset, data.BatchSampler(5, 2, 0), workers)
        runs.append(list(itertools.islice(loader, 7)))
    for run in runs[1:]:
        for (images, labels), (first_images, first_labels) in zip(run, runs[0]):
            assert torch.equal(images, first_images) and torch.equal(labels, first_labels)
    # Resumed at step 4, with workers: the batches from there on, and no earlier file is opened.
    for path in (tmp_path / "ADEChallengeData2016/images/training").iterdir():
        if path.stem not in {dataset.names[i] for i, _ in first_batches(
                data.BatchSampler(5, 2, 0, start_step=4), 1)[0]}:
            path.unlink()
    resumed = next(iter(data.make_loader(dataset, data.BatchSampler(5, 2, 0, start_step=4), 1)))
    assert torch.equal(resumed[0], runs[0][4][0])
    # The global generators were never touched.
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_an_error_in_a_worker_is_still_one_sentence(tmp_path):
    tiny.write_folder(tmp_path)
    dataset = data.open_dataset("folder", "train", (64, 64), tmp_path)
    (tmp_path / "images/train/street.2.jpg").write_bytes(b"nothing")
    batches = iter(data.make_loader(dataset, data.BatchSampler(5, 5, 0), 1))
    sentence = refusal(lambda: next(batches), "street.2.jpg")
    assert sentence.startswith(str(tmp_path))
    del batches


# ---- Pictures, palettes, conversion --------------------------------------------------------------

@pytest.mark.parametrize("num_classes", [5, 35, 151, 183, 256])
def test_palettes_are_distinct_and_stable(num_classes):
    palette = layouts.make_palette(num_classes, ignore_label=2).astype(int)
    assert palette[2].tolist() == [0, 0, 0]
    distance = np.sqrt(((palette[:, None] - palette) ** 2).sum(-1))
    assert distance[~np.eye(num_classes, dtype=bool)].min() >= 35
    longer = layouts.make_palette(256, ignore_label=2)
    assert (palette == longer[:num_classes]).all()


def test_pictures():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5).expand(1, 3, 2, 5)
    assert data.to_uint8(values)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
    every = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert (data.to_uint8(every / 127.5 - 1) == every.permute(0, 2, 3, 1).numpy()).all()
    palette = layouts.make_palette(4)
    assert (data.colourise(torch.tensor([[0, 3]]), palette) == palette[[[0, 3]]]).all()
    red = np.full((5, 8, 3), (255, 0, 0), np.uint8)
    sheet = data.picture_grid([[red, red], [red]], ["first", "second"], ["a", "b"], scale=3)
    pixels = np.asarray(sheet)
    assert (pixels == (255, 0, 0)).all(-1).sum() == 9 * 3 * 5 * 8     # three, nine times as big


def test_colours_become_ids(tmp_path, capsys):
    classes = tmp_path / "classes.txt"
    classes.write_text("sky 10 20 30\nroad 200 0 0\nvoid 0 0 0 ignore\n")
    palette = np.array([(10, 20, 30), (200, 0, 0), (0, 0, 0)], np.uint8)
    source, out = tmp_path / "coloured", tmp_path / "labels" / "train"
    source.mkdir()
    for k in range(3):
        Image.fromarray(palette[tiny.blocks(k, range(3))]).save(source / f"{k}.png")
    command = ["--convert-colours", str(source), "--classes", str(classes), "--out"]
    assert data.main(command + [str(out)]) == 0
    for k in range(3):
        assert (data.read_label_map(out / f"{k}.png", 3) == tiny.blocks(k, range(3))).all()
        with Image.open(out / f"{k}.png") as picture:                        # viewers see colours
            assert (np.asarray(picture.convert("RGB")) == palette[tiny.blocks(k, range(3))]).all()
    # A colour of no class, a jpeg, a second run: refused, and nothing is written.
    assert data.main(command + [str(out)]) == 2
    Image.new("RGB", (8, 8), (1, 2, 3)).save(source / "9.png")
    assert data.main(command + [str(tmp_path / "other")]) == 2
    Image.new("RGB", (8, 8)).save(source / "9.png", "JPEG")
    assert data.main(command + [str(tmp_path / "other")]) == 2
    (source / "9.png").unlink()
    for text in ("sky 10 20 30\nroad\nvoid 0 0 0\n", "sky 1 1 1\nroad 2 2 2\nvoid 2 2 2\n"):
        classes.write_text(text)
        assert data.main(command + [str(tmp_path / "other")]) == 2
    errors = capsys.readouterr().err
    assert "exists already" in errors and "(1 2 3)" in errors and "jpeg" in errors
    assert errors.count("'road' needs a colour of its own") == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.txt", "coloured", "labels"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["train"]


def test_benchmark_prints_images_per_second(capsys):
    data.benchmark(count=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("images/s per worker" in line for line in lines)


def test_check_prints_counts_and_saves_a_contact_sheet(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = tiny.write_cityscapes(tmp_path)
    assert data.main(["--preset", "cityscapes", "--data-root", ".", "--size", "64", "96"]) == 0
    printed = capsys.readouterr().out
    share = np.mean([(ids == 26).mean() for (split, _), ids in written.items() if split == "train"])
    assert f"26 car                      {share:9.4%}" in printed
    assert "5 photos" in printed and "2 photos" in printed and "64x96" in printed
    assert "classes never seen: " in printed and "license plate" in printed
    with Image.open(tmp_path / "data_cityscapes.png") as sheet:
        assert sheet.width > 5 * 96 and sheet.height > 2 * 64
    assert not list(tmp_path.glob("*.tmp"))
    (tmp_path / "file").touch()
    assert data.main(["--preset", "cityscapes", "--data-root", ".", "--out", "file/sheet.png"]) == 2
    assert "file/sheet.png: could not be written" in capsys.readouterr().err


# ---- Toy scenes ----------------------------------------------------------------------------------

def test_toy_scenes_are_a_function_of_seed_split_and_index():
    one, two = (data.open_dataset("toy", "train", (64, 64), seed=4) for _ in range(2))
    assert len(one) == 2000 and len(data.open_dataset("toy", "val", (64, 64))) == 200
    late, early = two[7], two[2]        # another order of asking
    assert torch.equal(one[2][0], early[0]) and torch.equal(one[7][1], late[1])
    val = data.open_dataset("toy", "val", (64, 64), seed=4, num_images=3)
    other = data.open_dataset("toy", "train", (64, 64), seed=5)
    pictures = [dataset[i][0] for dataset in (one, val, other) for i in range(3)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(pictures, 2))


def test_toy_scenes_look_alike_at_every_size():
    for index in range(8):
        small, large = toy.draw_scene(0, index, 64, 96), toy.draw_scene(0, index, 192, 288)
        assert (small[1] == large[1][1::3, 1::3]).all()        # every third pixel: the same place
        assert np.abs(small[0].astype(int) - large[0][1::3, 1::3]).max() <= 1
    for size in ((1, 1), (33, 7), (256, 512)):
        image, labels = toy.draw_scene(0, 3, *size)
        assert image.shape == (*size, 3) and labels.shape == size and image.dtype == np.uint8


def test_toy_lengths_are_in_picture_heights():
    wide = toy.Canvas(10, 30)                                # or round crowns would be stretched
    assert np.allclose(np.diff(wide.x), 0.1) and np.allclose(np.diff(wide.y, axis=0), 0.1)


def test_every_scene_draws_its_own_mood():
    moods = list(itertools.product(toy.TIMES, toy.WEATHERS, toy.SEASONS))
    found = []
    for i in range(40):
        own = toy.draw_scene(0, i, 16, 16)[0]
        found.append([(own == toy.draw_scene(0, i, 16, 16, mood)[0]).all() for mood in moods])
    assert (np.sum(found, axis=1) == 1).all()                # one of the 36, and most of them occur
    assert np.any(found, axis=0).sum() > 18


def test_toy_scenes_hold_every_class_and_a_little_unknown():
    labels = np.stack([toy.draw_scene(0, i, 64, 64)[1] for i in range(150)])
    share = np.bincount(labels.ravel(), minlength=10) / labels.size
    assert len(toy.CLASSES) == 10 == len(np.unique(toy.PALETTE, axis=0))
    assert share.min() > 0.005 and share[toy.UNKNOWN] < 0.03 and len(share) == 10


def test_the_script_draws_all_moods(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy.main()
    with Image.open("toy_moods.png") as picture:
        assert picture.size == (9 * 128, 4 * 128)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_mood_changes_every_colour_and_no_label():
    # The 36 moods of one layout: same labels, and two of them differ by 0.4 on [-1, 1] on average.
    moods = list(itertools.product(toy.TIMES, toy.WEATHERS, toy.SEASONS))
    differences = []
    for index in range(3):
        scenes = [toy.draw_scene(0, index, 48, 48, mood) for mood in moods]
        assert all((labels == scenes[0][1]).all() for _, labels in scenes)
        images = np.stack([image for image, _ in scenes]) / 127.5
        differences += [np.abs(a - b).mean() for a, b in itertools.combinations(images, 2)]
    assert np.mean(differences) > 0.35 and np.mean(np.array(differences) > 0.25) > 0.7
    assert np.min(differences) > 0.01
    # Within a mood, classes can be told apart by colour: night is dark, snow is white, and so on.
    image, labels = toy.draw_scene(0, 0, 64, 64, ("noon", "clear", "winter"))
    assert image[labels == toy.MEADOW].mean() > 180
    image, labels = toy.draw_scene(0, 0, 64, 64, ("night", "clear", "summer"))
    assert image[labels == toy.SKY].mean() < 70
