"""Random images, and FID's network with random weights: tests download nothing."""

import pytest
import pytorch_fid.inception
import torch
import torch.nn.functional as F
import torchvision
from torch import nn


def random_images(count, height, width, seed=0):
    """Smooth random images in [-1, 1] with some noise, at the 256 levels of a png."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=rng)
    noise = 0.1 * torch.randn(count, 3, height, width, generator=rng)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")
    return ((2 * smooth + noise).clamp(0, 2) * 127.5).round() / 127.5 - 1


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
