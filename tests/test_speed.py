"""What makes the code fast leaves the results as they are; what bench.py counts is what the plain form costs."""

import copy
import functools
import re

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import bench
import losses
import oasis
import train

LEAK = oasis.LEAK


# ---- The plain form, from the same weights -----------------------------------------------------------


def plain_spade(spade, x, condition):
    """The condition shrunk for each norm anew, γ and β from two convolutions, nothing fused."""
    condition = F.interpolate(condition, x.shape[2:], mode="nearest")
    hidden = F.relu(F.conv2d(condition, spade.shared.weight, spade.shared.bias, padding=1))
    (w_gamma, w_beta), (b_gamma, b_beta) = (t.chunk(2) for t in
                                            (spade.gamma_beta.weight, spade.gamma_beta.bias))
    gamma = F.conv2d(hidden, w_gamma, b_gamma, padding=1)
    beta = F.conv2d(hidden, w_beta, b_beta, padding=1)
    return spade.norm(x) * (1 + gamma) + beta


def plain_generator(G, labels, noise):
    height, width = labels.shape[1:]
    condition = torch.cat([noise[:, :, None, None].expand(-1, -1, height, width),
                           F.one_hot(labels, G.num_classes).permute(0, 3, 1, 2).to(noise)], 1).contiguous()
    coarse = (height // G.size_multiple, width // G.size_multiple)
    x = G.first(F.interpolate(condition, coarse, mode="nearest"))
    for i, block in enumerate(G.blocks):
        if i > 0:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        shortcut = block.conv_s(plain_spade(block.norm_s, x, condition)) if block.learned_shortcut else x
        x = block.conv_0(F.leaky_relu(plain_spade(block.norm_0, x, condition), LEAK))
        x = block.conv_1(F.leaky_relu(plain_spade(block.norm_1, x, condition), LEAK))
        x = shortcut + x
    return torch.tanh(G.last(F.leaky_relu(x, LEAK)))


def plain_discriminator(D, x):
    """1×1 shortcuts at the larger size: before the pooling, after the doubling."""
    skips = []
    for i, block in enumerate(D.encoder):
        shortcut = block.conv_s(x) if block.learned_shortcut else x
        y = block.conv_2(F.leaky_relu(block.conv_1(F.leaky_relu(x, LEAK) if i else x), LEAK))
        x = F.avg_pool2d(y, 2) + F.avg_pool2d(shortcut, 2)
        skips.append(x)
    skips.pop()
    for i, block in enumerate(D.decoder):
        shortcut = F.interpolate(x, scale_factor=2, mode="nearest")
        shortcut = block.conv_s(shortcut) if block.learned_shortcut else shortcut
        y = block.conv_1(F.interpolate(F.leaky_relu(x, LEAK), scale_factor=2, mode="nearest"))
        x = shortcut + block.conv_2(F.leaky_relu(y, LEAK))
        x = torch.cat([skips.pop(), x], 1) if i < len(D.decoder) - 1 else x
    return D.last(x)


def settled(network):
    """Spectral norm's vectors held still, so that passes may differ in number and order."""
    for module in network.modules():
        if hasattr(module, "_u"):
            module.eval()
    return network


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def pair(dtype=torch.float32):
    """G and D as train.py uses them, and copies of plain memory layout; weights as if trained."""
    torch.manual_seed(0)
    G, D = oasis.Generator(5, channels=4, num_blocks=4, spade_hidden=16), oasis.Discriminator(5, (8, 16, 16))
    for network in (G.to(dtype), D.to(dtype)):
        oasis.scale_weights(network, 50)
        for p in network.parameters():
            if p.ndim == 1:
                torch.nn.init.normal_(p, std=0.1)
        for _ in range(30):                                     # power iterations: σ as in a long run
            with torch.no_grad():
                for m in network.modules():
                    if torch.nn.utils.parametrize.is_parametrized(m):
                        m.weight
        settled(network)
    fast = [copy.deepcopy(n).to(memory_format=torch.channels_last) for n in (G, D)]
    return fast, [G, D]


def batch(dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (3, 8, 12), generator=g).repeat_interleave(4, 1).repeat_interleave(4, 2)
    real = torch.rand(3, 3, 32, 48, generator=g) * 2 - 1
    noise = torch.randn(3, 64, generator=g)
    return labels, noise.to(dtype), real.to(dtype), losses.labelmix_mask(labels, 5, g).to(dtype)


def assert_same(a, b, what):
    """Equal to 1e-5 relative in float32, in the Euclidean norm; to 1e-11 in float64."""
    error = ((a - b).norm() / b.norm()).item()
    assert error <= {torch.float32: 1e-5, torch.float64: 1e-11}[b.dtype], f"{what}: {error:.1e}"


def assert_same_gradients(network, plain):
    """The gradients of all layers as one vector; in float64, where rounding is no excuse, of each layer, too.

    In float32 the order of a sum can push a number near 0 to the other side of a leaky ReLU, which changes
    the gradient of a narrow layer by more than its rounding; and biases before batch norm have gradient zero.
    """
    pairs = [(name, p.grad, q.grad) for (name, p), q in zip(network.named_parameters(), plain.parameters())]
    assert_same(*(torch.cat([pair[i].flatten() for pair in pairs]) for i in (1, 2)), "all gradients")
    for name, ours, theirs in pairs if pairs[0][1].dtype == torch.float64 else ():
        if theirs.norm() > 1e-9:
            assert_same(ours, theirs, name)


def compare(out, plain_out, network, plain):
    assert_same(out, plain_out, "output")
    direction = torch.rand(out.shape, generator=torch.Generator().manual_seed(2))
    for o in (out, plain_out):
        (o * direction).sum().backward()
    assert_same_gradients(network, plain)


@DTYPES
@pytest.mark.parametrize("training", [True, False])
def test_the_generator_is_its_plain_form(training, dtype):
    """Table look-ups, one γβ convolution, the pyramid made once, channels-last, addcmul."""
    labels, noise, _, _ = batch(dtype)
    (G, _), (plain, _) = pair(dtype)
    for network in (G, plain):
        settled(network.train(training))
    compare(G(labels, noise), plain_generator(plain, labels, noise), G, plain)


@DTYPES
def test_look_ups_are_the_convolution_of_noise_and_one_hot_labels(dtype):
    """On the same network: a vector per image is looked up, the 3D tensor is convolved."""
    labels, noise, _, _ = batch(dtype)
    (G, _), _ = pair(dtype)
    H = copy.deepcopy(G)
    compare(G(labels, noise), H(labels, oasis.replicate_noise(noise, 32, 48)), G, H)
    assert isinstance(G.condition_pyramid(labels, noise)[0], oasis.LookUp)
    assert isinstance(G.condition_pyramid(labels, oasis.replicate_noise(noise, 32, 48))[0], torch.Tensor)


@DTYPES
def test_the_discriminator_is_its_plain_form(dtype):
    """1×1 shortcuts on the small side of the resampling, channels-last."""
    _, _, real, _ = batch(dtype)
    (_, D), (_, plain) = pair(dtype)
    compare(D(real), plain_discriminator(plain, real), D, plain)


@DTYPES
def test_a_training_step_is_the_plain_step(dtype):
    """One x̂, one pass of D over three images, D frozen in G's update, fused Adam: the plain gradients."""
    labels, noise, real, mask = batch(dtype)
    weights = losses.class_weights(labels, 5, 0)
    (G, D), (plain_G, plain_D) = pair(dtype)
    optimizers = [torch.optim.Adam(n.parameters(), 1e-3, (0.0, 0.999), fused=True) for n in (G, D)]
    train.training_step(G, D, D, *optimizers, real, labels, noise, mask, weights, 10.0)

    fake = plain_generator(plain_G, labels, noise).detach()
    mix = mask * real + (1 - mask) * fake
    logits = [plain_discriminator(plain_D, x) for x in (real, fake, mix)]
    loss_D = (losses.real_loss(logits[0], labels, weights) + losses.fake_loss(logits[1])
              + 10 * losses.labelmix_loss(logits[2], logits[0], logits[1], mask))
    loss_D.backward()
    assert_same_gradients(D, plain_D)
    # From here both judges are the same: Adam's first step turns rounding of a gradient near 0 into ± lr.
    plain_D.load_state_dict(D.state_dict())
    loss_G = losses.real_loss(plain_discriminator(plain_D, plain_generator(plain_G, labels, noise)),
                              labels, weights)
    loss_G.backward()
    assert_same_gradients(G, plain_G)


def test_resizing_stays_in_bfloat16_under_a_gpus_autocast():
    """Seen without a GPU: fake tensors have a device, a type and a shape, but no numbers."""
    with FakeTensorMode():
        x = torch.empty(1, 4, 8, 8, device="cuda", dtype=torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        try:
            ours, plain = oasis.nearest(x, scale_factor=2), F.interpolate(x, scale_factor=2, mode="nearest")
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert (ours.dtype, plain.dtype) == (torch.bfloat16, torch.float32) and ours.shape == (1, 4, 16, 16)


def test_kept_memory_does_not_change_a_bit():
    """keep_freed_memory changes where tensors lie, never what they hold."""
    labels, noise, _, _ = batch()
    (G, _), _ = pair()
    G.eval()
    with torch.no_grad():
        before = G(labels, noise)
        oasis.keep_freed_memory()
        assert torch.equal(before, G(labels, noise))


# ---- bench.py ----------------------------------------------------------------------------------------


def test_nominal_work_of_the_full_size_model():
    with torch.device("meta"):
        flops = bench.nominal_flops(oasis.Generator(151), oasis.Discriminator(151), 256, 256)
    assert {k: round(v / 1e9) for k, v in flops.items()} == {
        "generate": 389, "generator step": 1329, "discriminator step": 1267}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bench_prints_work_times_and_ratios(capsys, monkeypatch, precision):
    smallest = functools.partial(bench.largest_matrices, most_seconds=0)
    monkeypatch.setattr(bench, "largest_matrices", smallest)
    bench.main(["-n", "1", "--height", "32", "--width", "32", "--batch-size", "2", "--precision", precision])
    out = capsys.readouterr().out
    assert "multiply-adds per 32×32 image" in out and f"batch 2, {precision}" in out
    for name in ("train", "generate"):
        assert re.search(rf"{name} +[\d.]+ images/s .* ratio [\d.]+ of the [\d.]+ GFLOP/s of a 256×256 .* peak memory [\d.]+ GiB", out), out


def test_bench_refuses_what_it_cannot_measure(capsys):
    for arguments, sentence in ((["-n", "0"], "-n 0: at least one"), (["--model", "spade+"], "only oasis"),
                                (["--height", "60"], "multiple of 8")):
        with pytest.raises(SystemExit) as e:
            bench.main(arguments)
        assert e.value.code == 2 and sentence in capsys.readouterr().err


def test_compiled_networks_draw_the_same():
    """Traced as torch.compile traces them; the generated code of a backend is PyTorch's to test."""
    labels, noise, real, _ = batch()
    (G, D), _ = pair()
    plain_G, plain_D = copy.deepcopy(G), copy.deepcopy(D)
    names = list(G.state_dict())
    G.compile(backend="aot_eager")
    D.compile(backend="aot_eager")
    compare(D(G(labels, noise)), plain_D(plain_G(labels, noise)), G, plain_G)
    assert list(G.state_dict()) == names                 # a compiled run's checkpoint is a plain one
