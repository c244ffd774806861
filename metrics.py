"""Scores: how good, how faithful and how varied the generated images are.

    python metrics.py --checkpoint runs/toy/best.pt               # scores a run of train.py
    python metrics.py --checkpoint F --data-root D --metrics fid,miou,lpips --json scores.json
    python metrics.py --real photos --fake generated              # two folders, whoever made them
    torchrun --nproc_per_node=8 metrics.py --checkpoint F --data-root D

distances.py has the measures, segmenter.py the network behind mIoU; here they are applied to sets
of images. Each score comes with its protocol in words (network and weights, size, number of
images), because scores can only be compared where protocols agree. `*_real` is the same score of
real images: the ceiling of mIoU, and the floor of a distance, measured between two halves of the
real images.

Each set is reduced to statistics that add up over images, so memory does not grow with their
number, and several processes just add up theirs. Conventions: images (B, 3, H, W) in [−1, 1],
rounded to the 256 levels of a png before anything is measured, so that a run and the pictures saved
from it score alike; statistics in float64; one noise seed per image; no global random state is
touched.
"""

import argparse
import hashlib
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from tqdm import tqdm

import data
import layouts
import models
import oasis
from data import at_least
from distances import (LPIPS, InceptionFeatures, MetricsError, colour_distance, colour_histogram,
                       moment_distance, moments, ms_ssim_scales, pairwise_ms_ssim, quantise,
                       texture_distance, texture_histogram)
from segmenter import (Segmenter, add_over_processes, class_iou, encoder_features, everywhere,
                       load_exported, load_segmenter, mean_iou, pixel_accuracy, process, quiet,
                       segmenter_from, train_segmenter_file)

# Not used below, but looked for here:
from distances import frechet_distance, ms_ssim          # noqa: E402, F401
from segmenter import confusion_matrix, train_segmenter  # noqa: E402, F401

METRICS = {     # name -> what it says
    "miou": "mean intersection over union of a fixed segmentation network ↑ (Table 1)",
    "accuracy": "share of pixels that this network names right ↑",
    "fd_segmenter": "Fréchet distance between features of the trained segmenter ↓",
    "fid": "Fréchet Inception distance ↓ (Table 1)",
    "ms_ssim": "structural similarity of images of one label map ↓ (Table 2; low: diverse)",
    "lpips": "perceptual distance of images of one label map ↑ (Table 2; high: diverse)",
    "colour": "earth mover's distance between LAB histograms ↓ (Figure 3)",
    "texture": "χ² distance between histograms of local binary patterns ↓ (Figure 3)",
    "d_miou": "mIoU of OASIS's own discriminator on real images ↑ (Sec. 3: 40.0 on ADE20K)",
}
DISTANCES = {"fid": moment_distance, "fd_segmenter": moment_distance, "colour": colour_distance,
             "texture": texture_distance}
SAMPLES = 20    # images per label map for MS-SSIM and LPIPS, as the authors took for Table 2


# ---- Sets of images, reduced to statistics -------------------------------------------------------


@contextmanager
def evaluating(*networks):
    """Networks in eval mode and no gradients inside; each one's own mode again afterwards."""
    networks = [network for network in networks if network is not None]
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for network, mode in zip(networks, modes):
            network.train(mode)


def my_batches(count, batch_size):
    """This process's batches of the images 0 … count − 1, as (half, indices).

    The even and the odd images are two halves, never mixed in one batch: between them the floor of
    a distance is measured. MetricsError where there are too few for a covariance of each half.
    """
    rank, world = process()
    if count < max(4, 2 * world):
        raise MetricsError(f"{count} image{'s' * (count != 1)} for {world} process"
                           f"{'es' * (world > 1)}: statistics need at least 4, and 2 for each "
                           f"process")
    return [(half, share[i:i + batch_size]) for half in (0, 1)
            for share in [range(half, count, 2)[rank::world]]
            for i in range(0, len(share), batch_size)]


def load_batches(dataset, count, batch_size, device, workers, title):
    """Yields (half, images, labels, indices) of this process's share of a dataset."""
    batches = my_batches(count, batch_size)
    loader = data.make_loader(dataset, [list(indices) for _, indices in batches], workers)
    bar = tqdm(loader, title, leave=False, disable=quiet())
    for (half, indices), (images, labels) in zip(batches, bar):
        yield half, images.to(device), labels.to(device), indices


def summarise(batches, measures):
    """Add up statistics over images and processes -> {name: (2, …) float64}, even and odd images.

    batches: yields (half, images, labels, …). measures: {name: function of (images, labels)}.
    """
    totals = {}
    for half, images, labels, *_ in batches:
        images = quantise(images)
        for name, measure in measures.items():
            value = measure(images, labels)
            if name not in totals:
                totals[name] = value.new_zeros((2, *value.shape))
            totals[name][half] += value
    for total in totals.values():
        add_over_processes(total)
    return totals


# ---- The scorer ----------------------------------------------------------------------------------


class Scorer:
    """Scores a generator on a validation set: scorer(G, D) -> {name: float}, as often as one likes.

    Args:
        val_dataset, train_dataset: data.SceneDataset; the latter trains the segmenter. metrics:
        names out of METRICS. num_images: score on the first so many (None: all). segmenter: a
        segmenter.Segmenter to use instead of training one, or the file of a trained one. run_dir:
        folder where the trained segmenter is kept (segmenter.pt) and found again. strict: raise
        where the weights of a network are missing; otherwise one printed sentence says
            which file to put where, and that score is left out.
    After a call, `protocol` says what each score means, `per_class` holds IoU by class name.
    """

    def __init__(self, val_dataset, train_dataset, device, metrics=("miou", "fd_segmenter", "fid"),
                 num_images=None, segmenter=None, run_dir=None, *, batch_size=16, seed=0, workers=0,
                 strict=False, inception=None, segmenter_steps=None):
        unknown = [name for name in metrics if name not in METRICS]
        if unknown:
            raise MetricsError(f"there is no score {unknown[0]!r}; there are {', '.join(METRICS)}")
        self.dataset, self.device, self.seed = val_dataset, torch.device(device), seed
        for name, least in (("ms_ssim", 11), ("texture", 3)):      # the width of their windows
            if name in metrics and min(val_dataset.size) < least:
                raise MetricsError("{} of images of {}×{}: it needs at least {} pixels each "
                                   "way".format(name, *val_dataset.size, least))
        self.count = min(num_images or len(val_dataset), len(val_dataset))
        self.batch_size, self.workers, self.metrics = batch_size, workers, list(metrics)
        if self.metrics:
            my_batches(self.count, batch_size)         # too few images: say so before anything else
        self.networks, self.segmenter, self.run_dir = {}, None, run_dir
        for name, build in (("fid", lambda: InceptionFeatures(inception)), ("lpips", LPIPS)):
            if name in self.metrics:
                self.load_network(name, build, strict)
        if {"miou", "accuracy", "fd_segmenter"} & set(metrics):
            self.segmenter = self.find_segmenter(segmenter, train_dataset, run_dir, segmenter_steps)
        self.measures = self.choose_measures()
        self.real = None                           # statistics of real images, made at first use
        self.protocol, self.per_class = {}, {}

    def load_network(self, name, build, strict):
        """A network with downloaded weights; without them its score is left out, everywhere."""
        problem = None
        try:
            self.networks[name] = build().to(self.device)
        except MetricsError as e:
            problem = e
        if not everywhere(problem is None, self.device):
            problem = problem or MetricsError("another process could not load the weights")
            if strict:
                raise problem
            self.metrics.remove(name)
            if process()[0] == 0:
                print(f"{name} is left out: {problem}", file=sys.stderr)

    def find_segmenter(self, segmenter, train_dataset, run_dir, steps):
        """The network behind mIoU: given, found in the run folder, or trained and kept there."""
        if isinstance(segmenter, Segmenter):
            if "fd_segmenter" in self.metrics and not hasattr(segmenter.network, "encoder"):
                raise MetricsError("fd_segmenter is measured on features of a segmenter trained "
                                   "here, which an exported program does not have")
            return segmenter
        path = Path(segmenter or Path(run_dir or "") / "segmenter.pt")
        # Machines may see a new file at different times; all processes must do the same.
        found = everywhere(bool(run_dir) and path.is_file(), self.device)
        if segmenter is None and not found:
            content = train_segmenter_file(train_dataset, self.device, steps, workers=self.workers)
            if run_dir and process()[0] == 0:
                with layouts.written_whole(path) as partial:
                    torch.save(content, partial)
            return segmenter_from(content, self.dataset, self.device, path)
        return load_segmenter(path, self.dataset, self.device)

    def choose_measures(self):
        """{name: function of (images, labels) -> statistic} for the scores that compare sets."""
        known = {
            "miou": lambda images, labels: self.segmenter.confusion(images, labels),
            "fd_segmenter": lambda images, _: moments(
                encoder_features(self.segmenter.network, images)),
            "fid": lambda images, _: moments(self.networks["fid"](images)),
            "colour": lambda images, _: colour_histogram(images),
            "texture": lambda images, _: texture_histogram(images),
        }
        wanted = {"miou" if name == "accuracy" else name for name in self.metrics}
        return {name: measure for name, measure in known.items() if name in wanted}

    def __call__(self, generator, discriminator=None):
        """All chosen scores of this generator (and discriminator, for d_miou) -> {name: float}."""
        with evaluating(generator, discriminator):
            scores = self.compare(self.draw(generator))
            scores.update(self.diversity(generator))
            if "d_miou" in self.metrics and discriminator is not None:
                scores["d_miou"] = self.discriminator_miou(discriminator)
        self.protocol = self.describe(scores)
        return scores

    def compare(self, batches):
        """The scores of a set of images against the real ones. batches: as summarise."""
        with torch.no_grad():
            if self.real is None:
                self.real, self.floor = self.measure_real()
            halves = summarise(batches, self.measures)
        drawn = {name: both.sum(0) for name, both in halves.items()}
        scores = {}
        for name in self.metrics:
            if name in DISTANCES:
                scores[name] = DISTANCES[name](drawn[name], self.real[name])
                scores[f"{name}_real"] = self.floor[name]
            elif name in ("miou", "accuracy"):
                score = mean_iou if name == "miou" else pixel_accuracy
                scores[name] = score(drawn["miou"])
                scores[f"{name}_real"] = score(self.real["miou"])
        if "miou" in drawn:
            iou = zip(class_iou(drawn["miou"]).tolist(), class_iou(self.real["miou"]).tolist())
            self.per_class = dict(zip(self.dataset.class_names, iou))
        self.protocol = self.describe(scores)
        return scores

    def batches(self, title):
        """Yields (half, images, labels, indices) of the images scored, this process's share."""
        return load_batches(self.dataset, self.count, self.batch_size, self.device, self.workers,
                            title)

    def noise(self, seeds, generator):
        """One noise vector per seed, on the scorer's device."""
        return oasis.noise_from_seeds(seeds, generator.noise_dim).to(self.device)

    def draw(self, generator):
        """Yields (half, generated images, labels). Image i has the noise of seed + i."""
        for half, _, labels, indices in self.batches("scoring"):
            noise = self.noise([self.seed + i for i in indices], generator)
            yield half, generator(labels, noise), labels

    def measure_real(self):
        """Statistics of the real images, distances between their halves; FID's are kept on disk."""
        measures, real, floor = dict(self.measures), {}, {}
        cache = None
        if "fid" in measures:
            key = dataset_key(self.dataset, self.count, self.networks["fid"].weights_hash)
            cache = Path(torch.hub.get_dir()) / "oasis-statistics" / f"{key}.pt"
            kept = read_cache(cache, self.device)
            if kept:
                real["fid"], floor["fid"] = kept["sum"].to(self.device), kept["floor"]
                del measures["fid"]
        if measures:
            batches = self.batches("measuring real images")
            for name, halves in summarise(batches, measures).items():
                real[name] = halves.sum(0)
                if name in DISTANCES:
                    floor[name] = DISTANCES[name](*halves)
        if "fid" in measures and process()[0] == 0:
            keep({"sum": real["fid"].cpu(), "floor": floor["fid"]}, cache)
        return real, floor

    def diversity(self, generator):
        """MS-SSIM and LPIPS: mean over all pairs of SAMPLES images of one label map, and over maps.

        Sample k of label map i has the noise of seed + i + k · (number of images); k = 0 is the
        image that the other scores see.
        """
        pairwise = {"ms_ssim": pairwise_ms_ssim,
                    "lpips": lambda images: self.networks["lpips"].pairwise(images)}
        totals = {name: torch.zeros(2, dtype=torch.float64, device=self.device)
                  for name in pairwise if name in self.metrics}
        for _, _, labels, indices in self.batches("diversity") if totals else ():
            for i, label_map in zip(indices, labels):
                seeds = [self.seed + i + k * len(self.dataset) for k in range(SAMPLES)]
                images = torch.cat([generator(label_map.expand(len(z), -1, -1), z) for z in
                                    self.noise(seeds, generator).split(self.batch_size)])
                for name, total in totals.items():
                    mean = pairwise[name](quantise(images)).mean().double()
                    total += torch.stack([mean, torch.ones_like(mean)])
        return {name: (total[0] / total[1]).item() for name, total in
                ((name, add_over_processes(total)) for name, total in totals.items())}

    def discriminator_miou(self, discriminator):
        """Argmax over D's N real channels, on real images: the fake channel may not be answered."""
        table = [*range(self.dataset.num_classes), -1]
        reader = Segmenter(discriminator, self.dataset, table, description="the discriminator")
        halves = summarise(self.batches("reading by D"), {"d_miou": reader.confusion})["d_miou"]
        return mean_iou(halves.sum(0))

    def describe(self, scores):
        """{name: protocol in words}: what has to agree before two values may be compared."""
        height, width = self.dataset.size
        images = (f"{self.count} images of {self.dataset.name} {self.dataset.split} at "
                  f"{height}×{width}")
        unknown = ("" if self.dataset.ignore_label is None else
                   f", {self.dataset.class_names[self.dataset.ignore_label]!r} not scored")
        texts = {"d_miou": f"argmax over the real classes, {images}{unknown}",
                 "colour": f"mean of the three channels' distances in LAB units, {images}",
                 "texture": f"3×3 patterns, 256 codes, {images}",
                 "ms_ssim": f"{SAMPLES} samples per label map, "
                            f"{ms_ssim_scales((height, width))} scales, {images}"}
        if self.segmenter:
            texts["miou"] = texts["accuracy"] = f"{self.segmenter.description}, {images}{unknown}"
        if "fd_segmenter" in scores:
            needed = 2 * (len(self.real["fd_segmenter"]) - 1)        # two images for each feature
            texts["fd_segmenter"] = (f"{self.segmenter.description}, deepest encoder features, "
                                     f"{images}" + few(self.count, needed))
        if "fid" in scores:
            texts["fid"] = (f"Inception {self.networks['fid'].weights_hash}, 299×299 bilinear, "
                            f"{images}" + few(self.count, 2048))
        if "lpips" in scores:
            texts["lpips"] = (f"VGG16, linear weights {self.networks['lpips'].weights_hash}, "
                              f"{SAMPLES} samples per label map, {images}")
        texts.update({f"{name}_real": "two halves of the real images" for name in DISTANCES})
        texts["miou_real"] = texts["accuracy_real"] = "the same on the real images"
        return {name: texts[name] for name in scores}


def few(count, needed):
    """A warning for the protocol where a covariance is estimated from too few images."""
    return (f" (warning: fewer than {needed} images bias this distance upwards; compare only "
            f"values of equally many)" if count < needed else "")


def dataset_key(dataset, count, weights_hash):
    """Names the statistics of a set of real images: changes with its files, size, number, network.

    Files enter by size and time of change, and a few decoded images stand for the way they are
    read.
    """
    digest = hashlib.sha256(repr((dataset.name, dataset.split, tuple(dataset.size), count,
                                  dataset.names[:count], weights_hash)).encode())
    for path in getattr(dataset.layout, "photos", ())[:count]:
        status = os.stat(path)
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
    for index in range(0, count, max(1, count // 8)):
        digest.update(data.to_uint8(dataset[index][0][None]).tobytes())
    return f"{dataset.name}-{dataset.split}-{digest.hexdigest()[:16]}"


def keep(statistics, path):
    """Write statistics for the next time; where that fails they are measured again, no more."""
    try:
        with layouts.written_whole(path) as partial:
            torch.save(statistics, partial)
    except data.DataError as e:
        print(f"the statistics of the real images are not kept: {e}", file=sys.stderr)


def read_cache(path, device):
    """Kept statistics; None where there are none, damaged ones, or not every process has them."""
    try:
        kept = oasis.read_tensors(path)
    except oasis.CheckpointError:
        kept = None
    return kept if everywhere(kept is not None, device) else None


# ---- Two folders of images -----------------------------------------------------------------------


class ImageFolder(torch.utils.data.Dataset):
    """The images in a folder, all of one size, without label maps. Raises data.DataError."""

    SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")

    def __init__(self, folder):
        self.folder = Path(folder)
        self.paths = list(layouts.list_files(self.folder, self.SUFFIXES).values())
        # What a Scorer asks of a SceneDataset.
        self.name, self.split, self.ignore_label = self.folder.resolve().name, "folder", None
        self.names, self.layout = [p.name for p in self.paths], SimpleNamespace(photos=self.paths)
        self.size = self.read(0).shape[:2]

    def __len__(self):
        return len(self.paths)

    def read(self, index):
        """Image number index -> (H, W, 3) uint8."""
        with data.readable(self.paths[index]), Image.open(self.paths[index]) as image:
            return np.array(data.to_rgb(image, self.paths[index]))

    def __getitem__(self, index):
        pixels = self.read(index)
        if pixels.shape[:2] != self.size:
            raise data.DataError(f"{self.paths[index]}: is {pixels.shape[0]}×{pixels.shape[1]}, "
                               f"{self.paths[0].name} is {self.size[0]}×{self.size[1]}; all images "
                               f"of a folder must be of one size")
        return torch.from_numpy(pixels.transpose(2, 0, 1)).float() / 127.5 - 1, 0


def score_folders(args):
    """--real DIR --fake DIR -> (Scorer, scores)."""
    names = args.metrics or ["fid", "colour", "texture"]
    for name in names:
        if name not in ("fid", "colour", "texture"):
            raise MetricsError(f"{name} needs a --checkpoint; of two folders fid, colour and "
                               f"texture can be measured")
    real, fake = ImageFolder(args.real), ImageFolder(args.fake)
    if real.size != fake.size:
        raise MetricsError(f"{args.real} holds images of {real.size[0]}×{real.size[1]} (height × "
                           f"width), {args.fake} of {fake.size[0]}×{fake.size[1]}; distances "
                           f"depend on the size, so bring both to one")
    count = min(len(real), len(fake))
    if len(real) != len(fake) and not 0 < (args.num_images or 0) <= count:
        raise MetricsError(f"{args.real} holds {len(real)} images, {args.fake} {len(fake)}; "
                           f"distances depend on the number, so choose one for both: "
                           f"--num-images {count}")
    scorer = Scorer(real, None, args.device, names, args.num_images, batch_size=args.batch_size,
                    workers=args.workers, strict=bool(args.metrics), inception=args.inception)
    return scorer, scorer.compare(load_batches(fake, scorer.count, args.batch_size, args.device,
                                               args.workers, "fake images"))


# ---- A run of train.py ---------------------------------------------------------------------------


def score_checkpoint(args):
    """--checkpoint F -> (Scorer, scores). It says itself which data and size it was trained for."""
    checkpoint = oasis.load_checkpoint(args.checkpoint)
    config, about = checkpoint["config"], checkpoint["dataset"]
    root = args.data_root or config["data_root"] or None
    train_set, val_set = (data.open_dataset(about["preset"], split, about["size"], root,
                                            seed=config.get("data_seed", config["seed"]))
                          for split in ("train", "val"))
    if list(val_set.class_names) != list(about["class_names"]):
        raise MetricsError(f"{root}: has other classes than those {args.checkpoint} was trained on")
    run_dir = Path(args.checkpoint).parent
    is_oasis, segmenter = checkpoint["model"] == "oasis", args.segmenter
    if not is_oasis and "d_miou" in (args.metrics or ()):
        raise MetricsError(f"d_miou: the discriminator of {checkpoint['model']} cannot segment, it "
                           f"only says real or fake; leave this score out")
    names = args.metrics or [name for name in SCRIPT_METRICS if is_oasis or name != "d_miou"]
    if segmenter and Path(segmenter).suffix == ".pt2":
        segmenter = load_exported(segmenter, val_set, args.device, args.segmenter_size,
                                  args.label_map)
        names = [name for name in names if args.metrics or name != "fd_segmenter"]
    elif args.label_map or args.segmenter_size:
        raise MetricsError("--label-map and --segmenter-size belong to a --segmenter FILE.pt2, a "
                           "program saved by torch.export.save")
    scorer = Scorer(val_set, train_set, args.device, names, args.num_images, segmenter, run_dir,
                    batch_size=args.batch_size, seed=args.seed, workers=args.workers,
                    strict=bool(args.metrics), inception=args.inception,
                    segmenter_steps=args.segmenter_steps)
    G = models.generator_from(checkpoint).to(args.device)
    D = oasis.discriminator_from(checkpoint).to(args.device) if is_oasis else None
    return scorer, scorer(G, D)


SCRIPT_METRICS = ("miou", "accuracy", "fd_segmenter", "fid", "colour", "texture", "d_miou")


def parse_arguments(argv=None):
    """Command line -> namespace."""
    known = "\n".join(f"  {name:13s} {text}" for name, text in METRICS.items())
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"scores:\n{known}\nWithout --metrics: {', '.join(SCRIPT_METRICS)}; for two folders "
               f"fid, colour, texture.")
    what = parser.add_argument_group("what to score: a checkpoint, or two folders")
    what.add_argument("--checkpoint", metavar="FILE", help="latest.pt or best.pt of a run")
    what.add_argument("--data-root", metavar="DIR", help="its dataset (default: as in training)")
    what.add_argument("--real", metavar="DIR", help="folder of real images")
    what.add_argument("--fake", metavar="DIR", help="folder of generated images")
    how = parser.add_argument_group("how")
    how.add_argument("--metrics", type=lambda text: text.replace(" ", "").split(","), metavar="A,B",
                     help="see below")
    how.add_argument("--num-images", type=at_least(1), metavar="N",
                     help="the first N images (default: all)")
    how.add_argument("--seed", type=at_least(0), default=0,
                     help="image i gets the noise of seed + i (default 0)")
    how.add_argument("--inception", metavar="FILE",
                     help="the FID network's weights, if not downloaded")
    how.add_argument("--batch-size", type=at_least(1), default=16, help="(default 16)")
    how.add_argument("--workers", type=at_least(0), default=0,
                     help="processes that load images, for each GPU (default 0)")
    how.add_argument("--device", help="cuda or cpu (default: cuda if there is one)")
    miou = parser.add_argument_group("the network behind mIoU")
    miou.add_argument("--segmenter", metavar="FILE", help="a segmenter.pt (default: the one beside "
                      "the checkpoint, trained and put there if there is none), or an exported "
                      "network of yours, FILE.pt2")
    miou.add_argument("--segmenter-size", type=at_least(1), nargs=2, metavar=("H", "W"),
                      help="resize images to this for a FILE.pt2 (default: as they are)")
    miou.add_argument("--label-map", metavar="FILE", help="for a FILE.pt2: line k is the dataset's "
                      "name or id of the network's class k, or - (default: the same classes)")
    miou.add_argument("--segmenter-steps", type=at_least(1), help="training steps of a new one")
    output = parser.add_argument_group("output")
    output.add_argument("--per-class", action="store_true", help="also print the IoU of each class")
    output.add_argument("--json", metavar="FILE", help="write scores and protocols to FILE")
    args = parser.parse_args(argv)
    if bool(args.checkpoint) == bool(args.real or args.fake) or bool(args.real) != bool(args.fake):
        parser.error("give either --checkpoint FILE, or --real DIR and --fake DIR")
    args.segmenter_size = args.segmenter_size and tuple(args.segmenter_size)
    return args


def show(scorer, scores, per_class):
    """The table on the screen: a number without its protocol cannot be compared."""
    for name, value in scores.items():
        print(f"{name:18s} {value:10.4f}   {scorer.protocol[name]}")
    if per_class and scorer.per_class:
        print(f"\n{'IoU':18s}  generated       real")
        for name, pair in scorer.per_class.items():
            print(f"{name:18s}", *("         –" if iou != iou else f"{iou:10.4f}" for iou in pair))


def main(argv=None):
    """Command line. Exit code 0, or 2 with one sentence on what was wrong with the request."""
    args = parse_arguments(argv)
    oasis.keep_freed_memory()
    try:
        gpu = data.pick_device(args.device)
        if "RANK" in os.environ:                       # set by torchrun
            if gpu == "cuda":
                gpu = f"cuda:{os.environ['LOCAL_RANK']}"
                torch.cuda.set_device(gpu)
            dist.init_process_group("nccl" if gpu.startswith("cuda") else "gloo")
        args.device = torch.device(gpu)
        scorer, scores = (score_checkpoint if args.checkpoint else score_folders)(args)
        if process()[0] == 0:
            show(scorer, scores, args.per_class)
            if args.json:
                save_json(args, scorer, scores)
        if dist.is_initialized():       # only where all went well: see train.main
            dist.destroy_process_group()
    except (MetricsError, data.DataError, oasis.CheckpointError) as e:
        print(f"metrics.py: error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("metrics.py: interrupted", file=sys.stderr)
        sys.exit(1)


def save_json(args, scorer, scores):
    """Scores with their protocols, and the IoU of each class, for machines."""
    content = {"scored": args.checkpoint or [args.real, args.fake], "seed": args.seed,
               "scores": {name: {"value": value, "protocol": scorer.protocol[name]}
                          for name, value in scores.items()},
               "class_iou": {name: [None if iou != iou else iou for iou in pair]
                             for name, pair in scorer.per_class.items()}}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    with layouts.written_whole(args.json) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
