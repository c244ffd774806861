"""Getting a data set ready: an example, colours to ids, shares of the classes, ADE20K-outdoors.

    python -m extras.prepare example my_photos
    python -m extras.prepare colours coloured/ --classes classes.txt --out labels/train
    python -m extras.prepare shares --preset folder --data-root my_photos
    python -m extras.prepare outdoors --data-root D --out ade20k_outdoors
    python train.py --preset folder --data-root ade20k_outdoors --batch-size 32 --epochs 200

`example` writes a data set of three drawn pairs, to be copied. `colours` turns label pictures that
code classes by colour into pngs of class ids, as `--preset folder` reads them. `shares` tells how
often each class occurs: a class of few pixels gets a large weight in the loss (Sec. 2, alpha_c),
one of few images is drawn badly. `outdoors` makes a data set of the layout `folder` of the images
that make up ADE20K-outdoors. It uses no space: the files are hard links to those of ADE20K.
"""

import argparse
import os
import shutil
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import data
import toy
from data import UserError


@contextmanager
def new_folder(folder):
    """Yields a hidden folder beside `folder`, and gives it that name at the end.

    UserError: `folder` exists already, or cannot be written. After an error nothing is left behind.
    """
    folder = Path(folder)
    with data.readable(folder, "written"):
        if folder.exists():
            raise UserError(f"{folder}: exists already; give the name of a new folder")
        partial = folder.with_name(f".{os.getpid()}.{folder.name}")
        partial.mkdir(parents=True)
        try:
            yield partial
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


# ---- An example ----------------------------------------------------------------------------------

# Drawn scenes in each of which all classes occur.
EXAMPLE_SCENES = {"train": [17, 33], "val": [48]}
EXAMPLE_SIZE = 192, 256


def save_label_map(labels, palette, path):
    """Class ids (H, W) -> a png of ids. Its palette shows viewers the colours of the classes."""
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(palette.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_example(folder):
    """Two drawn pairs to train on and one for validation, in the layout `folder`."""
    lines = []
    for name, colour in zip(toy.CLASSES, toy.PALETTE.tolist()):
        lines.append(" ".join([name, *map(str, colour)]))
    with new_folder(folder) as partial:
        for split, scenes in EXAMPLE_SCENES.items():
            (partial / "images" / split).mkdir(parents=True)
            for index in scenes:
                image, labels = toy.draw_scene(0, index, *EXAMPLE_SIZE)
                name = f"scene_{index}"
                Image.fromarray(image).save(partial / "images" / split / f"{name}.jpg", quality=95)
                save_label_map(labels, toy.PALETTE, partial / "labels" / split / f"{name}.png")
        (partial / "classes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{folder}: three pairs; next: python data.py --preset small --data-root {folder}")


# ---- Colours to ids ------------------------------------------------------------------------------

def pack(colours):
    """(..., 3) uint8 -> one number for each colour."""
    return colours.astype(np.int64) @ [65536, 256, 1]


def colours_to_ids(path, palette):
    """Colour-coded label picture -> (H, W) uint8 ids.

    UserError: a jpeg, transparent pixels, or a colour of no class.
    """
    with data.readable(path), Image.open(path) as picture:
        if picture.format == "JPEG":
            raise UserError(f"{path}: is a jpeg file, and jpeg blurs colours; export it as png")
        if picture.mode.startswith(("I", "F")):
            raise UserError(f"{path}: has more than 8 bits per channel; save it with 8")
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema()[0] < 255:
            raise UserError(f"{path}: has transparent pixels; fill them with the colour of a class")
        codes = pack(np.asarray(picture.convert("RGB")))
    known = pack(palette)
    order = np.argsort(known)
    place = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
    strange = codes[known[order][place] != codes]
    if strange.size:
        colour = int(strange[0])
        raise UserError(f"{path}: {strange.size} pixels have colours of no class, for instance "
                        f"({colour >> 16} {colour >> 8 & 255} {colour & 255}); paint without "
                        "smooth edges (antialiasing)")
    return order[place].astype(np.uint8)


def convert_colours(folder, classes, out):
    """All pictures of a folder -> pngs of ids in the new folder `out`, with the classes' colours.

    classes: a classes.txt that gives each class its R G B. A bad picture leaves nothing behind.
    """
    names, palette, _ = data.read_classes(classes)
    files = data.list_files(folder, data.PHOTOS)
    if len(np.unique(palette, axis=0)) < len(names):
        raise UserError(f"{classes}: every class needs a colour of its own, R G B")
    with new_folder(out) as partial:
        for name, path in tqdm(files.items(), "converting", leave=False, disable=None):
            save_label_map(colours_to_ids(path, palette), palette, partial / f"{name}.png")
    print(f"{out}: {len(files)} label maps with ids 0-{len(names) - 1}")


# ---- Shares of the classes -----------------------------------------------------------------------

def print_shares(preset, data_root):
    """A row per class of the training set: its share of all pixels and of the images."""
    dataset = data.open_dataset(preset, "train", data.SIZES[preset], data_root)
    problems = data.check_dataset(dataset)
    if problems:
        raise UserError(f"{problems[0]}; python data.py finds all such problems")
    print(f"{dataset.counted} training images")
    print("\n".join(data.list_shares(dataset) + data.list_warnings(dataset)))


# ---- ADE20K-outdoors -----------------------------------------------------------------------------

# The paper's list was never published. Known is: images with indicative classes were kept, images
# with indoor classes dropped, and the rest sorted by eye (about 10,000 and 1,000 images). Our rule
# has the same first two steps. Instead of the eye, an image with both kinds of classes, or with
# neither, follows the majority of its scene category (sceneCategories.txt).
OUTDOOR_CLASSES, INDOOR_CLASSES = {"sky", "mountain", "earth"}, {"ceiling", "bed", "sink"}


def vote(class_names):
    """The classes in an image -> True: outdoors, False: indoors, None: undecided."""
    outdoor, indoor = bool(class_names & OUTDOOR_CLASSES), bool(class_names & INDOOR_CLASSES)
    if outdoor == indoor:
        return None
    return outdoor


def choose_outdoors(votes, categories):
    """votes {name: see `vote`}, categories {name: scene category} -> sorted names to keep."""
    ballot = defaultdict(int)                            # of each category: outdoors minus indoors
    for name, outdoors in votes.items():
        if outdoors is not None:
            ballot[categories.get(name)] += 1 if outdoors else -1
    kept = []
    for name, outdoors in votes.items():
        if outdoors or (outdoors is None and ballot[categories.get(name)] > 0):
            kept.append(name)
    return sorted(kept)


def find_outdoors(dataset, data_root):
    """The names of the images of an ADE20K dataset that are outdoors."""
    root = data.first_folder(Path(data_root), "ADEChallengeData2016", ".")
    categories = {}
    for line in data.read_lines(root / "sceneCategories.txt"):
        words = line.split()
        if len(words) > 1:
            categories[words[0]] = words[1]
    votes = {}
    for name, (_, path) in tqdm(dataset.files.items(), dataset.split, leave=False, disable=None):
        present = np.unique(data.read_label_map(path, dataset.table))
        votes[name] = vote({dataset.class_names[k] for k in present})
    return choose_outdoors(votes, categories)


def link(source, folder):
    """The same file in another folder. A copy where the disk knows no hard links across."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), folder / source.name)
    except OSError:
        shutil.copyfile(source, folder / source.name)


def write_outdoors(data_root, out):
    """ADE20K-outdoors, training and validation images, in the new folder `out`.

    The ids in the label maps stay: 0 for unknown, which is the first line of classes.txt.
    """
    with new_folder(out) as partial:
        for split in ("train", "val"):
            dataset = data.open_dataset("ade20k", split, data.SIZES["ade20k"], data_root)
            chosen = find_outdoors(dataset, data_root)
            for name in chosen:
                photo, label = dataset.files[name]
                link(label, partial / "labels" / split)
                with Image.open(photo) as picture:
                    turned = data.exif_turn(picture) > 1
                # The layout `folder` turns photos as their EXIF tag says. ADE20K's label maps fit
                # the unturned pixels, so a photo with such a tag is written without it.
                if turned:
                    (partial / "images" / split).mkdir(parents=True, exist_ok=True)
                    pixels = Image.fromarray(data.read_photo(photo))
                    pixels.save(partial / "images" / split / f"{name}.png")
                else:
                    link(photo, partial / "images" / split)
            print(f"{len(chosen)} of {len(dataset)} {split} images are outdoors")
        names = "\n".join(dataset.class_names) + "\n"
        (partial / "classes.txt").write_text(names, encoding="utf-8")
    print(f"{out}: next: python data.py --preset folder --data-root {out}")


@data.exit_in_words("extras.prepare")
def main(argv=None):
    parser = argparse.ArgumentParser(description="Get a data set ready.")
    commands = parser.add_subparsers(dest="command", required=True)
    example = commands.add_parser("example", help="a data set of three drawn pairs, to be copied")
    example.add_argument("folder", help="what to write")
    colours = commands.add_parser("colours", help="label pictures in colours -> pngs of class ids")
    colours.add_argument("folder", help="the coloured pictures")
    colours.add_argument("--classes", required=True, help="classes.txt, each line: name R G B")
    colours.add_argument("--out", required=True, help="what to write")
    shares = commands.add_parser("shares", help="how often each class occurs")
    shares.add_argument("--preset", required=True, choices=data.SIZES)
    shares.add_argument("--data-root", metavar="DIR")
    outdoors = commands.add_parser("outdoors", help="ADE20K's outdoor images as a data set")
    outdoors.add_argument("--data-root", metavar="DIR", required=True)
    outdoors.add_argument("--out", required=True, help="what to write")
    args = parser.parse_args(argv)
    if args.command == "example":
        write_example(args.folder)
    elif args.command == "colours":
        convert_colours(args.folder, args.classes, args.out)
    elif args.command == "shares":
        print_shares(args.preset, args.data_root)
    else:
        write_outdoors(args.data_root, args.out)


if __name__ == "__main__":
    main()
