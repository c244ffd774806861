"""Where each dataset keeps its files, and what the ids in its label maps mean.

    python data.py --preset ade20k --data-root ADEChallengeData2016        # checks a dataset

One function per preset turns (root folder, split) into a Layout: the pairs of files, the classes
and the table from stored ids to class ids. No pixel is decoded here (but for the choice of the
ADE20K-outdoors images); reading, cropping and shuffling are `data.py`.

Convention owned by this file: N counts every label the generator can see. "Unknown" is one of them
where a dataset has it, and is then the layout's `ignore_label`: weight 0 in the losses (Sec. 2,
alpha_c), never scored.
"""

import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm


class DataError(ValueError):
    """Something is wrong with the user's files or request, told in one sentence."""

    def __init__(self, sentence):
        # A DataLoader worker sends its error home with a whole traceback pasted before the
        # sentence (and builds the error anew from that text): keep the sentence only.
        super().__init__(str(sentence).rsplit("DataError: ", 1)[-1].strip())


@dataclass
class Layout:
    """One split of one dataset, as it lies on the disk."""
    names: list                # one name per image
    class_names: list          # N names
    palette: np.ndarray        # (N, 3) uint8
    ignore_label: int | None
    photos: list = ()          # paths, in the order of names
    labels: list = ()
    id_table: np.ndarray = None    # (256,): id stored in the png -> class id, -1 = not allowed
    enlarge: float = 1.0       # training: resize to this times the size, then crop
    upright: bool = False      # turn photos as their EXIF tag says
    unmatched: list = ()       # sentences: photos without a label map, label maps without a photo


# ---- Files ---------------------------------------------------------------------------------------

NOT_WRITTEN = "could not be written"


@contextmanager
def readable(path, failure="cannot be read as a picture"):
    """Whatever PIL or the disk raises about a file becomes one sentence that names the file.

    RuntimeError is what torch.save makes of a full disk.
    """
    try:
        yield
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError,
            Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or "damaged"
        raise DataError(f"{path}: {failure} ({reason})") from error


@contextmanager
def written_whole(path):
    """Yields a temporary path beside `path` that takes its place at the end: never half a file.

    A full disk or a folder that cannot be made is a DataError.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with readable(path, NOT_WRITTEN):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


# ---- Building blocks -----------------------------------------------------------------------------

PHOTOS, PNGS = (".jpg", ".jpeg", ".png"), (".png",)


def list_files(folder, endings, suffix=""):
    """{name: path} of the files in folder called NAME + suffix + one of the endings (any case)."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    found = {}
    with readable(folder, "cannot be listed"):
        paths = sorted(folder.iterdir())
    for path in paths:
        if path.name.startswith("."):                        # a system's notes on files, no photo
            continue
        if path.suffix.lower() in endings and path.stem.endswith(suffix) and path.is_file():
            name = path.stem.removesuffix(suffix)
            if name in found:
                raise DataError(f"{path}: has the same name as {found[name].name}, and names "
                                "tell pictures apart; rename or remove one of them")
            found[name] = path
    if not found:
        raise DataError(f"{folder}: holds no file {'*' + suffix if suffix else ''}".rstrip()
                        + f" with the ending {' or '.join(endings)}")
    return found


def pair_up(photos, labels, **description):
    """Photos and label maps of the same name -> Layout; the others become its `unmatched`."""
    names = sorted(photos.keys() & labels.keys())
    unmatched = [f"{photos[n]}: the photo has no label map" for n in sorted(photos.keys() - labels)]
    unmatched += [f"{labels[n]}: the label map has no photo"
                  for n in sorted(labels.keys() - photos)]
    return Layout(names, photos=[photos[n] for n in names], labels=[labels[n] for n in names],
                  unmatched=unmatched, **description)


def read_lines(path, purpose):
    """The lines of a text file, without white space at the ends of the file and of each line."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing; it {purpose}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); it {purpose}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a text file in UTF-8; it {purpose}") from error


def first_folder(root, *choices):
    """The first of the folders that exists below root; the first of all if none does."""
    return next((root / c for c in choices if (root / c).is_dir()), root / choices[0])


def identity_table(num_classes):
    """The id table of a dataset whose pngs hold the class ids themselves."""
    return np.where(np.arange(256) < num_classes, np.arange(256), -1)


def make_palette(num_classes, ignore_label=None):
    """(N, 3) uint8 colours, each depending on its id alone; the unknown class is black.

    Each class takes, from a grid of 7 x 7 x 7 colours, the one farthest from all colours taken so
    far, black and white being taken from the start: of many classes, still no two look alike.
    """
    level = np.linspace(40, 255, 7).round()
    grid = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1).reshape(-1, 3)
    palette = np.zeros((num_classes, 3), dtype=np.uint8)
    distance = np.minimum((grid ** 2).sum(1), ((grid - 255) ** 2).sum(1))
    for k in range(num_classes):
        palette[k] = colour = grid[distance.argmax()]
        distance = np.minimum(distance, ((grid - colour) ** 2).sum(1))
    if ignore_label is not None:
        palette[ignore_label] = 0
    return palette


def keep_only(layout, kept):
    """The layout with the names in `kept` alone."""
    places = [i for i, name in enumerate(layout.names) if name in kept]
    for attribute in ("names", "photos", "labels"):
        setattr(layout, attribute, [getattr(layout, attribute)[i] for i in places])
    return layout


def read_names(path):
    """A file of image names, one per line, with or without the ending of a picture -> set."""
    lines = [Path(line) for line in read_lines(Path(path), "lists the images to use") if line]
    return {line.stem if line.suffix.lower() in PHOTOS else line.name for line in lines}


# ---- Anyone's own photographs --------------------------------------------------------------------

UNKNOWN_NAMES = {"unknown", "unlabelled", "unlabeled", "void", "ignore"}  # ignored without a mark


def read_classes(path, need_colours=False):
    """classes.txt -> (names, palette, ignore_label). Line k describes id k: name [R G B] [ignore].

    Classes named as in UNKNOWN_NAMES are ignored without the mark too; "background" is not among
    them, since a background is often something to be drawn. Colours not given are made up.
    """
    names, colours, ignored = [], {}, []
    for number, line in enumerate(read_lines(path, "lists one class per line, id 0 first")):
        words = line.split()
        if not words:
            raise DataError(f"{path}: line {number + 1} is empty, but every line stands for an id")
        marked = len(words) > 1 and words[-1].lower() == "ignore"
        words = words[:-1] if marked else words
        if len(words) > 3 and all(w.isdecimal() and int(w) < 256 for w in words[-3:]):
            words, colours[number] = words[:-3], [int(w) for w in words[-3:]]
        names.append(" ".join(words))
        if marked or names[-1].lower() in UNKNOWN_NAMES:
            ignored.append(number)
    if not 1 <= len(names) <= 256:
        raise DataError(f"{path}: lists {len(names)} classes, 1 to 256 are possible")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: lists the class {repeated[0]!r} more than once")
    if len(ignored) > 1:
        raise DataError(f"{path}: the classes {', '.join(names[k] for k in ignored)} are all to be "
                        "ignored, but only one can be; give them one id")
    if need_colours:
        for number, name in enumerate(names):
            if number not in colours or list(colours.values()).count(colours[number]) > 1:
                raise DataError(f"{path}: the class {name!r} needs a colour of its own, R G B")
    palette = make_palette(len(names), *ignored)
    for number, colour in colours.items():
        palette[number] = colour
    return names, palette, ignored[0] if ignored else None


def open_folder(root, split):
    """`images/SPLIT/*`, `labels/SPLIT/*.png`, `classes.txt`; val may be validation or test."""
    names, palette, ignore_label = read_classes(root / "classes.txt")
    choices = ["train"] if split == "train" else ["val", "validation", "test"]
    images = first_folder(root / "images", *choices)
    return pair_up(list_files(images, PHOTOS), list_files(root / "labels" / images.name, PNGS),
                   class_names=names, palette=palette, ignore_label=ignore_label,
                   id_table=identity_table(len(names)), upright=True)


# ---- ADE20K (scene parsing release, 2016) --------------------------------------------------------

def open_ade20k(root, split):
    """`ADEChallengeData2016/{images,annotations}/{training,validation}`, 20,210 and 2,000 pairs.

    N = 151: stored id 0 is "other objects", our unknown; 1 ... 150 are objectInfo150.txt's classes.
    """
    root = first_folder(root, "ADEChallengeData2016", ".")
    if any(root.glob("index_ade20k.*")) or (root / "images" / "ADE").is_dir() \
            or any(root.glob("ADE20K_20*")):
        raise DataError(f"{root}: is the full ADE20K release, whose label maps hold thousands of "
                        "classes in another encoding; the paper uses ADEChallengeData2016.zip")
    table = root / "objectInfo150.txt"
    lines = read_lines(table, "comes with ADEChallengeData2016.zip and names the classes")[1:]
    names = ["unknown"] + [line.split("\t")[-1].split(",")[0].strip() for line in lines]
    if len(names) != 151:
        raise DataError(f"{table}: lists {len(names) - 1} classes, 150 were expected")
    folder = "training" if split == "train" else "validation"
    return pair_up(list_files(root / "images" / folder, PHOTOS),
                   list_files(root / "annotations" / folder, PNGS), class_names=names,
                   palette=make_palette(151, 0), ignore_label=0, id_table=identity_table(151),
                   enlarge=286 / 256)


# The paper's list of outdoor images was never published; known is that pictures with indicative
# classes were kept, pictures with indoor classes dropped, and the rest sorted by eye (about 10,000
# and 1,000 images). Our rule has the same first two steps; instead of the eye, a picture with both
# kinds of classes, or neither, follows the majority of its scene category (sceneCategories.txt).
OUTDOOR_CLASSES, INDOOR_CLASSES = {"sky", "mountain", "earth"}, {"ceiling", "bed", "sink"}


def choose_outdoors(votes, categories):
    """votes {name: True outdoor, False indoor, None undecided}, {name: category} -> kept names."""
    ballot = defaultdict(int)
    for name, vote in votes.items():
        if vote is not None:
            ballot[categories.get(name)] += 1 if vote else -1
    return {name for name, vote in votes.items()
            if vote or vote is None and ballot[categories.get(name)] > 0}


def open_outdoors(root, split):
    """ADE20K's outdoor images, chosen from label maps and scene categories by the rule above."""
    layout = open_ade20k(root, split)
    path = first_folder(root, "ADEChallengeData2016", ".") / "sceneCategories.txt"
    categories = dict(line.split()[:2] for line in read_lines(path, "tells the scene categories")
                      if len(line.split()) > 1)
    outdoor, indoor = ([k for k, name in enumerate(layout.class_names) if name in wanted]
                       for wanted in (OUTDOOR_CLASSES, INDOOR_CLASSES))

    def vote(label):
        with readable(label), Image.open(label) as picture:
            counts = np.array(picture.histogram())
        kinds = counts[outdoor].any(), counts[indoor].any()
        return None if kinds[0] == kinds[1] else bool(kinds[0])

    with ThreadPoolExecutor() as pool:                       # decoding runs outside Python's lock
        votes = list(tqdm(pool.map(vote, layout.labels), f"choosing outdoor images ({split})",
                          len(layout.labels), leave=False, disable=None))
    kept = choose_outdoors(dict(zip(layout.names, votes)), categories)
    print(f"ade20k-outdoors: {len(kept)} of {len(layout.names)} {split} images chosen")
    return keep_only(layout, kept)


# ---- COCO-Stuff ----------------------------------------------------------------------------------

def open_coco(root, split):
    """`train2017/*.jpg` and `stuffthingmaps*/train2017/*.png`, or `train_img/`, `train_label/`.

    N = 183: stored ids 0 ... 181 become 1 ... 182, and 255 (unlabelled) becomes 0, our unknown.
    The archive of label maps unpacks to folders called train2017 and val2017 like those of the
    photos, so both may also lie mixed in one folder: photos are the jpgs, label maps the pngs.
    """
    year = f"{split}2017"
    photos = first_folder(root, year, f"images/{year}", f"{split}_img")
    labels = first_folder(root, f"stuffthingmaps_trainval2017/{year}", f"stuffthingmaps/{year}",
                          f"annotations/{year}", f"{split}_label", year)
    id_table = np.full(256, -1)
    id_table[:182] = np.arange(1, 183)
    id_table[255] = 0
    return pair_up(list_files(photos, (".jpg", ".jpeg")), list_files(labels, PNGS),
                   class_names=["unknown"] + COCO_STUFF_NAMES, palette=make_palette(183, 0),
                   ignore_label=0, id_table=id_table, enlarge=286 / 256)


# The 182 published names, in the order of the ids. Eleven of the first 91 (things) were never
# annotated, "street sign" for one; they keep their ids, so N = 183 all the same.
COCO_STUFF_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
zebra, giraffe, hat, backpack, umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis,
snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket,
bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli,
carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, mirror, dining table, window,
desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush,
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt,
door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog,
food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat,
metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
""".replace("\n", " ").strip().split(", ")


# ---- Cityscapes ----------------------------------------------------------------------------------

def cityscapes_classes():
    """torchvision's table of the 35 classes: name, id, train_id, colour of each."""
    from torchvision.datasets import Cityscapes  # here: slow to import, and no other preset asks
    return Cityscapes.classes


def cityscapes_train_ids():
    """(35,) int64: class id -> one of the 19 ids Cityscapes networks predict, or 255 = unscored."""
    return np.array([c.train_id if c.train_id >= 0 else 255 for c in cityscapes_classes()])


def open_cityscapes(root, split):
    """`leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`, `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`.

    N = 35: ids 0 ... 33 as stored, and "license plate", id -1 in the table, as class 34. The
    published label maps never hold it (the car behind is drawn instead); were it written to 8
    bits it would be 255, so 255 is read as 34. Unknown is id 0, "unlabeled".
    """
    files = []
    for kind, suffix, endings in (("leftImg8bit", "_leftImg8bit", PHOTOS),
                                  ("gtFine", "_gtFine_labelIds", PNGS)):
        folder = root / kind / split
        cities = sorted(path for path in folder.iterdir() if path.is_dir()) \
            if folder.is_dir() else []
        if not cities:
            raise DataError(f"{folder}: there is no such folder, or it holds no folder of a city")
        files.append({name: path for city in cities
                      for name, path in list_files(city, endings, suffix).items()})
    classes, id_table = cityscapes_classes(), identity_table(34)
    id_table[255] = 34
    return pair_up(*files, class_names=[c.name for c in classes], ignore_label=0, id_table=id_table,
                   palette=np.array([c.color for c in classes], dtype=np.uint8))


OPENERS = {"folder": open_folder, "ade20k": open_ade20k, "ade20k-outdoors": open_outdoors,
           "coco-stuff": open_coco, "cityscapes": open_cityscapes}
