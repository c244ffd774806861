"""Draw from a trained model: global and local re-sampling, interpolation, photos re-created.

    python sample.py                                   # newest run, its own validation label maps
    python sample.py --labels maps --num 8 --seed 100  # your label maps, eight pictures each
    python sample.py --resample-class sky              # Figure 1: another sky, the rest stays
    python sample.py --resample-box 16 16 24 24        # ... another anything inside a rectangle
    python sample.py --interpolate 12                  # from one noise to another: strip and gif
    python sample.py --recreate photo.jpg              # Figure 4: photo -> labels -> photos
    python sample.py --checkpoint latest_EMA.pth --preset ade20k --labels maps   # released model

This file is the command line. The functions that draw are in pictures.py, arrays in and arrays out;
a notebook may import them from here, too: `from sample import load_model, paint`.

Convention this file owns: every picture has one recipe. It names a noise vector a (by its seed), a
second one b (by another seed), a point t on the way from a to b, and a region. The region gets the
noise at t, all other pixels keep a. Local re-sampling is t = 1, interpolation t = 0 ... 1, and
without a region the whole picture changes. The recipe is stored inside each png, so that a second
run can tell which pictures it need not draw, and all recipes of a command in record.json.

Reading order: scenes (what to draw) → edits (what to change) → plan (recipes) → files → drawing.
"""

import argparse
import itertools
import json
import re
import sys
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

import data
import layouts
import oasis
from data import at_least
from pictures import (NUM_CLASSES, SampleError, change_by_distance, check_size, class_id,
                      class_region, describe_change, digest, files_of, interpolate, load_model,
                      local_noise, newest_checkpoint, noise_from_seeds, paint, predict_labels,
                      reach, read_labels, read_mask, replace_classes)

SHEET_ROWS, SHEET_COLUMNS = 16, 12      # the contact sheet shows no more pictures than these


# ---- Scenes: the label maps to draw --------------------------------------------------------------
#
# A label map comes from a file, from the validation set, or (Figure 4) off a photo, read by D.


@dataclass
class Scene:
    """One label map, with what is known about where it came from."""
    name: str
    labels: np.ndarray                    # (H, W) int64
    source: dict                          # for the recipe
    photo: np.ndarray | None = None       # (H, W, 3) uint8
    truth: np.ndarray | None = None       # the label map of the photo, where `labels` was predicted
    predicted: np.ndarray | None = None   # what the discriminator sees in the photo


def find_scenes(args, model):
    """The label maps, or photos, that a command asks for -> [function without arguments -> Scene].

    Functions, not scenes: ten thousand label maps are read one by one, when their turn comes.
    """
    def from_label_map(path):
        labels = read_labels(path, model, args.size)
        return Scene(path.stem, labels, {"label_map": str(path.resolve())})

    def from_photo(path):
        photo = data.read_photo(path, args.size or model.size, upright=True)
        return Scene(path.stem, None, {"photo": str(path.resolve())}, photo)

    def from_validation_set(index):
        image, labels = dataset[index]
        return Scene(dataset.names[index], labels.numpy(),
                     {"preset": model.preset, "split": "val", "index": index,
                      "data_root": str(root), "dataset_seed": model.seed},
                     data.to_uint8(image[None])[0])

    if args.labels:
        return [partial(from_label_map, path)
                for path in files_of(args.labels, layouts.PNGS)[:args.limit]]
    if args.recreate or args.segment:
        return [partial(from_photo, path)
                for path in files_of(args.recreate or args.segment, layouts.PHOTOS)[:args.limit]]
    root = args.data_root or model.data_root
    if args.preset and not root:
        raise SampleError("a released model brings no label maps: name them by --labels, or the "
                          "folder of its dataset by --data-root")
    dataset = data.open_dataset(model.preset, "val", args.size or model.size, root, seed=model.seed)
    return [partial(from_validation_set, index)
            for index in range(min(len(dataset), args.limit or 8))]


# ---- Edits: what changes between the label map and its pictures ----------------------------------
#
# Two kinds. Edits of the layout (a house for a tree) act on the label map. Edits of the appearance
# (another sky, all else the same) act on the noise inside a region. G was trained with one noise
# vector per picture, but it is made of convolutions: what it draws here depends on what is near.


@dataclass
class Edit:
    """What a command changes. The region is the sum of classes, mask and box."""
    seed: int = 0                                      # of noise vector a
    num: int = 4                                       # pictures, or other versions of the region
    frames: int = 0                                    # pictures on the way from a to b; 0: no walk
    recreate: bool = False                             # let the discriminator read the label map
    replace: dict = field(default_factory=dict)        # {old id: new id}
    classes: list = field(default_factory=list)        # region: the pixels of these ids,
    mask: np.ndarray | None = None                     # ... and of this mask, bool (H, W),
    mask_name: str = ""
    box: list | None = None                            # ... and of this rectangle, x y width height
    local: bool = False                                # is there a region at all?

    def apply(self, scene, model):
        """Read the label map off the photo if asked, exchange classes; -> the scene, drawable."""
        if self.recreate:
            scene.predicted = predict_labels(model.discriminator, scene.photo)
            scene.truth, scene.labels = scene.labels, scene.predicted
        scene.labels = replace_classes(scene.labels, self.replace)
        check_size(scene.source.get("label_map", scene.name), scene.labels.shape,
                   model.generator)
        return scene

    def region(self, scene):
        """bool (H, W): where the noise changes. All false if the scene has none of the classes."""
        height, width = scene.labels.shape
        region = class_region(scene.labels, self.classes)
        if self.mask is not None:
            if self.mask.shape != region.shape:
                raise SampleError(f"{self.mask_name}: the mask is {self.mask.shape[0]}×"
                                  f"{self.mask.shape[1]} (height × width), the label map "
                                  f"{scene.name} {height}×{width}; they must agree")
            region |= self.mask
        if self.box:
            x, y, w, h = self.box
            if min(x, y) < 0 or min(w, h) < 1 or x + w > width or y + h > height:
                raise SampleError(f"--resample-box {x} {y} {w} {h}: does not lie inside the label "
                                  f"map {scene.name}, {width} pixels wide and {height} high")
            region[y:y + h, x:x + w] = True
        return region

    def words(self, class_names):
        """(words for the changed label map, words for the region): parts of file names."""
        changes = ["recreated"] * self.recreate
        changes += [f"replace-{class_names[a]}-{class_names[b]}" for a, b in self.replace.items()]
        places = [class_names[k] for k in self.classes]
        places += [f"mask-{Path(self.mask_name).stem}"] * bool(self.mask_name)
        places += [f"box-{'-'.join(map(str, self.box))}"] if self.box else []
        return [re.sub(r"[^\w-]+", "-", word) for word in changes], \
               [re.sub(r"[^\w-]+", "-", f"resample-{word}") for word in places]


def read_edit(args, model):
    """Command line -> Edit; SampleError for classes and masks that do not exist."""
    num = args.num or (4 if model.generator.noise_dim else 1)
    edit = Edit(args.seed, num, args.interpolate or 0, box=args.resample_box)
    edit.classes = sorted({class_id(word, model.class_names) for word in args.resample_class})
    for words in args.replace:
        old, equals, new = words.partition("=")
        if not equals:
            raise SampleError(f"--replace {words}: write OLD=NEW, two classes by name or id")
        edit.replace[class_id(old, model.class_names)] = class_id(new, model.class_names)
    if args.resample_mask:
        edit.mask, edit.mask_name = read_mask(args.resample_mask), args.resample_mask
    edit.local = bool(edit.classes or edit.box or edit.mask_name)
    edit.recreate = args.recreate is not None or args.segment is not None
    if edit.recreate and args.labels:
        raise SampleError("--labels and --recreate (or --segment) exclude each other: the label "
                          "map is either given or read off a photo")
    check_abilities(edit, model)
    if edit.frames and args.num:
        raise SampleError("--num and --interpolate exclude each other: a walk has --interpolate K "
                          "pictures")
    return edit


def check_abilities(edit, model):
    """SampleError for what this model cannot do: SPADE's discriminator reads no label maps, ..."""
    if edit.recreate and model.kind != "oasis":
        raise SampleError(f"--recreate and --segment need OASIS's discriminator, which reads the "
                          f"label map off the photo; that of {model.kind} only says real or fake")
    if edit.recreate and model.discriminator is None:
        raise SampleError("--recreate and --segment need the discriminator, which reads the label "
                          "map off the photo: use a run's checkpoint, or put the released *_D.pth "
                          "beside the generator's file")
    if edit.local and hasattr(model.generator, "image_size"):
        raise SampleError("this generator was trained with an image encoder, whose latent vector "
                          "holds for the whole picture; re-sampling a region needs 3D noise "
                          "(train.py --multimodal noise)")
    if (edit.local or edit.frames) and not model.generator.noise_dim:
        raise SampleError("this generator was trained without noise and knows one picture of each "
                          "label map; other ones need train.py --multimodal noise")


# ---- The plan: one recipe per picture ------------------------------------------------------------
#
# Everything is decided before anything is drawn: which files there will be and what is in them.

# Recipes that agree in these draw the same pixels; their other entries tell where things lay.
DECISIVE = ("weights", "labels_sha256", "size", "seed", "to_seed", "t", "region_sha256")


@dataclass
class Picture:
    """A picture to draw: its file, its scene's place in the list, its caption and its recipe."""
    path: Path
    scene: int
    caption: str
    recipe: dict


def plan_scene(scene, number, edit, model, checkpoint, out):
    """All pictures of one scene -> [Picture]; [] where a class to re-sample is missing."""
    names = model.class_names
    common = {"checkpoint": str(checkpoint.resolve()), "weights": model.fingerprint,
              **scene.source, "predicted": edit.recreate, "size": list(scene.labels.shape),
              "replace": {names[old]: names[new] for old, new in edit.replace.items()},
              "labels_sha256": digest(scene.labels)}
    where = {}
    if edit.local:
        region = edit.region(scene)
        if not region.any():
            return []
        where = {"classes": [names[k] for k in edit.classes], "mask": edit.mask_name,
                 "box": edit.box, "region_sha256": digest(region)}
    changes, places = edit.words(names)
    a = edit.seed

    def picture(seed, words, caption, **recipe):
        name = "_".join([scene.name, f"seed{seed}", *changes, *words])
        return Picture(out / f"{name}.png", number, caption, {**common, "seed": seed, **recipe})

    if edit.frames:
        return [picture(a, [*places, f"to-seed{a + 1}", f"{j:03d}of{edit.frames}"], f"t = {t:.2f}",
                        to_seed=a + 1, t=t, frame=j, frames=edit.frames, **where)
                for j, t in enumerate(np.linspace(0, 1, edit.frames).round(6).tolist())]
    if edit.local:
        return [picture(a, [], f"seed {a}")] + [
            picture(a, [*places, f"seed{b}"], f"there seed {b}", to_seed=b, t=1.0, **where)
            for b in range(a + 1, a + 1 + edit.num)]
    return [picture(seed, [], f"seed {seed}") for seed in range(a, a + edit.num)]


def noise_of(recipe, region, noise_dim):
    """The noise a recipe stands for: (C,) without a region, (C, H, W) with one, bool (H, W)."""
    seeds = [recipe["seed"], recipe.get("to_seed", recipe["seed"])]
    a, b = noise_from_seeds(seeds, noise_dim)
    if "frames" in recipe:
        b = interpolate(a, b, recipe["frames"])[recipe["frame"]]
    return b if region is None else local_noise(a, b[None], region)[0]


def already_drawn(path, recipe):
    """Does the file hold this very picture? Another picture under its name is a SampleError."""
    if not path.exists():
        return False
    with data.readable(path), Image.open(path) as picture:
        stored = json.loads(picture.info.get("recipe", "{}"))
    differing = [key for key in DECISIVE if stored.get(key) != recipe.get(key)]
    if differing:
        raise SampleError(f"{path}: exists already and is another picture (another "
                          f"{', '.join(differing)}); choose another --out, or delete it")
    return True


# ---- Writing files -------------------------------------------------------------------------------


def save_png(path, image, recipe=None):
    """PIL image -> png, with its recipe inside."""
    info = PngInfo()
    if recipe:
        info.add_text("recipe", json.dumps(recipe))
    with layouts.written_whole(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def save_prediction(scene, model, out):
    """The discriminator's label map as a palette png: ids for --labels, colours for the eye."""
    path = out / f"{scene.name}_labels.png"
    recipe = {"weights": model.fingerprint, "labels_sha256": digest(scene.predicted),
              "size": list(scene.predicted.shape), **scene.source}
    if not already_drawn(path, recipe):
        image = Image.fromarray(model.file_ids[scene.predicted])
        image.putpalette(model.file_palette.tobytes())
        save_png(path, image, recipe)


def save_walk(row, stem):
    """Interpolation -> one strip png, and a gif that walks to the end and back."""
    frames = [Image.fromarray(pixels) for pixels in row]
    save_png(stem.with_name(stem.name + "_strip.png"), Image.fromarray(np.concatenate(row, axis=1)))
    with layouts.written_whole(stem.with_name(stem.name + ".gif")) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, duration=100, loop=0,
                       append_images=frames[1:] + frames[-2:0:-1])


def sheet_row(scene, edit, palette):
    """The left part of a contact sheet's row: what was given. -> {caption: (H, W, 3) uint8}"""
    given = {}
    if scene.truth is not None:
        given["label map"] = data.colourise(scene.truth, palette)
    if scene.photo is not None:
        given["photo"] = scene.photo
    drawn = data.colourise(scene.labels, palette)
    if edit.local:                                    # dim what stays, so that the region shines
        drawn = np.where(edit.region(scene)[..., None], drawn, drawn // 3)
    given["segmented" if edit.recreate else "label map"] = drawn
    return given


# ---- Drawing -------------------------------------------------------------------------------------
#
# A stream: label maps are read, drawn in batches and saved one after another; only the rows of the
# contact sheet are kept. So memory does not grow with the number of label maps.


def draw(plan, scene_at, edit, model, batch_size):
    """Draw and save what does not exist yet, in batches across scenes. Yields (Picture, pixels)."""
    for _, pictures in itertools.groupby(plan, key=lambda picture: picture.recipe["size"]):
        while batch := list(itertools.islice(pictures, batch_size)):
            missing = [p for p in batch if not p.path.exists()]
            pixels = {}
            if missing:
                scenes = [scene_at(p.scene) for p in missing]
                noise = [noise_of(p.recipe, edit.region(scene) if edit.local else None,
                                  model.generator.noise_dim) for p, scene in zip(missing, scenes)]
                drawn = paint(model.generator, np.stack([scene.labels for scene in scenes]),
                              torch.stack(noise), batch_size)
                for p, array in zip(missing, drawn):
                    save_png(p.path, Image.fromarray(array), p.recipe)
                    pixels[p.path] = array
            for p in batch:
                yield p, pixels[p.path] if p.path in pixels else np.asarray(Image.open(p.path))


def draw_plan(plan, scene_at, edit, model, batch_size, out):
    """Draw everything, strips and gifs on the way, contact sheet and measurement at the end."""
    rows, row_names, change = [], [], 0
    bar = tqdm(draw(plan, scene_at, edit, model, batch_size), "drawing", len(plan), unit="picture",
               disable=None)
    for number, group in itertools.groupby(bar, key=lambda drawn: drawn[0].scene):
        group = list(group)
        scene, row = scene_at(number), [pixels for _, pixels in group]
        if edit.recreate:
            save_prediction(scene, model, out)
        if edit.frames:
            save_walk(row, out / group[0][0].path.stem.rpartition("_")[0])
        elif edit.local:
            region = edit.region(scene)
            change += sum(change_by_distance(row[0], after, region) for after in row[1:])
        if len(rows) < SHEET_ROWS:
            given = sheet_row(scene, edit, model.palette)
            rows.append([*given.values(), *row[:SHEET_COLUMNS]])
            row_names.append(scene.name)
            titles = [*given, *(p.caption for p, _ in group[:SHEET_COLUMNS])]
    save_sheet(rows, row_names, titles, out)
    if edit.local and not edit.frames:
        print(describe_change(change, reach(model.generator)))


def save_sheet(rows, row_names, titles, out):
    """contact_sheet.png: one row per label map, small pictures enlarged."""
    scale = 2 if max(rows[0][0].shape) <= 128 else 1
    save_png(out / "contact_sheet.png", data.picture_grid(rows, row_names, titles, scale))
    print(f"{out / 'contact_sheet.png'}: a contact sheet of {len(rows)} label maps")


def segment(readers, edit, model, out):
    """--segment: save what the discriminator sees in each photo, draw nothing."""
    rows, names = [], []
    for read in tqdm(readers, "segmenting", unit="photo", disable=None):
        scene = edit.apply(read(), model)
        save_prediction(scene, model, out)
        if len(rows) < SHEET_ROWS:
            given = sheet_row(scene, edit, model.palette)
            rows.append(list(given.values()))
            names.append(scene.name)
    save_sheet(rows, names, list(given), out)


def run(args):
    """One command: plan everything, which finds all mistakes, then draw."""
    device = data.pick_device(args.device)
    checkpoint = Path(args.checkpoint) if args.checkpoint else newest_checkpoint()
    model = load_model(checkpoint, args.preset, device, args.data_root)
    if args.size:
        check_size("--size", args.size, model.generator)
    edit, readers = read_edit(args, model), find_scenes(args, model)
    changes, places = edit.words(model.class_names)
    kind = changes + places + [f"walk{edit.frames}"] * bool(edit.frames)
    parent = Path("samples") if args.preset else checkpoint.parent / "samples"
    out = Path(args.out) if args.out else parent / "_".join([model.title, *kind])
    print(f"{checkpoint} ({model.preset}, {len(model.class_names)} classes) on {device}")
    if args.segment is not None:
        segment(readers, edit, model, out)
        return

    # Each label map is read twice, now and when it is drawn, with --recreate by D. But a mistake
    # in the last of ten thousand label maps is better known before the first picture is written.
    @lru_cache(maxsize=2)
    def scene_at(number):
        return edit.apply(readers[number](), model)

    plan = []
    for number in tqdm(range(len(readers)), "reading", unit="label map", leave=False, disable=None):
        pictures = plan_scene(scene_at(number), number, edit, model, checkpoint, out)
        if not pictures:
            print(f"{scene_at(number).name}: skipped, it has no pixel of the class to re-sample")
        plan += pictures
    if not plan:
        raise SampleError("none of the label maps has a pixel of the class to re-sample: "
                          + ", ".join(model.class_names[k] for k in edit.classes))
    kept = sum(already_drawn(picture.path, picture.recipe) for picture in plan)
    draw_plan(plan, scene_at, edit, model, args.batch_size, out)
    record = {"format": "oasis-pictures-1",
              "pictures": [{"file": str(p.path.resolve()), **p.recipe} for p in plan]}
    path = Path(args.json) if args.json else out / "record.json"
    with layouts.written_whole(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"{out}: {len(plan) - kept} pictures drawn" + f", {kept} were there already" * bool(kept))


# ---- Command line --------------------------------------------------------------------------------


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        "sample.py", description="Draw pictures from label maps with a trained generator. Without "
        "arguments: four pictures for each of the first eight validation label maps of the newest "
        "run. Pictures that exist with the same recipe are kept, so a stopped command goes on when "
        "given again. Exit code: 0, or 2 with one sentence if anything is wrong.")
    add = parser.add_argument_group("model").add_argument
    add("--checkpoint", metavar="FILE", help="best.pt or latest.pt of a run, or a released "
        "*_EMA.pth (default: latest.pt of the run in runs/ that was written to last)")
    add("--preset", choices=list(NUM_CLASSES), help="the checkpoint is one of the authors' "
        "released files, for this dataset")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:1 (default: the GPU if there is one)")
    add("--batch-size", type=at_least(1), default=8, metavar="B", help="pictures drawn at once "
        "(default: 8); changes speed and memory, not the pictures")
    add = parser.add_argument_group("what to draw").add_argument
    add("--labels", metavar="FILE|DIR", help="label maps: png files of ids as the dataset ships "
        "them, of palette indices or of the run's colours (default: the model's validation set)")
    add("--data-root", metavar="DIR", help="folder of the validation set, if it has moved since "
        "training or the model is a released one (ADE20K's class names lie there, too)")
    add("--size", nargs=2, type=at_least(1), metavar=("H", "W"), help="resize to this (default: "
        "label maps as they are, photos and the validation set as in training)")
    add("--limit", type=at_least(1), metavar="M", help="only the first M label maps or photos "
        "(default: all that are named, 8 of the validation set)")
    add("--replace", action="append", default=[], metavar="OLD=NEW", help="exchange a class in "
        "the label map before drawing, e.g. tree=house; may be given several times")
    add = parser.add_argument_group("noise: other pictures for the same label map").add_argument
    add("--num", type=at_least(1), metavar="K", help="pictures per label map (default: 4; 1 "
        "for a model without noise, which knows no more)")
    add("--seed", type=at_least(0), default=0, metavar="S", help="picture k = 0, 1, ... of every "
        "label map has the noise of seed S + k (default: 0), so sheet columns share their noise")
    add("--interpolate", type=at_least(2), metavar="K", help="K pictures on the way from the noise "
        "of seed S to that of S + 1, along the sphere: png files, a strip and a gif")
    add = parser.add_argument_group(
        "local noise: only a region changes (several regions add up)",
        "The picture keeps the noise of seed S. The region gets that of seeds S + 1 ... S + K, or "
        "walks from S to S + 1 with --interpolate. Prints how much changed where.").add_argument
    add("--resample-class", action="append", default=[], metavar="NAME|ID", help="all pixels of a "
        "class; may be given several times")
    add("--resample-mask", metavar="FILE", help="the white part of a picture of the drawn size")
    add("--resample-box", nargs=4, type=int, metavar=("X", "Y", "W", "H"), help="a rectangle, in "
        "pixels: its left and upper edge, width and height")
    add = parser.add_argument_group("photo in, scene out (Figure 4)").add_argument
    add("--recreate", nargs="?", const="", metavar="PHOTO|DIR", help="let the discriminator read "
        "the label map off a photo, then draw from it (no value: the validation set's photos)")
    add("--segment", nargs="?", const="", metavar="PHOTO|DIR", help="save that label map only")
    add = parser.add_argument_group("output").add_argument
    add("--out", metavar="DIR", help="folder for the pictures and contact_sheet.png (default: one "
        "in the run's samples/, named by checkpoint and edit)")
    add("--json", metavar="FILE", help="the record: for each picture what is needed to draw it "
        "again (default: record.json beside the pictures)")
    return parser.parse_args(argv)


def main(argv=None):
    """The command line; returns the exit code."""
    args = parse_arguments(argv)
    oasis.keep_freed_memory()
    try:
        run(args)
    except (SampleError, data.DataError, oasis.CheckpointError) as error:
        print(f"sample.py: error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print(f"sample.py: error: the GPU's memory does not hold --batch-size {args.batch_size}; "
              "choose a smaller one", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sample.py: interrupted; the same command goes on with it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
