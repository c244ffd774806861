"""toy.py: what a scene depends on: layout, mood and texture, and who tells which of them."""

import numpy as np
import pytest
from scipy.ndimage import label as connected

import toy


def test_a_scene_is_a_function_of_seed_and_index():
    image, labels = toy.draw_scene(3, 5, 64, 64)
    again, _ = toy.draw_scene(3, 5, 64, 64)
    assert (image == again).all() and image.dtype == labels.dtype == np.uint8
    for other in ((4, 5), (3, 6)):
        assert (toy.draw_scene(*other, 64, 64)[1] != labels).any()


def test_the_layout_does_not_depend_on_the_mood():
    scenes = [toy.draw_scene(0, 2, 64, 64, mood) for mood in (*toy.MOODS, None)]
    assert all((labels == scenes[0][1]).all() for _, labels in scenes)
    named = [image.astype(float) for image, _ in scenes[:len(toy.MOODS)]]
    for i, one in enumerate(named):         # two named moods differ by more than a tint
        assert all(abs(one - other).mean() > 15 for other in named[:i])


def test_moods_are_mixtures_and_all_names_come_equally_often():
    moods = np.stack([toy.draw_mood(0, i) for i in range(600)])
    assert np.allclose(moods.sum(1), 1) and (moods >= 0).all()
    assert np.bincount(moods.argmax(1), minlength=6).min() > 70
    noon, night = (toy.draw_scene(0, 2, 32, 32, m)[0].astype(float) for m in ("noon", "night"))
    middle = toy.draw_scene(0, 2, 32, 32, (toy.MOODS["noon"] + toy.MOODS["night"]) / 2)[0]
    assert abs(middle - (noon + night) / 2).mean() < 6
    assert noon.mean() > night.mean() + 50


@pytest.mark.parametrize("size", [(32, 32), (48, 96), (128, 64), (65, 43)])
def test_any_size(size):
    image, labels = toy.draw_scene(0, 1, *size)
    assert image.shape == (*size, 3) and labels.shape == size


def test_sizes_of_one_shape_show_one_scene():
    small, large = (toy.draw_scene(0, 4, n, n)[1] for n in (64, 192))
    assert (small == large[1::3, 1::3]).mean() > 0.97


def test_every_class_occurs_and_little_is_unknown():
    labels = np.stack([toy.draw_scene(0, i, 64, 64)[1] for i in range(150)])
    share = np.bincount(labels.ravel(), minlength=len(toy.CLASSES)) / labels.size
    assert len(toy.CLASSES) == len(toy.TABLE) == len(np.unique(toy.PALETTE, axis=0))
    assert 0 < share[toy.UNKNOWN] < 0.01 < share.max() < 0.4
    assert (share[1:] > 0.005).all()


def test_cars_are_large_enough_to_be_recognised():
    widths = []
    for index in range(60):
        labels = toy.draw_scene(1, index, 64, 64)[1]
        regions, count = connected(np.isin(labels, (toy.CAR, toy.GLASS, toy.WHEEL)))
        for region in range(1, count + 1):
            columns = np.flatnonzero(((regions == region) & (labels == toy.CAR)).any(0))
            if len(columns) and 1 < columns[0] and columns[-1] < 62:      # not cut off
                widths.append(np.ptp(columns) + 1)
    assert len(widths) > 20 and min(widths) >= 12


def test_a_flat_scene_is_one_colour_where_the_label_map_is_one_class():
    """The middle of each class is its body colour: no field, no position, no number per thing."""
    for label in range(len(toy.CLASSES)):
        image = toy.light(np.full((40, 50), label), toy.draw_mood(0, 1))
        assert np.ptp(image, axis=(0, 1)).max() == 0


def test_flat_pixels_follow_the_borders():
    """A label map moved sideways, or a part of it cut out, gives the same picture there."""
    labels = toy.draw_scene(0, 8, 64, 128)[1]
    whole = toy.light(labels, toy.MOODS["dusk"])
    part = toy.light(labels[:, 30:110], toy.MOODS["dusk"])
    middle = slice(30, 50)                  # farther from the cuts than any shading reaches
    assert abs(part[:, middle] - whole[:, 30:110][:, middle]).max() < 0.03


# ---- Texture -------------------------------------------------------------------------------------

def texture_of(index, size, mood=None):
    """(scene / flat scene − 1, (H, W); its label map): the random factor, but for rounding."""
    image, labels = toy.draw_scene(0, index, *size, mood)
    flat, flat_labels = toy.draw_scene(0, index, *size, mood, texture=False)
    assert (labels == flat_labels).all()
    return image.sum(-1) / flat.sum(-1).clip(1) - 1, labels


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


def test_the_flat_world_is_one_argument_away():
    for index, mean in enumerate((165.980, 151.708, 119.400)):   # measured before there was texture
        flat, labels = toy.draw_scene(0, index, 64, 64, texture=False)
        image = toy.light(labels, toy.draw_mood(0, index))
        assert (flat == (255 * image).round()).all()
        assert flat.mean() == pytest.approx(mean, abs=0.01)


def test_the_mood_does_not_tell_the_texture():
    """Night and snow have the same texture: it is drawn from (seed, index)."""
    night, labels = texture_of(2, (192, 256), "night")
    snow, _ = texture_of(2, (192, 256), "snow")
    meadow = labels == toy.MEADOW
    assert correlation(night[meadow], snow[meadow]) > 0.85       # 1 but for rounding and clipping


def test_the_label_map_does_not_tell_the_texture():
    """On one label map, two drawings have nothing in common but their strength."""
    labels = np.full((192, 256), toy.MEADOW)
    grey = np.full((*labels.shape, 3), 0.5)
    first, second = (toy.add_texture(grey, labels, np.random.default_rng(seed))[..., 0].ravel()
                     for seed in (1, 2))
    assert abs(correlation(first, second)) < 0.1
    assert first.std() / 0.5 == pytest.approx(toy.TEXTURE[toy.MEADOW][2], rel=0.05)


def test_the_position_does_not_tell_the_texture():
    """The mean over many scenes is flat: no place is lighter than another."""
    labels = np.full((48, 48), toy.TREE)
    grey = np.full((*labels.shape, 3), 0.5)
    rng = np.random.default_rng(0)
    mean = np.mean([toy.add_texture(grey, labels, rng)[..., 0] for _ in range(100)], axis=0)
    expected = 0.5 * toy.TEXTURE[toy.TREE][2] / 100 ** 0.5
    assert mean.std() == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("label", [toy.SKY, toy.MEADOW, toy.TREE, toy.ROOF])
def test_sizes_agree_in_the_statistics_of_texture(label):
    """Strength, and how alike two pixels are that lie 1/32 of the height apart."""
    strengths, alike = [], []
    for height in (64, 192):
        labels = np.full((height, 4 * height), label)
        image = toy.add_texture(np.full((*labels.shape, 3), 0.5), labels, np.random.default_rng(0))
        field, step = image[..., 0], height // 32
        strengths.append(field.std() / 0.5)
        alike.append((correlation(field[step:].ravel(), field[:-step].ravel()),
                      correlation(field[:, step:].ravel(), field[:, :-step].ravel())))
    assert strengths == pytest.approx([toy.TEXTURE[label][2]] * 2, rel=0.03)
    assert alike[0] == pytest.approx(alike[1], abs=0.12)
    # A field of white noise smoothed over a length s: two pixels d apart correlate by
    # exp(−d² / 4s²).
    vertical, horizontal, _ = toy.TEXTURE[label]
    expected = [np.exp(-1 / (32 * length) ** 2 / 4) for length in (vertical, horizontal)]
    assert alike[1] == pytest.approx(expected, abs=0.12)


def test_classes_without_a_row_have_no_texture():
    factor, labels = texture_of(2, (96, 128), "noon")
    for label in (toy.GLASS, toy.CAR, toy.WHEEL):
        assert (factor[labels == label] == 0).all()
