"""Toy scenes: small landscapes drawn by the program, so that OASIS runs where no data set is.

    python toy.py          # draws toy_moods.png: four layouts, in all named moods and in mixtures

A scene has three parts, as a photograph has:

  layout    where sky, sun, mountains, meadow, water, road, trees, houses and cars are.
            The label map tells it.
  mood      time of day, season and weather: a mixture of six named moods. It changes the colours of
            all classes together. No label tells it: G must take it from the vector of its noise.
  texture   grass, leaves, tiles, ripples: random numbers at every pixel. Neither the label map nor
            the mood tells it: G must make it from noise at every pixel (oasis.draw_noise).

Without texture (draw_scene(..., texture=False)) a colour depends on the class, the mood and the
distances to borders of the label map, and on nothing else. A generator with one noise vector per
image can paint such flat scenes. It cannot paint random texture: where label and noise are constant
it paints one colour. If D asks for texture all the same, G makes stripes and grids instead.

Lengths are in picture heights, y downwards. So a scene looks the same at every resolution.
"""

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.special import softmax

# A mood is six weights that sum to 1, one for each named mood. Mixtures are scenes too: a gradual
# change of the noise can be a gradual change of the mood, and no way between two moods is unreal.
MOODS = dict(zip(["noon", "autumn", "dusk", "night", "snow", "fog"], np.eye(6)))
PURITY = 2.5            # the larger, the more of the drawn moods are nearly one of the six

# A row is a class: its name, its colour in pictures of label maps, and for each mood two colours of
# its pixels, body/rim. SHADING says where the rim is.
#        label  noon          autumn        dusk          night         snow          fog
COLOURS = """
unknown  000000 8f86a8/b3abc6 9a7f78/b89c90 6b4a78/a06a86 2c2f5e/4a4f86 aab4c4/ffffff b0b0aa/bcbcb6
sky      78bef0 4aa2e2/bfe4f2 9dc3d6/fae6bd 7a4a98/f2a072 101a50/2a4286 98b8e0/dde8f3 b3bcbd/d6d7cf
sun      ffeb78 fff2a6/fff2a6 fff0bc/fff0bc ffe694/ffe694 f6f2d4/f6f2d4 fffbe6/fffbe6 fffdf2/fffdf2
mountain 8c7896 6f86bd/a9bbe0 9a8092/cba9a4 94407c/d87c88 33408a/6674c0 8099cc/c4d2ec 98a8b4/bac6ca
meadow   82c850 6dbb45/a9d56c d3a84a/e6c47c 84506c/b8706c 1d474b/28585a eaf1f8/dbe6f1 a3b294/ccd2c2
water    285ac8 2a88c8/6cbce2 5f95ac/d2e2d8 8d4aa4/d08098 2c52a6/5a80cc 5c8fc4/a8cae6 829ca8/c6d1d4
road     6e6e78 666a78/b4b0a8 776a68/b8a894 443862/94607a 2b2b50/565a92 929eb0/cdd6e0 979a99/c9c9c0
tree     146e32 2a8445/6fbd50 d9641e/f4a43c 36405e/586080 10463e/2e866c 8fb4b0/c8dcdc 76907e/a6b5a2
wood     785032 7b5036/5c3a28 704630/543220 40202e/30141e 1c1430/120c22 6a4c44/503a36 857468/73655c
wall     ebc88c faeed6/e8d2aa f6dfb8/d3ac7c f0a088/cc8470 6470b0/4a5890 f2dfc6/cdb7a2 dcd4c4/c4b9a8
roof     be4632 d9553b/ee8a68 b8482e/d87850 8f3858/b45468 55306a/7c5090 bcc6e2/f4f7fc aa7468/c09a8e
glass    96e6e6 4f86b4/4f86b4 4a6f86/4a6f86 ffdb8c/ffdb8c ffd866/ffd866 4f76a0/4f76a0 7c929e/7c929e
car      f028a0 e0362f/f2685a cc3a22/ee8454 b82a58/d85070 74307c/a85cae d8505a/f09aa0 b0625a/c88e86
wheel    3c2846 2a2b34/2a2b34 302a2a/302a2a 281a38/281a38 0c0e28/0c0e28 30343f/30343f 5d5e5e/5d5e5e
"""
ROWS = [line.split() for line in COLOURS.strip().splitlines()]
CLASSES = [row[0] for row in ROWS]
(UNKNOWN, SKY, SUN, MOUNTAIN, MEADOW, WATER, ROAD,
 TREE, WOOD, WALL, ROOF, GLASS, CAR, WHEEL) = range(len(CLASSES))


def read_colours(texts):
    """Texts of hexadecimal digits -> their bytes as numbers, (len(texts), bytes of a text)."""
    return np.array([list(bytes.fromhex(text)) for text in texts])


PALETTE = read_colours(row[1] for row in ROWS).astype(np.uint8)              # (N, 3)
PAIRS = read_colours("".join(row[2:]).replace("/", "") for row in ROWS)
TABLE = PAIRS.reshape(len(CLASSES), len(MOODS), 2, 3) / 255     # (class, mood, body or rim, RGB)
# The rim of these classes lies along borders with other classes: (which ones, how wide it is).
SHADING = {SKY: ((MOUNTAIN, MEADOW, WATER), 0.14), MEADOW: ((SKY, MOUNTAIN, WATER), 0.10),
           MOUNTAIN: ((SKY,), 0.05), WATER: ((MEADOW,), 0.03), ROAD: ((MEADOW,), 0.02)}
# The rim of all others is what is nearer than this to their upper edge: light, or snow, from above.
UPPER_RIM = 0.04
HALO = np.array([1.0, 0.95, 0.8])         # colour of the light around the sun

# Random texture: (vertical length, horizontal length, strength). A field of Gaussian numbers is
# smoothed over these lengths. It multiplies the colours by a factor of mean 1, whose standard
# deviation is the strength. Blades of grass are upright, ripples and tiles lie flat.
TEXTURE = {SKY: (0.02, 0.04, 0.08), MOUNTAIN: (0.03, 0.012, 0.10), MEADOW: (0.025, 0.007, 0.14),
           WATER: (0.006, 0.03, 0.11), ROAD: (0.007, 0.007, 0.08), TREE: (0.016, 0.016, 0.19),
           WALL: (0.012, 0.03, 0.08), ROOF: (0.007, 0.02, 0.13), WOOD: (0.04, 0.006, 0.08)}

STREAM_LAYOUT, STREAM_MOOD, STREAM_TEXTURE = 100, 101, 102     # purposes of random numbers


# ---- The layout, which the label map tells -------------------------------------------------------

class Canvas:
    """A label map (H, W) filled back to front: later shapes cover earlier ones."""

    def __init__(self, height, width):
        self.y = ((np.arange(height) + 0.5) / height)[:, None]               # (H, 1)
        self.x = ((np.arange(width) + 0.5) / height)[None, :]                # (1, W)
        self.labels = np.full((height, width), SKY, dtype=np.uint8)

    def fill(self, label, mask):
        """Set the label wherever the mask is true, which broadcasts to (H, W)."""
        np.putmask(self.labels, np.broadcast_to(mask, self.labels.shape), label)

    def box(self, label, x0, y0, half_width, half_height):
        self.fill(label, (abs(self.x - x0) < half_width) & (abs(self.y - y0) < half_height))

    def disc(self, label, x0, y0, radius, flatness=1.0):
        self.fill(label, np.hypot(self.x - x0, (self.y - y0) * flatness) < radius)


def add_land(canvas, rng, aspect):
    """Sun, mountains, meadow and lake. Returns the height of the horizon, 0.44 ... 0.54."""
    x, y, horizon = canvas.x, canvas.y, rng.uniform(0.44, 0.54)
    if rng.random() < 0.75:
        canvas.disc(SUN, aspect * rng.uniform(0.1, 0.9), rng.uniform(0.11, 0.22), 0.07)
    for _ in range(rng.integers(1, 5)):
        peak, rise, slope = rng.uniform(0, aspect), rng.uniform(0.14, 0.36), rng.uniform(0.5, 1)
        canvas.fill(MOUNTAIN, (y < horizon) & (y > horizon - rise + slope * abs(x - peak)))
    roll = 0.02 * np.sin(rng.uniform(0, 6) + rng.uniform(2, 5) * x)
    canvas.fill(MEADOW, y > horizon + roll)
    if rng.random() < 0.6:
        across, along = (x - rng.uniform(0, aspect)) / rng.uniform(0.3, 0.7), y - horizon - 0.05
        lake = np.hypot(across, along / rng.uniform(0.06, 0.1)) < 1
        canvas.fill(WATER, lake & (y > horizon + roll))
    return horizon


def add_tree(canvas, rng, x0, foot, size):
    """A round crown, or a fir; either on a trunk."""
    size *= 1.15                                                             # above the roofs
    y = (foot - canvas.y) / size                                             # 0 foot ... 1 top
    canvas.box(WOOD, x0, foot - 0.2 * size, 0.05 * size + 0.008, 0.2 * size)      # the trunk
    if rng.random() < 0.55:
        canvas.disc(TREE, x0, foot - 0.66 * size, 0.34 * size, rng.uniform(0.8, 1.2))
    else:
        half = 0.26 * (1 - y) + 0.12 * (3.7 * (1 - y) % 1)                   # three tiers
        canvas.fill(TREE, (abs(canvas.x - x0) < half * size) & (y > 0.2) & (y < 1))


def add_house(canvas, rng, x0, foot, size):
    """A wall with two windows and a door, and a roof with a chimney."""
    half, wall, roof = 0.5 * size, 0.44 * size, rng.uniform(0.3, 0.42) * size
    chimney = x0 + rng.choice([-0.5, 0.5]) * half
    canvas.box(ROOF, chimney, foot - wall - 0.5 * roof, 0.07 * size, 0.5 * roof)
    rise = (foot - wall - canvas.y) / roof                                   # 0 eaves ... 1 ridge
    inside = abs(canvas.x - x0) < 1.18 * half * (1 - rng.choice([0.35, 1.0]) * rise)
    canvas.fill(ROOF, inside & (rise >= 0) & (rise < 1))                    # hipped, or a gable
    canvas.box(WALL, x0, foot - 0.5 * wall, half, 0.5 * wall)
    for x in (x0 - 0.58 * half, x0 + 0.58 * half):
        canvas.box(GLASS, x, foot - 0.54 * wall, 0.09 * size, 0.09 * size)
    canvas.box(WOOD, x0, foot - 0.3 * wall, 0.07 * size, 0.3 * wall)


def add_car(canvas, x0, foot, size, way):
    """From its side, driving to the right (way 1) or to the left (-1): size is its length."""
    x, y = (canvas.x - x0) / size * way, (foot - canvas.y) / size
    canvas.fill(CAR, (abs(x) < 0.5) & (y > 0.08) & (y < 0.30 - 0.06 * (x > 0.3)))
    canvas.fill(CAR, (abs(x + 0.08) < 0.44 - 0.4 * y) & (y > 0.25) & (y < 0.52))
    panes = (abs(x + 0.08) < 0.37 - 0.4 * y) & (abs(x + 0.06) > 0.03)
    canvas.fill(GLASS, panes & (y > 0.28) & (y < 0.46))
    # The lamp in front is of the same class as the panes, since both shine at night.
    canvas.fill(GLASS, (x > 0.42) & (x < 0.5) & (abs(y - 0.18) < 0.05))
    for x in (x0 - 0.28 * size, x0 + 0.28 * size):
        canvas.disc(WHEEL, x, foot - 0.09 * size, 0.115 * size)


def add_things(canvas, rng, aspect, horizon):
    """Trees and houses in two rows, a road in front with one or two cars; now and then a rock."""
    # Each row is divided into places, each with a tree, a house or nothing.
    for row, foot, scale in ((0, horizon + 0.08, 0.28), (1, 0.74, 0.4)):
        places = max(1, round((3 - row) * aspect))
        things = rng.choice([None, add_tree, add_house], places, p=[0.3, 0.4, 0.3])
        for place, add_thing in enumerate(things):
            x0, size = aspect * (place + rng.uniform(0.35, 0.65)) / places, rng.uniform(0.9, 1.2)
            if add_thing:
                add_thing(canvas, rng, x0, foot, size * scale)
    if rng.random() < 0.2:
        canvas.disc(UNKNOWN, rng.uniform(0, aspect), 0.76, rng.uniform(0.05, 0.08), 1.3)
    if rng.random() < 0.85:
        slope = rng.uniform(-0.05, 0.05)
        middle = 0.88 + slope * (canvas.x - aspect / 2) + 0.02 * np.sin(3 * canvas.x)
        canvas.fill(ROAD, abs(canvas.y - middle) < 0.085)
        places = max(1, round(2 * aspect))
        for place in rng.permutation(places)[:rng.integers(1, places + 1)]:
            x0 = aspect * (place + rng.uniform(0.4, 0.6)) / places
            foot = 0.92 + slope * (x0 - aspect / 2) + 0.02 * np.sin(3 * x0)
            add_car(canvas, x0, foot, rng.uniform(0.32, 0.38), rng.choice([-1, 1]))


# ---- The colours: the mood, which no label tells -------------------------------------------------

def distance_to(classes, labels):
    """From every pixel to the border of the nearest of these classes, in picture heights (H, W)."""
    outside = ~np.isin(labels, classes)
    if outside.all():                            # the transform would have nothing to measure from
        return np.full(labels.shape, np.inf)
    return (distance_transform_edt(outside) - 0.5) / len(labels)


def depth_below_edge(labels):
    """How far above each pixel its class ends, in picture heights (H, W); inf: not in the image."""
    row, begins = np.arange(len(labels))[:, None], np.full(labels.shape, -np.inf)
    begins[1:] = np.where(labels[1:] != labels[:-1], row[1:], -np.inf)
    return (row - np.maximum.accumulate(begins) + 1) / len(labels)


def light(labels, mood):
    """The flat scene: label map (H, W) and mood, six weights -> image (H, W, 3) in 0 ... 1.

    It is linear in the weights, whose sum is 1.
    """
    body, rim = np.einsum("m,nmkc->knc", mood, TABLE)[:, labels]             # (H, W, 3) each
    at_rim = np.clip(1.5 - depth_below_edge(labels) / UPPER_RIM, 0, 1)
    for label, (others, width) in SHADING.items():
        np.copyto(at_rim, np.exp(-distance_to(others, labels) / width), where=labels == label)
    image = body + (rim - body) * at_rim[..., None]
    # Things cast a short shadow on the ground they stand on.
    shadow = np.exp(-distance_to((WOOD, WALL, CAR, WHEEL, UNKNOWN), labels) / 0.03)
    image *= (1 - 0.2 * shadow * np.isin(labels, (MEADOW, ROAD)))[..., None]
    # The sun lights what is near it.
    halo = 0.35 * np.exp(-distance_to(SUN, labels) / 0.05) * (labels != SUN)
    image += (HALO - image) * halo[..., None]
    return image


def draw_mood(seed, index):
    """Six weights that sum to 1, a smooth function of six Gaussian numbers; G's noise is of 64."""
    rng = np.random.default_rng((seed, STREAM_MOOD, index))
    return softmax(PURITY * rng.standard_normal(len(MOODS)))


# ---- The texture, which nothing tells ------------------------------------------------------------

def add_texture(image, labels, rng):
    """Flat scene (H, W, 3) in 0 ... 1 and its label map (H, W) -> the scene with random texture."""
    factor = np.ones(labels.shape)
    for label, (vertical, horizontal, strength) in TEXTURE.items():
        field = rng.standard_normal(labels.shape)
        field = gaussian_filter(field, (vertical * len(labels), horizontal * len(labels)))
        # Smoothing makes the numbers smaller, the more the larger the picture is.
        np.copyto(factor, 1 + strength * field / field.std(), where=labels == label)
    return np.clip(image * factor[..., None], 0, 1)


# ---- A scene -------------------------------------------------------------------------------------

def draw_scene(seed, index, height, width, mood=None, texture=True):
    """One toy scene -> (image uint8 (H, W, 3) RGB, labels uint8 (H, W)), the same every time.

    mood: a name from MOODS, or six weights with sum 1; None: what draw_mood draws. Layout and
    texture depend on (seed, index) alone. At another size of the same shape the layout is the same;
    the texture is another one, of equal strength and lengths. texture=False: the flat scene.
    """
    if mood is None:
        mood = draw_mood(seed, index)
    elif isinstance(mood, str):
        mood = MOODS[mood]
    rng = np.random.default_rng((seed, STREAM_LAYOUT, index))
    canvas, aspect = Canvas(height, width), width / height
    horizon = add_land(canvas, rng, aspect)
    add_things(canvas, rng, aspect, horizon)
    image = light(canvas.labels, mood)
    if texture:
        rng = np.random.default_rng((seed, STREAM_TEXTURE, index))
        image = add_texture(image, canvas.labels, rng)
    return (image * 255).round().astype(np.uint8), canvas.labels


def main():
    """Rows are layouts: the label map, the named moods, then moods as they are drawn."""
    rows = []
    for layout in range(4):
        moods = list(MOODS)
        for k in range(4):
            moods.append(draw_mood(0, 4 * layout + k))
        _, labels = draw_scene(0, layout, 128, 128)
        row = [PALETTE[labels]]
        for mood in moods:
            image, _ = draw_scene(0, layout, 128, 128, mood)
            row.append(image)
        rows.append(np.hstack(row))
    Image.fromarray(np.vstack(rows)).save("toy_moods.png")
    print("toy_moods.png: four layouts; label map,", ", ".join(MOODS), "and four mixtures")


if __name__ == "__main__":
    main()
