"""CC-FPSE: figures of the released classes, closed forms, sizes, tiny runs."""

import re

import baselines
import pytest
import torch
import torch.nn.functional as F

import data
import oasis
from extras import ccfpse, spade

FIGURES = baselines.golden("ccfpse_small")
CASE = FIGURES["case"]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def weights_in_golden_order(tensor):
    """Ours has nine blocks of C channels; theirs nine channels for each of C."""
    return tensor.unflatten(0, (9, -1)).transpose(0, 1).flatten(0, 1)


# Names of the figures -> names of ours. Applied one after the other, in this order.
ORIGINAL = "parametrizations.weight.original"
NAMES = (
    (r"^(pyramid\.\w+\.\d)\.weight", rf"\1.0.{ORIGINAL}"),
    (r"^(pyramid\.\w+\.\d)\.norm", r"\1.1"),
    (r"^block\.", "blocks."), (r"\.hidden\.", ".0."), (r"(weights_\d|gate_\d)\.out", r"\1.2"),
    (r"\.shortcut\.conv\.weight", f".conv_s.{ORIGINAL}"), (r"\.shortcut\.", ".norm_s."),
    (r"(norm_[12]|^pyramid.*\.1)\.weight", r"\1.scale"),
    (r"(norm_[12]|^pyramid.*\.1)\.bias", r"\1.shift"),
    (r"(norm_[12]|^pyramid.*\.1)\.running", r"\1.norm.running"),
    (r"\.(gamma|beta)\.", ".gamma_beta."))


def in_golden_order_G(name, tensors):
    if name.startswith("first"):                # first_z reads z, first the label map
        reads_z = any(ours.startswith("encoder.") for ours in tensors)
        if reads_z != name.startswith("first_z"):
            return None
        tensor = tensors["first." + name.split(".")[1]]
        return tensor.flatten(1) if reads_z and tensor.ndim == 4 else tensor
    ours = name
    for pattern, replacement in NAMES:
        ours = re.sub(pattern, replacement, ours)
    tensor = tensors[ours]
    if "gamma_beta" in ours:
        gamma, beta = tensor.chunk(2)
        return gamma if ".gamma." in name else beta
    return weights_in_golden_order(tensor) if re.search(r"weights_\d\.2", ours) else tensor


def in_golden_order_D(name, tensors):
    layer, *number, kind = name.split(".")
    if not number:
        return tensors[name]
    first = {"down": 1, "side": 2, "out": 2}[layer]
    return tensors[f"{layer}.{int(number[0]) - first}.0.parametrizations.weight.original"]


def networks(with_z=False):
    shape = CASE["G_channels"], 7, CASE["hidden"]
    if with_z:
        G = ccfpse.EncoderGenerator(CASE["classes"], (CASE["height"], CASE["width"]), CASE["z_dim"],
                                    *shape)
    else:
        G = ccfpse.Generator(CASE["classes"], 0, *shape)
    c = CASE["D_channels"]
    D = ccfpse.Discriminator(CASE["classes"], (c, 2 * c, 4 * c, 8 * c, 8 * c))
    baselines.fill(G, in_golden_order_G, FIGURES["shapes_G"], CASE["seed"])
    baselines.fill(D, in_golden_order_D, FIGURES["shapes_D"], CASE["seed"] + "/D")
    return G, D


def test_images_logits_features_losses_and_gradients_are_those_of_the_released_classes(double):
    labels, real, z = baselines.inputs(FIGURES)
    G, D = networks()
    assert oasis.count_parameters(G) == FIGURES["parameters"]["G"]
    assert oasis.count_parameters(D) == FIGURES["parameters"]["D"]
    for mode in ("eval", "train"):                  # in this order: train mode changes statistics
        figures = FIGURES[mode]
        G.train(mode == "train")
        optimizers = [torch.optim.SGD(network.parameters(), 0.0) for network in (G, D)]
        settings = ccfpse.Settings(lambda_features=CASE["lambda_features"] * 3 / 4)
        batch = real, labels, z[:, :0], None, None
        terms = spade.spade_step(G, D, *optimizers, batch, settings)
        for ours, theirs in ((terms["loss_G"], "G_gan"),
                             (15 * terms["loss_features"], "G_features_weighted"),
                             (terms["loss_D_real"], "D_real"), (terms["loss_D_fake"], "D_fake")):
            assert abs(ours.item() - figures["losses"][theirs]) < 1e-9, theirs
        baselines.same_gradients(G, in_golden_order_G, FIGURES["shapes_G"],
                                 figures["gradients_G_of_G_total_without_vgg"])
        baselines.same_gradients(D, in_golden_order_D, FIGURES["shapes_D"],
                                 figures["gradients_D_of_D_total"])
        with torch.no_grad():
            fake = G(labels, z[:, :0])
            baselines.same(fake, figures["fake"])
            for images, name in ((fake, "fake"), (real, "real")):
                output = D(images, labels)
                features = [f for level in output for f in level[:-1]]
                for ours, theirs in zip(features, figures[f"features_{name}"], strict=True):
                    baselines.same(ours, theirs)
                for level, theirs in zip(output, figures[f"logits_{name}"], strict=True):
                    baselines.same(level[-1], theirs)


def test_the_image_from_a_latent_vector_is_that_of_the_released_class(double):
    labels, _, z = baselines.inputs(FIGURES)
    baselines.same(z, FIGURES["z"])
    G, _ = networks(with_z=True)
    own = oasis.count_parameters(G) - oasis.count_parameters(G.encoder)
    assert own == FIGURES["parameters"]["G_with_z"]
    for mode in ("eval", "train"):
        with torch.no_grad():
            image = G.train(mode == "train")(labels, z)
        baselines.same(image, FIGURES[mode]["fake_with_z"])


def test_conditional_convolution(double):
    figures = FIGURES["conditional_convolution"]
    x, w = (torch.tensor(baselines.rng(CASE["seed"], f"condconv/{name}").standard_normal(
        figures[f"{name}_shape"])) for name in "xw")
    ours = w.unflatten(1, (-1, 9)).transpose(1, 2).flatten(1, 2)        # nine blocks of C channels
    y = ccfpse.conditional_convolution(x, ours)
    torch.testing.assert_close(y.flatten(), torch.tensor(figures["y"]), rtol=0, atol=1e-12)
    # With the same weights at every pixel it is PyTorch's depthwise convolution.
    kernel = torch.randn(9, 2)
    weights = kernel.view(1, 18, 1, 1).expand(1, 18, 3, 4)
    for padding, mode in (("zeros", "constant"), ("replicate", "replicate")):
        expected = F.conv2d(F.pad(x, (1, 1, 1, 1), mode), kernel.T.reshape(2, 1, 3, 3), groups=2)
        torch.testing.assert_close(ccfpse.conditional_convolution(x, weights, padding), expected)


def test_parameters_at_full_size():
    def count(*words):
        with torch.device("meta"):
            return ccfpse.make_networks(ccfpse.parse_settings(["--preset", "ade20k", *words]), 151)
    G, D = count()
    assert [oasis.count_parameters(network) for network in (G, D)] == [125_228_099, 5_190_593]
    assert G.levels == [5, 4, 4, 3, 2, 1, 0] and G.size_multiple == 32
    G, _ = count("--multimodal", "encoder")
    assert oasis.count_parameters(G.encoder) == 10_463_424
    assert oasis.count_parameters(G) - 10_463_424 == 140_704_323 - 26_112


def test_noise_reaches_the_image_and_settings_are_the_methods():
    s, G, _, (real, labels, noise, *_) = baselines.small(
        ccfpse, "--multimodal noise --pixel-noise 16")
    assert noise.shape == (4, 64, 32, 32) and G.config["pixel_noise"] == 16
    assert (G(labels, noise) - G(labels, noise.flip(0))).abs().mean() > 1e-3
    _, G, _, (real, labels, noise, *_) = baselines.small(ccfpse, "--multimodal encoder")
    images, kl = G.eval()(labels, noise, real)
    assert (images - G(labels, noise)).abs().mean() > 1e-3 and kl > 0
    with pytest.raises(data.UserError, match="paints 32×32 only"):
        G(labels[:, :16], noise)
    s = ccfpse.parse_settings(["--preset", "ade20k"])
    assert (s.lr_g, s.lr_d, s.beta2, s.lr_decay, s.lambda_kl) == (1e-4, 4e-4, 0.999, 0.5, 0.05)
    assert (s.lambda_features, s.lambda_vgg, s.ema_decay, s.noise_dim) == (15, 10, 0, 0)
    assert ccfpse.parse_settings(["--noise-dim", "64"]).noise_dim == 64


def test_a_step_in_bfloat16_finds_the_losses_of_one_in_float32():
    losses = []
    for precision in ("fp32", "bf16"):
        s, G, D, batch = baselines.small(ccfpse, f"--multimodal noise --precision {precision}")
        optimizers = [torch.optim.Adam(network.parameters(), 1e-3) for network in (G, D)]
        losses.append(spade.spade_step(G, D, *optimizers, batch, s))
    for term in losses[0]:
        assert losses[1][term].dtype == torch.float32
        assert losses[1][term].item() == pytest.approx(losses[0][term].item(), rel=0.1, abs=0.05)


def test_a_run_stops_goes_on_and_is_sampled_and_scored(tmp_path):
    baselines.trains_resumes_samples_and_is_scored(
        ccfpse, "Generator", tmp_path, "--multimodal", "noise")


def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path, capsys):
    for words, sentence in ((["--d-channels", "4", "8"], "D needs three layers at least"),
                            (["--d-channels", *"44444"], "two pixels at 1/32 of the size"),
                            (["--multimodal", "encoder", "--pixel-noise", "4"],
                             "--pixel-noise 4: an image encoder finds one latent vector")):
        words = [*baselines.TINY, *words, "--run-dir", tmp_path / "run"]
        assert baselines.run(ccfpse.main, *words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and sentence in error, error
    assert not (tmp_path / "run").exists()
