"""SPADE and SPADE+, the baseline of the paper; and OASIS with the perceptual loss.

    python -m extras.spade --lambda-vgg 0 --run-dir runs/spade+           # SPADE+ without VGG
    python -m extras.spade --lambda-vgg 0 --multimodal noise --run-dir runs/spade+noise
    python -m extras.spade --multimodal encoder --run-dir runs/encoder    # fetches VGG19, 550 MB
    python -m extras.spade --model spade --run-dir runs/spade
    python -m extras.spade --model oasis --lambda-vgg 10 --run-dir runs/oasis+vgg

"Semantic Image Synthesis with Spatially-Adaptive Normalization" (Park, Liu, Wang, Zhu, 2019); on
the left in Figure 2 of the OASIS paper. Here is what OASIS removes: one more generator block, a
discriminator that is given the label map and says real or fake for each patch, feature matching,
the perceptual loss, the image encoder. SPADE+: no feature matching, and the average of G (Sec. 3).

    D minimises   hinge_loss_D(D(x, t), D(x̂, t))
    G minimises   hinge_loss_G(D(x̂, t))  +  λ_features · feature_matching_loss   (10, SPADE only)
                  +  λ_VGG · PerceptualLoss (10)  +  λ_KL · kl_loss   (0.05, with the encoder)

The loop is train.py's; it gets networks and step from here. Conventions are those of oasis.py. But
D(x, t) is a list: for each of two scales the list of its layers' features, of which the last are
the patch logits (B, 1, h, w), positive for real.

pix2pixhd.py and ccfpse.py, the other rows of Table 1, take from here what they share with SPADE.
"""

import argparse
import dataclasses
import functools
import sys

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import data
import losses
import metrics
import oasis
import processes
import sample
import train
from data import UserError
from oasis import LEAK, convolution
from train import option

# ---- Settings ------------------------------------------------------------------------------------

NOISE_DIMS = {"none": 0, "noise": 64, "encoder": 256}       # by multimodal


@dataclasses.dataclass
class BaselineSettings(train.Settings):
    """train.py's settings, and those that SPADE, Pix2pixHD and CC-FPSE have in common."""

    multimodal: str = option("none", "what makes several images of one label map: none; noise, as "
                             "OASIS has it; encoder, SPADE's image encoder")
    lambda_features: float = option(0.0, "weight of the feature-matching loss", 0)
    lambda_vgg: float = option(10.0, "weight of the perceptual loss; 0: VGG19 is not needed", 0)
    vgg_weights: str = option("", "file of torchvision's VGG19; empty: it is fetched once")


@dataclasses.dataclass
class Settings(BaselineSettings):
    """Defaults: SPADE+ for ADE20K."""

    model: str = option("spade+", "spade+, spade or oasis")
    patch_channels: tuple = option((64, 128, 256, 512), "widths of SPADE's discriminator", 1)
    lambda_kl: float = option(0.05, "weight of the encoder's KL loss", 0)


# What each model changes (Sec. 3). SPADE's images come from G itself: an average without memory.
MODELS = {"spade": dict(lambda_vgg=10.0, lambda_features=10.0, ema_decay=0.0),
          "spade+": dict(lambda_vgg=10.0),
          "oasis": dict(lambda_vgg=0.0)}


def parse_settings(argv=None):
    """Command line -> Settings: train.py's presets, changed by model and multimodal. UserError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", choices=MODELS, default=Settings.model)
    known, _ = parser.parse_known_args(argv)
    changes = dict(MODELS[known.model], model=known.model)
    short_changes = {}
    for name in ("toy", "small"):
        short_changes[name] = dict(patch_channels=train.PRESETS[name]["d_channels"][:4])
    multimodal = "noise" if known.model == "oasis" else "none"
    settings = parse_variant(argv, Settings, changes, short_changes, multimodal)
    if settings.model == "oasis" and settings.multimodal == "encoder":
        raise UserError("--multimodal encoder: OASIS has none; choose noise or none")
    return settings


def parse_variant(argv, settings_class, changes, short_changes, multimodal="none",
                  choices=tuple(NOISE_DIMS)):
    """train.parse_settings with changed presets. UserError.

    changes: of all presets. short_changes: of single ones, {preset: changes}. multimodal: its value
    where the command line gives none; choices: its possible values. It decides the noise:

        none       no noise. --noise-dim 64 adds one vector per image
        noise      as OASIS has it in the same preset, with its share of noise at every pixel
        encoder    a latent vector, one per image
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--multimodal", choices=choices, default=multimodal)
    known, _ = parser.parse_known_args(argv)
    presets = {}
    for name, preset in train.PRESETS.items():
        presets[name] = dict(preset, multimodal=known.multimodal,
                             noise_dim=NOISE_DIMS[known.multimodal])
        if known.multimodal != "noise":
            presets[name]["pixel_noise"] = 0
        presets[name].update(changes)
        presets[name].update(short_changes.get(name, {}))
    settings = train.parse_settings(argv, settings_class, presets)
    if settings.multimodal == "encoder" and settings.pixel_noise > 0:
        raise UserError(f"--pixel-noise {settings.pixel_noise}: an image encoder finds one latent "
                        f"vector for the whole image; choose --multimodal noise")
    if getattr(settings, "model", "") != "oasis":       # the baselines' D does not segment
        scores = [name for name in settings.metrics.split(",") if name != "d_miou"]
        settings.metrics = ",".join(scores) or "none"
    return settings


def make_networks(settings, num_classes):
    """G and D as the settings say, untrained. SPADE has one block more than OASIS."""
    s = settings
    if s.model == "oasis":
        return train.make_networks(s, num_classes)
    shape = s.channels, s.num_blocks + 1, s.spade_hidden, s.padding
    if s.multimodal == "encoder":
        G = EncoderGenerator(num_classes, (s.height, s.width), s.noise_dim, *shape)
    else:
        G = Generator(num_classes, s.noise_dim, *shape, s.pixel_noise)
    return G, Discriminator(num_classes, s.patch_channels)


# ---- Generator -----------------------------------------------------------------------------------


def block_levels(num_blocks):
    """The level at which each block works, 1/2^level of the size: 5 4 4 3 2 1 0 for seven blocks.

    The second and the third work at one size. OASIS removes one of the two.
    """
    levels = list(reversed(range(num_blocks - 1)))
    levels.insert(1, levels[:2][-1])
    return levels


class Generator(oasis.Generator):
    """SPADE's generator: OASIS's, and one block more. Arguments as there."""

    def __init__(self, num_classes, noise_dim=0, channels=64, num_blocks=7, spade_hidden=128,
                 padding="zeros", pixel_noise=0):
        super().__init__(num_classes, noise_dim, channels, num_blocks, spade_hidden, padding,
                         pixel_noise)
        self.levels = block_levels(num_blocks)
        self.size_multiple = 2 ** self.levels[0]

    def forward(self, labels, noise):
        """labels (B, H, W) int64, noise (B, C) or (B, C, H, W) -> images (B, 3, H, W) in [−1, 1].

        C is 0 without noise. H and W should be multiples of `size_multiple`.
        """
        condition = self.condition(labels, noise)                             # (B, C+N, H, W)
        return self.paint(self.first(oasis.shrink(condition, self.size_multiple)), condition)

    def paint(self, x, condition):
        """x (B, 16c, H/32, W/32), condition (B, C+N, H, W) -> images (B, 3, H, W)."""
        for block, level in zip(self.blocks, self.levels):
            here = oasis.shrink(condition, 2 ** level)                        # (B, C+N, h, w)
            x = block(oasis.upsample(x, here.shape[2:]), here)                # … (B, c, H, W)
        return torch.tanh(self.last(oasis.leaky_relu(x)))                     # (B, 3, H, W)


class PaintsFromPhotographs:
    """What SPADE's image encoder adds to a generator (Table 2).

    In training the encoder finds a Gaussian N(μ, σ²) of latent vectors z for the photograph, and G
    paints the photograph's label map from one of them. The KL term keeps these Gaussians near
    N(0, 1), so at test time z is drawn without a photograph. z enters once, at the first block,
    through a linear layer. So all images have one size, `image_size`, and no region has its own z.

    A base class to stand before the generator's, which has config, size_multiple, first, condition
    and paint.
    """

    def add_encoder(self, image_size, noise_dim, channels):
        """Replace G's first layer by a linear one of z, and add the encoder."""
        del self.config["pixel_noise"]
        self.config.update(image_size=list(image_size), noise_dim=noise_dim)
        self.image_size, self.noise_dim = tuple(image_size), noise_dim
        height, width = image_size
        self.first_shape = (self.first.out_channels, height // self.size_multiple,
                            width // self.size_multiple)
        outputs = self.first_shape[0] * self.first_shape[1] * self.first_shape[2]
        self.first = convolution(noise_dim, outputs, 1, spectral=False)
        self.encoder = make_encoder(image_size, channels, noise_dim)

    def forward(self, labels, noise, images=None):
        """labels (B, H, W) int64, noise (B, 256) standard normal -> images (B, 3, H, W).

        Without images the noise is z. With photographs (B, 3, H, W), in training, z = μ + σ · noise
        and the result is (images, KL term, a scalar). UserError for another size or local noise.
        """
        if images is not None:
            mu, log_variance = self.encoder(images).chunk(2, dim=1)           # (B, 256) each
            z = mu + torch.exp(log_variance / 2) * noise
            return self.forward(labels, z), kl_loss(mu, log_variance)
        if noise.ndim != 2 or labels.shape[1:] != self.image_size:
            raise UserError("a generator with an image encoder paints {}×{} only, from one latent "
                            "vector for the whole image".format(*self.image_size))
        condition = self.condition(labels, noise[:, :0])                      # (B, N, H, W)
        x = self.first(noise[:, :, None, None]).view(-1, *self.first_shape)   # (B, 16c, H/32, W/32)
        return self.paint(x, condition)


class EncoderGenerator(PaintsFromPhotographs, Generator):
    """SPADE's generator with its image encoder."""

    def __init__(self, num_classes, image_size, noise_dim=256, channels=64, num_blocks=7,
                 spade_hidden=128, padding="zeros"):
        super().__init__(num_classes, 0, channels, num_blocks, spade_hidden, padding)
        self.add_encoder(image_size, noise_dim, channels)


def make_encoder(image_size, channels, latent_dim):
    """Photographs (B, 3, H, W) -> μ and log σ² of their latent vectors, side by side (B, 512).

    3×3 convolutions of stride 2, at most six, down to about 4×4; then a linear layer.
    """
    stages = max(1, min(6, min(image_size).bit_length() - 3))           # 64 -> 4, 256 -> 6
    height, width = image_size
    layers = []
    c_in = 3
    for i in range(stages):
        c_out = channels * min(8, 2 ** i)                               # 64 128 256 512 512 512
        layers.append(convolution(c_in, c_out, 3, spectral=True, bias=False, stride=2))
        layers.append(nn.InstanceNorm2d(c_out))
        layers.append(nn.LeakyReLU(LEAK))
        c_in, height, width = c_out, (height + 1) // 2, (width + 1) // 2
    inputs = c_in * height * width
    return nn.Sequential(*layers, nn.Flatten(), nn.Unflatten(1, (inputs, 1, 1)),
                         convolution(inputs, 2 * latent_dim, 1, spectral=False), nn.Flatten())


# ---- Discriminator -------------------------------------------------------------------------------
#
# Two PatchGANs (pix2pixHD): classifiers that see image and label map together and say real or fake
# for each patch; the second at half the size. Nothing makes them use the label map: they are "not
# penalized for predicting wrong semantic classes" (Sec. 1).


def one_hot(labels, num_classes, images):
    """labels (B, H, W) int64 -> (B, N, H, W), in the type of the images."""
    classes = torch.arange(num_classes, device=labels.device)
    return (labels[..., None] == classes).permute(0, 3, 1, 2).to(images)


def make_patch_gan(in_channels, channels, spectral):
    """4×4 convolutions, stride 2 and in the last two 1, to one logit for each patch."""
    layers = nn.ModuleList()
    for i, c_out in enumerate(channels):
        # Norm per image, which takes a bias away again; the first layer has a bias and no norm.
        # Without spectral norm the layers are pix2pixHD's, which all have a bias.
        bias = i == 0 or not spectral
        stride = 2 if i < len(channels) - 1 else 1
        norm = nn.InstanceNorm2d(c_out) if i > 0 else nn.Identity()
        layers.append(nn.Sequential(
            convolution(in_channels, c_out, 4, spectral, bias, stride), norm, nn.LeakyReLU(LEAK)))
        in_channels = c_out
    layers.append(convolution(in_channels, 1, 4, spectral))
    return layers


class Discriminator(nn.Module):
    """D(x, t): real or fake, for each patch, at two scales; it is given the label map.

    spectral: spectral norm of all layers, as SPADE has it; pix2pixHD has none.
    """

    def __init__(self, num_classes, channels=(64, 128, 256, 512), spectral=True):
        super().__init__()
        self.config = dict(num_classes=num_classes, channels=list(channels), spectral=spectral)
        self.scales = nn.ModuleList()
        for _ in range(2):
            self.scales.append(make_patch_gan(3 + num_classes, channels, spectral))

    def forward(self, images, labels):
        """images (B, 3, H, W), labels (B, H, W) int64 -> for each scale its list of features."""
        label_map = one_hot(labels, self.config["num_classes"], images)
        x = torch.cat([images, label_map], 1)                            # (B, 3+N, H, W)
        x = x.contiguous(memory_format=torch.channels_last)
        half = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        output = []
        for layers, y in zip(self.scales, (x, half)):
            features = []
            for layer in layers:
                y = layer(y)
                features.append(y)                               # (B, 64 … 512, h, w), (B, 1, h, w)
            output.append(features)
        return output


# ---- Losses --------------------------------------------------------------------------------------


def hinge_loss_D(output):
    """Mean max(0, 1 − D(x, t)) and mean max(0, 1 + D(x̂, t)) over patches; the scales' mean.

    output: D's, of photographs and generated images in one batch. Returns two scalars. A patch
    that is right by a margin of 1 teaches D nothing more.
    """
    of_real = of_fake = 0
    for features in output:
        real, fake = losses.at_least_float32(features[-1]).chunk(2)
        of_real = of_real + F.relu(1 - real).mean() / len(output)
        of_fake = of_fake + F.relu(1 + fake).mean() / len(output)
    return of_real, of_fake


def hinge_loss_G(output):
    """−mean D(x̂, t) over patches, the scales' mean. G has no margin."""
    return -sum(losses.at_least_float32(features[-1]).mean() for features in output) / len(output)


def mean_difference(ours, target):
    """Mean |ours − target|; the target gets no gradient."""
    return F.l1_loss(losses.at_least_float32(ours), losses.at_least_float32(target.detach()))


def feature_matching_loss(fake, real):
    """Mean |D_k(x̂, t) − D_k(x, t)|, summed over the layers k but the logits; the scales' mean."""
    loss = 0
    for ours_at, targets_at in zip(fake, real):
        for ours, target in zip(ours_at[:-1], targets_at[:-1]):
            loss = loss + mean_difference(ours, target) / len(fake)
    return loss


def kl_loss(mu, log_variance):
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σ (μ² + σ² − 1 − log σ²); (B, C) twice. The mean over images
    (the released SPADE takes their sum)."""
    mu, log_variance = losses.at_least_float32(mu), losses.at_least_float32(log_variance)
    return 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()


VGG19 = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth", "dcbb9e9d"


class PerceptualLoss(nn.Module):
    """How different VGG19 finds two images: Σ_k w_k · mean |φ_k(x̂) − φ_k(x)| (Sec. 1, Sec. 3).

    φ_k: the features after relu{k}_1; layers and w_k are those of pix2pixHD and SPADE. VGG19 knows
    ImageNet's photographs and never learns from what G does: G settles on what VGG19 likes best.
    The released code gives VGG19 the images as they are, in [−1, 1]; here they are prepared as in
    its training. weights: a file of torchvision's VGG19; "": it is fetched once. UserError.
    """

    LAYERS = {1: 1 / 32, 6: 1 / 16, 11: 1 / 8, 20: 1 / 4, 29: 1.0}      # relu{1 … 5}_1: w_k

    def __init__(self, weights=""):
        super().__init__()
        with torch.device("meta"):          # shapes only: no time, no random numbers
            network = torchvision.models.vgg19().features
        path = weights or metrics.fetch(*VGG19)
        state = {}
        for name, tensor in sample.read_tensors(path).items():
            if name.startswith("features."):
                state[name.removeprefix("features.")] = tensor
        if state.keys() != network.state_dict().keys():
            raise UserError(f"{path}: does not hold the weights of torchvision's VGG19")
        network.load_state_dict(state, assign=True)
        self.network = network[:max(self.LAYERS) + 1].requires_grad_(False).eval()
        # VGG19 was trained on images in [0, 1] minus ImageNet's mean, divided by its deviation.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, fake, real):
        """Images (B, 3, H, W), at least 16×16, twice -> a scalar; its gradient reaches `fake`."""
        ours = ((fake + 1) / 2 - self.mean) / self.std
        target = ((real + 1) / 2 - self.mean) / self.std
        loss = 0
        for i, layer in enumerate(self.network):
            ours, target = layer(ours), layer(target)                   # (B, 64 … 512, H …, W …)
            if i in self.LAYERS:
                loss = loss + self.LAYERS[i] * mean_difference(ours, target)
        return loss


# ---- The two updates -----------------------------------------------------------------------------


def update(optimizer, network, loss):
    """One step of the optimizer along the gradient of the whole batch."""
    optimizer.zero_grad()
    loss.backward()
    processes.average_gradients(network)
    optimizer.step()


def spade_step(G, D, optimizer_G, optimizer_D, batch, settings, perceptual=None):
    """One update of D and one of G; see train.training_step. perceptual: a PerceptualLoss."""
    real, labels, noise, _, _ = batch               # mask and class weights are OASIS's
    precision = torch.autocast(real.device.type, torch.bfloat16, settings.precision == "bf16")
    terms = {}

    # ---- D minimises the hinge loss.
    with precision:
        if settings.multimodal == "encoder":
            fake, terms["loss_kl"] = G(labels, noise, real)             # z from the photograph
        else:
            fake = G(labels, noise)                                     # x̂ = G(z, t)
        output = D(torch.cat([real, fake.detach()]), labels.repeat(2, 1, 1))
        terms["loss_D_real"], terms["loss_D_fake"] = hinge_loss_D(output)
    update(optimizer_D, D, terms["loss_D_real"] + terms["loss_D_fake"])

    # ---- G minimises the hinge loss and the distances from the photograph.
    D.requires_grad_(False)
    with precision:
        output = D(fake, labels)
        loss = terms["loss_G"] = hinge_loss_G(output)
        if settings.lambda_features > 0:
            terms["loss_features"] = feature_matching_loss(output, D(real, labels))
            loss = loss + settings.lambda_features * terms["loss_features"]
        if "loss_kl" in terms:
            loss = loss + settings.lambda_kl * terms["loss_kl"]
        if perceptual is not None:
            terms["loss_vgg"] = perceptual.to(real.device)(fake, real)
            loss = loss + settings.lambda_vgg * terms["loss_vgg"]
    update(optimizer_G, G, loss)
    D.requires_grad_(True)
    return {name: term.detach() for name, term in terms.items()}


def oasis_step(G, D, optimizer_G, optimizer_D, batch, settings, perceptual=None):
    """train.training_step, and λ_VGG · perceptual is added to what G minimises (Sec. 3)."""
    if perceptual is None:
        return train.training_step(G, D, optimizer_G, optimizer_D, batch, settings)
    real, labels, noise, mask, weights = batch
    precision = torch.autocast(real.device.type, torch.bfloat16, settings.precision == "bf16")

    # ---- D minimises Eq. 1 + λ · L_cons.
    with precision:
        fake = G(labels, noise)                                         # x̂ = G(z, t)
        images = [real, fake.detach()]
        if settings.lambda_labelmix > 0:
            images.append(losses.labelmix(*images, mask))
        of_real, of_fake, of_mix = losses.discriminator_losses(D(torch.cat(images)), labels,
                                                               weights, mask)
    update(optimizer_D, D, of_real + of_fake + settings.lambda_labelmix * of_mix)

    # ---- G minimises Eq. 2 and the perceptual loss.
    D.requires_grad_(False)
    with precision:
        loss_G = losses.real_loss(D(fake), labels, weights)             # Eq. 2
        loss_vgg = perceptual.to(real.device)(fake, real)
    update(optimizer_G, G, loss_G + settings.lambda_vgg * loss_vgg)
    D.requires_grad_(True)
    return dict(loss_G=loss_G.detach(), loss_vgg=loss_vgg.detach(), loss_D_real=of_real.detach(),
                loss_D_fake=of_fake.detach(), loss_labelmix=of_mix.detach())


# ---- The command line ----------------------------------------------------------------------------


def run(settings, make_networks, step):
    """Train with these networks and this step, with VGG19 if its loss has a weight. Exits."""
    perceptual = None
    if settings.lambda_vgg > 0:
        perceptual = PerceptualLoss(settings.vgg_weights)
    scores = train.train(settings, make_networks,
                         update=functools.partial(step, perceptual=perceptual))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(1 if scores is None else 0)


@data.exit_in_words("extras.spade")
def main(argv=None):
    """The command line. Exit code 0: done; 1: stopped by a signal; 2: a mistake of the user."""
    settings = parse_settings(argv)
    run(settings, make_networks, oasis_step if settings.model == "oasis" else spade_step)


if __name__ == "__main__":
    from extras import spade                # under its own name, which checkpoints hold
    spade.main()
