"""What bench.py counts, against closed forms and known figures; the command itself."""

import json
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import train                        # noqa: E402  (the line above must come first)
from extras import bench            # noqa: E402

SMALL = ("--channels 2 --num-blocks 3 --spade-hidden 4 --d-channels 4 8 --height 32 --width 32 "
         "--batch-size 2").split()


def test_the_counter_counts_operations_bytes_and_memory():
    a = torch.ones(1000)
    with bench.Counter([a], largest=500) as counter:
        b = a[:600] + 1             # reads 2400 bytes, writes 2400
        b.mul_(2)                   # reads and writes 2400: in place, no new memory
        c = b.view(2, 300).T        # views cost nothing
        del b, c
        d = torch.zeros(10)
    assert (counter.operations, counter.bytes) == (3, 4 * 2400 + d.numel() * 4)
    assert counter.peak == 4096 + 2560                      # blocks of 512 bytes
    assert counter.memory == 4096 + 512
    found = {}
    for name, number in counter.wide.items():
        operation, place = name.split(" at ")
        assert place.startswith("test_bench.py:")
        found[operation] = number
    assert found == {"aten::add.Tensor": 1, "aten::mul_.Tensor": 1}


@pytest.fixture(scope="module")
def counts():
    """{name: [operations, bytes, peak, FLOPs] of a step}, from a process of its own.

    Counting changes PyTorch's engine for good: no tensor can be made on "cuda" after the first
    backward(). So all networks are made first.
    """
    runs = {"fp32": [*SMALL, "--precision", "fp32"], "bf16": [*SMALL, "--precision", "bf16"],
            "ade20k": ["--preset", "ade20k", "--precision", "bf16"]}
    code = ("import json, sys, torch; from extras import bench; import train\n"
            "ready, found = {}, {}\n"
            "with bench.fake_gpu():\n"
            "    for name, arguments in json.loads(sys.argv[1]).items():\n"
            "        s = train.parse_settings(arguments)\n"
            "        networks = bench.make_networks(s, torch.device('cuda', 0))\n"
            "        for network in networks:\n"
            "            for tensor in network.state_dict().values():\n"
            "                assert tensor.device.type == 'cuda'\n"
            "        ready[name] = networks, bench.make_workloads(s, *networks)\n"
            "    for name, (networks, (work, optimizers)) in ready.items():\n"
            "        c, flops = bench.count(work['train'], networks, optimizers)\n"
            "        found[name] = c.operations, c.bytes, c.peak, flops\n"
            "print(json.dumps(found))\n")
    done = subprocess.run([sys.executable, "-c", code, json.dumps(runs)], cwd=ROOT, text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_step_on_fake_cuda_tensors(counts):
    """FLOPs do not depend on precision, and are those of real tensors on the CPU."""
    operations, moved, peak, flops = counts["fp32"]
    half_operations, half_moved, half_peak, half_flops = counts["bf16"]
    assert half_flops == flops and half_operations > operations
    assert half_moved < moved and half_peak < peak

    s = train.parse_settings(SMALL)
    workloads, _ = bench.make_workloads(s, *bench.make_networks(s, torch.device("cpu")))
    assert bench.count_flops(workloads["train"]) == flops


def test_the_count_of_the_ade20k_step_is_that_of_results(counts):
    """Another PyTorch may count a little otherwise, so the test leaves 2 %."""
    operations, moved, peak, flops = counts["ade20k"]
    text = (ROOT / "results/count.txt").read_text(encoding="utf-8")
    row = re.search(r"bf16, one process, now +([\d,]+) +([\d.]+) +([\d.]+) +([\d.]+)", text)
    wanted = [float(number.replace(",", "")) for number in row.groups()]
    found = [operations, moved / 1e9, peak / 2 ** 30, flops / 1e12]
    assert found == pytest.approx(wanted, rel=0.02)
    assert operations <= 2925 and moved <= 385e9 and peak <= 36 * 2 ** 30


def test_noise_at_every_pixel_has_its_place_in_the_batch():
    s = train.parse_settings([*SMALL, "--pixel-noise", "3"])
    real, labels, noise, mask, weights = bench.make_batch(s, 14, torch.device("cpu"))
    assert noise.shape == (2, s.noise_dim, 32, 32)
    s = train.parse_settings([*SMALL, "--pixel-noise", "0"])
    assert bench.make_batch(s, 14, torch.device("cpu"))[2].shape == (2, s.noise_dim)


def test_torch_compile_makes_one_graph_each_and_never_breaks():
    assert bench.count_graphs(train.parse_settings(SMALL), steps=3) == (5, 0)


@pytest.mark.parametrize("windows", [False, True])
def test_the_command_prints_times_and_shares(capsys, windows):
    hidden = {"resource": None} if windows else {}          # the module that Windows lacks
    with mock.patch.dict(sys.modules, hidden):
        bench.main(["-n", "1", *SMALL])
    out = capsys.readouterr().out
    memory = "unknown" if windows else r"[\d.]+ GiB"
    for name in ("generate", "train"):
        assert re.search(rf"{name} +[\d.]+ images/s .*GFLOP, \d+% of the [\d,]+ GFLOP/s .* "
                         rf"peak memory {memory}", out), out


@pytest.mark.parametrize("arguments", [["-n", "0"], ["-n", "-1"], ["-n", "nan"], ["-n", "word"],
                                       ["--batch-size", "0"], ["--preset", "word"],
                                       ["--processes", "0"], ["--processes", "40"],
                                       ["--processes", "2"]])
def test_a_wrong_value_is_refused_in_a_sentence(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        bench.main(arguments)
    assert end.value.code == 2
    assert arguments[0] in capsys.readouterr().err
