"""Scores: how good, how faithful and how varied the generated images are.

    python metrics.py --checkpoint runs/toy/best.pt               # scores a run of train.py
    python metrics.py --checkpoint F --data-root D --metrics fid,miou,lpips --json scores.json
    python metrics.py --real photos --fake generated              # two folders, whoever made them
    torchrun --nproc_per_node=8 metrics.py --checkpoint F --data-root D

Every score comes with its protocol in words (network and its weights, size, number of images), because
scores are only comparable when protocols agree: the same model was measured between 43 and 51 mIoU by
different people. `*_real` is the same score of real images: the ceiling of mIoU, the floor of distances.

How it is built. Most scores compare two *sets* of images. Each set is reduced to a statistic that adds up
over images: a sum of outer products (FID), a confusion matrix (mIoU), a histogram (colour, texture).
So memory does not grow with the number of images, and several processes just add up their statistics.

Conventions: images (B, 3, H, W) in [−1, 1], rounded to the 256 levels of a png before anything is
measured, so that a run and the pictures saved from it score alike. Statistics are float64. Noise comes
from one seed per image; no global random state is touched.
"""

import argparse
import hashlib
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn
from torch.nn.utils import parametrize
from torchvision.models import inception
from tqdm import tqdm

import data
import oasis

METRICS = {     # name -> what it says; a Scorer computes the ones it is asked for
    "miou": "mean intersection over union of a fixed segmentation network on generated images ↑",
    "accuracy": "share of pixels that network names right ↑",
    "fd_segmenter": "Fréchet distance between features of the trained segmenter ↓",
    "fid": "Fréchet Inception distance ↓",
    "ms_ssim": "structural similarity of images of one label map ↓ (less is more diverse)",
    "lpips": "perceptual distance of images of one label map ↑ (more is more diverse)",
    "colour": "earth mover's distance between LAB histograms ↓ (Fig. 3)",
    "texture": "χ² distance between local-binary-pattern histograms ↓ (Fig. 3)",
    "d_miou": "mIoU of OASIS's own discriminator on real images ↑ (Sec. 3: 40.0 on ADE20K)",
}


class MetricsError(ValueError):
    """A score that cannot be computed; the message names the file or value and what is possible."""


# ---- Fréchet distance ------------------------------------------------------------------------------
#
# FID (Heusel et al., 2017): describe each set of images by the mean and covariance of a network's
# features, and take the Fréchet distance between the two Gaussians with these moments.


def moments(features):
    """Features (n, d) -> (d+1, d+1) float64: Σ [1 f]ᵀ[1 f], which holds n, Σ f and Σ f fᵀ in one matrix.

    Matrices of several batches, or of several processes, simply add up.
    """
    rows = F.pad(features.double(), (1, 0), value=1.0)
    return rows.T @ rows


def mean_and_covariance(moment_matrix):
    """(d+1, d+1) sum of moments() -> mean (d,), covariance (d, d), divided by n − 1."""
    n, total = moment_matrix[0, 0], moment_matrix[0, 1:]
    mean = total / n
    return mean, (moment_matrix[1:, 1:] - torch.outer(total, mean)) / (n - 1)


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """|μ1 − μ2|² + Tr(Σ1 + Σ2 − 2 (Σ1 Σ2)^½) as a float. Tensors or arrays, (d,) and (d, d).

    The matrix Σ1 Σ2 is not symmetric, and a general square root of it is slow, complex by rounding,
    and fails where a covariance is singular. But only its trace is needed, the sum of the roots of the
    eigenvalues; and with Σ1 = V diag(λ) Vᵀ those are the eigenvalues of the symmetric matrix
    λ^½ Vᵀ Σ2 V λ^½. They cannot be negative; what rounding puts below zero is set to zero.
    """
    mu1, sigma1, mu2, sigma2 = (torch.as_tensor(t, dtype=torch.float64)
                                for t in (mu1, sigma1, mu2, sigma2))
    eigenvalues, vectors = torch.linalg.eigh(sigma1)
    half = vectors * eigenvalues.clamp(min=0).sqrt()                # V λ^½
    roots = torch.linalg.eigvalsh(half.T @ sigma2 @ half).clamp(min=0).sqrt()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * roots.sum()
    return max(0.0, distance.item())


def moment_distance(a, b):
    """Fréchet distance between two sums of moments()."""
    return frechet_distance(*mean_and_covariance(a), *mean_and_covariance(b))


# ---- Networks from elsewhere -----------------------------------------------------------------------

INCEPTION = ("https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
             "pt_inception-2015-12-05-6726825d.pth", "6726825d")
VGG16 = ("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af")
LPIPS_LINEAR = ("https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/"
                "vgg.pth", "a78928a0")


def file_hash(path):
    """The first 8 hex digits of the SHA-256 of a file: enough to tell weights apart."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]


def fetch(url, digits):
    """Path of a file in PyTorch's hub folder, downloaded once, its SHA-256 checked every time."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, path, digits, progress=False)
        except (OSError, RuntimeError) as e:        # RuntimeError: the hash of what came is wrong
            raise MetricsError(f"{url} could not be fetched ({e}); put the file at {path}") from e
    if file_hash(path) != digits:
        raise MetricsError(f"{path}: damaged or cut off, its SHA-256 does not begin with {digits}; "
                           f"delete it, or put {url} there")
    return path


def load_weights(network, path, prefix=""):
    """Weights from a file into a network built on the meta device; returns it frozen, in eval mode.

    Built there, a network takes neither memory nor random numbers before its weights arrive.
    prefix: use only the tensors under that name.
    """
    try:
        state = oasis.read_tensors(path)
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        for name, buffer in network.named_buffers():
            if name.endswith("num_batches_tracked"):        # a counter that older files lack
                state.setdefault(name, torch.zeros((), dtype=buffer.dtype))
        network.load_state_dict(state, assign=True)
    except (oasis.CheckpointError, RuntimeError, AttributeError) as e:
        reason = e if isinstance(e, oasis.CheckpointError) else f"{path}: weights of another network"
        raise MetricsError(str(reason)) from e
    return network.requires_grad_(False).eval()


def with_pool(block):
    """torchvision's Inception block with another pooling branch, its last, replaced.

    The 2015 TensorFlow network leaves the padding out of its average pools, and its very last block
    takes a maximum instead. torchvision's own branch is computed and dropped: 4 % of the time, for
    not copying three blocks.
    """
    class Block(block):
        max_pool = False

        def _forward(self, x):
            pooled = (F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else
                      F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))
            return super()._forward(x)[:-1] + [self.branch_pool(pooled)]
    return Block


class InceptionFeatures(nn.Module):
    """The network of FID: images (B, 3, H, W) in [−1, 1] -> its 2048 pooled features (B, 2048).

    weights: a file in the layout of pytorch-fid's; None: that file, downloaded once and checked.
    Images are resized to 299×299, bilinear without antialiasing, as FID always did. MetricsError.
    """

    def __init__(self, weights=None):
        super().__init__()
        path = weights or fetch(*INCEPTION)
        blocks = [inception.BasicConv2d, with_pool(inception.InceptionA), inception.InceptionB,
                  with_pool(inception.InceptionC), inception.InceptionD,
                  with_pool(inception.InceptionE), inception.InceptionAux]
        with torch.device("meta"):
            network = torchvision.models.Inception3(1008, aux_logits=False, inception_blocks=blocks,
                                                    init_weights=False)
        self.network = load_weights(network, path)
        self.network.Mixed_7c.max_pool = True
        self.network.fc = nn.Identity()             # what went into the classifier are the features
        self.weights_hash = file_hash(path)
        self.eval()

    def forward(self, images):
        return self.network(F.interpolate(images, (299, 299), mode="bilinear", align_corners=False))


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al., 2018) on VGG16, the paper's measure of diversity.

    Per layer: features of unit length at every pixel, squared differences weighted per channel by
    linear weights fitted to human judgement, mean over pixels; then the sum over five layers.
    backbone, linear: files of torchvision's VGG16 and of the weights "vgg v0.1"; None: downloaded.
    """

    LAYERS = (3, 8, 15, 22, 29)                     # the last ReLU before each pooling

    def __init__(self, backbone=None, linear=None):
        super().__init__()
        with torch.device("meta"):
            network = torchvision.models.vgg16().features[:self.LAYERS[-1] + 1]
        self.network = load_weights(network, backbone or fetch(*VGG16), "features.")
        linear = linear or fetch(*LPIPS_LINEAR)
        try:
            weights = [oasis.read_tensors(linear)[f"lin{i}.model.1.weight"] for i in range(5)]
        except (oasis.CheckpointError, KeyError, TypeError) as e:
            raise MetricsError(f"{linear}: not the linear weights of LPIPS") from e
        for i, weight in enumerate(weights):
            self.register_buffer(f"linear{i}", weight)
        self.register_buffer("mean", torch.tensor([-.030, -.088, -.188]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([.458, .448, .450]).view(3, 1, 1))
        self.weights_hash = file_hash(linear)
        self.eval()

    def forward(self, images):
        """(B, 3, H, W) in [−1, 1] -> 5 tensors (B, ·), whose squared Euclidean distances add to LPIPS."""
        x, embedding = (images - self.mean) / self.std, []
        for i, layer in enumerate(self.network):
            x = layer(x)
            if i in self.LAYERS:
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                # Σ w (a − b)² / pixels is a squared distance between vectors √(w / pixels) · a.
                scale = getattr(self, f"linear{len(embedding)}") / (x.shape[2] * x.shape[3])
                embedding.append((unit * scale.sqrt()).flatten(1))
        return embedding

    def pairwise(self, images):
        """(B, 3, H, W) -> (B·(B−1)/2,) LPIPS between all pairs."""
        return sum(F.pdist(f).square() for f in self(images))


# ---- mIoU: reading the label map back from the picture ----------------------------------------------


def confusion_matrix(prediction, target, num_classes, ignore_label=None):
    """How many pixels of each class (row) were given each name (column): (N, N) int64.

    prediction, target: int64 tensors of one shape, ids 0 … N−1. Pixels whose target is ignore_label
    are not counted.
    """
    prediction, target = prediction.flatten(), target.flatten()
    for what, ids in (("prediction", prediction), ("target", target)):
        if ids.numel() and (ids.min() < 0 or ids.max() >= num_classes):
            raise MetricsError(f"the {what} holds ids {ids.min()} to {ids.max()}, possible are 0 to "
                               f"{num_classes - 1}")
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
    """Mean of class_iou over the classes that occur, in the labels or in the prediction. A float."""
    return class_iou(confusion).nanmean().item()


def pixel_accuracy(confusion):
    """Share of the counted pixels that were named right. A float."""
    return (confusion.diag().sum() / confusion.sum()).item()


class Segmenter:
    """A network that names the class of every pixel, whoever trained it, as dataset's class ids.

    network: images (B, 3, h, w) in [−1, 1] -> logits (B, K, h', w'). table: for each of its K classes
    the id in the dataset, or −1 where the dataset has no such class: then the network's next best
    answer counts. Classes that no entry names (Cityscapes' 16 unevaluated ones) are not scored. size:
    what images are resized to for it, (H, W) or None for no resizing.
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
            raise MetricsError(f"{self.description} gives logits of shape {tuple(logits.shape)}, but "
                               f"(B, {len(self.table)}, H, W) is needed; its classes are matched to the "
                               f"dataset's by a label map file, one line for each")
        table = self.table.to(logits.device)
        logits = logits.float().masked_fill((table < 0).view(-1, 1, 1), -torch.inf)
        if logits.shape[2:] != size:
            logits = F.interpolate(logits, size, mode="nearest")
        return table[logits.argmax(1)]

    def confusion(self, images, labels):
        """Confusion matrix (N, N) float64 of these images with labels (B, H, W)."""
        counts = confusion_matrix(self(images, labels.shape[1:]), labels, self.num_classes,
                                  self.ignore_label)
        return counts * self.scored.to(counts.device)[:, None].double()


def scoring_network(num_classes, channels, seed=0):
    """The discriminator's U-Net with N outputs: a Discriminator of N − 1 classes has N − 1 + 1.

    Without spectral normalisation and with larger initial weights: those hold back a player of a game;
    this network plays none, and learns several times faster free of them.
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


def train_segmenter(dataset, device, steps=None, *, channels=None, batch_size=8, lr=None, seed=0,
                    workers=0):
    """Train the network that scores mIoU where no published one is at hand, on real training images.

    dataset: the training split. Weighted cross-entropy, α_c = 1/√(pixels of c in the batch), between
    the plain loss, which forgets small classes, and full balance, which sees them everywhere; unknown
    weighs 0. Adam, learning rate up to lr and down again. Under torchrun every process takes a share of
    each batch. Defaults by size: a small network, 600 steps, below 256×256; else 10,000 of a large.
    Returns an oasis.Discriminator in eval mode, logits (B, N, H, W).
    """
    rank, world = process()
    large = dataset.size[0] * dataset.size[1] >= 256 * 256
    channels = channels or ((64, 96, 128, 192, 256) if large else (24, 32, 48, 96))
    steps, lr = steps or (10_000 if large else 600), lr or (1e-3 if large else 6e-3)
    network = scoring_network(dataset.num_classes, channels, seed)
    network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    batch_size = max(world, min(batch_size, len(dataset)) // world * world)
    sampler = data.BatchSampler(len(dataset), batch_size, seed, rank, world)
    batches = iter(data.make_loader(dataset, sampler, workers))
    for _ in tqdm(range(steps), "training the segmenter", leave=False, disable=rank > 0):
        images, labels = (t.to(device) for t in next(batches))
        pixels = torch.bincount(labels.flatten(), minlength=dataset.num_classes).float()
        if dataset.ignore_label is not None:
            pixels[dataset.ignore_label] = torch.inf
        weights = pixels.clamp(min=1).rsqrt()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=images.is_cuda):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels, weights)
        optimizer.zero_grad()
        loss.backward()
        for parameter in network.parameters():
            add_over_processes(parameter.grad).div_(world)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False).eval()


def save_segmenter(network, dataset, steps, path):
    """Write a trained segmenter with all that is needed to use and to describe it."""
    content = {"format": "oasis-segmenter-1", "channels": network.config["channels"], "steps": steps,
               "class_names": list(dataset.class_names), "size": list(dataset.size),
               "dataset": dataset.name, "network": network.state_dict()}
    write_safely(path, lambda temporary: torch.save(content, temporary))


def load_segmenter(path, dataset, device):
    """A trained segmenter from its file -> Segmenter. MetricsError if it is not for this dataset."""
    content = oasis.read_tensors(path)
    if not isinstance(content, dict) or content.get("format") != "oasis-segmenter-1":
        raise MetricsError(f"{path}: not a segmenter trained by train.py or metrics.py")
    for what, own in (("class_names", list(dataset.class_names)), ("size", list(dataset.size))):
        if content[what] != own:
            raise MetricsError(f"{path}: trained with other {what.replace('_', ' ')} than the dataset's; "
                               f"use another file, or delete it to train a new one")
    network = scoring_network(dataset.num_classes, content["channels"])
    oasis.restore(network, content["network"], path).requires_grad_(False)
    network.to(device, memory_format=torch.channels_last)
    return Segmenter(network, dataset, description=f"U-Net trained {content['steps']} steps on real "
                     f"{content['dataset']} train images at {dataset.size[0]}×{dataset.size[1]} "
                     f"(weights {network_hash(network)})")


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
