"""A drawing of both networks (the paper's Figure 2, right), made from the networks themselves.

    python -m extras.figures networks

Both networks run once. Hooks write down what goes into every layer and what comes out: widths,
sizes, skip connections, label map and noise in every SPADE layer. The drawing shows what was
written down, so it cannot say anything else than the code does.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

import oasis

PLAIN, BLOCK, ENCODER, DECODER, CONDITION = "#aeb6bf", "#5b8db8", "#7fb09a", "#d9925b", "#e6c65c"
INK, FAINT = "#2c3e50", "#7b8794"


# ---- What the networks are -----------------------------------------------------------------------


@dataclass
class Layer:
    """What one block, or one convolution outside of the blocks, was seen to do."""
    channels_in: int
    channels: int           # of its output
    side: int               # height of its output
    spades: list = field(default_factory=list)      # (channels, side) of the condition of each
    skip: int = 0           # channels of an earlier layer that are concatenated behind its output


def trace(network, *inputs):
    """Run the network once -> {name of a module: (shapes of its inputs, shape of its output)}."""
    seen, hooks = {}, []

    def write_down(name):
        def hook(module, arguments, output):
            if isinstance(output, torch.Tensor):
                shapes = [tuple(a.shape) for a in arguments if isinstance(a, torch.Tensor)]
                seen[name] = shapes, tuple(output.shape)
        return hook

    for name, module in network.named_modules():
        hooks.append(module.register_forward_hook(write_down(name)))
    with torch.no_grad():
        network.eval()(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


def layer_of(seen, name):
    inputs, output = seen[name]
    return Layer(inputs[0][1], output[1], output[2])


def generator_layers(G, size):
    """The layers of G in their order, [Layer]: first, blocks, last."""
    labels = torch.zeros(1, *size, dtype=torch.int64)
    seen = trace(G, labels, torch.zeros(1, G.noise_dim))
    layers = [layer_of(seen, "first")]
    for i in range(len(G.blocks)):
        layer = layer_of(seen, f"blocks.{i}")
        for name, module in G.blocks[i].named_modules():
            if isinstance(module, oasis.SPADE):
                _, condition = seen[f"blocks.{i}.{name}"][0]
                layer.spades.append((condition[1], condition[2]))
        layers.append(layer)
    return [*layers, layer_of(seen, "last")]


def discriminator_layers(D, size):
    """(layers of the encoder, of the decoder, the last layer). Skips are found by width.

    Where the next layer takes in more channels than a decoder block puts out, the others are
    those of the encoder's output of the same size.
    """
    seen = trace(D, torch.zeros(1, 3, *size))
    encoder = [layer_of(seen, f"encoder.{i}") for i in range(len(D.encoder))]
    decoder = [layer_of(seen, f"decoder.{i}") for i in range(len(D.decoder))]
    last = layer_of(seen, "last")
    for layer, following in zip(decoder, [*decoder[1:], last]):
        layer.skip = following.channels_in - layer.channels
        if layer.skip:
            assert (layer.skip, layer.side) in [(e.channels, e.side) for e in encoder]
    return encoder, decoder, last


# ---- Drawing -------------------------------------------------------------------------------------
# One axis, 100 units wide. Heights grow with the logarithm of the side, widths with that of the
# channels.


class Sheet:
    """A figure with one empty axis, and the few shapes that the drawing needs."""

    def __init__(self, height, inches=8.3):
        self.figure = Figure(figsize=(inches, inches * height / 100))
        self.axis = self.figure.add_axes((0, 0, 1, 1))
        self.axis.set(xlim=(0, 100), ylim=(0, height))
        self.axis.axis("off")

    def text(self, x, y, words, size=8, colour=INK, **options):
        options = {"ha": "center", "va": "center", **options}
        self.axis.text(x, y, words, fontsize=size, color=colour, **options)

    def bar(self, x, y, width, height, colour):
        """A rectangle; x: its left border, y: its middle."""
        self.axis.add_patch(Rectangle((x, y - height / 2), width, height, facecolor=colour,
                                      edgecolor="white", linewidth=1))

    def arrow(self, start, end, colour=FAINT, width=1.0):
        self.axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=7,
                                            shrinkA=0, shrinkB=0, color=colour, linewidth=width))

    def line(self, points, colour, width=1.4):
        xs, ys = zip(*points)
        self.axis.plot(xs, ys, color=colour, linewidth=width, solid_joinstyle="round")

    def picture(self, x, y, side, pixels):
        """A picture with its middle at (x, y)."""
        half = side / 2
        self.axis.imshow(pixels, extent=(x - half, x + half, y - half, y + half), zorder=2,
                         interpolation="nearest", aspect="auto", cmap="gray")
        self.axis.add_patch(Rectangle((x - half, y - half), side, side, fill=False, zorder=3,
                                      edgecolor=INK, linewidth=0.6))


def bar_height(side):
    return 1.2 + 2.6 * max(0, math.log2(side / 2))


def bar_width(channels):
    return 0.9 + 0.29 * math.log2(channels)


def spread(widths, start, end):
    """Left borders of bars of these widths, with equal gaps, from start to end."""
    gap = (end - start - sum(widths)) / max(1, len(widths) - 1)
    places, x = [], start
    for width in widths:
        places.append(x)
        x += width + gap
    return places


def draw_bar(sheet, x, y, layer, colour):
    """A layer's output: its channels above, its side below. Returns the bar's right border."""
    width, height = bar_width(layer.channels), bar_height(layer.side)
    sheet.bar(x, y, width, height, colour)
    sheet.text(x + width / 2, y + height / 2 + 1.1, str(layer.channels), 7.5, weight="bold")
    sheet.text(x + width / 2, y - height / 2 - 1.1, str(layer.side), 7.5, FAINT)
    return x + width


def draw_generator(sheet, G, layers, middle, pictures):
    """Label map and noise at the left, below a band with both; the layers; the picture painted."""
    num_parameters = oasis.count_parameters(G) / 1e6
    sheet.text(1, middle + 14, "Generator G", 11, weight="bold", ha="left")
    sheet.text(1, middle + 11.6, f"{num_parameters:.1f} million parameters, N = {G.num_classes}",
               colour=FAINT, ha="left")
    sheet.picture(6.5, middle + 4.5, 9, pictures["label map"])
    sheet.text(6.5, middle - 1.1, "label map t")
    sheet.picture(6.5, middle - 7.5, 9, pictures["noise"])
    sheet.text(6.5, middle - 13.1, f"noise z, {G.noise_dim}")

    channels = G.noise_dim + G.num_classes
    rail = middle - 14.5
    sheet.bar(14, rail, 71, 2.6, CONDITION)
    sheet.text(49, rail, f"label map ({G.num_classes} channels, one-hot) and noise "
               f"({G.noise_dim}), at the size of each block: {channels} channels")
    sheet.line([(11.4, middle + 4.5), (12.7, middle + 4.5), (12.7, rail), (14, rail)], CONDITION, 2)
    sheet.line([(11.4, middle - 7.5), (12.7, middle - 7.5)], CONDITION, 2)

    widths = [bar_width(layer.channels) for layer in layers]
    places = spread(widths, 17, 85)
    for i, (x, layer) in enumerate(zip(places, layers)):
        is_block = len(layer.spades) > 0
        right = draw_bar(sheet, x, middle, layer, BLOCK if is_block else PLAIN)
        bottom = middle - bar_height(layer.side) / 2 - 2.1
        if is_block or i == 0:
            sheet.arrow((x + widths[i] / 2, rail + 1.3), (x + widths[i] / 2, bottom), CONDITION, 2)
        if is_block:
            assert set(layer.spades) == {(channels, layer.side)}
            sheet.text(x + widths[i] / 2 + 0.6, rail + 2.6, f"{len(layer.spades)} SPADE", 7.5,
                       FAINT, ha="left")
        if i + 1 < len(layers):
            sheet.arrow((right + 0.3, middle), (places[i + 1] - 0.3, middle))
            if layers[i + 1].side == 2 * layer.side:
                sheet.text((right + places[i + 1]) / 2, middle + 1.3, "×2", 8, FAINT)
    sheet.arrow((85.3, middle), (88.6, middle))
    sheet.picture(93.5, middle, 9, pictures["painted"])
    sheet.text(93.5, middle - 5.8, "x̂ = G(z, t)")
    sheet.text(93.5, middle - 8.3, "D shall read t", colour=FAINT)


def draw_discriminator(sheet, D, layers, middle, pictures):
    """A photograph or what G painted; encoder, decoder, skips between them; a class per pixel."""
    encoder, decoder, last = layers
    num_parameters = oasis.count_parameters(D) / 1e6
    sheet.text(1, middle + 16, "Discriminator D", 11, weight="bold", ha="left")
    sheet.text(1, middle + 13.6, f"{num_parameters:.1f} million parameters", colour=FAINT,
               ha="left")
    for name, words, y in (("real", "real x", 5.2), ("painted", "or x̂", -6.6)):
        sheet.picture(6.5, middle + y, 9, pictures[name])
        sheet.text(6.5, middle + y - 5.6, words)
    sheet.arrow((11.8, middle), (14.2, middle))

    widths = [bar_width(layer.channels) for layer in encoder]
    for layer in decoder:
        widths.append(bar_width(layer.channels) + (bar_width(layer.skip) if layer.skip else 0))
    widths.append(bar_width(last.channels))
    places = spread(widths, 15, 85)
    ends = {}                                   # (channels, side) of an encoder layer -> its bar
    for x, layer in zip(places, encoder):
        draw_bar(sheet, x, middle, layer, ENCODER)
        ends[layer.channels, layer.side] = x + bar_width(layer.channels) / 2
    for x, layer in zip(places[len(encoder):], decoder):
        right = draw_bar(sheet, x, middle, layer, DECODER)
        if layer.skip:
            width, height = bar_width(layer.skip), bar_height(layer.side)
            sheet.bar(right, middle, width, height, ENCODER)
            sheet.text(right + width / 2, middle + height / 2 + 1.1, str(layer.skip), 7.5,
                       "#4d7f69", weight="bold")
            top, level = middle + height / 2 + 2.2, middle + height / 2 + 3.4
            start = ends[layer.skip, layer.side]
            sheet.line([(start, top), (start, level), (right + width / 2, level)], ENCODER)
            sheet.arrow((right + width / 2, level), (right + width / 2, top), ENCODER, 1.4)
    draw_bar(sheet, places[-1], middle, last, PLAIN)
    for left, width, right in zip(places, widths, places[1:]):
        sheet.arrow((left + width + 0.1, middle), (right - 0.1, middle))
    sheet.text(places[0], middle - 13.7, "encoder: each block halves the side", 7.5, "#4d7f69",
               ha="left")
    sheet.text(85, middle - 13.7, "decoder: each block doubles it; behind its output stands the "
               "encoder's", 7.5, "#a8622d", ha="right")
    sheet.arrow((85.3, middle), (87.8, middle))
    answers = pictures["label map"], np.zeros((2, 2), np.uint8)
    for picture, words, y in zip(answers, ("for x: t", "for x̂: fake"), (5.2, -6.6)):
        sheet.picture(93.5, middle + y, 9, picture)
        sheet.text(93.5, middle + y - 5.6, words)
    sheet.text(99, middle + 13.6, f"names {last.channels - 1} classes, or fake, at each pixel; "
               "taught to answer:", colour=FAINT, ha="right")


def draw_networks(G, D, size, pictures):
    """Figure of G above D, for images of size (H, W).

    pictures: {"label map", "noise", "real", "painted"}: squares of pixels, (h, w, 3) uint8, or
    (h, w) for grey.
    """
    sheet = Sheet(height=70)
    sheet.text(99, 68.7, "bold: channels of the output; grey below: its side in pixels", 7.5, FAINT,
               ha="right")
    draw_generator(sheet, G, generator_layers(G, size), 53, pictures)
    draw_discriminator(sheet, D, discriminator_layers(D, size), 15.5, pictures)
    sheet.axis.set(xlim=(0, 100), ylim=(0, 70))             # imshow moves them
    return sheet.figure
