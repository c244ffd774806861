"""Pairs of photo and label map: where they lie, how they are read, cropped, shuffled and checked.

    python data.py --preset folder --data-root my_photos   # checks a data set, names broken files

Presets, and the files they expect below the data root:
    ade20k         ADEChallengeData2016/{images,annotations}/{training,validation}/ and
                   ADEChallengeData2016/objectInfo150.txt; not the full ADE20K, which differs
    coco-stuff     train2017/, val2017/, stuffthingmaps_trainval2017/, or train_img/, train_label/
    cityscapes     leftImg8bit/ and gtFine/ with train/CITY/, val/CITY/ below
    folder, small  images/ and labels/ with train/, val/ below; classes.txt, see read_classes
    toy            nothing: toy.py draws the scenes

Shapes and ranges are those of oasis.py. Where a data set has a class "unknown", it is counted in N
and is the `ignore_label`: no weight in the losses, never scored. In label maps of folder and small,
255 means "no label", as most tools write it, and is read as that class. What is random is a
function of (seed, purpose, epoch, index). The global generators stay untouched, so neither the
number of workers nor a resumed run changes what is loaded.
"""

import argparse
import os
import signal
import sys
import time
import unicodedata
from colorsys import hsv_to_rgb
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

import toy
from processes import rank_and_size

SIZES = {"toy": (64, 64), "folder": (256, 256), "small": (96, 128), "ade20k": (256, 256),
         "coco-stuff": (256, 256), "cityscapes": (256, 512)}          # default (H, W)
ENLARGE = {"ade20k": 286 / 256, "coco-stuff": 286 / 256}      # training: resize by this, then crop
OWN = ("folder", "small")                           # the presets for a user's own files
PNGS, PHOTOS = (".png",), (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif",
                           ".tiff", ".gif", ".jp2", ".ppm", ".pgm", ".tga")      # endings of files
UNKNOWN_NAMES = {"unknown", "unlabelled", "unlabeled", "void", "ignore"}
AUGMENT, ORDER = range(2)                           # purposes: a crop never shifts the shuffle
NO_CLASS, NO_LABEL = -1, -2                         # what an id can be, see id_table
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
         6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}      # what EXIF's tag 274 asks for


# ---- Mistakes of the user ------------------------------------------------------------------------
class UserError(Exception):
    """A mistake of the user, in one sentence that names the culprit and what is possible."""

    def __init__(self, sentence):
        # From a DataLoader process an error arrives with a traceback before the sentence.
        super().__init__(str(sentence).rsplit("UserError: ", 1)[-1].strip())


@contextmanager
def exit_in_words(script):
    """Decorates main() or surrounds code: a UserError ends it by its sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):          # a notebook's streams cannot
            stream.reconfigure(errors="replace")    # cp1252, used by Windows, lacks many signs
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(10)       # mostly rank 0 has the same error; torchrun ends this process then
        print(f"{script}: {error}", file=sys.stderr)
        sys.exit(2)


# ---- Files ---------------------------------------------------------------------------------------
@contextmanager
def readable(path, what="read"):
    """Turns what the disk or PIL says about a file into a UserError: it cannot be read."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError,
            Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path}: cannot be {what} ({reason})") from error


@contextmanager
def write_whole(path):
    """Yields a hidden path beside `path` (same ending), and moves that file to `path` at the end.

    So a reader finds the old file or the new one, never half a file. Makes the folder. UserError:
    the disk is full (torch.save then raises RuntimeError), or the folder cannot be written.
    """
    path = Path(path)
    with readable(path, "written"):
        partial = path.with_name(f".{os.getpid()}.{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def lock_folder(folder):
    """Keep a folder, made if need be, to this run. UserError: another run has it, or none can.

    Returns a file. The lock lasts while that file is open. Each process has a lock of its own.
    """
    with readable(folder, "kept; another run is using this folder, or it cannot be written"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = open(Path(folder, f".lock{rank_and_size()[0]}"), "w")
        try:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:                         # Windows has another one
            import msvcrt
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    return file


def list_files(folder, endings, suffix="", pattern="*"):
    """{name: path} of the files in folder called name + suffix + one of the endings (any case).

    pattern: "*/*" for the files one folder below. Names are in Unicode's normal form C: macOS
    writes "é" in another form. UserError: no such folder or file, or two files of one name.
    """
    wanted = f"files *{suffix} ending in {' or '.join(endings)}"
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: there is no such folder; it must hold {wanted}")
    found = {}
    for path in sorted(Path(folder).glob(pattern)):
        # Names with a dot in front are notes of the operating system or half-written files.
        if path.name.startswith(".") or path.suffix.lower() not in endings:
            continue
        if path.stem.endswith(suffix):
            name = unicodedata.normalize("NFC", path.stem.removesuffix(suffix))
            if name in found:
                raise UserError(f"{folder}: another file has the name of {path.name}")
            found[name] = path
    if not found:
        raise UserError(f"{folder}: this folder is empty of {wanted}")
    return found


def read_lines(path):
    """The lines of a text file in UTF-8, without white space around them, in normal form C."""
    with readable(path):
        text = unicodedata.normalize("NFC", Path(path).read_text(encoding="utf-8-sig"))
    return [line.strip() for line in text.rstrip().splitlines()]


# ---- Reading one photo, one label map ------------------------------------------------------------
def exif_turn(photo):
    """The EXIF tag that says how an open photo must be turned: 1 (not at all) to 8."""
    turn = photo.getexif().get(274)
    return turn if turn in range(1, 9) else 1


def read_photo(path, size=None, *, upright=False, label_size=None):
    """Photo -> uint8 (H, W, 3), resized to size (bicubic with antialiasing). Grey becomes RGB.

    What is transparent is painted over white. upright: turn the photo as its EXIF tag says.
    label_size: the (H, W) that the file must have. UserError: damaged file, another size than
    label_size, or grey of more than 8 bits.
    """
    with readable(path), Image.open(path) as photo:
        turn = exif_turn(photo) if upright else 1
        # PIL's sizes are (width, height): turned round, unless the photo lies on its side. A TIFF
        # is turned by PIL itself.
        order = 1 if turn >= 5 and photo.format != "TIFF" else -1
        file_size = photo.size[::order]
        if label_size not in (None, file_size):
            turned = ", turned as its EXIF tag says," if turn > 1 else ""
            raise UserError(f"{path}: the photo{turned} is {file_size[0]}x{file_size[1]} pixels "
                            f"(height x width), its label map {label_size[0]}x{label_size[1]}")
        if size:
            # A JPEG can be decoded at 1/2, 1/4 or 1/8 scale, which is much faster. We ask for at
            # least twice our size: then the bicubic filter does the work, and pixels hardly change.
            across, down = size[::order]
            photo.draft("RGB", (2 * across, 2 * down))
        if turn > 1 and photo.format != "TIFF":
            # ImageOps.exif_transpose would fail at odd tags, as it writes all of them anew.
            photo = photo.transpose(Image.Transpose[TURNS[turn]])
        if photo.mode.startswith(("I", "F")):                           # PIL would clip at 255
            raise UserError(f"{path}: has more than 8 bits per channel; save it with 8")
        if "A" in photo.getbands() or "transparency" in photo.info:
            white = Image.new("RGBA", photo.size, "white")
            photo = Image.alpha_composite(white, photo.convert("RGBA"))
        photo = photo.convert("RGB")
        if size:
            photo = photo.resize(size[::-1], Image.BICUBIC)
        return np.asarray(photo)


def read_label_map(path, table, size=None, palette=None):
    """Label png -> class ids, int64 (H, W), resized to size (nearest neighbour).

    table: (256,), stored id -> class id, see id_table. The stored ids are grey values or, in a png
    with a palette, palette indices. palette: (N, 3), the classes' colours; those that were given,
    not made up, must not contradict the file's palette. UserError: damaged file, no png of ids, or
    an id that the table does not allow.
    """
    with readable(path), Image.open(path) as picture:
        # PIL stretches grey of 2 or 4 bits to 0 ... 255. The division brings the ids back.
        stored_as = picture.tile[0][3] if picture.tile else ""
        step = {"L;2": 85, "L;4": 17}.get(stored_as, 1)
        kind = picture.format, picture.mode
        if kind == ("PNG", "LA") and picture.getchannel("A").getextrema()[0] == 255:
            picture = picture.getchannel("L")
        elif kind[0] != "PNG" or kind[1] not in ("1", "L", "P", "I;16", "I"):
            raise UserError(f"{path}: is a {kind[0]} of mode {kind[1]}, must be an opaque grey PNG "
                            "of ids; python -m extras.prepare colours makes ids of colours")
        if size:
            picture = picture.resize(size[::-1], Image.NEAREST)
        stored = np.asarray(picture).astype(np.int64) // step
        if palette is not None and picture.mode == "P":
            check_palette(path, picture, np.unique(stored), palette)
    labels = np.append(table, NO_CLASS)[stored.clip(max=256)]      # 16 bits can store large ids
    if labels.min() < 0:
        hint = ('; 255 mostly means "no label": add the line "unknown" to classes.txt; a mask of 0 '
                "and 255 must become one of 0 and 1") if NO_LABEL in labels else ""
        raise UserError(f"{path}: holds the ids {np.unique(stored[labels < 0])[:8].tolist()}, but "
                        f"none of the dataset's {table.max() + 1} classes has them{hint}")
    return labels


def check_palette(path, picture, ids, palette):
    """UserError: an open png shows an id in another colour than given. So do reordered palettes."""
    own = np.reshape(picture.getpalette("RGB"), (-1, 3)).tolist()
    made_up = make_palette(len(palette)).tolist()
    for k in ids[ids < min(len(palette), len(own))].tolist():
        colour = palette[k].tolist()
        # Black is the made-up colour of "unknown". A palette whose index k is grey k tells nothing.
        if own[k] not in (colour, [k, k, k]) and colour not in ([0, 0, 0], made_up[k]):
            raise UserError(f"{path}: the palette shows id {k} in another colour than classes.txt; "
                            "python -m extras.prepare colours makes ids of colours; if the ids are "
                            "right, save it as grey")


# ---- Classes: names, colours, ids ----------------------------------------------------------------
def id_table(preset, num_classes, ignore_label=None):
    """(256,) int64: id stored in the preset's label pngs -> class id, NO_CLASS or NO_LABEL.

    COCO-Stuff stores 0 ... 181 and 255 for unknown; unknown becomes 0, the others move up by one.
    Cityscapes' class 34, "license plate", has the id -1 in its table, which 8 bits turn into 255.
    ADE20K stores 0 for unknown and 1 ... 150, as we do. In a user's own files, 255 is the ignored
    class, unless there are 256 classes.
    """
    table = np.full(256, NO_CLASS)
    if preset == "coco-stuff":
        table[:182], table[255] = np.arange(1, 183), 0
    elif preset == "cityscapes":
        table[:34], table[255] = np.arange(34), 34
    else:
        table[:num_classes] = np.arange(num_classes)
    if preset in OWN and num_classes < 256:
        table[255] = NO_LABEL if ignore_label is None else ignore_label
    return table


def file_ids(preset, num_classes):
    """(N,) uint8: class id -> id stored in the preset's label pngs; the reverse of id_table."""
    classes, stored = np.unique(id_table(preset, num_classes), return_index=True)
    return stored[classes >= 0].astype(np.uint8)


def make_palette(num_classes, ignore_label=None):
    """(N, 3) uint8: hues far apart, many shades, each by its id alone; the unknown class black."""
    palette = np.zeros((num_classes, 3))
    for k in range(num_classes):
        if k != ignore_label:
            palette[k] = hsv_to_rgb(k * 0.6180 % 1, 1 - k % 5 * 0.16, 1 - k % 7 * 0.11)
    return (255 * palette).round().astype(np.uint8)


def read_classes(path):
    """classes.txt -> (names, palette (N, 3), ignore_label or None). Line k describes id k.

    A line is: name [R G B] [ignore]. A class named as in UNKNOWN_NAMES is ignored without the mark.
    Colours that are not given are made up. UserError: an empty line, a name twice, no or more than
    256 classes, more than one ignored class.
    """
    names, colours, ignored = [], {}, []
    for k, line in enumerate(read_lines(path)):
        words = line.split()
        marked = len(words) > 1 and words[-1].lower() == "ignore"
        words = words[:-1] if marked else words
        numbers = [int(word) for word in words[-3:] if word.isdecimal() and int(word) < 256]
        if len(numbers) == 3 and len(words) > 3:
            words, colours[k] = words[:-3], numbers
        names.append(" ".join(words))
        if marked or names[k].lower() in UNKNOWN_NAMES:
            ignored.append(k)
    if not 1 <= len(set(names) - {""}) == len(names) <= 256 or len(ignored) > 1:
        raise UserError(f"{path}: must name 1 to 256 classes, one in each line, no name twice, and "
                        f"at most one of them ignored; it names {names}"[:500])
    ignore_label = ignored[0] if ignored else None
    palette = make_palette(len(names), ignore_label)
    for k, colour in colours.items():
        palette[k] = colour
    return names, palette, ignore_label


def read_class_table(preset, root=None):
    """(names, palette (N, 3) uint8, ignore_label) of a preset. ade20k, folder, small: read in root.

    N: 151 (ade20k), 183 (coco-stuff), 35 (cityscapes). COCO-Stuff publishes 182 names, of which
    eleven never occur in a label map ("street sign", for one); they keep their ids.
    """
    if preset == "toy":
        return toy.CLASSES, toy.PALETTE, toy.UNKNOWN
    if preset in OWN:
        return read_classes(Path(root) / "classes.txt")
    if preset == "cityscapes":
        from torchvision.datasets import Cityscapes     # slow to import, needed here only
        palette = np.array([row.color for row in Cityscapes.classes], dtype=np.uint8)
        return [row.name for row in Cityscapes.classes], palette, 0
    names = ["unknown"]
    if preset == "coco-stuff":
        names += read_lines(Path(__file__).parent / "assets" / "coco_stuff.txt")
    else:
        root = first_folder(Path(root), "ADEChallengeData2016", ".")
        for line in read_lines(root / "objectInfo150.txt")[1:]:
            names.append(line.split("\t")[-1].split(",")[0].strip())
    return names, make_palette(len(names), 0), 0


# ---- Where each data set keeps its files ---------------------------------------------------------
def first_folder(root, *choices):
    """The first of the folders that exists below root; the first of all if none does."""
    return next((root / c for c in choices if (root / c).is_dir()), root / choices[0])


def find_files(preset, root, split):
    """({name: path of a photo}, {name: path of a label map}) of one split, "train" or "val"."""
    if preset in OWN:
        choices = {"train": ["train"], "val": ["val", "validation", "test"]}
        folder = first_folder(root / "images", *choices[split])
        return list_files(folder, PHOTOS), list_files(root / "labels" / folder.name, PNGS)
    if preset == "ade20k":
        root = first_folder(root, "ADEChallengeData2016", ".")
        folder = {"train": "training", "val": "validation"}[split]
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
    def __init__(self, preset, split, size, files, classes, seed=0, unpaired=()):
        """files: {name: (photo, label map)} (toy: numbers). classes: see read_class_table."""
        self.name, self.split, self.size, self.seed = preset, split, tuple(size), seed
        self.names, self.files = list(files), files
        self.class_names, self.palette, self.ignore_label = classes
        self.num_classes = len(self.class_names)
        self.table = id_table(preset, self.num_classes, self.ignore_label)
        self.unpaired = list(unpaired)              # sentences, see open_dataset
        # What check_dataset has read: pairs, turned photos, and each class's pixels and label maps.
        self.counted, self.turned = 0, 0
        self.pixels, self.maps = np.zeros((2, self.num_classes), dtype=np.int64)

    def __len__(self):
        return len(self.names)

    def read(self, index, size=None):
        """Pair number index -> (image uint8 (H, W, 3), labels (H, W)), at size or as stored."""
        photo, label = self.files[self.names[index]]
        if self.name == "toy":
            return toy.draw_scene(self.seed, photo, *(size or self.size))
        labels = read_label_map(label, self.table, size, self.palette)
        with Image.open(label) as picture:
            label_size = picture.size[::-1]
        # A phone's photo needs turning. The published label maps fit the pixels as stored.
        return read_photo(photo, size, upright=self.name in OWN, label_size=label_size), labels

    def __getitem__(self, key):
        index, epoch = key if isinstance(key, tuple) else (key, None)
        if epoch is None:
            image, labels = self.read(index, self.size)
        else:
            # Photo and labels share each step, so a label never leaves the pixel it describes.
            rng = np.random.default_rng((self.seed, AUGMENT, epoch, index))
            height, width = self.size
            large = [round(side * ENLARGE.get(self.name, 1)) for side in self.size]
            image, labels = self.read(index, large)
            top, left = rng.integers(large[0] - height + 1), rng.integers(large[1] - width + 1)
            window = slice(top, top + height), slice(left, left + width)
            image, labels = image[window], labels[window]
            if rng.random() < 0.5:
                image, labels = image[:, ::-1], labels[:, ::-1]
        pixels = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
        return pixels / 127.5 - 1, torch.from_numpy(labels.astype(np.int64))


def open_dataset(preset, split, size, data_root=None, *, seed=0, num_images=None, complete=True):
    """The split "train" or "val" of a preset at size (H, W) -> SceneDataset.

    seed: of crops, flips and toy scenes. num_images: the first so many (toy: how many to draw;
    20,000 and 200). complete=False leaves out a photo without label map, or the reverse, and notes
    a sentence about it in `unpaired`; else that is a UserError, as are a missing or an empty folder
    and, with the preset toy, a data_root.
    """
    if num_images is not None and num_images < 1:
        raise UserError(f"{num_images} images cannot be chosen; at least 1 can")
    if preset == "toy" and data_root:
        raise UserError(f"--data-root {data_root}: the preset toy has no files; --preset small has")
    if preset == "toy":                   # numbers of scenes; the splits are disjoint
        first, count = (0, 20_000) if split == "train" else (1_000_000, 200)
        photos = labels = {f"{split}_{k:05d}": first + k for k in range(num_images or count)}
    elif data_root and Path(data_root).is_dir():
        photos, labels = find_files(preset, Path(data_root), split)
    else:
        given = f"{data_root} is none" if data_root else "none was given"
        raise UserError(f"--data-root: the preset {preset} reads files from a folder; {given}")
    unpaired = [f"{photos[n]}: its label map is missing" for n in photos.keys() - labels.keys()]
    unpaired += [f"{labels[n]}: its photo is missing" for n in labels.keys() - photos.keys()]
    names = sorted(photos.keys() & labels.keys())[:num_images]
    if unpaired and (complete or not names):
        raise UserError(f"{min(unpaired)} (1 of {len(unpaired)} such files)")
    files = {name: (photos[name], labels[name]) for name in names}
    return SceneDataset(preset, split, size, files, read_class_table(preset, data_root), seed,
                        sorted(unpaired))


# ---- The order of the images ---------------------------------------------------------------------
class BatchSampler(torch.utils.data.Sampler):
    """Endless batches of (index, epoch): this process's share [rank::world_size] of each.

    The batch of a step is computed, not remembered: it is a slice of the permutation drawn from
    (seed, epoch). So a resumed run goes on at the exact next batch without reading earlier ones,
    and any number of processes share one batch. An epoch's last, incomplete batch is dropped.
    """
    def __init__(self, num_images, batch_size, seed, rank=0, world_size=1, start_step=0):
        if not 1 <= batch_size <= num_images:
            raise UserError(f"--batch-size {batch_size}: there are {num_images} training images")
        if batch_size % world_size:
            raise UserError(f"--batch-size {batch_size}: no multiple of the {world_size} processes")
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


def leave_process_group(worker):
    """Ctrl-C and SIGTERM to a group of processes leave the workers alone, so a step can finish.

    Ignoring both would not do: at exit, multiprocessing sends SIGTERM to workers and waits.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    else:                                           # Windows, which ends workers in another way
        signal.signal(signal.SIGINT, signal.SIG_IGN)


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
    sizes = np.array([pixels.shape for row in rows for pixels in row])
    height, width = (scale * sizes.max(axis=0)[:2] + gap).tolist()       # of a place in the grid
    whole = gap + max(map(len, rows)) * width, top + len(rows) * height
    sheet = Image.new("RGB", whole, "white")
    for r, row in enumerate(rows):
        for c, pixels in enumerate(row):
            picture = Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1))
            sheet.paste(picture, (gap + c * width, top + r * height))
    for c, text in enumerate(captions or ()):
        ImageDraw.Draw(sheet).text((gap + c * width, 2), text, "black")
    return sheet


# ---- Checking a data set -------------------------------------------------------------------------
def check_dataset(dataset, most=None):
    """Read photos and label maps in full -> one sentence for each broken file or pair.

    most: read only about so many, evenly spread. What was read is counted, see list_shares and
    list_warnings. Drawn scenes cannot be broken: 200 are counted, or none if `most` is given.
    """
    def inspect(index):
        try:
            labels = dataset.read(index)[1]
        except UserError as error:
            return [str(error)], 0, 0
        turned = False
        if dataset.name in OWN:
            with Image.open(dataset.files[dataset.names[index]][0]) as photo:
                turned = exif_turn(photo) > 1
        return [], np.bincount(labels.ravel(), minlength=dataset.num_classes), turned

    problems = list(dataset.unpaired)
    indices = range(0, len(dataset), max(1, len(dataset) // (most or len(dataset))))
    if dataset.name == "toy":
        indices = indices[:0 if most else 200]
    with ThreadPoolExecutor(os.cpu_count()) as pool:          # PIL decodes outside Python's lock
        results = pool.map(inspect, indices)
        for problem, pixels, turned in tqdm(results, f"checking {dataset.split}", len(indices),
                                            leave=False, disable=None):
            problems += problem
            dataset.counted += not problem
            dataset.turned += turned
            dataset.pixels += pixels
            dataset.maps += pixels > 0
    if dataset.counted and np.flatnonzero(dataset.pixels).tolist() == [dataset.ignore_label]:
        problems.append(f"{dataset.split}: all pixels are of the class that is ignored, "
                        f"{dataset.class_names[dataset.ignore_label]}; nothing can be learned")
    return problems


def list_warnings(dataset):
    """Sentences about what is odd, not wrong, in what check_dataset has read."""
    warnings = []
    absent = [f"{dataset.class_names[k]} ({k})" for k in np.flatnonzero(dataset.pixels == 0)
              if k != dataset.ignore_label]
    if dataset.counted and dataset.split == "train" and absent:
        warnings.append(f"warning: no pixel of the {dataset.counted} training label maps read is "
                        f"{', '.join(absent)}, so G cannot learn to paint that; a "
                        "mask of 0 and 255 must become one of 0 and 1")
    if dataset.counted and dataset.name == "coco-stuff" and dataset.pixels[0] == 0:
        warnings.append("warning: no label map holds 255, unknown; those of another edition, where "
                        "unknown is 0, are read one too high")
    if dataset.turned:
        warnings.append(f"note: {dataset.turned} {dataset.split} photos are turned as their EXIF "
                        "tags say; the label maps must fit the turned photos")
    return warnings


def list_shares(dataset):
    """A row for each class: its share of pixels, and of label maps it occurs in."""
    rows = ["  id class                      pixels    images"]
    pixels = dataset.pixels / max(1, dataset.pixels.sum())
    for k in np.argsort(-pixels, kind="stable"):
        mark = "  (ignored)" if k == dataset.ignore_label else ""
        maps = dataset.maps[k] / max(1, dataset.counted)
        rows.append(f"{k:4d} {dataset.class_names[k]:24s} {pixels[k]:8.3%} {maps:8.1%}{mark}")
    return rows


@exit_in_words("data.py")
def main(argv=None):
    """Check both splits. UserError if anything is wrong."""
    parser = argparse.ArgumentParser(description="Check a data set before training on it.")
    parser.add_argument("--preset", default="toy", choices=SIZES, help="default: toy")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="the data set (not for toy)")
    args = parser.parse_args(argv)
    problems = []
    for split in ("train", "val"):
        dataset = open_dataset(args.preset, split, SIZES[args.preset], args.data_root,
                               complete=False)
        problems += check_dataset(dataset)
        print(f"{dataset.name} {split}: {len(dataset)} photos with label maps")
        print("\n".join(list_shares(dataset) + list_warnings(dataset)))
    if problems:
        print("\n".join(problems), file=sys.stderr)
        raise UserError(f"number of problems found, listed above: {len(problems)}")


if __name__ == "__main__":
    main()
