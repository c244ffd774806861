"""A run's model as a small file to share: what assets/toy.pt was made with.

    python -m extras.export runs/toy/latest.pt --out model.pt

Keeps the average of G, D and the run's segmenter, so that the file can be drawn from and scored
like a run. Weights become bfloat16 and the file is compressed. Statistics of batch norm
and the vectors of spectral norm, which are small, keep float32. Optimizers, G itself, the rows of
losses and folders of this machine go, so a training cannot go on from it.
"""

import argparse
import zipfile
from pathlib import Path

import torch

import data
import sample

KEPT = ("format", "settings", "dataset", "generator_class", "generator_args", "discriminator_class",
        "discriminator_args", "ema", "discriminator", "step", "seconds")
FLOAT32 = ("running_mean", "running_var", "_u", "_v")       # endings of names


def halve(content):
    """The same dictionary, its float tensors in bfloat16 but for those of FLOAT32."""
    halved = {}
    for name, value in content.items():
        if isinstance(value, dict):
            value = halve(value)
        elif torch.is_tensor(value) and value.is_floating_point() and not name.endswith(FLOAT32):
            value = value.to(torch.bfloat16)
        halved[name] = value
    return halved


def compress(source, target):
    """Rewrite a file of torch.save, a zip archive, with compression; torch.load reads it."""
    with (zipfile.ZipFile(source) as plain,
          zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as small):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))


def export(path, out):
    """Checkpoint file of a run -> small checkpoint file. UserError."""
    checkpoint = sample.load_checkpoint(path)
    content = {name: checkpoint[name] for name in KEPT if name in checkpoint}
    content["settings"] = dict(content["settings"], run_dir="", data_root="")
    segmenter = Path(path).with_name("segmenter.pt")
    if "segmenter" in checkpoint:                               # of an exported file
        content["segmenter"] = checkpoint["segmenter"]
    elif segmenter.is_file():
        content["segmenter"] = sample.read_tensors(segmenter)
    with data.write_whole(out) as partial:
        torch.save(halve(content), partial)
        compressed = partial.with_suffix(".small")
        compress(partial, compressed)
        compressed.replace(partial)
    print(f"{out}: {Path(out).stat().st_size / 1e6:.2f} MB")


@data.exit_in_words("extras.export")
def main(argv=None):
    parser = argparse.ArgumentParser("python -m extras.export", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="FILE", help="latest.pt or best.pt of a run")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    args = parser.parse_args(argv)
    export(args.checkpoint, args.out)


if __name__ == "__main__":
    main()
