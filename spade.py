"""SPADE and SPADE+: the baseline that OASIS is compared with, under the same training loop.

"Semantic Image Synthesis with Spatially-Adaptive Normalization" (Park, Liu, Wang, Zhu, 2019); on
the left in Figure 2 of the OASIS paper. Everything OASIS takes away is here: one more generator
block, a discriminator that judges patches as real or fake and is given the label map, the
feature-matching and the perceptual loss, and an image encoder for multi-modality. SPADE+ is the
paper's fair baseline: without feature matching, with a moving average of G (Sec. 3).

    python spade.py                                        # shapes and parameter counts
    python train.py --model spade+ --lambda-vgg 0          # drawn scenes, nothing to download
    python train.py --model spade+ --multimodal encoder    # the perceptual loss fetches VGG19, once
    python ablation.py                                     # OASIS and SPADE+ in one table

    D minimises   hinge_loss_D(D(x, t), D(x̂, t))
    G minimises   hinge_loss_G(D(x̂, t))  +  λ_features · feature_matching_loss  (SPADE: 10)
                  +  λ_VGG · losses.PerceptualLoss (10)  +  λ_KL · kl_loss  (encoder: 0.05)

Conventions are those of oasis.py. Here D(x, t) is a list with, for each of two scales, the list of
the features of every layer; the last of them are the patch logits (B, 1, h, w), > 0 for real.

Reading order: generator → encoder → discriminator → losses → one training step.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

import oasis
from oasis import LEAK, convolution

LATENT_DIM = 256    # length of the vector that the image encoder finds

# ---- Generator ---------------------------------------------------------------------------------


class Generator(oasis.Generator):
    """SPADE's generator: OASIS's, with the block in front that OASIS removes, and without noise.

    The paper's "we remove the first generator block, decreasing the parameter count by 24M": the
    first three of SPADE's seven blocks have the same shape, 16c to 16c, and the first works at
    1/64. Without noise a label map has one picture. noise_dim = 64 gives SPADE the 3D noise of
    OASIS, as in Table 2.
    """

    def __init__(self, num_classes, noise_dim=0, channels=64, num_blocks=7, spade_hidden=128):
        super().__init__(num_classes, noise_dim, channels, num_blocks, spade_hidden)


def linear(in_features, out_features):
    """A fully connected layer with the initial weights of all other layers."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_normal_(layer.weight, oasis.INIT_GAIN)
    nn.init.zeros_(layer.bias)
    return layer


class EncoderGenerator(nn.Module):
    """SPADE's generator with its image encoder: multi-modality as in a variational autoencoder.

    In training the encoder finds a latent vector z for the photograph, a Gaussian N(μ, σ²) of
    them, and G paints the photograph's label map from it. The KL term keeps the Gaussians near
    N(0, 1), so that at test time z can be drawn without a photograph. z enters once, at the
    first block, through a layer that makes a feature map of it: hence one size, and no "here":
    a region cannot be given a noise of its own. That is what 3D noise changes.

    Args:
        image_size: (H, W) of all images, in training and later.
        noise_dim: length of z. The others are those of oasis.Generator.
    """

    def __init__(self, num_classes, image_size, noise_dim=LATENT_DIM, channels=64, num_blocks=7,
                 spade_hidden=128):
        super().__init__()
        self.config = dict(num_classes=num_classes, image_size=list(image_size),
                           noise_dim=noise_dim, channels=channels, num_blocks=num_blocks,
                           spade_hidden=spade_hidden)
        self.num_classes, self.noise_dim = num_classes, noise_dim
        self.image_size, self.size_multiple = tuple(image_size), 2 ** (num_blocks - 1)
        # SPADE's layers see the label map only.
        self.painter = Generator(num_classes, 0, channels, num_blocks, spade_hidden)
        height, width = (side // self.size_multiple for side in image_size)
        self.first_shape = (self.painter.first.out_channels, height, width)
        self.painter.first = linear(noise_dim, self.painter.first.out_channels * height * width)
        self.encoder = Encoder(image_size, channels, noise_dim)

    def forward(self, labels, noise, images=None):
        """labels (B, H, W) int64 and noise (B, 256), standard normal.

        Without images the noise is z itself -> images (B, 3, H, W). With the photographs (B, 3, H,
        W), in training, z = μ + σ · noise -> (images, KL term, a scalar): all in one call, because
        DistributedDataParallel exchanges gradients only for what happens inside forward.
        ValueError for other sizes, and for noise with a value per pixel.
        """
        if images is None:
            return self.draw(labels, noise)
        mu, log_variance = self.encoder(images)                        # (B, 256) each
        z = mu + torch.exp(log_variance / 2) * noise
        return self.draw(labels, z), kl_loss(mu, log_variance)

    def draw(self, labels, z):
        """labels (B, H, W), z (B, 256) -> images (B, 3, H, W) in [−1, 1]."""
        if labels.shape[1:] != self.image_size:
            raise ValueError("a label map of {}×{} cannot be drawn: a generator with an image "
                             "encoder draws only the size it was trained for, "
                             "{}×{}".format(*labels.shape[1:], *self.image_size))
        if z.shape != (len(labels), self.noise_dim):
            raise ValueError(f"noise of shape {tuple(z.shape)} given, expected "
                             f"{(len(labels), self.noise_dim)}: a latent vector holds for the "
                             f"whole image, only 3D noise may differ per pixel")
        pyramid = self.painter.condition_pyramid(labels, z[:, :0])     # labels without noise
        x = self.painter.first(z).view(-1, *self.first_shape)          # (B, 16c, H/64, W/64)
        return self.painter.paint(x.contiguous(memory_format=torch.channels_last), pyramid)


class Encoder(nn.Module):
    """Photograph -> the mean μ and the logarithm of the variance σ² of its latent vector.

    3×3 convolutions of stride 2 down to about 4×4, at most six, then a linear layer each for μ
    and log σ². SPADE first resizes every image to 256×256, because its linear layers need one
    size; in a run all images have one size anyway, so these layers take that.
    """

    def __init__(self, image_size, channels=64, latent_dim=LATENT_DIM):
        super().__init__()
        stages = max(1, min(6, min(image_size).bit_length() - 3))      # 64 -> 4, 128 -> 5, 256 -> 6
        widths = [3] + [channels * min(8, 2 ** i) for i in range(stages)]
        self.layers = nn.ModuleList(                                   # 64 128 256 512 512 512
            convolution(c_in, c_out, 3, spectral=False, bias=False, stride=2)
            for c_in, c_out in zip(widths, widths[1:]))
        height, width = (-(-side // 2 ** stages) for side in image_size)
        self.mu = linear(widths[-1] * height * width, latent_dim)
        self.log_variance = linear(widths[-1] * height * width, latent_dim)

    def forward(self, images):
        """(B, 3, H, W) -> μ (B, 256), log σ² (B, 256)"""
        x = images
        for layer in self.layers:
            x = F.leaky_relu(F.instance_norm(layer(x)), LEAK)          # (B, 512, 4, 4) in the end
        x = x.flatten(1)
        return self.mu(x), self.log_variance(x)


# ---- Discriminator -----------------------------------------------------------------------------
#
# Two PatchGANs (Isola et al., 2017; pix2pixHD): classifiers that look at image and label map
# together and say "real" or "fake" for each patch. The second sees both at half the size. Nothing
# forces them to use the label map: "allowing them to ignore parts of the label map, as they are not
# penalized for predicting wrong semantic classes" (Sec. 1).


class PatchGAN(nn.Module):
    """4×4 convolutions, stride 2 and then 1, to one logit for each patch."""

    def __init__(self, in_channels, channels):
        super().__init__()
        inputs = [in_channels, *channels]
        self.layers = nn.ModuleList(
            # Instance normalisation takes every bias away again; the first layer has none behind.
            convolution(c_in, c_out, 4, spectral=True, bias=i == 0,
                        stride=2 if i < len(channels) - 1 else 1)
            for i, (c_in, c_out) in enumerate(zip(inputs, channels)))
        self.last = convolution(channels[-1], 1, 4, spectral=True)

    def forward(self, x):
        """(B, 3+N, H, W) -> features of all layers, and the patch logits (B, 1, ~H/8, ~W/8)"""
        features = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = F.leaky_relu(F.instance_norm(x) if i > 0 else x, LEAK)  # … (B, 512, ~H/8, ~W/8)
            features.append(x)
        return [*features, self.last(x)]


class Discriminator(nn.Module):
    """D(x, t): real or fake, patch by patch, at two scales; it is told the label map.

    Args:
        num_classes: N, as for the generator.
        channels: widths of the layers, the same at both scales.
    """

    def __init__(self, num_classes, channels=(64, 128, 256, 512)):
        super().__init__()
        self.config = dict(num_classes=num_classes, channels=list(channels))
        self.num_classes = num_classes
        self.scales = nn.ModuleList(PatchGAN(3 + num_classes, channels) for _ in range(2))

    def forward(self, images, labels):
        """images (B, 3, H, W), labels (B, H, W) int64 -> for each scale its list of features."""
        batch, _, height, width = images.shape
        one_hot = images.new_zeros(batch, self.num_classes, height, width)
        x = torch.cat([images, one_hot.scatter_(1, labels[:, None], 1)], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)            # (B, 3+N, H, W)
        fine, coarse = self.scales
        half = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return [fine(x), coarse(half)]


# ---- Losses ------------------------------------------------------------------------------------


def hinge_loss_D(real, fake):
    """What D minimises: mean max(0, 1 − D(x, t)) and mean max(0, 1 + D(x̂, t)), to be added.

    Once a patch is on its side with a margin of 1, D has nothing more to gain there. real, fake:
    patch logits (B, 1, h, w), one tensor per scale; the scales' mean is taken. Returns two scalars.
    """
    return (sum(F.relu(1 - logits.float()).mean() for logits in real) / len(real),
            sum(F.relu(1 + logits.float()).mean() for logits in fake) / len(fake))


def hinge_loss_G(fake):
    """What G minimises: − mean D(x̂, t), the mean of the scales. Logits as for hinge_loss_D.

    No hinge here: G shall always move on.
    """
    return -sum(logits.float().mean() for logits in fake) / len(fake)


def feature_matching_loss(fake, real):
    """Mean |D_k(x̂, t) − D_k(x, t)|, added up over the layers k, averaged over the scales.

    x̂ shall excite D's layers as the photograph x of the same label map does (pix2pixHD). fake,
    real: D's outputs; their last entries, the logits, are left out. The reals carry no gradient.
    """
    return sum(F.l1_loss(ours.float(), target.detach().float())
               for ours_at, targets_at in zip(fake, real)
               for ours, target in zip(ours_at[:-1], targets_at[:-1])) / len(fake)


def kl_loss(mu, log_variance):
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σ (μ² + σ² − 1 − log σ²) over the latent vector, (B, C) twice.

    The mean over images; the released SPADE adds the images up, so that its λ_KL of 0.05 means
    more with a larger batch.
    """
    mu, log_variance = mu.float(), log_variance.float()
    return 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()


def patch_logits(output):
    """The last features of each scale: D's verdict."""
    return [features[-1] for features in output]


# ---- The two updates ---------------------------------------------------------------------------


def training_step(G, D, D_frozen, optimizer_G, optimizer_D, real, labels, noise,
                  lambda_features=0.0, lambda_kl=None, perceptual=None, lambda_vgg=0.0,
                  precision=contextlib.nullcontext()):
    """One update of D and one of G on the same batch. Returns the terms, {name: detached scalar}.

    The counterpart of train.training_step, which says what the arguments are; the order is the
    same, too: one x̂, D first. lambda_kl: None where G has no encoder. perceptual: a
    losses.PerceptualLoss, None without.
    """
    # ---- D minimises the hinge loss. Its normalisation is per image: one pass for all.
    with precision:
        if lambda_kl is None:
            fake = G(labels, noise)                                     # x̂ = G(z, t)
        else:
            fake, loss_kl = G(labels, noise, real)                      # z from the photograph
        output = D(torch.cat([real, fake.detach()]), labels.repeat(2, 1, 1))
        logits_real, logits_fake = zip(*(scale.chunk(2) for scale in patch_logits(output)))
        loss_D_real, loss_D_fake = hinge_loss_D(logits_real, logits_fake)
        loss_D = loss_D_real + loss_D_fake
    optimizer_D.zero_grad()
    loss_D.backward()
    optimizer_D.step()

    # ---- G minimises what D thinks of x̂, and its distance from the photograph in fixed features.
    D_frozen.requires_grad_(False)
    with precision:
        output = D_frozen(fake, labels)
        loss = loss_G = hinge_loss_G(patch_logits(output))
        terms = {"loss_G": loss_G, "loss_D_real": loss_D_real, "loss_D_fake": loss_D_fake}
        if lambda_features > 0:
            with torch.no_grad():
                target = D_frozen(real, labels)
            terms["loss_features"] = feature_matching_loss(output, target)
            loss = loss + lambda_features * terms["loss_features"]
        if lambda_kl is not None:
            terms["loss_kl"] = loss_kl
            loss = loss + lambda_kl * loss_kl
        if perceptual is not None:
            terms["loss_vgg"] = perceptual(fake, real)
            loss = loss + lambda_vgg * terms["loss_vgg"]
    optimizer_G.zero_grad()
    loss.backward()
    optimizer_G.step()
    D_frozen.requires_grad_(True)
    return {name: term.detach() for name, term in terms.items()}


# ---- python spade.py ---------------------------------------------------------------------------


def main():
    """The shapes of SPADE's discriminator and encoder; parameter counts beside the paper's."""
    def count(network):
        return sum(p.numel() for p in network.parameters())

    with torch.device("meta"):      # tensors with a shape and no numbers: instant, and free
        labels, images = torch.zeros(1, 256, 256, dtype=torch.int64), torch.zeros(1, 3, 256, 256)
        print("Discriminator, ADE20K: image (1, 3, 256, 256) and label map (1, 256, 256)")
        for scale, features in zip(("fine", "coarse"), Discriminator(151)(images, labels)):
            print(f"    {scale:7s}", *(tuple(f.shape[1:]) for f in features))
        print("Encoder: image (1, 3, 256, 256) -> μ and log σ²",
              *(tuple(t.shape) for t in Encoder((256, 256))(images)))
        print("\nParameters, ADE20K                 generator  discriminator         both")
        for name, G, D in (
                ("OASIS", oasis.Generator(151), oasis.Discriminator(151)),
                ("SPADE, SPADE+", Generator(151), Discriminator(151)),
                ("SPADE+ with 3D noise", Generator(151, 64), Discriminator(151)),
                ("SPADE+ with encoder", EncoderGenerator(151, (256, 256)), Discriminator(151))):
            print(f"  {name:28s} {count(G):13,}  {count(D):13,}  {count(G) + count(D):11,}")
        first = count(Generator(151).blocks[0])
    print(f"Table 1: 94M for OASIS, 102M for SPADE. The block that OASIS removes: {first:,} "
          f"(Sec. 2: 24M).")


if __name__ == "__main__":
    main()
