"""Scores: how realistic the generated images are, and how well they follow their label maps.

    python metrics.py                                        # the newest run, else assets/toy.pt
    python metrics.py --checkpoint F --data-root D --metrics fid,miou
    torchrun --nproc_per_node=8 metrics.py --checkpoint F    # the same scores, sooner

FID of two folders of images: python -m extras.scores --real DIR --fake DIR.

Scores can only be compared where their protocols agree: the network behind them, the size and the
number of images. So each one is printed with its protocol. Beside it stands the same score of real
images: a reference, not a limit. For a distance it is that between the even and the odd real ones,
half as many images with other label maps. For mIoU, generated images may be easier to read.

Images (B, 3, H, W) in [−1, 1] are rounded to the 256 levels of a png before anything is measured.
A set of them is reduced to float64 sums, so memory does not grow and processes add up theirs.

mIoU is read by the segmenter.pt beside the checkpoint. Where none of the same data is there, one is
trained.
"""

import argparse
import hashlib
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from matplotlib.figure import Figure
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
FEWEST = 4      # images for a Fréchet distance: each half of them has a covariance
# FID's weights, and how their SHA-256 begins.
INCEPTION = ("https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
             "pt_inception-2015-12-05-6726825d.pth", "6726825d")


# ---- Fréchet Inception distance ------------------------------------------------------------------
#
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


def mean_and_covariance(total):
    """A sum of moments() -> mean (d,), covariance (d, d), which is divided by n − 1."""
    count = total[0, 0]
    mean = total[0, 1:] / count
    return mean, (total[1:, 1:] - count * torch.outer(mean, mean)) / (count - 1)


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """|μ1 − μ2|² + Tr(Σ1 + Σ2 − 2 (Σ1 Σ2)^½), a float. Tensors or arrays, (d,) and (d, d).

    Σ1 Σ2 is not symmetric, and a general square root of it is slow, and fails where a covariance
    is singular. But only the root's trace is needed: the sum of the roots of the eigenvalues of
    Σ1 Σ2. With Σ1 = V diag(λ) Vᵀ these are the eigenvalues of the symmetric λ^½ Vᵀ Σ2 V λ^½.
    """
    mu1, mu2 = torch.as_tensor(mu1).double(), torch.as_tensor(mu2).double()
    sigma1, sigma2 = torch.as_tensor(sigma1).double(), torch.as_tensor(sigma2).double()
    # With fewer images than features most eigenvalues are 0 and come out as ±1e-16. The root would
    # make 1e-8 of each such rounding error, so they are left out.
    eps = len(mu1) * torch.finfo(torch.float64).eps
    eigenvalues, vectors = torch.linalg.eigh(sigma1)                        # ascending
    true = eigenvalues > eps * eigenvalues[-1:]
    half = vectors[:, true] * eigenvalues[true].sqrt()                      # V λ^½
    squares = torch.linalg.eigvalsh(half.T @ sigma2 @ half)
    roots = squares[squares > eps * squares[-1:]].sqrt()
    result = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * roots.sum()
    return max(result.item(), 0.0)


def moment_distance(total1, total2):
    """Fréchet distance between two sums of moments()."""
    mu1, sigma1 = mean_and_covariance(total1)
    mu2, sigma2 = mean_and_covariance(total2)
    return frechet_distance(mu1, sigma1, mu2, sigma2)


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
    total = hashlib.sha256()
    for tensor in network.state_dict().values():
        total.update(tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:8]


class InceptionFeatures(nn.Module):
    """The network of FID: images (B, 3, H, W) in [−1, 1] -> its 2048 pooled features (B, 2048).

    weights: a file in the layout of pytorch-fid's; None: that file, downloaded once. Images are
    resized to 299×299, bilinear without antialiasing, as FID always did. Raises UserError.
    """

    def __init__(self, weights=None):
        super().__init__()
        path = weights or fetch(*INCEPTION)
        with torch.device("meta"):      # draws no random numbers
            network = torchvision.models.Inception3(1008, aux_logits=False, init_weights=False)
        try:
            network.load_state_dict(sample.read_tensors(path), assign=True)
        except (RuntimeError, TypeError) as error:
            raise UserError(f"{path}: does not hold the weights of FID's network") from error
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
    """Make the pooling branch of an Inception block read pool(its input), not its own average.

    torchvision computes the average in the block's own code. So one hook pools what enters the
    block, and another gives the branch that instead of the average.
    """
    block.register_forward_pre_hook(lambda _, inputs: setattr(block, "pooled", pool(*inputs)))
    block.branch_pool.register_forward_pre_hook(lambda *_: block.pooled)


# ---- mIoU ----------------------------------------------------------------------------------------
#
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
    """A network, whoever trained it, that names every pixel's class by the data set's ids.

    network: images (B, 3, H, W) in [−1, 1] -> logits (B, K, h, w). table: for each of its K classes
    the id in the data set, or −1 where the data set has none: then its next best answer counts.
    None: K = N, the same classes. Classes that no entry names are not scored. size: what images are
    resized to for it, (H, W). description: its name in the protocol.
    """

    def __init__(self, network, dataset, table=None, size=None, description=""):
        self.network, self.size, self.description = network, size, description
        self.num_classes, self.ignore_label = dataset.num_classes, dataset.ignore_label
        if table is None:
            table = range(self.num_classes)
        self.table = torch.tensor(list(table))
        if self.ignore_label is not None:       # never scored, so it is never an answer either
            self.table[self.table == self.ignore_label] = -1

    def confusion(self, images, labels):
        """images (B, 3, H, W), labels (B, H, W) -> confusion matrix (N, N) float64."""
        if self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        logits, table = self.network(images), self.table.to(labels.device)        # (B, K, h, w)
        if logits.shape[2:] != labels.shape[1:]:
            logits = F.interpolate(logits, labels.shape[1:], mode="bilinear")     # (B, K, H, W)
        best = logits.masked_fill((table < 0)[:, None, None], -torch.inf).argmax(1)
        counts = confusion_matrix(table[best], labels, self.num_classes, self.ignore_label)
        known = torch.isin(torch.arange(self.num_classes, device=table.device), table)
        return counts * known[:, None].double()


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
    channels, batch_size, lr, usual_steps = [64, 96, 128, 192, 256], 16, 1e-3, 10_000
    if dataset.size[0] * dataset.size[1] < 256 * 256:
        channels, batch_size, lr, usual_steps = [24, 32, 48, 96], 8, 6e-3, 600
    steps = steps or usual_steps
    network = scoring_network(dataset.num_classes, channels)
    network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr)
    warm_up = 0.1 if steps != 10 else 0.2           # PyTorch divides by 0.1 · steps − 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=warm_up)
    order = iter(data.BatchSampler(len(dataset), min(batch_size, len(dataset)), seed=0))
    loader = data.make_loader(dataset, [next(order) for _ in range(steps)], workers)
    say(f"training the network behind mIoU, {steps} steps; a run told to stop ends after them")
    bar = tqdm(loader, "segmenter", leave=False, disable=rank_and_size()[0] > 0 or None)
    for images, labels in bar:
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
    return {"channels": channels, "network": network.cpu().state_dict(), "steps": steps,
            "description": f"U-Net trained {steps} steps on real {dataset.name} train images"}


def say(text):
    """A line on the screen from the first process; a progress bar moves out of its way."""
    if rank_and_size()[0] == 0:
        tqdm.write(text)


def digest_of_data(dataset):
    """A digest of a training set. Changed data change it, a copy of the same files does not.

    It is taken over all bytes of each label map, and over each photograph's size in bytes and 4 kB
    in the middle, so 20,000 pairs take seconds. Of drawn scenes, which follow from the seed and the
    code of toy.py, the first is looked at.
    """
    about = (dataset.size, list(dataset.class_names), dataset.ignore_label, dataset.seed,
             dataset.names)
    total = hashlib.sha256(repr(about).encode())
    if dataset.name == "toy":
        image, labels = dataset.read(0)
        total.update(image.tobytes() + labels.tobytes())
        return total.hexdigest()
    for photo, label_map in dataset.files.values():
        with data.readable(photo), open(photo, "rb") as file:
            size = file.seek(0, 2)                                          # to the end
            file.seek(size // 2)
            total.update(f"{size} ".encode() + file.read(4096))
        with data.readable(label_map):
            total.update(Path(label_map).read_bytes())
    return total.hexdigest()


def find_segmenter(dataset, device, run_dir=None, steps=None, workers=0):
    """The content of run_dir's segmenter.pt, or of a new one. All processes take the first's.

    A run keeps its segmenter, as scores of two networks cannot be compared. But one that learned
    from other data, say from label maps that have been corrected since, must not score. run_dir:
    None keeps nothing. steps: None takes a kept one of any number of steps.
    """
    path, content = Path(run_dir or "", "segmenter.pt"), {}
    keeps = run_dir is not None and rank_and_size()[0] == 0
    if keeps:
        digest = digest_of_data(dataset)
        if path.is_file():
            content = sample.read_tensors(path)
        if content and (content.get("digest") != digest or steps not in (None, content["steps"])):
            say(f"{path}: learned from other data, or in another number of steps, than asked now, "
                f"so a new one is trained; scores from before cannot be compared with new ones")
            content = {}
    content = gather(content)[0]
    if not content:
        content = gather(train_segmenter(dataset, device, steps, workers))[0]
        if keeps:
            content["digest"] = digest
            with data.write_whole(path) as partial:
                torch.save(content, partial)
    return content


# ---- The scorer ----------------------------------------------------------------------------------

class Scorer:
    """Scores a generator on a validation set: scorer(G, D) -> {name: float}, as often as one likes.

    Args:
        val_set, train_set: data.SceneDataset. A segmenter is trained on train_set.
        metrics: names out of METRICS. Fréchet distances need FEWEST images; with fewer they are
            left out, and a line says so.
        num_images: score on the first so many (None: all).
        segmenter: a Segmenter, or what a segmenter.pt holds. None: the one in run_dir; where none
            there fits, one is trained, when the first score is due.
        run_dir: folder that keeps segmenter.pt. None: nothing is kept.
        seed: image i gets the noise of seed + i.
        inception: an InceptionFeatures, or the file of its weights.
        segmenter_steps: training of the segmenter. None: what the kept one had, else by image size.
    After a call, `protocol` says what each score means, and sums["miou"] and real["miou"] are the
    confusion matrices of the generated and the real images.
    """

    def __init__(self, val_set, train_set, device, metrics=("miou", "fd_segmenter", "fid"), *,
                 num_images=None, segmenter=None, run_dir=None, batch_size=16, seed=0, workers=0,
                 inception=None, segmenter_steps=None):
        self.val_set, self.train_set = val_set, train_set
        self.device, self.batch_size, self.seed = torch.device(device), batch_size, seed
        self.run_dir, self.segmenter_steps, self.workers = run_dir, segmenter_steps, workers
        self.segmenter, self.inception = segmenter, inception
        self.count = min(num_images or len(val_set), len(val_set))
        self.protocol, self.sums, self.real = {}, {}, None
        self.metrics = []
        for name in metrics:
            if name not in METRICS:
                raise UserError(f"--metrics: there is no score {name!r}; there are "
                                f"{', '.join(METRICS)}")
            if name in ("fd_segmenter", "fid") and self.count < FEWEST:
                say(f"{name} is left out: it needs at least {FEWEST} images, not {self.count}")
            else:
                self.metrics.append(name)
        if "fid" in self.metrics and not isinstance(inception, nn.Module):
            self.inception = InceptionFeatures(inception).to(device)

    def __call__(self, generator, discriminator=None):
        """All chosen scores of this generator (and discriminator, for d_miou) -> {name: float}."""
        # Graphs that torch.compile made for training do not fit these batches, and are left alone.
        with torch.compiler.set_stance("force_eager"):
            scores = self.compare(self.images(generator=generator.eval()))
            if "d_miou" in self.metrics and discriminator is not None:
                scores["d_miou"] = self.score_discriminator(discriminator)
        return scores

    def score_discriminator(self, discriminator):
        """mIoU of D on the real images. Its last channel, "fake", is no answer here."""
        reader = Segmenter(discriminator, self.val_set, [*range(self.val_set.num_classes), -1])
        training = discriminator.training
        discriminator.eval()
        total = add_up(self.images(), {"d_miou": reader.confusion})["d_miou"]
        discriminator.train(training)
        return mean_iou(total)

    def compare(self, batches):
        """Scores of a set of images against the real ones. batches: yields (images, labels)."""
        if self.real is None:
            self.prepare()
        self.sums = add_up(batches, self.statistics)
        scores = {}
        for name, total in self.sums.items():
            if name == "miou":
                scores[name] = mean_iou(total)
            else:
                scores[name] = moment_distance(total, self.real[name])
            scores[f"{name}_real"] = self.real[f"{name}_real"]
        return scores

    def prepare(self):
        """What the first score needs: the segmenter, sums over the real images, the protocol."""
        if {"miou", "fd_segmenter"} & set(self.metrics):
            self.segmenter = self.open_segmenter()
        segmenter, inception = self.segmenter, self.inception
        # Of each score: its network, and what is added up over the images.
        known = {
            "miou": (segmenter, lambda images, labels: segmenter.confusion(images, labels)),
            # The features are the encoder's deepest, averaged over space.
            "fd_segmenter": (segmenter, lambda images, labels: moments(
                segmenter.network.encode(images)[-1].mean((2, 3)))),
            "fid": (inception, lambda images, labels: moments(inception(images)))}
        about = "{} images of {} {} at {}×{}".format(
            self.count, self.val_set.name, self.val_set.split, *self.val_set.size)
        self.statistics = {}
        self.protocol["d_miou"] = f"argmax over D's real classes, real images, {about}"
        for name in known:
            if name not in self.metrics:
                continue
            network, self.statistics[name] = known[name]
            self.protocol[name] = f"{network.description}, {about}"
            self.protocol[f"{name}_real"] = "even against odd real images"
        self.protocol["miou_real"] = "the same of the real images: a reference, not a limit"
        self.real = self.measure_real()

    def open_segmenter(self):
        """The Segmenter that was given, or that of a segmenter.pt: given, kept, or trained now."""
        content = self.segmenter
        if isinstance(content, Segmenter):
            return content
        if content is None:
            content = find_segmenter(self.train_set, self.device, self.run_dir,
                                     self.segmenter_steps, self.workers)
        network = scoring_network(self.val_set.num_classes, content["channels"])
        network.load_state_dict(content["network"])
        network.requires_grad_(False).eval()
        network.to(self.device, memory_format=torch.channels_last)
        text = f"{content['description']} ({network_hash(network)})"
        return Segmenter(network, self.val_set, description=text)

    def measure_real(self):
        """Sums over the real images, and name_real: their mIoU, or even against odd images."""
        even = add_up(self.images(0, 2), self.statistics)
        odd = add_up(self.images(1, 2), self.statistics)
        real = {}
        for name in self.statistics:
            real[name] = even[name] + odd[name]
            if name == "miou":
                real["miou_real"] = mean_iou(real["miou"])
            else:
                real[f"{name}_real"] = moment_distance(even[name], odd[name])
        return real

    def images(self, start=0, step=1, generator=None):
        """Yields (images, labels): real ones, or generated from their label maps.

        This process gets its share of the images start, start + step, …, in whole batches: an
        image always has the same neighbours, so any number of processes gives the same bits.
        """
        rank, processes = rank_and_size()
        indices, size = range(start, self.count, step), self.batch_size
        batches = [indices[k:k + size] for k in range(0, len(indices), size)][rank::processes]
        loader = data.make_loader(self.val_set, batches, self.workers)
        bar = tqdm(loader, "scoring", leave=False, disable=rank_and_size()[0] > 0 or None)
        for batch, (images, labels) in zip(batches, bar):
            images, labels = images.to(torch.get_default_dtype()), labels.to(self.device)
            if generator is not None:
                seeds = [self.seed + i for i in batch]
                noise = oasis.draw_noise(seeds, labels.shape[1:], generator.noise_dim,
                                         generator.pixel_noise)
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
    sums = dict.fromkeys(statistics, 0)
    for share in gather({name: total.cpu() for name, total in totals.items()}):
        for name, total in share.items():
            sums[name] = sums[name] + total
    return sums


def show(scorer, scores):
    """The table on the screen. A number without its protocol cannot be compared."""
    for name, value in scores.items():
        print(f"{name:18s} {value:10.4f}   {scorer.protocol.get(name, 'scored before this start')}")


def save_curves(rows, ends, path):
    """A panel for each loss and each score over the steps -> png.

    rows: those of log.csv and scores.csv. Dashed: a score of real images, and `ends`, {name: where
    a perfect G would end}.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    panels = [name for name in names if name not in ("step", "seconds")
              and (name.startswith("loss_") or not name.endswith("_real"))]
    figure = Figure(figsize=(3.2 * len(panels), 3), layout="tight")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for name, style in ((panel, "-"), (f"{panel}_real", "--")):
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points and name in (panel, *names):
                axis.plot(*zip(*points), style)
        if panel in ends:
            axis.axhline(ends[panel], linestyle="--")
        axis.set(xlabel="step", ylabel=panel)
    with data.write_whole(path) as partial:
        figure.savefig(partial, dpi=80, format="png")


# ---- The command line ----------------------------------------------------------------------------

def open_run(path, data_root=None):
    """A checkpoint file -> (its dictionary, its training set, its validation set). UserError."""
    checkpoint = sample.load_checkpoint(path)
    settings, about = checkpoint["settings"], checkpoint["dataset"]
    preset, size, seed = about["preset"], about["size"], settings["data_seed"]
    root = data_root or settings["data_root"]
    train_set = data.open_dataset(preset, "train", size, root, seed=seed)
    val_set = data.open_dataset(preset, "val", size, root, seed=seed)
    if list(val_set.class_names) != list(about["class_names"]):
        raise UserError(f"{path}: was trained on other classes than this dataset has")
    return checkpoint, train_set, val_set


def score_checkpoint(args, device):
    """Prints the scores of a checkpoint."""
    path = sample.find_checkpoint(args.checkpoint)
    checkpoint, train_set, val_set = open_run(path, args.data_root)
    G, D = sample.build_generator(checkpoint).to(device), sample.build_discriminator(checkpoint)
    if D is not None:
        D.to(device)
    elif "d_miou" in (args.metrics or ""):
        raise UserError(f"--metrics d_miou: {path} holds no discriminator that segments")
    names = args.metrics or "miou,fd_segmenter,d_miou"
    # A file to share, such as assets/toy.pt, holds its segmenter; a run has it in its folder.
    segmenter = checkpoint.get("segmenter")
    run_dir = path.parent if segmenter is None else None
    scorer = Scorer(
        val_set, train_set, device, names.split(","), num_images=args.num_images,
        segmenter=segmenter, run_dir=run_dir, batch_size=args.batch_size, seed=args.seed,
        inception=args.inception, workers=4 if device.type == "cuda" else 0)
    scores = scorer(G, D)
    if rank_and_size()[0] == 0:
        print(f"scores of {path}")
        show(scorer, scores)


@data.exit_in_words("metrics.py")
def main(argv=None):
    known = "\n".join(f"  {name:13s} {text}" for name, text in METRICS.items())
    parser = argparse.ArgumentParser(
        "metrics.py", description=f"{__doc__}\nscores:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add, number = parser.add_argument, sample.whole_number
    add("--checkpoint", metavar="FILE", help="latest.pt or best.pt of a run (default: the newest)")
    add("--data-root", metavar="DIR", help="its data set (default: as in training)")
    add("--metrics", metavar="A,B", help="see below (default: all but fid)")
    add("--num-images", type=number(1), metavar="N", help="the first N images (default: all)")
    add("--seed", type=number(0), default=0, help="image i gets the noise of seed + i (default 0)")
    add("--batch-size", type=number(1), default=16, help="memory and speed only (default 16)")
    add("--inception", metavar="FILE", help="weights of FID's network, if not downloaded")
    args = parser.parse_args(argv)
    device = start_processes()
    score_checkpoint(args, device)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
