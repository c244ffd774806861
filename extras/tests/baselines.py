"""What the tests of SPADE, Pix2pixHD and CC-FPSE share: figures of the released classes, small
models, one step in one process and in two, the commands on a tiny run.

The figures in golden/*.json were measured on the released classes in float64, with weights and
inputs drawn by name: `draw` and `inputs` draw them again. A tensor is given as its shape, sum,
mean, deviation, and some of its values, evenly spaced in the flattened tensor; a gradient as its
norm and four values.
"""

import importlib.util
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import losses
import metrics
import processes
import sample
import train

TINY = ("--height 32 --width 32 --channels 2 --num-blocks 3 --spade-hidden 4 --d-channels 4 8 8 "
        "--batch-size 4 --log-every 2 --picture-every 4 --score-every 4 --checkpoint-every 2 "
        "--segmenter-steps 2 --lambda-vgg 0").split()


# ---- Figures of the released classes -------------------------------------------------------------


def golden(name):
    return json.loads(Path(__file__).with_name("golden").joinpath(f"{name}.json").read_text())


def rng(*key):
    return np.random.RandomState(zlib.crc32("/".join(map(str, key)).encode()) & 0x7fffffff)


def draw(name, shape, seed):
    """The tensor of this name."""
    numbers = rng(seed, name)
    if name.endswith(("bias", "running_mean")):
        return 0.1 * torch.tensor(numbers.standard_normal(shape))
    if name.endswith("running_var"):
        return 0.5 + torch.tensor(numbers.random_sample(shape))
    values = torch.tensor(numbers.standard_normal(shape))
    return 1 + 0.1 * values if len(shape) == 1 else values / np.prod(shape[1:]) ** 0.5


def inputs(figures):
    """labels (B, H, W), real images (B, 3, H, W), z (B, C) or (B, 0)."""
    case = figures["case"]
    n, height, width, cell = (case[k] for k in ("images", "height", "width", "cell"))
    numbers = rng(case["seed"], "labels")
    labels = numbers.randint(0, case["classes"], (n, height // cell, width // cell))
    labels = torch.tensor(labels).repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    assert labels.sum() == figures["label_sum"]
    real = torch.tensor(np.tanh(rng(case["seed"], "real").standard_normal((n, 3, height, width))))
    same(real, figures["real"])
    z = torch.tensor(rng(case["seed"], "z").standard_normal((n, case.get("z_dim", 0))))
    return labels, real, z


def fill(network, in_golden_order, shapes, seed):
    """Give the network the drawn tensors; spectral norm its exact singular vectors.

    in_golden_order(name, tensors): the tensor of a golden name, taken from {our name: tensor}, or
    None where the network has no such tensor. To fill ours, it is asked for the numbers of our
    elements.
    """
    state = dict(network.named_parameters())
    state.update(network.named_buffers())
    numbers, count = {}, 0
    for name, tensor in state.items():
        numbers[name] = torch.arange(count, count + tensor.numel()).view(tensor.shape)
        count += tensor.numel()
    values = torch.full((count,), torch.nan)
    for name, shape in shapes.items():
        places = in_golden_order(name, numbers)
        if places is not None:
            assert list(places.shape) == shape, name
            values[places.flatten()] = draw(name, shape, seed).flatten()
    with torch.no_grad():
        for name, tensor in state.items():
            own = values[numbers[name]]
            is_drawn = not own.isnan().any()
            if is_drawn:
                tensor.copy_(own)
            assert is_drawn or "encoder." in name or name.endswith(("_u", "_v", "_tracked")), name
        for module in network.modules():
            if hasattr(module, "_u"):
                weight = state[next(k for k, v in state.items() if v is module._u).replace(
                    "0._u", "original")].flatten(1)
                u, _, v = torch.linalg.svd(weight, full_matrices=False)
                module._u.copy_(u[:, 0])
                module._v.copy_(v[0])
    return network


def same(tensor, figure, tolerance=1e-9):
    """The tensor is the one whose figures these are."""
    flat = tensor.detach().flatten()
    assert list(tensor.shape) == figure["shape"]
    places = np.linspace(0, len(flat) - 1, len(figure["samples"])).astype(int)
    ours = torch.stack([flat.sum(), flat.mean(), flat.std(correction=0), *flat[places]])
    theirs = [figure["sum"], figure["mean"], figure["std"], *figure["samples"]]
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=tolerance, atol=tolerance)


def same_gradients(network, in_golden_order, shapes, figures, tolerance=1e-8):
    """Relative to the norm of each tensor's gradient. Those without figures are zero."""
    gradients = {}
    for name, parameter in network.named_parameters():
        gradients[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    for name in shapes:
        gradient = None
        if not name.endswith(("running_mean", "running_var")):
            gradient = in_golden_order(name, gradients)
        if gradient is None:
            continue
        flat = gradient.flatten()
        if name not in figures:
            assert flat.norm() < 1e-10, name
            continue
        places = np.linspace(0, len(flat) - 1, 4).astype(int)
        ours = torch.stack([flat.norm(), *flat[places]])
        torch.testing.assert_close(ours, torch.tensor(figures[name]), rtol=0,
                                   atol=tolerance * figures[name][0], msg=name)


# ---- Small models --------------------------------------------------------------------------------


def small(module, words, n=4):
    """(settings, G, D, batch of n) of a variant's small model, its weights as if trained."""
    s = module.parse_settings([*TINY, *words.split()])
    torch.manual_seed(0)
    G, D = module.make_networks(s, 5)
    train.scale_weights(G, 1.0)
    train.scale_weights(D, 1.0)
    numbers = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (n, 4, 4), generator=numbers)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    real = torch.rand(n, 3, 32, 32, generator=numbers, dtype=torch.float64) * 2 - 1
    shape = (n, s.noise_dim, 32, 32) if s.pixel_noise else (n, s.noise_dim)
    noise = torch.randn(shape, generator=numbers, dtype=torch.float64)
    mask = losses.labelmix_mask(labels, 5, numbers)
    dtype = torch.get_default_dtype()
    return s, G, D, (real.to(dtype), labels, noise.to(dtype), mask.to(dtype),
                     losses.class_weights(labels, 5, 0).to(dtype))


def one_step(out, cases):
    """Save what one step of each case leaves in this process: gradients, statistics. float64.

    cases: [(module, words, step)], both names without "extras.", such as "spade.spade_step".
    """
    torch.set_default_dtype(torch.float64)
    processes.start_processes()
    rank, size = processes.rank_and_size()
    result = []
    for name, words, step in cases:
        s, G, D, batch = small(importlib.import_module(f"extras.{name}"), words)
        owner, step = step.split(".")
        update = getattr(importlib.import_module(f"extras.{owner}"), step)
        optimizers = [torch.optim.SGD(network.parameters(), 1e-3) for network in (G, D)]
        share = [tensor[rank::size] for tensor in batch[:4]]
        update(G, D, *optimizers, [*share, batch[4]], s)
        for network in (G, D):
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            result.append(torch.cat([gradient.flatten() for gradient in gradients]))
            statistics = [b.double() for b in network.buffers()]
            result.append(torch.cat([torch.zeros(1), *(b.flatten() for b in statistics)]))
    torch.save(result, f"{out}{rank}")
    if dist.is_initialized():
        dist.destroy_process_group()


# ---- The commands --------------------------------------------------------------------------------


def run(main, *words):
    """The command's exit code."""
    with pytest.raises(SystemExit) as exit_of:
        main([str(word) for word in words])
    return exit_of.value.code or 0


def trains_resumes_samples_and_is_scored(module, class_name, run_dir, *words):
    """A tiny run by the commands that a user types. Returns the sample.Model."""
    words = [*TINY, "--metrics", "none", "--run-dir", run_dir, *words]
    assert run(module.main, *words, "--steps", 2) == 0
    more = "--metrics", "miou", "--resume", "--steps", 4
    assert run(module.main, "--run-dir", run_dir, *more) == 0
    path = run_dir / "latest.pt"
    checkpoint = sample.load_checkpoint(path)
    assert checkpoint["generator_class"] == f"{module.__name__}.{class_name}"
    assert checkpoint["step"] == 4 and [row["step"] for row in checkpoint["log"]] == [2, 4]
    assert [row["step"] for row in checkpoint["scores"]] == [4]
    assert (run_dir / "samples" / "step_000004.png").exists()
    sample.main(["--checkpoint", str(path), "--limit", "1", "--num", "2", "--out",
                 str(run_dir / "pictures")])
    assert list((run_dir / "pictures").glob("*seed1*.png"))
    metrics.main(["--checkpoint", str(path), "--metrics", "miou", "--num-images", "4"])
    model = sample.load_model(path)
    assert type(model.generator) is getattr(sys.modules[module.__name__], class_name)
    assert model.discriminator is None
    if importlib.util.find_spec("gradio"):          # extras/requirements.txt is installed
        painter = importlib.import_module("extras.paint").Painter(model)
        assert painter.show(painter.start()).startswith("data:image/")
    return model
