"""Exercises: the patches apply to the present code and do what they say; the scripts measure right."""

import csv
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import losses
import oasis
import train

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "exercises"
PATCHES = sorted(FOLDER.glob("*.patch"))
N = 5


def apply(name, folder):
    """A copy of the modules with the patch applied, by git, which needs no repository for it."""
    patch = next(FOLDER.glob(f"{name}*.patch"))
    for file in re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(encoding="utf-8"), re.M):
        shutil.copy(ROOT / file, folder / file)
    done = subprocess.run(["git", "apply", str(patch)], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)})
    assert done.returncode == 0, f"{patch.name}: {done.stderr}"
    return folder


def patched(name, module, folder):
    """The module as it is after the patch; the project's own stays what it is."""
    file = apply(name, folder) / f"{module}.py"
    assert file.read_bytes() != (ROOT / file.name).read_bytes()
    spec = importlib.util.spec_from_file_location(f"patched_{module}", file)
    result = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(result)
    return result


@pytest.fixture
def script(monkeypatch):
    """A measuring script, imported by its name."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return importlib.import_module


def tiny_generator(seed=0, channels=2, num_blocks=2, spade_hidden=4):
    torch.manual_seed(seed)
    G = oasis.Generator(N, noise_dim=4, channels=channels, num_blocks=num_blocks, spade_hidden=spade_hidden)
    oasis.scale_weights(G, 50)
    return G.eval()


def random_labels(*shape):
    return torch.randint(0, N, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_every_patch_applies_and_what_it_gives_compiles(patch, tmp_path):
    for file in apply(patch.stem, tmp_path).iterdir():
        compile(file.read_text(encoding="utf-8"), file.name, "exec")


def test_text_patches_and_results_belong_together():
    text = (ROOT / "exercises.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\d+)\. ", text, re.M) == [str(k) for k in range(1, 11)]
    solutions = {file.name for file in FOLDER.iterdir() if file.name[0].isdigit()}
    assert solutions == set(re.findall(r"\b\d\d_\w+\.(?:patch|py)\b", text))
    with open(ROOT / "results" / "exercises.csv", newline="", encoding="utf-8") as f:
        # Exercise 0 is the baseline.
        assert {int(row["exercise"]) for row in csv.DictReader(f)} - {0} == set(range(1, 11))


# ---- The patches ---------------------------------------------------------------------------------


def test_01_the_fake_class_may_lie_anywhere(tmp_path, monkeypatch):
    """Three updates with the fake class first and last: the same losses, the same weights, rolled."""
    first, results = patched("01", "losses", tmp_path), []
    for module, shift in ((losses, 0), (first, 1)):
        monkeypatch.setattr(train, "losses", module)
        torch.manual_seed(0)
        G, D = tiny_generator().train().double(), oasis.Discriminator(N, (4, 4)).double()
        D.last.weight.data = 50 * D.last.weight.data.roll(shift, dims=0)
        optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (G, D)]
        for step in range(3):
            rng = torch.Generator().manual_seed(step)
            labels = random_labels(2, 8, 8)
            real = torch.randn(2, 3, 8, 8, generator=rng).double()
            noise = torch.randn(2, 4, generator=rng).double()
            mask = losses.labelmix_mask(labels, N, rng)
            weights = losses.class_weights(labels, N, 0).double()
            terms = train.training_step(G, D, D, *optimizers, real, labels, noise, mask, weights, 10.0)
        results.append((terms, D.last.weight.detach().roll(-shift, dims=0)))
    torch.testing.assert_close(results[0], results[1])


def test_04_one_rectangle_per_image(tmp_path):
    module, labels = patched("04", "losses", tmp_path), random_labels(1, 32, 48).expand(600, -1, -1)
    mask = module.labelmix_mask(labels, N, torch.Generator().manual_seed(0))
    assert mask.shape == (600, 1, 32, 48) and set(mask.unique().tolist()) == {0, 1}
    rows, columns = mask[:, 0].amax(2), mask[:, 0].amax(1)
    assert torch.equal(mask[:, 0], rows[:, :, None] * columns[:, None])     # a product of two ...
    for ones in (rows, columns):                                            # ... single intervals
        assert (F.pad(ones, (1, 1)).diff().abs().sum(1) <= 2).all()
    # The area is uniform on [0, 1]: mean 1/2 as with coins; 600 of them err by 0.012 · 3 at the most.
    assert abs(mask.mean() - 0.5) < 0.036 and mask.mean((1, 2, 3)).std() > 0.25


def test_06_every_pixel_has_a_vector(tmp_path):
    module, labels = patched("06", "train", tmp_path), random_labels(2, 4, 8)
    s = SimpleNamespace(seed=0, batch_size=2, noise_dim=3, height=4, width=8)
    z, mask, weights = module.draw(s, 1, labels, SimpleNamespace(num_classes=N, ignore_label=0), 0, 1)
    assert z.shape == (2, 3, 4, 8) and z.unique().numel() == z.numel()
    assert mask.shape == (2, 1, 4, 8) and weights.shape == (N,)


# ---- The measuring scripts -----------------------------------------------------------------------


def test_02_equal_over_the_whole_batch_not_over_shares(script):
    logits, labels = 3 * torch.randn(4, N + 1, 8, 8), random_labels(4, 8, 8)
    labels[0, :4] = 0                               # the ignored class, mostly in the first share
    ours, plain, ours_shared, plain_shared = script("02_weighted_mean").compare(logits, labels, N, 0, 2)
    assert ours == pytest.approx(plain, rel=1e-5) and ours == pytest.approx(ours_shared, rel=1e-5)
    assert abs(plain_shared - plain) > 1e-3


def test_06_noise_per_pixel_depends_on_its_seed_alone(script):
    noise = script("06_noise_per_pixel").noise_per_pixel([3, 4], 8, (16, 16))
    assert torch.equal(script("06_noise_per_pixel").noise_per_pixel([4], 8, (16, 16))[0], noise[1])
    assert abs(noise.std() - 1) < 0.05 and noise.std((2, 3)).min() > 0.8


def test_07_means_and_statistics(script):
    module, (a, b) = script("07_averages"), (tiny_generator(0), tiny_generator(1))
    labels, noise = random_labels(3, 4, 4), torch.randn(3, 4)
    with torch.no_grad():
        for p, q, mean in zip(a.parameters(), b.parameters(), module.mean_weights([a, b]).parameters()):
            torch.testing.assert_close(mean, (p + q) / 2)
        images = module.MeanImage([a, b])(labels, noise)
        torch.testing.assert_close(images, (a(labels, noise) + b(labels, noise)) / 2)
        a.train()(labels, noise)                                    # now its statistics are others
        mixed = module.with_statistics_of(b, a.eval())
    assert all(torch.equal(x, y) for x, y in zip(mixed.parameters(), b.parameters()))
    assert all(torch.equal(x, y) for x, y in zip(mixed.buffers(), a.buffers()))
    own = module.with_own_statistics(a, [labels.byte(), labels.byte()], 0)
    assert not own.training and not torch.equal(own.blocks[0].norm_0.norm.running_mean,
                                                a.blocks[0].norm_0.norm.running_mean)


def test_08_mean_answers_by_class(script):
    labels = torch.tensor([[[0, 0], [1, 3]]])
    answers = torch.zeros(1, N + 1, 2, 2)
    answers[0, :, 0, 0], answers[0, N, 0, 1], answers[0, 2, 1, 0], answers[0, 3, 1, 1] = 0, 99, 99, 99
    mean = script("08_mistakes").over(lambda images: answers, [(0, None, labels)], N)
    expected = torch.full((N, N + 1), torch.nan).double()
    expected[0] = (1 / (N + 1) + F.one_hot(torch.tensor(N), N + 1)) / 2     # undecided once, "fake" once
    expected[1], expected[3] = F.one_hot(torch.tensor([2, 3]), N + 1)
    torch.testing.assert_close(mean, expected, equal_nan=True)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_09_the_reach_of_a_pixel_goes_by_what_divides_it(script, stride):
    """7s − 2 down and right, s − 1 less up and left, s the largest cell that begins at the pixel."""
    G = tiny_generator(channels=4, num_blocks=3, spade_hidden=16).double()      # wide: a ReLU stops few paths
    pixel = 2 * (32 + stride % 4,)
    change = script("09_one_pixel").change_of(G, random_labels(64, 64), pixel)
    assert script("09_one_pixel").distances(change, pixel) == 2 * [6 * stride - 1, 7 * stride - 2]


def test_10_half_way(script):
    module, ends = script("10_straight_line"), 8 * torch.eye(64)[:2]
    a, b = ends[:1], ends[1:]
    lengths = {f.__name__: f(a, b).norm().item()
               for f in (module.ends, module.line, module.sphere, module.nothing)}
    assert lengths == pytest.approx({"ends": 8, "line": 32 ** 0.5, "sphere": 8, "nothing": 0}, rel=1e-5)
