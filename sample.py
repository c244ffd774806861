"""Draw scenes with a trained model: Figure 1 (other noise, also in one place only) and Figure 4.

    python sample.py                             # four noises for each of eight label maps
    python sample.py --resample-class sky        # Figure 1: another sky, the rest stays
    python sample.py --resample-mask area.png    # ... other noise where this picture is white
    python sample.py --interpolate 12            # a walk between two noises: strip and gif
    python sample.py --recreate                  # Figure 4: photo -> label map -> scenes
    python sample.py --labels maps --num 8       # your own label maps, eight noises each

One expression is the whole idea: x̂ = G(where(region, b, a), t). The noise is an input beside the
label map t and has a vector at every pixel (Sec. 2, "3D noise"). Pixels of the region get noise
vector b, all others keep a. The modes differ in the region and in b only: the whole picture, one
class, a drawn area, or a b that moves. Re-creation changes t instead: D reads it off a photo.

The model is that of --checkpoint, else of the newest run, else assets/toy.pt. Pictures go to --out,
else to samples/. Their names carry label map, seed and edit. A contact sheet shows them together.
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
    runs = sorted(Path("runs").glob("*/latest.pt"), key=lambda file: file.stat().st_mtime)
    included = Path(__file__).resolve().parent / "assets" / "toy.pt"
    return Path(path or (runs[-1] if runs else included))


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
    """The averaged generator, whose images the paper reports; in eval mode, without gradients."""
    module, name = checkpoint["generator_class"].rsplit(".", 1)
    # Only a variant's generator lives elsewhere; a file must not choose what is imported.
    module = importlib.import_module(module if module.startswith("extras.") else "oasis")
    network = getattr(module, name)(**checkpoint["generator_args"])
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
    generator: torch.nn.Module                # the averaged one, whose images are reported
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
    G, D = build_generator(checkpoint), build_discriminator(checkpoint)
    known = checkpoint["dataset"]
    return Model(G.to(device), D and D.to(device), known["preset"], known["class_names"],
                 np.array(known["palette"], np.uint8), known["ignore_label"],
                 tuple(known["size"]), checkpoint["settings"], checkpoint["step"])


@torch.no_grad()
def paint(generator, labels, noise, batch_size=8):
    """x̂ = G(z, t) as pictures, (B, H, W, 3) uint8.

    labels: (B, H, W) int64, or (H, W), one map for all pictures; array or tensor.
    noise: (B, C), one vector per picture, or (B, C, H, W), one per pixel (oasis.local_noise).
    batch_size: pictures drawn at once. It changes memory and speed, not the pictures.
    """
    device = next(generator.parameters()).device
    labels = torch.as_tensor(labels).expand(len(noise), *labels.shape[-2:])
    return np.concatenate([data.to_uint8(generator(t.to(device), z.to(device)))
                           for t, z in zip(labels.split(batch_size), noise.split(batch_size))])


@torch.no_grad()
def predict_labels(discriminator, photo):
    """D as a segmentation network (Figure 4): photo (H, W, 3) uint8 -> labels (H, W) int64.

    Each pixel gets the likeliest of the N real classes. Channel N, "fake", is left out: the photo
    is real, and a label map has no such class.
    """
    device = next(discriminator.parameters()).device
    image = torch.tensor(photo, device=device, dtype=torch.float32).permute(2, 0, 1) / 127.5 - 1
    return discriminator(image[None])[0, :-1].argmax(0).cpu().numpy()


def interpolate(start, end, steps):
    """A walk from one noise vector to another, both ends included: (C,), (C,) -> (steps, C).

    It turns along the sphere at a steady rate. A vector of 64 Gaussian numbers has a length near 8
    almost always, and G knows no others. The middle of the straight line has a length near 5.7.
    """
    t = torch.linspace(0, 1, steps)[:, None]
    a, b = start / start.norm(), end / end.norm()
    angle = torch.arccos((a @ b).clamp(-0.999999, 0.999999))      # not 0, as it divides below
    direction = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    walk = direction * torch.lerp(start.norm(), end.norm(), t)
    return torch.stack([start, *walk[1:-1], end])                 # the ends to the last bit


def mean_change(before, after, region):
    """How local is local? Mean |after - before| on the scale of [-1, 1] -> (inside, outside).

    before: (H, W, 3) uint8. after: (K, H, W, 3) uint8. region: bool (H, W).
    """
    change = np.abs(np.asarray(after, float) - before).mean(axis=(0, 3)) / 127.5
    return [(change * part).sum() / max(part.sum(), 1) for part in (region, ~region)]


# ---- python sample.py ----------------------------------------------------------------------------

def find_scenes(args, model):
    """Yields (name, labels (H, W) int64 or None, photo (H, W, 3) uint8 or None), one by one.

    Files of --labels hold the ids of the dataset's own archive. Without files named, label maps and
    photos come from the validation set.
    """
    size, path = args.size or model.size, Path(args.labels or args.recreate or "")
    if args.labels or args.recreate:
        endings = data.PNGS if args.labels else data.PHOTOS
        files = data.list_files(path, endings) if path.is_dir() else {path.stem: path}
        table = data.id_table(model.preset, len(model.class_names))
        for name, path in list(files.items())[:args.limit]:
            yield ((name, data.read_label_map(path, table, args.size), None) if args.labels else
                   (name, None, data.read_photo(path, size, upright=True)))
    else:
        s = model.settings
        dataset = data.open_dataset(model.preset, "val", size, args.data_root or s["data_root"],
                                    seed=s["data_seed"], subset=s.get("subset") or None)
        for i in range(min(len(dataset), args.limit or 8)):
            image, labels = dataset[i]
            yield dataset.names[i], labels.numpy(), data.to_uint8(image[None])[0]


def recreate(model, photo, path):
    """Figure 4: the label map that D sees in a photo, kept as a png that --labels reads again."""
    labels, key = predict_labels(model.discriminator, photo), (model.preset, len(model.palette))
    # The program reads the ids, which are those of the dataset's own files; the eye the palette.
    image = Image.fromarray(data.file_ids(*key)[labels])
    image.putpalette(model.palette[data.id_table(*key).clip(0)].tobytes())
    save(image, path)
    return labels


def find_region(args, model, labels):
    """The pixels to change, bool (H, W), or None for all. UserError: no such class."""
    if args.resample_mask:
        # Resized, because nobody draws well on a picture of 64×64 pixels.
        return data.read_photo(args.resample_mask, labels.shape).mean(axis=2) > 127
    if args.resample_class is None:
        return None
    word, names = args.resample_class, model.class_names
    found = [k for k, name in enumerate(names) if word in (name, str(k))]
    if not found:
        raise UserError(f"there is no class {word!r}; there are {', '.join(names)}")
    return labels == found[0]


def make_noise(args, region, noise_dim):
    """The noise of each picture of a label map -> K names, noise (K, C) or (K, C, H, W).

    region: bool (H, W), the pixels to change, or None for the whole picture.
    """
    # Figure 1, globally: every picture has a noise vector b of its own. The first one is a.
    seeds = range(args.seed, args.seed + args.num + (region is not None))
    names, b = [f"seed{s}" for s in seeds], oasis.noise_from_seeds(seeds, noise_dim)
    # A walk: b moves from a to the noise of the next seed.
    if args.interpolate:
        ends = oasis.noise_from_seeds([args.seed, args.seed + 1], noise_dim)
        b = interpolate(*ends, args.interpolate)
        names = [f"{names[0]}-to-{args.seed + 1}_{k:03d}of{len(b)}" for k in range(1, len(b) + 1)]
    # Figure 1, locally: where(region, b, a). The first picture, a everywhere, has a vector per
    # pixel, too. The arithmetic is the same, so what G cannot reach is equal to the last bit.
    if region is not None:
        b = oasis.local_noise(b[:1].expand_as(b), b, region)
    return names, b


def save(image, path, **options):
    """PIL image -> file, never half of it."""
    with data.write_whole(path) as partial:
        image.save(partial, **options)


def draw_scene(model, name, labels, photo, args, start, folder):
    """Draw and save all pictures of a label map -> (row of the contact sheet, mean_change or None).

    The row, {caption: picture}, begins with what was given. {}: the map has no pixels to change.
    start: the words for file names that all pictures have in common.
    """
    row = {} if labels is None else {"label map": model.palette[labels]}
    stem = str(folder / name) + ("_{}x{}".format(*args.size) if args.size else "")
    if args.recreate is not None:
        labels = recreate(model, photo, Path(f"{stem}_labels.png"))
        row |= {"photo": photo, "D sees": model.palette[labels]}
        stem = f"{stem}_recreated"
    region = find_region(args, model, labels)
    if region is not None and not region.any():
        return {}, None
    names, noise = make_noise(args, region, model.generator.noise_dim)
    drawn = [*paint(model.generator, labels, noise)]
    for name, picture in zip(names, drawn):
        save(Image.fromarray(picture), Path(f"{stem}{start}_{name}.png"))
    if args.interpolate:          # one png with all pictures, and a gif that goes there and back
        path = Path(f"{stem}{start}_{names[0]}.png".replace("_001of", "_walk"))
        save(data.picture_grid([drawn]), path)
        gif, *rest = [Image.fromarray(picture) for picture in drawn + drawn[-2:0:-1]]
        save(gif, path.with_suffix(".gif"), append_images=rest, save_all=True, loop=0, duration=90)
    change = None if region is None else mean_change(drawn[0], drawn[1:], region)
    return row | dict(zip(names, drawn)), change


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        "sample.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, what, where = (group.add_argument for group in (
        parser, parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()))
    add("--checkpoint", metavar="FILE", help="latest.pt or best.pt of a run")
    what("--labels", metavar="FILE|DIR", help="label maps: pngs of ids, palette pngs")
    what("--recreate", nargs="?", const="", metavar="PHOTO|DIR", help="no value: validation photos")
    where("--resample-class", metavar="NAME|ID", help="change only these pixels")
    where("--resample-mask", metavar="FILE", help="change only where this picture is white")
    add("--interpolate", type=int, metavar="K", help="K pictures on the way from seed S to S + 1")
    add("--num", type=int, default=4, metavar="K", help="pictures per label map (default: 4)")
    add("--seed", type=int, default=0, metavar="S", help="of the first picture; the next has S + 1")
    add("--limit", type=int, metavar="M", help="number of label maps (default: 8 or all files)")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="resize label maps and photos")
    add("--data-root", metavar="DIR", help="the dataset, if it has moved since training")
    add("--out", metavar="DIR", help="folder for the pictures")
    return parser.parse_args(argv)


@data.exit_in_words("sample.py")
def main(argv=None):
    """Draws what the options ask for; prints the model, the contact sheet's path, the change."""
    args = parse_arguments(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = find_checkpoint(args.checkpoint)
    model = load_model(path, device)
    print(f"{path}: {model.preset}, {len(model.palette)} classes, step {model.step}, on {device}")
    if args.recreate is not None and not model.discriminator:
        raise UserError(f"{path}: holds no discriminator that could read label maps")
    folder = Path(args.out or f"samples/{path.resolve().parent.name}-{path.stem}-step{model.step}")
    place = Path(args.resample_class or args.resample_mask or "").stem.replace(" ", "-")
    start = f"_seed{args.seed}_resample-{place}" if place else ""
    rows, changes, old = [], [], set(folder.glob("*"))
    for scene in tqdm(find_scenes(args, model), "drawing", disable=None):
        row, change = draw_scene(model, *scene, args, start, folder)
        if row:
            rows, changes = [*rows, row][:16], [*changes, change]     # a sheet has 16 rows at most
    if not rows:
        raise UserError("none of the label maps has a pixel to change")
    kind = "_recreated" * (args.recreate is not None) + start + "_walk" * bool(args.interpolate)
    sheet, scale = folder / f"contact_sheet{kind}.png", 2 if max(model.size) <= 128 else 1
    save(data.picture_grid([list(row.values()) for row in rows], list(rows[0]), scale), sheet)
    print(f"{sheet}; {len(set(folder.glob('*')) - old)} new files")
    if place:
        print("mean change: {:.4f} in the region, {:.4f} outside".format(*np.mean(changes, 0)))


if __name__ == "__main__":
    main()
