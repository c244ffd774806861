"""What a trained OASIS can do: draw, re-sample, interpolate, segment. Arrays in, arrays out.

For notebooks; `sample.py` is the command line on top. No function here writes a file.

    from pictures import load_model, noise_from_seeds, paint
    model = load_model("runs/toy/latest.pt")
    pictures = paint(model.generator, labels, noise_from_seeds(range(4)))    # (4, H, W, 3) uint8

Conventions are those of oasis.py: label maps (H, W) int64, noise vectors (C,) with C = 64, sizes
(height, width). Pictures are arrays (H, W, 3) uint8, RGB. A region is a bool array (H, W).
"""

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt

import data
import layouts
import models
import oasis
from oasis import noise_from_seeds  # noqa: F401  (to be imported from here, beside the rest)

BANDS = (1, 9, 17, 33, 65)    # distances in pixels at which a local change is measured


class SampleError(ValueError):
    """A request that cannot be drawn; the message names the culprit and says what is possible."""


# ---- Noise (Sec. 2, "3D noise") ------------------------------------------------------------------


def interpolate(start, end, steps):
    """From one noise vector to another, `steps` points with both ends: (C,), (C,) -> (steps, C).

    The walk goes along the sphere. 64 Gaussian numbers almost always have a length near 8 = √64, so
    noise lives on a shell, and the middle of the straight line (length near 5.7) lies where the
    generator has never been. So the direction turns at a steady rate, and the length, which differs
    a little between the ends, grows linearly.
    """
    a, b = start / start.norm(), end / end.norm()
    angle = torch.arccos((a @ b).clamp(-1, 1))
    t = torch.linspace(0, 1, steps)[:, None]
    if torch.sin(angle) < 1e-3:        # the same direction, as far as float32 can tell
        return torch.lerp(start, end, t)
    direction = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    walk = direction * torch.lerp(start.norm(), end.norm(), t)
    walk[0], walk[-1] = start, end                           # to the last bit
    return walk


def local_noise(outside, inside, region):
    """A noise tensor that differs per pixel: `inside` where region is true, `outside` elsewhere.

    outside: (C,). inside: (K, C), one vector per picture. region: bool (H, W). -> (K, C, H, W).
    To see a change to the last bit, draw the old picture from such a tensor, too (inside=outside):
    G adds up a vector's and a tensor's products in another order (see oasis.LookUp).
    """
    region = torch.as_tensor(region)
    return torch.where(region, inside[:, :, None, None], outside[:, None, None])


def class_region(labels, ids):
    """Pixels of the given classes: label map (H, W) -> bool (H, W)."""
    return np.isin(labels, ids)


def reach(generator):
    """Distance in pixels beyond which no change of noise (or label) can be seen, to the last bit.

    The farthest path enters at the coarsest block, whose cells are s = 2^(blocks−1) pixels wide:
    two convolutions inside SPADE and two in the block carry it 4 cells on. The finer blocks, with
    cells of s/2, s/4, …, 1 pixels, add two convolutions each, together 2(s − 1) pixels, and the
    last layer adds 1. A cell is read at its first pixel and painted up to its last, s − 1 further
    right or down. Sum: 7s − 2, which is 222 pixels for six blocks.
    """
    return 7 * generator.size_multiple - 2


# ---- Pictures ------------------------------------------------------------------------------------


@torch.no_grad()
def paint(generator, labels, noise, batch_size=8):
    """x̂ = G(z, t) -> (B, H, W, 3) uint8.

    labels: (H, W), one map for all pictures, or (B, H, W). noise: (B, C), one vector per picture,
    or (B, C, H, W), see local_noise. The batch size changes speed and memory only.
    """
    device = next(generator.parameters()).device
    labels = torch.as_tensor(labels).expand(len(noise), *labels.shape[-2:])
    return np.concatenate([
        data.to_uint8(generator(some_labels.to(device), some_noise.to(device)))
        for some_labels, some_noise in zip(labels.split(batch_size), noise.split(batch_size))])


@torch.no_grad()
def predict_labels(discriminator, photo):
    """Figure 4: the discriminator as a segmentation network, (H, W, 3) uint8 -> (H, W) int64.

    Each pixel gets the likeliest of the N real classes. Channel N, "fake", is left out: the photo
    is real, and a label map has no such class.
    """
    device = next(discriminator.parameters()).device
    image = torch.from_numpy(photo.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    return discriminator(image.to(device))[0, :-1].argmax(0).cpu().numpy()


def replace_classes(labels, replacements):
    """Label map with {old id: new id} exchanged, all at once: {a: b, b: a} swaps two classes."""
    result = labels.copy()
    for old, new in replacements.items():
        result[labels == old] = new
    return result


def change_by_distance(before, after, region):
    """How local is local? Mean |after − before| by distance from the region, on the [−1, 1] scale.

    before, after: (H, W, 3) uint8. region: bool (H, W). Returns (2, 1 + len(BANDS)): the sum of
    the change and the number of pixels, inside first, then at distances [1, 9), [9, 17), ... Sums
    of several pictures can be added up.
    """
    change = np.abs(after.astype(float) - before).mean(2) / 127.5
    band = np.digitize(distance_transform_edt(~region), BANDS).ravel()
    return np.stack([np.bincount(band, change.ravel(), 1 + len(BANDS)),
                     np.bincount(band, minlength=1 + len(BANDS))])


def describe_change(change, farthest):
    """Sums and counts of change_by_distance -> the table that sample.py prints.

    farthest: the generator's reach().
    """
    mean = change[0] / np.maximum(change[1], 1)
    names = ["inside"] + [f"{a}-{b - 1} px away" for a, b in zip(BANDS, BANDS[1:])]
    names += [f"{BANDS[-1]} px or more"]
    outside = change[0, 1:].sum() / max(change[1, 1:].sum(), 1)
    lines = [f"  {name:16s} {value:.4f}"
             for name, value, count in zip(names, mean, change[1]) if count]
    ratio = f", {mean[0] / outside:.1f} times as much as outside ({outside:.4f})" if outside else ""
    return ("mean change by distance from the region, on the scale [-1, 1]:\n" + "\n".join(lines)
            + f"\n  inside{ratio}; nothing can change beyond {farthest} px")


# ---- Loading a model -----------------------------------------------------------------------------

# What the authors published models for, and their N.
NUM_CLASSES = {"ade20k": 151, "ade20k-outdoors": 151, "coco-stuff": 183, "cityscapes": 35}


def digest(*arrays):
    """A short hash of arrays, for "is this still the same?"."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(np.ascontiguousarray(array))
    return state.hexdigest()[:16]


@dataclass
class Model:
    """The two networks in eval mode, and what is known of the data they were trained on."""
    generator: oasis.Generator
    discriminator: oasis.Discriminator | None
    preset: str
    class_names: list
    palette: np.ndarray        # (N, 3) uint8
    size: tuple                # (H, W) in training
    title: str                 # for messages and folder names: checkpoint and step
    data_root: str = ""
    seed: int = 0
    kind: str = "oasis"        # one of models.MODELS

    @functools.cached_property
    def id_table(self):
        """(256,) id in a png file -> class id, −1 = not allowed.

        Files hold ids as the dataset ships them. COCO-Stuff's differ from the network's throughout,
        one of Cityscapes' does (layouts.py says why).
        """
        table = layouts.identity_table(len(self.class_names))
        if self.preset == "coco-stuff":
            table = np.concatenate([np.arange(1, 183), np.full(73, -1), [0]])
        elif self.preset == "cityscapes":
            table[34], table[255] = -1, 34
        return table

    @property
    def file_ids(self):
        """(N,) uint8: class id -> id in a png file, the reverse of id_table."""
        return np.array([np.flatnonzero(self.id_table == k)[0]
                         for k in range(len(self.class_names))], np.uint8)

    @property
    def file_palette(self):
        """(256, 3) uint8: colours by id in a file. Unused ids repeat the first, so never match."""
        used = self.id_table >= 0
        return self.palette[np.where(used, self.id_table, self.id_table[0])]

    @functools.cached_property
    def fingerprint(self):
        """Hash of the generator's weights: files that agree in it draw the same pictures."""
        return digest(*(tensor.cpu().numpy() for tensor in self.generator.state_dict().values()))


def load_model(path, preset=None, device="cpu", data_root=None):
    """A run's latest.pt or best.pt, or, with a preset, the authors' released *_EMA.pth or *_G.pth.

    A released file says nothing about its dataset, hence the preset. Its discriminator is taken
    from the *_D.pth beside it, if there is one, and ADE20K's class names from its data root, as no
    other file has them. Raises oasis.CheckpointError, SampleError or data.DataError.
    """
    path = Path(path)
    if preset:
        return place(load_released(path, preset, data_root), device)
    if path.suffix == ".pth" and path.is_file():
        raise SampleError(f"{path}: a released file does not say which classes it draws; name its "
                          f"dataset by --preset {' | '.join(NUM_CLASSES)}")
    checkpoint = oasis.load_checkpoint(path)
    known, config = checkpoint["dataset"], checkpoint["config"]
    return place(Model(
        models.generator_from(checkpoint),
        oasis.discriminator_from(checkpoint)    # SPADE's cannot read a label map off a photo
        if checkpoint["model"] == "oasis" and "discriminator" in checkpoint else None,
        known["preset"], known["class_names"], np.array(known["palette"], np.uint8),
        tuple(known["size"]), f"{path.stem}_step{checkpoint['step']:06d}",
        config["data_root"], config.get("data_seed", config["seed"]),
        checkpoint["model"]), device)


def load_released(path, preset, data_root=None):
    """The authors' generator and, where it lies beside, discriminator -> Model."""
    generator = oasis.load_released_generator(path)
    expected = NUM_CLASSES[preset]
    if generator.num_classes != expected:
        raise SampleError(f"{path}: draws {generator.num_classes} classes, but {preset} has "
                          f"{expected}; --preset must name the dataset it was trained on")
    beside = path.with_name(re.sub(r"(EMA|G)\.pth$", "D.pth", path.name))
    names = ["unknown"] + [f"class {k}" for k in range(1, expected)]
    palette = layouts.make_palette(expected, 0)
    if preset == "coco-stuff":
        names = ["unknown"] + layouts.COCO_STUFF_NAMES
    elif preset == "cityscapes":
        names = [c.name for c in layouts.cityscapes_classes()]
        palette = np.array([c.color for c in layouts.cityscapes_classes()], np.uint8)
    elif data_root:
        names = layouts.open_ade20k(Path(data_root), "val").class_names
    return Model(generator, oasis.load_released_discriminator(beside)
                 if beside != path and beside.is_file() else None,
                 preset, names, palette, data.SIZES.get(preset, (256, 256)), path.stem)


def place(model, device):
    """Both networks on the device, in the memory order that convolutions like best."""
    for network in filter(None, (model.generator, model.discriminator)):
        network.to(device, memory_format=torch.channels_last).requires_grad_(False)
    return model


def newest_checkpoint(folder="runs"):
    """latest.pt, or else best.pt, of the run folder that was written to last."""
    found = list(Path(folder).glob("*/latest.pt")) + list(Path(folder).glob("*/best.pt"))
    if not found:
        raise SampleError(f"there is no trained run in {folder}/ yet; python train.py makes one, "
                          "or --checkpoint names a file")
    run = max(found, key=lambda path: path.stat().st_mtime).parent
    return run / "latest.pt" if (run / "latest.pt") in found else run / "best.pt"


def class_id(word, class_names):
    """A class's name, or its id as a number -> id. SampleError lists what there is."""
    if word in class_names:
        return class_names.index(word)
    if word.isdecimal() and int(word) < len(class_names):
        return int(word)
    raise SampleError(f"there is no class {word!r}; there are "
                      + ", ".join(f"{k} {name}" for k, name in enumerate(class_names)))


# ---- Label maps and masks from files -------------------------------------------------------------


def read_labels(path, model, size=None):
    """A png of ids, of palette indices, or of the palette's colours -> (H, W) int64, class ids."""
    ids = data.read_label_map(path, 256, palette=model.file_palette)
    labels = data.look_up_ids(ids, model.id_table, path)
    return data.resize_labels(labels, size) if size else labels


def read_mask(path):
    """A drawn area, light on dark, of any picture format -> bool (H, W), true where it is light."""
    with data.readable(path), Image.open(path) as picture:
        mask = np.asarray(picture.convert("L")) > 127
    if not mask.any():
        raise SampleError(f"{path}: the mask is empty; paint white what shall change, the rest "
                          "black")
    return mask


def files_of(path, endings):
    """A file, or all files of a folder with one of the endings."""
    path = Path(path)
    return list(layouts.list_files(path, endings).values()) if path.is_dir() else [path]


def check_size(name, size, generator):
    """SampleError with the nearest sizes that the generator can draw, if this is none of them."""
    only, multiple, wrong = getattr(generator, "image_size", size), generator.size_multiple, []
    if tuple(size) != tuple(only):          # SPADE's with an encoder
        raise SampleError(f"{name}: is {size[0]}×{size[1]}, but a generator with an image encoder "
                          f"draws only the size it was trained for; choose it by --size "
                          f"{only[0]} {only[1]}, label maps are resized")
    for side, pixels in zip(("height", "width"), size):
        below, above = pixels // multiple * multiple, -(-pixels // multiple) * multiple
        if below != above:
            nearest = " and ".join(str(n) for n in (below, above) if n)
            wrong.append(f"its {side} is {pixels}, the nearest are {nearest}")
    if wrong:
        raise SampleError(f"{name}: this generator draws multiples of {multiple} pixels, but "
                          f"{'; '.join(wrong)}; choose by --size H W, label maps are resized")
