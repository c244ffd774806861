"""Photos with label maps: reading, cropping, shuffling, checking, and turning them into pictures.

    python data.py                                         # toy scenes: a contact sheet, counts
    python data.py --preset folder --data-root my_photos   # checks a dataset, names what is wrong
    python data.py --convert-colours coloured --classes classes.txt --out labels/train
    python data.py --benchmark                             # images per second of one worker

`toy.py` draws the toy scenes, `layouts.py` knows where each dataset keeps its files and what its
ids mean; this file does the rest. Conventions it owns:
  image       float32 (3, H, W) in [-1, 1], RGB
  label map   int64 (H, W) with ids 0 ... N-1; never one-hot, the generator does that itself
  size        (H, W), everywhere
  randomness  a function of (seed, purpose, epoch, index). The global generators stay untouched, so
              neither the number of workers nor a resumed run changes what is loaded.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

import layouts
import toy
from layouts import NOT_WRITTEN, DataError, Layout, readable, written_whole
from toy import draw_scene

STREAM_AUGMENT, STREAM_ORDER = range(2)      # purposes: a crop never shifts the shuffle's numbers


# ---- Reading one photo, one label map ------------------------------------------------------------

def to_rgb(picture, path):
    """PIL picture -> RGB. DataError for 16-bit values, which PIL would clip to 255."""
    if picture.mode.startswith(("I", "F")):
        raise DataError(f"{path}: has more than 8 bits per channel; save it with 8")
    return picture.convert("RGB")


def read_photo(path, size, label_size=None, upright=False):
    """Photo file -> (H, W, 3) uint8, bicubic (antialiased) to size; grey photos become RGB.

    label_size: (H, W) the file must have. upright: turn it as its EXIF tag says, as viewers do.
    """
    with readable(path), Image.open(path) as photo:
        # PIL says (width, height), we (height, width): reversed, unless the photo lies on its side.
        order = 1 if upright and photo.getexif().get(274, 1) >= 5 else -1
        full = photo.size[::order]
        if label_size is not None and full != label_size:
            raise DataError(f"{path}: the photo is {full[1]}x{full[0]} pixels, its label map "
                            f"{label_size[1]}x{label_size[0]}; both must be of one size")
        # A JPEG stores 8x8 blocks of frequencies; leaving out the high ones decodes it at 1/2, 1/4
        # or 1/8 scale, much faster. PIL takes the smallest scale that is not below what is asked.
        # We ask for twice our size and leave the rest to the bicubic filter: asked for our size,
        # the change is as large as from bicubic to bilinear, which scores would notice.
        photo.draft("RGB", tuple(2 * side for side in size[::order]))
        if upright:
            ImageOps.exif_transpose(photo, in_place=True)
        return np.asarray(to_rgb(photo, path).resize(size[::-1], Image.BICUBIC))


def png_header(path):
    """(bits per channel, colour type) of a png file; colour types 0 and 3 have a single channel."""
    with readable(path), open(path, "rb") as file:
        header = file.read(26)
    if not header.startswith(b"\x89PNG") or len(header) < 26:
        jpeg = ", and jpeg blurs ids" if header.startswith(b"\xff\xd8") else ""
        raise DataError(f"{path}: is not a png file; a label map must be one{jpeg}")
    return header[24], header[25]


def read_ids(path, size=None):
    """Label png -> (ids uint8 (H, W) as stored, the file's own (H, W)); nearest neighbour to size.

    Ids are grey values or, in a palette png, palette indices. Everything else is refused.
    """
    bits, kind = png_header(path)
    if kind not in (0, 3):
        raise DataError(f"{path}: is a colour picture, but a label map has one channel of ids; "
                        "python data.py --convert-colours FOLDER --classes classes.txt --out "
                        "NEW_FOLDER converts colours to ids")
    if bits > 8:
        raise DataError(f"{path}: has {bits}-bit ids, only 8-bit ids (0-255) are possible")
    with readable(path), Image.open(path) as picture:
        full = picture.size[::-1]
        # PIL stretches grey of 1, 2 or 4 bits to 0 ... 255; the id is what was stored.
        step = 255 // (2 ** bits - 1) if kind == 0 else 1
        if picture.mode == "1":
            picture = picture.convert("L")
        if size is not None:
            picture = picture.resize(size[::-1], Image.NEAREST)
        return np.asarray(picture) // np.uint8(step), full


def look_up_ids(ids, id_table, path):
    """Stored ids -> class ids by table (256,), where -1 marks an id the dataset does not have."""
    labels = id_table[ids]
    if labels.min() < 0:
        allowed = np.flatnonzero(id_table >= 0)
        runs = np.split(allowed, np.flatnonzero(np.diff(allowed) != 1) + 1)
        raise DataError(f"{path}: holds the ids {some(np.unique(ids[labels < 0]))}; allowed are "
                        + some([f"{run[0]}-{run[-1]}" for run in runs]))
    return labels


def some(values, most=6):
    """The first values, joined by commas, and how many more there are."""
    rest = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(str(value) for value in values[:most]) + rest


def colours_to_ids(path, palette):
    """Colour-coded label picture -> (H, W) uint8 ids; of two classes of one colour the first."""
    with readable(path), Image.open(path) as picture:
        if picture.format == "JPEG":
            raise DataError(f"{path}: is a jpeg file, and jpeg blurs colours; export it as png")
        codes = np.asarray(picture.convert("RGB")).astype(np.int64) @ [65536, 256, 1]
    known, first = np.unique(np.asarray(palette, np.int64) @ [65536, 256, 1], return_index=True)
    place = np.searchsorted(known, codes).clip(max=len(known) - 1)
    strange = known[place] != codes
    if strange.any():
        colours = [f"({c >> 16} {c >> 8 & 255} {c & 255})" for c in np.unique(codes[strange])]
        raise DataError(f"{path}: {strange.sum()} pixels have colours of no class: {some(colours)}")
    return first[place].astype(np.uint8)


def read_label_map(path, num_classes, class_names=None, palette=None):
    """A label png of ids or palette indices, or (palette given) of colours -> (H, W) int64.

    Raises DataError when the file is unreadable or holds an id outside 0 ... num_classes - 1.
    """
    coloured = palette is not None and png_header(path)[1] not in (0, 3)
    ids = colours_to_ids(path, palette) if coloured else read_ids(path)[0]
    try:
        return look_up_ids(ids, layouts.identity_table(num_classes), path).astype(np.int64)
    except DataError as error:
        raise DataError(f"{error} ({some(class_names or ['no names known'], 12)})") from error


def resize_labels(labels, size):
    """(H, W) -> nearest neighbour at size, by pixel centres, so it stays aligned with the photo."""
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new)             # (i + 1/2) old / new
                     for new, old in zip(size, labels.shape))
    return labels[rows[:, None], columns[None, :]]


# ---- The dataset ---------------------------------------------------------------------------------

class SceneDataset(torch.utils.data.Dataset):
    """Pairs of image and label map, at one size.

    ds[i]          -> (image float32 (3, H, W) in [-1, 1], labels int64 (H, W)): the same every time
    ds[(i, epoch)] -> its training view in that epoch, cropped and flipped by (seed, epoch, i) alone
    """

    def __init__(self, name, split, size, layout, seed=0):
        self.name, self.split, self.size, self.seed, self.layout = name, split, size, seed, layout
        self.names, self.class_names = layout.names, layout.class_names
        self.num_classes, self.palette = len(layout.class_names), layout.palette
        self.ignore_label = layout.ignore_label

    def __len__(self):
        return len(self.names)

    def read(self, index, size):
        """Pair number index at size -> (image uint8 (H, W, 3), labels uint8 (H, W))."""
        path = self.layout.labels[index]
        ids, label_size = read_ids(path, size)
        labels = look_up_ids(ids, self.layout.id_table, path).astype(np.uint8)
        image = read_photo(self.layout.photos[index], size, label_size, self.layout.upright)
        return image, labels

    def __getitem__(self, key):
        index, epoch = key if isinstance(key, tuple) else (key, None)
        if not 0 <= index < len(self):
            raise IndexError(f"there is no image {index} among {len(self)}")
        if epoch is None:
            image, labels = self.read(index, self.size)
        else:
            rng = np.random.default_rng((self.seed, STREAM_AUGMENT, epoch, index))
            # Photo and labels share each step, so a label never leaves the pixel it describes.
            large = tuple(round(side * self.layout.enlarge) for side in self.size)
            image, labels = self.read(index, large)
            top, left = (rng.integers(a - b + 1) for a, b in zip(large, self.size))
            window = slice(top, top + self.size[0]), slice(left, left + self.size[1])
            image, labels = image[window], labels[window]
            if rng.random() < 0.5:
                image, labels = image[:, ::-1], labels[:, ::-1]
        pixels = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
        return pixels / 127.5 - 1, torch.from_numpy(labels.astype(np.int64))

    def inspect(self, index):
        """Pair number index as it lies on the disk -> (pixels per class (N,), (H, W))."""
        path = self.layout.labels[index]
        ids, size = read_ids(path)
        labels = look_up_ids(ids, self.layout.id_table, path)
        # Reading the photo at a small size still goes through the whole file: that is the check.
        read_photo(self.layout.photos[index], (8, 8), size, self.layout.upright)
        return np.bincount(labels.ravel(), minlength=self.num_classes), size


class ToyDataset(SceneDataset):
    """Scenes drawn on demand, and kept while they fit: 2,000 of 64 x 64 take 33 MB."""

    MEMORY = 64e6              # bytes, in each worker
    FIRST_VAL = 1_000_000      # validation scenes are numbered from here: the splits are disjoint

    def __init__(self, split, size, seed, num_images):
        names = [f"{split}_{i:05d}" for i in range(num_images)]
        layout = Layout(names, toy.CLASSES, toy.PALETTE, toy.UNKNOWN)
        super().__init__("toy", split, size, layout, seed)
        self.first, self.drawn = (0 if split == "train" else self.FIRST_VAL), {}

    def read(self, index, size):
        scene = self.drawn.get(index)
        if scene is None:
            scene = draw_scene(self.seed, self.first + index, *size)
            if (len(self.drawn) + 1) * size[0] * size[1] * 4 <= self.MEMORY:
                self.drawn[index] = scene
        return scene

    def inspect(self, index):
        labels = self.read(index, self.size)[1]
        return np.bincount(labels.ravel(), minlength=self.num_classes), self.size


PRESETS = ("toy", *layouts.OPENERS)
SIZES = {"toy": (64, 64), "cityscapes": (256, 512)}            # the others: (256, 256)


def open_dataset(preset, split, size, data_root=None, *, seed=0, subset=None, num_images=None,
                 complete=True):
    """The split "train" or "val" of a preset at size (H, W) -> SceneDataset.

    data_root: the dataset's folder (toy needs none). subset: a file of image names, one per line,
    to use only those. num_images: only the first so many (toy: how many to draw; 2000 and 200).
    complete: refuse a photo without label map and the reverse, rather than leave them out.
    Raises DataError, one sentence, for everything that can be wrong with a request or a folder.
    """
    if preset not in PRESETS:
        raise DataError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    if split not in ("train", "val"):
        raise DataError(f"there is no split {split!r}; there are train and val")
    size = tuple(int(side) for side in size)
    if len(size) != 2 or min(size) < 1:
        raise DataError(f"the size {size} is not (height, width)")
    if seed < 0 or (num_images is not None and num_images < 1):
        raise DataError(f"the seed {seed} must be at least 0, and the number of images "
                        f"{num_images} at least 1")
    if preset == "toy":
        if subset:
            raise DataError(f"--subset {subset}: toy draws its images, there are none to choose")
        return ToyDataset(split, size, seed, num_images or (2000 if split == "train" else 200))
    root = Path(data_root or "")
    if not data_root or not root.is_dir():
        raise DataError(f"the preset {preset} reads its files from a data root, and "
                        + (f"{root} is not a folder" if data_root else
                           "none was given (--data-root DIR)"))
    # An explicit list replaces the rule that chooses outdoor images.
    by_list = subset and preset == "ade20k-outdoors"
    layout = layouts.OPENERS["ade20k" if by_list else preset](root, split)
    if layout.unmatched and complete:
        raise DataError(f"{layout.unmatched[0]} (1 of {len(layout.unmatched)} such files)")
    if subset:
        layout = layouts.keep_only(layout, layouts.read_names(subset))
    layout = layouts.keep_only(layout, set(layout.names[:num_images]))
    if not layout.names:
        raise DataError(f"{root}: no {split} image of the preset {preset} "
                        + (f"is named in {subset}" if subset else "has a label map"))
    return SceneDataset(preset, split, size, layout, seed)


# ---- The order of the images ---------------------------------------------------------------------

class BatchSampler(torch.utils.data.Sampler):
    """Endless batches of (index, epoch): this process's share [rank::world_size] of each.

    The batch of a step is computed, not remembered: it is a slice of the permutation drawn from
    (seed, epoch). So a resumed run goes on at the exact next batch without reading the earlier
    ones, and the batch as a whole is the same on one GPU and on eight. What does not fill a batch
    at the end of an epoch is dropped.
    """

    def __init__(self, num_images, batch_size, seed, rank=0, world_size=1, start_step=0):
        if not 1 <= batch_size <= num_images:
            raise DataError(f"the batch size {batch_size} is not between 1 and {num_images}, the "
                            "number of training images")
        if batch_size % world_size:
            raise DataError(f"the batch size {batch_size} cannot be shared equally among "
                            f"{world_size} processes")
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size, self.start_step = rank, world_size, start_step

    def __iter__(self):
        steps_per_epoch = self.num_images // self.batch_size
        epoch, step = divmod(self.start_step, steps_per_epoch)
        while True:
            rng = np.random.default_rng((self.seed, STREAM_ORDER, epoch))
            order = rng.permutation(self.num_images).tolist()
            for step in range(step, steps_per_epoch):
                batch = order[step * self.batch_size:(step + 1) * self.batch_size]
                yield [(index, epoch) for index in batch[self.rank::self.world_size]]
            epoch, step = epoch + 1, 0


def obey_parent_only(_):
    """In a worker: Ctrl-C does nothing, and SIGTERM only where it comes from the main process.

    Terminals and schedulers send them to all processes, but the main one needs its workers to
    finish its step, and then ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):                         # macOS cannot tell who sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

        def await_parent():
            while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
                pass
            os._exit(0)

        threading.Thread(target=await_parent, daemon=True).start()


def make_loader(dataset, sampler, workers):
    """DataLoader over the endless sampler: never restarted, so the workers live for the whole run.

    PyTorch gives each worker one thread, which is right: the workers are the parallelism.
    """
    return torch.utils.data.DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(), worker_init_fn=obey_parent_only,
        generator=torch.Generator())         # else the loader draws from the global generator


# ---- Label maps and images as pictures -----------------------------------------------------------

def colourise(labels, palette):
    """Label map (H, W) -> picture (H, W, 3) uint8."""
    return np.asarray(palette, dtype=np.uint8)[np.asarray(labels)]


def to_uint8(images):
    """Images (B, 3, H, W) in [-1, 1], clamped -> (B, H, W, 3) uint8 array, rounded."""
    pixels = (images.detach().cpu().float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def picture_grid(rows, row_captions=None, column_captions=None, scale=1):
    """A contact sheet -> PIL.Image. rows: lists of (H, W, 3) uint8 pictures; scale: an integer."""
    gap, letter = 4, 6         # pixels; PIL's built-in font is about 6 wide and 11 high
    height, width = (scale * max(p.shape[axis] for row in rows for p in row) for axis in (0, 1))
    left = gap + max((letter * len(text) + gap for text in row_captions or ()), default=0)
    top = gap + (16 if column_captions else 0)
    sheet = Image.new("RGB", (left + max(map(len, rows)) * (width + gap),
                              top + len(rows) * (height + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        if row_captions:
            middle = top + r * (height + gap) + height // 2 - letter
            pen.text((gap, middle), row_captions[r], "black")
        for c, pixels in enumerate(row):
            picture = Image.fromarray(pixels)
            picture = picture.resize((picture.width * scale, picture.height * scale), Image.NEAREST)
            sheet.paste(picture, (left + c * (width + gap), top + r * (height + gap)))
    for c, text in enumerate(column_captions or ()):
        pen.text((left + c * (width + gap), gap // 2), text, "black")
    return sheet


# ---- Checking a dataset --------------------------------------------------------------------------

@dataclass
class Survey:
    """What a walk over a dataset found."""
    problems: list             # sentences, one per broken file or pair
    pixels: np.ndarray         # (N,) of each class
    images: np.ndarray         # (N,) in which the class occurs
    sizes: list                # (H, W) of every image


def survey(dataset, most=None, progress=False):
    """Read photos and label maps in full, on all cores -> Survey (most: about so many, spread)."""
    def inspect(index):
        try:
            return dataset.inspect(index)
        except DataError as error:
            return str(error)

    found = Survey(list(dataset.layout.unmatched), *np.zeros((2, dataset.num_classes), int), [])
    indices = range(0, len(dataset), max(1, len(dataset) // most) if most else 1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:           # PIL decodes outside Python's lock
        for result in tqdm(pool.map(inspect, indices), f"checking {dataset.split}", len(indices),
                           leave=False, disable=None if progress else True):
            if isinstance(result, str):
                found.problems.append(result)
            else:
                found.pixels += result[0]
                found.images += result[0] > 0
                found.sizes.append(result[1])
    return found


def check_dataset(dataset, most=None):
    """All problems of the dataset's files, one sentence each; [] if there are none."""
    return survey(dataset, most).problems if dataset.layout.photos else []     # toy has no files


def describe(dataset, found):
    """Print a Survey: sizes, share of each class, unknown pixels, classes never seen."""
    print(f"{dataset.name} {dataset.split}: {len(found.sizes)} photos with label maps")
    if not found.sizes:
        return
    small, large = (choose(found.sizes, key=lambda s: s[0] * s[1]) for choose in (min, max))
    print(f"  smallest {small[0]}x{small[1]}, largest {large[0]}x{large[1]} (height x width)")
    share = found.pixels / found.pixels.sum()
    for k in np.argsort(-share, kind="stable"):
        if found.images[k]:
            print(f"  {k:4d} {dataset.class_names[k]:24s} {share[k]:9.4%} of pixels, "
                  f"in {found.images[k]} images{' (ignored)' if k == dataset.ignore_label else ''}")
    never = [dataset.class_names[k] for k in np.flatnonzero(found.images == 0)]
    print(f"  classes never seen: {', '.join(never) or 'none'}")


def check_command(preset, data_root, size, subset, out):
    """Survey both splits, print them, save a contact sheet; DataError if anything is wrong."""
    size = size or SIZES.get(preset, (256, 256))
    # As in a training, a subset chooses among the training images only.
    splits = [open_dataset(preset, split, size, data_root, subset=names, complete=False)
              for split, names in (("train", subset), ("val", None))]
    problems = []
    for dataset in splits:
        found = survey(dataset, progress=True)
        describe(dataset, found)
        problems += found.problems
    if subset:
        absent = layouts.read_names(subset) - set(splits[0].names)
        problems += [f"{subset}: names {name}, which is no training image"
                     for name in sorted(absent)]
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        found = "problem was" if len(problems) == 1 else "problems were"
        raise DataError(f"{len(problems)} {found} found, listed above")
    train, _ = splits
    pairs = [train[i] for i in range(0, len(train), max(1, len(train) // 8))][:8]
    grid = [list(to_uint8(torch.stack([image for image, _ in pairs]))),
            [colourise(labels, train.palette) for _, labels in pairs]]
    with written_whole(out) as partial:
        picture_grid(grid, scale=2 if max(size) <= 128 else 1).save(partial, format="PNG")
    print(f"{out}: some photos and their label maps in colour")


# ---- Colours to ids, and speed -------------------------------------------------------------------

def convert_colours(source, classes, out):
    """Colour-coded label pictures in a folder -> palette pngs of ids in the new folder `out`.

    classes: a classes.txt that gives every class its RGB. All files or none are written.
    """
    names, palette, _ = layouts.read_classes(Path(classes), need_colours=True)
    files, out = layouts.list_files(Path(source), layouts.PHOTOS), Path(out)
    if out.exists():
        raise DataError(f"{out}: exists already; give the name of a new folder")
    with readable(out, NOT_WRITTEN):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=out.name, suffix=".tmp", dir=out.parent))
        try:
            for name, path in tqdm(files.items(), "converting", leave=False, disable=None):
                picture = Image.fromarray(colours_to_ids(path, palette))
                picture.putpalette(palette.tobytes())          # viewers show colours, we read ids
                picture.save(partial / f"{name}.png")
            partial.chmod(0o755)                               # temporary folders are private
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    print(f"{out}: {len(files)} label maps with ids 0-{len(names) - 1}")


def benchmark(count=48):
    """Images per second of one worker, on pictures like ADE20K's and like Cityscapes'."""
    cases = [((512, 683), "jpg", (256, 256), 286 / 256),       # ADE20K, training view
             ((1024, 2048), "png", (256, 512), 1.0),           # Cityscapes
             ((1024, 2048), "jpg", (256, 512), 1.0)]           # Cityscapes, were it kept as jpg
    for stored, ending, size, enlarge in cases:
        with tempfile.TemporaryDirectory() as folder:
            names = [f"{folder}/{i}" for i in range(count)]
            scene, labels = draw_scene(0, 22, *stored)
            for i, name in enumerate(names):
                # Grain, as a camera adds it: without, files would be smaller than real ones.
                grain = np.random.default_rng(i).normal(0, 4, scene.shape)
                image = Image.fromarray((scene + grain).clip(0, 255).astype(np.uint8))
                image.save(f"{name}.{ending}", quality=92)
                Image.fromarray(labels).save(f"{name}_labels.png")
            layout = Layout(names, toy.CLASSES, toy.PALETTE, 0, [f"{n}.{ending}" for n in names],
                            [f"{n}_labels.png" for n in names], layouts.identity_table(10), enlarge)
            dataset = SceneDataset("benchmark", "train", size, layout)
            start = time.perf_counter()
            for i in range(count):
                dataset[(i, 0)]
            rate = count / (time.perf_counter() - start)
        print(f"{stored[1]}x{stored[0]} {ending} to {size[1]}x{size[0]}, enlarged {enlarge:.2f} "
              f"times: {rate:.0f} images/s per worker (n = {count}), so 100 images/s take "
              f"{100 / rate:.1f} workers")


# ---- Command line; two helpers that other scripts share ------------------------------------------

def at_least(least):
    """An argparse type: whole numbers from `least` on."""
    def whole_number(text):
        if not least <= int(text) < 2 ** 62:
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number from {least} on")
        return int(text)
    return whole_number


def pick_device(name):
    """--device, or the GPU if there is one. DataError for a device this machine does not have."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    possible = ["cpu"] + ["cuda"] * bool(gpus) + gpus
    if name and name not in possible:
        raise DataError(f"--device {name}: this machine has {', '.join(possible)}")
    return name or ("cuda" if gpus else "cpu")


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description="Check a dataset before training on it (the default), convert colour-coded "
        "label maps to ids, or measure the speed of loading. Exit code 0, or 2 if all is not well.")
    check = parser.add_argument_group("check: every photo and label map, then a contact sheet")
    check.add_argument("--preset", default="toy", choices=PRESETS, help="default: toy")
    check.add_argument("--data-root", metavar="DIR", help="the dataset's folder (not for toy)")
    check.add_argument("--size", nargs=2, type=at_least(1), metavar=("H", "W"), help="size in the "
                       "contact sheet (default: the preset's training size)")
    check.add_argument("--subset", metavar="FILE", help="use only the images this file names")
    convert = parser.add_argument_group("convert: colours in label pictures to class ids")
    convert.add_argument("--convert-colours", metavar="DIR", help="folder of colour-coded pngs")
    convert.add_argument("--classes", metavar="FILE", help="classes.txt, each line: name R G B")
    parser.add_argument("--benchmark", action="store_true", help="images per second of one worker")
    parser.add_argument("--out", help="the contact sheet (default: data_PRESET.png), or the new "
                        "folder for converted label maps")
    return parser.parse_args(argv)


def main(argv=None):
    """The command line; returns the exit code."""
    args = parse_arguments(argv)
    try:
        if args.benchmark:
            benchmark()
        elif args.convert_colours:
            if not (args.classes and args.out):
                raise DataError("--convert-colours needs --classes and --out")
            convert_colours(args.convert_colours, args.classes, args.out)
        else:
            check_command(args.preset, args.data_root, args.size, args.subset,
                          args.out or f"data_{args.preset}.png")
    except DataError as error:
        print(f"data.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.py: interrupted", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
