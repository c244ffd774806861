"""Pairs of photo and label map: where they lie, how they are read, cropped, shuffled and checked.

    python data.py --preset folder --data-root my_photos   # checks a dataset, names broken files

Presets, and the files they expect below the data root:
    ade20k      ADEChallengeData2016/{images,annotations}/{training,validation}/ and
                ADEChallengeData2016/objectInfo150.txt; not the full ADE20K, which differs
    coco-stuff  train2017/, val2017/ and stuffthingmaps_trainval2017/, or train_img/, train_label/
    cityscapes  leftImg8bit/ and gtFine/ with train/CITY/, val/CITY/ below
    folder      images/ and labels/ with train/, val/ below; classes.txt, see read_classes
    toy         nothing: toy.py draws the scenes

Shapes and ranges are those of oasis.py. Where a dataset has a class "unknown", it is counted in N
and is the dataset's `ignore_label`: no weight in the losses, never scored. What is random is a
function of (seed, purpose, epoch, index). The global generators stay untouched, so neither the
number of workers nor a resumed run changes what is loaded.
"""

import argparse
import fcntl
import os
import sys
import time
from colorsys import hsv_to_rgb
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

import toy

SIZES = {"toy": (64, 64), "folder": (256, 256), "small": (96, 128), "ade20k": (256, 256), "coco-stuff": (256, 256),
         "cityscapes": (256, 512)}                  # default (H, W)
ENLARGE = {"ade20k": 286 / 256, "coco-stuff": 286 / 256}      # training: resize by this, then crop
PHOTOS, PNGS = (".jpg", ".jpeg", ".png"), (".png",)           # endings of files
UNKNOWN_NAMES = {"unknown", "unlabelled", "unlabeled", "void", "ignore"}
AUGMENT, ORDER = range(2)                           # purposes: a crop never shifts the shuffle


# ---- Errors of the user ----------------------------------------------------------------------------


class UserError(Exception):
    """A mistake of the user, in one sentence that names the culprit and what is possible."""

    def __init__(self, sentence):
        # From a DataLoader process an error arrives with a traceback before the sentence.
        super().__init__(str(sentence).rsplit("UserError: ", 1)[-1].strip())


@contextmanager
def exit_in_words(script):
    """Decorates main() or surrounds code: a UserError ends it by its sentence and exit code 2."""
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(10)       # mostly rank 0 has the same error; torchrun ends this process then
        print(f"{script}: {error}", file=sys.stderr)
        sys.exit(2)


# ---- Files ---------------------------------------------------------------------------------------

@contextmanager
def readable(path):
    """Turns what the disk or PIL says about a damaged file into a UserError that names the file."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason})") from error


@contextmanager
def write_whole(path):
    """Yields a hidden path beside `path` (same ending), and moves that file to `path` at the end.

    So a reader finds the old file or the new one, never half a file. Makes the folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def lock_folder(folder):
    """Keep a folder to this process until it ends. Makes the folder. UserError: another has it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock = open(Path(folder, ".lock"), "w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        LOCKS.append(lock)
    except BlockingIOError as error:
        raise UserError(f"{folder}: another run is using this folder") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error


LOCKS = []      # open files, as a lock lasts while its file is open


def list_files(folder, endings, suffix="", pattern="*"):
    """{name: path} of the files in folder called name + suffix + one of the endings (any case).

    pattern: "*/*" for the files one folder below. UserError: no such folder, no such file in it, or
    two files of one name (a.jpg and a.png).
    """
    # Names with a dot in front are notes of the operating system or half-written files.
    paths = [path for path in sorted(Path(folder).glob(pattern)) if path.name[0] != "."
             and path.suffix.lower() in endings and path.stem.endswith(suffix)]
    found = {path.stem.removesuffix(suffix): path for path in paths}
    twice = sorted(path.name for path in set(paths) - set(found.values()))
    if twice or not found:
        raise UserError(f"{folder}: " + (f"another file has the name of {twice[0]}" if twice else
                        f"is no folder with files *{suffix} ending in {' or '.join(endings)}"))
    return found


def read_lines(path):
    """The lines of a text file in UTF-8, without white space around them."""
    with readable(path):
        return [line.strip() for line in
                Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()]


# ---- Reading one photo, one label map ------------------------------------------------------------

def read_photo(path, size=None, *, upright=False, label_size=None):
    """Photo -> uint8 (H, W, 3), resized to size (bicubic with antialiasing). Grey becomes RGB.

    upright: turn the photo as its EXIF tag says. label_size: the (H, W) that the file must have.
    UserError: damaged file, another size than label_size, or more than 8 bits per channel.
    """
    with readable(path), Image.open(path) as photo:
        # PIL's sizes are (width, height): turned round, unless the photo lies on its side.
        order = 1 if upright and photo.getexif().get(274, 1) >= 5 else -1
        file_size = photo.size[::order]
        if label_size not in (None, file_size):
            raise UserError(f"{path}: the photo is {file_size[0]}x{file_size[1]} pixels (height x "
                            f"width), its label map {label_size[0]}x{label_size[1]}")
        if size:
            # A JPEG can be decoded at 1/2, 1/4 or 1/8 scale, which is much faster. We ask for at
            # least twice our size: then the bicubic filter does the work, and pixels hardly change.
            photo.draft("RGB", tuple(2 * side for side in size[::order]))
        if upright:
            ImageOps.exif_transpose(photo, in_place=True)
        if photo.mode.startswith(("I", "F")):                           # PIL would clip at 255
            raise UserError(f"{path}: has more than 8 bits per channel; save it with 8")
        photo = photo.convert("RGB")
        return np.asarray(photo.resize(size[::-1], Image.BICUBIC) if size else photo)


def read_label_map(path, table, size=None):
    """Label png -> class ids, int64 (H, W), resized to size (nearest neighbour).

    table: (256,), stored id -> class id, see id_table. The stored ids are grey values or, in a png
    with a palette, palette indices. UserError: damaged file, no png, colours, more than 8 bits, or
    an id that the table does not allow.
    """
    with readable(path), Image.open(path) as picture:
        if picture.format != "PNG" or picture.mode not in ("1", "L", "P"):
            raise UserError(f"{path}: is a {picture.format} of mode {picture.mode}, must be a PNG "
                            "of 8-bit class ids (python -m extras.prepare colours makes them)")
        # PIL stretches grey of 2 or 4 bits to 0 ... 255. The division brings the ids back.
        step = {"L;2": 85, "L;4": 17}.get(picture.tile[0][3], 1)
        picture = picture.resize(size[::-1], Image.NEAREST) if size else picture
        stored = np.asarray(picture).astype(np.int64) // step
    labels = table[stored]
    if labels.min() < 0:
        raise UserError(f"{path}: holds the ids {np.unique(stored[labels < 0])[:8].tolist()}, but "
                        f"none of the dataset's {table.max() + 1} classes has them")
    return labels


# ---- Classes: names, colours, ids ----------------------------------------------------------------

def id_table(preset, num_classes):
    """(256,) int64: id stored in the preset's label pngs -> class id; -1 = not allowed.

    COCO-Stuff stores 0 ... 181 and 255 for unknown; unknown becomes 0, the others move up by one.
    Cityscapes' class 34, "license plate", has the id -1 in its table, which 8 bits turn into 255.
    ADE20K stores 0 for unknown and 1 ... 150, as we do.
    """
    table = np.full(256, -1)
    if preset == "coco-stuff":
        table[:182], table[255] = np.arange(1, 183), 0
    elif preset == "cityscapes":
        table[:34], table[255] = np.arange(34), 34
    else:
        table[:num_classes] = np.arange(num_classes)
    return table


def file_ids(preset, num_classes):
    """(N,) uint8: class id -> id stored in the preset's label pngs; the reverse of id_table."""
    table = id_table(preset, num_classes)
    return np.array([np.flatnonzero(table == k)[0] for k in range(num_classes)], dtype=np.uint8)


def make_palette(num_classes, ignore_label=None):
    """(N, 3) uint8: hues far apart, many shades, each by its id alone; the unknown class black."""
    palette = np.array([hsv_to_rgb(k * 0.6180 % 1, 1 - k % 5 * 0.16, 1 - k % 7 * 0.11)
                        for k in range(num_classes)])
    if ignore_label is not None:
        palette[ignore_label] = 0
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
        if len(words) > 3 and all(w.isdecimal() and int(w) < 256 for w in words[-3:]):
            words, colours[k] = words[:-3], [int(w) for w in words[-3:]]
        names.append(" ".join(words))
        if marked or names[k].lower() in UNKNOWN_NAMES:
            ignored.append(k)
    if not 1 <= len(set(names) - {""}) == len(names) <= 256 or len(ignored) > 1:
        raise UserError(f"{path}: must name 1 to 256 classes, one in each line, no name twice, and "
                        f"at most one of them ignored; it names {names}"[:500])
    palette = make_palette(len(names), *ignored)
    for k, colour in colours.items():
        palette[k] = colour
    return names, palette, ignored[0] if ignored else None


def read_class_table(preset, root=None):
    """(names, palette (N, 3) uint8, ignore_label) of a preset. folder and ade20k read them in root.

    N: 151 (ade20k), 183 (coco-stuff), 35 (cityscapes). COCO-Stuff publishes 182 names, of which
    eleven never occur in a label map ("street sign", for one); they keep their ids.
    """
    if preset == "toy":
        return toy.CLASSES, toy.PALETTE, toy.UNKNOWN
    if preset in ("folder", "small"):
        return read_classes(Path(root) / "classes.txt")
    if preset == "cityscapes":
        from torchvision.datasets import Cityscapes     # slow to import, needed here only
        classes = Cityscapes.classes
        return [c.name for c in classes], np.array([c.color for c in classes], dtype=np.uint8), 0
    if preset == "coco-stuff":
        names = read_lines(Path(__file__).parent / "assets" / "coco_stuff.txt")
    else:
        path = first_folder(Path(root), "ADEChallengeData2016", ".") / "objectInfo150.txt"
        names = [line.split("\t")[-1].split(",")[0].strip() for line in read_lines(path)[1:]]
    return ["unknown", *names], make_palette(1 + len(names), 0), 0


# ---- Where each dataset keeps its files ----------------------------------------------------------

def first_folder(root, *choices):
    """The first of the folders that exists below root; the first of all if none does."""
    return next((root / c for c in choices if (root / c).is_dir()), root / choices[0])


def find_files(preset, root, split):
    """({name: path of a photo}, {name: path of a label map}) of one split, "train" or "val"."""
    if preset in ("folder", "small"):
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


# ---- The dataset ---------------------------------------------------------------------------------

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
        self.table = id_table(preset, self.num_classes)
        self.unpaired = list(unpaired)                     # sentences, see open_dataset

    def __len__(self):
        return len(self.names)

    def read(self, index, size=None):
        """Pair number index -> (image uint8 (H, W, 3), labels (H, W)), at size or as stored."""
        photo, label = self.files[self.names[index]]
        if self.name == "toy":
            return toy.draw_scene(self.seed, photo, *(size or self.size))
        labels = read_label_map(label, self.table, size)
        with Image.open(label) as picture:
            label_size = picture.size[::-1]
        # A phone's photo needs turning. The published label maps fit the pixels as stored.
        return read_photo(photo, size, upright=self.name in ("folder", "small"), label_size=label_size), labels

    def __getitem__(self, key):
        index, epoch = key if isinstance(key, tuple) else (key, None)
        if epoch is None:
            image, labels = self.read(index, self.size)
        else:
            # Photo and labels share each step, so a label never leaves the pixel it describes.
            rng = np.random.default_rng((self.seed, AUGMENT, epoch, index))
            large = tuple(round(side * ENLARGE.get(self.name, 1)) for side in self.size)
            image, labels = self.read(index, large)
            top, left = (rng.integers(a - b + 1) for a, b in zip(large, self.size))
            window = slice(top, top + self.size[0]), slice(left, left + self.size[1])
            image, labels = image[window], labels[window]
            if rng.random() < 0.5:
                image, labels = image[:, ::-1], labels[:, ::-1]
        pixels = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
        return pixels / 127.5 - 1, torch.from_numpy(labels.astype(np.int64))


def open_dataset(preset, split, size, data_root=None, *, seed=0, subset=None, num_images=None,
                 complete=True):
    """The split "train" or "val" of a preset at size (H, W) -> SceneDataset.

    seed: of crops, flips and toy scenes. subset: a file of image names, one per line, of either
    split; only those are used. num_images: the first so many (toy: how many to draw; 20,000 and
    200). complete=False leaves out a photo without label map, or the reverse, and notes a sentence
    about it in `unpaired`; else that is a UserError, as are a missing folder and an empty split.
    """
    if preset == "toy":                   # numbers of scenes; the splits are disjoint
        first, count = (0, 20_000) if split == "train" else (1_000_000, 200)
        photos = labels = {f"{split}_{i:05d}": first + i for i in range(num_images or count)}
    elif data_root and Path(data_root).is_dir():
        photos, labels = find_files(preset, Path(data_root), split)
    else:
        raise UserError(f"the preset {preset} reads its files from a folder (--data-root DIR), and "
                        + (f"{data_root} is none" if data_root else "none was given"))
    if subset:
        chosen = read_names(subset)
        photos, labels = ({name: path for name, path in files.items() if name in chosen}
                          for files in (photos, labels))
    names = sorted(photos.keys() & labels.keys())[:num_images]
    unpaired = [f"{photos[n]}: its label map is missing" for n in photos.keys() - labels.keys()]
    unpaired += [f"{labels[n]}: its photo is missing" for n in labels.keys() - photos.keys()]
    if unpaired and (complete or not names):
        raise UserError(f"{min(unpaired)} (1 of {len(unpaired)} such files)")
    if not names:
        raise UserError(f"{subset or data_root}: there is no {split} image (a photo and label map)")
    return SceneDataset(preset, split, size, {n: (photos[n], labels[n]) for n in names},
                        read_class_table(preset, data_root), seed, sorted(unpaired))


def read_names(path):
    """A file of image names, one per line, with or without a photo's ending -> set of names."""
    lines = [Path(line) for line in read_lines(path) if line]
    return {line.stem if line.suffix.lower() in PHOTOS else line.name for line in lines}


# ---- The order of the images ---------------------------------------------------------------------

class BatchSampler(torch.utils.data.Sampler):
    """Endless batches of (index, epoch): this process's share [rank::world_size] of each.

    The batch of a step is computed, not remembered: it is a slice of the permutation drawn from
    (seed, epoch). So a resumed run goes on at the exact next batch without reading earlier ones,
    and any number of processes share one batch. An epoch's last, incomplete batch is dropped.
    """

    def __init__(self, num_images, batch_size, seed, rank=0, world_size=1, start_step=0):
        if batch_size > num_images or batch_size % world_size:
            raise UserError(f"the batch size {batch_size} must be at most {num_images}, the number "
                            f"of images, and divisible by {world_size}, the number of processes")
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
    height, width = (scale * max(p.shape[axis] for row in rows for p in row) for axis in (0, 1))
    sheet = Image.new("RGB", (gap + max(map(len, rows)) * (width + gap),
                              top + len(rows) * (height + gap)), "white")
    for r, row in enumerate(rows):
        for c, pixels in enumerate(row):
            picture = Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1))
            sheet.paste(picture, (gap + c * (width + gap), top + r * (height + gap)))
    for c, text in enumerate(captions or ()):
        ImageDraw.Draw(sheet).text((gap + c * (width + gap), 2), text, "black")
    return sheet


# ---- Checking a dataset --------------------------------------------------------------------------

def check_dataset(dataset, most=None):
    """Read every photo and label map in full -> one sentence for each broken file or pair.

    most: read only about so many, evenly spread. Drawn scenes have no files to be broken.
    """
    def inspect(index):
        try:
            dataset.read(index)
        except UserError as error:
            return str(error)

    indices = range(0, len(dataset), max(1, len(dataset) // most) if most else 1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:          # PIL decodes outside Python's lock
        found = list(tqdm(pool.map(inspect, () if dataset.name == "toy" else indices),
                          f"checking {dataset.split}", len(indices), leave=False, disable=None))
    return dataset.unpaired + [sentence for sentence in found if sentence]


@exit_in_words("data.py")
def main(argv=None):
    """Check both splits. UserError if anything is wrong."""
    parser = argparse.ArgumentParser(description="Check a dataset before training on it.")
    parser.add_argument("--preset", default="toy", choices=SIZES, help="default: toy")
    parser.add_argument("--data-root", metavar="DIR", help="the dataset's folder (not for toy)")
    parser.add_argument("--subset", metavar="FILE", help="names of the images to use, one per line")
    args = parser.parse_args(argv)
    preset, subset = args.preset, args.subset
    train, val = (open_dataset(preset, split, SIZES[preset], args.data_root, subset=subset,
                               complete=False) for split in ("train", "val"))
    absent = read_names(subset) - {*train.names, *val.names} if subset else ()
    problems = [f"{subset}: names {name}, which is no pair here" for name in sorted(absent)]
    for dataset in (train, val):
        problems += check_dataset(dataset)
        print(f"{dataset.name} {dataset.split}: {len(dataset)} photos with label maps")
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        raise UserError(f"number of problems found, listed above: {len(problems)}")


if __name__ == "__main__":
    main()
