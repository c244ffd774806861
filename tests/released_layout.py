"""Checkpoints in the layout of the authors' released code, filled with reproducible numbers.

The names and shapes are facts about their files (tests/golden/released_checkpoint_keys.txt lists a
full-size one); the numbers follow the recipe under which tests/golden/released_code_small.json was
measured on their code: float64 draws of a NumPy generator seeded by the tensor's name.
"""

import zlib

import numpy as np
import torch


def rng(*key):
    return np.random.RandomState(zlib.crc32("/".join(map(str, key)).encode()) & 0x7FFFFFFF)


def spectral(name, out_channels, in_channels, kernel, bias=True):
    shapes = {f"{name}.weight_orig": (out_channels, in_channels, kernel, kernel),
              f"{name}.weight_u": (out_channels,),
              f"{name}.weight_v": (in_channels * kernel * kernel,)}
    return shapes | ({f"{name}.bias": (out_channels,)} if bias else {})


def plain(name, out_channels, in_channels, kernel):
    return {f"{name}.weight": (out_channels, in_channels, kernel, kernel), f"{name}.bias": (out_channels,)}


def generator_layout(channels, label_channels, noise_dim=64, hidden=128):
    """{name: shape} of a released generator."""
    seen, widths = noise_dim + label_channels, [m * channels for m in (16, 16, 16, 8, 4, 2, 1)]
    shapes = plain("fc", widths[0], seen, 3) | plain("conv_img", 3, channels, 3)

    def spade(name, features):
        return {f"{name}.first_norm.running_mean": (features,),
                f"{name}.first_norm.running_var": (features,),
                f"{name}.first_norm.num_batches_tracked": (),
                **plain(f"{name}.mlp_shared.0", hidden, seen, 3),
                **plain(f"{name}.mlp_gamma", features, hidden, 3),
                **plain(f"{name}.mlp_beta", features, hidden, 3)}

    for i, (c_in, c_out) in enumerate(zip(widths, widths[1:])):
        block, middle = f"body.{i}", min(c_in, c_out)
        shapes |= spade(f"{block}.norm_0", c_in) | spectral(f"{block}.conv_0", middle, c_in, 3)
        shapes |= spade(f"{block}.norm_1", middle) | spectral(f"{block}.conv_1", c_out, middle, 3)
        if c_in != c_out:
            shapes |= spade(f"{block}.norm_s", c_in)
            shapes |= spectral(f"{block}.conv_s", c_out, c_in, 1, bias=False)
    return shapes


def discriminator_layout(label_channels):
    """{name: shape} of a released discriminator."""
    down, up = (3, 128, 128, 256, 256, 512, 512), (512, 256, 256, 128, 128, 64)
    up_in = (512, 1024, 512, 512, 256, 256)
    shapes = plain("layer_up_last", label_channels + 1, 64, 1)
    for i in range(6):
        for half, number, c_in, c_out in (("down", 0 if i == 0 else 1, down[i], down[i + 1]),
                                          ("up", 2, up_in[i], up[i])):
            block = f"body_{half}.{i}"
            shapes |= spectral(f"{block}.conv1.{number}", c_out, c_in, 3)
            shapes |= spectral(f"{block}.conv2.1", c_out, c_out, 3)
            if c_in != c_out:
                shapes |= spectral(f"{block}.conv_s", c_out, c_in, 1)
    return shapes


def fill(shapes, seed):
    """{name: float32 tensor}, by the recipe of the golden figures."""
    state = {}
    for name, shape in shapes.items():
        r = rng(seed, name)
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(7)
        elif name.endswith("running_mean") or name.endswith("bias"):
            state[name] = 0.1 * r.standard_normal(shape)
        elif name.endswith("running_var"):
            state[name] = 0.5 + r.random_sample(shape)
        elif name.endswith(("weight", "weight_orig")):
            state[name] = r.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    for name in [n for n in shapes if n.endswith("weight_u")]:
        weight = state[name.removesuffix("_u") + "_orig"]
        matrix = weight.reshape(len(weight), -1)
        u = rng(seed, name).standard_normal(len(weight))
        v = matrix.T @ (u / np.linalg.norm(u))
        v /= np.linalg.norm(v)
        u = matrix @ v
        state[name], state[name[:-1] + "v"] = u / np.linalg.norm(u), v
    return {name: torch.as_tensor(value) if value.dtype.kind == "i" else
            torch.as_tensor(value).float() for name, value in state.items()}
