"""extras/parts.py: what a part changes and what it leaves alone; one step and a checkpoint each."""

import functools

import pytest
import torch

import oasis
import sample
import train
from extras import parts, spade

TINY = ("--height 32 --width 32 --channels 2 --num-blocks 3 --spade-hidden 4 --d-channels 4 8 8 "
        "--batch-size 2 --metrics none --precision fp32").split()


def settings_of(part, *words):
    return parts.parse_settings(["--part", part, *TINY, *words])


def state_of(settings):
    """A train.State with the weights of seed 0."""
    return train.State(settings, parts.make_networks, 5, torch.device("cpu"))


def test_without_spectral_norm_starts_as_oasis_and_then_grows():
    """The same functions before training; after, only one of the two keeps norm 1."""
    settings = settings_of("no-spectral-norm", "--init-gain", "1", "5")
    state = state_of(settings)
    own = train.State(settings, train.make_networks, 5, torch.device("cpu"))
    for network, plain in ((state.generator, own.generator),
                           (state.discriminator, own.discriminator)):
        # The constructors draw other numbers after the first network; take over the weights.
        theirs = dict(plain.named_parameters())
        for name, parameter in network.named_parameters():
            parameter.data.copy_(theirs[name])
        for module in network.modules():
            if isinstance(module, torch.nn.utils.parametrize.ParametrizationList):
                module[0].norm.copy_(torch.linalg.matrix_norm(module.original.flatten(1), 2))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    for _ in range(50):                         # power iterations of the plain one
        own.discriminator.train()(images)
    torch.testing.assert_close(state.discriminator(images), own.discriminator(images),
                               rtol=1e-3, atol=1e-3)
    weight = state.discriminator.encoder[1].conv_1.parametrizations.weight.original
    weight.data.mul_(3)
    effective = state.discriminator.encoder[1].conv_1.weight
    assert torch.linalg.matrix_norm(effective.flatten(1), 2).item() == pytest.approx(3, rel=1e-4)


def test_norms_follow_the_gain():
    """After train.State has scaled the weights, every divided weight still has norm 1."""
    state = state_of(settings_of("no-spectral-norm", "--init-gain", "1", "5"))
    count = 0
    for network in (state.generator, state.discriminator):
        for module in network.modules():
            if torch.nn.utils.parametrize.is_parametrized(module):
                norm = torch.linalg.matrix_norm(module.weight.flatten(1), 2).item()
                assert norm == pytest.approx(1, rel=1e-4)
                count += 1
    assert count > 10


def test_without_skips_the_decoder_sees_the_coarsest_features_only():
    G, D = parts.make_networks(settings_of("no-skips"), 5)
    assert type(G) is oasis.Generator
    with torch.no_grad():
        features = D.eval().encode(torch.rand(1, 3, 32, 32))
        other = D.encode(torch.rand(1, 3, 32, 32))
        D.encode = lambda images: list(features)
        before = D(None)
        D.encode = lambda images: other[:-1] + features[-1:]
        torch.testing.assert_close(D(None), before)
        D.encode = lambda images: features[:-1] + other[-1:]
        assert (D(None) - before).abs().max() > 0
    assert before.shape == (1, 6, 32, 32)


def test_patch_discriminator():
    settings = settings_of("patch-discriminator", "--pixel-noise", "0")
    G, D = parts.make_networks(settings, 5)
    assert type(G) is oasis.Generator and G.config["noise_dim"] == 64
    assert G.config["num_blocks"] == 3 and G.config["pixel_noise"] == 0
    assert type(D) is spade.Discriminator and settings.lambda_vgg == 0


@pytest.mark.parametrize("part", parts.PARTS)
def test_a_step_and_a_checkpoint_that_paints(part, tmp_path):
    settings = settings_of(part, "--steps", "1", "--run-dir", str(tmp_path))
    step = spade.oasis_step if settings.model == "oasis" else spade.spade_step
    train.train(settings, parts.make_networks, functools.partial(step, perceptual=None))
    checkpoint = sample.load_checkpoint(tmp_path / "latest.pt")
    assert checkpoint["settings"]["part"] == part and checkpoint["step"] == 1
    G = sample.build_generator(checkpoint)
    noise = oasis.draw_noise([0], (32, 32), G.noise_dim, G.pixel_noise)
    assert sample.paint(G, torch.zeros(32, 32), noise).shape == (1, 32, 32, 3)
