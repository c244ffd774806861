"""Scoring sets of images: mIoU, whole runs and folders, and images whose fault is known."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
import torchvision
from PIL import Image
from random_networks import (  # noqa: F401 (fixtures)
    inception_file, pytorch_fid_features, random_images, random_lpips)
from torch import nn

import data
import metrics
import oasis
import segmenter

ROOT = Path(metrics.__file__).parent
SIZE = (32, 32)


def save_images(images, folder):
    folder.mkdir(parents=True)
    for i, pixels in enumerate(data.to_uint8(images)):
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def error_of(arguments, capsys):
    """Run the script on a bad request: its sentence. Exit code 2, no standard output."""
    with pytest.raises(SystemExit) as stop:
        metrics.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith("metrics.py: error: ") and err.count("\n") == 1
    return err


@pytest.fixture(autouse=True)
def own_hub(tmp_path, monkeypatch):
    """Downloads and caches of every test lie in a folder of its own, and nothing is downloaded."""
    def offline(url, *args, **kwargs):
        raise OSError("no network in the tests")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)


# ---- FID of two folders --------------------------------------------------------------------------


def test_fid_of_two_folders(inception_file, pytorch_fid_features, tmp_path, capsys, monkeypatch):
    """The script, against pytorch-fid's features and the nuclear-norm form of the distance.

    On every 32nd feature, as eigenvalues of 2048×2048 matrices take many seconds.
    """
    class Narrow(metrics.InceptionFeatures):
        def forward(self, images):
            return super().forward(images)[:, ::32]
    monkeypatch.setattr(metrics, "InceptionFeatures", Narrow)
    real, fake = random_images(8, 40, 48, seed=1), random_images(8, 40, 48, seed=2)
    folders = [save_images(real, tmp_path / "real"), save_images(fake * 0.8, tmp_path / "fake")]
    arguments = ["--real", folders[0], "--fake", folders[1], "--metrics", "fid,colour",
                 "--inception", inception_file, "--json", tmp_path / "s.json", "--device", "cpu"]
    metrics.main([str(a) for a in arguments])
    scores = json.loads((tmp_path / "s.json").read_text())["scores"]
    x, y = (pytorch_fid_features(images).double().numpy()[:, ::32]
            for images in (real, metrics.quantise(fake * 0.8)))
    a, b = ((f - f.mean(0)) / np.sqrt(7) for f in (x, y))
    expected = (((x.mean(0) - y.mean(0)) ** 2).sum() + (a ** 2).sum() + (b ** 2).sum()
                - 2 * np.linalg.norm(a @ b.T, "nuc"))
    assert scores["fid"]["value"] == pytest.approx(expected, rel=1e-4)
    assert all(words in scores["fid"]["protocol"] for words in ("fewer than 2048", "8 images"))
    assert f"{scores['fid']['value']:.4f}" in capsys.readouterr().out
    # The real folder's statistics are kept; read back, they give the same value.
    kept, = (tmp_path / "torch_home" / "hub" / "oasis-statistics").iterdir()
    written = kept.stat().st_mtime_ns
    metrics.main([str(a) for a in arguments])
    again = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert again == scores and kept.stat().st_mtime_ns == written
    # Another real image under the same name is another set: nothing stale is used.
    before = metrics.dataset_key(metrics.ImageFolder(folders[0]), 8, "w")
    Image.fromarray(data.to_uint8(fake[:1])[0]).save(folders[0] / "003.png")
    assert metrics.dataset_key(metrics.ImageFolder(folders[0]), 8, "w") != before


def test_weights_that_are_wrong_or_missing(inception_file, tmp_path, capsys):
    folder = save_images(random_images(4, 16, 16), tmp_path / "images")
    ask = ["--real", folder, "--fake", folder, "--json", tmp_path / "s.json", "--device", "cpu"]
    cut, other = tmp_path / "cut.pth", tmp_path / "other.pth"
    cut.write_bytes(inception_file.read_bytes()[:10_000])
    torch.save({"conv.weight": torch.zeros(3)}, other)
    for path in (cut, other, tmp_path / "nowhere.pth"):
        assert str(path) in error_of([*ask, "--metrics", "fid", "--inception", path], capsys)
    # Not there and not to be fetched: an error where it was asked for, a remark where it was not.
    place = tmp_path / "torch_home/hub/checkpoints/pt_inception-2015-12-05-6726825d.pth"
    assert str(place) in error_of([*ask, "--metrics", "fid"], capsys)
    assert not (tmp_path / "s.json").exists()
    metrics.main([str(a) for a in ask])
    out, err = capsys.readouterr()
    assert str(place) in err and err.count("\n") == 1 and "colour" in out and "fid" not in out
    # Half a download left by something else is found out by its hash.
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"half")
    assert "SHA-256" in error_of([*ask, "--metrics", "fid"], capsys)
    assert not (tmp_path / "torch_home/hub/oasis-statistics").exists()


# ---- mIoU and the segmenter ----------------------------------------------------------------------


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
    accuracy = torchmetrics.classification.MulticlassAccuracy(6, average="micro", ignore_index=0)
    assert metrics.mean_iou(ours) == pytest.approx(jaccard(prediction, target).item(), rel=1e-6)
    assert metrics.pixel_accuracy(ours) == pytest.approx(accuracy(prediction, target).item())
    with pytest.raises(metrics.MetricsError, match="0 to 5"):
        metrics.confusion_matrix(prediction + 9, target, 6)


class Painted(torch.utils.data.Dataset):
    """Each class in one colour, "unknown" in any: a perfect segmenter has mIoU 1."""

    class_names, num_classes, ignore_label = ["unknown", "a", "b", "c"], 4, 0
    colours = torch.tensor([[0, 0, 0], [-1, 1, 1], [1, -1, 1], [1, 1, -1]]).float()
    name, split, size = "painted", "val", SIZE

    def __init__(self, count=8):
        rng = torch.Generator().manual_seed(0)
        cells = torch.randint(0, 4, (count, 8, 8), generator=rng)
        self.labels = cells.kron(torch.ones(4, 4)).long()
        self.names = [str(i) for i in range(count)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.colours[self.labels[i]].permute(2, 0, 1), self.labels[i]


class ByColour(nn.Module):
    """The nearest colour, as logits. Its classes: c, a, b, and one the dataset does not have."""

    def __init__(self):
        super().__init__()
        self.register_buffer("colours", torch.cat([Painted.colours[[3, 1, 2]], torch.zeros(1, 3)]))

    def forward(self, images):
        return -(images[:, None] - self.colours[:, :, None, None]).square().sum(2)


def export(network, path):
    dims = {0: torch.export.Dim("batch", max=1024)}
    example = (torch.zeros(2, 3, *SIZE),)
    program = torch.export.export(network.eval(), example, dynamic_shapes=(dims,))
    torch.export.save(program, path)
    return path


def test_own_network_as_an_exported_program(tmp_path):
    dataset, path = Painted(), export(ByColour(), tmp_path / "by_colour.pt2")
    (tmp_path / "map.txt").write_text("c\n1\nb\n-\n")
    own = segmenter.load_exported(path, dataset, "cpu", label_map=tmp_path / "map.txt")
    scorer = metrics.Scorer(dataset, None, "cpu", ["miou", "accuracy"], segmenter=own)
    images = [(0, *(torch.stack(t) for t in zip(*[dataset[i] for i in range(8)])))]
    scores = scorer.compare(images)
    assert scores == {"miou": 1, "miou_real": 1, "accuracy": 1, "accuracy_real": 1}
    assert "by_colour.pt2" in scorer.protocol["miou"] and "'unknown'" in scorer.protocol["miou"]
    # A class that the network does not know is not scored: its pixels leave the matrix.
    (tmp_path / "map.txt").write_text("-\na\nb\n-\n")
    own = segmenter.load_exported(path, dataset, "cpu", label_map=tmp_path / "map.txt")
    confusion = own.confusion(*images[0][1:])
    assert confusion.sum() == (dataset.labels == 1).sum() + (dataset.labels == 2).sum()
    assert metrics.mean_iou(confusion) == 1
    # Other sizes than the exported one need --segmenter-size.
    with pytest.raises(metrics.MetricsError, match="by_colour.pt2: refuses"):
        own(torch.zeros(2, 3, 40, 40), (40, 40))
    own.size = SIZE
    assert own(torch.zeros(2, 3, 40, 40), (40, 40)).shape == (2, 40, 40)


class Exportable(nn.Module):
    """As in the README: a published network becomes images in [-1, 1] -> logits."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images):
        return self.network(((images + 1) / 2 - self.mean) / self.std)["out"]


def test_a_published_architecture_can_be_exported(tmp_path):
    """The README's way for UperNet101, DRN and DeepLabV2, on a network that torchvision has."""
    with torch.random.fork_rng():
        network = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4)
    wrapped = Exportable(network, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    path = export(wrapped, tmp_path / "network.pt2")
    own = segmenter.load_exported(path, Painted(), "cpu", size=SIZE)
    images = random_images(3, 48, 64)
    predicted = own(images, (48, 64))
    assert predicted.shape == (3, 48, 64) and predicted.min() >= 1      # never "unknown"


@pytest.fixture(scope="module")
def toy_scorer(tmp_path_factory):
    """A Scorer on small toy scenes, with a segmenter that has learned something."""
    train, val = (data.open_dataset("toy", split, SIZE, num_images=count)
                  for split, count in (("train", 320), ("val", 96)))
    state = torch.get_rng_state()
    scorer = metrics.Scorer(val, train, "cpu", SET_SCORES, run_dir=tmp_path_factory.mktemp("run"),
                            segmenter_steps=200)
    assert torch.equal(torch.get_rng_state(), state)             # training draws nothing global
    return scorer


SET_SCORES = ("miou", "accuracy", "fd_segmenter", "colour", "texture")


def blurred(images):
    return F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)


FAULTS = {      # what is done to real images -> the scores that must notice
    "noise": (lambda x: x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
              {"miou", "accuracy", "fd_segmenter", "texture"}),
    "blur": (blurred, {"miou", "accuracy", "fd_segmenter", "texture"}),
    "wrong colours": (lambda x: x.flip(1), {"miou", "accuracy", "fd_segmenter", "colour"}),
    "shuffled labels": (lambda x: x.roll(1, 0), {"miou", "accuracy"}),
    "collapsed": (lambda x: x[:1].expand_as(x), {"miou", "accuracy", "fd_segmenter"}),
}


def test_scores_move_the_right_way(toy_scorer):
    """Every fault worsens what should notice it; shuffled labels leave the set's scores alone."""
    def scores(fault):
        return toy_scorer.compare((half, fault(images), labels)
                                  for half, images, labels, _ in toy_scorer.batches("test"))
    table = {"none": scores(lambda x: x), **{name: scores(f) for name, (f, _) in FAULTS.items()}}
    print("", *(f"{name:16s}" + "".join(f"{s} {row[s]:8.4f}   " for s in SET_SCORES)
                for name, row in table.items()), sep="\n")
    good = table["none"]
    assert good["miou"] == good["miou_real"] > 0.3
    for name, (_, noticed_by) in FAULTS.items():
        for score in SET_SCORES:
            if score in ("miou", "accuracy"):
                assert table[name][score] < 0.95 * good[score], (name, score)
            elif score in noticed_by:
                assert table[name][score] > 1.5 * good[f"{score}_real"], (name, score)
    for score in ("fd_segmenter", "colour", "texture"):
        assert table["shuffled labels"][score] == pytest.approx(good[score], abs=1e-6)


class Painter(nn.Module):
    """A stand-in generator: the palette's colours, tinted by the noise unless it has collapsed."""

    noise_dim = 3

    def __init__(self, dataset, tint):
        super().__init__()
        self.colours, self.tint = torch.as_tensor(dataset.palette) / 127.5 - 1, tint

    def forward(self, labels, noise):
        assert not self.training
        pattern = torch.sin(torch.arange(labels.shape[2]) * noise.mean(1, keepdim=True))
        tint = noise[:, :, None, None] + pattern[:, None, None, :]
        return self.colours[labels].permute(0, 3, 1, 2) * 0.7 + self.tint * tint


def test_diversity(toy_scorer, random_lpips):
    """A generator deaf to noise: MS-SSIM 1, LPIPS 0. The more noise does, the further from that."""
    scores = []
    for tint in (0, 0.05, 0.2):
        scorer = metrics.Scorer(toy_scorer.dataset, None, "cpu", ["ms_ssim"], num_images=4)
        scorer.metrics.append("lpips")
        scorer.networks["lpips"] = random_lpips[1]
        scores.append(scorer(Painter(toy_scorer.dataset, tint)))
    assert scores[0] == pytest.approx({"ms_ssim": 1, "lpips": 0}, abs=1e-6)
    assert scores[0]["ms_ssim"] > scores[1]["ms_ssim"] > scores[2]["ms_ssim"] > 0
    assert scores[0]["lpips"] < scores[1]["lpips"] < scores[2]["lpips"]
    assert "20 samples" in scorer.protocol["lpips"] and "2 scales" in scorer.protocol["ms_ssim"]


def test_scoring_leaves_no_trace(toy_scorer):
    """Same scores again, in other batches, in training mode; networks, random numbers untouched."""
    dataset = toy_scorer.dataset
    G, D = tiny_networks()
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in (G, D)]
    state = torch.get_rng_state()
    names, path = ("miou", "fd_segmenter", "d_miou"), segmenter_file(toy_scorer)
    first, second = (metrics.Scorer(dataset, None, "cpu", names, 30, path, batch_size=size)(G, D)
                     for size in (16, 7))
    assert first == pytest.approx(second, rel=1e-5) and set(names) < set(first)
    assert torch.equal(torch.get_rng_state(), state) and G.training and D.training
    for network, old in zip((G, D), before):
        assert all(torch.equal(old[k], v) for k, v in network.state_dict().items())


def segmenter_file(scorer):
    """The segmenter.pt of the toy scorer's run folder: it gives the same network back."""
    path = scorer.run_dir / "segmenter.pt"
    assert segmenter.load_segmenter(path, scorer.dataset, "cpu").description == \
        scorer.segmenter.description
    return path


# ---- The script on a run -------------------------------------------------------------------------


def tiny_networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return oasis.Generator(10, 8, 4, 3, 8), oasis.Discriminator(10, (8, 8))


@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory):
    """An untrained tiny run on the toy scenes."""
    G, D = tiny_networks()
    toy = data.open_dataset("toy", "val", SIZE)
    path = tmp_path_factory.mktemp("tiny") / "latest.pt"
    torch.save({"format": "oasis-run-1", "model": "oasis", "step": 0,
                "config": {"preset": "toy", "data_root": "", "seed": 0},
                "dataset": {"preset": "toy", "class_names": list(toy.class_names),
                            "palette": toy.palette.tolist(), "ignore_label": 0, "size": list(SIZE)},
                "generator_args": G.config, "discriminator_args": D.config,
                "generator": G.state_dict(), "discriminator": D.state_dict(),
                "ema": G.state_dict()}, path)
    return path


def test_two_processes_score_like_one(checkpoint_file, tmp_path):
    """torchrun, gloo: the same JSON to 1e-6. The first run trains the segmenter."""
    arguments = [str(ROOT / "metrics.py"), "--checkpoint", str(checkpoint_file),
                 "--num-images", "10", "--batch-size", "4", "--segmenter-steps", "2", "--device", "cpu",
                 "--metrics", "miou,accuracy,fd_segmenter,colour,texture,ms_ssim,d_miou", "--json"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*torchrun, *arguments, str(tmp_path / "two")], check=True, cwd=ROOT, capture_output=True)
    metrics.main([*arguments[1:], str(tmp_path / "one")])
    results = []
    for name in ("two", "one"):
        scores = json.loads((tmp_path / name).read_text())["scores"]
        results.append({name: score["value"] for name, score in scores.items()})
    assert results[0] == pytest.approx(results[1], rel=1e-6, abs=1e-9) and len(results[0]) == 12


def test_bad_requests_for_a_run(checkpoint_file, tmp_path, capsys):
    ask = ["--checkpoint", checkpoint_file, "--device", "cpu", "--metrics", "miou"]
    notes = tmp_path / "notes.txt"
    notes.write_text("sky\nwhale\n")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint_file.read_bytes()[:999])
    torch.save({"format": "oasis-segmenter-1", "class_names": ["x"]}, tmp_path / "s.pt")
    exported = export(ByColour(), tmp_path / "by_colour.pt2")
    for arguments, words in [
            (["--checkpoint", cut], "cut.pt: not a checkpoint"),
            ([*ask, "--metrics", "miou,beauty"], "no score 'beauty'; there are miou, accuracy"),
            ([*ask, "--num-images", "1"], "1 image"),
            ([*ask, "--segmenter", cut], "cut.pt: not a checkpoint"),
            ([*ask, "--segmenter", checkpoint_file], "not a segmenter"),
            ([*ask, "--segmenter", tmp_path / "s.pt"], "other class names"),
            ([*ask, "--label-map", notes], "belong to a --segmenter FILE.pt2"),
            ([*ask, "--segmenter", tmp_path / "no.pt2"], "no.pt2: there is no such file"),
            ([*ask, "--segmenter", exported, "--metrics", "fd_segmenter"], "fd_segmenter is"),
            ([*ask, "--segmenter", exported], "(B, 10, H, W) is needed"),
            ([*ask, "--segmenter", exported, "--label-map", notes], "line 2: 'whale' is neither")]:
        assert words in error_of([*arguments, "--json", tmp_path / "s.json"], capsys)
    assert not (tmp_path / "s.json").exists()


def test_bad_folders(tmp_path, capsys):
    good = save_images(random_images(5, 16, 16), tmp_path / "good")
    fewer = save_images(random_images(4, 16, 16), tmp_path / "fewer")
    single = save_images(random_images(1, 16, 16), tmp_path / "single")
    mixed = save_images(random_images(5, 16, 16), tmp_path / "mixed")
    broken = save_images(random_images(5, 16, 16), tmp_path / "broken")
    Image.new("RGB", (20, 16)).save(mixed / "002.png")
    (broken / "003.png").write_bytes((broken / "002.png").read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    for folder, words in [
            (tmp_path / "nowhere", "nowhere: there is no such folder"),
            (tmp_path / "empty", "empty: holds no file with the ending .png or .jpg"),
            (fewer, "distances depend on the number, so choose one for both: --num-images 4"),
            (single, "--num-images 1"), (mixed, "002.png: is 16×20, 000.png is 16×16"),
            (save_images(random_images(5, 8, 16), tmp_path / "low"), "distances depend on the size"),
            (broken, "003.png: cannot be read")]:
        message = error_of(["--real", folder, "--fake", good, "--metrics", "colour", "--json",
                            tmp_path / "s.json", "--device", "cpu"], capsys)
        assert words in message
    ask = ["--real", single, "--fake", single, "--device", "cpu", "--metrics"]
    assert "1 image" in error_of([*ask, "colour"], capsys)
    assert "miou needs a --checkpoint" in error_of([*ask, "miou"], capsys)
    assert not (tmp_path / "s.json").exists()
    metrics.main([str(a) for a in ("--real", good, "--fake", fewer, "--num-images", 4, "--device",
                                   "cpu", "--metrics", "colour,texture")])
    assert "4 images" in capsys.readouterr().out
