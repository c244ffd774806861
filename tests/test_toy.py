"""toy.py: what a scene depends on, and that it has no texture a generator could not paint."""

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


def test_no_texture_where_the_label_map_is_one_class():
    """The middle of each class is its body colour: no field, no position, no number per thing."""
    for label in range(len(toy.CLASSES)):
        image = toy.light(np.full((40, 50), label), toy.draw_mood(0, 1))
        assert np.ptp(image, axis=(0, 1)).max() == 0


def test_pixels_follow_the_borders():
    """A label map moved sideways, or a part of it cut out, gives the same picture there."""
    labels = toy.draw_scene(0, 8, 64, 128)[1]
    whole = toy.light(labels, toy.MOODS["dusk"])
    part = toy.light(labels[:, 30:110], toy.MOODS["dusk"])
    middle = slice(30, 50)                  # farther from the cuts than any shading reaches
    assert abs(part[:, middle] - whole[:, 30:110][:, middle]).max() < 0.03
