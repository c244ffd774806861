"""SPADE and SPADE+, the baseline of the paper; and OASIS with the perceptual loss.

    python -m extras.spade --lambda-vgg 0 --run-dir runs/spade+           # SPADE+ without VGG
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
"""

import argparse
import dataclasses
import functools
import sys

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import processes
import sample
import data
import losses
import metrics
import oasis
import train
from data import UserError
from oasis import LEAK, convolution

# ---- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Settings(train.Settings):
    """train.py's settings, and these."""
    model: str = "spade+"
    """spade+, spade or oasis"""
    multimodal: str = "none"
    """what makes several images of one label map: noise, encoder or none"""
    patch_channels: tuple = (64, 128, 256, 512)
    """widths of SPADE's discriminator"""
    lambda_features: float = 0.0
    """weight of the feature-matching loss"""
    lambda_kl: float = 0.05
    """weight of the encoder's KL loss"""
    lambda_vgg: float = 0.0
    """weight of the perceptual loss; 0 leaves it out, and VGG19 is not needed"""
    vgg_weights: str = ""
    """file of torchvision's VGG19 (default: it is fetched once)"""


# What each model changes (Sec. 3). SPADE's images come from G itself: an average without memory.
MODELS = {"spade": dict(lambda_vgg=10.0, lambda_features=10.0, ema_decay=0.0),
          "spade+": dict(lambda_vgg=10.0), "oasis": {}}
NOISE_DIMS = {"none": 0, "noise": 64, "encoder": 256}       # by multimodal


def parse_arguments(argv=None):
    """Command line -> Settings: train.py's presets, changed by model and multimodal. UserError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", choices=MODELS, default=Settings.model)
    parser.add_argument("--multimodal", choices=NOISE_DIMS)
    known, _ = parser.parse_known_args(argv)
    multimodal = known.multimodal or ("noise" if known.model == "oasis" else "none")
    changes = dict(MODELS[known.model], model=known.model, multimodal=multimodal,
                   noise_dim=NOISE_DIMS[multimodal])
    presets = {name: {**preset, **changes} for name, preset in train.PRESETS.items()}
    presets["toy"]["patch_channels"] = presets["toy"]["d_channels"]
    settings = train.parse_settings(argv, Settings, presets)
    if settings.model == "oasis" and settings.multimodal == "encoder":
        raise UserError("--multimodal encoder: OASIS has none; choose noise or none")
    if settings.model != "oasis":           # SPADE's discriminator does not segment
        settings.metrics = settings.metrics.replace(",d_miou", "").replace("d_miou", "none")
    return settings


def make_networks(s, num_classes):
    """G and D as the settings say, untrained. SPADE has one block more than OASIS."""
    if s.model == "oasis":
        return train.make_networks(s, num_classes)
    shape = s.noise_dim, s.channels, s.num_blocks + 1, s.spade_hidden, s.padding
    G = (EncoderGenerator(num_classes, (s.height, s.width), *shape) if s.multimodal == "encoder"
         else oasis.Generator(num_classes, *shape))
    return G, Discriminator(num_classes, s.patch_channels)


# ---- Generator -----------------------------------------------------------------------------------


class EncoderGenerator(oasis.Generator):
    """SPADE's generator with its image encoder (Table 2).

    In training the encoder finds a Gaussian N(μ, σ²) of latent vectors z for the photograph, and G
    paints the photograph's label map from one of them. The KL term keeps these Gaussians near
    N(0, 1), so at test time z is drawn without a photograph. z enters once, at the first block,
    through a linear layer. So all images have one size, `image_size`, and no region has its own z.
    """

    def __init__(self, num_classes, image_size, noise_dim=256, channels=64, num_blocks=7,
                 spade_hidden=128, padding="zeros"):
        super().__init__(num_classes, 0, channels, num_blocks, spade_hidden, padding)
        self.config.update(image_size=list(image_size), noise_dim=noise_dim)
        self.image_size, self.noise_dim = tuple(image_size), noise_dim
        height, width = (side // self.size_multiple for side in image_size)
        self.first_shape = (self.first.out_channels, height, width)
        self.first = convolution(noise_dim, self.first.out_channels * height * width, 1, False)
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
        x = self.first(noise[:, :, None, None]).view(-1, *self.first_shape)   # (B, 16c, H/64, W/64)
        for i, block in enumerate(self.blocks):
            here = oasis.shrink(condition, self.size_multiple // 2 ** i)      # (B, N, h, w)
            x = block(oasis.upsample(x, here.shape[2:]), here)                # … (B, c, H, W)
        return torch.tanh(self.last(F.leaky_relu(x, LEAK)))                   # (B, 3, H, W)


def make_encoder(image_size, channels, latent_dim):
    """Photographs (B, 3, H, W) -> μ and log σ² of their latent vectors, side by side (B, 512).

    3×3 convolutions of stride 2, at most six, down to about 4×4; then a linear layer.
    """
    stages = max(1, min(6, min(image_size).bit_length() - 3))            # 64 -> 4, 256 -> 6
    widths = [3] + [channels * min(8, 2 ** i) for i in range(stages)]    # 3 64 128 256 512 512 512
    layers = []
    for c_in, c_out in zip(widths, widths[1:]):
        layers += [convolution(c_in, c_out, 3, spectral=False, bias=False, stride=2),
                   nn.InstanceNorm2d(c_out), nn.LeakyReLU(LEAK)]
    height, width = (-(-side // 2 ** stages) for side in image_size)
    inputs = widths[-1] * height * width
    return nn.Sequential(*layers, nn.Flatten(), nn.Unflatten(1, (inputs, 1, 1)),
                         convolution(inputs, 2 * latent_dim, 1, spectral=False), nn.Flatten())


# ---- Discriminator -------------------------------------------------------------------------------
#
# Two PatchGANs (pix2pixHD): classifiers that see image and label map together and say real or fake
# for each patch; the second at half the size. Nothing makes them use the label map: they are "not
# penalized for predicting wrong semantic classes" (Sec. 1).


def make_patch_gan(in_channels, channels):
    """4×4 convolutions, stride 2 and in the last two 1, to one logit for each patch."""
    layers = nn.ModuleList()
    for i, (c_in, c_out) in enumerate(zip([in_channels, *channels], channels)):
        # Norm per image, which takes a bias away again; the first layer has a bias and no norm.
        layers.append(nn.Sequential(
            convolution(c_in, c_out, 4, spectral=True, bias=i == 0,
                        stride=2 if i < len(channels) - 1 else 1),
            nn.InstanceNorm2d(c_out) if i > 0 else nn.Identity(), nn.LeakyReLU(LEAK)))
    layers.append(convolution(channels[-1], 1, 4, spectral=True))
    return layers


class Discriminator(nn.Module):
    """D(x, t): real or fake, for each patch, at two scales; it is given the label map."""

    def __init__(self, num_classes, channels=(64, 128, 256, 512)):
        super().__init__()
        self.config = dict(num_classes=num_classes, channels=list(channels))
        self.scales = nn.ModuleList(make_patch_gan(3 + num_classes, channels) for _ in range(2))

    def forward(self, images, labels):
        """images (B, 3, H, W), labels (B, H, W) int64 -> for each scale its list of features."""
        classes = torch.arange(self.config["num_classes"], device=labels.device)
        one_hot = (labels[..., None] == classes).permute(0, 3, 1, 2)
        x = torch.cat([images, one_hot.to(images)], 1)                   # (B, 3+N, H, W)
        x = x.contiguous(memory_format=torch.channels_last)
        half = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        output = [[x], [half]]
        for layers, features in zip(self.scales, output):
            for layer in layers:
                features.append(layer(features[-1]))             # (B, 64 … 512, h, w), (B, 1, h, w)
        return [features[1:] for features in output]


# ---- Losses --------------------------------------------------------------------------------------


def hinge_loss_D(output):
    """Mean max(0, 1 − D(x, t)) and mean max(0, 1 + D(x̂, t)) over patches; the scales' mean.

    output: D's, of photographs and generated images in one batch. Returns two scalars. A patch
    that is right by a margin of 1 teaches D nothing more.
    """
    pairs = [losses.at_least_float32(features[-1]).chunk(2) for features in output]
    return (sum(F.relu(1 - real).mean() for real, _ in pairs) / len(pairs),
            sum(F.relu(1 + fake).mean() for _, fake in pairs) / len(pairs))


def hinge_loss_G(output):
    """−mean D(x̂, t) over patches, the scales' mean. G has no margin."""
    return -sum(losses.at_least_float32(features[-1]).mean() for features in output) / len(output)


def mean_difference(ours, target):
    """Mean |ours − target|; the target gets no gradient."""
    return F.l1_loss(losses.at_least_float32(ours), losses.at_least_float32(target.detach()))


def feature_matching_loss(fake, real):
    """Mean |D_k(x̂, t) − D_k(x, t)|, summed over the layers k but the logits; the scales' mean."""
    return sum(mean_difference(ours, target) for ours_at, targets_at in zip(fake, real)
               for ours, target in zip(ours_at[:-1], targets_at[:-1])) / len(fake)


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
    weights: a file of torchvision's VGG19; "": it is fetched once, and checked. UserError.
    """

    LAYERS = {1: 1 / 32, 6: 1 / 16, 11: 1 / 8, 20: 1 / 4, 29: 1.0}      # relu{1 … 5}_1: w_k

    def __init__(self, weights=""):
        super().__init__()
        with torch.device("meta"):          # shapes only: no time, no random numbers
            network = torchvision.models.vgg19().features
        path = weights or metrics.fetch(*VGG19)
        state = {name.removeprefix("features."): tensor for name, tensor
                 in sample.read_tensors(path).items() if name.startswith("features.")}
        if state.keys() != network.state_dict().keys():
            raise UserError(f"{path}: does not hold the weights of torchvision's VGG19")
        network.load_state_dict(state, assign=True)
        self.network = network[:max(self.LAYERS) + 1].requires_grad_(False).eval()
        # VGG19 was trained on images in [0, 1] minus ImageNet's mean, divided by its deviation.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, fake, real):
        """Images (B, 3, H, W), at least 16×16, twice -> a scalar; its gradient reaches `fake`."""
        ours, target = (((images + 1) / 2 - self.mean) / self.std for images in (fake, real))
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


@data.exit_in_words("extras.spade")
def main(argv=None):
    settings = parse_arguments(argv)
    perceptual = PerceptualLoss(settings.vgg_weights) if settings.lambda_vgg > 0 else None
    step = functools.partial(oasis_step if settings.model == "oasis" else spade_step,
                             perceptual=perceptual)
    scores = train.train(settings, make_networks, step)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(int(scores is None))


if __name__ == "__main__":
    from extras.spade import main as run    # under its own name, which checkpoints hold
    run()
