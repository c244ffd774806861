"""What bench.py counts, against closed forms and known figures; the command itself."""

import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import train                        # noqa: E402  (the line above must come first)
from extras import bench            # noqa: E402

SMALL = "--channels 2 --num-blocks 3 --spade-hidden 4 --d-channels 4 8 --height 32 --width 32 --batch-size 2".split()


def test_the_counter_counts_operations_bytes_and_memory():
    a = torch.ones(1000)
    with bench.Counter([a], largest=500) as counter:
        b = a[:600] + 1             # reads 2400 bytes, writes 2400
        b.mul_(2)                   # reads and writes 2400: in place, no new memory
        c = b.view(2, 300).T        # views cost nothing
        del b, c
        d = torch.zeros(10)
    assert (counter.operations, counter.bytes) == (3, 4 * 2400 + d.numel() * 4)
    assert counter.peak == 4096 + 2560 and counter.memory == 4096 + 512       # blocks of 512 bytes
    assert [(name.split(" at ")[0], number) for name, number in counter.wide.items()] == [
        ("aten::add.Tensor", 1), ("aten::mul_.Tensor", 1)]


def test_a_step_on_fake_cuda_tensors():
    """In a process of its own, as PyTorch's engine is changed for good. FLOPs do not depend on precision."""
    code = ("import sys, torch; from extras import bench; import train\n"
            f"s = train.parse_settings({SMALL!r} + ['--precision', sys.argv[1]])\n"
            "with bench.fake_gpu():\n"
            "    networks = bench.make_networks(s, torch.device('cuda', 0))\n"
            "    work, optimizers = bench.make_workloads(s, *networks)\n"
            "    counter, flops = bench.count(work['train'], networks, optimizers)\n"
            "assert all(t.device.type == 'cuda' for n in networks for t in n.state_dict().values())\n"
            "print(counter.operations, counter.bytes, counter.peak, flops)\n")
    runs = [subprocess.Popen([sys.executable, "-c", code, precision], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for precision in ("fp32", "bf16")]
    (ops, bytes_, peak, flops), half = (map(int, run.communicate(timeout=300)[0].split()) for run in runs)
    half_ops, half_bytes, half_peak, half_flops = half
    assert half_flops == flops and half_ops > ops and half_bytes < bytes_ and half_peak < peak

    s = train.parse_settings(SMALL)                    # the same FLOPs with real tensors, on the CPU
    workloads, _ = bench.make_workloads(s, *bench.make_networks(s, torch.device("cpu")))
    with bench.FlopCounterMode(display=False) as counter:
        workloads["train"]()
    assert counter.get_total_flops() == flops


def test_torch_compile_makes_one_graph_each_and_never_breaks():
    assert bench.count_graphs(train.parse_settings(SMALL), steps=3) == (5, 0)


def test_the_command_prints_times_and_shares(capsys):
    bench.main(["-n", "1", *SMALL])
    out = capsys.readouterr().out
    for name in ("generate", "train"):
        assert re.search(rf"{name} +[\d.]+ images/s .*GFLOP, \d+% of the [\d,]+ GFLOP/s .* peak memory [\d.]+ GiB", out), out
