"""extras/judge.py: its figures against scenes of known mood and roughness; the whole, made tiny."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import make_checkpoint

import metrics
import toy
from extras import judge

SIZE = (48, 64)


def scene(mood, texture=True, index=3):
    return toy.draw_scene(0, index, *SIZE, mood, texture)


# ---- Moods ---------------------------------------------------------------------------------------

def test_a_flat_scene_gives_back_its_mood():
    mood = np.array([0.5, 0, 0.3, 0, 0, 0.2])
    image, labels = scene(mood, texture=False)
    weights, distance = judge.mood_weights(image[None], labels)
    assert weights[0] == pytest.approx(mood, abs=0.01)
    assert distance[0] < 0.5 / 255                          # what rounding leaves, at most


def test_texture_hardly_changes_the_mood_that_is_found():
    mood = np.array([0.5, 0, 0.3, 0, 0, 0.2])
    images = np.stack([scene(mood, index=3)[0], scene(mood, texture=False)[0]])
    weights, distance = judge.mood_weights(images, scene(mood)[1])
    assert weights[0] == pytest.approx(mood, abs=0.08)
    assert distance[0] > 5 * distance[1]                    # texture is a part of the distance


def test_moods_are_counted():
    moods = ["noon", "noon", "night", "snow"]
    pictures = np.stack([scene(mood)[0] for mood in moods])
    image, labels = scene("fog")
    scores = judge.judge_moods(pictures, image[None], labels[None])
    for name in toy.MOODS:
        assert scores[f"seeds that look most like {name}"] == moods.count(name)
    assert scores["largest weight"] == pytest.approx(1, abs=0.1)
    reference = scores["distance to that mixture, scenes"]
    assert scores["distance to that mixture"] == pytest.approx(reference, rel=0.5)


# ---- Roughness -----------------------------------------------------------------------------------

def test_roughness_of_a_chessboard():
    """A pixel is ±a. Of nine around it five are like it, four are not: their mean is ±a/9."""
    y, x = np.mgrid[:40, :40]
    board = np.where((x + y) % 2 == 0, 138, 118)
    images = board[None, :, :, None].repeat(3, axis=3).astype(np.uint8)
    inside, _ = judge.roughness(images, np.zeros((1, 40, 40), int))
    assert inside == pytest.approx(10 / 255 * (1 - 1 / 9), rel=1e-6)


def test_roughness_looks_at_the_rim_alone_where_it_should():
    images = np.full((1, 40, 40, 3), 100, np.uint8)
    images[0, 0, ::2] = 160                                 # a frame along the upper border
    inside, rim = judge.roughness(images, np.zeros((1, 40, 40), int))
    assert inside < 1e-12 < 1e-3 < rim


def test_roughness_leaves_out_class_borders():
    images = np.zeros((1, 40, 40, 3), np.uint8)
    images[:, :, 20:] = 255
    labels = (images[..., 0] > 0).astype(int)
    assert max(judge.roughness(images, labels)) < 1e-12


# ---- The whole -----------------------------------------------------------------------------------

@pytest.mark.parametrize("pixel_noise", [0, 4])
def test_all_figures_and_both_sheets(tmp_path, capsys, pixel_noise):
    network = metrics.scoring_network(len(toy.CLASSES), [4, 8])
    segmenter = {"channels": [4, 8], "network": network.state_dict(), "description": "untrained"}
    path = make_checkpoint(tmp_path / "latest.pt", size=(64, 64), segmenter=segmenter)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["generator_args"]["pixel_noise"] = pixel_noise
    torch.save(checkpoint, path)
    judge.main(["--checkpoint", str(path), "--seeds", "10", "--out", str(tmp_path / "sheets")])
    printed = capsys.readouterr().out
    for word in ("miou_real", "colour / floor", "roughness rim", "largest weight", "meadow"):
        assert word in printed
    pictures, seeds = (Image.open(tmp_path / "sheets" / f"judge_{name}.png")
                       for name in ("pictures", "seeds"))
    assert pictures.width > pictures.height > 6 * 256       # six rows of four scenes
    assert 8 * 256 < seeds.width and seeds.height < 3 * 256


def test_other_data_sets_are_refused(tmp_path, monkeypatch, capsys):
    path = make_checkpoint(tmp_path / "latest.pt")
    checkpoint, train_set, val_set = torch.load(path, weights_only=True), None, type("", (), {})()
    val_set.class_names = ["sky", "road"]
    monkeypatch.setattr(metrics, "open_run", lambda path: (checkpoint, train_set, val_set))
    with pytest.raises(SystemExit) as ended:
        judge.main(["--checkpoint", str(path), "--out", str(tmp_path)])
    assert ended.value.code == 2 and "toy.py" in capsys.readouterr().err
