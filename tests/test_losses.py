"""Every loss against a loop over images, classes and pixels in plain Python, gradients included."""

import itertools
import math

import pytest
import torch

import data
import losses
import oasis
import train

B, N, H, W = 2, 4, 3, 5
PIXELS = list(itertools.product(range(B), range(H), range(W)))


@pytest.fixture
def batch():
    """Label maps in which class 2 is absent and 0 is unknown; three logits in float64."""
    random = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 3])[torch.randint(0, 3, (B, H, W), generator=random)]
    return labels, [torch.randn(B, N + 1, H, W, generator=random, dtype=torch.float64)
                    for _ in range(3)]


def loop_class_weights(labels, ignore):
    pixels = [sum(int(labels[b, i, j] == c) for b, i, j in PIXELS) for c in range(N)]
    present = [c for c in range(N) if pixels[c] and c != ignore]
    return [B * H * W / (len(present) * pixels[c]) if c in present else 0.0 for c in range(N)]


def log_softmax(logits, b, c, i, j):
    return logits[b, c, i, j] - sum(logits[b, k, i, j].exp() for k in range(N + 1)).log()


def loop_real_loss(logits, labels, weights):
    """Eq. 1, first term: sums over classes and pixels, t one-hot."""
    return -sum(weights[c] * float(labels[b, i, j] == c) * log_softmax(logits, b, c, i, j)
                for b, i, j in PIXELS for c in range(N)) / (B * H * W)


def loop_fake_loss(logits):
    """Eq. 1, second term."""
    return -sum(log_softmax(logits, b, N, i, j) for b, i, j in PIXELS) / (B * H * W)


def loop_labelmix_loss(mix, real, fake, mask):
    return sum((mix[b, c, i, j] - (real if mask[b, 0, i, j] else fake)[b, c, i, j]) ** 2
               for b, i, j in PIXELS for c in range(N + 1)) / (B * (N + 1) * H * W)


def same_value_and_gradients(ours, loop, inputs):
    results = []
    for function in (ours, loop):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("ignore", [None, 0])
def test_class_weights(batch, ignore):
    labels, _ = batch
    weights = losses.class_weights(labels, N, ignore)
    assert weights.tolist() == pytest.approx(loop_class_weights(labels, ignore))
    assert weights[2] == 0 and (weights[0] == 0) == (ignore == 0)         # absent; unknown
    own, counts = labels[:1], losses.count_classes(labels, N)             # a process's share
    assert torch.equal(losses.class_weights(own, N, ignore, counts), weights)
    assert counts.tolist() == [int((labels == c).sum()) for c in range(N)]
    unlabelled = losses.class_weights(torch.zeros(1, 2, 2).long(), N, 0)
    assert unlabelled.tolist() == [0] * N                                 # and not NaN


@pytest.mark.parametrize("ignore", [None, 0])
def test_eq_2(batch, ignore):
    labels, (logits, _, _) = batch
    weights = torch.tensor(loop_class_weights(labels, ignore), dtype=torch.float64)
    same_value_and_gradients(lambda x: losses.real_loss(x, labels, weights),
                             lambda x: loop_real_loss(x, labels, weights), [logits])
    x = logits.clone().requires_grad_()
    losses.real_loss(x, labels, weights).backward()
    assert torch.equal((x.grad != 0).any(1), labels != (-1 if ignore is None else ignore))
    flat = torch.zeros(1, N + 1, 2, 2)               # who knows nothing pays the logarithm of N + 1
    assert losses.fake_loss(flat).item() == pytest.approx(math.log(N + 1))


def test_eq_1_and_labelmix_which_teaches_through_all_three_logits(batch):
    labels, (real, fake, mix) = batch
    mask = losses.labelmix_mask(labels, N, torch.Generator().manual_seed(3))
    weights = torch.tensor(loop_class_weights(labels, 0), dtype=torch.float64)
    same_value_and_gradients(
        lambda *x: sum(losses.discriminator_losses(torch.cat(x), labels, weights, mask)),
        lambda r, f, m: loop_real_loss(r, labels, weights) + loop_fake_loss(f)
        + loop_labelmix_loss(m, r, f, mask), [real, fake, mix])
    without = losses.discriminator_losses(torch.cat([real, fake]), labels, weights, None)
    assert without[2] == 0 and without[1].item() == pytest.approx(loop_fake_loss(fake).item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_losses_are_in_float32_at_least(batch, dtype):
    """As exact as float64 losses of the same rounded logits."""
    labels, logits = batch
    rounded, weights = torch.cat(logits).to(dtype), losses.class_weights(labels, N)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    mask = losses.labelmix_mask(labels, N, torch.Generator().manual_seed(3))
    found = losses.discriminator_losses(rounded, labels, weights.to(expected), mask)
    wanted = losses.discriminator_losses(rounded.double(), labels, weights.double(), mask)
    assert [x.dtype for x in found] == [expected] * 3
    torch.testing.assert_close([x.double() for x in found], list(wanted), rtol=1e-6, atol=0)


def test_labelmix_takes_whole_segments_from_either_image():
    labels, coins = torch.randint(0, N, (8, 16, 16)), torch.randint(0, 2, (8, N))
    mask = losses.labelmix_mask(labels, N, coins=coins)
    assert mask.shape == (8, 1, 16, 16)
    for b, c in itertools.product(range(8), range(N)):
        assert (mask[b, 0][labels[b] == c] == coins[b, c]).all()
    real, fake = torch.rand(2, 8, 3, 16, 16)
    assert torch.equal(losses.labelmix(real, fake, mask), mask * real + (1 - mask) * fake)


def test_coins_are_fair_and_independent():
    """All four outcomes of two classes come equally often, 0 and 1 included, which the released
    code ties together. 4,000 images: a quarter each, standard deviation 0.007."""
    labels = torch.arange(N).expand(4000, 1, N)               # each image holds each class once
    coins = losses.labelmix_mask(labels, N, torch.Generator().manual_seed(0))[:, 0, 0]
    for a, b in itertools.combinations(range(N), 2):
        for outcome in itertools.product((0, 1), repeat=2):
            share = (coins[:, [a, b]] == torch.tensor(outcome)).all(1).float().mean()
            assert abs(share - 0.25) < 0.035, (a, b, outcome)
    assert abs((coins[1:, 0] == coins[:-1, 0]).float().mean() - 0.5) < 0.04     # nor images


def test_a_batch_has_weights_mask_and_noise_of_its_step():
    scenes = data.open_dataset("toy", "train", (16, 16), num_images=4)
    images, labels = (torch.stack(x) for x in zip(*(scenes[i] for i in range(4))))
    labels[0, :2] = scenes.ignore_label

    G = oasis.Generator(scenes.num_classes, channels=1)

    def draw(step, **changes):
        s = train.Settings(**{**dict(batch_size=4, seed=1, height=32, width=32), **changes})
        noise = train.training_noise(s, G, "noise", step)
        return train.prepare_batch(s, step, images, labels, noise, scenes, torch.device("cpu"))
    real, same, noise, mask, weights = draw(5)
    assert torch.equal(real, images) and torch.equal(same, labels)
    assert weights.tolist() == losses.class_weights(
        labels, scenes.num_classes, scenes.ignore_label).tolist()
    assert noise.shape == (4, 64) and mask.shape == (4, 1, 16, 16)
    assert all(map(torch.equal, draw(5), draw(5)))                        # nothing has a history
    assert not torch.equal(draw(6)[2], noise) and not torch.equal(draw(5, seed=2)[2], noise)
    plain = draw(5, no_class_balance=True)[4]               # 1 if present; unknown keeps its 0
    assert torch.equal(plain, (weights > 0).float()) and 0 < plain.sum() < scenes.num_classes
    assert weights[scenes.ignore_label] == 0 and (weights > 1).any()
