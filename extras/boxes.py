"""Networks as boxes, found by running the classes; extras.sizes draws Table 1's with it.

A box is a layer or a block: as high as its output is large, as wide as it has channels, both on a
logarithmic scale. The boxes that read the label map are orange.
"""

import math

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

import data

ORANGE = "#e08030"


def list_layers(network, path=""):
    """[(path, module)]: the layers and blocks of a network; lists of them are opened."""
    found = []
    for name, module in network.named_children():
        here = f"{path}.{name}" if path else name
        # Spectral norm keeps its parts in a list, too, of another type.
        has_lists = any(type(part) is nn.ModuleList for part in module.modules())
        if has_lists:
            found += list_layers(module, here)
        elif next(module.parameters(), None) is not None:
            found.append((here, module))
    return found


@torch.no_grad()
def find_boxes(network, inputs, num_classes):
    """Run the network -> {group: [(channels, side, reads_labels)]}, in the order of computation.

    group: the list that the layer stands in, or its own name. reads_labels: some input has the
    channels of a label map, or of a label map with up to 64 more; no other tensor here has.
    """
    groups, hooks = {}, []

    def watch(path, module):
        def note(module, inputs, output):
            widths = [tensor.shape[1] for tensor in inputs if torch.is_tensor(tensor)]
            reads_labels = any(num_classes <= width <= num_classes + 64 for width in widths)
            group = groups.setdefault(path.rpartition(".")[0] or path, [])
            group.append((output.shape[1], output.shape[2], reads_labels))
        hooks.append(module.register_forward_hook(note))

    for path, module in list_layers(network):
        watch(path, module)
    network(*inputs)
    for hook in hooks:
        hook.remove()
    return groups


def draw(lanes, path):
    """lanes: [(title, colour, groups)], drawn one below the other -> a picture file."""
    figure = Figure(figsize=(13, 1.3 * len(lanes) + 0.3))
    axis = figure.add_axes((0.005, 0.005, 0.99, 0.99))
    ends = []
    y = 0
    for title, colour, groups in lanes:
        axis.text(0, y + 1.3, title, fontsize=10, weight="bold")
        ends.append(draw_lane(axis, y, colour, groups))
        y -= 3.05
    axis.add_patch(Rectangle((0, y + 1.2), 0.5, 0.35, facecolor=ORANGE, edgecolor="black"))
    axis.text(0.7, y + 1.25, "reads the label map.   Above a box the side of its output, below it "
              "the channels.", fontsize=9)
    axis.set(xlim=(-0.2, max(ends) + 0.2), ylim=(y + 0.9, 1.9))
    axis.axis("off")
    with data.write_whole(path) as partial:
        figure.savefig(partial, dpi=90, format="png")


def draw_lane(axis, y, colour, groups):
    """The boxes of one network, around the height y. Returns the x where they end."""
    x = 0
    for name, layers in groups.items():
        start, last_side = x, None
        for channels, side, reads_labels in layers:
            width = 0.25 + 0.05 * math.log2(channels)
            height = 0.1 + 0.18 * math.log2(side)
            axis.add_patch(Rectangle((x, y - height / 2), width, height, edgecolor="black",
                                     facecolor=ORANGE if reads_labels else colour, linewidth=0.5))
            middle = x + width / 2
            if side != last_side:
                axis.text(middle, y + height / 2 + 0.06, side, fontsize=7, ha="center")
            axis.text(middle, y - height / 2 - 0.25, channels, fontsize=6, ha="center")
            last_side = side
            x += width + 0.12
        axis.text(start, y - 1.32, name, fontsize=7, style="italic")
        x = max(x, start + 0.14 * len(name)) + 0.25
    return x
