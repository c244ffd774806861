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
    x = random_images(3, 192, 256)
    for y in (x.flip(0), metrics.quantise(x + 0.2 * random_images(3, 192, 256, 5)), x):
        theirs = pytorch_msssim.ms_ssim((x + 1) / 2, (y + 1) / 2, data_range=1, size_average=False)
        torch.testing.assert_close(metrics.ms_ssim(x, y), theirs, rtol=1e-4, atol=1e-5)


def test_ms_ssim_of_small_images():
    """One scale is plain SSIM; the number of scales is the most whose window fits."""
    x, y = random_images(2, 16, 20), random_images(2, 16, 20, 1)
    theirs = pytorch_msssim.ssim((x + 1) / 2, (y + 1) / 2, data_range=1, size_average=False)
    torch.testing.assert_close(metrics.ms_ssim(x, y), theirs, rtol=1e-4, atol=1e-5)
    scales = [metrics.ms_ssim_scales((side, 300)) for side in (10, 11, 22, 64, 175, 176)]
    assert scales == [0, 1, 2, 3, 4, 5]
    with pytest.raises(metrics.MetricsError, match="11×11"):
        metrics.ms_ssim(x[:, :, :8], y[:, :, :8])


def test_lpips_agrees_with_lpips(tmp_path):
    """Random VGG16, the published linear weights; the file that the package ships is the one we fetch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    linear = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
    assert distances.file_hash(linear) == distances.LPIPS_LINEAR[1]
    backbone = {"features." + name.split(".", 1)[1]: tensor
                for name, tensor in theirs.net.state_dict().items()}
    torch.save(backbone, tmp_path / "vgg.pth")
    ours = metrics.LPIPS(tmp_path / "vgg.pth", linear)
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
