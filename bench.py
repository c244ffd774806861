"""Speed: what a step costs, what the machine can do, and which share of it the code reaches.

    python bench.py                                        # the toy model
    python bench.py --preset ade20k --batch-size 1         # the paper's model on a CPU
    python bench.py --preset ade20k --batch-size 32 --precision bf16 --compile        # on a GPU

A ratio says more than a time, because it can be compared between machines:

    nominal work of the plain method / time / measured speed of a square matrix product

The nominal work is counted on the plainest form of the method: every convolution at the larger of
its block's two sizes, a forward pass of G for each of the two updates, all gradients computed. It
does not change when a trick saves some of it, so the ratio may exceed 1.
"""

import argparse
import resource
import statistics
import sys
import time

import torch
from torch import nn
from tqdm import tqdm

import oasis
import settings
import train

# ---- What a step costs -------------------------------------------------------------------------


def convolution_work(network, height, width):
    """{part: (multiply-adds per image, of which the input needs no gradient)}, from the weights.

    A convolution multiplies each weight once per output pixel. All layers of a block are counted
    at the larger size the block works at, which is where the plain form has them.
    """
    parts = {}
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        stage, _, rest = name.partition(".")
        index = int(rest.split(".")[0]) if rest else 0
        halvings = {"first": lambda: len(network.blocks) - 1,
                    "blocks": lambda: len(network.blocks) - 1 - index,
                    "encoder": lambda: index,
                    "decoder": lambda: len(network.decoder) - 1 - index,
                    "last": lambda: 0}[stage]()
        work = layer.weight.numel() * height * width // 4 ** halvings
        part = {"shared": "SPADE's labels and noise", "gamma_beta": "SPADE's γ and β"}.get(
            name.split(".")[-1], stage)
        from_data = name.endswith("shared") or name in ("first", "encoder.0.conv_1",
                                                        "encoder.0.conv_s")
        total, without = parts.get(part, (0, 0))
        parts[part] = total + work, without + work * from_data
    return parts


def nominal_flops(G, D, height, width):
    """Operations per image in the plain form: {"generate", "generator step", "discriminator step"}.

    A multiply-add is two operations. A backward pass costs a forward pass for the gradient of the
    weights and another for that of the inputs, except where the input is data.
    """
    def cost(network):
        work = convolution_work(network, height, width).values()
        forward, of_data = (2 * sum(column) for column in zip(*work))
        return forward, 3 * forward - of_data

    (g, g_trained), (_, d_trained) = cost(G), cost(D)
    return {"generate": g, "generator step": g_trained + d_trained,
            "discriminator step": g + 3 * d_trained}


# ---- What the machine can do -------------------------------------------------------------------


def clock(work, device):
    """Seconds that work() takes, the GPU's part included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def largest_matrices(device, dtype, most_seconds=0.5):
    """Two square matrices as large as is quick here: of side 8192 at most, on a CPU 4096.

    Large ones reach the machine's full speed. But a CPU without instructions for bfloat16 would
    take minutes for one product, so the size doubles only while a product is quick.
    """
    size, most = 256, 8192 if device.type == "cuda" else 4096
    while True:
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        a @ b                                           # the first one also sets the library up
        if size == most or clock(lambda: a @ b, device) > most_seconds:
            return a, b
        size *= 2


def measured_together(work, device, dtype, n, warm_up):
    """work() timed and, between its runs, a matrix product and a copy: (size, s, FLOP/s, B/s).

    Side by side, since a shared or warm machine changes its speed from minute to minute. The
    matrices are size × size; the others are n values each.
    """
    a, b = largest_matrices(device, dtype)
    for _ in range(warm_up):
        clock(work, device)
    values = []
    for _ in tqdm(range(n), leave=False):
        product, copy = clock(lambda: a @ b, device), clock(lambda: b.copy_(a), device)
        values.append((clock(work, device), 2 * len(a) ** 3 / product,
                       2 * a.numel() * a.element_size() / copy))
    return [len(a), *zip(*values)]


# ---- The two workloads -------------------------------------------------------------------------

CLASSES = {"ade20k": 151, "ade20k-outdoors": 151, "coco-stuff": 183, "cityscapes": 35, "toy": 10,
           "folder": 20}        # a folder of photographs has its own number; this one is typical


def workloads(s, device):
    """(functions to time {"generate", "train"}, the State they work on) on random data.

    Generating comes first: the peak of the memory only grows, and training needs more.
    """
    num_classes = CLASSES[s.preset]
    state = train.State(s, num_classes, device)
    if s.compile:
        for network in (state.G, state.D, state.ema):
            network.compile(dynamic=False)
    cells = torch.randint(0, num_classes, (s.batch_size, -(-s.height // 16), -(-s.width // 16)))
    labels = cells.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :s.height, :s.width]
    labels = labels.to(device)
    real = (torch.rand(s.batch_size, 3, s.height, s.width, device=device) * 2 - 1).contiguous(
        memory_format=torch.channels_last)
    precision = torch.autocast(device.type, torch.bfloat16, enabled=s.precision == "bf16")
    noise = torch.randn(s.batch_size, s.noise_dim, device=device)
    mask = (torch.rand(s.batch_size, 1, s.height, s.width, device=device) > 0.5).float()
    weights = torch.ones(num_classes, device=device)
    sampler = state.ema.eval()

    def step():
        train.training_step(state.G, state.D, state.D, state.optimizer_G, state.optimizer_D, real,
                            labels, noise, mask, weights, s.lambda_labelmix, precision=precision)
        train.update_ema(state.ema, state.G, s.ema_decay)

    @torch.no_grad()
    def generate():
        with precision:
            sampler(labels, noise)

    return {"generate": generate, "train": step}, state


def peak_memory(device):
    """Peak memory of this process in bytes: the GPU's where there is one, else the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024         # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def print_work(state, s):
    """The multiply-adds of each part, and the nominal work of each step."""
    print(f"multiply-adds per {s.height}×{s.width} image, in 10⁹, plain form:")
    for network in (state.G, state.D):
        work = convolution_work(network, s.height, s.width)
        print(f"  {type(network).__name__:14s}" + ", ".join(
            f"{part} {total / 1e9:.3g}" for part, (total, _) in work.items()))
    flops = nominal_flops(state.G, state.D, s.height, s.width)
    print("nominal GFLOP per image: " + ", ".join(f"{k} {v / 1e9:,.4g}" for k, v in flops.items()))
    return {"train": flops["generator step"] + flops["discriminator step"],
            "generate": flops["generate"]}


def main(argv=None):
    """Prints the table; options other than -n and --only are those of train.py."""
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__.split("\n")[0],
                                     epilog="All other options are those of train.py.")
    parser.add_argument("-n", type=int, default=5, help="timed runs (default: 5)")
    parser.add_argument("--only", choices=("train", "generate"), help="measure only this one")
    args, rest = parser.parse_known_args(argv)
    s, _ = settings.parse_arguments(rest)
    try:
        settings.check_settings(s, 1)
        if args.n < 1:
            raise settings.SettingsError(f"-n {args.n}: at least one run is needed")
        if s.model != "oasis":
            raise settings.SettingsError(f"--model {s.model}: only oasis has a nominal work here")
    except settings.SettingsError as e:
        print(f"bench.py: error: {e}", file=sys.stderr)
        sys.exit(2)
    oasis.keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if s.precision == "bf16" else torch.float32
    torch.backends.cudnn.benchmark = device.type == "cuda"      # as train.py has it
    # PyTorch lets convolutions take TF32, products not; here both do, so that like is compared.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    runs, state = workloads(s, device)
    work = print_work(state, s)
    where = torch.cuda.get_device_name() if device.type == "cuda" else \
        f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, {s.preset} {s.height}×{s.width}, batch "
          f"{s.batch_size}, {s.precision}{', compiled' * s.compile}; median of {args.n} runs "
          f"(fastest … slowest):")
    for name, run in runs.items():
        if args.only not in (None, name):
            continue
        try:
            size, seconds, products, copies = measured_together(run, device, dtype, args.n, 3)
        except torch.OutOfMemoryError:
            print(f"bench.py: error: the GPU's memory does not hold --batch-size {s.batch_size}; "
                  f"choose a smaller one", file=sys.stderr)
            sys.exit(2)
        median, product = statistics.median(seconds), statistics.median(products)
        print(f"  {name:8s}  {s.batch_size / median:8.2f} images/s   {median:.3f} s "
              f"({min(seconds):.3f} … {max(seconds):.3f})   "
              f"ratio {work[name] * s.batch_size / median / product:.2f} of the "
              f"{product / 1e9:,.0f} GFLOP/s of a {size}×{size} product   "
              f"copy {statistics.median(copies) / 1e9:.0f} GB/s   "
              f"peak memory {peak_memory(device) / 2 ** 30:.1f} GiB")


if __name__ == "__main__":
    main()
