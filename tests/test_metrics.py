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
import tiny_datasets
from PIL import Image
from pytorch_fid.fid_score import calculate_frechet_distance
from random_networks import inception_file, pytorch_fid_features, random_images  # noqa: F401
from tiny_run import make_checkpoint, vivid

import data
import metrics
import oasis
import sample

ROOT = Path(metrics.__file__).parent
SIZE = (32, 32)


def error_of(arguments, capsys):
    """The script's one sentence about a bad request. Exit code 2, no standard output.

    The parser of options puts its usage before the sentence.
    """
    with pytest.raises(SystemExit) as stop:
        metrics.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith(("metrics.py: ", "usage: ")) and "Traceback" not in err
    if not err.startswith("usage: "):
        assert err.count("\n") == 1
    return err.splitlines()[-1]


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


def streamed(features):
    """The sum of moments of an array (n, d), 17 rows at a time."""
    return sum(metrics.moments(part) for part in torch.from_numpy(features).split(17))


def test_frechet_agrees_with_pytorch_fid():
    """Streamed in pieces, far from zero; divided by n − 1."""
    rng = np.random.default_rng(1)
    x = 50 + rng.normal(size=(300, 40)) @ rng.normal(size=(40, 40))
    y = rng.normal(50, 2, (300, 40))
    ours = metrics.moment_distance(streamed(x), streamed(y))
    theirs = calculate_frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert ours == pytest.approx(theirs, rel=1e-8)


def nuclear_norm_distance(x, y):
    """The distance of two sets of features by singular values, which bears few images."""
    a = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    b = (y - y.mean(0)) / np.sqrt(len(y) - 1)
    return (((x.mean(0) - y.mean(0)) ** 2).sum() + (a ** 2).sum() + (b ** 2).sum()
            - 2 * np.linalg.norm(a @ b.T, "nuc"))


@pytest.mark.parametrize("counts", [(10, 7), (7, 10), (10, 10), (60, 10)])
def test_frechet_of_singular_covariances(counts):
    rng = np.random.default_rng(2)
    x, y = (3 + rng.normal(size=(n, 40)) for n in counts)
    ours = metrics.moment_distance(streamed(x), streamed(y))
    assert ours == pytest.approx(nuclear_norm_distance(x, y), rel=1e-11)


# ---- FID -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [(64, 64), (200, 320)])
def test_inception_features_agree_with_pytorch_fid(inception_file, pytorch_fid_features, size):
    images = random_images(2, *size)
    ours, theirs = metrics.InceptionFeatures(inception_file)(images), pytorch_fid_features(images)
    assert ours.shape == (2, 2048) and theirs.std() > 0.01
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


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


class Solid(torch.nn.Module):
    """A stand-in generator that paints every class in its colour of the palette."""

    noise_dim, pixel_noise = 0, 0

    def __init__(self, dataset):
        super().__init__()
        self.colours = torch.as_tensor(dataset.palette) / 127.5 - 1

    def forward(self, labels, noise):
        return self.colours[labels].permute(0, 3, 1, 2)


def test_a_second_scorer_takes_the_segmenter_of_the_first(toy_scorer, capsys):
    """The same to the last digit; real images are measured anew, so other ones count at once."""
    G = vivid(oasis.Generator(toy_scorer.val_set.num_classes, 8, 2, 3, 8)).train()
    means = G.blocks[0].norm_0.norm.running_mean.clone()
    first = toy_scorer(G)
    assert torch.equal(G.blocks[0].norm_0.norm.running_mean, means)
    metrics.show(toy_scorer, first)
    assert "64 images of toy val at 32×32" in capsys.readouterr().out
    kept = toy_scorer.run_dir / "segmenter.pt"
    assert list(toy_scorer.run_dir.iterdir()) == [kept]
    time = kept.stat().st_mtime_ns

    def again(val_set):
        scorer = metrics.Scorer(val_set, toy_scorer.train_set, "cpu", toy_scorer.metrics,
                                run_dir=toy_scorer.run_dir)
        return scorer(G)
    assert again(toy("val", 64)) == first and kept.stat().st_mtime_ns == time
    other = data.open_dataset("toy", "val", SIZE, num_images=64, seed=1)   # names as before
    assert again(other)["miou_real"] != first["miou_real"] and kept.stat().st_mtime_ns == time


def photographs(root, split, corrected=True):
    """Files of 16 pairs, every pixel of class 0 or 1; not corrected: the labels are exchanged."""
    for k in range(16):
        labels = tiny_datasets.blocks(k, [0, 1], SIZE)
        photo = root / "images" / split / f"{k:02d}.png"
        tiny_datasets.make_pair(photo, root / "labels" / split / photo.name, labels, [0, 1])
        if not corrected:
            Image.fromarray(1 - labels).save(root / "labels" / split / photo.name)
    (root / "classes.txt").write_text("dark\nlight\n")
    return data.open_dataset("folder", split, SIZE, root)


def test_corrected_label_maps_get_a_new_segmenter(tmp_path, capsys):
    """The files keep name and size in bytes. The old segmenter names every pixel wrongly."""
    run_dir = tmp_path / "run"

    def score(steps=60):
        sets = [data.open_dataset("folder", split, SIZE, tmp_path / "data")
                for split in ("val", "train")]
        scorer = metrics.Scorer(*sets, "cpu", ["miou"], run_dir=run_dir, segmenter_steps=steps)
        return scorer(Solid(sets[0]))["miou_real"], capsys.readouterr().out
    photographs(tmp_path / "data", "val")
    photographs(tmp_path / "data", "train", corrected=False)
    wrong, _ = score()
    photographs(tmp_path / "data", "train")
    right, said = score()
    assert wrong < 0.1 and right > 0.9
    assert "learned from other data" in said and "cannot be compared" in said
    # Nothing has changed; a copy of the data set is the same data; any number of steps will do.
    kept = (run_dir / "segmenter.pt").stat().st_mtime_ns
    assert score() == (right, "") and score(None) == (right, "")
    (tmp_path / "data").rename(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "data", copy_function=shutil.copyfile)
    assert score() == (right, "") and (run_dir / "segmenter.pt").stat().st_mtime_ns == kept
    assert "another number of steps" in score(61)[1]                    # --segmenter-steps 61
    # A photograph that is replaced in place is other data, too.
    photo = tmp_path / "data/images/train/03.png"
    pixels = np.asarray(Image.open(photo))
    Image.fromarray(255 - pixels).save(photo)
    assert "learned from other data" in score(61)[1]


def test_replaced_validation_photographs_are_scored_as_they_are(tmp_path):
    """Every photograph but the first is replaced in place; the run folder is the same."""
    train_set = photographs(tmp_path, "train")
    found = []
    for darker in (1, 0.2):
        val_set = photographs(tmp_path, "val")
        for photo in sorted((tmp_path / "images/val").iterdir())[1:]:
            pixels = np.asarray(Image.open(photo)) * darker
            Image.fromarray(pixels.astype(np.uint8)).save(photo)
        scorer = metrics.Scorer(val_set, train_set, "cpu", ["miou"], run_dir=tmp_path / "run",
                                segmenter_steps=60)
        found.append(scorer(Solid(val_set))["miou_real"])
    assert found[0] > 0.9 and found[1] < 0.7


@pytest.mark.parametrize("steps", [1, 10, 11])
def test_a_segmenter_of_any_number_of_steps(steps):
    """PyTorch's schedule divides by 0.1 · steps − 1."""
    assert metrics.train_segmenter(toy("train", 8), "cpu", steps)["steps"] == steps


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_score_that_few_images_do_not_allow_is_left_out_in_words(count, capsys):
    """Two halves with a covariance each need four images. mIoU and D's mIoU need one."""
    val_set, train_set = toy("val", count), toy("train", 8)
    names = ["miou", "fd_segmenter", "fid", "d_miou"] if count < 4 else ["miou", "fd_segmenter"]
    scorer = metrics.Scorer(val_set, train_set, "cpu", names, segmenter_steps=2)
    said = capsys.readouterr().out
    D = oasis.Discriminator(val_set.num_classes, (8, 8))
    scores = scorer(Solid(val_set), D)
    assert all(np.isfinite(value) for value in scores.values())
    if count == 4:
        assert said == "" and {"fd_segmenter", "fd_segmenter_real"} <= set(scores)
        return
    assert set(scores) == {"miou", "miou_real", "d_miou"}
    assert said == (f"fd_segmenter is left out: it needs at least 4 images, not {count}\n"
                    f"fid is left out: it needs at least 4 images, not {count}\n")


def test_noise_at_every_pixel_is_that_of_the_seeds(toy_scorer):
    """Image i of a score is painted from the noise of seed + i, whatever the batch."""
    G = vivid(oasis.Generator(toy_scorer.val_set.num_classes, 8, 2, 3, 8, pixel_noise=4))
    painted = torch.cat([images for images, _ in toy_scorer.images(generator=G)])
    labels = toy_scorer.val_set[37][1]
    noise = oasis.draw_noise([toy_scorer.seed + 37], SIZE, 8, 4)
    torch.testing.assert_close(painted[37:38], G(labels[None], noise), rtol=0, atol=1e-5)


def test_networks_compiled_for_training_are_scored_as_they_are(toy_scorer):
    """force_eager: torch.compile would need a C++ compiler, and a graph for each size of batch."""
    D = oasis.Discriminator(toy_scorer.val_set.num_classes, (8, 8)).eval()
    expected = toy_scorer.score_discriminator(D)
    D.compile(backend=lambda graph, inputs: pytest.fail("compiled"))
    scorer = metrics.Scorer(toy_scorer.val_set, None, "cpu", ["d_miou"])
    assert scorer(Solid(toy_scorer.val_set), D)["d_miou"] == expected


# ---- Several processes ---------------------------------------------------------------------------

SCRIPT = """
import sys, torch, torch.distributed as dist
import data, metrics, oasis, processes, train
processes.start_processes()
for name in ("float32", "float64"):
    torch.set_default_dtype(getattr(torch, name))
    torch.manual_seed(0)
    train_set, val = (data.open_dataset("toy", split, (32, 32), num_images=n)
                  for split, n in (("train", 40), ("val", 13)))
    G = oasis.Generator(val.num_classes, 8, 4, 3, 8)
    D = oasis.Discriminator(val.num_classes, (8, 8))
    train.scale_weights(G, 20)
    scorer = metrics.Scorer(val, train_set, "cpu", ("miou", "fd_segmenter", "d_miou"), batch_size=4,
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
        found = {}
        for folder in ("one", "three"):
            found[folder] = [torch.load(tmp_path / folder / dtype / name)
                             for name in ("scores.pt", "segmenter.pt")]
        (scores, segmenter), (scores_3, segmenter_3) = found["one"], found["three"]
        assert scores_3 == pytest.approx(scores, rel=1e-10) and len(scores) == 5
        torch.testing.assert_close(segmenter_3["network"], segmenter["network"],
                                   rtol=1e-8, atol=1e-10)


# ---- The script on a checkpoint ------------------------------------------------------------------

@pytest.fixture
def checkpoint(tmp_path):
    """A tiny run on the toy scenes, and a segmenter beside it."""
    path = make_checkpoint(tmp_path / "runs" / "tiny" / "latest.pt")
    train_set = data.open_dataset("toy", "train", SIZE)
    metrics.find_segmenter(train_set, "cpu", path.parent, steps=2)
    return path


def test_script_on_a_checkpoint(checkpoint, capsys, monkeypatch):
    """Without --checkpoint the newest run is found; without --metrics all but FID is scored."""
    monkeypatch.chdir(checkpoint.parent.parent.parent)
    metrics.main(["--num-images", "6"])
    out = capsys.readouterr().out
    assert out.startswith("scores of runs/tiny/latest.pt\n")
    names = [line.split()[0] for line in out.splitlines()[1:6]]
    assert names == ["miou", "miou_real", "fd_segmenter", "fd_segmenter_real", "d_miou"]
    assert "a reference" in out and "trained 2 steps" in out
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
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:999])
    assert "cut.pt" in error_of(["--checkpoint", cut], capsys)
    cut.write_text("bad")
    assert "cut.pt" in error_of(["--checkpoint", cut], capsys)
    torch.save({"weights": torch.zeros(3)}, cut)
    assert "cut.pt: does not hold" in error_of([*ask, "fid", "--inception", cut], capsys)
    content = torch.load(checkpoint)
    content["dataset"]["class_names"][1] = "something else"
    torch.save(content, checkpoint)
    assert "other classes" in error_of([*ask, "miou"], capsys)
    del content["discriminator_class"]
    content["dataset"]["class_names"] = list(toy("val", 1).class_names)
    torch.save(content, checkpoint)
    assert "no discriminator" in error_of([*ask, "d_miou"], capsys)


@pytest.mark.parametrize("option", ["checkpoint", "data-root", "metrics", "num-images", "seed",
                                    "batch-size", "inception"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "word", "no/such/path"])
def test_no_value_of_an_option_ends_in_a_traceback(checkpoint, capsys, option, value):
    """A number where it is allowed; everything else is refused in a sentence that names it."""
    ask = ["--checkpoint", checkpoint, "--num-images", "2", "--metrics", "fid,d_miou"]
    if option == "inception":
        ask[3] = "4"                                    # enough for fid, which reads the file
    if (option, value) == ("seed", "0"):
        metrics.main([str(word) for word in ask] + ["--seed", "0"])
        assert "d_miou" in capsys.readouterr().out
        return
    said = error_of([*ask, f"--{option}={value}"], capsys)
    assert value in said or f"--{option}" in said

