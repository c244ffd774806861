"""FID, mIoU and the scorer: against independent tools, closed forms, and images of known fault."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from PIL import Image
from pytorch_fid.fid_score import calculate_frechet_distance
from random_networks import inception_file, pytorch_fid_features, random_images  # noqa: F401
from tiny_run import make_checkpoint, vivid

import processes
import data
import metrics
import oasis

ROOT = Path(metrics.__file__).parent
SIZE = (32, 32)


def error_of(arguments, capsys):
    """The script's one sentence about a bad request. Exit code 2, no standard output."""
    with pytest.raises(SystemExit) as stop:
        metrics.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith("metrics.py: ") and err.count("\n") == 1
    return err


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Every test has a download folder of its own, and nothing is downloaded."""
    def refuse(url, *args, **kwargs):
        raise OSError("no network in the tests")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


# ---- Fréchet distance ----------------------------------------------------------------------------

def test_frechet_closed_forms():
    """Equal covariances: the squared distance of the means. Diagonal ones: Σ (√a − √b)²."""
    rng = np.random.default_rng(0)
    sigma, mu = np.cov(rng.normal(size=(8, 50))), rng.normal(size=8)
    assert metrics.frechet_distance(mu, sigma, mu + 0.5, sigma) == pytest.approx(8 * 0.25, rel=1e-9)
    a, b = rng.uniform(0.1, 5, (2, 8))
    expected = ((a ** 0.5 - b ** 0.5) ** 2).sum()
    assert metrics.frechet_distance(mu, np.diag(a), mu, np.diag(b)) == pytest.approx(expected)
    zeros = np.zeros((8, 8))
    assert metrics.frechet_distance(mu, zeros, mu, zeros) == 0


def test_frechet_agrees_with_pytorch_fid():
    """Streamed in pieces, far from zero; divided by n − 1."""
    rng = np.random.default_rng(1)
    x = 50 + rng.normal(size=(300, 40)) @ rng.normal(size=(40, 40))
    y = rng.normal(50, 2, (300, 40))
    ours = metrics.moment_distance(*(sum(metrics.moments(part) for part in torch.tensor(f).split(17))
                                     for f in (x, y)))
    theirs = calculate_frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert ours == pytest.approx(theirs, rel=1e-8)


def nuclear_norm_distance(x, y):
    """The distance of two sets of features by singular values, which bears few images."""
    a, b = ((f - f.mean(0)) / np.sqrt(len(f) - 1) for f in (x, y))
    return (((x.mean(0) - y.mean(0)) ** 2).sum() + (a ** 2).sum() + (b ** 2).sum()
            - 2 * np.linalg.norm(a @ b.T, "nuc"))


@pytest.mark.parametrize("counts", [(10, 7), (7, 10), (10, 10), (60, 10)])
def test_frechet_of_singular_covariances(counts):
    rng = np.random.default_rng(2)
    x, y = (3 + rng.normal(size=(n, 40)) for n in counts)
    ours = metrics.moment_distance(*(metrics.moments(torch.from_numpy(f)) for f in (x, y)))
    assert ours == pytest.approx(nuclear_norm_distance(x, y), rel=1e-11)


# ---- FID -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [(64, 64), (200, 320)])
def test_inception_features_agree_with_pytorch_fid(inception_file, pytorch_fid_features, size):
    images = random_images(2, *size)
    ours, theirs = metrics.InceptionFeatures(inception_file)(images), pytorch_fid_features(images)
    assert ours.shape == (2, 2048) and theirs.std() > 0.01
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def save_images(images, folder):
    folder.mkdir(parents=True)
    for i, pixels in enumerate(data.to_uint8(images)):
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def test_fid_of_two_folders(inception_file, pytorch_fid_features, tmp_path, capsys, monkeypatch):
    """On every 32nd feature, as eigenvalues of 2048×2048 matrices take many seconds."""
    forward = metrics.InceptionFeatures.forward
    monkeypatch.setattr(metrics.InceptionFeatures, "forward", lambda *x: forward(*x)[:, ::32])
    real, fake = random_images(6, 40, 48, seed=1), random_images(6, 40, 48, seed=2) * 0.8
    folders = [save_images(real, tmp_path / "real"), save_images(fake, tmp_path / "fake")]
    metrics.main(["--real", str(folders[0]), "--fake", str(folders[1]),
                  "--inception", str(inception_file)])
    out = capsys.readouterr().out
    x, y = (pytorch_fid_features(images).double().numpy()[:, ::32]
            for images in (real, metrics.quantise(fake)))
    values = {line.split()[0]: float(line.split()[1]) for line in out.splitlines()}
    assert values["fid"] == pytest.approx(nuclear_norm_distance(x, y), rel=1e-4)
    assert values["fid_real"] == pytest.approx(nuclear_norm_distance(x[::2], x[1::2]), rel=1e-4)
    assert "biased upwards below 2048 images, 6 real and 6 fake images" in out


def test_bad_folders(inception_file, tmp_path, capsys):
    good, broken = (save_images(random_images(4, 16, 16), tmp_path / name)
                    for name in ("good", "broken"))
    (broken / "000.png").write_bytes(b"half a picture")
    ask = ["--inception", inception_file, "--fake", good, "--real"]
    assert "000.png: cannot be read" in error_of([*ask, broken], capsys)
    assert "nowhere" in error_of([*ask, tmp_path / "nowhere"], capsys)
    assert "belong together" in error_of(ask[:4], capsys)
    assert "by fid" in error_of([*ask, good, "--metrics", "miou"], capsys)


# ---- mIoU ----------------------------------------------------------------------------------------

def test_confusion_and_miou_agree_with_torchmetrics():
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(0, 6, (3, 20, 20), generator=rng)
    target[target == 4] = 5                                      # class 4 does not occur at all
    guess = torch.randint(0, 4, (3, 20, 20), generator=rng)
    prediction = torch.where(torch.rand(3, 20, 20, generator=rng) < 0.7, target, guess)
    prediction[prediction == 0] = 1                              # nobody may answer "ignored"
    ours = metrics.confusion_matrix(prediction, target, 6, ignore_label=0)
    matrix = torchmetrics.classification.MulticlassConfusionMatrix(6, ignore_index=0)
    assert torch.equal(ours, matrix(prediction, target))
    jaccard = torchmetrics.classification.MulticlassJaccardIndex(6, ignore_index=0)
    assert metrics.mean_iou(ours) == pytest.approx(jaccard(prediction, target).item(), rel=1e-6)
    with pytest.raises(ValueError, match="0 to 5"):
        metrics.confusion_matrix(prediction + 9, target, 6)


def toy(split, count):
    return data.open_dataset("toy", split, SIZE, num_images=count)


@pytest.fixture(scope="module")
def toy_scorer(tmp_path_factory):
    """A Scorer on small toy scenes, with a segmenter that has learned something."""
    return metrics.Scorer(toy("val", 64), toy("train", 240), "cpu", ("miou", "fd_segmenter"),
                          run_dir=tmp_path_factory.mktemp("run"), segmenter_steps=100)


FAULTS = {      # what is done to real images
    "noise": lambda x: x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
    "blur": lambda x: F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False),
    "wrong colours": lambda x: x.flip(1),
    "shuffled labels": lambda x: x.roll(1, 0),
    "collapsed": lambda x: x[:1].expand_as(x),
}


def test_scores_move_the_right_way(toy_scorer):
    """Every fault worsens what should notice it; shuffled labels leave the set's score alone."""
    def scores(fault):
        return toy_scorer.compare((fault(images), labels) for images, labels in toy_scorer.images())
    state = torch.get_rng_state()
    good = scores(lambda x: x)
    assert torch.equal(torch.get_rng_state(), state)             # training draws nothing global
    assert good["miou"] == pytest.approx(good["miou_real"]) and good["miou"] > 0.3
    for name, fault in FAULTS.items():
        bad = scores(fault)
        assert bad["miou"] < 0.95 * good["miou"], name
        if name == "shuffled labels":
            assert bad["fd_segmenter"] == pytest.approx(good["fd_segmenter"], abs=1e-6)
        else:
            assert bad["fd_segmenter"] > good["fd_segmenter_real"], name


def test_what_is_kept(toy_scorer, capsys):
    """A second scorer reads segmenter and statistics of the first; another image set does not."""
    G = vivid(oasis.Generator(toy_scorer.val_set.num_classes, 8, 2, 3, 8)).train()
    means = G.blocks[0].norm_0.norm.running_mean.clone()
    first = toy_scorer(G)
    assert torch.equal(G.blocks[0].norm_0.norm.running_mean, means)
    metrics.show(toy_scorer, first)
    assert "64 images of toy val at 32×32" in capsys.readouterr().out
    folder = toy_scorer.run_dir

    def again(val_set):
        scorer = metrics.Scorer(val_set, None, "cpu", toy_scorer.metrics, run_dir=folder)
        return scorer(G)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(times) == {"segmenter.pt", "real_statistics.pt"}
    assert again(toy("val", 64)) == first
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    other = data.open_dataset("toy", "val", SIZE, num_images=64, seed=1)   # names as before
    assert again(other)["miou_real"] != first["miou_real"]
    assert again(toy("val", 64)) == first


# ---- Several processes ---------------------------------------------------------------------------

SCRIPT = """
import sys, torch, torch.distributed as dist
import data, metrics, oasis
processes.start_processes()
for name in ("float32", "float64"):
    torch.set_default_dtype(getattr(torch, name))
    torch.manual_seed(0)
    train, val = (data.open_dataset("toy", split, (32, 32), num_images=n)
                  for split, n in (("train", 40), ("val", 13)))
    G = oasis.Generator(val.num_classes, 8, 4, 3, 8)
    D = oasis.Discriminator(val.num_classes, (8, 8))
    oasis.scale_weights(G, 20)
    scorer = metrics.Scorer(val, train, "cpu", ("miou", "fd_segmenter", "d_miou"), batch_size=4,
                            run_dir=f"{sys.argv[1]}/{name}", segmenter_steps=4)
    scores = scorer(G, D)
    if processes.rank_and_size()[0] == 0:
        torch.save(scores, f"{sys.argv[1]}/{name}/scores.pt")
if dist.is_initialized():
    dist.destroy_process_group()
"""


def test_three_processes_score_like_one(tmp_path):
    """Thirteen images in batches of four; the segmenter's batch of eight over three processes."""
    (tmp_path / "score.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    for folder, launcher in (("one", []), ("three", torchrun)):
        subprocess.run([sys.executable, *launcher, tmp_path / "score.py", tmp_path / folder],
                       check=True, capture_output=True, env=environment)
        # In float32 rounding makes two trained segmenters differ, so both take the same one.
        (tmp_path / "three" / "float32").mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "one/float32/segmenter.pt", tmp_path / "three/float32")
    for dtype in ("float32", "float64"):
        one, three = ([torch.load(tmp_path / folder / dtype / name) for name in
                       ("scores.pt", "segmenter.pt")] for folder in ("one", "three"))
        assert three[0] == pytest.approx(one[0], rel=1e-10) and len(one[0]) == 5
        torch.testing.assert_close(three[1]["network"], one[1]["network"], rtol=1e-8, atol=1e-10)


# ---- The script on a checkpoint ------------------------------------------------------------------

@pytest.fixture
def checkpoint(tmp_path):
    """A tiny run on the toy scenes, and a segmenter beside it."""
    path = make_checkpoint(tmp_path / "runs" / "tiny" / "latest.pt")
    key = {"class_names": list(toy("val", 1).class_names), "size": list(SIZE)}
    torch.save({"key": key, **metrics.train_segmenter(toy("train", 8), "cpu", steps=2)},
               path.parent / "segmenter.pt")
    return path


def test_script_on_a_checkpoint(checkpoint, capsys, monkeypatch):
    """Without --checkpoint the newest run is found; without --metrics all but FID is scored."""
    monkeypatch.chdir(checkpoint.parent.parent.parent)
    metrics.main(["--num-images", "6", "--per-class"])
    out = capsys.readouterr().out
    assert out.startswith("scores of runs/tiny/latest.pt\n")
    names = [line.split()[0] for line in out.splitlines()[1:6]]
    assert names == ["miou", "miou_real", "fd_segmenter", "fd_segmenter_real", "d_miou"]
    assert out.count("IoU") == len(toy("val", 1).class_names) and "a reference" in out
    assert (checkpoint.parent / "real_statistics.pt").is_file()
    # A checkpoint in assets/ brings its own segmenter, and nothing is written beside it.
    content = torch.load(checkpoint)
    content["segmenter"] = torch.load(checkpoint.parent / "segmenter.pt")
    asset = checkpoint.parent / "assets" / "toy.pt"
    asset.parent.mkdir()
    torch.save(content, asset)
    metrics.main(["--checkpoint", str(asset), "--num-images", "6", "--metrics", "miou,d_miou"])
    assert capsys.readouterr().out.splitlines()[1] == out.splitlines()[1]
    assert list(asset.parent.iterdir()) == [asset]


def test_bad_requests(checkpoint, tmp_path, capsys):
    ask = ["--checkpoint", checkpoint, "--num-images", "6", "--metrics"]
    assert "no score 'beauty'" in error_of([*ask, "beauty"], capsys)
    assert "put it at" in error_of([*ask, "miou,fid"], capsys)
    assert "two halves" in error_of([*ask[:3], "3", "--metrics", "miou"], capsys)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:999])
    assert "cut.pt" in error_of(["--checkpoint", cut], capsys)
    cut.write_text("bad")
    assert "cut.pt" in error_of(["--checkpoint", cut], capsys)
    content = torch.load(checkpoint)
    content["dataset"]["class_names"][1] = "something else"
    torch.save(content, checkpoint)
    assert "other classes" in error_of([*ask, "miou"], capsys)
    del content["discriminator_class"]
    content["dataset"]["class_names"] = list(toy("val", 1).class_names)
    torch.save(content, checkpoint)
    assert "no discriminator" in error_of([*ask, "d_miou"], capsys)
