"""The networks are the paper's: counts, figures of the released code, locality, sizes, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import losses
import oasis
import released_layout

GOLDEN = Path(__file__).parent / "golden"


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("num_classes, generator, discriminator", [
    (151, 74_314_691, 22_258_904),      # ADE20K
    (183, 75_199_427, 22_260_984),      # COCO-Stuff
    (35, 71_107_523, 22_251_364),       # Cityscapes
])
def test_full_size_parameter_counts(num_classes, generator, discriminator):
    with torch.device("meta"):          # shapes without memory
        assert count(oasis.Generator(num_classes)) == generator
        assert count(oasis.Discriminator(num_classes)) == discriminator


def test_the_layout_in_these_tests_is_that_of_a_released_full_size_checkpoint():
    listed = {"G": {}, "D": {}}
    for line in (GOLDEN / "released_checkpoint_keys.txt").read_text().splitlines():
        network, name, shape = line.split(" ", 2)
        listed[network][name] = tuple(int(n) for n in shape.strip("()").split(",") if n)
    assert released_layout.generator_layout(64, 151) == listed["G"]
    assert released_layout.discriminator_layout(151) == listed["D"]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small G and D, saved in the released layout and loaded through the public functions."""
    folder = tmp_path_factory.mktemp("released")
    torch.save(released_layout.fill(released_layout.generator_layout(8, 7), "oasis-open"),
               folder / "latest_EMA.pth")
    torch.save(released_layout.fill(released_layout.discriminator_layout(7), "oasis-open/D"),
               folder / "latest_D.pth")
    return (oasis.load_released_generator(folder / "latest_EMA.pth"),
            oasis.load_released_discriminator(folder / "latest_D.pth"), folder)


@torch.no_grad()
def test_released_checkpoint_gives_the_figures_of_the_released_code(released):
    golden = json.loads((GOLDEN / "released_code_small.json").read_text())
    G, D, _ = released
    assert (count(G), count(D)) == (golden["params_G"], golden["params_D"])
    rng = released_layout.rng
    cells = rng("oasis-open", "labels").randint(0, 7, (2, 8, 8))
    labels = torch.from_numpy(cells.repeat(8, 1).repeat(8, 2)).long()
    noise = torch.from_numpy(rng("oasis-open", "z").standard_normal((2, 64))).float()
    real = torch.from_numpy(np.tanh(rng("oasis-open", "real").standard_normal((2, 3, 64, 64)))).float()
    coins = torch.from_numpy(rng("oasis-open", "mask").randint(0, 2, (2, 7)))
    mask = coins.gather(1, labels.flatten(1)).view(2, 1, 64, 64).float()

    fake = G(labels, noise)
    logits_real, logits_fake = D(real), D(fake)
    weights = losses.class_weights(labels, 7, ignore_label=0)

    def matches(name, tensor):
        flat, expected = tensor.flatten(), golden[name]
        picked = flat[np.linspace(0, flat.numel() - 1, 16).astype(int)]
        assert list(tensor.shape) == expected["shape"]
        torch.testing.assert_close(picked, torch.tensor(expected["samples"]), atol=1e-4, rtol=0)
        assert flat.mean().item() == pytest.approx(expected["mean"], abs=1e-4)
        assert flat.std().item() == pytest.approx(expected["std"], abs=1e-4)

    matches("generator_output", fake)
    matches("discriminator_logits_real", logits_real.roll(1, dims=1))   # theirs has fake in channel 0
    matches("discriminator_logits_fake", logits_fake.roll(1, dims=1))
    matches("class_weights_pixel_map", weights[labels][:, None])
    mixed = D(losses.labelmix(real, fake, mask))
    assert {
        "loss_D_real": losses.real_loss(logits_real, labels, weights).item(),
        "loss_D_fake": losses.fake_loss(logits_fake).item(),
        "loss_G": losses.real_loss(logits_fake, labels, weights).item(),
        "loss_labelmix_unweighted":
            losses.labelmix_loss(mixed, logits_real, logits_fake, mask).item(),
    } == pytest.approx({k: golden[k] for k in golden if k.startswith("loss_")}, abs=1e-4)


def test_initial_weights_are_xavier_with_gain_0_02_and_biases_zero():
    """γ and β live in one layer here, but start with the deviation of two separate ones."""
    torch.manual_seed(0)
    G, D = oasis.Generator(20, channels=16, num_blocks=3), oasis.Discriminator(20, (32, 64))
    for name, p in list(G.named_parameters()) + list(D.named_parameters()):
        if name.endswith("bias"):
            assert p.abs().max() == 0, name
            continue
        fan_out = p.shape[0] // (2 if "gamma_beta" in name else 1)
        expected = 0.02 * np.sqrt(2 / (p[0].numel() + fan_out * p[0, 0].numel()))
        assert p.std().item() == pytest.approx(expected, rel=4 / np.sqrt(2 * p.numel())), name


def test_spectral_norm_stands_on_exactly_the_layers_of_the_paper():
    G, D = oasis.Generator(5, channels=4, num_blocks=3), oasis.Discriminator(5, (8, 16, 16))
    for network, without in ((G, ("shared", "gamma_beta", "first", "last")), (D, ("last",))):
        for name, layer in network.named_modules():
            if isinstance(layer, torch.nn.Conv2d):
                normalised = torch.nn.utils.parametrize.is_parametrized(layer, "weight")
                assert normalised == (name.split(".")[-1] not in without), name
                if normalised:
                    largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
                    assert largest.item() == pytest.approx(1, abs=0.15), name


@pytest.mark.parametrize("size", [(32, 32), (96, 32), (32, 160), (64, 64)])
def test_any_multiple_of_32_passes_both_networks(size):
    """96 and 160 are no multiples of 64, so the discriminator meets odd sizes on its way down."""
    labels = torch.zeros(1, *size, dtype=torch.int64)
    with torch.no_grad():
        image = oasis.Generator(3, channels=1).eval()(labels, torch.zeros(1, 64))
        logits = oasis.Discriminator(3, (4, 4, 4, 4, 4, 4))(image)
    assert image.shape == (1, 3, *size) and logits.shape == (1, 4, *size)
    assert image.abs().max() <= 1


def test_wrong_sizes_ids_and_noise_are_named():
    G = oasis.Generator(3, channels=1, num_blocks=3)
    good, noise = torch.zeros(1, 8, 8, dtype=torch.int64), torch.zeros(1, 64)
    with pytest.raises(ValueError, match="8×10 .*multiples of 4"):
        G(torch.zeros(1, 8, 10, dtype=torch.int64), noise)
    with pytest.raises(ValueError, match="ids 0 to 3.* 0 to 2"):
        G(torch.cat([good, good + 3], 2), noise)
    with pytest.raises(ValueError, match=r"noise of shape \(1, 32\)"):
        G(good, torch.zeros(1, 32))


def test_noise_is_an_input_everywhere_and_replicated_vectors_equal_the_3d_tensor():
    torch.manual_seed(0)
    G = oasis.Generator(3, channels=4, num_blocks=2).eval()
    labels = torch.randint(0, 3, (2, 8, 8))
    vector = oasis.noise_from_seeds([1, 2])
    tensor = oasis.replicate_noise(vector, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(G(labels, vector), G(labels, tensor), rtol=1e-5, atol=1e-7)
        assert not torch.equal(G(labels, vector), G(labels, vector.flip(0)))


def test_sample_noise_is_one_vector_per_image():
    noise = oasis.sample_noise(3, 64, 8, 12, torch.Generator().manual_seed(5))
    assert noise.shape == (3, 64, 8, 12)
    assert torch.equal(noise, noise[:, :, :1, :1].expand_as(noise))
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(noise, oasis.sample_noise(3, 64, 8, 12, torch.Generator().manual_seed(5)))
    many = oasis.noise_from_seeds(range(2000))
    assert many.mean().abs() < 0.01 and abs(many.std() - 1) < 0.01
    assert torch.equal(oasis.noise_from_seeds([7]), oasis.noise_from_seeds([3, 7])[1:])


@pytest.mark.parametrize("shape", [(8, 12), (2, 8, 12), (2, 1, 8, 12)])
def test_resample_noise_changes_the_mask_and_nothing_else(shape):
    noise = oasis.sample_noise(2, 64, 8, 12, torch.Generator().manual_seed(0))
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., 2:5, 3:9] = True
    new = oasis.resample_noise(noise, mask, torch.Generator().manual_seed(1))
    changed = (new != noise).any(1)
    assert torch.equal(changed, mask.reshape(-1, 8, 12).expand(2, 8, 12))
    inside = new[:, :, 2:5, 3:9]
    assert torch.equal(inside, inside[:, :, :1, :1].expand_as(inside))      # one new vector per image
    assert not torch.equal(inside[0], inside[1])


def test_pyramid_is_the_nearest_interpolation_of_the_full_tensor():
    G = oasis.Generator(5, channels=1, num_blocks=4)
    labels, noise = torch.randint(0, 5, (2, 16, 24)), torch.randn(2, 64, 16, 24)
    full = torch.cat([noise, torch.nn.functional.one_hot(labels).permute(0, 3, 1, 2).float()], 1)
    for level, size in zip(G.condition_pyramid(labels, noise), [(2, 3), (4, 6), (8, 12), (16, 24)]):
        assert torch.equal(level, torch.nn.functional.interpolate(full, size, mode="nearest"))


# ---- Checkpoint files ------------------------------------------------------------------------------


def test_damaged_and_foreign_files_are_refused_in_words(released, tmp_path):
    folder = released[2]
    whole = (folder / "latest_D.pth").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "text.pt").write_text("no checkpoint at all")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"something": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("missing", "cut", "text", "empty", "other", "list"):
        for load in (oasis.load_checkpoint, oasis.load_released_generator,
                     oasis.load_released_discriminator):
            with pytest.raises(oasis.CheckpointError, match=f"{name}.pt"):
                load(tmp_path / f"{name}.pt")
    with pytest.raises(oasis.CheckpointError, match="not a generator"):
        oasis.load_released_generator(folder / "latest_D.pth")
    with pytest.raises(oasis.CheckpointError, match="not a discriminator"):
        oasis.load_released_discriminator(folder / "latest_EMA.pth")


def test_running_the_module_prints_the_shapes_and_counts(capsys):
    oasis.main()
    text = capsys.readouterr().out
    for expected in ("74,314,691", "22,258,904", "(1, 1024, 8, 8)", "(1, 3, 256, 256)",
                     "(1, 512, 4, 4)", "(1, 152, 256, 256)"):
        assert expected in text
