"""Paint scenes with a trained model: Figure 1 (other noise, also in one place only) and Figure 4.

    python sample.py                             # four noises for each of eight label maps
    python sample.py --resample-class sky        # Figure 1: another sky, the rest stays
    python sample.py --resample-mask area.png    # ... other noise where this picture is white
    python sample.py --interpolate 12            # a walk between two noises: strip and gif
    python sample.py --recreate                  # Figure 4: photo -> label map -> scenes
    python sample.py --labels maps --num 8       # your own label maps, eight noises each

One expression is the whole idea: x̂ = G(where(region, b, a), t). The noise is an input beside the
label map t and has a vector at every pixel (Sec. 2, "3D noise"). Pixels of the region get noise b,
all others keep noise a. The modes differ in the region and in b only: the whole picture, one class,
a drawn area, or a b that moves. Re-creation changes t instead: D reads it off a photo.

The model is that of --checkpoint, else of the newest run, else assets/toy.pt. Pictures go to --out,
else to samples/. A picture is called MAP_WORDS_NOISE.png: its label map, what was asked, its noise.
The same command gives the same pictures again, under the same names. The contact sheet, with all of
them, is called by what was asked.

Read from the top: checkpoints, the functions that paint (also for notebooks), the script.
"""

import argparse
import importlib
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import data
import oasis
from data import UserError

# ---- Checkpoints ---------------------------------------------------------------------------------

def find_checkpoint(path=None):
    """The path itself, else latest.pt of the newest run, else the model of this repository."""
    if path is not None:
        return Path(path)
    runs = list(Path("runs").glob("*/latest.pt"))
    if runs:
        return max(runs, key=lambda file: file.stat().st_mtime)
    return Path(__file__).resolve().parent / "assets" / "toy.pt"


def read_tensors(path):
    """What torch.save wrote, on the CPU; weights_only: a file can run no code. UserError."""
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError) as e:
        raise UserError(f"{path}: not a checkpoint, or one that was cut off") from e


def load_checkpoint(path):
    """A checkpoint of train.py as a dictionary; train.State says what is in it. UserError."""
    checkpoint = read_tensors(path)
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != "oasis-run-2":
        raise UserError(f"{path}: not a checkpoint of this edition's train.py; the authors' *.pth "
                        f"files become one by python -m extras.released")
    return checkpoint


def build_generator(checkpoint):
    """The average of G, whose images the paper reports; in eval mode, without gradients."""
    module, name = checkpoint["generator_class"].rsplit(".", 1)
    # Only a variant's generator lives elsewhere. A file must not choose freely what is imported.
    if not module.startswith("extras."):
        module = "oasis"
    generator_class = getattr(importlib.import_module(module), name)
    network = generator_class(**checkpoint["generator_args"])
    network.load_state_dict(checkpoint["ema"])
    return network.to(memory_format=torch.channels_last).requires_grad_(False).eval()


def build_discriminator(checkpoint):
    """D in eval mode, without gradients; None where the file has none, or a variant's."""
    if checkpoint.get("discriminator_class") != "oasis.Discriminator":
        return None
    network = oasis.Discriminator(**checkpoint["discriminator_args"])
    network.load_state_dict(checkpoint["discriminator"])
    return network.to(memory_format=torch.channels_last).requires_grad_(False).eval()


# ---- A model and what it can do: arrays in, arrays out, also for notebooks -----------------------

@dataclass
class Model:
    """The two networks of a checkpoint, ready for use, and what they were trained on."""
    generator: torch.nn.Module                # the average of G, whose images are reported
    discriminator: torch.nn.Module | None     # None where the file holds none that segments
    preset: str
    class_names: list                         # N names
    palette: np.ndarray                       # (N, 3) uint8
    ignore_label: int | None
    size: tuple                               # (H, W) in training
    settings: dict                            # of the training
    step: int


def load_model(path=None, device="cpu"):
    """Checkpoint file -> Model. Without a path: the newest run, else assets/toy.pt. UserError."""
    checkpoint = load_checkpoint(find_checkpoint(path))
    generator = build_generator(checkpoint).to(device)
    discriminator = build_discriminator(checkpoint)
    if discriminator is not None:
        discriminator.to(device)
    about = checkpoint["dataset"]
    return Model(generator, discriminator, about["preset"], about["class_names"],
                 np.array(about["palette"], np.uint8), about["ignore_label"],
                 tuple(about["size"]), checkpoint["settings"], checkpoint["step"])


@torch.no_grad()
def paint(generator, labels, noise, batch_size=8):
    """x̂ = G(z, t) as pictures, (B, H, W, 3) uint8.

    labels: (B, H, W), or (H, W), one map for all pictures; array or tensor; any height and width.
    noise: (B, C), one vector per picture, or (B, C, H, W), one per pixel (oasis.draw_noise), of the
        size of the label map, or of the next multiples of generator.size_multiple.
    batch_size: pictures painted at once. It changes memory, speed, and rounding in the last bit.

    ValueError: an id beyond the generator's classes, or a noise of another size.
    """
    labels = torch.as_tensor(labels).long()
    if labels.min() < 0 or labels.max() >= generator.num_classes:
        raise ValueError(f"the ids of a label map must be 0 to {generator.num_classes - 1}")
    labels = labels.expand(len(noise), *labels.shape[-2:])
    height, width = labels.shape[1:]
    # G halves the size several times. So the map grows to the next multiple, at the bottom and at
    # the right, and the picture is cropped. Where nothing is missing, nothing changes.
    labels = repeat_border(labels, generator.size_multiple)
    if noise.ndim == 4:
        noise = repeat_border(noise, generator.size_multiple)
        if noise.shape[2:] != labels.shape[1:]:
            raise ValueError(f"noise of shape {tuple(noise.shape)}, labels {tuple(labels.shape)}")
    device = next(generator.parameters()).device
    pictures = []
    for t, z in zip(labels.split(batch_size), noise.split(batch_size)):
        images = generator(t.to(device), z.to(device))
        pictures.append(data.to_uint8(images))
    return np.concatenate(pictures)[:, :height, :width]


def repeat_border(tensor, multiple):
    """(..., H, W) -> height and width are multiples: the last row, the last column once more."""
    height, width = tensor.shape[-2:]
    rows = torch.arange(height + -height % multiple).clamp(max=height - 1)
    columns = torch.arange(width + -width % multiple).clamp(max=width - 1)
    return tensor[..., rows, :][..., columns]


@torch.no_grad()
def predict_labels(discriminator, photo):
    """D as a segmentation network (Figure 4): photo (H, W, 3) uint8 -> labels (H, W) int64.

    Each pixel gets the likeliest of the N real classes. Channel N, "fake", is left out: the photo
    is real, and a label map has no such class.
    """
    device = next(discriminator.parameters()).device
    image = torch.tensor(photo, device=device, dtype=torch.float32).permute(2, 0, 1) / 127.5 - 1
    logits = discriminator(image[None])[0]                            # (N+1, H, W)
    return logits[:-1].argmax(0).cpu().numpy()


def interpolate(start, end, steps):
    """A walk from one noise to another, both ends included: (C,), (C,) -> (steps, C).

    Noise per pixel: (C, H, W), (C, H, W) -> (steps, C, H, W). Channels that hold one number at all
    pixels are the vector; the others are the field, drawn at every pixel. The vector and the field
    turn each by itself, so each keeps its variance at every step.
    """
    if start.ndim == 1:
        return turn(start, end, steps)
    constant = (start == start[:, :1, :1]) & (end == end[:, :1, :1])
    vector = constant.flatten(1).all(1)                               # (C,) bool
    walk = start.new_empty(steps, *start.shape)
    for part in (vector, ~vector):
        walk[:, part] = turn(start[part], end[part], steps)
    return walk


def turn(start, end, steps):
    """interpolate() for numbers of one kind, all taken as one long vector.

    The vector turns along the sphere at a steady rate. A vector of 64 Gaussian numbers has a length
    near 8 almost always, and G knows no others. The middle of the straight line has a length near
    5.7.
    """
    a = start.flatten() / start.norm()
    b = end.flatten() / end.norm()
    angle = torch.arccos((a @ b).clamp(-0.999999, 0.999999))      # not 0, as it divides below
    t = torch.linspace(0, 1, steps)[:, None].to(start)
    direction = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    walk = direction * torch.lerp(start.norm(), end.norm(), t)
    walk = walk.view(steps, *start.shape)
    walk[-1], walk[0] = end, start                                # the ends to the last bit
    return walk


# ---- python sample.py: what is painted -----------------------------------------------------------

def find_scenes(options, model):
    """Yields (name, labels (H, W) int64 or None, photo (H, W, 3) uint8 or None), one by one.

    Files of --labels hold the ids of the data set's own archive. Where no files are named, label
    maps and photos come from the validation set. UserError: a file that cannot be read, or with ids
    that the model does not know.
    """
    size = options.size or model.size
    if options.labels is None and not options.recreate:
        root = options.data_root or model.settings["data_root"]
        dataset = data.open_dataset(model.preset, "val", size, root,
                                    seed=model.settings["data_seed"])
        for i in range(min(len(dataset), options.limit or 8)):
            image, labels = dataset[i]
            yield dataset.names[i], labels.numpy(), data.to_uint8(image[None])[0]
        return
    path = Path(options.labels or options.recreate)
    files = {path.stem: path}
    if path.is_dir():
        files = data.list_files(path, data.PNGS if options.labels else data.PHOTOS)
    table = data.id_table(model.preset, len(model.palette), model.ignore_label)
    # The colours of one's own classes.txt tell whether the ids of a palette png are right.
    colours = model.palette if model.preset in data.OWN else None
    for name, file in list(files.items())[:options.limit]:
        if options.labels:
            yield name, data.read_label_map(file, table, options.size, colours), None
        else:
            yield name, None, data.read_photo(file, size, upright=True)


def recreate(model, photo, folder, name):
    """Figure 4: the label map that D sees in a photo, kept as a png that --labels reads again."""
    labels = predict_labels(model.discriminator, photo)
    num_classes = len(model.palette)
    # The program reads the ids, which are those of the data set's own files; the eye the palette.
    image = Image.fromarray(data.file_ids(model.preset, num_classes)[labels])
    table = data.id_table(model.preset, num_classes)
    image.putpalette(model.palette[table.clip(0)].tobytes())
    folder.keep(image, name)
    return labels


def find_region(options, model, labels):
    """The pixels to change, bool (H, W), or None for all. UserError: no such class."""
    if options.resample_mask:
        # Resized, because nobody draws well on a picture of 64×64 pixels.
        region = data.read_photo(options.resample_mask, labels.shape).mean(axis=2) > 127
        if region.all():
            raise UserError(f"{options.resample_mask}: is white everywhere; what shall stay must "
                            f"be black (transparent pixels count as white)")
        return region
    if options.resample_class is None:
        return None
    for k, name in enumerate(model.class_names):
        if options.resample_class in (name, str(k)):
            return labels == k
    raise UserError(f"--resample-class: there is no class {options.resample_class!r}; there are "
                    f"{', '.join(model.class_names)}")


def make_noise(options, generator, size, region):
    """The noise of each picture of a label map of size (H, W) -> K names, noise of K pictures.

    region: bool (H, W), the pixels to change, or None for the whole picture.
    """
    first, second = options.seed, options.seed + 1
    if options.interpolate:
        # A walk: b moves from a to the noise of the next seed.
        ends = oasis.draw_noise([first, second], size, generator.noise_dim, generator.pixel_noise)
        b = interpolate(ends[0], ends[1], options.interpolate)
        names = [f"walk{first}-{second}_{k:03d}of{len(b)}" for k in range(1, len(b) + 1)]
    else:
        # Figure 1, globally: every picture has a noise b of its own. The first one is a.
        seeds = range(first, first + options.num)
        b = oasis.draw_noise(seeds, size, generator.noise_dim, generator.pixel_noise)
        names = [f"seed{seed}" for seed in seeds]
    if region is not None:
        # Figure 1, locally: where(region, b, a). In the first picture b is a. It has noise at every
        # pixel like the others, so what G cannot reach from the region is equal to the last bit.
        b = oasis.local_noise(b[:1].expand_as(b), b, region)
    return names, b


# ---- python sample.py: files and the command line ------------------------------------------------

class PictureFolder:
    """The folder of --out, which counts the files that are written.

    UserError: it cannot be written. That shows at the start, not after the first picture.
    """

    def __init__(self, path):
        self.path, self.count = Path(path), 0
        with data.write_whole(self.path / "first_try") as partial:
            partial.touch()
        (self.path / "first_try").unlink(missing_ok=True)

    def keep(self, image, name, **options):
        """PIL image -> a file of this name, never half of it."""
        with data.write_whole(self.path / name) as partial:
            image.save(partial, **options)
        self.count += 1


def paint_row(model, scene, options, folder):
    """Paint and keep all pictures of a label map -> a row of the contact sheet.

    scene: see find_scenes. The row, {caption: picture}, begins with what was given. It is empty
    where the map has no pixels to change.
    """
    name, labels, photo = scene
    row, words = {}, [name]
    if options.size:
        words.append("{}x{}".format(*options.size))
    if labels is not None:
        row["label map"] = model.palette[labels]
    if options.recreate is not None:
        labels = recreate(model, photo, folder, "_".join(words + ["labels.png"]))
        row["photo"], row["D sees"] = photo, model.palette[labels]
        words.append("recreated")
    region = find_region(options, model, labels)
    if region is not None:
        if not region.any():
            return {}
        words.append(f"seed{options.seed}_resample-{find_place(options)}")
    names, noise = make_noise(options, model.generator, labels.shape, region)
    # One by one: so a picture is the same to the last bit, whatever is painted beside it.
    pictures = list(paint(model.generator, labels, noise, batch_size=1))
    for name, picture in zip(names, pictures):
        row[name] = picture
        folder.keep(Image.fromarray(picture), "_".join(words + [f"{name}.png"]))
    if options.interpolate:
        keep_walk(pictures, folder, "_".join(words + [names[0].replace("_001of", "_all")]))
    return row


def find_place(options):
    """The word for --resample-class or --resample-mask in names of files; "" without them."""
    place = options.resample_class or options.resample_mask or ""
    return Path(place).stem.replace(" ", "-")


def keep_walk(pictures, folder, name):
    """A png with all pictures of a walk, and a gif that goes there and back, without an end."""
    strip = data.picture_grid([pictures], scale=enlargement(pictures))
    folder.keep(strip, f"{name}.png")
    frames = [Image.fromarray(picture) for picture in pictures + pictures[-2:0:-1]]
    folder.keep(frames[0], f"{name}.gif", append_images=frames[1:], save_all=True, loop=0,
                duration=90)


def keep_sheet(rows, folder, words):
    """All rows in one picture -> the path of the file, which is called by these words."""
    pictures = [list(row.values()) for row in rows]
    sheet = data.picture_grid(pictures, list(rows[0]), enlargement(sum(pictures, [])))
    name = "_".join(["contact_sheet"] + words) + ".png"
    folder.keep(sheet, name)
    return folder.path / name


def enlargement(pictures):
    """How many times pictures are enlarged where they stand together.

    The highest gets 192 pixels or less, so that a picture of 64×64 can be seen without a lens.
    """
    highest = max(len(picture) for picture in pictures)
    return max(1, 192 // highest)


def whole_number(least, most=2 ** 32 - 1):
    """For argparse: reads a whole number, and refuses one outside least … most.

    most: PyTorch's seeds have 32 bits; beyond them the same noises come again.
    """
    def read(text):
        if not text.removeprefix("-").isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number, {least} to {most}")
        return int(text)
    return read


def parse_options(argv):
    """Command line -> (options, the words that call the contact sheet). UserError.

    Two commands that ask for different things write two contact sheets, unless they differ only in
    the folder of a file.
    """
    parser = argparse.ArgumentParser("sample.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group().add_argument
    where = parser.add_mutually_exclusive_group().add_argument
    add("--checkpoint", metavar="FILE", help="latest.pt or best.pt of a run")
    what("--labels", metavar="FILE|DIR", help="label maps: pngs of ids, palette pngs")
    what("--recreate", nargs="?", const="", metavar="PHOTO|DIR", help="no value: validation photos")
    where("--resample-class", metavar="NAME|ID", help="change only these pixels; the first picture "
          "stays as it is")
    where("--resample-mask", metavar="FILE", help="change only where this picture is white")
    add("--interpolate", type=whole_number(2), metavar="K", help="K pictures on the way from seed "
        "S to S + 1")
    add("--num", type=whole_number(1), default=4, metavar="K", help="pictures per label map (4)")
    add("--seed", type=whole_number(0), default=0, metavar="S", help="of the first picture (0); "
        "the next has S + 1")
    add("--limit", type=whole_number(1), metavar="M", help="number of label maps (8, or all files)")
    add("--size", type=whole_number(1), nargs=2, metavar=("H", "W"), help="resize maps and photos")
    add("--data-root", metavar="DIR", help="the data set, if it has moved since training")
    add("--out", metavar="DIR", help="folder for the pictures")
    options = parser.parse_args(argv)

    words = []
    for name, value in vars(options).items():
        option = name.replace("_", "-")
        if value == "" and name != "recreate":        # --labels "$MAPS" without such a variable
            raise UserError(f"--{option}: the name is empty")
        if value == parser.get_default(name) or name in ("checkpoint", "data_root", "out"):
            continue
        if name == "size":
            value = "{}x{}".format(*value)
        words.append(f"{option}-{Path(str(value)).stem}".rstrip("-").replace(" ", "-"))
    return options, words


@data.exit_in_words("sample.py")
def main(argv=None):
    """Paints what the options ask for; prints the model, the contact sheet, how many files."""
    options, words = parse_options(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = find_checkpoint(options.checkpoint)
    model = load_model(path, device)
    print(f"{path}: {model.preset}, {len(model.palette)} classes, step {model.step}, on {device}")
    if options.recreate is not None and model.discriminator is None:
        raise UserError(f"{path}: holds no discriminator that could read label maps")
    run = f"{path.resolve().parent.name}-{path.stem}-step{model.step}"
    folder = PictureFolder(options.out or Path("samples", run))
    rows = []
    for scene in tqdm(find_scenes(options, model), "painting", disable=None):
        row = paint_row(model, scene, options, folder)
        if row and len(rows) < 16:                    # a sheet has 16 rows at most
            rows.append(row)
    if not rows:
        raise UserError("none of the label maps has a pixel to change")
    sheet = keep_sheet(rows, folder, words)
    print(f"{sheet}; {folder.count} files written")
    if find_place(options):
        print(f"The first picture of each row has the noise of seed {options.seed} everywhere")


if __name__ == "__main__":
    main()
