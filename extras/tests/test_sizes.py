"""extras/sizes.py: the table against counts by hand and figures of the released classes."""

import pytest
import torch
from PIL import Image
from torch import nn

from extras import boxes, sizes

# Parameters of G and D and their 10⁹ multiply-adds, all but OASIS's measured on released classes.
RELEASED = {
    "Pix2pixHD": (182_907_395, 5_838_722, 84.8, 7.8),
    "CC-FPSE": (125_228_099, 5_190_593, 437.8, 4.3),
    "SPADE": (96_492_483, 5_836_930, 181.2, 7.8),
    "OASIS": (74_314_691, 22_258_904, 194.4, 47.2),
}


def test_the_table_and_the_figure(tmp_path, capsys):
    path = tmp_path / "four.png"
    sizes.main(["--figure", str(path)])
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        cells = line[18:].replace("|", "").replace(",", "").split()
        if line[:18].strip() in [row[0] for row in sizes.ROWS] and len(cells) == 6:
            rows[line[:18].strip()] = cells
    assert len(rows) == 6
    for name, networks, paper, _ in sizes.ROWS:
        G, D, both, paper_says, work_G, work_D = rows[name]
        assert (int(G), int(D), float(work_G), float(work_D)) == RELEASED[networks]
        assert int(both) == int(G) + int(D) and paper_says == paper
    with Image.open(path) as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(100_000)) > 10


def test_work_and_boxes_of_a_network_that_is_counted_by_hand():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(5, 4, 3, padding=1)
            last = nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 6, 2, stride=2))
            self.blocks = nn.ModuleList([nn.Conv2d(4, 2, 1), last])
            self.activation = nn.ReLU()

        def forward(self, x):
            x = self.activation(self.first(x))
            for block in self.blocks:
                x = block(x)
            return x

    network, x = Network().eval(), torch.zeros(1, 5, 8, 8)
    assert sizes.count_work(network, x) == 64 * 5 * 4 * 9 + 64 * 4 * 2 + 16 * 2 * 6 * 4
    found = boxes.find_boxes(network, [x], num_classes=5)
    assert found["first"] == [(4, 8, True)]
    assert [box[:2] for box in found["blocks"]] == [(2, 8), (6, 4)]


@pytest.mark.parametrize("name, groups", [
    ("Pix2pixHD", {"first": 1, "down": 4, "residual": 9, "up": 4, "last": 1}),
    ("OASIS", {"first": 1, "blocks": 6, "last": 1})])
def test_the_boxes_are_those_of_the_classes(name, groups):
    (_, _, of_G), (_, _, of_D) = sizes.measure(name, with_boxes=True)
    assert {group: len(layers) for group, layers in of_G.items()} == groups
    reads = [group for group, layers in of_G.items() if any(layer[2] for layer in layers)]
    assert reads == (["first"] if name == "Pix2pixHD" else ["first", "blocks"])
    assert any(layer[2] for layers in of_D.values() for layer in layers) == (name == "Pix2pixHD")
