"""SPADE and SPADE+: sizes, losses against closed forms, one step on every path, runs, refusals."""

import copy
import csv
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
import torchvision

import losses
import metrics
import models
import oasis
import sample
import settings
import spade
import train

TINY = ["--height", "32", "--width", "32", "--channels", "2", "--num-blocks", "3", "--spade-hidden", "4",
        "--patch-channels", "4", "8", "--batch-size", "4", "--metrics", "none",
        "--log-every", "2", "--picture-every", "4", "--score-every", "4", "--checkpoint-every", "2"]


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """torchvision's VGG19 with random weights; the classifier is left out, nothing reads it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.vgg19().features
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save({f"features.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    return path


def count(network):
    return sum(p.numel() for p in network.parameters())


# ---- Networks --------------------------------------------------------------------------------------


def test_parameter_counts_at_full_size():
    """Table 1: 102M for G and D; Sec. 2: the block that OASIS removes has 24M."""
    with torch.device("meta"):
        G, D = spade.Generator(151), spade.Discriminator(151)
        seven, six = count(G), count(oasis.Generator(151, noise_dim=0))
        encoder = spade.Encoder((256, 256))
    assert (seven, count(D), seven + count(D)) == (96_492_483, 5_836_930, 102_329_413)
    assert seven - six == count(G.blocks[0]) == 23_947_264
    # By hand: 4×4 kernels; the three inner layers have no bias, instance norm would cancel it.
    scale = 154 * 64 * 16 + 64 + (64 * 128 + 128 * 256 + 256 * 512) * 16 + 512 * 16 + 1
    assert count(D) == 2 * scale
    assert count(encoder) == (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 2 * 512 * 512) * 9 \
        + 2 * (512 * 16 * 256 + 256)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (32, 64)])
def test_shapes_of_all_networks(size):
    labels, images = torch.randint(0, 5, (2, *size)), torch.rand(2, 3, *size) * 2 - 1
    shape = dict(channels=2, num_blocks=4, spade_hidden=4)
    with torch.no_grad():
        assert spade.Generator(5, **shape)(labels, torch.empty(2, 0)).shape == images.shape
        assert spade.Generator(5, 8, **shape)(labels, torch.randn(2, 8, *size)).shape == images.shape
        G = spade.EncoderGenerator(5, size, **shape)
        assert G(labels, torch.randn(2, 256)).shape == images.shape
        drawn, kl = G(labels, torch.randn(2, 256), images)
        assert drawn.shape == images.shape and kl.shape == ()
        assert G.first_shape == (32, size[0] // 8, size[1] // 8)
        for factor, features in zip((1, 2), spade.Discriminator(5, (4, 8, 16, 16))(images, labels)):
            assert [f.shape[1] for f in features] == [4, 8, 16, 16, 1]
            sides = [[side // factor // 8 + extra for side in size] for extra in (1, 2, 3)]
            assert [list(f.shape[2:]) for f in features[2:]] == sides


def test_the_encoders_latent_vector_is_its_gaussian_and_reaches_the_picture():
    torch.manual_seed(0)
    G = spade.EncoderGenerator(5, (32, 32), 8, 2, 4, 4)
    oasis.scale_weights(G, 50)
    labels, images, noise = torch.zeros(2, 32, 32, dtype=torch.int64), torch.rand(2, 3, 32, 32), torch.randn(2, 8)
    mu, log_variance = G.encoder(images)
    z = mu + log_variance.exp().sqrt() * noise
    drawn, kl = G.eval()(labels, noise, images)
    torch.testing.assert_close(drawn, G(labels, z), rtol=0, atol=1e-5)
    torch.testing.assert_close(kl, spade.kl_loss(mu, log_variance))
    assert (drawn[0] - drawn[1]).abs().mean() > 1e-3             # one label map, two latent vectors
    other = images.flip(0)
    assert not torch.allclose(G.encoder(other)[0], mu)


def test_the_discriminator_sees_the_label_map_and_each_image_by_itself():
    torch.manual_seed(0)
    D = spade.Discriminator(5, (4, 8)).eval()
    images, labels = torch.rand(3, 3, 32, 32), torch.randint(0, 5, (3, 32, 32))
    output = D(images, labels)
    for ours, alone in zip(output, D(images[1:2], labels[1:2])):
        for a, b in zip(ours, alone):
            torch.testing.assert_close(a[1:2], b)
    for ours, other in zip(output, D(images, (labels + 1) % 5)):
        assert not torch.allclose(ours[-1], other[-1])


def test_a_label_map_without_a_picture_is_refused():
    G = spade.EncoderGenerator(5, (32, 32), 8, 2, 4, 4)
    labels = torch.zeros(1, 64, 32, dtype=torch.int64)
    with pytest.raises(ValueError, match="64×32 cannot be drawn.*trained for, 32×32"):
        G(labels, torch.randn(1, 8))
    with pytest.raises(ValueError, match="only 3D noise may differ per pixel"):
        G(labels[:, :32], torch.randn(1, 8, 32, 32))


# ---- Losses ----------------------------------------------------------------------------------------


def test_hinge_loss_against_its_closed_form():
    real = [torch.tensor([0.5, 3.0]).view(2, 1, 1, 1), torch.tensor([-1.0]).view(1, 1, 1, 1)]
    fake = [torch.tensor([0.5, -3.0]).view(2, 1, 1, 1), torch.tensor([1.0]).view(1, 1, 1, 1)]
    loss_real, loss_fake = spade.hinge_loss_D(real, fake)
    assert loss_real.item() == ((0.5 + 0) / 2 + 2) / 2           # the mean of each scale, then of both
    assert loss_fake.item() == ((1.5 + 0) / 2 + 2) / 2
    assert spade.hinge_loss_G(fake).item() == -(-2.5 / 2 + 1) / 2


def test_hinge_loss_is_least_for_the_best_answer():
    """Over patches where reals and fakes are equally many, any D in [−1, 1] of one value costs 2."""
    for value in (-1.0, 0.0, 0.7):
        logits = [torch.full((4, 1, 3, 3), value)]
        assert sum(spade.hinge_loss_D(logits, logits)).item() == pytest.approx(2)


def test_feature_matching_against_a_loop():
    g = torch.Generator().manual_seed(0)
    fake, real = ([[torch.randn(2, c, 3, 3, generator=g) for c in (4, 8, 1)] for _ in range(2)]
                  for _ in range(2))
    fake[0][0].requires_grad_()
    real[0][0].requires_grad_()
    loss = spade.feature_matching_loss(fake, real)
    expected = sum((fake[s][k] - real[s][k]).abs().sum() / fake[s][k].numel()
                   for s in range(2) for k in range(2)) / 2       # k = 2, the logits, is left out
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert fake[0][0].grad.abs().sum() > 0 and real[0][0].grad is None


def test_kl_loss_against_torch_distributions():
    g = torch.Generator().manual_seed(0)
    mu, log_variance = torch.randn(5, 7, generator=g), torch.randn(5, 7, generator=g)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mu, (log_variance / 2).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(spade.kl_loss(mu, log_variance), expected.sum(1).mean())
    assert spade.kl_loss(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    one_off = spade.kl_loss(torch.tensor([[2.0]]), torch.tensor([[math.log(4.0)]]))
    assert one_off.item() == pytest.approx(0.5 * (4 + 4 - 1 - math.log(4)))


# ---- One training step -----------------------------------------------------------------------------


def tiny_state(**changes):
    s = settings.Settings(**{**settings.PRESETS["toy"], "height": 16, "width": 16, "channels": 2, "num_blocks": 2,
                          "spade_hidden": 4, "patch_channels": (4, 8), "model": "spade+", **changes})
    s.noise_dim = settings.NOISE_DIMS[s.multimodal]
    return s, train.State(s, 5, torch.device("cpu"))


def tiny_batch(noise_dim, n=4):
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (n, 4, 4), generator=g).repeat_interleave(4, 1).repeat_interleave(4, 2)
    real = torch.rand(n, 3, 16, 16, generator=g) * 2 - 1
    return real, labels, torch.randn(n, noise_dim, generator=g)


PATHS = [dict(model="spade", multimodal="none", lambda_features=10.0, lambda_vgg=10.0),
         dict(multimodal="none"), dict(multimodal="noise", lambda_vgg=10.0), dict(multimodal="encoder"),
         dict(multimodal="encoder", lambda_features=10.0, lambda_vgg=10.0)]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: "-".join(f"{v}" for v in p.values()))
def test_each_network_gets_the_gradient_of_its_own_objective(path, vgg_file):
    """Against the plain form: one pass for each image, nothing frozen, D first, then G."""
    s, state = tiny_state(**path)
    perceptual = models.perceptual_loss(settings.Settings(**{**vars(s), "vgg_weights": str(vgg_file)}), "cpu")
    G, D = copy.deepcopy(state.G), copy.deepcopy(state.D)
    real, labels, noise = batch = tiny_batch(s.noise_dim)
    for network in (G, D, state.G, state.D):    # from converged singular vectors, passes change nothing
        for m in network.modules():
            if hasattr(m, "_u"):
                m.n_power_iterations = 500
    terms = train.update(s, state, state.G, state.D, *batch, None, None, perceptual, torch.autocast("cpu", enabled=False))
    assert list(terms) == models.term_names(s)

    fake, kl = G(labels, noise, real) if s.multimodal == "encoder" else (G(labels, noise), torch.tensor(0.0))
    loss_D = sum(F.relu(1 - r[-1]).mean() + F.relu(1 + f[-1]).mean() for r, f in
                 zip(D(real, labels), D(fake.detach(), labels))) / 2
    for p, g in zip(state.D.parameters(), torch.autograd.grad(loss_D, list(D.parameters()))):
        torch.testing.assert_close(p.grad, g, rtol=2e-3, atol=2e-5)
    assert terms["loss_D_real"] + terms["loss_D_fake"] == pytest.approx(loss_D.item(), rel=1e-4)

    judged, of_real = state.D(fake, labels), state.D(real, labels)      # D has been updated
    loss_G = -sum(scale[-1].mean() for scale in judged) / 2 + s.lambda_kl * kl
    if s.lambda_features:
        loss_G = loss_G + 10 * sum((f - r.detach()).abs().mean() for ours, theirs in zip(judged, of_real)
                                   for f, r in zip(ours[:-1], theirs[:-1])) / 2
    if s.lambda_vgg:
        loss_G = loss_G + 10 * perceptual(fake, real)
    expected = torch.autograd.grad(loss_G, list(G.parameters()))
    for (name, p), g in zip(state.G.named_parameters(), expected):
        torch.testing.assert_close(p.grad, g, rtol=2e-3, atol=2e-5, msg=name)
    # Behind one kind of layer nothing can be learned: features that are normalised take no shift.
    assert all(g.abs().max() > 0 for (name, _), g in zip(G.named_parameters(), expected) if "weight" in name)


def test_oasis_takes_the_perceptual_loss_too(vgg_file):
    """The gradient of G with λ_VGG minus the one without is that of the perceptual loss alone."""
    gradients, batch = [], tiny_batch(64)
    extra = losses.labelmix_mask(batch[1], 5), torch.ones(5)
    perceptual = losses.PerceptualLoss(vgg_file)
    for used in (None, perceptual):
        s, state = tiny_state(model="oasis", lambda_vgg=10.0, lambda_labelmix=0.0, d_channels=(4, 8))
        G = copy.deepcopy(state.G)
        terms = train.update(s, state, state.G, state.D, *batch, *extra, used, torch.autocast("cpu", enabled=False))
        assert ("loss_vgg" in terms) == (used is not None)
        gradients.append([p.grad for p in state.G.parameters()])
    expected = torch.autograd.grad(10 * perceptual(G(*batch[1:]), batch[0]), list(G.parameters()))
    for without, with_vgg, difference in zip(*gradients, expected):
        torch.testing.assert_close(with_vgg - without, difference, rtol=1e-3, atol=1e-5)


# ---- Whole runs ------------------------------------------------------------------------------------


def rows_of(path):
    with open(path, newline="") as f:
        return [{k: float(v) if v else v for k, v in row.items()} for row in csv.DictReader(f)]


@pytest.fixture(scope="module")
def encoder_run(tmp_path_factory):
    """SPADE+ with encoder, four steps; stopped after two and resumed."""
    folder = tmp_path_factory.mktemp("encoder") / "run"
    arguments = [*TINY, "--model", "spade+", "--multimodal", "encoder", "--lambda-vgg", "0"]
    train.main([*arguments, "--steps", "2", "--run-dir", str(folder)])
    train.main(["--resume", "--steps", "4", "--run-dir", str(folder)])
    train.main([*arguments, "--steps", "4", "--run-dir", str(folder.with_name("whole"))])
    return folder


def test_a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one(encoder_run):
    resumed, whole = (oasis.load_checkpoint(folder / "latest.pt")
                      for folder in (encoder_run, encoder_run.with_name("whole")))
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(tensor, whole[part][name]) for name, tensor in resumed[part].items())
    assert resumed["model"] == "spade+" and resumed["config"]["noise_dim"] == 256
    rows = rows_of(encoder_run / "log.csv")
    assert list(rows[0]) == ["step", "seconds", "loss_G", "loss_D_real", "loss_D_fake", "loss_kl"]
    assert [row["step"] for row in rows] == [2, 4] and (encoder_run / "curves.png").exists()


def test_sampling_and_scores_read_the_run(encoder_run, tmp_path, capsys):
    checkpoint, out = str(encoder_run / "latest.pt"), str(tmp_path / "out")
    assert sample.main(["--checkpoint", checkpoint, "--limit", "1", "--out", out]) == 0
    assert len(list((tmp_path / "out").glob("*_seed*.png"))) == 4
    metrics.main(["--checkpoint", checkpoint, "--metrics", "miou,ms_ssim", "--num-images", "4",
                  "--segmenter-steps", "2", "--json", str(tmp_path / "scores.json")])
    assert 0 <= json.loads((tmp_path / "scores.json").read_text())["scores"]["ms_ssim"]["value"] < 1
    model = sample.load_model(checkpoint)
    assert isinstance(model.generator, spade.EncoderGenerator) and model.discriminator is None
    for request, sentence in ((["--resample-class", "sky"], "latent vector holds for the whole picture"),
                              (["--recreate"], "spade\\+ only says real or fake"),
                              (["--size", "64", "64"], "64×64.*--size 32 32")):
        assert sample.main(["--checkpoint", checkpoint, *request]) == 2
        assert re.search(sentence, capsys.readouterr().err)
    with pytest.raises(SystemExit) as e:
        metrics.main(["--checkpoint", checkpoint, "--metrics", "d_miou"])
    assert e.value.code == 2 and "cannot segment" in capsys.readouterr().err


def test_spade_reports_g_itself_and_logs_its_terms(vgg_file, tmp_path, capsys):
    train.main([*TINY, "--model", "spade", "--vgg-weights", str(vgg_file), "--steps", "2",
                "--run-dir", str(tmp_path / "run")])
    checkpoint = oasis.load_checkpoint(tmp_path / "run" / "latest.pt")
    assert list(rows_of(tmp_path / "run" / "log.csv")[0])[2:] == [
        "loss_G", "loss_D_real", "loss_D_fake", "loss_features", "loss_vgg"]
    G = models.make_networks(settings.Settings(**checkpoint["config"]), 10)[0]
    for name, _ in G.named_parameters():
        assert torch.equal(checkpoint["ema"][name], checkpoint["generator"][name])
    assert checkpoint["generator_args"]["num_blocks"] == 4 and checkpoint["generator_args"]["noise_dim"] == 0
    assert sample.main(["--checkpoint", str(tmp_path / "run" / "latest.pt"), "--limit", "2",
                        "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*_seed*.png"))) == 2       # one picture of each label map
    assert sample.main(["--checkpoint", str(tmp_path / "run" / "latest.pt"), "--interpolate", "3"]) == 2
    assert "without noise" in capsys.readouterr().err


def test_data_seed_chooses_the_scenes_and_seed_the_training():
    pictures, weights = [], []
    for seed, data_seed in ((0, 0), (1, 0), (0, 1)):
        s, _ = settings.parse_arguments(["--height", "32", "--width", "32", "--seed", str(seed),
                                         "--data-seed", str(data_seed)])
        train_set, _ = train.open_data(s)
        pictures.append(train_set[0][0])
        weights.append(next(train.State(s, 10, torch.device("cpu")).G.parameters()).detach())
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])


def test_a_run_from_before_data_seed_goes_on_with_its_scenes(tmp_path):
    s, _ = settings.parse_arguments(["--seed", "7", "--run-dir", str(tmp_path)])
    config = {k: v for k, v in vars(s).items() if k not in ("data_seed", "model", "multimodal", "lambda_vgg")}
    torch.save({"format": "oasis-run-1", "config": config}, tmp_path / "latest.pt")
    resumed, _ = settings.settings_of_resumed_run(s, set())
    assert (resumed.seed, resumed.data_seed, resumed.model) == (7, 7, "oasis")


# ---- Settings --------------------------------------------------------------------------------------


def test_the_models_are_the_papers():
    parse = lambda *words: settings.parse_arguments(["--preset", "ade20k", *words])[0]   # noqa: E731
    s = parse("--model", "spade")
    assert (s.lambda_features, s.lambda_vgg, s.ema_decay, s.noise_dim, s.multimodal) == (10, 10, 0, 0, "none")
    s = parse("--model", "spade+")
    assert (s.lambda_features, s.lambda_vgg, s.ema_decay, s.noise_dim) == (0, 10, 0.9999, 0)
    assert parse("--model", "spade+", "--multimodal", "encoder").noise_dim == 256
    assert parse("--model", "spade+", "--multimodal", "noise").noise_dim == 64
    s = parse()
    assert (s.model, s.multimodal, s.noise_dim, s.lambda_vgg) == ("oasis", "noise", 64, 0)
    assert parse("--no-noise") == parse("--multimodal", "none") and parse("--no-noise").noise_dim == 0
    with torch.device("meta"):
        G, D = models.make_networks(parse("--model", "spade"), 151)
    assert count(G) + count(D) == 102_329_413


@pytest.mark.parametrize("arguments, sentence", [
    (["--multimodal", "encoder"], "--multimodal encoder: an image encoder belongs to SPADE"),
    (["--lambda-features", "10"], "--lambda-features 10.0: feature matching belongs to"),
    (["--model", "spade+", "--no-class-balance"], "--no-class-balance True: spade\\+ has no class weights"),
    (["--no-noise", "--noise-dim", "8"], "--noise-dim 8: --multimodal none has no noise"),
    (["--model", "spade", "--metrics", "miou,d_miou"], "d_miou: d_miou scores OASIS's"),
    (["--model", "spade", "--height", "72"], "--height 72: must be a multiple of 16.*4 times; nearest: 64 or 80"),
    (["--lambda-vgg", "10", "--height", "8"], "--lambda-vgg 10.0: VGG19 .* 8×64 is too small"),
    (["--vgg-weights", "vgg.pth"], "--vgg-weights vgg.pth: .*--lambda-vgg"),
    (["--lambda-vgg", "nan"], "--lambda-vgg nan: must not be negative"),
    (["--lambda-vgg", "10", "--vgg-weights", "no.pth"], "--lambda-vgg 10.0: no.pth: no such .*--lambda-vgg 0"),
    (["--model", "pix2pix"], "pix2pix.*oasis.*spade"),
    (["--patch-channels", "8", "1"], "--patch-channels 8 1: each must be at least 2"),
])
def test_a_mistake_is_one_sentence_exit_code_2_and_nothing_written(tmp_path, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as e:
        train.main([*arguments, "--run-dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert e.value.code == 2 and "Traceback" not in error
    assert re.search(sentence, error), error
    assert not (tmp_path / "run").exists()


def test_the_model_of_a_run_cannot_be_changed(encoder_run, capsys):
    for arguments in (["--model", "spade"], ["--multimodal", "noise"], ["--data-seed", "3"]):
        with pytest.raises(SystemExit) as e:
            train.main(["--resume", *arguments, "--run-dir", str(encoder_run)])
        assert e.value.code == 2 and "which resuming cannot change" in capsys.readouterr().err


def test_without_weights_and_network_one_sentence_says_what_to_do(tmp_path, capsys, monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(SystemExit) as e:
        train.main([*TINY, "--model", "spade+", "--run-dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert e.value.code == 2 and not (tmp_path / "run").exists()
    assert re.search("vgg19-dcbb9e9d.pth could not be fetched.*hub.*--vgg-weights.*--lambda-vgg 0", error), error
    (tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth").write_bytes(b"half")
    with pytest.raises(metrics.MetricsError, match="damaged or cut off"):
        losses.PerceptualLoss()
