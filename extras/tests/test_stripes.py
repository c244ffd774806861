"""extras/stripes.py against closed forms, and its table of a checkpoint."""

import math

import numpy as np
import pytest
import torch
from tiny_run import make_checkpoint

import toy
from extras import stripes

WINDOW = 12
rng = np.random.default_rng(0)


def grey(pixels):
    """(H, W) -> an image (1, H, W, 3) and a label map (1, H, W) of class 3."""
    pixels = np.asarray(pixels, float)
    return pixels[None, :, :, None].repeat(3, axis=3), np.full((1, *pixels.shape), 3)


def share_of(pixels):
    return stripes.stripe_shares(*grey(pixels))[3].share


# ---- Closed forms --------------------------------------------------------------------------------

def covariance(dy, dx):
    """Of two pixels (dy, dx) apart, in white noise of variance 1 minus its 5×5 mean."""
    white = float(dy == 0 and dx == 0)
    shared = max(0, 5 - abs(dy)) * max(0, 5 - abs(dx))      # pixels that two 5×5 windows share
    inside = float(abs(dy) < 3 and abs(dx) < 3)             # one pixel is in the other's window
    return white - 2 * inside / 25 + shared / 25 ** 2


def expected_of_white_noise():
    """Expected variances in a window, from the covariance of each pair of its pixels."""
    of_mean, of_row_mean = 0, 0
    for dx in range(1 - WINDOW, WINDOW):
        pairs = WINDOW - abs(dx)                            # pairs of columns dx apart
        of_row_mean += pairs * covariance(0, dx) / WINDOW ** 2
        for dy in range(1 - WINDOW, WINDOW):
            of_mean += pairs * (WINDOW - abs(dy)) * covariance(dy, dx) / WINDOW ** 4
    return 2 * (of_row_mean - of_mean) / (covariance(0, 0) - of_mean)


def test_white_noise():
    expected = expected_of_white_noise()
    assert expected == pytest.approx(0.14, abs=0.005)       # what the file's header says
    # The mean of ratios is not the ratio of means, hence 0.003.
    assert share_of(rng.normal(128, 20, (900, 900))) == pytest.approx(expected, abs=0.003)


def test_a_plaid_is_all_stripes():
    """Any sum of a function of the row and one of the column, here random ones."""
    rows, columns = rng.normal(0, 20, (60, 1)), rng.normal(0, 20, (1, 80))
    for plaid in (rows + columns, rows + 0 * columns, columns + 0 * rows):
        assert share_of(128 + plaid) == pytest.approx(1, abs=1e-6)


def test_a_chessboard_has_no_stripes():
    """It is as regular as a plaid, but all rows and all columns have the same mean."""
    y, x = np.mgrid[:60, :60]
    assert share_of(128 + 20 * (-1.0) ** (x + y)) < 0.01


def test_diagonal_lines_are_not_meant():
    y, x = np.mgrid[:60, :60]
    assert share_of(128 + 20 * np.sin(2 * math.pi * (x + y) / 4)) < 0.05


def test_deviation_is_that_of_the_texture():
    """One row light, one dark, ±20: five rows have a mean of ±4, a fifth of the middle one."""
    lines = 128 + 20 * (-1.0) ** np.arange(300)[:, None] + np.zeros((300, 60))
    texture = stripes.stripe_shares(*grey(lines))[3]
    assert texture.deviation == pytest.approx(20 - 4, rel=0.01)
    assert texture.share == pytest.approx(1, abs=1e-6)


# ---- Which windows count -------------------------------------------------------------------------

def test_windows_lie_in_one_class():
    noise = rng.integers(0, 256, (1, 48, 48, 3))
    label_map = np.zeros((1, 48, 48), int)
    label_map[:, :, 24:] = 1                                # a window is 12 wide, a step 6
    found = stripes.stripe_shares(noise, label_map)
    assert found[0].windows == found[1].windows == 7 * 3
    label_map[:, ::5] = 2                                   # now no window is of one class
    assert stripes.stripe_shares(noise, label_map) == {}


def test_one_colour_is_no_texture():
    assert stripes.stripe_shares(*grey(np.full((48, 48), 128))) == {}


def test_sizes_may_differ_and_may_be_too_small():
    images = [rng.integers(0, 256, (24, 36, 3)), rng.integers(0, 256, (8, 50, 3))]
    label_maps = [np.zeros(image.shape[:2], int) for image in images]
    assert stripes.stripe_shares(images, label_maps)[0].windows == 3 * 5


def test_drawn_scenes():
    """Blades of grass are upright, so meadows have more lines than crowns of trees."""
    scenes = [toy.draw_scene(0, i, 64, 64) for i in range(100)]
    found = stripes.stripe_shares(*zip(*scenes))
    assert found[toy.TREE].share < 0.36 < found[toy.MEADOW].share < 0.5
    assert found[toy.MEADOW].windows > 200


# ---- A checkpoint --------------------------------------------------------------------------------

def with_pixel_noise(path, pixel_noise):
    """The checkpoint of that path, as if it had been trained with noise at every pixel."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["generator_args"]["pixel_noise"] = pixel_noise
    torch.save(checkpoint, path)


@pytest.mark.parametrize("pixel_noise", [0, 4])
def test_the_table_of_a_checkpoint(tmp_path, capsys, pixel_noise):
    path = make_checkpoint(tmp_path / "run" / "latest.pt", size=(48, 64))
    with_pixel_noise(path, pixel_noise)
    stripes.main(["--checkpoint", str(path), "--num-images", "20"])
    printed = capsys.readouterr().out
    assert f"{pixel_noise} of 8 channels; 20 images of toy" in printed
    row = next(line for line in printed.splitlines() if line.startswith("sky")).split()
    real = [toy.draw_scene(0, 1_000_000 + i, 48, 64) for i in range(20)]
    found = stripes.stripe_shares(*zip(*real))[toy.SKY]
    assert row[1:4] == [f"{found.share:.2f}", f"{found.deviation:.1f}", str(found.windows)]
    assert len(row) == 7 and 0 < float(row[4]) <= 1


def test_a_picture_does_not_depend_on_its_neighbours():
    label_maps = np.stack([toy.draw_scene(0, i, 32, 32)[1] for i in range(18)])

    class Mean(torch.nn.Module):
        """Paints the mean of its noise."""
        noise_dim, pixel_noise, size_multiple, num_classes = 8, 4, 4, 99

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, labels, noise):
            return noise.mean(1, keepdim=True).expand(-1, 3, -1, -1) / 4

    together = stripes.paint_maps(Mean(), label_maps, range(5, 23))
    alone = stripes.paint_maps(Mean(), label_maps[17:], [22])
    assert together.shape == (18, 32, 32, 3)
    assert (together[17] == alone[0]).all() and (together[16] != alone[0]).any()


def test_a_missing_checkpoint_ends_in_words(capsys):
    with pytest.raises(SystemExit) as ended:
        stripes.main(["--checkpoint", "nowhere.pt"])
    assert ended.value.code == 2 and "nowhere.pt" in capsys.readouterr().err
