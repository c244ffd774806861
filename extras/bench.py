"""Speed and memory of a training step and of generating; or, on no GPU, what a step consists of.

    python -m extras.bench                                                     # the toy's model
    python -m extras.bench --preset ade20k --precision bf16 --compile          # on a GPU
    python -m extras.bench --count --preset ade20k --precision bf16            # needs no GPU

Beside each time stands the share that it reaches of the speed of a large matrix product, measured
between the runs, because shared machines change their speed. FLOPs are PyTorch's count of
convolutions and products; a multiply-add is two. --count runs a step on fake CUDA tensors, which
have a device, a type and a shape, but no numbers, and counts operations, bytes read and written,
peak memory (of tensors, not the workspace of convolutions), float32 activations larger than any
weight, and the graphs of torch.compile. All other options are train.py's.
"""

import argparse
import collections
import contextlib
import functools
import resource
import statistics
import time
import traceback
import weakref
from pathlib import Path
from unittest import mock

import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensor, FakeTensorMode, fake_tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import data
import losses
import oasis
import train

CLASSES = {"ade20k": 151, "coco-stuff": 183, "cityscapes": 35, "toy": 14, "folder": 20}


def make_networks(settings, device):
    """G, D and the average of G, with the weights of the start."""
    N = CLASSES[settings.preset]
    with torch.device(device):
        networks = *train.make_networks(settings, N), train.make_networks(settings, N)[0]
    for parameter in (p for network in networks for p in network.parameters() if p.ndim == 4):
        # In place: fake tensors do not let nn.Module.to replace them.
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return networks


def make_workloads(settings, G, D, ema, training_step=train.training_step):
    """({"generate": function, "train": function}, the two optimizers) on random data."""
    s, N, device = settings, G.num_classes, next(G.parameters()).device
    ema.requires_grad_(False).eval()
    optimizers = [torch.optim.Adam(network.parameters(), 1e-4, (0.0, 0.999), fused=True)
                  for network in (G, D)]
    labels = torch.randint(0, N, (s.batch_size, s.height, s.width), device=device)
    real = torch.rand(s.batch_size, 3, s.height, s.width, device=device) * 2 - 1
    noise = torch.randn(s.batch_size, s.noise_dim, device=device)
    batch = (real.contiguous(memory_format=torch.channels_last), labels, noise,
             torch.ones_like(real[:, :1]), torch.ones(N, device=device))

    def step():
        training_step(G, D, *optimizers, batch, s)
        train.update_average(ema, G, s.ema_decay)

    @torch.no_grad()
    def generate():
        with torch.autocast(device.type, torch.bfloat16, s.precision == "bf16"):
            ema(labels, noise)

    return {"generate": generate, "train": step}, optimizers    # in order of peak memory


def compile_in_place(*networks):
    """As train.py does it: one graph for each network and size of batch, and for each loss."""
    for network in networks:
        network.compile(dynamic=False)
    for name in ("discriminator_losses", "real_loss"):
        setattr(losses, name, torch.compile(getattr(losses, name), dynamic=False))


# ---- Time ----------------------------------------------------------------------------------------


def clock(work, device):
    """Seconds that work() takes, a GPU's part included."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def print_times(s, n):
    """A line for generating and one for a training step: the median of n runs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = device.type == "cuda"              # as in train.py
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    G, D, ema = make_networks(s, device)
    workloads, _ = make_workloads(s, G, D, ema)
    if s.compile:
        compile_in_place(G, D, ema)
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if s.precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch "
          f"{torch.__version__}, {s.preset} {s.height}×{s.width}, batch {s.batch_size}, "
          f"{s.precision}{', compiled' * s.compile}; median of {n} runs")
    for name, run in workloads.items():
        # Compiled code hides its operations from the counter.
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            run()
        flops = counter.get_total_flops()
        for work in (run, run, lambda: a @ b):
            clock(work, device)                         # compiling, caches, the first product
        seconds, products = zip(*((clock(run, device), clock(lambda: a @ b, device))
                                  for _ in range(n)))
        median, speed = statistics.median(seconds), 2 * size ** 3 / statistics.median(products)
        peak = (torch.cuda.max_memory_allocated() if device.type == "cuda" else
                1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        print(f"  {name:8s}  {s.batch_size / median:8.2f} images/s   {median:.3f} s "
              f"({min(seconds):.3f} … {max(seconds):.3f})   {flops / 1e9:,.1f} GFLOP, "
              f"{flops / median / speed:.0%} of the {speed / 1e9:,.0f} GFLOP/s of a "
              f"{size}×{size} product   peak memory {peak / 2 ** 30:.2f} GiB")


# ---- Counting, without a GPU ---------------------------------------------------------------------


class Counter(TorchDispatchMode):
    """Counts operations, the bytes they move, memory, and float32 activations above a size."""

    def __init__(self, tensors, largest):
        """tensors: what exists before. largest: elements of the largest weight."""
        super().__init__()
        self.largest, self.operations, self.bytes, self.wide = largest, 0, 0, collections.Counter()
        self.known, self.memory, self.peak = {}, 0, 0
        for tensor in tensors:
            self.watch(tensor)

    def watch(self, tensor):
        """Count the tensor's memory until it is freed, in blocks of 512 bytes as on a GPU."""
        storage = tensor.untyped_storage()
        if id(storage) not in self.known:
            self.known[id(storage)] = -(-storage.nbytes() // 512) * 512
            self.memory += self.known[id(storage)]
            self.peak = max(self.peak, self.memory)
            weakref.finalize(storage, self.forget, id(storage))

    def forget(self, key):
        self.memory -= self.known.pop(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        used, made = ([leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
                      for tree in ((args, kwargs), result))
        for tensor in used + made:
            self.watch(tensor)
        name = function.name()
        if not made or function.is_view or "detach" in name or "empty" in name:
            return result                               # nothing is read or written
        self.operations += 1
        self.bytes += sum(min(t.untyped_storage().nbytes(), t.numel() * t.element_size())
                          for t in used + made)         # an expanded tensor is read once
        if any(t.dtype == torch.float32 and t.numel() > self.largest for t in made):
            frame = [frame for frame in traceback.extract_stack()       # the innermost of ours
                     if "/torch/" not in frame.filename and frame.filename != __file__][-1]
            self.wide[f"{name} at {Path(frame.filename).name}:{frame.lineno}"] += 1
        return result


@contextlib.contextmanager
def fake_gpu():
    """Inside, device "cuda:0" works without a GPU, for tensors without numbers. Once per process.

    backward() asks the driver about streams. It gets another accelerator to ask, and sees tensors
    as on "meta" meanwhile.
    """
    backward, make_tensor = torch.Tensor.backward, FakeTensor.__new__
    on_meta = {torch.ops.prim.device.default: lambda args: torch.device("meta")}
    registered = torch.cuda.is_available()

    def make(cls, mode, values, device, *args, **kwargs):
        device = torch.device("cuda", 0) if torch.device(device).type == "meta" else device
        return make_tensor(cls, mode, values, device, *args, **kwargs)

    def fake_backward(*args, **kwargs):
        nonlocal registered
        if not registered:          # not earlier: tensors could not be made on "cuda" any more
            backend_registration._setup_privateuseone_for_python_backend("no_gpu")
            registered = True
        with (mock.patch.dict(fake_tensor._DISPATCH_META_HANDLERS, on_meta),
              mock.patch.object(FakeTensor, "__new__", make)):
            backward(*args, **kwargs)

    with (FakeTensorMode(), torch.autograd.set_multithreading_enabled(False),
          mock.patch("torch.Tensor.backward", fake_backward),
          mock.patch("torch.cuda.is_bf16_supported", lambda *args, **kwargs: True),
          mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)):
        yield


def count(step, networks, optimizers):
    """(Counter, FLOPs) of a second step() on fake tensors; the first makes Adam's state."""
    step()
    parameters = [p for network in networks for p in network.parameters()]
    tensors = [*parameters, *(p.grad for p in parameters if p.grad is not None),
               *(b for network in networks for b in network.buffers()),
               *(t for o in optimizers for state in o.state.values() for t in state.values())]
    # In this order: the FLOP counter, below, takes operations apart that the GPU runs as one.
    with (FlopCounterMode(display=False) as flops,
          Counter(tensors, max(p.numel() for p in parameters)) as counter):
        step()
    return counter, flops.get_total_flops()


def count_graphs(settings, steps=20):
    """(graphs that torch.compile makes in 20 steps, breaks), traced on the CPU.

    The least is 5: G, D for each of its two sizes of batch, two loss functions.
    """
    counter, plain = CompileCounter(), (losses.discriminator_losses, losses.real_loss)
    torch._dynamo.utils.counters.clear()
    G, D, ema = make_networks(settings, torch.device("cpu"))
    with mock.patch("torch.compile", functools.partial(torch.compile, backend=counter)):
        compile_in_place(G, D)
    step = make_workloads(settings, G, D, ema)[0]["train"]
    for _ in range(steps):
        step()
    losses.discriminator_losses, losses.real_loss = plain
    return counter.frame_count, sum(torch._dynamo.utils.counters["graph_break"].values())


def print_counts(s):
    """What a training step consists of."""
    graphs, breaks = count_graphs(train.parse_settings(
        "--preset toy --channels 2 --height 32 --width 32 --batch-size 2".split()))
    with fake_gpu():
        G, D, ema = make_networks(s, torch.device("cuda", 0))
        workloads, optimizers = make_workloads(s, G, D, ema)
        counter, flops = count(workloads["train"], (G, D, ema), optimizers)
    print(f"{s.preset} {s.height}×{s.width}, batch {s.batch_size}, {s.precision}, a training step "
          f"on a GPU, torch {torch.__version__}:\n  {counter.operations:,} operations, "
          f"{counter.bytes / 1e9:,.1f} GB read and written, {flops / 1e12:,.2f} TFLOP, peak memory "
          f"{counter.peak / 2 ** 30:,.1f} GiB\n  torch.compile, 20 steps of a small model: "
          f"{graphs} graphs, {breaks} breaks\n  float32 activations larger than any weight: "
          f"{sum(counter.wide.values())}")
    for operation, number in counter.wide.most_common() if s.precision == "bf16" else ():
        print(f"    {number} × {operation}")


@data.exit_in_words("extras.bench")
def main(argv=None):
    """The command line; options other than these are train.py's."""
    parser = argparse.ArgumentParser("extras.bench", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=5, help="timed runs (default: 5)")
    parser.add_argument("--count", action="store_true", help="count on fake tensors, time nothing")
    args, rest = parser.parse_known_args(argv)
    settings = train.parse_settings(rest)
    print_counts(settings) if args.count else print_times(settings, args.n)


if __name__ == "__main__":
    main()
