"""Diversity (Table 2), colour and texture (Figure 3); FID of two folders of images.

    python -m extras.scores --checkpoint runs/toy/latest.pt --metrics ms_ssim,colour,texture
    python -m extras.scores --real DIR --fake DIR          # FID, as metrics.py computes it

ms_ssim   structural similarity of two images of one label map ↓ (Table 2; low: diverse)
lpips     perceptual distance of two images of one label map ↑ (Table 2; high: diverse)
noises    what another noise changes, in grey levels of 255 ↑ (ours; needs no network)
colour    earth mover's distance between LAB histograms of generated and real images ↓ (Figure 3)
texture   χ² distance between histograms of local binary patterns ↓ (Figure 3)

The first three are means over 20 images of one label map, and over label maps. The paper does not
say over what its histograms are taken; here it is all pixels of all images. *_real is the same
distance between the even and the odd real images, which no generator gets much below.
Needs extras/requirements.txt: scikit-image; for lpips and ms_ssim the packages of these names.
"""

import argparse

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from skimage.color import rgb2gray, rgb2lab
from skimage.feature import local_binary_pattern
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

import data
import metrics
import oasis
import processes
import sample

NAMES = ("ms_ssim", "lpips", "noises", "colour", "texture")
SAMPLES = 20    # images per label map for the first three, as the authors took for Table 2
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
    from pytorch_msssim.ssim import _fspecial_gauss_1d, _ssim       # no other score needs it
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
    import lpips                    # no other score needs it
    metrics.fetch(*VGG16)           # to where lpips looks for it, or a sentence that says where
    return lpips.LPIPS(net="vgg", verbose=False).eval()


def lpips_of_pairs(network, images):
    """Mean LPIPS of all pairs of images (n, 3, H, W) in [−1, 1]; 0: all are equal."""
    return torch.cat([network(a, b).flatten() for a, b in pairs(images)]).mean().item()


def change_of_noises(images):
    """Standard deviation over images (n, 3, H, W) in [−1, 1] of one label map, mean over pixels.

    In levels of 255. Pixels are means of 8×8: what differs is light and colour, not the texture,
    which noise at every pixel makes different in any case.
    """
    coarse = avg_pool2d(images, min(8, *images.shape[2:])) * 127.5
    return coarse.std(0).mean().item()


# ---- Colour and texture --------------------------------------------------------------------------

def colour_distance(images_a, images_b):
    """Earth mover's distance between two sets of images (n, H, W, 3) uint8, in LAB units.

    One histogram of each of L, a and b, in steps of 1; the mean of the three distances.
    """
    values = np.arange(-128, 128)
    a, b = lab_histograms(images_a), lab_histograms(images_b)
    distances = [wasserstein_distance(values, values, p, q) for p, q in zip(a, b)]
    return float(np.mean(distances))


def lab_histograms(images):
    """Images (n, H, W, 3) uint8 -> how many pixels have L, a, b of −128 … 127, (3, 256)."""
    bins = np.arange(-128, 129) - 0.5
    total = np.zeros((3, 256), dtype=np.int64)
    for image in images:
        for k, channel in enumerate(rgb2lab(image).T):
            total[k] += np.histogram(channel, bins)[0]
    return total


def texture_distance(images_a, images_b):
    """χ² distance ½ Σ (p − q)² / (p + q) between two sets of images (n, H, W, 3) uint8, 0 … 1.

    p and q are the shares of the 256 local binary patterns: for each of 8 points around a pixel,
    one bit that says whether it is at least as bright. Only the order of brightness counts.
    """
    p, q = pattern_shares(images_a), pattern_shares(images_b)
    either = p + q > 0
    return float(0.5 * ((p - q)[either] ** 2 / (p + q)[either]).sum())


def pattern_shares(images):
    """Images (n, H, W, 3) uint8 -> the share of each of the 256 patterns, (256,)."""
    total = np.zeros(256)
    for image in images:
        total += np.bincount(codes_of(image).ravel(), minlength=256)
    return total / total.sum()


def codes_of(image):
    """The local binary pattern of every pixel but the outermost: (H, W, 3) -> (H−2, W−2) uint8."""
    grey = (rgb2gray(image) * 255).round().astype(np.uint8)
    return local_binary_pattern(grey, P=8, R=1)[1:-1, 1:-1].astype(np.uint8)


# ---- FID of two folders --------------------------------------------------------------------------


def list_photos(folder, most):
    """The first so many photographs of a folder. UserError: too few for the distance."""
    paths = list(data.list_files(folder, data.PHOTOS).values())[:most]
    if len(paths) < metrics.FEWEST:
        raise data.UserError(f"{folder}: FID of {len(paths)} images cannot be computed; it needs "
                             f"at least {metrics.FEWEST}, and means something from 2,000 on")
    return paths


def inception_moments(network, paths, device):
    """Sum of metrics.moments() over the images of some files, over all processes."""
    rank, count = processes.rank_and_size()

    def read():
        # One by one, since sizes may differ.
        for path in tqdm(paths[rank::count], leave=False, disable=rank > 0 or None):
            pixels = torch.tensor(data.read_photo(path), dtype=torch.get_default_dtype())
            yield pixels.to(device).permute(2, 0, 1)[None] / 127.5 - 1, None
    statistics = {"fid": lambda images, _: metrics.moments(network(images))}
    return metrics.add_up(read(), statistics)["fid"]


def score_folders(real, fake, device, inception=None, num_images=None):
    """Prints the Fréchet Inception distance of two folders. UserError."""
    real, fake = list_photos(real, num_images), list_photos(fake, num_images)
    network = metrics.InceptionFeatures(inception).to(device)
    even = inception_moments(network, real[::2], device)
    odd = inception_moments(network, real[1::2], device)
    fid = metrics.moment_distance(even + odd, inception_moments(network, fake, device))
    if processes.rank_and_size()[0] == 0:
        show("fid", fid, f"{network.description}, {len(real)} real and {len(fake)} fake images")
        show("fid_real", metrics.moment_distance(even, odd), "even against odd real images")


# ---- A checkpoint --------------------------------------------------------------------------------


def score_samples(images, names, network):
    """Scores of the images (n, 3, H, W) of one label map, {name: float}."""
    row = {}
    if "ms_ssim" in names:
        row["ms_ssim"] = ms_ssim_of_pairs(images)
    if "lpips" in names:
        row["lpips"] = lpips_of_pairs(network, images)
    if "noises" in names:
        row["noises"] = change_of_noises(images)
    return row


@torch.no_grad()
def score(generator, val_set, names, num_images=None, seed=0, device="cpu"):
    """{score: float} of a generator on the first images of a validation set.

    Sample k of label map i has the noise of seed + i + k · (number of images). Sample 0 is the
    image that metrics.py scores.
    """
    count = min(num_images or len(val_set), len(val_set))
    many = SAMPLES if {"ms_ssim", "lpips", "noises"} & set(names) else 1
    network = load_lpips().to(device) if "lpips" in names else None
    rows, real, fake = [], [], []
    for i in tqdm(range(count), "scoring", leave=False, disable=None):
        image, labels = val_set[i]
        seeds = [seed + i + k * len(val_set) for k in range(many)]
        noise = oasis.draw_noise(seeds, labels.shape, generator.noise_dim, generator.pixel_noise)
        images = []
        for z in noise.split(4):
            several = labels.to(device).expand(len(z), -1, -1)
            images.append(metrics.quantise(generator(several, z.to(device))))
        images = torch.cat(images)
        rows.append(score_samples(images, names, network))
        real.append(data.to_uint8(image[None])[0])
        fake.append(data.to_uint8(images[:1])[0])
    scores = {}
    for name in rows[0]:
        scores[name] = float(np.mean([row[name] for row in rows]))
    for name, distance in (("colour", colour_distance), ("texture", texture_distance)):
        if name in names:
            scores[name] = distance(fake, real)
            if count > 1:
                scores[f"{name}_real"] = distance(real[::2], real[1::2])
    return scores


def protocols(val_set, count):
    """{score: what has to agree before two values may be compared}."""
    height, width = val_set.size
    images = f"{count} images of {val_set.name} {val_set.split} at {height}×{width}"
    scales = num_scales(val_set.size) if min(val_set.size) > 10 else 0
    return {"ms_ssim": f"{SAMPLES} samples per label map, {scales} of 5 scales, {images}",
            "lpips": f"VGG16, version 0.1, {SAMPLES} samples per label map, {images}",
            "noises": f"{SAMPLES} samples per label map, means of 8×8 pixels, {images}",
            "colour": f"mean of L, a and b in steps of 1, {images}",
            "colour_real": "even against odd real images",
            "texture": f"8 points at radius 1, 256 patterns, {images}",
            "texture_real": "even against odd real images"}


def show(name, value, protocol):
    """A row of the table, as metrics.py prints it."""
    print(f"{name:14s} {value:9.4f}   {protocol}")


def score_checkpoint(args, device):
    """Prints the scores of a checkpoint. UserError."""
    names = args.metrics.split(",")
    for name in names:
        if name not in NAMES:
            raise data.UserError(f"--metrics: there is no score {name!r}; there are "
                                 f"{', '.join(NAMES)}")
    path = sample.find_checkpoint(args.checkpoint)
    checkpoint, _, val_set = metrics.open_run(path, args.data_root)
    print(f"scoring {path}")
    generator = sample.build_generator(checkpoint).to(device)
    scores = score(generator, val_set, names, args.num_images, device=device)
    texts = protocols(val_set, min(args.num_images or len(val_set), len(val_set)))
    for name, value in scores.items():
        show(name, value, texts[name])


@data.exit_in_words("extras.scores")
def main(argv=None):
    parser = argparse.ArgumentParser("python -m extras.scores", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", help="(default: as for metrics.py)")
    add("--data-root", metavar="DIR", help="(default: as in training)")
    add("--metrics", metavar="A,B", help="(default: all five)")
    add("--num-images", type=sample.whole_number(1), metavar="N", help="the first N (default: all)")
    add("--real", metavar="DIR", help="folder of real images: FID, not a checkpoint's scores")
    add("--fake", metavar="DIR", help="folder of generated images")
    add("--inception", metavar="FILE", help="weights of FID's network, if not downloaded")
    args = parser.parse_args(argv)
    device = processes.start_processes()
    if args.real is None and args.fake is None:
        args.metrics = args.metrics or ",".join(NAMES)
        score_checkpoint(args, device)
    elif args.real is None or args.fake is None or args.checkpoint or args.metrics:
        raise data.UserError("--real DIR and --fake DIR belong together; they are compared by FID "
                             "and need no --checkpoint and no --metrics")
    else:
        score_folders(args.real, args.fake, device, args.inception, args.num_images)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
