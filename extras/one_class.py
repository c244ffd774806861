"""What G cannot paint: a label map of a single class, in three ways.

    python -m extras.one_class        # draws one_class.png with the newest run, else assets/toy.pt

A generator of convolutions and nearest-neighbour doubling knows a place by what is near it. Where
the label map is one class and the noise one vector, all places are alike, and it paints one colour,
exactly. Detail needs something that differs from place to place: borders between classes, noise
with a vector per pixel, or, by accident, the zeros that padding puts around the image.
"""

import argparse

import torch

import data
import oasis
import sample

SIZE = 128      # pixels: the middle is farther from the image's borders than G's reach of 54


def build(checkpoint, padding):
    """The averaged generator of a checkpoint, with another padding and the same weights."""
    args = {**checkpoint["generator_args"], "padding": padding}
    return sample.build_generator({**checkpoint, "generator_args": args})


def one_class(checkpoint, label, seed=0):
    """{title: picture (SIZE, SIZE, 3) uint8} of a label map that holds nothing but `label`."""
    labels = torch.full((SIZE, SIZE), label)
    replicate, zeros = (build(checkpoint, padding) for padding in ("replicate", "zeros"))
    vector = oasis.noise_from_seeds([seed], replicate.noise_dim)
    pixels = torch.randn(1, replicate.noise_dim, SIZE, SIZE,
                         generator=torch.Generator().manual_seed(seed))
    return {"replicate, one vector": sample.paint(replicate, labels, vector)[0],
            "zeros, one vector": sample.paint(zeros, labels, vector)[0],
            "replicate, a vector per pixel": sample.paint(replicate, labels, pixels)[0]}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a run's latest.pt (without: as for sample.py)")
    parser.add_argument("--label", default="meadow", help="the class (default: meadow)")
    parser.add_argument("--out", default="one_class.png", help="the picture")
    args = parser.parse_args(argv)
    with data.exit_in_words("extras.one_class"):
        checkpoint = sample.load_checkpoint(sample.find_checkpoint(args.checkpoint))
        names = checkpoint["dataset"]["class_names"]
        if args.label not in names:
            raise data.UserError(f"--label {args.label}: there are {', '.join(names)}")
        pictures = one_class(checkpoint, names.index(args.label))
        with data.write_whole(args.out) as partial:
            data.picture_grid([list(pictures.values())], list(pictures), 2).save(partial)
        for title, picture in pictures.items():
            spread = picture.reshape(-1, 3).std(0).max()
            print(f"{title:30s} standard deviation {spread:5.2f} of 255")


if __name__ == "__main__":
    main()
