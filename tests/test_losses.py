"""Every loss against an independent pixel-by-pixel loop, gradients included."""

import math

import pytest
import torch
import torchvision

import distances
import losses

B, N, H, W = 2, 4, 3, 5


@pytest.fixture
def batch():
    """Random logits in float64 and a label map in which class 2 is absent and 0 is unknown."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 3])[torch.randint(0, 3, (B, H, W), generator=generator)]
    logits = [torch.randn(B, N + 1, H, W, generator=generator, dtype=torch.float64) for _ in range(3)]
    return labels, logits


def loop_class_weights(labels, ignore):
    pixels = [sum(int(labels[b, i, j] == c) for b in range(B) for i in range(H) for j in range(W))
              for c in range(N)]
    present = [c for c in range(N) if pixels[c] and c != ignore]
    return [B * H * W / (len(present) * pixels[c]) if c in present else 0.0 for c in range(N)]


def loop_log_softmax(logits, b, c, i, j):
    return logits[b, c, i, j] - sum(logits[b, k, i, j].exp() for k in range(N + 1)).log()


def loop_real_loss(logits, labels, weights):
    """Eq. 1, first term, written as in the paper: sums over classes and pixels, t one-hot."""
    total = 0
    for b in range(B):
        for c in range(N):
            for i in range(H):
                for j in range(W):
                    t = 1.0 if labels[b, i, j] == c else 0.0
                    total = total - weights[c] * t * loop_log_softmax(logits, b, c, i, j)
    return total / (B * H * W)


def loop_fake_loss(logits):
    """Eq. 1, second term."""
    return -sum(loop_log_softmax(logits, b, N, i, j)
                for b in range(B) for i in range(H) for j in range(W)) / (B * H * W)


def loop_labelmix_loss(mix, real, fake, mask):
    total = 0
    for b in range(B):
        for c in range(N + 1):
            for i in range(H):
                for j in range(W):
                    m = float(mask[b, 0, i, j])
                    expected = m * real[b, c, i, j] + (1 - m) * fake[b, c, i, j]
                    total = total + (mix[b, c, i, j] - expected) ** 2
    return total / (B * (N + 1) * H * W)


def same_value_and_gradients(ours, loop, inputs):
    """Both functions of `inputs` have the same value and the same gradient for each input."""
    results = []
    for function in (ours, loop):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("ignore", [None, 0])
def test_class_weights_against_a_loop(batch, ignore):
    labels, _ = batch
    weights = losses.class_weights(labels, N, ignore)
    assert weights.tolist() == pytest.approx(loop_class_weights(labels, ignore))
    assert weights[2] == 0                                       # absent
    if ignore is None:
        assert weights[labels].mean().item() == pytest.approx(1)
    else:
        assert weights[ignore] == 0


def test_class_weights_of_an_unlabelled_batch_are_zero_not_nan():
    assert losses.class_weights(torch.zeros(1, 2, 2, dtype=torch.int64), N, 0).tolist() == [0] * N


@pytest.mark.parametrize("ignore", [None, 0])
def test_eq_1_real_term_and_eq_2_against_a_loop(batch, ignore):
    labels, (logits, _, _) = batch
    weights = losses.class_weights(labels, N, ignore).double()
    same_value_and_gradients(lambda x: losses.real_loss(x, labels, weights),
                             lambda x: loop_real_loss(x, labels, weights), [logits])


def test_eq_1_fake_term_against_a_loop(batch):
    same_value_and_gradients(losses.fake_loss, loop_fake_loss, [batch[1][0]])


def test_unknown_pixels_weigh_nothing(batch):
    labels, (logits, _, _) = batch
    x = logits.clone().requires_grad_()
    losses.real_loss(x, labels, losses.class_weights(labels, N, 0).double()).backward()
    unknown = (labels == 0)[:, None].expand_as(x)
    assert unknown.any() and (x.grad[unknown] == 0).all() and (x.grad[~unknown] != 0).any()


def test_untrained_discriminator_pays_the_logarithm_of_n_plus_1(batch):
    labels, _ = batch
    flat = torch.zeros(B, N + 1, H, W)
    assert losses.fake_loss(flat).item() == pytest.approx(math.log(N + 1))
    assert losses.real_loss(flat, labels, losses.class_weights(labels, N)).item() == pytest.approx(
        math.log(N + 1))


def test_the_fake_class_is_the_last_channel():
    certain = torch.full((1, N + 1, 2, 2), -50.0)
    certain[:, N] = 50.0
    assert losses.fake_loss(certain).item() == pytest.approx(0)
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert losses.real_loss(certain, labels, torch.ones(N)).item() == pytest.approx(100)


def test_labelmix_loss_against_a_loop_with_gradients_through_all_three(batch):
    labels, logits = batch
    mask = losses.labelmix_mask(labels, N, torch.Generator().manual_seed(3))
    assert 0 < mask.mean() < 1
    same_value_and_gradients(lambda m, r, f: losses.labelmix_loss(m, r, f, mask),
                             lambda m, r, f: loop_labelmix_loss(m, r, f, mask), logits)


def test_labelmix_takes_whole_segments_from_either_image():
    labels = torch.randint(0, N, (8, 16, 16), generator=torch.Generator().manual_seed(0))
    mask = losses.labelmix_mask(labels, N, torch.Generator().manual_seed(1))
    assert mask.shape == (8, 1, 16, 16) and set(mask.unique().tolist()) == {0.0, 1.0}
    for b in range(8):
        for c in range(N):
            assert len(mask[b, 0][labels[b] == c].unique()) == 1
    real, fake = torch.rand(8, 3, 16, 16), torch.rand(8, 3, 16, 16)
    mix = losses.labelmix(real, fake, mask)
    assert torch.equal(mix, mask * real + (1 - mask) * fake)


def test_labelmix_coins_are_fair_and_independent():
    """All four outcomes of each pair of classes come up equally often; 0 and 1 are the pair which
    the released code tied together. 4,000 images: a quarter each, standard deviation 0.007."""
    labels = torch.arange(N).expand(4000, 1, N)              # each image holds each class once
    coins = losses.labelmix_mask(labels, N, torch.Generator().manual_seed(0))[:, 0, 0]
    for a in range(N):
        for b in range(a):
            for outcome in ((0, 0), (0, 1), (1, 0), (1, 1)):
                share = (coins[:, [a, b]] == torch.tensor(outcome)).all(1).float().mean()
                assert abs(share - 0.25) < 0.035, (a, b, outcome)
    neighbours = (coins[1:, 0] == coins[:-1, 0]).float().mean()           # images do not share coins
    assert abs(neighbours - 0.5) < 0.04


# ---- The perceptual loss -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """torchvision's VGG19 with random weights, and ours of the same tensors."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torchvision.models.vgg19().features.eval()
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save({f"features.{name}": tensor for name, tensor in theirs.state_dict().items()}, path)
    return theirs, losses.PerceptualLoss(path)


def loop_features(network, image):
    """The first ReLU after the input and after each of the first four poolings, found by its place."""
    x = (image + 1) / 2
    x = torch.stack([(x[:, c] - m) / s for c, (m, s) in enumerate(
        [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)])], dim=1)
    features, first = [], True
    for layer in network:
        x = layer(x).clone()
        if isinstance(layer, torch.nn.ReLU) and first:
            features.append(x)
        first = isinstance(layer, torch.nn.MaxPool2d) or first and isinstance(layer, torch.nn.Conv2d)
    return features


def test_perceptual_loss_against_a_loop(vgg):
    theirs, ours = vgg
    g = torch.Generator().manual_seed(0)
    fake, real = (torch.rand(2, 3, 32, 48, generator=g) * 2 - 1 for _ in range(2))
    of_fake, of_real = loop_features(theirs, fake), loop_features(theirs, real)
    assert [f.shape[1:] for f in of_fake] == [(64, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3)]
    expected = sum(weight * (f - r).abs().mean() for weight, f, r in
                   zip((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), of_fake, of_real))
    assert ours(fake, real).item() == pytest.approx(expected.item(), rel=1e-5) and expected > 0
    assert ours(real, real).item() == 0


def test_perceptual_loss_is_float32_and_moves_the_generated_image_only(vgg):
    fake, real = (torch.rand(1, 3, 16, 16, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = vgg[1](fake, real)
    loss.backward()
    assert loss.dtype == torch.float32 and fake.grad.abs().sum() > 0 and real.grad is None
    assert not any(p.requires_grad for p in vgg[1].parameters())


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(distances.MetricsError, match="other.pth: weights of another network"):
        losses.PerceptualLoss(tmp_path / "other.pth")
