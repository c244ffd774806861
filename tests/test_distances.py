"""The measures against independent tools and closed forms."""

import numpy as np
import pytest
import pytorch_msssim
import scipy.stats
import skimage.color
import skimage.feature
import skimage.transform
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from random_networks import (  # noqa: F401 (fixtures)
    inception_file, pytorch_fid_features, random_images, random_lpips)

import data
import distances
import metrics

# ---- Fréchet distance ----------------------------------------------------------------------------


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


# ---- Networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (299, 299), (200, 320)])
def test_inception_features_agree_with_pytorch_fid(inception_file, pytorch_fid_features, size):
    images = random_images(2, *size)
    ours, theirs = metrics.InceptionFeatures(inception_file)(images), pytorch_fid_features(images)
    assert ours.shape == (2, 2048) and theirs.std() > 0.01
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


# ---- Diversity, colour, texture ------------------------------------------------------------------


def test_ms_ssim_agrees_with_pytorch_msssim():
    """Up to the rounding of E[x²] − E[x]²; theirs keeps its window in float32."""
    x = random_images(3, 176, 192)
    for y in ((x + x.flip(0)) / 2, metrics.quantise(x + 0.2 * random_images(3, 176, 192, 5)), x):
        theirs = pytorch_msssim.ms_ssim((x.double() + 1) / 2, (y.double() + 1) / 2, data_range=1,
                                        size_average=False)
        ours = metrics.ms_ssim(x.double(), y.double())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
        torch.testing.assert_close(metrics.ms_ssim(x, y).double(), theirs, rtol=1e-4, atol=0)


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
