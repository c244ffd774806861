"""Two and three processes compute what one computes; a batch, a run, its scores; and end together.

In float64 only a wrong formula makes a difference. Batch norm is in train mode throughout.
"""

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import several
import torch

import data
import processes
import train
from extras import spade
from processes import rank_and_size, start_processes

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = (1, 2, 3)


def variant(model):
    """(make_networks, update) of OASIS or of SPADE+."""
    return ((train.make_networks, train.training_step) if model == "oasis" else
            (spade.make_networks, spade.spade_step))


def settings(model, run_dir, *more):
    arguments = [*several.TINY, "--run-dir", str(run_dir), *map(str, more)]
    return (train.parse_settings(arguments) if model == "oasis" else
            spade.parse_settings([*arguments, "--model", "spade+", "--lambda-vgg", "0"]))


def one_step(model, s, out):
    """The gradients of both updates of one step, and its terms, into OUT/PROCESSES.pt."""
    torch.set_default_dtype(torch.float64)
    device = start_processes()
    rank, processes = rank_and_size()
    networks, step = variant(model)
    scenes = data.open_dataset("toy", "train", (32, 32))
    state = train.State(s, networks, scenes.num_classes, device)
    G, D = state.generator, state.discriminator
    # Plain gradient descent: Adam's first step is about the gradient's sign.
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (G, D)]
    batch = next(train.training_batches(s, scenes, state, device))
    terms = step(G, D, *optimizers, batch, s)
    values = torch.stack(list(terms.values()))
    if processes > 1:
        torch.distributed.all_reduce(values)
    found = {"terms": values / processes, **{
        f"{kind} {name}": tensor for kind, network in (("G", G), ("D", D))
        for name, tensor in [*((n, p.grad) for n, p in network.named_parameters()),
                             *network.named_buffers()]}}
    if rank == 0:
        torch.save(found, out / f"{processes}.pt")


def whole_run(model, s):
    torch.set_default_dtype(torch.float64)
    train.train(s, *variant(model))


def unequal_start(s):
    def networks(s, num_classes):
        G, D = train.make_networks(s, num_classes)
        G.last.bias.data += rank_and_size()[0]
        return G, D
    train.train(s, networks)


@pytest.mark.parametrize("model", ["oasis", "spade+"])
def test_gradients_and_statistics_of_a_step_are_those_of_one_process(tmp_path, model):
    for processes in PROCESSES:
        several.run(one_step, model, settings(model, tmp_path), tmp_path, processes=processes)
    one, *others = (torch.load(tmp_path / f"{processes}.pt") for processes in PROCESSES)
    assert len(one) > 80 and one["G first.weight"].abs().max() > 1e-6
    for found, (name, value) in itertools.product(others, one.items()):
        # Biases before batch norm have the gradient 0; 1e-15 lets its rounding errors differ.
        torch.testing.assert_close(found[name], value, rtol=0, msg=name,
                                   atol=1e-10 * value.abs().max().item() + 1e-15)


def same_run(found, wanted):
    for part in ("generator", "discriminator", "ema"):
        torch.testing.assert_close(dict(found[part]), dict(wanted[part]), rtol=1e-8, atol=1e-8)
    assert found["log"][-1]["loss_G"] == pytest.approx(wanted["log"][-1]["loss_G"], rel=1e-8)


@pytest.mark.parametrize("model", ["oasis", "spade+"])
def test_after_twenty_steps_everything_is_as_in_one_process(tmp_path, model):
    for processes in PROCESSES:
        s = settings(model, tmp_path / str(processes), "--steps", 20)
        several.run(whole_run, model, s, processes=processes)
    one, *others = (several.checkpoint(tmp_path / str(processes)) for processes in PROCESSES)
    assert one["ema"]["first.weight"].dtype == torch.float64
    for found in others:
        same_run(found, one)


def test_sigterm_to_one_of_three_ends_all_after_the_same_step_and_one_can_go_on(tmp_path):
    run, arguments = tmp_path / "run", [*several.TINY, "--steps", "20", "--checkpoint-every", "4"]
    jobs = several.start(several.slow_main, [*arguments, "--run-dir", str(run)], torch.float64,
                         processes=3, log=tmp_path / "log")
    several.wait_until((run / "latest.pt").exists, jobs)
    os.kill(jobs[1].pid, signal.SIGTERM)
    assert several.wait(jobs) == [1, 1, 1]
    log = (tmp_path / "log").read_text()
    assert log.count(f"--run-dir {run} --resume") == 1 and "Traceback" not in log, log
    assert 4 < several.checkpoint(run)["step"] < 20
    several.run(whole_run, "oasis", settings("oasis", run, "--checkpoint-every", 4, "--resume"))
    several.run(whole_run, "oasis", settings("oasis", tmp_path / "whole", "--steps", 20))
    same_run(several.checkpoint(run), several.checkpoint(tmp_path / "whole"))


def torchrun(*arguments):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc_per_node=2", "train.py", *map(str, arguments)],
                          cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_in_float32_six_steps_of_two_processes_stay_within_a_thousandth(tmp_path):
    """At the paper's learning rates. Adam with β1 = 0 steps by ±lr, so where a gradient is nearly 0
    rounding decides the sign; with ten times the rate, as in the toy preset, G drifts by 0.5 %."""
    arguments = ("--preset toy --steps 6 --batch-size 4 --workers 0 --checkpoint-every 6 "
                 "--picture-every 100 --score-every 1000 --metrics none --seed 3 --precision fp32 "
                 "--lr-g 1e-4 --lr-d 4e-4 --run-dir").split()
    done = torchrun(*arguments, tmp_path / "two")
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    several.run(train.main, [*arguments, str(tmp_path / "one")])
    one, two = (several.checkpoint(tmp_path / name) for name in ("one", "two"))
    for part in ("generator", "discriminator", "ema"):
        a, b = (torch.cat([v.flatten().double() for v in c[part].values()]) for c in (one, two))
        assert 0 < (a - b).norm() / a.norm() < 1e-3, part


def test_a_batch_that_does_not_divide_is_one_sentence_and_exit_code_2(tmp_path):
    done = torchrun(*several.TINY, "--batch-size", "5", "--run-dir", tmp_path)
    assert done.returncode == 1 and re.search(r"exitcode +: 2 ", done.stderr), done.stderr
    sentences = set(re.findall(r"^train.py: .*batch.size 5.* 2.*", done.stderr, re.M))
    assert len(sentences) == 1, done.stderr
    assert "train.py\", line" not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("function, more, sentence", [
    (train.train, ["--batch-size", "2"], "2.* 3"),                # more processes than images
    (unequal_start, ["--steps", "2"], "after step 2 .*not the same in all processes"),
    (train.train, ["--steps", "2", "--lr-g", "1e30"],
     "after step 2 (weights are|a loss is) not finite"),
])
def test_all_processes_end_with_exit_code_2_and_none_hangs(tmp_path, function, more, sentence):
    jobs = several.start(function, settings("oasis", tmp_path / "run", *more), processes=3,
                         log=tmp_path / "log")
    assert several.wait(jobs, 100) == [2, 2, 2]
    log = (tmp_path / "log").read_text()
    assert re.search(f"train.py: .*{sentence}", log) and "Traceback" not in log, log
    assert not (tmp_path / "run" / "latest.pt").exists()


def test_bf16_is_chosen_only_where_the_processor_computes_in_it(tmp_path, monkeypatch):
    """The preset small asks for it. Elsewhere than on Linux there is no file to read."""
    about = tmp_path / "cpuinfo"
    monkeypatch.setattr(processes, "Path", lambda _: about)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processes.fast_precision() == "fp32"
    for flags, wanted in (("fpu avx2 avx512f", "fp32"), ("fpu avx512_bf16 avx2", "bf16"),
                          ("amx_bf16", "bf16")):
        about.write_text(f"processor : 0\nflags : {flags}\n")
        assert processes.fast_precision() == wanted
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert processes.fast_precision() == "fp32"
