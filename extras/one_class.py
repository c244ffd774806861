"""What G cannot paint: a label map of a single class, in three ways.

    python -m extras.one_class        # draws one_class.png with the newest run, else assets/toy.pt

A generator of convolutions and nearest-neighbour doubling knows a place by what is near it. Where
the label map is one class and the noise one vector, all places are alike, and it paints one colour,
exactly. Detail needs something that differs from place to place: borders between classes, noise at
every pixel, or, by accident, the zeros that padding puts around the image.

The third picture has noise at every pixel: of a model that was trained so, in those channels; of
another model, in all of them.
"""

import argparse

import torch

import data
import oasis
import sample

SIZE = 128      # pixels: the middle is farther from the image's borders than G's reach of 54


def build(checkpoint, padding):
    """The averaged generator of a checkpoint, with another padding and the same weights."""
    arguments = dict(checkpoint["generator_args"], padding=padding)
    return sample.build_generator(dict(checkpoint, generator_args=arguments))


def paint_one_class(checkpoint, label, seed=0):
    """{title: picture (SIZE, SIZE, 3) uint8} of a label map that holds nothing but `label`."""
    labels = torch.full((SIZE, SIZE), label)
    replicate, zeros = build(checkpoint, "replicate"), build(checkpoint, "zeros")
    noise_dim = replicate.noise_dim
    per_pixel = replicate.pixel_noise or noise_dim
    vector = oasis.draw_noise([seed], (SIZE, SIZE), noise_dim)
    field = oasis.draw_noise([seed], (SIZE, SIZE), noise_dim, per_pixel)
    return {"replicate, one vector": sample.paint(replicate, labels, vector)[0],
            "zeros, one vector": sample.paint(zeros, labels, vector)[0],
            f"replicate, {per_pixel} of {noise_dim} per pixel":
                sample.paint(replicate, labels, field)[0]}


def find_class(checkpoint, name):
    """The id of a class of this name; of the class that is not ignored and comes first, for None.

    UserError: there is none of this name.
    """
    names = checkpoint["dataset"]["class_names"]
    if name is None and "meadow" in names:
        name = "meadow"
    if name is None:
        return 1 if checkpoint["dataset"]["ignore_label"] == 0 else 0
    if name not in names:
        raise data.UserError(f"--label {name}: there are {', '.join(names)}")
    return names.index(name)


def draw(path, out, label=None):
    """A checkpoint's file -> the picture, at `out`; prints how much each part of it varies."""
    checkpoint = sample.load_checkpoint(path)
    pictures = paint_one_class(checkpoint, find_class(checkpoint, label))
    with data.write_whole(out) as partial:
        data.picture_grid([list(pictures.values())], list(pictures), 2).save(partial)
    for title, picture in pictures.items():
        spread = picture.reshape(-1, 3).std(axis=0).max()
        print(f"{title:34s} standard deviation {spread:5.2f} of 255")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a run's latest.pt (without: as for sample.py)")
    parser.add_argument("--label", metavar="NAME", help="the class (default: meadow, or the first)")
    parser.add_argument("--out", default="one_class.png", metavar="FILE", help="the picture")
    args = parser.parse_args(argv)
    with data.exit_in_words("extras.one_class"):
        draw(sample.find_checkpoint(args.checkpoint), args.out, args.label)


if __name__ == "__main__":
    main()
