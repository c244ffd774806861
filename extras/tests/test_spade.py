"""SPADE and SPADE+: sizes, losses against closed forms, gradients of one and two processes, runs, refusals.

    python extras/tests/test_spade.py OUT        # one process's share of a step; see `shares`
"""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import losses                       # noqa: E402  (the line above must come first)
import metrics                      # noqa: E402
import oasis                        # noqa: E402
import sample                       # noqa: E402
import train                        # noqa: E402
from extras import spade            # noqa: E402

TINY = ("--height 32 --width 32 --channels 2 --num-blocks 3 --spade-hidden 4 --patch-channels 4 8 --d-channels 4 8 "
        "--batch-size 4 --log-every 2 --picture-every 4 --score-every 4 --checkpoint-every 2").split()
PATHS = {"spade": "--model spade --lambda-vgg 0", "spade+": "--lambda-vgg 0", "noise": "--lambda-vgg 10 --multimodal noise",
         "encoder": "--lambda-vgg 10 --multimodal encoder --lambda-features 10", "oasis": "--model oasis --lambda-vgg 10"}


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """torchvision's VGG19 with random weights."""
    torch.manual_seed(0)
    network = torchvision.models.vgg19().features
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save({f"features.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    return path


def count(network):
    return sum(p.numel() for p in network.parameters())


def small(words, n=4):
    """(settings, G, D, batch) of a small model with weights as if trained."""
    s = spade.parse_arguments([*TINY, *words.split()])
    torch.manual_seed(0)
    G, D = spade.make_networks(s, 5)
    for network in (G, D):
        oasis.scale_weights(network, 50)
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (n, 4, 4), generator=g).repeat_interleave(8, 1).repeat_interleave(8, 2)
    real = torch.rand(n, 3, 32, 32, generator=g, dtype=torch.float64) * 2 - 1
    noise = torch.randn(n, s.noise_dim, generator=g, dtype=torch.float64)
    mask = losses.labelmix_mask(labels, 5, g)
    return s, G, D, tuple(t if t is labels else t.to(torch.get_default_dtype())
                          for t in (real, labels, noise, mask, losses.class_weights(labels, 5, 0)))


# ---- Networks and losses -----------------------------------------------------------------------------------


def test_parameter_counts_at_full_size():
    """Table 1: 102M for G and D; Sec. 2: the block that OASIS removes has 24M."""
    G, D = spade.make_networks(spade.parse_arguments(["--preset", "ade20k"]), 151)
    assert (count(G), count(D), count(G) + count(D)) == (96_492_483, 5_836_930, 102_329_413)
    assert count(G.blocks[0]) == 23_947_264
    # By hand: 4×4 kernels; the inner layers have no bias. The encoder has six 3×3 layers and two linear ones.
    assert count(D) == 2 * (154 * 64 * 16 + 64 + (64 * 128 + 128 * 256 + 256 * 512) * 16 + 512 * 16 + 1)
    assert count(spade.make_encoder((256, 256), 64, 256)) == (
        (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 2 * 512 * 512) * 9 + 2 * (512 * 16 * 256 + 256))


def test_the_discriminator_sees_each_image_by_itself_and_its_label_map():
    _, _, D, (images, labels, *_) = small("--lambda-vgg 0")
    D.eval()
    for ours, alone, other in zip(D(images, labels), D(images[1:2], labels[1:2]), D(images, (labels + 1) % 5)):
        assert [f.shape[1] for f in ours] == [4, 8, 1]
        for a, b in zip(ours, alone):
            torch.testing.assert_close(a[1:2], b)
        assert not torch.allclose(ours[-1], other[-1])


def test_the_encoders_latent_vector_is_its_gaussian_and_reaches_the_image():
    _, G, _, (images, labels, noise, *_) = small("--lambda-vgg 0 --multimodal encoder")
    G.eval()
    mu, log_variance = G.encoder(images).chunk(2, 1)
    painted, kl = G(labels, noise, images)
    torch.testing.assert_close(painted, G(labels, mu + log_variance.exp().sqrt() * noise))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mu, (log_variance / 2).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(kl, expected.sum(1).mean())
    assert (painted - G(labels, noise)).abs().mean() > 1e-3
    for wrong in ((labels[:, :16], noise), (labels, noise[:, :, None, None].expand(-1, -1, 32, 32))):
        with pytest.raises(oasis.UserError, match="paints 32×32 only, from one latent vector"):
            G(*wrong)


def test_losses_against_their_closed_forms():
    first, second = torch.tensor([0.5, 3.0, 0.5, -3.0]), torch.tensor([-1.0, 1.0])      # real ones, then fakes
    output = [[t.view(-1, 1, 1, 1)] for t in (first, second)]
    loss_real, loss_fake = spade.hinge_loss_D(output)
    assert loss_real.item() == ((0.5 + 0) / 2 + 2) / 2           # the mean of each scale, then of both
    assert loss_fake.item() == ((1.5 + 0) / 2 + 2) / 2
    assert spade.hinge_loss_G([[t.chunk(2)[1]] for t, in output]).item() == -(-2.5 / 2 + 1) / 2
    fake, real = ([[torch.randn(2, c, 3, 3) for c in (4, 8, 1)] for _ in range(2)] for _ in range(2))
    expected = sum((fake[s][k] - real[s][k]).abs().sum() / fake[s][k].numel() for s in (0, 1) for k in (0, 1)) / 2
    torch.testing.assert_close(spade.feature_matching_loss(fake, real), expected)       # k = 2, the logits, is left out


# ---- One step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", PATHS.values(), ids=PATHS.keys())
def test_each_network_gets_the_gradient_of_its_own_objective(words, vgg_file):
    """Against the plain form: one pass for each set of images, nothing frozen."""
    s, G, D, batch = small(words)
    real, labels, noise, mask, weights = batch
    perceptual = spade.PerceptualLoss(vgg_file) if s.lambda_vgg else None
    plain_G, plain_D = copy.deepcopy(G), copy.deepcopy(D)
    for m in [*G.modules(), *D.modules(), *plain_G.modules(), *plain_D.modules()]:
        if hasattr(m, "_u"):
            m.n_power_iterations = 300          # converged: the number of passes changes nothing
    step = spade.oasis_step if s.model == "oasis" else spade.spade_step
    optimizers = [torch.optim.SGD(network.parameters(), 1e-2) for network in (G, D)]
    terms = step(G, D, *optimizers, batch, s, perceptual)

    fake, kl = plain_G(labels, noise, real) if s.multimodal == "encoder" else (plain_G(labels, noise), 0.0)
    if s.model == "oasis":
        of_real, of_fake, of_mix = (plain_D(x) for x in (real, fake.detach(), losses.labelmix(real, fake.detach(), mask)))
        loss_D = (losses.real_loss(of_real, labels, weights) + losses.fake_loss(of_fake)
                  + 10 * losses.labelmix_loss(of_mix, of_real, of_fake, mask))
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
            torch.testing.assert_close(p.grad, g, rtol=2e-3, atol=1e-4)
    assert ("loss_vgg" in terms) == bool(s.lambda_vgg) and ("loss_kl" in terms) == (s.multimodal == "encoder")


def shares(out):
    """Write the gradients of one step on this process's share, [rank::processes], in float64, to OUT."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
    rank, processes = oasis.rank_and_size()
    gradients = {}
    for words in ("--lambda-vgg 0 --multimodal noise", "--model spade --lambda-vgg 0 --multimodal encoder",
                  "--model oasis --lambda-vgg 0"):
        s, G, D, batch = small(words)
        optimizers = [torch.optim.SGD(network.parameters(), 1e-3) for network in (G, D)]
        share = [*(tensor[rank::processes] for tensor in batch[:4]), batch[4]]
        (spade.oasis_step if s.model == "oasis" else spade.spade_step)(G, D, *optimizers, share, s)
        gradients[words] = [p.grad for network in (G, D) for p in network.parameters()]
    torch.save(gradients, f"{out}{rank}")
    if processes > 1:
        dist.destroy_process_group()


def test_two_processes_compute_the_gradients_of_one(tmp_path):
    """Train mode, float64: 1e-10 relative to each network's largest gradient."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    runs = [subprocess.Popen([sys.executable, __file__, str(tmp_path / f"of{size}_")],
                             env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                                  "MASTER_PORT": port}) for rank, size in ((0, 1), (0, 2), (1, 2))]
    assert [run.wait(timeout=120) for run in runs] == [0, 0, 0]
    one, *two = (torch.load(tmp_path / name) for name in ("of1_0", "of2_0", "of2_1"))
    for words, gradients in one.items():
        largest = max(g.abs().max() for g in gradients)
        for process in two:
            assert max((a - b).abs().max() for a, b in zip(process[words], gradients)) < 1e-10 * largest, words


# ---- Whole runs --------------------------------------------------------------------------------------------


def run(*words):
    with pytest.raises(SystemExit) as e:
        spade.main([*TINY, *words])
    return e.value.code


def test_a_resumed_run_ends_in_the_same_bits_and_is_sampled_and_scored(tmp_path):
    words = ["--multimodal", "encoder", "--lambda-vgg", "0", "--metrics", "none"]
    whole, parts = (["--run-dir", str(tmp_path / name)] for name in ("whole", "parts"))
    assert run(*words, *whole, "--steps", "4") == run(*words, *parts, "--steps", "2") == 0
    assert run(*words, *parts, "--resume", "--steps", "4") == 0
    a, b = (oasis.load_checkpoint(tmp_path / name / "latest.pt") for name in ("whole", "parts"))
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(tensor, b[part][name]) for name, tensor in a[part].items())
    assert a["generator_class"] == "extras.spade.EncoderGenerator" and a["settings"]["noise_dim"] == 256
    model = sample.load_model(tmp_path / "whole" / "latest.pt")
    assert isinstance(model.generator, spade.EncoderGenerator) and model.discriminator is None
    labels = torch.zeros(2, 32, 32, dtype=torch.int64)
    assert sample.paint(model.generator, labels, oasis.noise_from_seeds([0, 1], 256)).shape == (2, 32, 32, 3)
    sets = train.open_data(spade.parse_arguments(TINY))
    scores = metrics.Scorer(sets[1], sets[0], "cpu", ["miou"], num_images=4, segmenter_steps=2)(model.generator)
    assert 0 <= scores["miou"] <= 1


def test_the_models_are_the_papers_and_spade_reports_g_itself(tmp_path, vgg_file):
    parse = lambda *words: spade.parse_arguments(["--preset", "ade20k", *words])   # noqa: E731
    facts = [(s.lambda_features, s.lambda_vgg, s.ema_decay, s.noise_dim) for s in
             (parse("--model", "spade"), parse(), parse("--multimodal", "noise"), parse("--model", "oasis"))]
    assert facts == [(10, 10, 0, 0), (0, 10, 0.9999, 0), (0, 10, 0.9999, 64), (0, 0, 0.9999, 64)]
    assert run("--model", "spade", "--vgg-weights", str(vgg_file), "--steps", "1", "--metrics", "d_miou",
               "--run-dir", str(tmp_path)) == 0
    checkpoint = oasis.load_checkpoint(tmp_path / "latest.pt")
    for name, _ in oasis.build_generator(checkpoint).named_parameters():
        assert torch.equal(checkpoint["ema"][name], checkpoint["generator"][name])
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert header == "step,seconds,loss_D_real,loss_D_fake,loss_G,loss_features,loss_vgg"


def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path, capsys, monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    (tmp_path / "other.pth").write_bytes(b"not weights")
    for words, sentence in (([], "vgg19-dcbb9e9d.pth could not be fetched .*no network"),
                            (["--vgg-weights", str(tmp_path / "other.pth")], "other.pth: not a checkpoint"),
                            (["--model", "oasis", "--multimodal", "encoder"], "OASIS has none")):
        assert run(*words, "--run-dir", str(tmp_path / "run")) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and __import__("re").search(sentence, error), error
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    shares(sys.argv[1])
