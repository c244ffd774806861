"""Checkpoints in the layout of the authors' released code, filled with reproducible numbers.

Names and shapes are facts about their files; golden/released_checkpoint_keys.txt lists a full-size
one. The numbers follow the recipe with which golden/released_code_small.json was measured: float64
draws of a NumPy generator that is seeded by the tensor's name.
"""

import zlib

import numpy as np
import torch


def rng(*key):
    return np.random.RandomState(zlib.crc32("/".join(map(str, key)).encode()) & 0x7FFFFFFF)


def convolution(name, c_out, c_in, kernel, spectral, bias=True):
    shapes = {f"{name}.weight" + "_orig" * spectral: (c_out, c_in, kernel, kernel)}
    if spectral:
        shapes |= {f"{name}.weight_u": (c_out,), f"{name}.weight_v": (c_in * kernel ** 2,)}
    return shapes | ({f"{name}.bias": (c_out,)} if bias else {})


def spade(name, features, seen, hidden):
    return {f"{name}.first_norm.running_mean": (features,),
            f"{name}.first_norm.running_var": (features,),
            f"{name}.first_norm.num_batches_tracked": (),
            **convolution(f"{name}.mlp_shared.0", hidden, seen, 3, False),
            **convolution(f"{name}.mlp_gamma", features, hidden, 3, False),
            **convolution(f"{name}.mlp_beta", features, hidden, 3, False)}


def generator_layout(channels, label_channels, noise_dim=64, hidden=128):
    """{name: shape} of a released generator."""
    seen, widths = noise_dim + label_channels, [m * channels for m in (16, 16, 16, 8, 4, 2, 1)]
    shapes = (convolution("fc", widths[0], seen, 3, False)
              | convolution("conv_img", 3, channels, 3, False))
    for i, (c_in, c_out) in enumerate(zip(widths, widths[1:])):
        block, middle = f"body.{i}", min(c_in, c_out)
        shapes |= spade(f"{block}.norm_0", c_in, seen, hidden)
        shapes |= spade(f"{block}.norm_1", middle, seen, hidden)
        shapes |= convolution(f"{block}.conv_0", middle, c_in, 3, True)
        shapes |= convolution(f"{block}.conv_1", c_out, middle, 3, True)
        if c_in != c_out:
            shapes |= spade(f"{block}.norm_s", c_in, seen, hidden)
            shapes |= convolution(f"{block}.conv_s", c_out, c_in, 1, True, bias=False)
    return shapes


def discriminator_layout(label_channels):
    """{name: shape} of a released discriminator."""
    shapes = convolution("layer_up_last", label_channels + 1, 64, 1, False)
    down = (3, 128, 128, 256, 256, 512, 512)
    up_in, up_out = (512, 1024, 512, 512, 256, 256), (512, 256, 256, 128, 128, 64)
    for half, inputs, outputs in ("down", down, down[1:]), ("up", up_in, up_out):
        for i, (c_in, c_out) in enumerate(zip(inputs, outputs)):
            block, number = f"body_{half}.{i}", 2 if half == "up" else min(i, 1)
            shapes |= convolution(f"{block}.conv1.{number}", c_out, c_in, 3, True)
            shapes |= convolution(f"{block}.conv2.1", c_out, c_out, 3, True)
            if c_in != c_out:
                shapes |= convolution(f"{block}.conv_s", c_out, c_in, 1, True)
    return shapes


def fill(shapes, seed):
    """{name: float32 tensor}, by the recipe of the golden figures."""
    state = {}
    for name, shape in shapes.items():
        draw = rng(seed, name)
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(7)
        elif name.endswith("running_var"):
            state[name] = 0.5 + draw.random_sample(shape)
        elif name.endswith(("running_mean", "bias")):
            state[name] = 0.1 * draw.standard_normal(shape)
        elif name.endswith(("weight", "weight_orig")):
            state[name] = draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    for name in [name for name in shapes if name.endswith("weight_u")]:
        matrix = state[name.removesuffix("_u") + "_orig"].reshape(*shapes[name], -1)
        u = rng(seed, name).standard_normal(len(matrix))
        v = matrix.T @ (u / np.linalg.norm(u))
        v /= np.linalg.norm(v)
        state[name], state[name[:-1] + "v"] = matrix @ v / np.linalg.norm(matrix @ v), v
    return {name: torch.tensor(value, dtype=torch.float32 if np.ndim(value) else torch.int64)
            for name, value in state.items()}
