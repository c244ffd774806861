"""extras/figures.py, one_class.py and drawing.py: every figure, with both kinds of noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import make_checkpoint

import oasis
import sample
from extras import drawing, figures, one_class


@pytest.fixture(scope="module", params=[0, 4])
def path(request, tmp_path_factory):
    """A tiny checkpoint of drawn scenes, without and with noise at every pixel."""
    path = make_checkpoint(tmp_path_factory.mktemp("run") / "latest.pt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["generator_args"]["pixel_noise"] = request.param
    torch.save(checkpoint, path)
    return path


def draw(path, out, *words):
    figures.main([*words, "--checkpoint", str(path), "--out", str(out)])


# ---- Sheets and losses ---------------------------------------------------------------------------

@pytest.mark.parametrize("name, rows", [("scenes", 3), ("sky", 2), ("walk", 2)])
def test_sheets_have_five_columns_and_are_not_enlarged(path, tmp_path, name, rows):
    draw(path, tmp_path, name)
    width, height = Image.open(tmp_path / f"{name}.png").size
    assert 5 * 256 < width < 5.2 * 256 and rows * 192 < height < (rows + 0.4) * 192
    assert {file.suffix for file in tmp_path.iterdir()} == (
        {".png", ".gif"} if name == "walk" else {".png"})


def test_recreated_keeps_the_size_of_the_training(path, tmp_path):
    draw(path, tmp_path, "recreated")
    width, height = Image.open(tmp_path / "recreated.png").size
    assert 5 * 192 < width < 5.2 * 192 and 2 * 192 < height < 2.4 * 192     # 32 pixels, times 6


def test_losses(path, tmp_path):
    draw(path, tmp_path, "losses")
    assert Image.open(tmp_path / "losses.png").size == (1000, 500)


def test_an_unknown_figure_is_refused(path, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        draw(path, tmp_path, "sceness")
    assert ended.value.code == 2 and "scenes, sky, walk" in capsys.readouterr().err


def test_pictures_that_the_readme_shows_have_a_command():
    """paint.png is made by the page's test; streets.png by a run on photographs."""
    shown = {file.stem for file in Path(figures.__file__).parents[1].glob("assets/*.png")}
    assert shown - {"paint", "streets"} <= set(figures.FIGURES)


# ---- One class -----------------------------------------------------------------------------------

def test_one_vector_paints_one_colour_and_noise_at_every_pixel_does_not(path):
    checkpoint = sample.load_checkpoint(path)
    pictures = one_class.paint_one_class(checkpoint, 4)
    flat, zeros, field = pictures.values()
    assert np.ptp(flat, axis=(0, 1)).max() == 0
    assert np.ptp(zeros, axis=(0, 1)).max() > 0                     # at the borders alone
    assert np.ptp(zeros[48:80, 48:80], axis=(0, 1)).max() == 0
    assert field[48:80, 48:80].std(axis=(0, 1)).min() > 0
    channels = checkpoint["generator_args"]["pixel_noise"] or 8
    assert list(pictures)[2] == f"replicate, {channels} of 8 per pixel"


def test_one_class_as_a_command(path, tmp_path, capsys):
    one_class.main(["--checkpoint", str(path), "--label", "sky", "--out", str(tmp_path / "a.png")])
    assert "replicate, one vector" in capsys.readouterr().out and (tmp_path / "a.png").exists()
    with pytest.raises(SystemExit) as ended:
        one_class.main(["--checkpoint", str(path), "--label", "skye"])
    assert ended.value.code == 2 and "mountain" in capsys.readouterr().err


# ---- The drawing of both networks ----------------------------------------------------------------

def small_networks():
    G = oasis.Generator(5, noise_dim=7, channels=2, num_blocks=3, spade_hidden=4)
    return G, oasis.Discriminator(5, channels=(4, 6, 8))


def test_layers_of_the_generator():
    G, _ = small_networks()
    layers = drawing.generator_layers(G, (32, 32))
    assert [layer.channels for layer in layers] == [16, 8, 4, 2, 3]
    assert [layer.side for layer in layers] == [8, 8, 16, 32, 32]
    # Three SPADE layers where the width changes, as the shortcut has one, too; two elsewhere.
    assert [len(layer.spades) for layer in layers] == [0, 3, 3, 3, 0]
    assert set(layers[2].spades) == {(12, 16)}                      # 7 of noise, 5 of the labels
    first_block = drawing.generator_layers(oasis.Generator(5, 7, 2, 6, 4), (32, 32))[1]
    assert len(first_block.spades) == 2


def test_layers_of_the_discriminator():
    _, D = small_networks()
    encoder, decoder, last = drawing.discriminator_layers(D, (32, 32))
    assert [(layer.channels, layer.side) for layer in encoder] == [(4, 16), (6, 8), (8, 4)]
    assert [(layer.channels, layer.side, layer.skip) for layer in decoder] == [
        (6, 8, 6), (4, 16, 4), (2, 32, 0)]
    assert last.channels == 6


def words_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_drawing_says_what_the_networks_are():
    G, D = small_networks()
    picture = np.zeros((4, 4, 3), np.uint8)
    pictures = dict.fromkeys(("label map", "noise", "real", "painted"), picture)
    words = words_of(drawing.draw_networks(G, D, (32, 32), pictures))
    assert words.count("3 SPADE") == 3 and "2 SPADE" not in words
    assert any("label map (5 channels, one-hot) and noise (7)" in text for text in words)
    assert any("names 5 classes" in text for text in words)
    # Another network, another drawing.
    wider = oasis.Generator(5, noise_dim=9, channels=3, num_blocks=3, spade_hidden=4)
    others = words_of(drawing.draw_networks(wider, D, (32, 32), pictures))
    assert "24" in others and "24" not in words


def test_the_figure_of_the_networks(path, tmp_path, monkeypatch):
    """Drawn smaller than the paper's, which take 15 seconds."""
    drawn = drawing.draw_networks
    asked = []

    def draw_small(G, D, size, pictures):
        asked.append((G.num_classes, oasis.count_parameters(G), oasis.count_parameters(D), size))
        return drawn(*small_networks(), (32, 32), pictures)

    monkeypatch.setattr(drawing, "draw_networks", draw_small)
    draw(path, tmp_path, "networks")
    assert asked == [(151, 74_314_691, 22_258_904, (256, 256))]
    assert Image.open(tmp_path / "networks.png").width == 1660
