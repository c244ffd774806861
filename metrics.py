"""Scores: how realistic the generated images are, and how well they follow their label maps.

    python metrics.py                                        # the newest run, else assets/toy.pt
    python metrics.py --checkpoint F --data-root D --metrics fid,miou
    python metrics.py --real DIR --fake DIR                  # FID of two folders of images
    torchrun --nproc_per_node=8 metrics.py --checkpoint F    # the same scores, sooner

Scores can only be compared where their protocols agree: the network behind them, the size and the
number of images. So each one is printed with its protocol. Beside it stands the same score of real
images: a reference, not a limit. For a distance it is that between the even and the odd real ones,
half as many images with other label maps. For mIoU, generated images may be easier to read.

Images (B, 3, H, W) in [−1, 1] are rounded to the 256 levels of a png before anything is measured.
A set of them is reduced to float64 sums, so memory does not grow and processes add up theirs.
"""

import argparse
import hashlib
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils import parametrize
from tqdm import tqdm

import data
import losses
import oasis
import sample
from data import UserError
from processes import gather, rank_and_size, start_processes

METRICS = {     # name -> what it says
    "miou": "mean intersection over union of a fixed segmentation network ↑ (Table 1)",
    "fd_segmenter": "Fréchet distance between features of that network ↓",
    "fid": "Fréchet Inception distance ↓ (Table 1)",
    "d_miou": "mIoU of OASIS's own discriminator on real images ↑ (Sec. 3: 40.0 on ADE20K)",
}
# FID's weights, and how their SHA-256 begins.
INCEPTION = ("https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
             "pt_inception-2015-12-05-6726825d.pth", "6726825d")


# ---- Fréchet Inception distance ------------------------------------------------------------------
# Heusel et al., 2017: describe each set of images by the mean and covariance of a network's
# features, and take the Fréchet distance between the two Gaussians with these moments.

def quantise(images):
    """Round images in [−1, 1] to the 256 levels that a png can hold."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def moments(features):
    """Features (n, d) -> (d+1, d+1) float64: Σ [1 f]ᵀ[1 f], which holds n, Σ f and Σ f fᵀ at once.

    The moments of several batches, or of several processes, simply add up.
    """
    rows = F.pad(features.double(), (1, 0), value=1.0)
    return rows.T @ rows


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """|μ1 − μ2|² + Tr(Σ1 + Σ2 − 2 (Σ1 Σ2)^½), a float. Tensors or arrays, (d,) and (d, d).

    Σ1 Σ2 is not symmetric, and a general square root of it is slow, and fails where a covariance
    is singular. But only the root's trace is needed: the sum of the roots of the eigenvalues of
    Σ1 Σ2. With Σ1 = V diag(λ) Vᵀ these are the eigenvalues of the symmetric λ^½ Vᵀ Σ2 V λ^½.
    """
    mu1, sigma1, mu2, sigma2 = (torch.as_tensor(t, dtype=torch.float64)
                                for t in (mu1, sigma1, mu2, sigma2))
    # With fewer images than features most eigenvalues are 0 and come out as ±1e-16. The root would
    # make 1e-8 of each such rounding error, so they are left out.
    eps = len(mu1) * torch.finfo(torch.float64).eps
    eigenvalues, vectors = torch.linalg.eigh(sigma1)                        # ascending
    true = eigenvalues > eps * eigenvalues[-1:]
    half = vectors[:, true] * eigenvalues[true].sqrt()                      # V λ^½
    squares = torch.linalg.eigvalsh(half.T @ sigma2 @ half)
    roots = squares[squares > eps * squares[-1:]].sqrt()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * roots.sum()
    return max(distance.item(), 0.0)


def moment_distance(a, b):
    """Fréchet distance between two sums of moments(). Covariances are divided by n − 1."""
    means = [total[0, 1:] / total[0, 0] for total in (a, b)]
    covariances = [(total[1:, 1:] - total[0, 0] * torch.outer(mean, mean)) / (total[0, 0] - 1)
                   for total, mean in zip((a, b), means)]
    return frechet_distance(means[0], covariances[0], means[1], covariances[1])


def fetch(url, digits):
    """Path of a file in PyTorch's hub folder, downloaded once. Its SHA-256 begins with `digits`."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, path, digits, progress=False)
    except (OSError, RuntimeError) as error:            # RuntimeError: what came has another hash
        raise UserError(f"{url} could not be fetched ({error}); download it where there is a "
                        f"network and put it at {path}, or choose --metrics without fid") from error
    return path


def network_hash(network):
    """First 8 hex digits of the SHA-256 of all weights: tells one network from another."""
    weights = [tensor.cpu().contiguous().numpy() for tensor in network.state_dict().values()]
    return hashlib.sha256(b"".join(array.tobytes() for array in weights)).hexdigest()[:8]


class InceptionFeatures(nn.Module):
    """The network of FID: images (B, 3, H, W) in [−1, 1] -> its 2048 pooled features (B, 2048).

    weights: a file in the layout of pytorch-fid's; None: that file, downloaded once. Images are
    resized to 299×299, bilinear without antialiasing, as FID always did. Raises UserError.
    """

    def __init__(self, weights=None):
        super().__init__()
        with torch.device("meta"):      # draws no random numbers
            network = torchvision.models.Inception3(1008, aux_logits=False, init_weights=False)
        network.load_state_dict(sample.read_tensors(weights or fetch(*INCEPTION)), assign=True)
        # What the classifier would read are the features.
        network.fc = nn.Identity()
        # torchvision has a later network than FID's of 2015. That one leaves the padding out of
        # its average pools, and takes a maximum in its very last block.
        for block in network.children():
            if hasattr(block, "branch_pool"):
                replace_pooling(block, nn.AvgPool2d(3, 1, padding=1, count_include_pad=False))
        replace_pooling(network.Mixed_7c, nn.MaxPool2d(3, 1, padding=1))
        self.network = network.to(torch.get_default_dtype())
        self.description = (f"Inception {network_hash(network)}, 299×299 bilinear, "
                            "biased upwards below 2048 images")
        self.requires_grad_(False).eval()

    def forward(self, images):
        return self.network(F.interpolate(images, (299, 299), mode="bilinear", align_corners=False))


def replace_pooling(block, pool):
    """Make the pooling branch of an Inception block read pool(its input), not its own average."""
    block.register_forward_pre_hook(lambda _, inputs: setattr(block, "pooled", pool(*inputs)))
    block.branch_pool.register_forward_pre_hook(lambda *_: block.pooled)


# ---- mIoU ----------------------------------------------------------------------------------------
# Does an image show what its label map asked for? A fixed segmentation network reads the label map
# back from the generated image. The better it succeeds, the better G followed the map.

def confusion_matrix(prediction, target, num_classes, ignore_label=None):
    """How many pixels of each class (row) were given each name (column): (N, N) int64.

    prediction, target: int64, of one shape, ids 0 … N−1. Pixels of ignore_label are not counted.
    """
    ids = torch.stack([prediction.flatten(), target.flatten()])
    if ids.min() < 0 or ids.max() >= num_classes:
        raise ValueError(f"ids {ids.min()} to {ids.max()}, possible are 0 to {num_classes - 1}")
    if ignore_label is not None:
        ids = ids[:, ids[1] != ignore_label]
    pairs = ids[1] * num_classes + ids[0]
    return torch.bincount(pairs, minlength=num_classes ** 2).view(num_classes, num_classes)


def class_iou(confusion):
    """Intersection over union of each class, (N,) float64; NaN where a class never occurs."""
    right = confusion.diag().double()
    return right / (confusion.sum(0) + confusion.sum(1) - right)


def mean_iou(confusion):
    """Mean of class_iou over the classes that occur, in labels or in prediction. A float."""
    return class_iou(confusion).nanmean().item()


class Segmenter:
    """A network, whoever trained it, that names every pixel's class by the dataset's ids.

    network: images (B, 3, H, W) in [−1, 1] -> logits (B, K, h, w). table: for each of its K classes
    the id in the dataset, or −1 where the dataset has none: then its next best answer counts. None:
    K = N, the same classes. Classes that no entry names are not scored. size: what images are
    resized to for it, (H, W). description: its name in the protocol.
    """

    def __init__(self, network, dataset, table=None, size=None, description=""):
        self.network, self.size, self.description = network, size, description
        self.num_classes, self.ignore_label = dataset.num_classes, dataset.ignore_label
        table = range(self.num_classes) if table is None else table
        # Unknown is never scored, so it is never an answer either.
        self.table = torch.tensor([-1 if k == self.ignore_label else k for k in table])

    def confusion(self, images, labels):
        """images (B, 3, H, W), labels (B, H, W) -> confusion matrix (N, N) float64."""
        if self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        logits, table = self.network(images), self.table.to(labels.device)        # (B, K, h, w)
        if logits.shape[2:] != labels.shape[1:]:
            logits = F.interpolate(logits, labels.shape[1:], mode="bilinear")     # (B, K, H, W)
        best = logits.masked_fill((table < 0)[:, None, None], -torch.inf).argmax(1)
        counts = confusion_matrix(table[best], labels, self.num_classes, self.ignore_label)
        return counts * torch.isin(torch.arange(len(counts)).to(table), table)[:, None].double()


def scoring_network(num_classes, channels):
    """The discriminator's U-Net with N outputs: a Discriminator of N − 1 classes and "fake".

    Spectral normalisation and small initial weights keep two opponents in balance. This network has
    no opponent, and learns several times faster without them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = oasis.Discriminator(num_classes - 1, channels)
        for module in network.modules():
            if parametrize.is_parametrized(module):
                parametrize.remove_parametrizations(module, "weight")
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, oasis.LEAK)
    return network


def train_segmenter(dataset, device, steps=None, workers=0):
    """Train the network behind mIoU on real images -> what segmenter.pt holds, a dictionary.

    Minutes on two CPU cores below 256×256, else work for a GPU. Several processes all do the same
    work: that is simple, and takes minutes in a training of days.
    """
    small = dataset.size[0] * dataset.size[1] < 256 * 256
    channels = [24, 32, 48, 96] if small else [64, 96, 128, 192, 256]
    batch_size, lr = (8, 6e-3) if small else (16, 1e-3)
    steps = steps or (600 if small else 10_000)
    network = scoring_network(dataset.num_classes, channels)
    network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    order = iter(data.BatchSampler(len(dataset), min(batch_size, len(dataset)), seed=0))
    loader = data.make_loader(dataset, [next(order) for _ in range(steps)], workers)
    quiet = rank_and_size()[0] > 0 or None
    for images, labels in tqdm(loader, "segmenter", leave=False, disable=quiet):
        images, labels = images.to(device, torch.get_default_dtype()), labels.to(device)
        # Square roots of OASIS's class weights: half way between the plain loss, which forgets
        # small classes, and the full balance, which sees them everywhere.
        weights = losses.class_weights(labels, dataset.num_classes, dataset.ignore_label).sqrt()
        loss = F.cross_entropy(network(images), labels, weights.to(images.dtype), reduction="sum")
        loss = loss / weights[labels].sum().clamp(min=1e-9)             # a batch may be all unknown
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {"channels": channels, "network": network.cpu().state_dict(),
            "description": f"U-Net trained {steps} steps on real {dataset.name} train images"}


# ---- The scorer ----------------------------------------------------------------------------------

class Scorer:
    """Scores a generator on a validation set: scorer(G, D) -> {name: float}, as often as one likes.

    Args:
        val_set, train_set: data.SceneDataset. A segmenter is trained on train_set.
        metrics: names out of METRICS. num_images: score on the first so many (None: all).
        segmenter: a Segmenter, or what a segmenter.pt holds. None: the one in run_dir; where there
            is none it is trained, when the first score is due.
        run_dir: folder that keeps segmenter.pt and real_statistics.pt. None: nothing is kept.
        seed: image i gets the noise of seed + i.
        inception: an InceptionFeatures, or the file of its weights.
    After a call, `protocol` says what each score means, and sums["miou"] and real["miou"] are the
    confusion matrices of the generated and the real images.
    """

    def __init__(self, val_set, train_set, device, metrics=("miou", "fd_segmenter", "fid"), *,
                 num_images=None, segmenter=None, run_dir=None, batch_size=16, seed=0, workers=0,
                 inception=None, segmenter_steps=None):
        self.val_set, self.train_set = val_set, train_set
        self.device, self.metrics = torch.device(device), metrics
        self.segmenter, self.run_dir, self.segmenter_steps = segmenter, run_dir, segmenter_steps
        self.batch_size, self.seed, self.workers, self.real = batch_size, seed, workers, None
        self.count = min(num_images or len(val_set), len(val_set))
        for name in set(metrics) - set(METRICS):
            raise UserError(f"there is no score {name!r}; there are {', '.join(METRICS)}")
        if metrics and self.count < 4:
            raise UserError(f"{self.count} images: two halves of them need at least 4")
        self.inception = inception
        if "fid" in metrics and not isinstance(inception, nn.Module):
            self.inception = InceptionFeatures(inception).to(device)

    def __call__(self, generator, discriminator=None):
        """All chosen scores of this generator (and discriminator, for d_miou) -> {name: float}."""
        scores = self.compare(self.images(generator=generator.eval()))
        if "d_miou" in self.metrics and discriminator is not None:
            # D reads real images. Its last channel, "fake", is no answer here.
            reader = Segmenter(discriminator, self.val_set, [*range(self.val_set.num_classes), -1])
            training = discriminator.training
            discriminator.eval()
            scores["d_miou"] = mean_iou(add_up(self.images(), {"": reader.confusion})[""])
            discriminator.train(training)
        return scores

    def compare(self, batches):
        """Scores of a set of images against the real ones. batches: yields (images, labels)."""
        if self.real is None:
            self.prepare()
        self.sums, scores = add_up(batches, self.statistics), {}
        for name, total in self.sums.items():
            scores[name] = (mean_iou(total) if name == "miou" else
                            moment_distance(total, self.real[name]))
            scores[f"{name}_real"] = self.real[f"{name}_real"]
        return scores

    def prepare(self):
        """What the first score needs: the segmenter, sums over the real images, the protocols."""
        val_set, segmenter, inception = self.val_set, self.segmenter, self.inception
        about = {"size": list(val_set.size), "class_names": list(val_set.class_names),
                 "ignore_label": val_set.ignore_label}
        if {"miou", "fd_segmenter"} & set(self.metrics) and not isinstance(segmenter, Segmenter):
            content = segmenter or self.remember("segmenter.pt", about, lambda: train_segmenter(
                self.train_set, self.device, self.segmenter_steps, self.workers))
            network = scoring_network(val_set.num_classes, content["channels"])
            network.load_state_dict(content["network"])
            network.requires_grad_(False).eval().to(self.device, memory_format=torch.channels_last)
            text = f"{content['description']} ({network_hash(network)})"
            segmenter = Segmenter(network, val_set, description=text)
        known = {       # score: its network and what is added up over the images
            "miou": (segmenter, lambda images, labels: segmenter.confusion(images, labels)),
            # The features are the encoder's deepest, averaged over space.
            "fd_segmenter": (segmenter, lambda images, _: moments(
                segmenter.network.encode(images)[-1].mean((2, 3)))),
            "fid": (inception, lambda images, _: moments(inception(images)))}
        known = {name: known[name] for name in known if name in self.metrics}
        self.statistics = {name: function for name, (_, function) in known.items()}
        networks = {name: network.description for name, (network, _) in known.items()}
        # The first image and its labels are part of the key: other files may have the same names.
        first = b"".join(tensor.numpy().tobytes() for tensor in val_set[0])
        key = {"first": hashlib.sha256(first).hexdigest(), **about,
               "images": val_set.names[:self.count], "networks": networks}
        self.real = self.remember("real_statistics.pt", key, self.measure_real)
        images = "{} images of {} {} at {}×{}".format(
            self.count, val_set.name, val_set.split, *val_set.size)
        self.protocol = {f"{name}_real": "even against odd real images" for name in networks} | {
            "miou_real": "the same of the real images: a reference, not a limit",
            "d_miou": f"argmax over D's real classes, real images, {images}",
            **{name: f"{text}, {images}" for name, text in networks.items()}}

    def remember(self, name, key, make):
        """A file of the run folder, if it has this key; else what make() returns, kept there."""
        path = self.run_dir and Path(self.run_dir, name)
        # All processes take what the first one finds or makes.
        content = gather(sample.read_tensors(path) if path and path.is_file() else {})[0]
        if content.get("key") != key:
            content = {"key": key, **gather(make())[0]}
            if path and rank_and_size()[0] == 0:
                with data.write_whole(path) as partial:
                    torch.save(content, partial)
        return content

    def measure_real(self):
        """Sums over the real images, and name_real: their mIoU, or even against odd images."""
        even, odd = (add_up(self.images(half, 2), self.statistics) for half in (0, 1))
        sums = {name: even[name] + odd[name] for name in even}
        return sums | {f"{name}_real": mean_iou(sums[name]) if name == "miou" else
                       moment_distance(even[name], odd[name]) for name in sums}

    def images(self, start=0, step=1, generator=None):
        """Yields (images, labels): real ones, or generated from their label maps.

        This process gets its share of the images start, start + step, …, in whole batches: an
        image always has the same neighbours, so any number of processes gives the same bits.
        """
        rank, processes = rank_and_size()
        indices = torch.arange(start, self.count, step).split(self.batch_size)
        batches = [batch.tolist() for batch in indices[rank::processes]]
        loader = data.make_loader(self.val_set, batches, self.workers)
        bar = tqdm(loader, "scoring", leave=False, disable=rank > 0 or None)
        for batch, (images, labels) in zip(batches, bar):
            images, labels = images.to(torch.get_default_dtype()), labels.to(self.device)
            if generator is not None:
                noise = oasis.draw_noise([self.seed + i for i in batch], labels.shape[1:],
                                         generator.noise_dim, generator.pixel_noise)
                images = generator(labels, noise.to(self.device))
            yield images.to(self.device), labels


@torch.no_grad()
def add_up(batches, statistics):
    """{name: function of (images, labels)} -> {name: its sum over the batches of all processes}."""
    totals = {}
    # On a GPU this is all of float32, also in convolutions, where TF32 would keep 10 bits.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for images, labels in batches if statistics else ():
            for name, statistic in statistics.items():
                totals[name] = totals.get(name, 0) + statistic(quantise(images), labels)
    shares = gather({name: total.cpu() for name, total in totals.items()})
    return {name: sum(share[name] for share in shares if name in share) for name in statistics}


def show(scorer, scores):
    """The table on the screen. A number without its protocol cannot be compared."""
    for name, value in scores.items():
        print(f"{name:18s} {value:10.4f}   {scorer.protocol[name]}")


# ---- The command line ----------------------------------------------------------------------------

def score_folders(args, device):
    """Prints the Fréchet Inception distance of two folders, --real DIR and --fake DIR."""
    if not (args.real and args.fake) or args.checkpoint or args.metrics not in (None, ["fid"]):
        raise UserError("--real DIR and --fake DIR belong together, and are compared by fid")
    network = InceptionFeatures(args.inception).to(device)
    rank, processes = rank_and_size()
    real, fake = ([*data.list_files(folder, data.PHOTOS).values()][:args.num_images]
                  for folder in (args.real, args.fake))

    def read(paths):
        # One by one, since sizes may differ.
        for path in tqdm(paths[rank::processes], leave=False, disable=rank > 0 or None):
            pixels = torch.tensor(data.read_photo(path), dtype=torch.get_default_dtype())
            yield pixels.to(device).permute(2, 0, 1)[None] / 127.5 - 1, None
    even, odd, fakes = (add_up(read(paths), {"fid": lambda x, _: moments(network(x))})["fid"]
                        for paths in (real[::2], real[1::2], fake))
    if rank == 0:
        print(f"fid        {moment_distance(even + odd, fakes):10.4f}   {network.description}, "
              f"{len(real)} real and {len(fake)} fake images\n"
              f"fid_real   {moment_distance(even, odd):10.4f}   even against odd real images")


def open_run(path, data_root=None):
    """A checkpoint file -> (its dictionary, its training set, its validation set). UserError."""
    checkpoint = sample.load_checkpoint(path)
    settings, about = checkpoint["settings"], checkpoint["dataset"]
    train_set, val_set = (
        data.open_dataset(about["preset"], split, about["size"], data_root or settings["data_root"],
                          seed=settings["data_seed"], subset=settings.get("subset"))
        for split in ("train", "val"))
    if list(val_set.class_names) != list(about["class_names"]):
        raise UserError(f"{path}: was trained on other classes than this dataset has")
    return checkpoint, train_set, val_set


def score_checkpoint(args, device):
    """Prints the scores of a checkpoint."""
    path = sample.find_checkpoint(args.checkpoint)
    checkpoint, train_set, val_set = open_run(path, args.data_root)
    G, D = sample.build_generator(checkpoint), sample.build_discriminator(checkpoint)
    names = args.metrics or ["miou", "fd_segmenter", *["d_miou"] * (D is not None)]
    if D is None and "d_miou" in names:
        raise UserError(f"d_miou: {path} holds no discriminator that segments")
    scorer = Scorer(
        val_set, train_set, device, names, num_images=args.num_images,
        segmenter=checkpoint.get("segmenter"), batch_size=args.batch_size, seed=args.seed,
        run_dir=None if "segmenter" in checkpoint else path.parent, inception=args.inception,
        workers=4 if device.type == "cuda" else 0)
    scores = scorer(G.to(device), D and D.to(device))
    if rank_and_size()[0] > 0:
        return
    print(f"scores of {path}")
    show(scorer, scores)
    if args.per_class and "miou" in scores:
        for row in zip(val_set.class_names, class_iou(scorer.sums["miou"]),
                       class_iou(scorer.real["miou"])):
            print("{:25s} IoU {:7.4f}, of the real images {:7.4f}".format(*row))


@data.exit_in_words("metrics.py")
def main(argv=None):
    known = "\n".join(f"  {name:13s} {text}" for name, text in METRICS.items())
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"scores:\n{known}\nmIoU is read "
               "by the segmenter.pt beside the checkpoint; where there is none, one is trained.")
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", help="latest.pt or best.pt of a run (default: the newest)")
    add("--data-root", metavar="DIR", help="its dataset (default: as in training)")
    add("--real", metavar="DIR", help="folder of real images, instead of a checkpoint")
    add("--fake", metavar="DIR", help="folder of generated images")
    add("--metrics", type=lambda text: text.split(","), metavar="A,B",
        help="see below (default: all but fid)")
    add("--num-images", type=int, metavar="N", help="the first N images (default: all)")
    add("--seed", type=int, default=0, help="image i gets the noise of seed + i (default 0)")
    add("--batch-size", type=int, default=16, help="memory and speed only (default 16)")
    add("--inception", metavar="FILE", help="weights of FID's network, if not downloaded")
    add("--per-class", action="store_true", help="also print the IoU of each class")
    args = parser.parse_args(argv)
    device = start_processes()
    (score_folders if args.real or args.fake else score_checkpoint)(args, device)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
