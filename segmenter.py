"""mIoU: a segmentation network reads the label map back from a picture.

How well a generated image follows its label map is measured by a *fixed* network trained on real
photos: where it recognises what the label map asked for, the image is both right and realistic. Any
network may do it (load_exported); where none is at hand, train_segmenter trains one on the
dataset's own photos. The network is part of the score: mIoU of different networks cannot be
compared.
"""

import hashlib
import zipfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.export.passes import move_to_device_pass
from torch.nn.utils import parametrize
from tqdm import tqdm

import data
import layouts
import oasis
from distances import MetricsError, file_hash

# ---- Several processes ---------------------------------------------------------------------------


def process():
    """(rank, number of processes); (0, 1) outside torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def quiet():
    """For tqdm's `disable`: a bar only in the first process, and only on a terminal (its None)."""
    return True if process()[0] else None


def add_over_processes(tensor):
    """Sum of this tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def everywhere(flag, device):
    """Is this true in every process? Processes that branch on it then all take the same branch."""
    misses = torch.tensor(0.0 if flag else 1.0, device=device)
    return add_over_processes(misses).item() == 0


# ---- Confusion matrix, mIoU ----------------------------------------------------------------------


def confusion_matrix(prediction, target, num_classes, ignore_label=None):
    """How many pixels of each class (row) were given each name (column): (N, N) int64.

    prediction, target: int64 tensors of one shape, ids 0 … N−1. Pixels whose target is ignore_label
    are not counted.
    """
    prediction, target = prediction.flatten(), target.flatten()
    for what, ids in (("prediction", prediction), ("target", target)):
        if ids.numel() and (ids.min() < 0 or ids.max() >= num_classes):
            raise MetricsError(f"the {what} holds ids {ids.min()} to {ids.max()}, possible are 0 "
                               f"to {num_classes - 1}")
    if ignore_label is not None:
        counted = target != ignore_label
        prediction, target = prediction[counted], target[counted]
    pairs = target * num_classes + prediction
    return torch.bincount(pairs, minlength=num_classes ** 2).view(num_classes, num_classes)


def class_iou(confusion):
    """Intersection over union of each class, (N,) float64; NaN where a class never occurs."""
    confusion = confusion.double()
    right = confusion.diag()
    return right / (confusion.sum(0) + confusion.sum(1) - right)


def mean_iou(confusion):
    """Mean of class_iou over the classes that occur, in labels or in prediction. A float."""
    return class_iou(confusion).nanmean().item()


def pixel_accuracy(confusion):
    """Share of the counted pixels that were named right. A float."""
    return (confusion.diag().sum() / confusion.sum()).item()


class Segmenter:
    """A network that names the class of every pixel, whoever trained it, as dataset's class ids.

    network: images (B, 3, h, w) in [−1, 1] -> logits (B, K, h', w'). table: for each of its K
    classes the id in the dataset, or −1 where the dataset has no such class: then the network's
    next best answer counts. Classes that no entry names (Cityscapes' 16 unevaluated ones) are not
    scored. size: what images are resized to for it, (H, W) or None for no resizing.
    """

    def __init__(self, network, dataset, table=None, size=None, description=""):
        self.network, self.size, self.description = network, size, description
        table = torch.arange(dataset.num_classes) if table is None else torch.as_tensor(table)
        # "Unknown" is never scored, so nobody may answer with it either.
        self.table = table.masked_fill(table == dataset.ignore_label, -1) \
            if dataset.ignore_label is not None else table
        self.num_classes, self.ignore_label = dataset.num_classes, dataset.ignore_label
        self.scored = torch.isin(torch.arange(self.num_classes), self.table)

    def __call__(self, images, size):
        """images (B, 3, H, W) -> predicted label maps (B, *size) int64."""
        if self.size and images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        logits = self.network(images)
        if logits.ndim != 4 or logits.shape[1] != len(self.table):
            raise MetricsError(f"{self.description} gives logits of shape {tuple(logits.shape)}, "
                               f"but (B, {len(self.table)}, H, W) is needed; its classes are "
                               f"matched to the dataset's by a label map file, one line for each")
        if logits.shape[2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear")
        table = self.table.to(logits.device)
        logits = logits.float().masked_fill((table < 0).view(-1, 1, 1), -torch.inf)
        return table[logits.argmax(1)]

    def confusion(self, images, labels):
        """Confusion matrix (N, N) float64 of these images with labels (B, H, W)."""
        counts = confusion_matrix(self(images, labels.shape[1:]), labels, self.num_classes,
                                  self.ignore_label)
        return counts * self.scored.to(counts.device)[:, None].double()


def scoring_network(num_classes, channels, seed=0):
    """The discriminator's U-Net with N outputs: a Discriminator of N − 1 classes has N − 1 + 1.

    Without spectral normalisation and with larger initial weights: those hold back a player of a
    game; this network plays none, and learns several times faster free of them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = oasis.Discriminator(num_classes - 1, channels)
        for module in network.modules():
            if parametrize.is_parametrized(module):
                parametrize.remove_parametrizations(module, "weight")
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, oasis.LEAK)
    return network


def default_plan(size):
    """Hyper-parameters by size: minutes on two CPU cores below 256×256, else a GPU's work."""
    if size[0] * size[1] < 256 * 256:
        return dict(channels=(24, 32, 48, 96), steps=600, batch_size=8, lr=6e-3)
    return dict(channels=(64, 96, 128, 192, 256), steps=10_000, batch_size=16, lr=1e-3)


def train_segmenter(dataset, device, steps=None, *, channels=None, batch_size=None, lr=None, seed=0,
                    workers=0):
    """Train the network that scores mIoU where no published one is at hand, on real photos.

    dataset: the training split. What is None comes from default_plan. Adam, learning rate up to lr
    and down again. Under torchrun every process takes its share of each batch. Returns an
    oasis.Discriminator in eval mode, logits (B, N, H, W).
    """
    plan = default_plan(dataset.size)
    steps, channels = steps or plan["steps"], channels or plan["channels"]
    batch_size, lr = batch_size or plan["batch_size"], lr or plan["lr"]
    rank, world = process()
    network = scoring_network(dataset.num_classes, channels, seed)
    network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    batch_size = max(world, min(batch_size, len(dataset)) // world * world)
    sampler = data.BatchSampler(len(dataset), batch_size, seed, rank, world)
    batches = iter(data.make_loader(dataset, sampler, workers))
    for _ in tqdm(range(steps), "training the segmenter", leave=False, disable=quiet()):
        images, labels = (t.to(device) for t in next(batches))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        weights = balance(labels, dataset)
        loss = F.cross_entropy(logits.float(), labels, weights, reduction="sum")
        loss = loss / weights[labels].sum().clamp(min=1e-9)    # a batch may be all unknown
        optimizer.zero_grad()
        loss.backward()
        for parameter in network.parameters():
            add_over_processes(parameter.grad).div_(world)
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False).eval()


def balance(labels, dataset):
    """Class weights (N,): 1/√(pixels of the class in this batch), 0 for unknown.

    Half way between the plain loss, which forgets small classes, and OASIS's full balance, which
    makes a segmenter see them everywhere.
    """
    pixels = torch.bincount(labels.flatten(), minlength=dataset.num_classes).float()
    weights = pixels.clamp(min=1).rsqrt()
    if dataset.ignore_label is not None:
        weights[dataset.ignore_label] = 0
    return weights


def train_segmenter_file(dataset, device, steps=None, **options):
    """train_segmenter, and the dictionary that is kept in segmenter.pt: weights and description."""
    steps = steps or default_plan(dataset.size)["steps"]
    network = train_segmenter(dataset, device, steps, **options)
    return {"format": "oasis-segmenter-1", "channels": network.config["channels"], "steps": steps,
            "class_names": list(dataset.class_names), "size": list(dataset.size),
            "dataset": dataset.name, "network": network.state_dict()}


def segmenter_from(content, dataset, device, path):
    """The dictionary of a segmenter.pt -> Segmenter. MetricsError if it is not for this dataset."""
    if not isinstance(content, dict) or content.get("format") != "oasis-segmenter-1":
        raise MetricsError(f"{path}: not a segmenter trained by train.py or metrics.py")
    for what, own in (("class_names", list(dataset.class_names)), ("size", list(dataset.size))):
        if content[what] != own:
            raise MetricsError(f"{path}: trained with other {what.replace('_', ' ')} than the "
                               f"dataset's; use another file, or delete it to train a new one")
    network = scoring_network(dataset.num_classes, content["channels"])
    oasis.restore(network, content["network"], path).requires_grad_(False)
    network.to(device, memory_format=torch.channels_last)
    return Segmenter(network, dataset, description=f"U-Net trained {content['steps']} steps on "
                     f"real {content['dataset']} train images (weights {network_hash(network)})")


def load_segmenter(path, dataset, device):
    """A trained segmenter from its file -> Segmenter. MetricsError, oasis.CheckpointError."""
    return segmenter_from(oasis.read_tensors(path), dataset, device, path)


def encoder_features(network, images):
    """Deepest encoder features of the U-Net, averaged over space: (B, channels[-1])."""
    for block in network.encoder:
        images = block(images)
    return images.mean((2, 3))


def network_hash(network):
    """First 8 hex digits of the SHA-256 of all weights: names a network without a file."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


# ---- Your own segmenter --------------------------------------------------------------------------


def load_exported(path, dataset, device, size=None, label_map=None):
    """A network saved by torch.export.save -> Segmenter.

    The program takes images (B, 3, h, w) in [−1, 1], B and, without `size`, h and w free, and
    returns logits (B, K, h', w'); its own normalisation of the input belongs inside it. label_map:
    see read_class_table; None: its classes are the dataset's. MetricsError.
    """
    path = Path(path)
    if not path.is_file():
        raise MetricsError(f"{path}: there is no such file")
    try:
        if not zipfile.is_zipfile(path):               # load() would print pages about it
            raise zipfile.BadZipFile
        program = torch.export.load(path)
    except (RuntimeError, OSError, KeyError, zipfile.BadZipFile) as e:
        raise MetricsError(f"{path}: not a program saved by torch.export.save, or cut off") from e
    module = move_to_device_pass(program, str(device)).module()

    def network(images):
        try:
            return module(images)
        except (AssertionError, RuntimeError) as e:    # the former: a size was exported as fixed
            raise MetricsError(f"{path}: refuses images of shape {tuple(images.shape)} "
                               f"({str(e).splitlines()[0]}); export it with free sizes, or say "
                               f"which size it takes") from e

    table = read_class_table(label_map, dataset) if label_map else None
    return Segmenter(network, dataset, table, size, f"{path.name} (file {file_hash(path)})"
                     + (f" at {size[0]}×{size[1]}" if size else ""))


def read_class_table(path, dataset):
    """A text file; line k: the dataset's name or id of the network's class k, "-" if it has none.

    Returns a list of ids, −1 for "-". MetricsError names the line, DataError the file.
    """
    names = {name: i for i, name in enumerate(dataset.class_names)}
    names.update({str(i): i for i in range(dataset.num_classes)}, **{"-": -1})
    lines = layouts.read_lines(Path(path), "names the dataset's class for each of the network's")
    for number, line in enumerate(lines, 1):
        if line not in names:
            raise MetricsError(f"{path}, line {number}: {line!r} is neither a class of "
                               f"{dataset.name}, nor an id below {dataset.num_classes}, nor -")
    return [names[line] for line in lines]
