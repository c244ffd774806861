"""Pix2pixHD: figures of the released classes, sizes, tiny runs."""

import baselines
import pytest
import torch

import oasis
import sample
from extras import pix2pixhd, spade

FIGURES = baselines.golden("pix2pixhd_small")
CASE = FIGURES["case"]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def in_golden_order_G(name, tensors):
    if name.startswith("residual"):
        _, number, convolution, kind = name.split(".")
        name = f"residual.{number}.conv_{convolution}.{kind}"
    if name.startswith(("down", "up")):
        name = name.replace(".weight", ".0.weight").replace(".bias", ".0.bias")
    return tensors[name]


def in_golden_order_D(name, tensors):
    _, scale, _, layer, kind = name.split(".")
    between = "" if layer == "4" else ".0"
    tensor = tensors[f"scales.{scale}.{layer}{between}.{kind}"]
    if layer == "0" and kind == "weight":
        tensor = tensor.roll(-3, 1)                 # ours reads [image, labels]
    return tensor


def networks():
    G = pix2pixhd.Generator(CASE["classes"], 0, CASE["G_channels"], CASE["downsamplings"],
                            CASE["residual_blocks"])
    c = CASE["D_channels"]
    D = spade.Discriminator(CASE["classes"], (c, 2 * c, 4 * c, 8 * c), spectral=False)
    baselines.fill(G, in_golden_order_G, FIGURES["shapes_G"], CASE["seed"])
    baselines.fill(D, in_golden_order_D, FIGURES["shapes_D"], CASE["seed"] + "/D")
    return G, D


def test_images_logits_features_losses_and_gradients_are_those_of_the_released_classes(double):
    labels, real, noise = baselines.inputs(FIGURES)
    G, D = networks()
    assert oasis.count_parameters(G) == FIGURES["parameters"]["G"]
    assert oasis.count_parameters(D) == FIGURES["parameters"]["D"]
    fake = G(labels, noise)
    baselines.same(fake, FIGURES["fake"])
    for images, name in ((fake, "fake"), (real, "real")):
        for scale, features in enumerate(D(images, labels)):
            baselines.same(features[-1], FIGURES[f"logits_{name}"][scale])
            for ours, theirs in zip(features[:-1], FIGURES[f"features_{name}"][scale], strict=True):
                baselines.same(ours, theirs)
    settings = pix2pixhd.Settings(lambda_features=CASE["lambda_features"])
    optimizers = [torch.optim.Adam(network.parameters(), 1e-3) for network in (G, D)]
    before = [p.clone() for network in (G, D) for p in network.parameters()]
    terms = pix2pixhd.pix2pixhd_step(G, D, *optimizers, (real, labels, noise, None, None), settings)
    figures = FIGURES["losses"]
    for ours, theirs in ((terms["loss_G"], "G_gan"),
                         (10 * terms["loss_features"], "G_features_weighted"),
                         (terms["loss_D_real"], "D_real"), (terms["loss_D_fake"], "D_fake")):
        assert abs(ours.item() - figures[theirs]) < 1e-9, theirs
    baselines.same_gradients(G, in_golden_order_G, FIGURES["shapes_G"],
                             FIGURES["gradients_G_of_G_total_without_vgg"])
    baselines.same_gradients(D, in_golden_order_D, FIGURES["shapes_D"],
                             FIGURES["gradients_D_of_D_total"])
    # Both networks have changed, by Adam with Pix2pixHD's beta1.
    after = [p for network in (G, D) for p in network.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(after, before))
    assert [o.param_groups[0]["betas"][0] for o in optimizers] == [0.5, 0.5]


def test_parameters_at_full_size_and_initial_weights():
    with torch.device("meta"):
        G, D = pix2pixhd.make_networks(pix2pixhd.parse_settings(["--preset", "ade20k"]), 151)
    assert [oasis.count_parameters(network) for network in (G, D)] == [182_907_395, 5_838_722]
    for network in pix2pixhd.make_networks(pix2pixhd.parse_settings([]), 14):
        for layer in network.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
                count = layer.weight.numel()
                assert abs(layer.weight.std() - 0.02) < 0.02 * 4 / count ** 0.5
                assert layer.bias.abs().max() > 0


def test_noise_reaches_the_image_and_settings_are_the_methods():
    s, G, _, (_, labels, noise, *_) = baselines.small(
        pix2pixhd, "--multimodal noise --pixel-noise 16")
    assert noise.shape == (4, 64, 32, 32) and G.config["pixel_noise"] == 16
    assert (G(labels, noise) - G(labels, noise.flip(0))).abs().mean() > 1e-3
    s = pix2pixhd.parse_settings(["--preset", "ade20k"])
    assert (s.lr_g, s.lr_d, s.beta1, s.beta2, s.lr_decay) == (2e-4, 2e-4, 0.5, 0.999, 0.5)
    assert (s.lambda_features, s.lambda_vgg, s.ema_decay, s.noise_dim) == (10, 10, 0, 0)
    assert "d_miou" not in pix2pixhd.parse_settings([]).metrics
    assert pix2pixhd.parse_settings(["--noise-dim", "64"]).noise_dim == 64


def test_a_step_in_bfloat16_finds_the_losses_of_one_in_float32():
    losses = []
    for precision in ("fp32", "bf16"):
        s, G, D, batch = baselines.small(pix2pixhd, f"--multimodal noise --precision {precision}")
        optimizers = [torch.optim.Adam(network.parameters(), 1e-3) for network in (G, D)]
        losses.append(pix2pixhd.pix2pixhd_step(G, D, *optimizers, batch, s))
    for term in losses[0]:
        assert losses[1][term].dtype == torch.float32
        assert losses[1][term].item() == pytest.approx(losses[0][term].item(), rel=0.1, abs=0.05)


def test_a_run_stops_goes_on_and_is_sampled_and_scored(tmp_path):
    model = baselines.trains_resumes_samples_and_is_scored(
        pix2pixhd, "Generator", tmp_path, "--multimodal", "noise")
    checkpoint = sample.load_checkpoint(tmp_path / "latest.pt")
    assert checkpoint["optimizer_G"]["param_groups"][0]["betas"][0] == 0.5
    assert list(checkpoint["log"][0])[2:] == ["loss_G", "loss_features", "loss_D_real",
                                              "loss_D_fake"]
    for name, parameter in model.generator.named_parameters():      # no average
        assert torch.equal(parameter, checkpoint["generator"][name])
