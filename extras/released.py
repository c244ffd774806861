"""Turn the authors' released files into a checkpoint that all scripts of this project take.

    python -m extras.released latest_EMA.pth --preset ade20k --data-root ADE --out ade20k.pt
    python sample.py --checkpoint ade20k.pt --labels maps
    python metrics.py --checkpoint ade20k.pt --data-root ADE

`*_EMA.pth` (or `*_G.pth`) holds the generator. The discriminator is taken from the `*_D.pth` beside
it if there is one; re-creation needs it. The files do not name their dataset, hence --preset. The
names of ADE20K's classes come from its data root; without it they are "class 1", "class 2", ...

Two things differ from our networks beside the names of tensors. γ and β of a SPADE layer are two
convolutions there and one here. The fake class is output channel 0 there; here it is the last one,
as in the paper. Images and logits agree to 1e-5 with figures that were measured on the released
code (extras/tests/test_released.py).
"""

import argparse
import re
from pathlib import Path

import torch

import data
import oasis
import sample

# Names of the released code -> names of oasis.py. Applied one after the other, in this order.
NAMES = (
    (r"^body_down\.", "encoder."), (r"^body_up\.", "decoder."), (r"^layer_up_last\.", "last."),
    (r"^conv_img\.", "last."), (r"^fc\.", "first."), (r"^body\.", "blocks."),
    (r"\.mlp_shared\.0\.", ".shared."), (r"\.mlp_gamma\.", ".gamma_beta."),
    (r"\.first_norm\.", ".norm."), (r"\.conv1\.\d\.", ".conv_1."), (r"\.conv2\.\d\.", ".conv_2."),
    (r"\.weight_orig$", ".parametrizations.weight.original"),
    (r"\.weight_([uv])$", r".parametrizations.weight.0._\1"))


def translate(state):
    """{name: tensor} of a released file -> {name: tensor} for oasis.Generator or Discriminator."""
    translated = {}
    for name, tensor in state.items():
        if ".mlp_beta." in name:
            continue                                        # is appended to its gamma
        if ".mlp_gamma." in name:
            tensor = torch.cat([tensor, state[name.replace("gamma", "beta")]])
        for old, new in NAMES:
            name = re.sub(old, new, name)
        translated[name] = tensor
    return translated


def read(path, needed):
    """The tensors of a released file; UserError if it has none of the name `needed`."""
    state = sample.read_tensors(path)
    if not isinstance(state, dict) or needed not in state:
        raise data.UserError(f"{path}: is not the file of the authors' released code that is "
                              f"expected here; it holds no {needed}")
    return state


def count(state, prefix):
    """Number of blocks: the tensors are called prefix.0, prefix.1, ..."""
    numbers = [int(name.split(".")[1]) for name in state if name.startswith(prefix + ".")]
    return 1 + max(numbers)


def fill(network, state, path):
    """The network with the released tensors, in eval mode, without gradients."""
    try:
        network.load_state_dict(translate(state))
    except RuntimeError as error:
        raise data.UserError(f"{path}: does not fit the networks of the paper: "
                              f"{str(error).splitlines()[1].strip()}"[:200]) from error
    return network.requires_grad_(False).eval()


def load_released_generator(path, noise_dim=64):
    """G from the authors' *_EMA.pth or *_G.pth. UserError for other files.

    Sizes are read off the shapes of the tensors. They do not tell how many of the input channels
    are noise: noise_dim (0 for a model that was trained without 3D noise).
    """
    state = read(path, "fc.weight")
    network = oasis.Generator(
        num_classes=state["fc.weight"].shape[1] - noise_dim, noise_dim=noise_dim,
        channels=state["conv_img.weight"].shape[1], num_blocks=count(state, "body"),
        spade_hidden=len(state["body.0.norm_0.mlp_shared.0.weight"]))
    return fill(network, state, path)


def load_released_discriminator(path):
    """D from the authors' *_D.pth. UserError for other files."""
    state = read(path, "layer_up_last.weight")
    widths = []
    for i in range(count(state, "body_down")):
        widths.append(len(state[f"body_down.{i}.conv2.1.weight_orig"]))
    for name in ("layer_up_last.weight", "layer_up_last.bias"):
        state[name] = state[name].roll(-1, dims=0)      # fake: the first channel -> the last one
    network = oasis.Discriminator(len(state["layer_up_last.weight"]) - 1, widths)
    return fill(network, state, path)


def describe_dataset(preset, num_classes, data_root):
    """The checkpoint's "dataset": names, colours, size. UserError if N is another dataset's."""
    if preset == "ade20k" and not data_root:
        names = ["unknown"] + [f"class {k}" for k in range(1, 151)]
        palette, ignore_label = data.make_palette(151, 0), 0
    else:
        names, palette, ignore_label = data.read_class_table(preset, data_root)
    if num_classes != len(names):
        raise data.UserError(f"the generator draws {num_classes} classes, but {preset} has "
                              f"{len(names)}; --preset must name the dataset it was trained on")
    return {"preset": preset, "class_names": list(names), "palette": palette.tolist(),
            "ignore_label": ignore_label, "size": list(data.SIZES[preset])}


def make_checkpoint(path, preset, data_root=""):
    """Released file of a generator, and its *_D.pth where there is one -> checkpoint dictionary."""
    path = Path(path)
    G = load_released_generator(path)
    dataset = describe_dataset(preset, G.num_classes, data_root)
    height, width = dataset["size"]
    checkpoint = {
        "format": "oasis-run-2", "dataset": dataset, "step": 0, "seconds": 0.0, "best": {},
        "settings": {"preset": preset, "data_root": data_root, "height": height, "width": width,
                     "seed": 0, "data_seed": 0},
        "generator_class": "oasis.Generator", "generator_args": G.config, "ema": G.state_dict()}
    beside = path.with_name(re.sub(r"(EMA|G)\.pth$", "D.pth", path.name))
    if beside != path and beside.is_file():
        D = load_released_discriminator(beside)
        checkpoint["discriminator_class"] = "oasis.Discriminator"
        checkpoint["discriminator_args"] = D.config
        checkpoint["discriminator"] = D.state_dict()
    return checkpoint


@data.exit_in_words("extras.released")
def main(argv=None):
    parser = argparse.ArgumentParser("python -m extras.released", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", help="the authors' *_EMA.pth or *_G.pth")
    parser.add_argument("--preset", required=True, choices=("ade20k", "coco-stuff", "cityscapes"))
    parser.add_argument("--data-root", default="", metavar="DIR", help="the dataset's folder, "
                        "remembered in the checkpoint; names ADE20K's classes")
    parser.add_argument("--out", required=True, metavar="FILE", help="the checkpoint to write")
    args = parser.parse_args(argv)
    checkpoint = make_checkpoint(args.file, args.preset, args.data_root)
    with data.write_whole(args.out) as partial:
        torch.save(checkpoint, partial)
    networks = "generator and discriminator"
    if "discriminator" not in checkpoint:
        networks = "generator (no *_D.pth beside it, so photos cannot be re-created)"
    print(f"{args.out}: {networks}, {len(checkpoint['dataset']['class_names'])} classes")


if __name__ == "__main__":
    main()
