"""extras/released.py: figures of the released code, and converted files through every script."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import data                                 # noqa: E402  (the lines above must come first)
import metrics                              # noqa: E402
import oasis                                # noqa: E402
import released_layout as layout            # noqa: E402
import sample                               # noqa: E402
import tiny_datasets as tiny                # noqa: E402
from extras import released                 # noqa: E402

GOLDEN = ROOT / "tests" / "golden"


def save(folder, channels, num_classes, seed="oasis-open", discriminator=True):
    """latest_EMA.pth and latest_D.pth with reproducible numbers -> path of the first."""
    torch.save(layout.fill(layout.generator_layout(channels, num_classes), seed),
               folder / "latest_EMA.pth")
    if discriminator:
        torch.save(layout.fill(layout.discriminator_layout(num_classes), f"{seed}/D"),
                   folder / "latest_D.pth")
    return folder / "latest_EMA.pth"


def convert(*arguments):
    released.main([str(a) for a in arguments])


def test_the_layout_in_these_tests_is_that_of_a_full_size_file():
    listed = {"G": {}, "D": {}}
    for line in (GOLDEN / "released_checkpoint_keys.txt").read_text().splitlines():
        network, name, shape = line.split(" ", 2)
        listed[network][name] = tuple(int(n) for n in re.findall(r"\d+", shape))
    assert layout.generator_layout(64, 151) == listed["G"]
    assert layout.discriminator_layout(151) == listed["D"]


@torch.no_grad()
def test_images_and_logits_are_those_of_the_released_code(tmp_path):
    golden = json.loads((GOLDEN / "released_code_small.json").read_text())
    G = released.load_released_generator(save(tmp_path, 8, 7))
    D = released.load_released_discriminator(tmp_path / "latest_D.pth")
    assert [sum(p.numel() for p in network.parameters()) for network in (G, D)] \
        == [golden["params_G"], golden["params_D"]]
    cells = layout.rng("oasis-open", "labels").randint(0, 7, (2, 8, 8))
    labels = torch.from_numpy(cells.repeat(8, 1).repeat(8, 2)).long()
    noise = torch.from_numpy(layout.rng("oasis-open", "z").standard_normal((2, 64))).float()
    real = np.tanh(layout.rng("oasis-open", "real").standard_normal((2, 3, 64, 64)))
    fake = G(labels, noise)
    for name, tensor in (("generator_output", fake),
                         ("discriminator_logits_fake", D(fake).roll(1, dims=1)),
                         ("discriminator_logits_real",           # theirs has fake in channel 0
                          D(torch.from_numpy(real).float()).roll(1, dims=1))):
        picked = np.linspace(0, tensor.numel() - 1, 16).astype(int)
        assert list(tensor.shape) == golden[name]["shape"]
        torch.testing.assert_close(tensor.flatten()[picked], torch.tensor(golden[name]["samples"]),
                                   atol=2e-5, rtol=0)
        assert tensor.std().item() == pytest.approx(golden[name]["std"], abs=1e-5)


def test_ade20k_is_converted_drawn_recreated_and_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.make_ade20k(tmp_path / "ade", train=4, val=4)
    convert(save(tmp_path, 1, 151), "--preset", "ade20k", "--data-root", "ade", "--out", "run.pt")
    assert "generator and discriminator, 151 classes" in capsys.readouterr().out
    assert sample.load_model("run.pt").class_names[8] == "bed"           # named by the dataset
    small = ["--size", "64", "64", "--limit", "1", "--num", "1", "--checkpoint", "run.pt"]
    sample.main([*small, "--out", "drawn"])
    sample.main([*small, "--out", "drawn", "--recreate"])
    name = "ADE_val_00000001_64x64"
    drawn, again = (np.asarray(Image.open(f"drawn/{name}{words}seed0.png"))
                    for words in ("_", "_recreated_"))
    assert drawn.shape == again.shape == (64, 64, 3) and (drawn != again).any()
    metrics.main(["--checkpoint", "run.pt", "--metrics", "d_miou"])
    assert re.search(r"d_miou\s+0\.\d+", capsys.readouterr().out)


def test_ids_are_read_and_written_as_in_the_archives_of_coco_stuff_and_cityscapes(tmp_path):
    """COCO-Stuff stores 0 ... 181 and 255 = unknown, which is 0 for the network."""
    path = save(tmp_path, 1, 183)
    convert(path, "--preset", "coco-stuff", "--out", tmp_path / "coco.pt")
    stored = np.uint8([[0, 181], [255, 9]]).repeat(32, 0).repeat(32, 1)
    Image.fromarray(stored).save(tmp_path / "street.png")
    words = ["--checkpoint", tmp_path / "coco.pt", "--labels", tmp_path / "street.png",
             "--num", 1, "--out", tmp_path / "out"]
    sample.main([str(word) for word in words])
    model = sample.load_model(tmp_path / "coco.pt")
    labels = np.array([[1, 182], [0, 10]]).repeat(32, 0).repeat(32, 1)
    expected = sample.paint(model.generator, labels, oasis.noise_from_seeds([0]))[0]
    assert (np.asarray(Image.open(tmp_path / "out/street_seed0.png")) == expected).all()
    assert model.class_names[1] == "person"
    convert(save(tmp_path, 1, 35), "--preset", "cityscapes", "--out", tmp_path / "city.pt")
    model = sample.load_model(tmp_path / "city.pt")
    assert model.size == (256, 512) and model.class_names[7] == "road"
    assert data.id_table("cityscapes", 35)[255] == model.class_names.index("license plate") == 34


def test_other_files_are_refused_in_words(tmp_path, capsys):
    path = save(tmp_path, 1, 35, discriminator=False)
    (tmp_path / "broken_EMA.pth").write_bytes(path.read_bytes()[:5000])
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other_EMA.pth")
    for name, preset, words in (("latest_EMA.pth", "ade20k", "35 classes, but ade20k has 151"),
                                ("broken_EMA.pth", "cityscapes", "cut off"),
                                ("other_EMA.pth", "cityscapes", "holds no fc.weight"),
                                ("missing_EMA.pth", "cityscapes", "no such file")):
        with pytest.raises(SystemExit) as ended:
            convert(tmp_path / name, "--preset", preset, "--out", tmp_path / "run.pt")
        assert ended.value.code == 2 and words in capsys.readouterr().err
        assert not (tmp_path / "run.pt").exists()
    convert(path, "--preset", "cityscapes", "--out", tmp_path / "run.pt")       # without D
    assert "cannot be re-created" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sample.main(["--checkpoint", str(tmp_path / "run.pt"), "--recreate", str(path)])
    assert "no discriminator" in capsys.readouterr().err
