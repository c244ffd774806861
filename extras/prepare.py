"""Getting a dataset ready: colours to ids, shares of the classes, ADE20K's outdoor images.

    python -m extras.prepare colours coloured/ --classes classes.txt --out labels/train
    python -m extras.prepare shares --preset folder --data-root my_photos
    python -m extras.prepare outdoors --data-root D --out outdoors.txt
    python train.py --preset ade20k --data-root D --subset outdoors.txt

`colours` turns label pictures that code classes by colour into pngs of class ids, as `--preset
folder` reads them. `shares` tells how often each class occurs: a class of few pixels gets a large
weight in the loss (Sec. 2, alpha_c), one of few images is drawn badly. `outdoors` writes the names
of the images that make up ADE20K-outdoors, of both splits.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import data
from data import UserError, exit_in_words


# ---- Colours to ids ------------------------------------------------------------------------------

def colours_to_ids(path, palette):
    """Colour-coded label picture -> (H, W) uint8 ids. UserError: jpeg, or a colour of no class."""
    with data.readable(path), Image.open(path) as picture:
        if picture.format == "JPEG":
            raise UserError(f"{path}: is a jpeg file, and jpeg blurs colours; export it as png")
        codes = np.asarray(picture.convert("RGB")).astype(np.int64) @ [65536, 256, 1]
    known = palette.astype(np.int64) @ [65536, 256, 1]
    order = np.argsort(known)
    place = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
    strange = codes[known[order][place] != codes]
    if strange.size:
        colour = int(strange[0])
        raise UserError(f"{path}: {strange.size} pixels have colours of no class, for instance "
                        f"({colour >> 16} {colour >> 8 & 255} {colour & 255})")
    return order[place].astype(np.uint8)


def convert_colours(folder, classes, out):
    """All pictures of a folder -> pngs of ids in the new folder `out`, with the classes' colours.

    classes: a classes.txt that gives each class its R G B. Every picture is read before the first
    one is written, so a bad one leaves nothing behind.
    """
    names, palette, _ = data.read_classes(classes)
    files, out = data.list_files(folder, data.PHOTOS), Path(out)
    if out.exists():
        raise UserError(f"{out}: exists already; give the name of a new folder")
    if len(np.unique(palette, axis=0)) < len(names):
        raise UserError(f"{classes}: every class needs a colour of its own, R G B")
    for path in tqdm(files.values(), "reading", leave=False, disable=None):
        colours_to_ids(path, palette)
    for name, path in tqdm(files.items(), "writing", leave=False, disable=None):
        picture = Image.fromarray(colours_to_ids(path, palette))
        picture.putpalette(palette.tobytes())            # viewers show colours, data.py reads ids
        with data.write_whole(out / f"{name}.png") as partial:
            picture.save(partial)
    print(f"{out}: {len(files)} label maps with ids 0-{len(names) - 1}")


# ---- Shares of the classes -----------------------------------------------------------------------

def print_shares(preset, data_root, subset=None):
    """A row per class of the training set: its share of all pixels and the images it occurs in."""
    dataset = data.open_dataset(preset, "train", data.SIZES[preset], data_root, subset=subset,
                                num_images=1000 if preset == "toy" else None)
    pixels = np.stack([np.bincount(dataset.read(i)[1].ravel(), minlength=dataset.num_classes)
                       for i in tqdm(range(len(dataset)), leave=False, disable=None)])
    share, images = pixels.sum(0) / pixels.sum(), (pixels > 0).sum(0)
    print(f"{len(dataset)} training images\n  id class                      pixels    images")
    for k in np.argsort(-share, kind="stable"):
        print(f"{k:4d} {dataset.class_names[k]:24s} {share[k]:8.3%} {images[k]:7d}"
              + ("  (ignored)" if k == dataset.ignore_label else ""))


# ---- ADE20K-outdoors -----------------------------------------------------------------------------

# The paper's list was never published. Known is: images with indicative classes were kept, images
# with indoor classes dropped, and the rest sorted by eye (about 10,000 and 1,000 images). Our rule
# has the same first two steps. Instead of the eye, an image with both kinds of classes, or with
# neither, follows the majority of its scene category (sceneCategories.txt).
OUTDOOR_CLASSES, INDOOR_CLASSES = {"sky", "mountain", "earth"}, {"ceiling", "bed", "sink"}


def vote(class_names):
    """The classes in an image -> True: outdoors, False: indoors, None: undecided."""
    outdoor, indoor = bool(class_names & OUTDOOR_CLASSES), bool(class_names & INDOOR_CLASSES)
    return None if outdoor == indoor else outdoor


def choose_outdoors(votes, categories):
    """votes {name: see `vote`}, categories {name: scene category} -> sorted names to keep."""
    ballot = defaultdict(int)                            # of each category: outdoors minus indoors
    for name, outdoors in votes.items():
        if outdoors is not None:
            ballot[categories.get(name)] += 1 if outdoors else -1
    return sorted(name for name, outdoors in votes.items()
                  if outdoors or outdoors is None and ballot[categories.get(name)] > 0)


def list_outdoors(data_root, out):
    """Choose among ADE20K's training and validation images, write the names, one per line."""
    kept = []
    for split in ("train", "val"):
        dataset = data.open_dataset("ade20k", split, data.SIZES["ade20k"], data_root)
        root = data.first_folder(Path(data_root), "ADEChallengeData2016", ".")
        rows = [line.split() for line in data.read_lines(root / "sceneCategories.txt")]
        categories = {row[0]: row[1] for row in rows if len(row) > 1}
        votes = {}
        for name, (_, path) in tqdm(dataset.files.items(), split, leave=False, disable=None):
            present = np.unique(data.read_label_map(path, dataset.table))
            votes[name] = vote({dataset.class_names[k] for k in present})
        chosen = choose_outdoors(votes, categories)
        print(f"{len(chosen)} of {len(dataset)} {split} images are outdoors")
        kept += chosen
    with data.write_whole(out) as partial:
        partial.write_text("\n".join(kept) + "\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description="Get a dataset ready.")
    commands = parser.add_subparsers(dest="command", required=True)
    colours = commands.add_parser("colours", help="label pictures in colours -> pngs of class ids")
    colours.add_argument("folder", help="the coloured pictures")
    colours.add_argument("--classes", required=True, help="classes.txt, each line: name R G B")
    shares = commands.add_parser("shares", help="how often each class occurs")
    shares.add_argument("--preset", required=True, choices=data.SIZES)
    shares.add_argument("--subset", metavar="FILE", help="names of the images to use")
    outdoors = commands.add_parser("outdoors", help="the names of ADE20K's outdoor images")
    for command in (shares, outdoors):
        command.add_argument("--data-root", metavar="DIR", required=command is outdoors)
    for command in (colours, outdoors):
        command.add_argument("--out", required=True, help="what to write")
    args = parser.parse_args(argv)
    with exit_in_words("extras.prepare"):
        if args.command == "colours":
            convert_colours(args.folder, args.classes, args.out)
        elif args.command == "shares":
            print_shares(args.preset, args.data_root, args.subset)
        else:
            list_outdoors(args.data_root, args.out)


if __name__ == "__main__":
    main()
