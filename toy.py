"""Toy scenes: small landscapes drawn by the program, so that OASIS runs where no dataset is.

    python toy.py          # draws toy_moods.png: one layout in every mood

A scene has two halves, like any photograph a label map is made from:
  the layout   where sky, mountains, meadow, water, road, trees, houses and cars are. The label map
               tells it.
  the mood     time of day, weather and season. It changes every colour, all classes together, and
               no label tells it: it is what the generator must learn to take from its noise.
A layout is painted back to front in flat parts (Canvas); `light` then turns parts into a picture.

Lengths are in picture heights, y downwards, so a scene looks the same at every resolution. All
random numbers are functions of (seed, purpose, index).
"""

import itertools
import os

import numpy as np
from PIL import Image

CLASSES = ["unknown", "sky", "mountain", "meadow", "water", "road", "tree", "house", "roof", "car"]
UNKNOWN, SKY, MOUNTAIN, MEADOW, WATER, ROAD, TREE, HOUSE, ROOF, CAR = range(10)
PALETTE = np.array([(0, 0, 0), (120, 190, 240), (140, 120, 110), (130, 200, 80), (40, 90, 200),
                    (110, 110, 120), (20, 110, 50), (235, 200, 140), (190, 70, 50), (240, 40, 160)],
                   dtype=np.uint8)

# Base colours, RGB in 0 ... 1, from which each object picks and varies its own.
COLOURS = {MOUNTAIN: [(.50, .46, .44), (.42, .44, .52), (.55, .45, .36)],
           WATER: [(.08, .30, .48), (.06, .38, .42)],
           ROAD: [(.36, .36, .38), (.46, .42, .38)],
           HOUSE: [(.93, .87, .72), (.72, .36, .28), (.70, .80, .88), (.90, .70, .35)],
           ROOF: [(.60, .22, .14), (.25, .27, .33), (.42, .28, .20)],
           CAR: [(.85, .08, .08), (.10, .25, .75), (.92, .92, .92), (.95, .75, .10)],
           UNKNOWN: [(.30, .15, .35), (.45, .45, .30)]}
BY_SEASON = (np.nan, np.nan, np.nan)      # the colour of plants waits for the mood

# A mood is one name of each table.
#                light on things      sky overhead     sky at the horizon   darkness: lamps are lit
TIMES = {"dawn": ((1.00, .76, .84), (.46, .48, .76), (1.0, .72, .68), 0.3),
         "noon": ((1.12, 1.10, 1.04), (.20, .50, .94), (.72, .88, .98), 0.0),
         "dusk": ((1.05, .68, .46), (.34, .24, .54), (1.0, .56, .26), 0.6),
         "night": ((.42, .48, .76), (.06, .09, .28), (.18, .27, .52), 1.0)}
#                    clouds  greyness  fog
WEATHERS = {"clear": (0.50, 0.00, 0.10), "overcast": (1.00, 0.45, 0.25), "fog": (0.20, 0.30, 0.60)}
#                    leaves           grass          snow
SEASONS = {"summer": ((.16, .40, .14), (.38, .62, .20), 0.0),
           "autumn": ((.80, .36, .06), (.70, .60, .26), 0.0),
           "winter": ((.30, .32, .26), (.50, .50, .36), 0.9)}
SNOW_COVER = np.array([0, 0, .7, .95, .25, .35, .5, .05, .95, 0])    # of each class, in winter

STREAM_LAYOUT, STREAM_MOOD = 100, 101     # purposes: a mood never shifts the layout's numbers


# ---- Tools ---------------------------------------------------------------------------------------

class Canvas:
    """Painter's algorithm: later parts cover earlier ones; a part is flat until it is lit."""

    def __init__(self, height, width):
        self.y = ((np.arange(height) + 0.5) / height)[:, None]               # (H, 1)
        self.x = ((np.arange(width) + 0.5) / height)[None, :]                # (1, W)
        self.part = np.zeros((height, width), dtype=np.intp)   # which part shows at each pixel
        self.table = []                                        # part: (label, r, g, b, far, glow)

    def paint(self, mask, label, colour, far=np.nan, glow=0.0):
        """far: 0 at our feet ... 1 at the horizon, NaN: as the ground; glow: lit by lamps."""
        np.putmask(self.part, np.broadcast_to(mask, self.part.shape), len(self.table))
        self.table.append((label, *colour, far, glow))


def value_noise(lattice, y, x):
    """A smooth random field in [-1, 1], (H, W): lattice values at whole numbers, blends between.

    lattice: (k, k), repeated periodically; y, x: the rows' and columns' coordinates in lattice
    cells. On a grid the blend is separable: one thin matrix on each side of the lattice.
    """
    def blend(position, k):
        position = np.ravel(position)
        cell = np.floor(position).astype(int)
        f = position - cell
        f = f * f * (3 - 2 * f)           # smoothstep: no creases at the lattice points
        weights, row = np.zeros((len(position), k)), np.arange(len(position))
        weights[row, cell % k], weights[row, (cell + 1) % k] = 1 - f, f
        return weights
    return blend(y, len(lattice)) @ lattice @ blend(x, len(lattice)).T


def pick_colour(rng, label):
    """One of the class's base colours, varied a little."""
    return np.clip(rng.choice(COLOURS[label]) + rng.uniform(-0.06, 0.06, 3), 0, 1)


# ---- The layout, which the label map tells -------------------------------------------------------

class Ground:
    """The lie of the land: horizon, lake and road, as functions of position."""

    def __init__(self, rng, aspect):
        self.aspect, self.horizon = aspect, rng.uniform(0.34, 0.52)
        self.lake_x, self.lake_y = rng.uniform(0, aspect), self.horizon + rng.uniform(0.06, 0.28)
        self.lake_width, self.lake_height = rng.uniform(0.35, 0.8), rng.uniform(0.07, 0.15)
        self.lake_width *= rng.random() < 0.7                  # some scenes have no lake,
        self.road_width = rng.uniform(0.26, 0.38) * (rng.random() < 0.8)     # some no road
        self.road_far, self.road_near = aspect * rng.uniform(0.2, 0.8), aspect * rng.uniform(0, 1)
        self.road_bend = rng.uniform(-0.5, 0.5)

    def near(self, y):
        """0 at the horizon ... 1 at the lower edge: the scale of things that stand at height y."""
        return np.maximum(y - self.horizon, 1e-3) / (1 - self.horizon)

    def lake(self, x, y):
        """Below 1: water."""
        return (((x - self.lake_x) / (self.lake_width + 1e-6)) ** 2
                + ((y - self.lake_y) / self.lake_height) ** 2)

    def road(self, y):
        """The road at height y: (x of its middle, half its width)."""
        t = self.near(y)
        middle = self.road_far + (self.road_near - self.road_far) * t + self.road_bend * t * (1 - t)
        return middle, self.road_width * (t + 0.02) + 1e-6


def paint_land(canvas, rng, noise, ground):
    """Sky, two mountain ridges, meadow, lake, road."""
    y, x, below = canvas.y, canvas.x, canvas.y > ground.horizon
    canvas.paint(True, SKY, (0, 0, 0), far=1.0)                # its colours come with the light
    for row, far, low, high in ((0, 0.85, 0.08, 0.28), (7, 0.6, -0.05, 0.15)):
        ridge = value_noise(noise[0], [row], x / 0.22)
        ridge = ridge + 0.2 * value_noise(noise[1], [row], x / 0.07)
        canvas.paint(y > ground.horizon - rng.uniform(low, high) * (1 + ridge), MOUNTAIN,
                     pick_colour(rng, MOUNTAIN), far)
    canvas.paint(below, MEADOW, BY_SEASON)
    shore = 1 + 0.3 * value_noise(noise[2], y / 0.1, x / 0.1)
    canvas.paint(below & (ground.lake(x, y) < shore), WATER, pick_colour(rng, WATER))
    middle, half_width = ground.road(y)
    across, near = np.abs(x - middle) / half_width, ground.near(y)           # 0 middle, 1 edge
    on_road = below & (across < 1) & (ground.road_width > 0)
    canvas.paint(on_road, ROAD, pick_colour(rng, ROAD))
    dashes = (across < 0.07) & (np.sin(9 * np.log(near) + rng.uniform(0, 6)) > 0)
    canvas.paint(on_road & (near > 0.12) & (dashes | (np.abs(across - 0.88) < 0.05)), ROAD,
                 (0.85, 0.84, 0.78))


def paint_house(canvas, rng, x0, foot, size, far):
    """A wall with two windows and a door, and the roof on top."""
    x, y = np.abs(canvas.x - x0) / size, (foot - canvas.y) / size            # y: above the ground
    width, wall, roof = rng.uniform(0.55, 0.9), 0.68, 0.68 + rng.uniform(0.4, 0.6)
    canvas.paint((x < width) & (y > 0) & (y < wall), HOUSE, pick_colour(rng, HOUSE), far)
    windows = (np.abs(x - 0.55 * width) < 0.14) & (np.abs(y - 0.37) < 0.13)
    canvas.paint(windows, HOUSE, (.25, .32, .42), far, glow=1.0)
    canvas.paint((x < 0.1) & (y > 0) & (y < 0.36), HOUSE, (.35, .22, .14), far)
    gable = 1.15 * width - (y - wall) * rng.uniform(0.4, 1.6)
    canvas.paint((x < gable) & (y >= wall) & (y < roof), ROOF, pick_colour(rng, ROOF), far)


def paint_tree(canvas, rng, x0, foot, size, far, lattice):
    """A round crown with a ragged edge, or a fir; the trunk belongs to the tree."""
    x, y = (canvas.x - x0) / size, (foot - canvas.y) / size
    canvas.paint((np.abs(x) < 0.08) & (y > 0) & (y < 1), TREE, (.30, .20, .13), far)
    ragged = value_noise(lattice, y / 0.2, x / 0.2 + rng.uniform(0, 32))
    if rng.random() < 0.6:
        crown = (x / 0.5) ** 2 + ((y - 1) / 0.62) ** 2 < 1 + 0.3 * ragged
    else:
        crown = (np.abs(x) < (1.8 - y) * (0.34 + 0.06 * ragged)) & (y > 0.3)
    canvas.paint(crown, TREE, BY_SEASON, far)


def paint_car(canvas, rng, x0, foot, size, far):
    """Seen from behind (red lights) or in front: wheels, body, cabin, window, lights."""
    x, y = np.abs(canvas.x - x0) / size, (foot - canvas.y) / size
    body, lamps = pick_colour(rng, CAR), rng.choice([(.9, .1, .1), (1, 1, .85)])
    canvas.paint((np.abs(x - 0.72) < 0.2) & (np.abs(y - 0.15) < 0.25), CAR, (.06, .06, .07), far)
    canvas.paint((x < 1) & (np.abs(y - 0.5) < 0.36), CAR, body, far)
    canvas.paint((x < 1.05 - 0.3 * y) & (y > 0.84) & (y < 1.45), CAR, body, far)
    canvas.paint((x < 0.90 - 0.3 * y) & (y > 0.92) & (y < 1.32), CAR, (.16, .20, .26), far)
    canvas.paint((np.abs(x - 0.78) < 0.16) & (np.abs(y - 0.6) < 0.13), CAR, lamps, far, glow=0.9)


def paint_things(canvas, rng, noise, ground):
    """Houses, trees and cars, the far ones first; now and then a smudge nobody can name."""
    kinds = rng.permutation([HOUSE] * rng.integers(1, 5) + [TREE] * rng.integers(3, 9)
                            + [CAR] * rng.integers(1, 5))
    nears = np.sort(rng.uniform(0.05, 0.9, len(kinds)))
    for kind, near, own in zip(kinds, nears, rng.spawn(len(kinds))):  # each thing's own numbers
        foot, x0 = ground.horizon + (1 - ground.horizon) * near, own.uniform(0, ground.aspect)
        size, (middle, half_width) = 0.09 + 0.34 * near, ground.road(foot)
        if kind == CAR:
            if near > 0.2 and ground.road_width:
                lane = middle + own.choice([-0.48, 0.48]) * half_width
                paint_car(canvas, own, lane, foot, 0.42 * half_width, 1 - near)
        elif ground.lake(x0, foot) > 1.4 and abs(x0 - middle) > half_width + 0.4 * size:
            if kind == HOUSE:
                paint_house(canvas, own, x0, foot, size, 1 - near)
            else:
                paint_tree(canvas, own, x0, foot, size * own.uniform(0.7, 1.3), 1 - near, noise[3])
    smudge_x, smudge_y, radius = rng.uniform(0, ground.aspect), rng.uniform(), rng.uniform(.05, .12)
    if rng.random() < 0.5:
        away = np.hypot(canvas.x - smudge_x, canvas.y - smudge_y) / radius
        ragged = value_noise(noise[4], canvas.y / 0.07, canvas.x / 0.07)
        canvas.paint(away < 1 + 0.4 * ragged, UNKNOWN, pick_colour(rng, UNKNOWN), far=0.0)


# ---- The mood, which no label tells --------------------------------------------------------------

def surface_detail(labels, noise, y, x, horizon):
    """The texture of each class, (H, W) around 0; on the ground it shrinks towards the horizon."""
    depth = np.log(np.maximum(y - horizon, 0) + 0.08)      # about equal steps along the ground
    folds = value_noise(noise[5], y / 0.15, x / 0.15)
    fields = {UNKNOWN: 0.7 * value_noise(noise[6], y / 0.04, x / 0.04),      # speckles
              SKY: 0.0,                                                      # clouds: see `light`
              MOUNTAIN: 0.16 * np.sin(55 * y + 25 * x + 4 * folds),          # strata of rock
              MEADOW: 0.20 * value_noise(noise[7], 9 * depth, x / 0.045),    # tufts
              WATER: 0.22 * value_noise(noise[8], 12 * depth, x / 0.25),     # ripples
              ROAD: 0.08 * value_noise(noise[9], y / 0.05, x / 0.06),        # asphalt
              TREE: 0.45 * value_noise(noise[10], y / 0.045, x / 0.045),     # foliage
              HOUSE: 0.10 * np.sin(2 * np.pi * y / 0.06),                    # boards
              ROOF: 0.20 * np.sin(2 * np.pi * x / 0.06),                     # tiles
              CAR: 0.0}
    return np.choose(labels, [np.broadcast_to(fields[c], labels.shape) for c in sorted(fields)])


def sky_colours(noise, y, x, horizon, zenith, low_sky, cloud, cover):
    """(sky with clouds, its mirror image in the water), both (H, W, 3)."""
    def gradient(height):                                  # 0 overhead ... 1 at the horizon
        height = np.clip(height, 0, 1)[..., None] ** 1.3
        return zenith * (1 - height) + low_sky * height
    puffs = (0.6 * value_noise(noise[12], y / 0.09, x / 0.28)
             + 0.3 * value_noise(noise[13], y / 0.05, x / 0.1))
    puffs = cover * np.clip(puffs + 0.2, 0, 1)[..., None]
    return gradient(y / horizon) * (1 - puffs) + cloud * puffs, gradient((1 - y) / (1 - horizon))


def light(canvas, noise, horizon, mood):
    """Parts -> (image in 0 ... 1, labels): season, texture, snow, light, lamps, sky, then fog."""
    (sun, zenith, low_sky, darkness), (cover, greyness, fog), (leaves, grass, snow) = (
        TIMES[mood[0]], WEATHERS[mood[1]], SEASONS[mood[2]])
    sun, zenith, low_sky = ((1 - greyness) * np.array(colour) + greyness * 0.9 * np.mean(colour)
                            for colour in (sun, zenith, low_sky))
    y, x, table = canvas.y, canvas.x, np.array(canvas.table)
    for label, colour in ((TREE, leaves), (MEADOW, grass)):
        table[(table[:, 0] == label) & np.isnan(table[:, 1]), 1:4] = colour
    pixels = table[canvas.part]                                              # (H, W, 6)
    labels, image = pixels[..., 0].astype(np.intp), pixels[..., 1:4]
    far, glow = pixels[..., 4], pixels[..., 5:]
    far = np.where(np.isnan(far), np.clip((1 - y) / (1 - horizon), 0, 1), far)[..., None]

    drifts = 0.8 + 0.2 * value_noise(noise[11], y / 0.08, x / 0.1)
    white = (snow * SNOW_COVER[labels] * drifts)[..., None]
    image = image * (1 - white) + np.array([0.93, 0.95, 1.0]) * white
    detail = surface_detail(labels, noise, y, x, horizon)[..., None]
    image = image * (1 + detail * (1 - 0.6 * white)) * sun
    image = image + darkness * glow * (np.array([1.0, 0.82, 0.42]) - image)
    cloud = np.clip(0.35 * low_sky + 0.62 * sun, 0, 1)
    sky, mirrored = sky_colours(noise, y, x, horizon, zenith, low_sky, cloud, cover)
    image = np.where((labels == SKY)[..., None], sky, image)
    image = np.where((labels == WATER)[..., None], (image + mirrored * (1 + detail)) / 2, image)
    haze = fog * far ** 1.2                                # fog: what is far fades into the sky
    return image * (1 - haze) + low_sky * haze, labels


def draw_scene(seed, index, height, width, mood=None):
    """One toy scene -> (image uint8 (H, W, 3) RGB, labels uint8 (H, W)), the same every time.

    mood: one name each of TIMES, WEATHERS and SEASONS; None draws them. The layout depends on
    (seed, index) alone, and sizes of one shape show one scene at different resolutions.
    """
    rng = np.random.default_rng((seed, STREAM_LAYOUT, index))
    if mood is None:
        own = np.random.default_rng((seed, STREAM_MOOD, index))
        mood = [str(own.choice(list(names))) for names in (TIMES, WEATHERS, SEASONS)]
    noise = rng.uniform(-1, 1, (14, 32, 32))               # a lattice for each texture
    canvas, ground = Canvas(height, width), Ground(rng, width / height)
    paint_land(canvas, rng, noise, ground)
    paint_things(canvas, rng, noise, ground)
    image, labels = light(canvas, noise, ground.horizon, mood)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8), labels.astype(np.uint8)


def main():
    """One layout in all 36 moods: rows are times of day, columns weather and season."""
    rows = [np.concatenate([draw_scene(0, 22, 128, 128, (time, *rest))[0]
                            for rest in itertools.product(WEATHERS, SEASONS)], axis=1)
            for time in TIMES]
    Image.fromarray(np.concatenate(rows)).save("toy_moods.png.tmp", format="PNG")
    os.replace("toy_moods.png.tmp", "toy_moods.png")
    print("toy_moods.png: one layout;", ", ".join(TIMES), "(rows) by weather and season (columns)")


if __name__ == "__main__":
    main()
