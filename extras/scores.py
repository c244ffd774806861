"""Diversity (Table 2), colour and texture (Figure 3): the paper's other scores.

    python -m extras.scores --checkpoint runs/toy/latest.pt --metrics ms_ssim,colour,texture

ms_ssim   structural similarity of two images of one label map ↓ (Table 2; low: diverse)
lpips     perceptual distance of two images of one label map ↑ (Table 2; high: diverse)
colour    earth mover's distance between LAB histograms of generated and real images ↓ (Figure 3)
texture   χ² distance between histograms of local binary patterns ↓ (Figure 3)

The first two are means over all pairs of 20 images of one label map, and over label maps. The paper
does not say over what its histograms are taken; here it is all pixels of all images. *_real is the
same distance between the even and the odd real images, which no generator gets much below.
Needs lpips, pytorch-msssim and scikit-image: extras/requirements.txt.
"""

import argparse

import lpips
import numpy as np
import torch
from pytorch_msssim.ssim import _fspecial_gauss_1d, _ssim
from scipy.stats import wasserstein_distance
from skimage.color import rgb2gray, rgb2lab
from skimage.feature import local_binary_pattern
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

import processes
import sample
import data
import metrics
import oasis

SAMPLES = 20    # images per label map for MS-SSIM and LPIPS, as the authors took for Table 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)       # of MS-SSIM; Wang et al., 2003
VGG16 = ("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af")


# ---- Diversity -----------------------------------------------------------------------------------

def pairs(images, size=32):
    """All pairs of images (n, 3, H, W), in batches: yields two (up to size, 3, H, W)."""
    first, second = torch.triu_indices(len(images), len(images), 1)
    for i, j in zip(first.split(size), second.split(size)):
        yield images[i], images[j]


def num_scales(size):
    """How many of MS-SSIM's five scales fit: its 11×11 window must lie inside the smallest."""
    if min(size) < 11:
        raise data.UserError(f"MS-SSIM needs images of at least 11×11, not {size[0]}×{size[1]}")
    return max(m for m in range(1, 6) if min(size) // 2 ** (m - 1) >= 11)


def ms_ssim_of_pairs(images):
    """Mean MS-SSIM of all pairs of images (n, 3, H, W) in [−1, 1]; 1: all are equal.

    Five scales need 176 pixels. Smaller images get the scales that fit, their weights scaled to sum
    to 1 again. Such values can be compared among themselves only. pytorch_msssim.ms_ssim refuses
    them; from 176 pixels on this is its value.
    """
    weights = SCALE_WEIGHTS[:num_scales(images.shape[2:])]
    window, values = _fspecial_gauss_1d(11, 1.5).repeat(3, 1, 1, 1), []
    for x, y in pairs((images + 1) / 2):
        product = 1.0
        for scale, weight in enumerate(weights, 1):
            similarity, contrast = _ssim(x, y, data_range=1, win=window, size_average=False)
            # Brightness is compared at the coarsest scale only.
            term = similarity if scale == len(weights) else contrast              # (pairs, 3)
            product = product * term.clamp(min=0) ** (weight / sum(weights))
            x, y = avg_pool2d(x, 2), avg_pool2d(y, 2)
        values.append(product.mean(1))
    return torch.cat(values).mean().item()


def load_lpips():
    """The network of LPIPS (Zhang et al., 2018) on VGG16, whose weights are downloaded once."""
    metrics.fetch(*VGG16)           # to where lpips looks for it, or a sentence that says where
    return lpips.LPIPS(net="vgg", verbose=False).eval()


def lpips_of_pairs(network, images):
    """Mean LPIPS of all pairs of images (n, 3, H, W) in [−1, 1]; 0: all are equal."""
    return torch.cat([network(a, b).flatten() for a, b in pairs(images)]).mean().item()


# ---- Colour and texture --------------------------------------------------------------------------

def colour_distance(images_a, images_b):
    """Earth mover's distance between two sets of images (n, H, W, 3) uint8, in LAB units.

    One histogram of each of L, a and b, in steps of 1; the mean of the three distances.
    """
    bins = np.arange(-128, 129) - 0.5
    values = bins[:-1] + 0.5
    a, b = (sum(np.stack([np.histogram(channel, bins)[0] for channel in rgb2lab(image).T])
                for image in images) for images in (images_a, images_b))
    return float(np.mean([wasserstein_distance(values, values, p, q) for p, q in zip(a, b)]))


def texture_distance(images_a, images_b):
    """χ² distance ½ Σ (p − q)² / (p + q) between two sets of images (n, H, W, 3) uint8, 0 … 1.

    p and q are the shares of the 256 local binary patterns: for each of 8 points around a pixel,
    one bit that says whether it is at least as bright. Only the order of brightness counts.
    """
    p, q = (sum(np.bincount(codes_of(image).ravel(), minlength=256) for image in images)
            for images in (images_a, images_b))
    p, q = p / p.sum(), q / q.sum()
    either = p + q > 0
    return float(0.5 * ((p - q)[either] ** 2 / (p + q)[either]).sum())


def codes_of(image):
    """The local binary pattern of every pixel but the outermost: (H, W, 3) -> (H−2, W−2) uint8."""
    grey = (rgb2gray(image) * 255).round().astype(np.uint8)
    return local_binary_pattern(grey, P=8, R=1)[1:-1, 1:-1].astype(np.uint8)


# ---- A checkpoint --------------------------------------------------------------------------------

@torch.no_grad()
def score(generator, val_set, names, num_images=None, seed=0, device="cpu"):
    """{score: float} of a generator on the first images of a validation set.

    Sample k of label map i has the noise of seed + i + k · (number of images). Sample 0 is the
    image that metrics.py scores.
    """
    count = min(num_images or len(val_set), len(val_set))
    many = SAMPLES if {"ms_ssim", "lpips"} & set(names) else 1
    network = load_lpips().to(device) if "lpips" in names else None
    rows, real, fake = [], [], []
    for i in tqdm(range(count), "scoring", leave=False, disable=None):
        image, labels = val_set[i]
        noise = oasis.noise_from_seeds([seed + i + k * len(val_set) for k in range(many)],
                                       generator.noise_dim)
        images = metrics.quantise(torch.cat([
            generator(labels.to(device).expand(len(z), -1, -1), z.to(device))
            for z in noise.split(4)]))
        rows.append([ms_ssim_of_pairs(images) if "ms_ssim" in names else 0,
                     lpips_of_pairs(network, images) if "lpips" in names else 0])
        real.append(data.to_uint8(image[None])[0])
        fake.append(data.to_uint8(images[:1])[0])
    scores = dict(zip(("ms_ssim", "lpips"), np.mean(rows, axis=0).tolist()))
    for name, distance in (("colour", colour_distance), ("texture", texture_distance)):
        if name in names:
            scores[name] = distance(fake, real)
            scores[f"{name}_real"] = distance(real[::2], real[1::2])
    return {name: value for name, value in scores.items() if name.removesuffix("_real") in names}


def protocols(val_set, count):
    """{score: what has to agree before two values may be compared}."""
    height, width = val_set.size
    images = f"{count} images of {val_set.name} {val_set.split} at {height}×{width}"
    scales = num_scales(val_set.size) if min(val_set.size) > 10 else 0
    return {"ms_ssim": f"{SAMPLES} samples per label map, {scales} of 5 scales, {images}",
            "lpips": f"VGG16, version 0.1, {SAMPLES} samples per label map, {images}",
            "colour": f"mean of L, a and b in steps of 1, {images}",
            "texture": f"8 points at radius 1, 256 patterns, {images}",
            **{f"{name}_real": "even against odd real images" for name in ("colour", "texture")}}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="extras.scores", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", metavar="FILE", help="(default: as for metrics.py)")
    parser.add_argument("--data-root", metavar="DIR", help="(default: as in training)")
    parser.add_argument("--metrics", default="ms_ssim,lpips,colour,texture", metavar="A,B",
                        help="(default: all four)")
    parser.add_argument("--num-images", type=int, metavar="N", help="the first N (default: all)")
    args = parser.parse_args(argv)
    with data.exit_in_words("scores.py"):
        names = args.metrics.split(",")
        if set(names) - {"ms_ssim", "lpips", "colour", "texture"}:
            raise data.UserError("the scores are ms_ssim, lpips, colour and texture")
        path = sample.find_checkpoint(args.checkpoint)
        print(f"scoring {path}")
        checkpoint, _, val_set = metrics.open_run(path, args.data_root)
        device = processes.start_processes()
        generator = sample.build_generator(checkpoint).to(device)
        scores = score(generator, val_set, names, args.num_images, device=device)
        texts = protocols(val_set, min(args.num_images or len(val_set), len(val_set)))
        for name, value in scores.items():
            print(f"{name:14s} {value:9.4f}   {texts[name]}")


if __name__ == "__main__":
    main()
