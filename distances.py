"""Distances between images: Fréchet and Inception features, LPIPS, MS-SSIM, colour, texture.

The measures themselves, one function or network each; metrics.py applies them to sets of images.
All of them take images (B, 3, H, W) in [−1, 1]. What compares two sets does so by a statistic that
adds up over images (a sum of outer products, a histogram), so that memory does not grow with their
number.
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import inception

import oasis


class MetricsError(ValueError):
    """A score that cannot be computed; the message names the file or value and what is possible."""


def quantise(images):
    """Round images in [−1, 1] to the 256 levels that a png can hold."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


# ---- Fréchet distance ----------------------------------------------------------------------------
#
# FID (Heusel et al., 2017): describe each set of images by the mean and covariance of a network's
# features, and take the Fréchet distance between the two Gaussians with these moments.


def moments(features):
    """Features (n, d) -> (d+1, d+1) float64: Σ [1 f]ᵀ[1 f], which holds n, Σ f and Σ f fᵀ at once.

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
    and fails where a covariance is singular. But only its trace is needed, the sum of the roots of
    the eigenvalues; and with Σ1 = V diag(λ) Vᵀ those are the eigenvalues of the symmetric matrix
    λ^½ Vᵀ Σ2 V λ^½. They cannot be negative; what rounding puts below zero is set to zero.
    """
    mu1, sigma1, mu2, sigma2 = (torch.as_tensor(t, dtype=torch.float64)
                                for t in (mu1, sigma1, mu2, sigma2))
    eigenvalues, vectors = torch.linalg.eigh(sigma1)
    half = vectors * eigenvalues.clamp(min=0).sqrt()                # V λ^½
    roots = torch.linalg.eigvalsh(half.T @ sigma2 @ half).clamp(min=0).sqrt()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * roots.sum()
    return max(distance.item(), 0.0)        # in this order NaN stays NaN


def moment_distance(a, b):
    """Fréchet distance between two sums of moments()."""
    return frechet_distance(*mean_and_covariance(a), *mean_and_covariance(b))


# ---- Networks from elsewhere ---------------------------------------------------------------------

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
        known = isinstance(e, oasis.CheckpointError)
        reason = e if known else f"{path}: weights of another network"
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
        """(B, 3, H, W) in [−1, 1] -> 5 tensors (B, ·); their squared distances add up to LPIPS."""
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


# ---- Diversity: MS-SSIM --------------------------------------------------------------------------

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)       # Wang et al., 2003


def ms_ssim_scales(size):
    """How many of the five scales fit: the 11×11 window must lie inside the smallest one."""
    return max([m for m in range(1, 6) if min(size) // 2 ** (m - 1) >= 11], default=0)


def ms_ssim(x, y):
    """Multi-scale structural similarity (Wang et al., 2003), (B, 3, H, W) twice -> (B,); 1: equal.

    Windows are 11×11 Gaussians, σ 1.5, without padding; data range 1 after mapping [−1, 1] to [0,
    1]. Five scales need 176 pixels. Smaller images get the scales that fit, the weights scaled to
    sum to 1 again: compare such values only among themselves. MetricsError below 11 pixels.
    """
    scales = ms_ssim_scales(x.shape[2:])
    if not scales:
        raise MetricsError(f"MS-SSIM needs images of at least 11×11, these are "
                           f"{x.shape[2]}×{x.shape[3]}")
    weights = torch.tensor(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[:scales])
    x, y = (x + 1) / 2, (y + 1) / 2
    result = 1.0
    for scale, weight in enumerate(weights.tolist()):
        similarity, contrast = ssim_terms(x, y)                # (B, 3) each
        # Brightness is compared at the coarsest scale only.
        term = similarity if scale == scales - 1 else contrast
        result = result * term.clamp(min=0) ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return result.mean(1)


def ssim_terms(x, y):
    """Mean SSIM, and its contrast-and-structure part alone, per image and channel: (B, 3) each."""
    mu_x, mu_y, xx, yy, xy = blur(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    c1, c2 = 0.01 ** 2, 0.03 ** 2                              # keep quotients of zeros finite
    contrast = (2 * (xy - mu_x * mu_y) + c2) / (xx - mu_x ** 2 + yy - mu_y ** 2 + c2)
    luminance = (2 * mu_x * mu_y + c1) / (mu_x ** 2 + mu_y ** 2 + c1)
    return (luminance * contrast).mean((2, 3)), contrast.mean((2, 3))


def blur(x):
    """11×11 Gaussian window, σ 1.5, as a column times a row; no padding: (B, 3, H−10, W−10)."""
    offsets = torch.arange(-5, 6, device=x.device, dtype=x.dtype)
    window = torch.exp(-offsets ** 2 / (2 * 1.5 ** 2))
    window = (window / window.sum()).expand(3, 1, 1, 11)
    return F.conv2d(F.conv2d(x, window, groups=3), window.transpose(2, 3), groups=3)


def pairwise_ms_ssim(images):
    """(B, 3, H, W) -> (B·(B−1)/2,) MS-SSIM between all pairs."""
    first, second = torch.triu_indices(len(images), len(images), 1, device=images.device).split(1)
    return torch.cat([ms_ssim(images[i], images[j]) for i, j in
                      zip(first[0].split(32), second[0].split(32))])


# ---- Colour and texture (Figure 3) ---------------------------------------------------------------
#
# The paper compares histograms but does not say over what. Here: one histogram over all pixels of a
# set.


def rgb_to_lab(images):
    """sRGB in [−1, 1] -> CIE LAB (B, 3, H, W), white D65; L in 0 … 100, a and b about ±100."""
    rgb = (images.double() + 1) / 2
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = linear.new_tensor([[0.412453, 0.357580, 0.180423],
                                [0.212671, 0.715160, 0.072169],
                                [0.019334, 0.119193, 0.950227]])
    white = linear.new_tensor([0.95047, 1.0, 1.08883])
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz / white[:, None], linear)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0) ** (1 / 3), 7.787 * xyz + 16 / 116)
    fx, fy, fz = f.unbind(1)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], dim=1)


def colour_histogram(images):
    """Pixels per value of L, a and b: (3, 256) float64, bins of width 1 centred on −128 … 127."""
    bins = (rgb_to_lab(images).round().clamp(-128, 127) + 128).long()
    bins += 256 * torch.arange(3, device=bins.device).view(3, 1, 1)
    return torch.bincount(bins.flatten(), minlength=3 * 256).view(3, 256).double()


def colour_distance(a, b):
    """Earth mover's distance (Rubner et al., 2000) per channel, mean of the three, in LAB units.

    In one dimension it is the area between the two cumulative distributions.
    """
    difference = (a / a.sum(1, keepdim=True) - b / b.sum(1, keepdim=True)).cumsum(1)
    return difference.abs().sum(1).mean().item()


def local_binary_patterns(images):
    """Texture codes (Ojala et al., 1996) of the inner pixels: (B, H−2, W−2), 0 … 255.

    Each of the 8 neighbours gives one bit, clockwise from the top left: is it at least as bright as
    the pixel? Only the order of brightness counts, so light and contrast do not matter.
    """
    rgb = ((images.double() + 1) * 127.5).round()
    grey = (rgb[:, 0] * 299 + rgb[:, 1] * 587 + rgb[:, 2] * 114) // 1000
    height, width = grey.shape[1:]
    code = torch.zeros_like(grey[:, 1:-1, 1:-1], dtype=torch.int64)
    for dy, dx in ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)):
        neighbour = grey[:, dy:height - 2 + dy, dx:width - 2 + dx]
        code = 2 * code + (neighbour >= grey[:, 1:-1, 1:-1])
    return code


def texture_histogram(images):
    """How often each texture code occurs: (256,) float64."""
    return torch.bincount(local_binary_patterns(images).flatten(), minlength=256).double()


def texture_distance(a, b):
    """χ² distance ½ Σ (p − q)² / (p + q) of two histograms, made to sum to 1: 0 (equal) … 1."""
    p, q = a / a.sum(), b / b.sum()
    return 0.5 * ((p - q) ** 2 / (p + q).clamp(min=1e-300)).sum().item()
