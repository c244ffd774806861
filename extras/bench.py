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
import dataclasses
import functools
import statistics
import sys
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
import train

# N of each preset. A data set of one's own has any number; 20 is a plausible one.
CLASSES = {"ade20k": 151, "coco-stuff": 183, "cityscapes": 35, "folder": 20, "small": 20, "toy": 14}


def make_networks(settings, device):
    """G, D and the average of G, with the weights of the start."""
    N = CLASSES[settings.preset]
    with torch.device(device):
        G, D = train.make_networks(settings, N)
        average, _ = train.make_networks(settings, N)
    for network in (G, D, average):
        for parameter in network.parameters():
            if parameter.ndim == 4:
                # In place: fake tensors do not let nn.Module.to replace them.
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return G, D, average


def make_batch(settings, num_classes, device):
    """A batch of training_step, made of random numbers."""
    s = settings
    size = (s.batch_size, s.height, s.width)
    labels = torch.randint(0, num_classes, size, device=device)
    real = torch.rand(s.batch_size, 3, s.height, s.width, device=device) * 2 - 1
    noise = torch.randn(s.batch_size, s.noise_dim, device=device)
    if s.pixel_noise:
        noise = torch.randn(s.batch_size, s.noise_dim, s.height, s.width, device=device)
    mask = torch.ones_like(real[:, :1])
    weights = torch.ones(num_classes, device=device)
    return real.contiguous(memory_format=torch.channels_last), labels, noise, mask, weights


def make_workloads(settings, G, D, average, training_step=train.training_step):
    """({"generate": function, "train": function}, the two optimizers) on random data."""
    device = next(G.parameters()).device
    average.requires_grad_(False).eval()
    optimizer_G = torch.optim.Adam(G.parameters(), 1e-4, (0.0, 0.999), fused=True)
    optimizer_D = torch.optim.Adam(D.parameters(), 4e-4, (0.0, 0.999), fused=True)
    batch = make_batch(settings, G.num_classes, device)

    def step():
        training_step(G, D, optimizer_G, optimizer_D, batch, settings)
        train.update_average(average, G, settings.ema_decay)

    @torch.no_grad()
    def generate():
        with torch.autocast(device.type, torch.bfloat16, settings.precision == "bf16"):
            average(batch[1], batch[2])

    # In order of peak memory.
    return {"generate": generate, "train": step}, (optimizer_G, optimizer_D)


# ---- Time ----------------------------------------------------------------------------------------


def clock(work, device):
    """Seconds that work() takes, a GPU's part included."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def count_flops(work):
    """The FLOPs of work(). Compiled code would hide its operations from the counter."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_memory(device):
    """The most memory used so far, in words."""
    if device.type == "cuda":
        return f"peak memory {torch.cuda.max_memory_allocated() / 2 ** 30:.2f} GiB"
    try:
        import resource
    except ImportError:                                     # Windows
        return "peak memory unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform != "darwin":                            # there it is in bytes, else in KiB
        peak *= 1024
    return f"peak memory {peak / 2 ** 30:.2f} GiB"


def make_product(settings, device):
    """(work, its FLOPs): the product of two large matrices in the precision of the networks."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    return lambda: a @ b, 2 * size ** 3


def time_in_turn(work, product, n, device):
    """Seconds of n runs of each, one after the other: two lists."""
    for warm_up in (work, work, product):                   # compiling, caches
        clock(warm_up, device)
    of_work, of_product = [], []
    for _ in range(n):
        of_work.append(clock(work, device))
        of_product.append(clock(product, device))
    return of_work, of_product


def print_times(settings, n):
    """A line for generating and one for a training step: the median of n runs."""
    s = settings
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = device.type == "cuda"              # as in train.py
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    G, D, average = make_networks(s, device)
    workloads, _ = make_workloads(s, G, D, average)
    if s.compile:
        train.compile_in_place(G, D)
        average.compile(dynamic=False)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    compiled = ", compiled" if s.compile else ""
    print(f"{name}, torch {torch.__version__}, {s.preset} {s.height}×{s.width}, batch "
          f"{s.batch_size}, {s.precision}{compiled}; median of {n} runs")
    product, product_flops = make_product(s, device)
    for name, work in workloads.items():
        flops = count_flops(work)
        seconds, product_seconds = time_in_turn(work, product, n, device)
        median = statistics.median(seconds)
        speed = product_flops / statistics.median(product_seconds)
        print(f"  {name:8s}  {s.batch_size / median:8.2f} images/s   {median:.3f} s "
              f"({min(seconds):.3f} … {max(seconds):.3f})   {flops / 1e9:,.1f} GFLOP, "
              f"{flops / median / speed:.0%} of the {speed / 1e9:,.0f} GFLOP/s of a large matrix "
              f"product   {peak_memory(device)}")


# ---- Counting, without a GPU ---------------------------------------------------------------------


def tensors_in(tree):
    """All tensors in nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Counter(TorchDispatchMode):
    """Counts operations, the bytes they move, memory, and float32 activations above a size."""

    def __init__(self, tensors, largest):
        """tensors: what exists before. largest: elements of the largest weight."""
        super().__init__()
        self.largest = largest
        self.operations, self.bytes = 0, 0
        self.wide = collections.Counter()                   # operation and line -> how often
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
        used, made = tensors_in((args, kwargs)), tensors_in(result)
        for tensor in used + made:
            self.watch(tensor)
        name = function.name()
        if not made or function.is_view or "detach" in name or "empty" in name:
            return result                                   # nothing is read or written
        self.operations += 1
        for tensor in used + made:                          # an expanded tensor is read once
            stored, shown = tensor.untyped_storage().nbytes(), tensor.numel()
            self.bytes += min(stored, shown * tensor.element_size())
        if any(t.dtype == torch.float32 and t.numel() > self.largest for t in made):
            self.wide[f"{name} at {calling_line()}"] += 1
        return result


def calling_line():
    """file:line of the innermost line of this project that runs now, this file left out."""
    ours = ""
    for frame in traceback.extract_stack():
        if "/torch/" not in Path(frame.filename).as_posix() and frame.filename != __file__:
            ours = f"{Path(frame.filename).name}:{frame.lineno}"
    return ours


@contextlib.contextmanager
def fake_gpu():
    """Inside, device "cuda:0" works without a GPU, for tensors without numbers. Once per process.

    backward() asks the driver about streams. It gets another accelerator to ask, and sees tensors
    as on "meta" meanwhile. A convolution asks the driver in which order to leave its result. On a
    GPU the answer is channels-last, as all weights here are.
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

    def channels_last(*args, **kwargs):
        return torch.channels_last

    with (FakeTensorMode(), torch.autograd.set_multithreading_enabled(False),
          mock.patch("torch.Tensor.backward", fake_backward),
          mock.patch("torch._C._conv_determine_backend_memory_format", channels_last),
          mock.patch("torch.cuda.is_bf16_supported", lambda *args, **kwargs: True),
          mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)):
        yield


def count(step, networks, optimizers):
    """(Counter, FLOPs) of a second step() on fake tensors; the first makes Adam's state."""
    step()
    tensors, largest = [], 0
    for network in networks:
        tensors += network.buffers()
        for parameter in network.parameters():
            tensors.append(parameter)
            largest = max(largest, parameter.numel())
            if parameter.grad is not None:
                tensors.append(parameter.grad)
    for optimizer in optimizers:
        for state in optimizer.state.values():
            tensors += state.values()
    # In this order: the FLOP counter, below, takes operations apart that the GPU runs as one.
    with FlopCounterMode(display=False) as flops, Counter(tensors, largest) as counter:
        step()
    return counter, flops.get_total_flops()


def count_graphs(settings, steps=20):
    """(graphs that torch.compile makes in 20 steps, breaks), traced on the CPU.

    The least is 5: G, D for each of its two sizes of batch, two loss functions.
    """
    counter = CompileCounter()
    plain = losses.discriminator_losses, losses.real_loss
    torch._dynamo.utils.counters.clear()
    G, D, average = make_networks(settings, torch.device("cpu"))
    with mock.patch("torch.compile", functools.partial(torch.compile, backend=counter)):
        train.compile_in_place(G, D)
    step = make_workloads(settings, G, D, average)[0]["train"]
    for _ in range(steps):
        step()
    losses.discriminator_losses, losses.real_loss = plain
    return counter.frame_count, sum(torch._dynamo.utils.counters["graph_break"].values())


def print_counts(settings, num_processes=1):
    """What a training step consists of, in one of so many processes. Messages are not counted."""
    s = dataclasses.replace(settings, batch_size=settings.batch_size // num_processes)
    small = "--preset toy --channels 2 --height 32 --width 32 --batch-size 2"
    graphs, breaks = count_graphs(train.parse_settings(small.split()))
    one_of_many = mock.patch("processes.rank_and_size", lambda: (0, num_processes))
    with fake_gpu(), one_of_many:
        networks = make_networks(s, torch.device("cuda", 0))
        workloads, optimizers = make_workloads(s, *networks)
        counter, flops = count(workloads["train"], networks, optimizers)
    print(f"{s.preset} {s.height}×{s.width}, batch {s.batch_size}, {s.precision}, a training step "
          f"on a GPU, torch {torch.__version__}:\n  {counter.operations:,} operations, "
          f"{counter.bytes / 1e9:,.1f} GB read and written, {flops / 1e12:,.2f} TFLOP, peak memory "
          f"{counter.peak / 2 ** 30:,.1f} GiB\n  torch.compile, 20 steps of a small model: "
          f"{graphs} graphs, {breaks} breaks\n  float32 activations larger than any weight: "
          f"{sum(counter.wide.values())}")
    if s.precision == "bf16":
        for operation, number in counter.wide.most_common():
            print(f"    {number} × {operation}")


@data.exit_in_words("extras.bench")
def main(argv=None):
    """The command line; options other than these are train.py's."""
    parser = argparse.ArgumentParser("extras.bench", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=5, help="timed runs (default: 5)")
    parser.add_argument("--count", action="store_true", help="count on fake tensors, time nothing")
    parser.add_argument("--processes", type=int, default=1, metavar="N",
                        help="count what one of N processes does, with its share of the batch")
    args, rest = parser.parse_known_args(argv)
    if args.n < 1:
        raise data.UserError(f"-n {args.n}: must be at least 1")
    settings = train.parse_settings(rest)
    if not 1 <= args.processes <= settings.batch_size:
        raise data.UserError(f"--processes {args.processes}: must be at least 1, and at most the "
                             f"batch's {settings.batch_size} images")
    if args.processes > 1 and not args.count:
        raise data.UserError("--processes: only --count takes it")
    if args.count:
        print_counts(settings, args.processes)
    else:
        print_times(settings, args.n)


if __name__ == "__main__":
    main()
