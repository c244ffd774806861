"""How large the methods of Table 1 are, counted on the classes of this project.

    python -m extras.sizes                                       # beside the paper's figures
    python -m extras.sizes --figure results/four_methods.png     # and the networks as boxes

All figures are for ADE20K: 151 classes with "unknown", one image of 256×256. Work is counted in
multiply-adds of convolutions and matrix products, as PyTorch counts them; norms, activations and
CC-FPSE's conditional convolutions, 0.1 % of its work, are not in it. Nothing is computed: the
tensors are fake, they have shapes and no numbers.
"""

import argparse

import torch
import torchvision
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import data
import oasis
from extras import boxes, ccfpse, pix2pixhd, spade

NUM_CLASSES, SIZE = 151, (256, 256)

NETWORKS = {                        # name: module and options of its command line
    "Pix2pixHD": (pix2pixhd, []),
    "CC-FPSE": (ccfpse, []),
    "SPADE": (spade, ["--model", "spade"]),
    "OASIS": (spade, ["--model", "oasis"]),
}
ROWS = (                            # of Table 1: name, networks, the paper's figure, needs VGG
    ("Pix2pixHD", "Pix2pixHD", "183M", True),
    ("CC-FPSE", "CC-FPSE", "131M", True),
    ("SPADE", "SPADE", "102M", True),
    ("SPADE+", "SPADE", "102M", True),
    ("SPADE+ without VGG", "SPADE", "102M", False),
    ("OASIS", "OASIS", "94M", False),
)
WHAT_THE_PAPER_COUNTS = """\
The paper does not say what its column counts: 183M is Pix2pixHD's G alone (with its discriminators
it is 189M), 102M is SPADE's G and D, 131M is nearest to CC-FPSE's G and D (130.4M; 130.5M with the
unused layers, the statistics and the vectors of spectral norm in the released checkpoints), and 94M
is 3M less than OASIS's G and D.
The released G of CC-FPSE has 125,254,211 parameters, 26,112 of them in layers that are not used."""


@torch.no_grad()
def count_work(network, *inputs):
    """Multiply-adds of one pass."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() // 2


def measure(name, with_boxes=False):
    """[(parameters, multiply-adds, boxes or None)] of the G and of the D of these networks."""
    module, options = NETWORKS[name]
    with FakeTensorMode():
        G, D = module.make_networks(module.parse_settings(["--preset", "ade20k", *options]),
                                    NUM_CLASSES)
        labels, images = torch.zeros(1, *SIZE, dtype=torch.int64), torch.zeros(1, 3, *SIZE)
        of_D = [images, labels]
        if name == "OASIS":
            of_D = [images]                         # its D is not given the label map
        measured = []
        for network, inputs in ((G, [labels, torch.zeros(1, G.noise_dim)]), (D, of_D)):
            found = None
            if with_boxes:
                found = boxes.find_boxes(network.eval(), inputs, NUM_CLASSES)
            measured.append((oasis.count_parameters(network),
                             count_work(network.eval(), *inputs), found))
    return measured


def measure_vgg():
    """(parameters, multiply-adds) of the part of VGG19 that the perceptual loss uses."""
    with FakeTensorMode():
        last = max(spade.PerceptualLoss.LAYERS)
        network = torchvision.models.vgg19().features[:last + 1]
        return oasis.count_parameters(network), count_work(network, torch.zeros(1, 3, *SIZE))


def print_table(measured):
    """A line for each row of Table 1."""
    print(f"{'':20s}parameters{'':37s}|  multiply-adds, 10⁹")
    print(f"{'':18s}{'G':>14s}{'D':>12s}{'both':>13s}{'paper':>8s}  |  {'G':>6s}{'D':>8s}")
    for name, networks, paper, _ in ROWS:
        (G, work_G, _), (D, work_D, _) = measured[networks]
        print(f"{name:18s}  {G:12,}  {D:10,}  {G + D:11,}  {paper:>6s}  |  "
              f"{work_G / 1e9:6.1f}  {work_D / 1e9:6.1f}")
    users = [name for name, _, _, needs_vgg in ROWS if needs_vgg]
    parameters, work = measure_vgg()
    print(f"\n{', '.join(users)} also need VGG19 in training: {parameters:,}\n"
          f"parameters that do not learn, and {work / 1e9:.1f} · 10⁹ multiply-adds for each "
          f"photograph and each\npainted image.\n\n{WHAT_THE_PAPER_COUNTS}")


def draw_figure(measured, path):
    """Four methods, a line of boxes for each network."""
    lanes = []
    for name, (of_G, of_D) in measured.items():
        lanes.append((f"{name}, G: {of_G[0] / 1e6:.1f}M", "#7fa8d0", of_G[2]))
        lanes.append((f"{name}, D: {of_D[0] / 1e6:.1f}M", "#b0b0b0", of_D[2]))
    boxes.draw(lanes, path)


@data.exit_in_words("extras.sizes")
def main(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser("extras.sizes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", metavar="FILE.png", help="draw the networks as boxes")
    args = parser.parse_args(argv)
    measured = {}
    for name in NETWORKS:
        measured[name] = measure(name, with_boxes=bool(args.figure))
    print_table(measured)
    if args.figure:
        draw_figure(measured, args.figure)


if __name__ == "__main__":
    main()
