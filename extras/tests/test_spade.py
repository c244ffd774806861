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
    count = lambda network: sum(p.numel() for p in network.parameters())   # noqa: E731
    with torch.device("meta"):
        G, D = spade.make_networks(spade.parse_settings(["--preset", "ade20k"]), 151)
    assert (count(G), count(D), count(G.blocks[0])) == (96_492_483, 5_836_930, 23_947_264)
    # By hand: 4×4 kernels; the inner layers have no bias. The encoder has six 3×3 layers and two linear ones.
    assert count(D) == 2 * (154 * 64 * 16 + 64 + (64 * 128 + 128 * 256 + 256 * 512) * 16 + 512 * 16 + 1)
    assert count(spade.make_encoder((256, 256), 64, 256)) == (
        (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 2 * 512 * 512) * 9 + 2 * (512 * 16 * 256 + 256))


def test_the_encoders_latent_vector_is_its_gaussian_and_reaches_the_image():
    _, G, D, (images, labels, noise, *_) = small(spade, "--multimodal encoder")
    G.eval()
    for together, alone in zip(D.eval()(images, labels), D(images[1:2], labels[1:2])):      # normalised per image
        torch.testing.assert_close(together[-1][1:2], alone[-1])
    mu, log_variance = G.encoder(images).chunk(2, 1)
    painted, kl = G(labels, noise, images)
    torch.testing.assert_close(painted, G(labels, mu + log_variance.exp().sqrt() * noise))
    gaussian = torch.distributions.Normal(mu, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(gaussian, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl, expected.sum(1).mean())
    assert (painted - G(labels, noise)).abs().mean() > 1e-3
    for wrong in ((labels[:, :16], noise), (labels, noise[:, :, None, None].expand(-1, -1, 32, 32))):
        with pytest.raises(data.UserError, match="paints 32×32 only, from one latent vector"):
            G(*wrong)


def test_hinge_losses_against_their_closed_forms():
    output = [[torch.tensor(t).view(-1, 1, 1, 1)] for t in ([0.5, 3.0, 0.5, -3.0], [-1.0, 1.0])]    # real ones, then fakes
    # The mean of each scale, then of both.
    assert [t.item() for t in spade.hinge_loss_D(output)] == [((0.5 + 0) / 2 + 2) / 2, ((1.5 + 0) / 2 + 2) / 2]
    assert spade.hinge_loss_G([[t.chunk(2)[1]] for t, in output]).item() == -(-2.5 / 2 + 1) / 2


@pytest.mark.parametrize("words", PATHS.values(), ids=PATHS.keys())
def test_each_network_gets_the_gradient_of_its_own_objective(words, vgg_file):
    """Against the plain form: one pass for each set of images, nothing frozen."""
    s, G, D, batch = small(spade, words)
    real, labels, noise, mask, weights = batch
    perceptual = spade.PerceptualLoss(vgg_file) if s.lambda_vgg else None
    plain_G, plain_D = copy.deepcopy(G), copy.deepcopy(D)
    for m in (m for network in (G, D, plain_G, plain_D) for m in network.modules() if hasattr(m, "_u")):
        m.n_power_iterations = 300              # converged: the number of passes changes nothing
    step = spade.oasis_step if s.model == "oasis" else spade.spade_step
    optimizers = [torch.optim.SGD(network.parameters(), 1e-2) for network in (G, D)]
    terms = step(G, D, *optimizers, batch, s, perceptual)
    fake, kl = plain_G(labels, noise, real) if s.multimodal == "encoder" else (plain_G(labels, noise), 0.0)
    if s.model == "oasis":
        of_real, of_fake, of_mix = (plain_D(x) for x in (real, fake.detach(), losses.labelmix(real, fake.detach(), mask)))
        loss_D = (losses.real_loss(of_real, labels, weights) + losses.fake_loss(of_fake)
                  + s.lambda_labelmix * losses.labelmix_loss(of_mix, of_real, of_fake, mask))
        loss_G = losses.real_loss(D(fake), labels, weights)             # D has been updated
    else:
        loss_D = sum(F.relu(1 - r[-1]).mean() + F.relu(1 + f[-1]).mean() for r, f in
                     zip(plain_D(real, labels), plain_D(fake.detach(), labels))) / 2
        judged, of_real = D(fake, labels), D(real, labels)
        loss_G = -sum(scale[-1].mean() for scale in judged) / 2 + s.lambda_kl * kl + s.lambda_features * sum(
            (f - r.detach()).abs().mean() for ours, theirs in zip(judged, of_real) for f, r in zip(ours[:-1], theirs[:-1])) / 2
    loss_G = loss_G + (s.lambda_vgg * perceptual(fake, real) if s.lambda_vgg else 0)
    for network, plain, loss in ((D, plain_D, loss_D), (G, plain_G, loss_G)):
        for p, g in zip(network.parameters(), torch.autograd.grad(loss, list(plain.parameters()))):
            torch.testing.assert_close(p.grad, g, rtol=2e-3, atol=1e-4 * max(1.0, g.abs().max().item()))
    assert ("loss_vgg" in terms) == bool(s.lambda_vgg) and ("loss_kl" in terms) == (s.multimodal == "encoder")


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
    for file in ("two0", "two1"):
        for number, (ours, right) in enumerate(zip(torch.load(tmp_path / file), expected, strict=True)):
            error = (ours - right).abs().max()
            assert error <= 1e-10 * right.abs().max(), (cases[number // 4], number % 4, error)


def test_a_run_stops_goes_on_and_is_sampled_and_scored(tmp_path):
    baselines.trains_resumes_samples_and_is_scored(
        spade, "EncoderGenerator", tmp_path, "--multimodal", "encoder")


def test_the_models_are_the_papers_and_spade_reports_g_itself(tmp_path, vgg_file):
    facts = [(s.lambda_features, s.lambda_vgg, s.ema_decay, s.noise_dim) for s in
             (spade.parse_settings(["--preset", "ade20k", *words.split()])
              for words in ("--model spade", "", "--multimodal noise", "--model oasis"))]
    assert facts == [(10, 10, 0, 0), (0, 10, 0.9999, 0), (0, 10, 0.9999, 64), (0, 0, 0.9999, 64)]
    words = "--model spade --lambda-vgg 10 --steps 1 --metrics d_miou".split()
    assert run(spade.main, *TINY, *words, "--vgg-weights", str(vgg_file), "--run-dir", str(tmp_path)) == 0
    checkpoint = sample.load_checkpoint(tmp_path / "latest.pt")
    assert all(torch.equal(checkpoint["ema"][name], checkpoint["generator"][name])
               for name, _ in sample.build_generator(checkpoint).named_parameters())
    assert list(checkpoint["log"][0])[2:] == ["loss_D_real", "loss_D_fake", "loss_G", "loss_features", "loss_vgg"]


def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", Mock(side_effect=OSError("no network")))
    (tmp_path / "other.pth").write_bytes(b"not weights")
    for words, sentence in ((["--lambda-vgg", "10"], "vgg19-dcbb9e9d.pth could not be fetched .*no network"),
                            (["--lambda-vgg", "10", "--vgg-weights", str(tmp_path / "other.pth")], "other.pth: not a checkpoint"),
                            (["--model", "oasis", "--multimodal", "encoder"], "OASIS has none")):
        assert run(spade.main, *TINY, *words, "--run-dir", str(tmp_path / "run")) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and re.search(sentence, error), error
    assert not (tmp_path / "run").exists()
