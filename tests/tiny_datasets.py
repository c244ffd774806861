"""Tiny trees of every dataset layout, exact in the names of files and in how ids are stored.

Pictures are 64 x 96 (height x width), painted from their label maps in up to eight colours that lie
far apart, so that after any resize, crop and flip the colour still tells the id. Each function
returns {(split, name of the image): stored ids uint8 (64, 96)}.
"""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

CORNERS = np.array(list(itertools.product((20, 235), repeat=3)), dtype=np.uint8)  # eight colours

FOLDER_CLASSES = ["sky", "traffic light", "grass 0 200 0", "car", "unlabelled"]
FOLDER_IDS = [0, 1, 2, 3, 4]
ADE_IDS = [0, 1, 3, 6, 8, 17, 100, 150]
COCO_IDS = [0, 1, 63, 156, 181, 255]
CITYSCAPES_IDS = [0, 3, 7, 11, 23, 26, 33]
# The names that the outdoor rule asks about; the others need only be some name.
ADE_NAMES = {1: "wall", 2: "building, edifice", 3: "sky", 6: "ceiling", 8: "bed ",
             14: "earth, ground", 17: "mountain, mount", 48: "sink"}


def blocks(seed, ids, size=(64, 96)):
    """A label map of 4 x 4 blocks in which every id (at most 16) occurs."""
    cells = np.random.default_rng(seed).permutation(np.resize(ids, 16)).reshape(4, 4)
    return np.kron(cells, np.ones((size[0] // 4, size[1] // 4), int)).astype(np.uint8)


def paint(stored, ids):
    """Stored ids -> (H, W, 3): the k-th of `ids` in the k-th corner colour."""
    return CORNERS[np.searchsorted(np.sort(ids), stored)]


def make_pair(photo, label, stored, ids, grey=False):
    """Write a photo and its label map; returns the stored ids."""
    for path in (photo, label):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(paint(stored, ids)).convert("L" if grey else "RGB")
    picture.save(photo, **({"quality": 98, "subsampling": 0} if photo.suffix == ".jpg" else {}))
    Image.fromarray(stored).save(label)
    return stored


def make_folder(root, train=5, val=2, size=(64, 96)):
    """images/SPLIT/, labels/SPLIT/, classes.txt; jpg and png photos in turn."""
    root, written = Path(root), {}
    for split, count in (("train", train), ("val", val)):
        for k in range(count):
            name = f"street.{k}"
            written[split, name] = make_pair(
                root / "images" / split / (name + (".jpg", ".png")[k % 2]),
                root / "labels" / split / f"{name}.png", blocks(k, FOLDER_IDS, size), FOLDER_IDS)
    (root / "classes.txt").write_text("\n".join(FOLDER_CLASSES) + "\n", encoding="utf-8")
    return written


def make_ade20k(root, train=5, val=2):
    """Even images hold sky, odd ones a ceiling, the last training image neither of them."""
    base, written, scenes = Path(root) / "ADEChallengeData2016", {}, []
    for split, folder, count in (("train", "training", train), ("val", "validation", val)):
        for k in range(count):
            name = f"ADE_{split}_{k + 1:08d}"
            ids = [[0, 1, 3, 17, 100, 150], [0, 1, 6, 8, 100, 150]][k % 2]
            if split == "train" and k == train - 1:
                ids = [1, 100, 150]
            written[split, name] = make_pair(
                base / "images" / folder / f"{name}.jpg",
                base / "annotations" / folder / f"{name}.png", blocks(k, ids), ADE_IDS)
            scenes.append(f"{name} {['beach', 'bedroom'][k % 2]}")
    rows = [f"{k}\t0.1\t10\t1\t1\t{ADE_NAMES.get(k, f'thing {k}, item')}" for k in range(1, 151)]
    (base / "objectInfo150.txt").write_text(
        "\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]) + "\n",
        encoding="utf-8")
    (base / "sceneCategories.txt").write_text("\n".join(scenes) + "\n", encoding="utf-8")
    return written


def make_coco(root, train=5, val=2, photos="{}2017", labels="stuffthingmaps_trainval2017/{}2017"):
    """The official archives; with photos="{}_img", labels="{}_label" the other known layout.

    One photo is grey.
    """
    root, written = Path(root), {}
    for split, count in (("train", train), ("val", val)):
        for k in range(count):
            name = f"{9 + 16 * k:012d}"
            written[split, name] = make_pair(
                root / photos.format(split) / f"{name}.jpg",
                root / labels.format(split) / f"{name}.png", blocks(k, COCO_IDS), COCO_IDS,
                grey=split == "val" and k == 1)
    return written


def make_cityscapes(root, train=5, val=2):
    """leftImg8bit/ and gtFine/, with the neighbours of the labelIds files that must be ignored."""
    root, written = Path(root), {}
    for split, cities, count in (("train", ("aachen", "zurich"), train), ("val", ("lindau",), val)):
        for k in range(count):
            city = cities[k % len(cities)]
            name = f"{city}_{k:06d}_000019"
            labels = root / "gtFine" / split / city
            written[split, name] = make_pair(
                root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png",
                labels / f"{name}_gtFine_labelIds.png", blocks(k, CITYSCAPES_IDS), CITYSCAPES_IDS)
            colours = Image.fromarray(paint(written[split, name], CITYSCAPES_IDS))
            colours.save(labels / f"{name}_gtFine_color.png")
            (labels / f"{name}_gtFine_polygons.json").write_text("{}", encoding="utf-8")
    return written
