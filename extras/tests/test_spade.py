"""SPADE: sizes, losses against closed forms, gradients, runs, refusals. One and two processes, for
SPADE, Pix2pixHD and CC-FPSE."""

import copy
import re
from unittest.mock import Mock

import baselines
import pytest
import several
import torch
import torch.nn.functional as F
import torchvision

import data
import losses
import oasis
import sample
from baselines import TINY, run, small
from extras import spade

PATHS = {"spade": "--model spade --lambda-vgg 0",
         "spade+": "--lambda-vgg 0",
         "noise": "--lambda-vgg 10 --multimodal noise --pixel-noise 8",
         "encoder": "--lambda-vgg 10 --multimodal encoder --lambda-features 10",
         "oasis": "--model oasis --lambda-vgg 10"}


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """torchvision's VGG19 with random weights."""
    torch.manual_seed(0)
    network = torchvision.models.vgg19().features
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save({f"features.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    return path


def test_parameter_counts_at_full_size():
    """Table 1: 102M for G and D; Sec. 2: the block that OASIS removes has 24M."""
    with torch.device("meta"):
        G, D = spade.make_networks(spade.parse_settings(["--preset", "ade20k"]), 151)
        encoder = spade.make_encoder((256, 256), 64, 256)
    assert oasis.count_parameters(G) == 96_492_483
    assert oasis.count_parameters(G.blocks[0]) == 23_947_264
    assert G.levels == [5, 4, 4, 3, 2, 1, 0] and G.size_multiple == 32
    # By hand: 4×4 kernels, the inner layers have no bias; 3×3 kernels and two linear layers.
    inner = 64 * 128 + 128 * 256 + 256 * 512
    assert oasis.count_parameters(D) == 2 * (154 * 64 * 16 + 64 + inner * 16 + 512 * 16 + 1)
    assert oasis.count_parameters(encoder) == (
        (3 * 64 + inner + 2 * 512 * 512) * 9 + 2 * (512 * 16 * 256 + 256))


def test_the_encoders_latent_vector_is_its_gaussian_and_reaches_the_image():
    _, G, D, (images, labels, noise, *_) = small(spade, "--multimodal encoder")
    G.eval()
    D.eval()
    for together, alone in zip(D(images, labels), D(images[1:2], labels[1:2])):
        torch.testing.assert_close(together[-1][1:2], alone[-1])        # normalised per image
    mu, log_variance = G.encoder(images).chunk(2, 1)
    painted, kl = G(labels, noise, images)
    torch.testing.assert_close(painted, G(labels, mu + log_variance.exp().sqrt() * noise))
    gaussian = torch.distributions.Normal(mu, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(gaussian, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl, expected.sum(1).mean())
    assert (painted - G(labels, noise)).abs().mean() > 1e-3
    local = noise[:, :, None, None].expand(-1, -1, 32, 32)
    for wrong in ((labels[:, :16], noise), (labels, local)):
        with pytest.raises(data.UserError, match="paints 32×32 only, from one latent vector"):
            G(*wrong)


def test_hinge_losses_against_their_closed_forms():
    """The mean of each scale, then of both. In a scale, real ones come first, then fakes."""
    first = torch.tensor([0.5, 3.0, 0.5, -3.0]).view(-1, 1, 1, 1)
    second = torch.tensor([-1.0, 1.0]).view(-1, 1, 1, 1)
    of_real, of_fake = spade.hinge_loss_D([[first], [second]])
    assert of_real.item() == ((0.5 + 0) / 2 + 2) / 2
    assert of_fake.item() == ((1.5 + 0) / 2 + 2) / 2
    assert spade.hinge_loss_G([[first[2:]], [second[1:]]]).item() == -(-2.5 / 2 + 1) / 2


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def plain_losses(s, G, D, D_before, batch, perceptual):
    """What D and G minimise, in the plain form: one pass for each set of images, nothing frozen.

    D_before: D before its update.
    """
    real, labels, noise, mask, weights = batch
    if s.multimodal == "encoder":
        fake, kl = G(labels, noise, real)
    else:
        fake, kl = G(labels, noise), 0.0
    if s.model == "oasis":
        of_real, of_fake = D_before(real), D_before(fake.detach())
        of_mix = D_before(losses.labelmix(real, fake.detach(), mask))
        loss_D = losses.real_loss(of_real, labels, weights) + losses.fake_loss(of_fake)
        loss_D = loss_D + s.lambda_labelmix * losses.labelmix_loss(of_mix, of_real, of_fake, mask)
        loss_G = losses.real_loss(D(fake), labels, weights)
    else:
        loss_D = 0
        for of_real, of_fake in zip(D_before(real, labels), D_before(fake.detach(), labels)):
            loss_D = loss_D + F.relu(1 - of_real[-1]).mean() / 2
            loss_D = loss_D + F.relu(1 + of_fake[-1]).mean() / 2
        loss_G = s.lambda_kl * kl
        for of_real, of_fake in zip(D(real, labels), D(fake, labels)):
            loss_G = loss_G - of_fake[-1].mean() / 2
            for r, f in zip(of_real[:-1], of_fake[:-1]):
                loss_G = loss_G + s.lambda_features * (f - r.detach()).abs().mean() / 2
    if s.lambda_vgg:
        loss_G = loss_G + s.lambda_vgg * perceptual(fake, real)
    return loss_D, loss_G


@pytest.mark.parametrize("words", PATHS.values(), ids=PATHS.keys())
def test_each_network_gets_the_gradient_of_its_own_objective(words, vgg_file, float64):
    s, G, D, batch = small(spade, words)
    assert (batch[2].ndim == 4) == (s.pixel_noise > 0) and G.pixel_noise == s.pixel_noise
    perceptual = spade.PerceptualLoss(vgg_file).double() if s.lambda_vgg else None
    plain_G, plain_D = copy.deepcopy(G), copy.deepcopy(D)
    for network in (G, D, plain_G, plain_D):
        for layer in network.modules():
            if hasattr(layer, "_u"):
                layer.n_power_iterations = 300      # converged: one pass more changes nothing
    step = spade.oasis_step if s.model == "oasis" else spade.spade_step
    optimizers = [torch.optim.SGD(network.parameters(), 1e-2) for network in (G, D)]
    terms = step(G, D, *optimizers, batch, s, perceptual)
    loss_D, loss_G = plain_losses(s, plain_G, D, plain_D, batch, perceptual)
    for network, plain, loss in ((D, plain_D, loss_D), (G, plain_G, loss_G)):
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        for parameter, expected in zip(network.parameters(), gradients):
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-6,
                                       atol=1e-6 * max(1.0, expected.abs().max().item()))
    assert ("loss_vgg" in terms) == bool(s.lambda_vgg)
    assert ("loss_kl" in terms) == (s.multimodal == "encoder")


def test_two_processes_compute_the_update_of_one(tmp_path):
    """Train mode, float64: 1e-10 relative to the largest gradient, or statistic, of a network."""
    cases = [("spade", "--multimodal noise --pixel-noise 8", "spade.spade_step"),
             ("spade", "--model spade --multimodal encoder", "spade.spade_step"),
             ("spade", "--model oasis", "spade.oasis_step"),
             ("pix2pixhd", "--multimodal noise", "pix2pixhd.pix2pixhd_step"),
             ("ccfpse", "--multimodal noise", "spade.spade_step"),
             ("ccfpse", "--multimodal encoder", "spade.spade_step")]
    several.run(baselines.one_step, str(tmp_path / "one"), cases)
    several.run(baselines.one_step, str(tmp_path / "two"), cases, processes=2)
    expected = torch.load(tmp_path / "one0")
    assert len(expected) == 4 * len(cases)      # gradients and statistics, of G and of D
    for file in ("two0", "two1"):
        for number, ours in enumerate(torch.load(tmp_path / file)):
            right = expected[number]
            error = (ours - right).abs().max()
            assert error <= 1e-10 * right.abs().max(), (cases[number // 4], number % 4, error)


def test_a_run_stops_goes_on_and_is_sampled_and_scored(tmp_path):
    baselines.trains_resumes_samples_and_is_scored(
        spade, "EncoderGenerator", tmp_path, "--multimodal", "encoder")


def test_the_models_are_the_papers_and_spade_reports_g_itself(tmp_path, vgg_file):
    for words, facts in (("--model spade", (10, 10, 0, 0, 0)), ("", (0, 10, 0.9999, 0, 0)),
                         ("--multimodal noise", (0, 10, 0.9999, 64, 0)),
                         ("--multimodal noise --pixel-noise 16", (0, 10, 0.9999, 64, 16)),
                         ("--model oasis", (0, 0, 0.9999, 64, 0))):
        s = spade.parse_settings(["--preset", "ade20k", *words.split()])
        found = s.lambda_features, s.lambda_vgg, s.ema_decay, s.noise_dim, s.pixel_noise
        assert found == facts, words
    # On drawn scenes a part of OASIS's noise differs from pixel to pixel, and so does SPADE+'s.
    for words in ([], ["--model", "oasis"]):
        s = spade.parse_settings(["--multimodal", "noise", *words])
        assert (s.noise_dim, s.pixel_noise) == (64, 16)
    words = "--model spade --lambda-vgg 10 --steps 1 --metrics d_miou --vgg-weights".split()
    assert run(spade.main, *TINY, *words, vgg_file, "--run-dir", tmp_path) == 0
    checkpoint = sample.load_checkpoint(tmp_path / "latest.pt")
    for name, _ in sample.build_generator(checkpoint).named_parameters():
        assert torch.equal(checkpoint["ema"][name], checkpoint["generator"][name])
    assert list(checkpoint["log"][0])[2:] == ["loss_D_real", "loss_D_fake", "loss_G",
                                              "loss_features", "loss_vgg"]


def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    download = Mock(side_effect=OSError("no network"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    other = tmp_path / "other.pth"
    other.write_bytes(b"not weights")
    for words, sentence in (
            (["--lambda-vgg", "10"], "vgg19-dcbb9e9d.pth could not be fetched .*no network"),
            (["--lambda-vgg", "10", "--vgg-weights", other], "other.pth: not a checkpoint"),
            (["--model", "oasis", "--multimodal", "encoder"], "OASIS has none"),
            (["--multimodal", "encoder", "--pixel-noise", "4"], "one latent vector for the whole")):
        assert run(spade.main, *TINY, *words, "--run-dir", tmp_path / "run") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and re.search(sentence, error), error
    assert not (tmp_path / "run").exists()
