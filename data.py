"""Pairs of photograph and label map: where they lie, how they are read, cropped, shuffled, checked.

    python data.py --preset folder --data-root my_photos   # checks a data set, names broken files

Presets, and the files they expect below the data root:
    ade20k         ADEChallengeData2016/{images,annotations}/{training,validation}/ and
                   ADEChallengeData2016/objectInfo150.txt; not the full ADE20K, which differs
    coco-stuff     train2017/, val2017/ and stuffthingmaps_trainval2017/, or train_img/, train_label/
    cityscapes     leftImg8bit/ and gtFine/ with train/CITY/, val/CITY/ below
    folder, small  images/ and labels/ with train/, val/ below; classes.txt, see read_classes
    toy            nothing: toy.py draws the scenes

Shapes and ranges are those of oasis.py. Where a data set has a class "unknown", it is counted in N
and is the `ignore_label`: its weight in the losses is 0, and it is never scored. In a label map of
folder or small, 255 means "no label", as most tools write it, and is read as that class.

What is random is a function of (seed, purpose, epoch, index). The global generators stay untouched.
So neither the number of workers nor a resumed run changes what is loaded.
"""

import argparse
import os
import sys
import time
import unicodedata
from colorsys import hsv_to_rgb
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

import toy
from processes import rank_and_size

try:
    import fcntl
except ImportError:                                   # Windows, see lock_folder
    fcntl = None

SIZES = {"toy": (64, 64), "folder": (256, 256), "small": (96, 128), "ade20k": (256, 256),
         "coco-stuff": (256, 256), "cityscapes": (256, 512)}            # default (H, W)
ENLARGE = {"ade20k": 286 / 256, "coco-stuff": 286 / 256}      # training: resize by this, then crop
OWN = ("folder", "small")                             # presets for photographs of the user's own
PNGS = (".png",)
PHOTOS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff",
          ".gif", ".jp2", ".ppm", ".pgm", ".tga")
UNKNOWN_NAMES = {"unknown", "unlabelled", "unlabeled", "void", "ignore"}
AUGMENT, ORDER = range(2)                             # purposes: a crop never shifts the shuffle
NO_CLASS, NO_LABEL = -1, -2                           # in id_table: what a stored id is not


# ---- Mistakes of the user ------------------------------------------------------------------------

class UserError(Exception):
    """A mistake of the user, in one sentence that names the culprit and what is possible."""

    def __init__(self, sentence):
        # An error of a DataLoader process arrives with a traceback before the sentence.
        super().__init__(str(sentence).rsplit("UserError: ", 1)[-1].strip())


@contextmanager
def exit_in_words(script):
    """Decorates main() or surrounds code: a UserError ends it by its sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):            # a notebook's streams cannot
            # Windows writes files in cp1252, which lacks many signs. They become question marks.
            stream.reconfigure(errors="replace")
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            # Mostly rank 0 has the same error and prints it. torchrun then ends this process.
            time.sleep(10)
        print(f"{script}: {error}", file=sys.stderr)
        sys.exit(2)


def reason(error):
    """What the system or PIL says about a file, in one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())


# ---- Files ---------------------------------------------------------------------------------------

@contextmanager
def readable(path):
    """Turns what the disk or PIL says about a damaged file into a UserError that names the file."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error


@contextmanager
def write_whole(path):
    """Yields a hidden path beside `path` (same ending), and moves that file to `path` at the end.

    So a reader finds the old file or the new one, never half a file. Makes the folder. UserError
    where the disk is full or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:          # RuntimeError: torch.save on a full disk
        raise UserError(f"{path}: cannot be written ({reason(error)})") from error


def lock_folder(folder):
    """Keep a folder to this run, as long as the file lives that is returned. Makes the folder.

    Each process of a run has a lock of its own. UserError: another run has it, or the folder cannot
    be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = open(Path(folder, f".lock{rank_and_size()[0]}"), "w")
    except OSError as error:
        raise UserError(f"{folder}: is no folder that can be written ({reason(error)})") from error
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt                             # Windows has this instead
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError) as error:
        raise UserError(f"{folder}: another run is using this folder") from error
    return file


def list_files(folder, endings, suffix="", pattern="*"):
    """{name: path} of the files in folder called name + suffix + one of the endings (any case).

    pattern: "*/*" for the files one folder below. Names are in Unicode normal form NFC, so a name
    from macOS equals one from Linux. UserError: no such folder, no such file in it, or two files of
    one name (a.jpg and a.png).
    """
    wanted = " or ".join(f"*{suffix}{ending}" for ending in endings)
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: there is no such folder; it must hold files {wanted}")
    found, others = {}, []
    for path in sorted(Path(folder).glob(pattern)):
        fits = path.suffix.lower() in endings and path.stem.endswith(suffix)
        if path.name.startswith(".") or not fits:     # a dot: notes of the system, half-written files
            others.append(path.name)
            continue
        name = unicodedata.normalize("NFC", path.stem.removesuffix(suffix))
        if name in found:
            raise UserError(f"{folder}: {found[name].name} and {path.name} are two files of one "
                            f"name; keep one of them")
        found[name] = path
    if not found:
        instead = f"; it holds {others[0]}" if others else ""
        raise UserError(f"{folder}: is empty of files {wanted}, which belong here{instead}")
    return found


def read_lines(path):
    """The lines of a text file in UTF-8, without white space around them, in normal form NFC."""
    with readable(path):
        text = Path(path).read_text(encoding="utf-8-sig")
    text = unicodedata.normalize("NFC", text)
    return [line.strip() for line in text.rstrip().splitlines()]


# ---- Reading one photograph ----------------------------------------------------------------------

def exif_turn(photo):
    """The number, 1 (none) to 8, of the turn that brings an open photograph upright."""
    turn = photo.getexif().get(274, 1)
    return turn if turn in range(1, 9) else 1


def read_photo(path, size=None, *, upright=False, label_size=None):
    """Photograph -> uint8 (H, W, 3), resized to size (bicubic with antialiasing).

    Grey becomes RGB. What is transparent is painted over white. upright: turn the photograph as its
    EXIF tag says. label_size: the (H, W) that the file must have.
    UserError: damaged file, another size than label_size, or more than 8 bits per channel.
    """
    with readable(path), Image.open(path) as photo:
        turn = exif_turn(photo) if upright else 1
        # PIL's sizes are (width, height). They change places where the photograph lies on its side;
        # but PIL itself turns a TIFF.
        on_its_side = turn >= 5 and photo.format != "TIFF"
        order = 1 if on_its_side else -1
        if label_size is not None:
            check_sizes(path, photo.size[::order], label_size, turn)
        if size:
            # A JPEG can be decoded at 1/2, 1/4 or 1/8 scale, which is much faster. We ask for at
            # least twice our size: then the bicubic filter does the work, and pixels hardly change.
            height, width = size[::-order]
            photo.draft("RGB", (2 * width, 2 * height))
        if upright:
            ImageOps.exif_transpose(photo, in_place=True)
        if photo.mode.startswith(("I", "F")):                           # PIL would clip at 255
            raise UserError(f"{path}: has more than 8 bits per channel; save it with 8")
        if "A" in photo.getbands() or "transparency" in photo.info:
            photo = photo.convert("RGBA")
            white = Image.new("RGBA", photo.size, "white")
            photo = Image.alpha_composite(white, photo)
        photo = photo.convert("RGB")
        if size:
            photo = photo.resize(size[::-1], Image.BICUBIC)
        return np.asarray(photo)


def check_sizes(path, photo_size, label_size, turn):
    """UserError where a photograph and its label map differ in (height, width)."""
    if tuple(photo_size) == tuple(label_size):
        return
    turned = ", turned upright as its EXIF tag says," if turn > 1 else ""
    raise UserError("{}: the photo{} is {}x{} pixels (height x width), its label map {}x{}".format(
        path, turned, *photo_size, *label_size))


# ---- Reading one label map -----------------------------------------------------------------------

def read_label_map(path, table, size=None, colours=None):
    """Label png -> class ids, int64 (H, W), resized to size (nearest neighbour).

    table: (256,), stored id -> class id, see id_table. The stored ids are grey values or, in a png
    with a palette, palette indices. colours: {class id: (R, G, B)} which the palette must not
    contradict. UserError: damaged file, no png of ids, or an id that the table does not allow.
    """
    with readable(path), Image.open(path) as picture:
        # PIL stretches grey of 2 or 4 bits to 0 ... 255. The division brings the ids back.
        step = {"L;2": 85, "L;4": 17}.get(picture.tile[0][3], 1)
        grey = only_ids(path, picture)
        if size:
            grey = grey.resize(size[::-1], Image.NEAREST)
        stored = np.asarray(grey).astype(np.int64) // step
        if colours and grey.mode == "P":
            check_palette(path, grey, np.unique(stored), colours)
    if stored.max() < 256:
        labels = table[stored]
    else:                                             # 16 bits can store ids that no class has
        labels = np.where(stored < 256, table[stored % 256], NO_CLASS)
    if labels.min() < 0:
        refuse_ids(path, np.unique(stored[labels < 0]), table)
    return labels


def only_ids(path, picture):
    """An open label map -> the picture of its ids alone. UserError where it holds something else."""
    if picture.format != "PNG":
        raise UserError(f"{path}: is a {picture.format} file; a label map must be a PNG, since other "
                        f"formats change ids")
    if picture.mode == "LA":
        if picture.getchannel("A").getextrema()[0] < 255:
            raise UserError(f"{path}: has transparent pixels; save it without transparency")
        return picture.getchannel("L")
    if picture.mode not in ("1", "L", "P", "I;16", "I"):                # older PIL: I for 16 bits
        raise UserError(f"{path}: is a PNG in colours (mode {picture.mode}), not of class ids; "
                        "python -m extras.prepare colours turns colours into ids; if its greys are "
                        "the ids, save it as 8-bit grey without transparency")
    return picture


def check_palette(path, picture, ids, colours):
    """UserError where a palette shows one of these ids in another colour than its class has.

    An image editor that makes a palette of its own puts the colours in another order. Then the
    indices look like ids, but are not. A palette of greys (id k is grey k) tells nothing.
    """
    palette = np.reshape(picture.getpalette("RGB"), (-1, 3)).tolist()
    for k in ids.tolist():
        if k not in colours or palette[k] in (list(colours[k]), [k, k, k]):
            continue
        raise UserError(f"{path}: its palette shows the id {k} in the colour {tuple(palette[k])}, "
                        f"but in classes.txt the colour is {tuple(colours[k])}; if its colours are "
                        "right, python -m extras.prepare colours makes ids of them; if its ids "
                        "are right, take the colours out of classes.txt")


def refuse_ids(path, ids, table):
    """UserError for stored ids that the table does not allow."""
    sentence = (f"{path}: holds the ids {ids[:8].tolist()}, but none of the dataset's "
                f"{table.max() + 1} classes has them")
    if 255 in ids and table[255] == NO_LABEL:
        sentence += ('; 255 mostly means "no label": add the line "unknown" to classes.txt; but a '
                     "mask of 0 and 255 must become one of 0 and 1")
    raise UserError(sentence)


# ---- Classes: names, colours, ids ----------------------------------------------------------------

def id_table(preset, num_classes, ignore_label=None):
    """(256,) int64: id stored in the preset's label pngs -> class id, NO_CLASS or NO_LABEL.

    COCO-Stuff stores 0 ... 181 and 255 for unknown; unknown becomes 0, the others move up by one.
    Cityscapes' class 34, "license plate", has the id -1 in its table, which 8 bits turn into 255.
    ADE20K stores 0 for unknown and 1 ... 150, as we do.
    folder and small: 255 is the ignored class, unless there are 256 classes.
    """
    table = np.full(256, NO_CLASS)
    if preset == "coco-stuff":
        table[:182] = np.arange(1, 183)
        table[255] = 0
    elif preset == "cityscapes":
        table[:34] = np.arange(34)
        table[255] = 34
    else:
        table[:num_classes] = np.arange(num_classes)
    if preset in OWN and num_classes < 256:
        table[255] = NO_LABEL if ignore_label is None else ignore_label
    return table


def file_ids(preset, num_classes):
    """(N,) uint8: class id -> id stored in the preset's label pngs; the reverse of id_table."""
    table = id_table(preset, num_classes)
    stored = np.zeros(num_classes, dtype=np.uint8)
    for k in range(num_classes):
        stored[k] = np.flatnonzero(table == k)[0]
    return stored


def make_palette(num_classes, ignore_label=None):
    """(N, 3) uint8: hues far apart, many shades, each by its id alone; the unknown class black."""
    palette = np.zeros((num_classes, 3))
    for k in range(num_classes):
        palette[k] = hsv_to_rgb(k * 0.6180 % 1, 1 - k % 5 * 0.16, 1 - k % 7 * 0.11)
    if ignore_label is not None:
        palette[ignore_label] = 0
    return (255 * palette).round().astype(np.uint8)


def parse_class(line):
    """A line of classes.txt, "name [R G B] [ignore]" -> (name, [R, G, B] or None, ignored?)."""
    words = line.split()
    marked = len(words) > 1 and words[-1].lower() == "ignore"
    if marked:
        words = words[:-1]
    colour = [int(word) for word in words[-3:] if word.isdecimal() and int(word) < 256]
    if len(words) > 3 and len(colour) == 3:
        words = words[:-3]
    else:
        colour = None
    name = " ".join(words)
    return name, colour, marked or name.lower() in UNKNOWN_NAMES


def read_classes(path):
    """classes.txt -> (names, palette (N, 3), ignore_label or None). Line k describes id k.

    A line is: name [R G B] [ignore]. A class named as in UNKNOWN_NAMES is ignored without the mark.
    Colours that are not given are made up. UserError: an empty line, a name twice, no or more than
    256 classes, more than one ignored class.
    """
    names, ignored = [], []
    for k, line in enumerate(read_lines(path)):
        name, _, ignore = parse_class(line)
        names.append(name)
        if ignore:
            ignored.append(k)
    distinct = set(names) - {""}
    if not 1 <= len(distinct) == len(names) <= 256 or len(ignored) > 1:
        raise UserError(f"{path}: must name 1 to 256 classes, one in each line, no name twice, and "
                        f"at most one of them ignored; it names {names}"[:500])
    ignore_label = ignored[0] if ignored else None
    palette = make_palette(len(names), ignore_label)
    for k, colour in read_colours(path).items():
        palette[k] = colour
    return names, palette, ignore_label


def read_colours(path):
    """The colours that classes.txt gives, {class id: [R, G, B]}."""
    colours = {}
    for k, line in enumerate(read_lines(path)):
        colour = parse_class(line)[1]
        if colour:
            colours[k] = colour
    return colours


def read_class_table(preset, root=None):
    """(names, palette (N, 3) uint8, ignore_label) of a preset. Some are read from files in root.

    N: 151 (ade20k), 183 (coco-stuff), 35 (cityscapes). COCO-Stuff publishes 182 names, of which
    eleven never occur in a label map ("street sign", for one); they keep their ids.
    """
    if preset == "toy":
        return toy.CLASSES, toy.PALETTE, toy.UNKNOWN
    if preset in OWN:
        return read_classes(Path(root) / "classes.txt")
    if preset == "cityscapes":
        from torchvision.datasets import Cityscapes     # slow to import, needed here only
        names = [row.name for row in Cityscapes.classes]
        colours = [row.color for row in Cityscapes.classes]
        return names, np.array(colours, dtype=np.uint8), 0
    if preset == "coco-stuff":
        names = read_lines(Path(__file__).parent / "assets" / "coco_stuff.txt")
    else:
        names = []
        path = first_folder(Path(root), "ADEChallengeData2016", ".") / "objectInfo150.txt"
        for line in read_lines(path)[1:]:
            names.append(line.split("\t")[-1].split(",")[0].strip())
    return ["unknown", *names], make_palette(1 + len(names), 0), 0


# ---- Where each data set keeps its files ---------------------------------------------------------

def first_folder(root, *choices):
    """The first of the folders that exists below root; the first of all if none does."""
    for choice in choices:
        if (root / choice).is_dir():
            return root / choice
    return root / choices[0]


def find_files(preset, root, split):
    """({name: path of a photo}, {name: path of a label map}) of one split, "train" or "val"."""
    if preset in OWN:
        choices = ["train"] if split == "train" else ["val", "validation", "test"]
        folder = first_folder(root / "images", *choices)
        return list_files(folder, PHOTOS), list_files(root / "labels" / folder.name, PNGS)
    if preset == "ade20k":
        root = first_folder(root, "ADEChallengeData2016", ".")
        folder = "training" if split == "train" else "validation"
        return (list_files(root / "images" / folder, PHOTOS),
                list_files(root / "annotations" / folder, PNGS))
    if preset == "cityscapes":
        return (list_files(root / "leftImg8bit" / split, PNGS, "_leftImg8bit", "*/*"),
                list_files(root / "gtFine" / split, PNGS, "_gtFine_labelIds", "*/*"))
    # COCO-Stuff. The archive of label maps unpacks to folders of the same names as the photos', so
    # both may lie in one folder. Photos are the jpgs, label maps the pngs.
    year = f"{split}2017"
    photos = first_folder(root, year, f"images/{year}", f"{split}_img")
    labels = first_folder(root, f"stuffthingmaps_trainval2017/{year}", f"stuffthingmaps/{year}",
                          f"annotations/{year}", f"{split}_label", year)
    return list_files(photos, (".jpg", ".jpeg")), list_files(labels, PNGS)


# ---- The data set --------------------------------------------------------------------------------

class SceneDataset(torch.utils.data.Dataset):
    """Pairs of image and label map, at one size.

    ds[i]          -> (image float32 (3, H, W) in [-1, 1], labels int64 (H, W)): always the same
    ds[(i, epoch)] -> its training view: cropped and flipped by (seed, epoch, i) alone
    """

    def __init__(self, preset, split, size, files, classes, seed=0, unpaired=(), colours=None):
        """files: {name: (photo, label map)} (toy: numbers). classes: see read_class_table."""
        self.name, self.split, self.size, self.seed = preset, split, tuple(size), seed
        self.names, self.files = list(files), files
        self.class_names, self.palette, self.ignore_label = classes
        self.num_classes = len(self.class_names)
        self.table = id_table(preset, self.num_classes, self.ignore_label)
        self.colours = colours                             # those given in classes.txt
        self.unpaired = list(unpaired)                     # sentences, see open_dataset
        # What count_classes has seen: label maps, photographs with an EXIF turn and, of each class,
        # pixels and label maps.
        self.counted, self.turned = 0, 0
        self.pixels = np.zeros(self.num_classes, dtype=np.int64)
        self.occurs = np.zeros(self.num_classes, dtype=np.int64)

    def __len__(self):
        return len(self.names)

    def read(self, index, size=None):
        """Pair number index -> (image uint8 (H, W, 3), labels (H, W)), at size or as stored."""
        photo, label = self.files[self.names[index]]
        if self.name == "toy":
            height, width = size or self.size
            return toy.draw_scene(self.seed, photo, height, width)
        labels = read_label_map(label, self.table, size, self.colours)
        with Image.open(label) as picture:
            label_size = picture.size[::-1]
        # A phone's photo needs turning. The published label maps fit the pixels as stored.
        upright = self.name in OWN
        return read_photo(photo, size, upright=upright, label_size=label_size), labels

    def __getitem__(self, key):
        index, epoch = key if isinstance(key, tuple) else (key, None)
        if epoch is None:
            image, labels = self.read(index, self.size)
        else:
            image, labels = self.training_view(index, epoch)
        pixels = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
        return pixels / 127.5 - 1, torch.from_numpy(labels.astype(np.int64))

    def training_view(self, index, epoch):
        """The pair, cropped and flipped -> (image uint8 (H, W, 3), labels (H, W)).

        Photo and labels share each step, so a label never leaves the pixel it describes.
        """
        rng = np.random.default_rng((self.seed, AUGMENT, epoch, index))
        height, width = self.size
        enlarge = ENLARGE.get(self.name, 1)
        large = round(height * enlarge), round(width * enlarge)
        image, labels = self.read(index, large)
        top = rng.integers(large[0] - height + 1)
        left = rng.integers(large[1] - width + 1)
        window = slice(top, top + height), slice(left, left + width)
        image, labels = image[window], labels[window]
        if rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        return image, labels


def open_dataset(preset, split, size, data_root=None, *, seed=0, num_images=None, complete=True):
    """The split "train" or "val" of a preset at size (H, W) -> SceneDataset.

    seed: of crops, flips and toy scenes. num_images: the first so many (toy: how many to draw;
    20,000 and 200). complete=False leaves out a photo without label map, or the reverse, and notes
    a sentence about it in `unpaired`; else that is a UserError. UserError, too: a missing folder, an
    empty split, and a data root for toy.
    """
    if num_images is not None and num_images < 1:
        raise UserError(f"--num-images {num_images}: must be at least 1")
    if preset == "toy":
        if data_root:
            raise UserError(f"--data-root {data_root}: the preset toy draws its scenes and reads no "
                            "files; for photographs of your own choose --preset small or folder")
        return open_toy(split, size, seed, num_images)
    if not data_root or not Path(data_root).is_dir():
        given = f"{data_root} is none" if data_root else "none was given"
        raise UserError(f"the preset {preset} reads its files from a folder (--data-root DIR), and "
                        f"{given}")
    root = Path(data_root)
    photos, labels = find_files(preset, root, split)
    unpaired = []
    for name in photos.keys() - labels.keys():
        unpaired.append(f"{photos[name]}: its label map is missing")
    for name in labels.keys() - photos.keys():
        unpaired.append(f"{labels[name]}: its photo is missing")
    names = sorted(photos.keys() & labels.keys())[:num_images]
    if unpaired and (complete or not names):
        raise UserError(f"{min(unpaired)} (1 of {len(unpaired)} such files)")
    files = {name: (photos[name], labels[name]) for name in names}
    colours = read_colours(root / "classes.txt") if preset in OWN else None
    classes = read_class_table(preset, root)
    return SceneDataset(preset, split, size, files, classes, seed, sorted(unpaired), colours)


def open_toy(split, size, seed, num_images):
    """Drawn scenes. The number of a scene stands for its files; the splits are disjoint."""
    first, count = (0, 20_000) if split == "train" else (1_000_000, 200)
    files = {}
    for k in range(num_images or count):
        files[f"{split}_{k:05d}"] = (first + k, first + k)
    return SceneDataset("toy", split, size, files, read_class_table("toy"), seed)


# ---- The order of the images ---------------------------------------------------------------------

class BatchSampler(torch.utils.data.Sampler):
    """Endless batches of (index, epoch): this process's share [rank::world_size] of each.

    The batch of a step is computed, not remembered: it is a slice of the permutation drawn from
    (seed, epoch). So a resumed run goes on at the exact next batch without reading earlier ones,
    and any number of processes share one batch. An epoch's last, incomplete batch is dropped.
    """

    def __init__(self, num_images, batch_size, seed, rank=0, world_size=1, start_step=0):
        if not 1 <= batch_size <= num_images:
            raise UserError(f"--batch-size {batch_size}: must be at least 1 and at most {num_images}, "
                            "the number of training images")
        if batch_size % world_size:
            raise UserError(f"--batch-size {batch_size}: must be divisible by {world_size}, the "
                            f"number of processes; {what_divides(batch_size, world_size)}")
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size, self.start_step = rank, world_size, start_step

    def __iter__(self):
        steps_per_epoch = self.num_images // self.batch_size
        epoch, step = divmod(self.start_step, steps_per_epoch)
        while True:
            rng = np.random.default_rng((self.seed, ORDER, epoch))
            order = rng.permutation(self.num_images).tolist()
            for step in range(step, steps_per_epoch):
                batch = order[step * self.batch_size:(step + 1) * self.batch_size]
                yield [(index, epoch) for index in batch[self.rank::self.world_size]]
            epoch, step = epoch + 1, 0


def what_divides(batch_size, processes):
    """The advice for 20 images and 8 processes: --batch-size 16 or 24, or 4 or 5 processes."""
    below = batch_size // processes * processes
    sizes = [str(size) for size in (below, below + processes) if size]
    divisors = [str(count) for count in range(1, processes) if batch_size % count == 0]
    return f"--batch-size {' or '.join(sizes)}, or {' or '.join(divisors[-2:])} processes"


def leave_process_group(worker):
    """Ctrl-C and SIGTERM to a group of processes leave the workers alone, so a step can finish.

    Ignoring both would not do: at exit, multiprocessing sends SIGTERM to workers and waits. Windows
    has no such groups.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def make_loader(dataset, sampler, workers):
    """DataLoader over batches of keys: an endless BatchSampler, or a list of lists of keys.

    The batches do not depend on the number of workers.
    """
    return torch.utils.data.DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(), worker_init_fn=leave_process_group,
        generator=torch.Generator())      # else the loader would draw from the global generator


# ---- Pictures; that of a label map is palette[labels] --------------------------------------------

def to_uint8(images):
    """Images (B, 3, H, W) in [-1, 1], clamped -> uint8 array (B, H, W, 3), rounded."""
    pixels = (images.detach().cpu().float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def picture_grid(rows, captions=None, scale=1):
    """Rows of pictures (H, W, 3) uint8 and a caption for each column -> PIL.Image, enlarged."""
    gap, top = 4, 18 if captions else 4                                  # pixels
    height, width, columns = 0, 0, 0
    for row in rows:
        columns = max(columns, len(row))
        for pixels in row:
            height = max(height, scale * pixels.shape[0])
            width = max(width, scale * pixels.shape[1])
    sheet_size = gap + columns * (width + gap), top + len(rows) * (height + gap)
    sheet = Image.new("RGB", sheet_size, "white")
    for r, row in enumerate(rows):
        for c, pixels in enumerate(row):
            picture = Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1))
            sheet.paste(picture, (gap + c * (width + gap), top + r * (height + gap)))
    for c, text in enumerate(captions or ()):
        ImageDraw.Draw(sheet).text((gap + c * (width + gap), 2), text, "black")
    return sheet


# ---- Checking a data set -------------------------------------------------------------------------

def check_dataset(dataset, most=None):
    """Read photos and label maps in full -> one sentence for each broken file or pair.

    most: read only about so many, evenly spread. Drawn scenes have no files to be broken.
    Afterwards list_warnings knows the classes that do not occur.
    """
    step = max(1, len(dataset) // most) if most else 1
    indices = range(0, len(dataset), step)
    if dataset.name == "toy":
        indices = ()
    return dataset.unpaired + count_classes(dataset, indices)


def count_classes(dataset, indices):
    """Read these pairs and count each class in dataset.pixels, dataset.occurs -> problems."""
    def inspect(index):
        """(a sentence or None, pixels of each class or None, does EXIF turn the photo?)"""
        try:
            labels = dataset.read(index)[1]
        except UserError as error:
            return str(error), None, False
        turned = False
        if dataset.name in OWN:
            with Image.open(dataset.files[dataset.names[index]][0]) as photo:
                turned = exif_turn(photo) > 1
        return None, np.bincount(labels.ravel(), minlength=dataset.num_classes), turned

    problems = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:          # PIL decodes outside Python's lock
        results = pool.map(inspect, indices)
        for sentence, pixels, turned in tqdm(results, f"checking {dataset.split}", len(indices),
                                             leave=False, disable=None):
            if sentence:
                problems.append(sentence)
                continue
            dataset.counted += 1
            dataset.turned += turned
            dataset.pixels += pixels
            dataset.occurs += pixels > 0
    known = np.delete(dataset.pixels, [] if dataset.ignore_label is None else dataset.ignore_label)
    if dataset.counted and not known.any():
        problems.append(f"{dataset.split}: every pixel of the {dataset.counted} label maps read is "
                        f"of the class {dataset.class_names[dataset.ignore_label]}, which is ignored")
    return problems


def list_warnings(dataset):
    """Sentences about what is odd, but not wrong, in what check_dataset has read."""
    if not dataset.counted:
        return []
    seen, warnings = f"{dataset.counted} {dataset.split} label maps read", []
    absent = []
    for k, name in enumerate(dataset.class_names):
        if dataset.pixels[k] == 0 and k != dataset.ignore_label:
            absent.append(f"{name} ({k})")
    if absent and dataset.split == "train":
        hint = ""
        if dataset.name in OWN and dataset.ignore_label is not None:
            hint = "; 255 is read as ignored, so a mask of 0 and 255 must become one of 0 and 1"
        warnings.append(f"warning: in the {seen}, no pixel is of {', '.join(absent)}: G cannot learn "
                        f"to paint what never occurs{hint}")
    if dataset.name == "coco-stuff" and dataset.pixels[0] == 0:
        warnings.append(f"warning: none of the {seen} holds 255, which means unknown; other editions "
                        "of COCO-Stuff store 0 for unknown and all ids one higher, and would be "
                        "read wrongly")
    if dataset.turned:
        warnings.append(f"note: {dataset.turned} {dataset.split} photos are turned as their EXIF tag "
                        "says; their label maps must fit the turned photos")
    return warnings


def list_shares(dataset):
    """A row for each class: its share of the pixels, and of the label maps, that were counted."""
    rows = ["  id class                      pixels    images"]
    pixels = dataset.pixels / max(1, dataset.pixels.sum())
    images = dataset.occurs / max(1, dataset.counted)
    for k in np.argsort(-pixels, kind="stable"):
        mark = "  (ignored)" if k == dataset.ignore_label else ""
        rows.append(f"{k:4d} {dataset.class_names[k]:24s} {pixels[k]:8.3%} {images[k]:8.1%}{mark}")
    return rows


@exit_in_words("data.py")
def main(argv=None):
    """Check both splits. UserError if anything is wrong."""
    parser = argparse.ArgumentParser(description="Check a data set before training on it.")
    parser.add_argument("--preset", default="toy", choices=SIZES, help="default: toy")
    parser.add_argument("--data-root", metavar="DIR", help="the data set's folder (not for toy)")
    args = parser.parse_args(argv)
    if args.data_root == "":
        raise UserError("--data-root: the name of the folder is empty")
    datasets = []
    for split in ("train", "val"):
        datasets.append(open_dataset(args.preset, split, SIZES[args.preset], args.data_root,
                                     complete=False))
    problems = []
    for dataset in datasets:
        problems += check_dataset(dataset)
        print(f"{dataset.name} {dataset.split}: {len(dataset)} photos with label maps")
        if dataset.split == "train":
            if dataset.name == "toy":
                count_classes(dataset, range(200))    # drawn scenes: enough for the shares
            print(*list_shares(dataset), sep="\n")
        for sentence in list_warnings(dataset):
            print(sentence)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        raise UserError(f"number of problems found, listed above: {len(problems)}")


if __name__ == "__main__":
    main()
