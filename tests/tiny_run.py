"""A checkpoint with small networks and random weights, in the form that train.py writes.

    path = make_checkpoint("runs/toy/latest.pt")                     # toy's classes, 32×32
    path = make_checkpoint("run.pt", data_root=root, preset="folder", class_names=["sky", "road"])
"""

from pathlib import Path

import torch

import data
import oasis


@torch.no_grad()
def vivid(network):
    """Unit-gain weights instead of the initial, nearly silent ones: pictures with contrasts."""
    numbers = torch.Generator().manual_seed(0)
    for p in network.parameters():
        if p.ndim > 1:
            p.normal_(std=p[0].numel() ** -0.5, generator=numbers)
    for _ in range(10):        # spectral norm and batch norm get to know the new weights
        if isinstance(network, oasis.Generator):
            network(torch.randint(network.num_classes, (4, 32, 32), generator=numbers),
                    torch.randn(4, network.noise_dim, generator=numbers))
        else:
            network(torch.randn(4, 3, 32, 32, generator=numbers))
    return network.eval()


def make_checkpoint(path, *, preset="toy", data_root="", size=(32, 32), class_names=None,
                    ignore_label=0, step=7, segmenter=None, **settings):
    """Writes a checkpoint of networks that draw and segment at once, but nonsense -> its path.

    class_names: those of the preset by default. Sizes must be multiples of 4.
    """
    if class_names is None:
        names, palette, ignore_label = data.read_class_table(preset, data_root or None)
    else:
        names, palette = class_names, data.make_palette(len(class_names), ignore_label)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)                   # spectral norm starts from random vectors
        G = vivid(oasis.Generator(len(names), 8, channels=2, num_blocks=3, spade_hidden=8))
        D = vivid(oasis.Discriminator(len(names), channels=(8, 8, 8)))
    settings = {"preset": preset, "data_root": str(data_root), "subset": "", "height": size[0],
                "width": size[1], "seed": 0, "data_seed": 0, "batch_size": 2, **settings}
    checkpoint = {
        "format": "oasis-run-2", "settings": settings, "step": step, "seconds": 0.0, "best": {},
        "dataset": {"preset": preset, "class_names": list(names), "palette": palette.tolist(),
                    "ignore_label": ignore_label, "size": list(size)},
        "generator_class": "oasis.Generator", "generator_args": G.config,
        "discriminator_class": "oasis.Discriminator", "discriminator_args": D.config,
        "ema": G.state_dict(), "discriminator": D.state_dict()}
    if segmenter is not None:
        checkpoint["segmenter"] = segmenter
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return Path(path)
