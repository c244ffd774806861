"""Which networks and loss terms belong to which model: oasis, spade or spade+.

The one place that knows all of them. make_networks builds what the settings `s` of a run name
(settings.Settings), generator_from rebuilds it from a checkpoint.
"""

import losses
import oasis
import spade
from distances import MetricsError

MODELS = ("oasis", "spade", "spade+")


def generator_blocks(s):
    """SPADE's generator has one block more than OASIS's of the same widths (Sec. 2)."""
    return s.num_blocks + (s.model != "oasis")


def make_networks(s, num_classes):
    """Generator and discriminator of the model that the settings name, untrained."""
    shape = s.noise_dim, s.channels, generator_blocks(s), s.spade_hidden
    if s.model == "oasis":
        return oasis.Generator(num_classes, *shape), oasis.Discriminator(num_classes, s.d_channels)
    if s.multimodal == "encoder":
        G = spade.EncoderGenerator(num_classes, (s.height, s.width), *shape)
    else:
        G = spade.Generator(num_classes, *shape)
    return G, spade.Discriminator(num_classes, s.patch_channels)


def perceptual_loss(s, device):
    """The perceptual loss with its VGG19, None without. MetricsError where weights are missing."""
    if not s.lambda_vgg:
        return None
    try:
        return losses.PerceptualLoss(s.vgg_weights or None).to(device)
    except MetricsError as e:
        raise MetricsError(f"--lambda-vgg {s.lambda_vgg}: {e}; or name a file by --vgg-weights, or "
                           f"do without by --lambda-vgg 0") from e


def term_names(s):
    """The loss terms of a run, each before its weight λ: the columns of log.csv."""
    optional = {"loss_labelmix": s.model == "oasis" and s.lambda_labelmix > 0,
                "loss_features": s.model != "oasis" and s.lambda_features > 0,
                "loss_kl": s.multimodal == "encoder", "loss_vgg": s.lambda_vgg > 0}
    return ["loss_G", "loss_D_real", "loss_D_fake", *(n for n, used in optional.items() if used)]


def generator_from(checkpoint):
    """The averaged generator of a run of any of the MODELS, in eval mode. oasis.CheckpointError."""
    if checkpoint["model"] not in MODELS:
        raise oasis.CheckpointError(f"checkpoint: holds a {checkpoint['model']} model; there are "
                                    f"{', '.join(MODELS)}")
    if "image_size" in checkpoint["generator_args"]:
        return oasis.restore(spade.EncoderGenerator(**checkpoint["generator_args"]),
                             checkpoint["ema"], "checkpoint")
    return oasis.generator_from(checkpoint)         # SPADE's others differ in numbers only
