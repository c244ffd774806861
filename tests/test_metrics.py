"""Scores against independent tools, against closed forms, and on images whose fault is known."""

import json
import subprocess
import sys
from pathlib import Path

import lpips
import numpy as np
import pytest
import pytorch_fid.inception
import pytorch_msssim
import scipy.stats
import skimage.color
import skimage.feature
import torch
import torch.nn.functional as F
import torchmetrics
import torchvision
from PIL import Image
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import nn

import data
import distances
import metrics
import oasis
import segmenter

ROOT = Path(metrics.__file__).parent
SIZE = (32, 32)


def random_images(count, height, width, seed=0):
    """Smooth random images in [-1, 1] with some noise, at the 256 levels of a png."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=rng)
    noise = 0.1 * torch.randn(count, 3, height, width, generator=rng)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")
    return metrics.quantise(2 * smooth - 1 + noise)


def save_images(images, folder):
    folder.mkdir(parents=True)
    for i, pixels in enumerate(data.to_uint8(images)):
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def error_of(arguments, capsys):
    """Run the script on a bad request: its one sentence. Exit code 2, nothing on standard output."""
    with pytest.raises(SystemExit) as stop:
        metrics.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith("metrics.py: error: ") and err.count("\n") == 1
    return err


@pytest.fixture(autouse=True)
def own_hub(tmp_path, monkeypatch):
    """Downloads and caches of every test lie in a folder of its own, and nothing is downloaded."""
    def offline(url, *args, **kwargs):
        raise OSError("no network in the tests")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)


# ---- Fréchet distance ------------------------------------------------------------------------------


def test_frechet_closed_forms():
    """Equal covariances: the squared distance of the means. Diagonal ones: Σ (√a − √b)²."""
    rng = np.random.default_rng(0)
    sigma = np.cov(rng.normal(size=(8, 50)))
    mu = rng.normal(size=8)
    assert metrics.frechet_distance(mu, sigma, mu + 0.5, sigma) == pytest.approx(8 * 0.25, rel=1e-9)
    a, b = rng.uniform(0.1, 5, (2, 8))
    expected = ((a ** 0.5 - b ** 0.5) ** 2).sum()
    assert metrics.frechet_distance(mu, np.diag(a), mu, np.diag(b)) == pytest.approx(expected)


def test_frechet_agrees_with_pytorch_fid():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 40)) @ rng.normal(size=(40, 40)), rng.normal(1, 2, (300, 40))
    ours = metrics.moment_distance(*(metrics.moments(torch.from_numpy(f)) for f in (x, y)))
    theirs = calculate_frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert ours == pytest.approx(theirs, rel=1e-8)


def test_frechet_of_singular_covariances():
    """Fewer images than features: the trace is a nuclear norm, which numpy computes another way."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(10, 40)), rng.normal(size=(7, 40))
    a, b = ((f - f.mean(0)) / np.sqrt(len(f) - 1) for f in (x, y))
    expected = (((x.mean(0) - y.mean(0)) ** 2).sum() + (a ** 2).sum() + (b ** 2).sum()
                - 2 * np.linalg.norm(a @ b.T, "nuc"))
    ours = metrics.moment_distance(*(metrics.moments(torch.from_numpy(f)) for f in (x, y)))
    assert ours == pytest.approx(expected, rel=1e-8)
    zeros = np.zeros((40, 40))
    assert metrics.frechet_distance(x[0], zeros, x[0], zeros) == 0


def test_moments_add_up():
    """Streamed in pieces, far from zero: mean and covariance as of the whole."""
    features = 100 + torch.randn(90, 12, generator=torch.Generator().manual_seed(0))
    total = sum(metrics.moments(part) for part in features.split(17))
    mean, covariance = distances.mean_and_covariance(total)
    torch.testing.assert_close(mean, features.double().mean(0))
    torch.testing.assert_close(covariance, torch.cov(features.double().T), rtol=1e-8, atol=1e-8)


# ---- The FID network -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights in the layout of the public file, with features of ordinary size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.Inception3(1008, aux_logits=False, init_weights=False)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
                nn.init.normal_(module.running_mean, 0, 0.2)
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def pytorch_fid_features(inception_file):
    """pytorch-fid's network with the same random weights: images in [-1, 1] -> features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid.inception, "load_state_dict_from_url",
                      lambda *args, **kwargs: torch.load(inception_file))
        network = pytorch_fid.inception.InceptionV3([3]).eval()

    def features(images):
        with torch.no_grad():
            return network((images + 1) / 2)[0].flatten(1)
    return features


@pytest.mark.parametrize("size", [(64, 64), (299, 299), (200, 320)])
def test_inception_features_agree_with_pytorch_fid(inception_file, pytorch_fid_features, size):
    images = random_images(2, *size)
    ours, theirs = metrics.InceptionFeatures(inception_file)(images), pytorch_fid_features(images)
    assert ours.shape == (2, 2048) and theirs.std() > 0.01
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_fid_of_two_folders(inception_file, pytorch_fid_features, tmp_path, capsys, monkeypatch):
    """The script, against pytorch-fid's features and the nuclear-norm form of the distance.

    On every 32nd feature, as eigenvalues of 2048×2048 matrices take many seconds.
    """
    class Narrow(metrics.InceptionFeatures):
        def forward(self, images):
            return super().forward(images)[:, ::32]
    monkeypatch.setattr(metrics, "InceptionFeatures", Narrow)
    real, fake = random_images(8, 40, 48, seed=1), random_images(8, 40, 48, seed=2)
    folders = [save_images(real, tmp_path / "real"), save_images(fake * 0.8, tmp_path / "fake")]
    arguments = ["--real", folders[0], "--fake", folders[1], "--metrics", "fid,colour",
                 "--inception", inception_file, "--json", tmp_path / "s.json", "--device", "cpu"]
    metrics.main([str(a) for a in arguments])
    scores = json.loads((tmp_path / "s.json").read_text())["scores"]
    x, y = (pytorch_fid_features(images).double().numpy()[:, ::32]
            for images in (real, metrics.quantise(fake * 0.8)))
    a, b = ((f - f.mean(0)) / np.sqrt(7) for f in (x, y))
    expected = (((x.mean(0) - y.mean(0)) ** 2).sum() + (a ** 2).sum() + (b ** 2).sum()
                - 2 * np.linalg.norm(a @ b.T, "nuc"))
    assert scores["fid"]["value"] == pytest.approx(expected, rel=1e-4)
    assert "fewer than 2048" in scores["fid"]["protocol"] and "8 images" in scores["fid"]["protocol"]
    assert f"{scores['fid']['value']:.4f}" in capsys.readouterr().out
    # The real folder's statistics are kept; read back, they give the same value.
    kept, = (tmp_path / "torch_home" / "hub" / "oasis-statistics").iterdir()
    written = kept.stat().st_mtime_ns
    metrics.main([str(a) for a in arguments])
    again = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert again == scores and kept.stat().st_mtime_ns == written
    # Another real image under the same name is another set: nothing stale is used.
    before = metrics.dataset_key(metrics.ImageFolder(folders[0]), 8, "w")
    Image.fromarray(data.to_uint8(fake[:1])[0]).save(folders[0] / "003.png")
    assert metrics.dataset_key(metrics.ImageFolder(folders[0]), 8, "w") != before


def test_weights_that_are_wrong_or_missing(inception_file, tmp_path, capsys):
    folder = save_images(random_images(4, 16, 16), tmp_path / "images")
    ask = ["--real", folder, "--fake", folder, "--json", tmp_path / "s.json", "--device", "cpu"]
    cut, other = tmp_path / "cut.pth", tmp_path / "other.pth"
    cut.write_bytes(inception_file.read_bytes()[:10_000])
    torch.save({"conv.weight": torch.zeros(3)}, other)
    for path in (cut, other, tmp_path / "nowhere.pth"):
        assert str(path) in error_of([*ask, "--metrics", "fid", "--inception", path], capsys)
    # Not there and not to be fetched: an error where it was asked for, a remark where it was not.
    place = tmp_path / "torch_home/hub/checkpoints/pt_inception-2015-12-05-6726825d.pth"
    assert str(place) in error_of([*ask, "--metrics", "fid"], capsys)
    assert not (tmp_path / "s.json").exists()
    metrics.main([str(a) for a in ask])
    out, err = capsys.readouterr()
    assert str(place) in err and err.count("\n") == 1 and "colour" in out and "fid" not in out
    # Half a download left by something else is found out by its hash.
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"half")
    assert "SHA-256" in error_of([*ask, "--metrics", "fid"], capsys)
    assert not (tmp_path / "torch_home/hub/oasis-statistics").exists()


# ---- Diversity, colour, texture --------------------------------------------------------------------


def test_ms_ssim_agrees_with_pytorch_msssim():
    """In float64, and in float32 up to the rounding of E[x²] − E[x]²."""
    x = random_images(3, 176, 192)
    for y in (x.flip(0), metrics.quantise(x + 0.2 * random_images(3, 176, 192, 5)), x):
        theirs = pytorch_msssim.ms_ssim((x.double() + 1) / 2, (y.double() + 1) / 2, data_range=1,
                                        size_average=False)
        torch.testing.assert_close(metrics.ms_ssim(x.double(), y.double()), theirs, rtol=1e-6, atol=0)
        torch.testing.assert_close(metrics.ms_ssim(x, y).double(), theirs, rtol=1e-4, atol=1e-4)


def test_ms_ssim_of_small_images():
    """One scale is plain SSIM; the number of scales is the most whose window fits."""
    x = random_images(2, 16, 20).double()
    y = x + 0.3 * random_images(2, 16, 20, 1)
    theirs = pytorch_msssim.ssim((x + 1) / 2, (y + 1) / 2, data_range=1, size_average=False)
    torch.testing.assert_close(metrics.ms_ssim(x, y), theirs, rtol=1e-6, atol=0)
    scales = [metrics.ms_ssim_scales((side, 300)) for side in (10, 11, 22, 64, 175, 176)]
    assert scales == [0, 1, 2, 3, 4, 5]
    with pytest.raises(metrics.MetricsError, match="11×11"):
        metrics.ms_ssim(x[:, :, :8], y[:, :, :8])


@pytest.fixture(scope="module")
def random_lpips(tmp_path_factory):
    """The lpips package's network, random VGG16 but published linear weights; and ours from its tensors."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    linear = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
    assert distances.file_hash(linear) == distances.LPIPS_LINEAR[1]       # the file that we fetch
    backbone = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save({"features." + name.split(".", 1)[1]: tensor
                for name, tensor in theirs.net.state_dict().items()}, backbone)
    return theirs, metrics.LPIPS(backbone, linear)


def test_lpips_agrees_with_lpips(random_lpips):
    theirs, ours = random_lpips
    images = random_images(3, 64, 48)
    with torch.no_grad():
        expected = torch.stack([theirs(images[i:i + 1], images[j:j + 1]).squeeze()
                                for i, j in ((0, 1), (0, 2), (1, 2))])
        torch.testing.assert_close(ours.pairwise(images), expected, rtol=1e-4, atol=1e-7)


def test_lab_agrees_with_scikit_image():
    images = random_images(2, 20, 30)
    theirs = skimage.color.rgb2lab((images.double().permute(0, 2, 3, 1).numpy() + 1) / 2)
    np.testing.assert_allclose(distances.rgb_to_lab(images).permute(0, 2, 3, 1), theirs, atol=1e-3)


def test_colour_distance_agrees_with_scipy():
    x, y = distances.colour_histogram(random_images(2, 20, 30)), \
        distances.colour_histogram(0.5 * random_images(2, 20, 30, 1))
    bins = np.arange(256)
    expected = np.mean([scipy.stats.wasserstein_distance(bins, bins, a, b) for a, b in zip(x, y)])
    assert expected > 1 and metrics.colour_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_texture_codes_agree_with_scikit_image():
    """Its multi-block patterns with blocks of one pixel are Ojala's 3×3 patterns."""
    images = random_images(1, 12, 14)
    images[:, :, 4:9] = 0.25                                     # flat: every neighbour is equal
    grey = data.to_uint8(images)[0].astype(np.int64) @ [299, 587, 114] // 1000
    integral = skimage.transform.integral_image(grey)
    expected = [[skimage.feature.multiblock_lbp(integral, r, c, 1, 1) for c in range(12)]
                for r in range(10)]
    assert distances.local_binary_patterns(images)[0].tolist() == expected


def test_texture_distance():
    """χ² by hand: equal 0, disjoint 1; sums do not matter."""
    a = torch.zeros(256, dtype=torch.float64)
    a[:2] = torch.tensor([3.0, 1.0])
    assert metrics.texture_distance(a, 7 * a) == 0
    assert metrics.texture_distance(a, a.roll(2)) == pytest.approx(1)
    assert metrics.texture_distance(a, a.flip(0).roll(2)) == pytest.approx(0.25)


# ---- mIoU and the segmenter ------------------------------------------------------------------------


def test_confusion_and_miou_agree_with_torchmetrics():
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(0, 6, (3, 20, 20), generator=rng)
    target[target == 4] = 5                                      # class 4 does not occur at all
    guess = torch.randint(0, 4, (3, 20, 20), generator=rng) + 2 * (torch.rand(3, 20, 20) < -1)
    prediction = torch.where(torch.rand(3, 20, 20, generator=rng) < 0.7, target, guess)
    prediction[prediction == 0] = 1                              # nobody may answer with the ignored label
    ours = metrics.confusion_matrix(prediction, target, 6, ignore_label=0)
    matrix = torchmetrics.classification.MulticlassConfusionMatrix(6, ignore_index=0)
    assert torch.equal(ours, matrix(prediction, target))
    jaccard = torchmetrics.classification.MulticlassJaccardIndex(6, ignore_index=0)
    accuracy = torchmetrics.classification.MulticlassAccuracy(6, average="micro", ignore_index=0)
    assert metrics.mean_iou(ours) == pytest.approx(jaccard(prediction, target).item(), rel=1e-6)
    assert metrics.pixel_accuracy(ours) == pytest.approx(accuracy(prediction, target).item(), rel=1e-6)
    with pytest.raises(metrics.MetricsError, match="0 to 5"):
        metrics.confusion_matrix(prediction + 9, target, 6)


class Painted(torch.utils.data.Dataset):
    """Each class in one colour, "unknown" in any: a perfect segmenter has mIoU 1."""

    class_names, num_classes, ignore_label = ["unknown", "a", "b", "c"], 4, 0
    colours = torch.tensor([[0, 0, 0], [-1, 1, 1], [1, -1, 1], [1, 1, -1]]).float()
    name, split, size = "painted", "val", SIZE

    def __init__(self, count=8):
        rng = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, 4, (count, 8, 8), generator=rng).kron(torch.ones(4, 4)).long()
        self.names = [str(i) for i in range(count)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.colours[self.labels[i]].permute(2, 0, 1), self.labels[i]


class ByColour(nn.Module):
    """The nearest colour, as logits. Its classes: c, a, b, and one that the dataset does not have."""

    def __init__(self):
        super().__init__()
        self.register_buffer("colours", torch.cat([Painted.colours[[3, 1, 2]], torch.zeros(1, 3)]))

    def forward(self, images):
        return -(images[:, None] - self.colours[:, :, None, None]).square().sum(2)


def export(network, path):
    dims = {0: torch.export.Dim("batch", max=1024)}
    program = torch.export.export(network.eval(), (torch.zeros(2, 3, *SIZE),), dynamic_shapes=(dims,))
    torch.export.save(program, path)
    return path


def test_own_network_as_an_exported_program(tmp_path):
    dataset, path = Painted(), export(ByColour(), tmp_path / "by_colour.pt2")
    (tmp_path / "map.txt").write_text("c\n1\nb\n-\n")
    own = segmenter.load_exported(path, dataset, "cpu", label_map=tmp_path / "map.txt")
    scorer = metrics.Scorer(dataset, None, "cpu", ["miou", "accuracy"], segmenter=own)
    images = [(0, *(torch.stack(t) for t in zip(*[dataset[i] for i in range(8)])))]
    scores = scorer.compare(images)
    assert scores == {"miou": 1, "miou_real": 1, "accuracy": 1, "accuracy_real": 1}
    assert "by_colour.pt2" in scorer.protocol["miou"] and "'unknown'" in scorer.protocol["miou"]
    # A class that the network does not know is not scored: its pixels leave the matrix.
    (tmp_path / "map.txt").write_text("-\na\nb\n-\n")
    own = segmenter.load_exported(path, dataset, "cpu", label_map=tmp_path / "map.txt")
    confusion = own.confusion(*images[0][1:])
    assert confusion.sum() == (dataset.labels == 1).sum() + (dataset.labels == 2).sum()
    assert metrics.mean_iou(confusion) == 1
    # Other sizes than the exported one need --segmenter-size.
    with pytest.raises(metrics.MetricsError, match="by_colour.pt2: refuses"):
        own(torch.zeros(2, 3, 40, 40), (40, 40))
    own.size = SIZE
    assert own(torch.zeros(2, 3, 40, 40), (40, 40)).shape == (2, 40, 40)


class Exportable(nn.Module):
    """As in the README: a published network becomes images in [-1, 1] -> logits."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images):
        return self.network(((images + 1) / 2 - self.mean) / self.std)["out"]


def test_a_published_architecture_can_be_exported(tmp_path):
    """The README's way for UperNet101, DRN and DeepLabV2, on a network that torchvision has."""
    with torch.random.fork_rng():
        network = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4)
    path = export(Exportable(network, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), tmp_path / "n.pt2")
    own = segmenter.load_exported(path, Painted(), "cpu", size=SIZE)
    images = random_images(3, 48, 64)
    predicted = own(images, (48, 64))
    assert predicted.shape == (3, 48, 64) and predicted.min() >= 1      # never "unknown"


@pytest.fixture(scope="module")
def toy_scorer(tmp_path_factory):
    """A Scorer on small toy scenes, with a segmenter that has learned something."""
    train, val = (data.open_dataset("toy", split, SIZE, num_images=count)
                  for split, count in (("train", 600), ("val", 96)))
    state = torch.get_rng_state()
    scorer = metrics.Scorer(val, train, "cpu", SET_SCORES, run_dir=tmp_path_factory.mktemp("run"),
                            segmenter_steps=250)
    assert torch.equal(torch.get_rng_state(), state)             # training draws nothing global
    return scorer


SET_SCORES = ("miou", "accuracy", "fd_segmenter", "colour", "texture")


def blurred(images):
    return F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)


FAULTS = {      # what is done to real images -> the scores that must notice
    "noise": (lambda x: x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
              {"miou", "accuracy", "fd_segmenter", "texture"}),
    "blur": (blurred, {"miou", "accuracy", "fd_segmenter", "texture"}),
    "wrong colours": (lambda x: x.flip(1), {"miou", "accuracy", "fd_segmenter", "colour"}),
    "shuffled labels": (lambda x: x.roll(1, 0), {"miou", "accuracy"}),
    "collapsed": (lambda x: x[:1].expand_as(x), {"miou", "accuracy", "fd_segmenter"}),
}


def test_scores_move_the_right_way(toy_scorer):
    """Every fault worsens what should notice it; shuffling labels leaves the set, and its scores, alone."""
    def scores(fault):
        return toy_scorer.compare((half, fault(images), labels)
                                  for half, _, images, labels in toy_scorer.batches("test"))
    table = {"none": scores(lambda x: x), **{name: scores(f) for name, (f, _) in FAULTS.items()}}
    print("", *(f"{name:16s}" + "".join(f"{s} {row[s]:8.4f}   " for s in SET_SCORES)
                for name, row in table.items()), sep="\n")
    good = table["none"]
    assert good["miou"] == good["miou_real"] > 0.3
    for name, (_, noticed_by) in FAULTS.items():
        for score in SET_SCORES:
            if score in ("miou", "accuracy"):
                assert table[name][score] < 0.9 * good[score], (name, score)
            elif score in noticed_by:
                assert table[name][score] > 1.5 * good[f"{score}_real"], (name, score)
    for score in ("fd_segmenter", "colour", "texture"):
        assert table["shuffled labels"][score] == pytest.approx(good[score], abs=1e-6)


class Painter(nn.Module):
    """A stand-in generator: the palette's colours, tinted by the noise unless it has collapsed."""

    noise_dim = 3

    def __init__(self, dataset, tint):
        super().__init__()
        self.colours, self.tint = torch.as_tensor(dataset.palette) / 127.5 - 1, tint

    def forward(self, labels, noise):
        assert not self.training
        pattern = torch.sin(torch.arange(labels.shape[2]) * noise.mean(1, keepdim=True))
        tint = noise[:, :, None, None] + pattern[:, None, None, :]
        return self.colours[labels].permute(0, 3, 1, 2) * 0.7 + self.tint * tint


def test_diversity(toy_scorer, random_lpips):
    """A generator deaf to noise: MS-SSIM 1, LPIPS 0. The more the noise does, the further from that."""
    scores = []
    for tint in (0, 0.05, 0.2):
        scorer = metrics.Scorer(toy_scorer.dataset, None, "cpu", ["ms_ssim"], num_images=4)
        scorer.metrics.append("lpips")
        scorer.networks["lpips"] = random_lpips[1]
        scores.append(scorer(Painter(toy_scorer.dataset, tint)))
    assert scores[0]["ms_ssim"] == pytest.approx(1) and scores[0]["lpips"] == pytest.approx(0, abs=1e-9)
    assert scores[0]["ms_ssim"] > scores[1]["ms_ssim"] > scores[2]["ms_ssim"] > 0
    assert scores[0]["lpips"] < scores[1]["lpips"] < scores[2]["lpips"]
    assert "20 samples" in scorer.protocol["lpips"] and "2 scales" in scorer.protocol["ms_ssim"]


def test_scoring_leaves_no_trace(toy_scorer):
    """Same scores again, in other batches, in training mode; networks and random numbers untouched."""
    dataset = toy_scorer.dataset
    G, D = tiny_networks()
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in (G, D)]
    state = torch.get_rng_state()
    names, path = ("miou", "fd_segmenter", "d_miou"), segmenter_file(toy_scorer)
    first, second = (metrics.Scorer(dataset, None, "cpu", names, 30, path, batch_size=size)(G, D)
                     for size in (16, 7))
    assert first == pytest.approx(second, rel=1e-5) and set(names) < set(first)
    assert torch.equal(torch.get_rng_state(), state) and G.training and D.training
    for network, old in zip((G, D), before):
        assert all(torch.equal(old[k], v) for k, v in network.state_dict().items())


def segmenter_file(scorer):
    """The segmenter.pt of the toy scorer's run folder: it was kept, and gives the same network back."""
    path = scorer.run_dir / "segmenter.pt"
    assert segmenter.load_segmenter(path, scorer.dataset, "cpu").description == \
        scorer.segmenter.description
    return path


# ---- The script on a run ---------------------------------------------------------------------------


def tiny_networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return oasis.Generator(10, 8, 4, 3, 8), oasis.Discriminator(10, (8, 8))


@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory):
    """An untrained tiny run on the toy scenes."""
    G, D = tiny_networks()
    toy = data.open_dataset("toy", "val", SIZE)
    path = tmp_path_factory.mktemp("tiny") / "latest.pt"
    torch.save({"format": "oasis-run-1", "model": "oasis", "step": 0,
                "config": {"preset": "toy", "data_root": "", "seed": 0},
                "dataset": {"preset": "toy", "class_names": list(toy.class_names),
                            "palette": toy.palette.tolist(), "ignore_label": 0, "size": list(SIZE)},
                "generator_args": G.config, "discriminator_args": D.config,
                "generator": G.state_dict(), "discriminator": D.state_dict(),
                "ema": G.state_dict()}, path)
    return path


def test_two_processes_score_like_one(checkpoint_file, tmp_path):
    """torchrun, gloo: the same JSON to 1e-6. The first run trains the segmenter, the others find it."""
    arguments = [str(ROOT / "metrics.py"), "--checkpoint", str(checkpoint_file), "--num-images", "10",
                 "--batch-size", "4", "--segmenter-steps", "2", "--device", "cpu", "--metrics",
                 "miou,accuracy,fd_segmenter,colour,texture,ms_ssim,d_miou", "--json"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    results = []
    for name, launcher in (("two", torchrun), ("one", [sys.executable])):
        subprocess.run([*launcher, *arguments, str(tmp_path / name)], check=True, cwd=ROOT,
                       capture_output=True)
        scores = json.loads((tmp_path / name).read_text())["scores"]
        results.append({name: score["value"] for name, score in scores.items()})
    assert results[0] == pytest.approx(results[1], rel=1e-6, abs=1e-9) and len(results[0]) == 12


def test_bad_requests_for_a_run(checkpoint_file, tmp_path, capsys):
    ask, notes = ["--checkpoint", checkpoint_file, "--device", "cpu"], tmp_path / "notes.txt"
    notes.write_text("sky\nwhale\n")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint_file.read_bytes()[:999])
    torch.save({"format": "oasis-segmenter-1", "class_names": ["x"], "size": [1, 1]}, tmp_path / "s.pt")
    exported = export(ByColour(), tmp_path / "by_colour.pt2")
    for arguments, words in [
            (["--checkpoint", cut], "cut.pt: not a checkpoint"),
            ([*ask, "--metrics", "miou,beauty"], "no score 'beauty'; there are miou, accuracy"),
            ([*ask, "--num-images", "1"], "1 image"),
            ([*ask, "--segmenter", notes], "notes.txt: not a checkpoint"),
            ([*ask, "--segmenter", checkpoint_file], "not a segmenter"),
            ([*ask, "--segmenter", tmp_path / "s.pt"], "other class names"),
            ([*ask, "--label-map", notes], "belong to a --segmenter FILE.pt2"),
            ([*ask, "--segmenter", tmp_path / "no.pt2"], "no.pt2: there is no such file"),
            ([*ask, "--segmenter", exported, "--metrics", "fd_segmenter"], "fd_segmenter is measured"),
            ([*ask, "--segmenter", exported, "--metrics", "miou"], "(B, 10, H, W) is needed"),
            ([*ask, "--segmenter", exported, "--label-map", notes], "line 2: 'whale' is neither")]:
        assert words in error_of([*arguments, "--json", tmp_path / "s.json"], capsys)
    assert not (tmp_path / "s.json").exists()


def test_bad_folders(tmp_path, capsys):
    good = save_images(random_images(5, 16, 16), tmp_path / "good")
    fewer = save_images(random_images(4, 16, 16), tmp_path / "fewer")
    single = save_images(random_images(1, 16, 16), tmp_path / "single")
    mixed = save_images(random_images(5, 16, 16), tmp_path / "mixed")
    broken = save_images(random_images(5, 16, 16), tmp_path / "broken")
    Image.new("RGB", (20, 16)).save(mixed / "002.png")
    (broken / "003.png").write_bytes((broken / "002.png").read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    for folder, words in [
            (tmp_path / "nowhere", "nowhere: there is no such folder"),
            (tmp_path / "empty", "empty: holds no images"),
            (fewer, "distances depend on the number, so choose one for both: --num-images 4"),
            (single, "--num-images 1"), (mixed, "002.png: is 16×20, 000.png is 16×16"),
            (broken, "003.png: is broken")]:
        message = error_of(["--real", folder, "--fake", good, "--metrics", "colour", "--json",
                            tmp_path / "s.json", "--device", "cpu"], capsys)
        assert words in message
    ask = ["--real", single, "--fake", single, "--device", "cpu", "--metrics"]
    assert "1 image" in error_of([*ask, "colour"], capsys)
    assert "miou needs a --checkpoint" in error_of([*ask, "miou"], capsys)
    assert not (tmp_path / "s.json").exists()
    metrics.main([str(a) for a in ("--real", good, "--fake", fewer, "--num-images", 4, "--device", "cpu",
                                   "--metrics", "colour,texture")])
    assert "4 images" in capsys.readouterr().out
