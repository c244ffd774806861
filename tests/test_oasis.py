"""The networks are the paper's: figures of the released code, counts, batch norm, locality."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import released_layout
import torch
from torch import nn

import data
import losses
import oasis
import processes
import sample
import train
from extras import released

GOLDEN = Path(__file__).parent / "golden"


def small_generator(num_classes=3, gain=1.0, **config):
    """A G in eval mode whose output visibly depends on every input."""
    torch.manual_seed(0)
    G = oasis.Generator(num_classes, **{**dict(channels=2, num_blocks=3, spade_hidden=8), **config})
    train.scale_weights(G, gain)
    return G.eval()


@pytest.fixture
def doubles():
    """Float64 as the default, in which only a wrong formula makes a difference."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("num_classes, generator, discriminator", [
    (151, 74_314_691, 22_258_904),      # ADE20K
    (183, 75_199_427, 22_260_984),      # COCO-Stuff
    (35, 71_107_523, 22_251_364),       # Cityscapes
])
def test_parameter_counts_of_the_papers_models(num_classes, generator, discriminator):
    with torch.device("meta"):          # shapes without memory
        networks = oasis.Generator(num_classes), oasis.Discriminator(num_classes)
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == [generator, discriminator]


@pytest.fixture
def golden_case(tmp_path):
    """A function: dtype -> G and D with the golden weights, and a batch for train.training_step."""
    def draw(what, method, *arguments):
        rng = released_layout.rng("oasis-open", what)
        return torch.from_numpy(getattr(rng, method)(*arguments))
    for name, layout, seed in (("G.pth", released_layout.generator_layout(8, 7), "oasis-open"),
                               ("D.pth", released_layout.discriminator_layout(7), "oasis-open/D")):
        torch.save(released_layout.fill(layout, seed), tmp_path / name)
    cells = draw("labels", "randint", 0, 7, (2, 8, 8))
    labels = cells.repeat_interleave(8, 1).repeat_interleave(8, 2).long()
    noise = draw("z", "standard_normal", (2, 64)).float()
    real = draw("real", "standard_normal", (2, 3, 64, 64)).tanh().float()
    mask = losses.labelmix_mask(labels, 7, coins=draw("mask", "randint", 0, 2, (2, 7)))

    def case(dtype):
        G = released.load_released_generator(tmp_path / "G.pth").to(dtype)
        D = released.load_released_discriminator(tmp_path / "D.pth").to(dtype)
        return G.requires_grad_(True), D.requires_grad_(True), (
            real.to(dtype), labels, noise.to(dtype), mask, losses.class_weights(labels, 7, 0))
    return case


def gradient(network, name):
    """The gradient of a tensor that the released code calls `name`."""
    ours = name.replace("mlp_beta", "mlp_gamma")
    for old, new in released.NAMES:
        ours = re.sub(old, new, ours)
    g = network.get_parameter(ours).grad
    if "mlp_" in name and "shared" not in name:
        g = g.chunk(2)["beta" in name]                           # γ and β are one layer here
    return g.roll(1, 0) if "layer_up_last" in name else g        # theirs has "fake" in channel 0


def picked(tensor, count):
    """`count` values of a tensor, evenly spread, as the golden figures hold them."""
    return tensor.flatten()[np.linspace(0, tensor.numel() - 1, count).astype(int)]


@torch.no_grad()
def test_outputs_logits_and_losses_of_the_released_code(golden_case):
    golden = json.loads((GOLDEN / "released_code_small.json").read_text())
    G, D, (real, labels, noise, mask, weights) = golden_case(torch.float32)
    fake = G(labels, noise)
    of_real, of_fake, of_mix = map(D, (real, fake, losses.labelmix(real, fake, mask)))
    for name, tensor in {"generator_output": fake,
                         "discriminator_logits_real": of_real.roll(1, 1),
                         "discriminator_logits_fake": of_fake.roll(1, 1),
                         "class_weights_pixel_map": weights[labels][:, None]}.items():
        expected = golden[name]
        assert list(tensor.shape) == expected["shape"], name
        torch.testing.assert_close(picked(tensor, 16), torch.tensor(expected["samples"]),
                                   rtol=1e-5, atol=1e-5, msg=name)
        assert [tensor.mean().item(), tensor.std().item()] == pytest.approx(
            [expected["mean"], expected["std"]], abs=1e-5), name
    found = {"loss_G": losses.real_loss(of_fake, labels, weights),
             "loss_D_real": losses.real_loss(of_real, labels, weights),
             "loss_D_fake": losses.fake_loss(of_fake),
             "loss_labelmix_unweighted": losses.labelmix_loss(of_mix, of_real, of_fake, mask)}
    for name, value in found.items():
        assert value.item() == pytest.approx(golden[name], abs=1e-5), name


def test_gradients_of_both_updates_of_the_released_code(golden_case, doubles):
    """Through train.training_step; learning rate 0, so that G's update meets the same D."""
    golden = json.loads((GOLDEN / "released_code_small_gradients.json").read_text())
    G, D, batch = golden_case(torch.float64)
    terms = train.training_step(G, D, *(torch.optim.SGD(n.parameters(), 0.0) for n in (G, D)),
                                batch, train.Settings(lambda_labelmix=golden["lambda_labelmix"]))
    loss_D = terms["loss_D_real"] + terms["loss_D_fake"] + 10 * terms["loss_labelmix"]
    assert [terms["loss_G"].item(), loss_D.item()] == pytest.approx(
        [golden["loss_G"], golden["loss_D"]], rel=1e-12)
    for key, network in (("gradients_G", G), ("gradients_D", D)):
        halves = sum("gamma_beta" in name for name, _ in network.named_parameters())
        assert len(golden[key]) == len(list(network.parameters())) + halves      # none is left out
        for name, expected in golden[key].items():
            g, tolerance = gradient(network, name), 1e-9 * expected["norm"]
            assert abs(g.norm().item() - expected["norm"]) <= tolerance, name
            torch.testing.assert_close(picked(g, 4), torch.tensor(expected["samples"]),
                                       rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_is_pytorchs_forward_backward_and_in_its_buffers(doubles, momentum):
    """Momentum None leaves PyTorch's own path: it takes the one that several processes take."""
    ours, theirs = processes.BatchNorm(5), nn.BatchNorm2d(5, affine=False)
    ours.momentum = momentum
    for _ in range(3):
        x = 3 * torch.randn(4, 5, 6, 7) + torch.arange(5.0)[:, None, None]
        g = torch.randn_like(x)
        ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
        (ours(ours_x) * g).sum().backward()
        (theirs(theirs_x) * g).sum().backward()
        torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-13)
    if momentum is not None:
        torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()),
                                   rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-12, atol=1e-13)


def test_measured_anew_batch_norm_keeps_the_statistics_of_all_batches_as_one(doubles):
    """nn.BatchNorm2d averages the variances, and so leaves out how much the means differ."""
    layer, n = processes.BatchNorm(5), 4 * 6 * 7
    layer.measure_anew()
    batches = [3 * torch.randn(4, 5, 6, 7) + 10 * shift for shift in torch.randn(6)]
    for batch in batches:
        layer(batch)
    everything = torch.cat(batches)
    torch.testing.assert_close(layer.running_mean, everything.mean((0, 2, 3)))
    # The two differ by the corrections n/(n-1) and 6n/(6n-1).
    torch.testing.assert_close(layer.running_var, everything.var((0, 2, 3)), rtol=1 / n, atol=0)


def test_spectral_norm_stands_where_the_paper_has_it_and_weights_start_as_xavier():
    torch.manual_seed(0)
    G, D = oasis.Generator(20, channels=8, num_blocks=3), oasis.Discriminator(20, (32, 64))
    for network, without in ((G, ("shared", "gamma_beta", "first", "last")), (D, ("last",))):
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d):
                spectral = nn.utils.parametrize.is_parametrized(layer, "weight")
                assert spectral == (name.split(".")[-1] not in without), name
                if spectral:
                    largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
                    assert largest.item() == pytest.approx(1, abs=0.15), name
        for name, p in network.named_parameters():
            out = p.shape[0] // (2 if "gamma_beta" in name else 1)         # γ, β: a layer each
            wanted = 0.02 * (2 / (p[0].numel() + out * p[0, 0].numel())) ** 0.5 if p.ndim > 1 else 0
            assert p.std().item() == pytest.approx(wanted, rel=4 / (2 * p.numel()) ** 0.5), name


def test_under_autocast_convolutions_are_bfloat16_and_spectral_norm_is_not():
    """The singular vectors after a step are, bit for bit, those of a step in float32."""
    G, D = small_generator().train(), oasis.Discriminator(3, (4, 8))
    labels, noise = torch.randint(0, 3, (2, 16, 16)), oasis.noise_from_seeds([1, 2])

    def singular_vectors(networks):
        return [b for n in networks for k, b in n.named_buffers() if k.endswith(("_u", "_v"))]
    found = []
    for bf16 in (True, False):
        networks = copy.deepcopy(G), copy.deepcopy(D)
        with torch.autocast("cpu", torch.bfloat16, bf16):
            image = networks[0](labels, noise)
            logits = networks[1](image)
        assert image.dtype == logits.dtype == (torch.bfloat16 if bf16 else torch.float32)
        assert all(b.dtype != torch.bfloat16 for n in networks for b in n.buffers())
        found.append(singular_vectors(networks))
    assert len(found[0]) > 20 and all(map(torch.equal, *found))
    assert not any(map(torch.equal, found[0], singular_vectors((G, D))))


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (96, 32), (32, 160)])
def test_any_multiple_of_32_passes_both_networks(size):
    """96 and 160 are no multiples of 64: D meets odd sizes on its way down."""
    image = oasis.Generator(3, channels=1).eval()(torch.zeros(1, *size).long(), torch.zeros(1, 64))
    logits = oasis.Discriminator(3, (4, 4, 4, 4, 4, 4))(image)
    assert image.shape == (1, 3, *size) and image.abs().max() <= 1
    assert logits.shape == (1, 4, *size)                                 # N + 1 channels


def test_noise_is_a_function_of_seed_and_size_alone():
    """Whatever the batch, and with the vector of pixel_noise 0 in the channels that are left."""
    eight = oasis.draw_noise(range(8), (16, 24), 64, 16)
    assert eight.shape == (8, 64, 16, 24) and eight.dtype == torch.float32
    for seed in range(8):
        assert torch.equal(oasis.draw_noise([seed], (16, 24), 64, 16)[0], eight[seed])
    vectors = oasis.noise_from_seeds(range(8))
    assert torch.equal(oasis.draw_noise(range(8), (16, 24)), vectors)
    assert torch.equal(eight[:, :48], vectors[:, :48, None, None].expand(-1, -1, 16, 24))
    field = eight[:, 48:]                      # 49,152 Gaussian numbers, all of them different
    assert abs(field.mean()) < 0.02 and abs(field.std() - 1) < 0.02
    assert field.unique().numel() > 0.99 * field.numel()


def test_training_noise_is_that_of_the_seeds_of_its_step():
    G = oasis.Generator(3, channels=1, pixel_noise=4)
    s = train.Settings(batch_size=3, height=32, width=64)
    noise = train.training_noise(s, G, "noise", 5)
    assert noise.shape == (3, 64, 32, 64)
    assert torch.equal(noise, train.training_noise(s, G, "noise", 5))
    assert not torch.equal(noise, train.training_noise(s, G, "noise", 6))
    assert not torch.equal(noise, train.training_noise(s, G, "statistics", 5))


@torch.no_grad()
@pytest.mark.parametrize("blocks, pixel_noise", [(2, 0), (3, 0), (3, 16)])
def test_noise_in_a_region_changes_the_region_its_surroundings_and_not_a_bit_more(
        blocks, pixel_noise):
    """G reaches 7 · 2^(blocks−1) − 2 pixels far, and some pixel changes at this distance."""
    G, reach = small_generator(num_blocks=blocks), 7 * 2 ** (blocks - 1) - 2
    labels, region = torch.randint(0, 3, (1, 80, 80)), torch.zeros(80, 80, dtype=torch.bool)
    region[41:45, 37:49] = True
    old, new = oasis.draw_noise([1, 2], (80, 80), 64, pixel_noise).chunk(2)
    noise = oasis.local_noise(old, new, region)
    everywhere = old if pixel_noise else old[:, :, None, None]
    assert torch.equal((noise != everywhere).any(1)[0], region)
    assert torch.equal(noise, oasis.local_noise(old, new, region[None]))
    image = G(labels, old)                                # one vector, or the same everywhere
    assert torch.equal(image, G(labels, oasis.local_noise(old, old, region)))
    changed = (G(labels, noise) != image).any(1)[0]
    rows, columns = (changed.any(axis).nonzero() for axis in (1, 0))
    assert changed[region].all()
    assert 41 - rows.min() <= reach == rows.max() - 44
    assert 37 - columns.min() <= reach == columns.max() - 48


@torch.no_grad()
@pytest.mark.parametrize("padding", ["zeros", "replicate"])
def test_the_middle_of_a_map_of_one_class_has_one_colour_to_the_last_bit(doubles, padding):
    """Texture comes from class borders alone and, with zero padding, from the image's borders.

    Widths are multiples of 8, so that matrix products round alike at all pixels.
    """
    G = small_generator(8, channels=8, spade_hidden=32, num_blocks=2, padding=padding)
    image = G(torch.ones(1, 64, 64).long(), oasis.noise_from_seeds([1]))
    middle = image[:, :, 12:-12, 12:-12]
    assert torch.equal(middle, middle[:, :, :1, :1].expand_as(middle))
    rim = (image - middle[:, :, :1, :1]).abs().max()
    assert rim > 0.01 if padding == "zeros" else rim < 1e-12


def test_damaged_missing_and_foreign_files_are_refused_by_name(tmp_path):
    torch.save({"format": "oasis-run-2", "ema": torch.zeros(1000)}, tmp_path / "good.pt")
    assert sample.load_checkpoint(tmp_path / "good.pt")["ema"].shape == (1000,)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:2000])
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "folder.pt").mkdir()
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "released.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"format": "oasis-run-2", "code": Path("x")}, tmp_path / "code.pt")   # pickled class
    for name in ("missing", "cut", "text", "empty", "folder", "released", "list", "code"):
        with pytest.raises(data.UserError, match=f"{name}.pt: "):
            sample.load_checkpoint(tmp_path / f"{name}.pt")
