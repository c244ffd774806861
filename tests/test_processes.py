"""Two and three processes compute what one computes; a batch, a run, its scores; and end together.

In float64 only a wrong formula makes a difference. Batch norm is in train mode throughout.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import several
import torch

import data
import metrics
import oasis
import train
from extras import spade

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = (1, 2, 3)


def variant(model):
    """(make_networks, step) of OASIS or of SPADE+."""
    return ((train.make_networks, train.training_step) if model == "oasis" else
            (spade.make_networks, spade.spade_step))


def settings(model, run_dir, *more):
    arguments = [*several.TINY, "--run-dir", str(run_dir), *map(str, more)]
    return (train.parse_arguments(arguments) if model == "oasis" else
            spade.parse_arguments([*arguments, "--model", "spade+", "--lambda-vgg", "0"]))


# ---- What the processes do -----------------------------------------------------------------------


def one_step(model, s, out):
    """The gradients of both updates of one step, and its terms, into OUT/PROCESSES.pt."""
    torch.set_default_dtype(torch.float64)
    device = oasis.start_processes()
    rank, processes = oasis.rank_and_size()
    networks, step = variant(model)
    scenes = data.open_dataset("toy", "train", (32, 32))
    state = train.State(s, networks, scenes.num_classes, device)
    G, D = state.generator, state.discriminator
    # Plain gradient descent: Adam's first step is about the gradient's sign.
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (G, D)]
    batch, _ = train.draw(s, 1, *next(train.training_batches(s, scenes)), scenes, device, False)
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


def score(checkpoint, out):
    """Trains the segmenter and scores by it."""
    torch.set_default_dtype(torch.float64)
    device = oasis.start_processes()
    train_set, val_set = (data.open_dataset("toy", split, (32, 32), num_images=36)
                          for split in ("train", "val"))
    scorer = metrics.Scorer(val_set, train_set, device, ("miou", "fd_segmenter", "d_miou"),
                            batch_size=8, segmenter_steps=3)
    content = oasis.load_checkpoint(checkpoint)
    scores = scorer(oasis.build_generator(content), oasis.build_discriminator(content))
    rank, processes = oasis.rank_and_size()
    torch.save(scores, out / f"{processes}.{rank}.pt")


def unequal_start(s):
    def networks(s, num_classes):
        G, D = train.make_networks(s, num_classes)
        G.last.bias.data += oasis.rank_and_size()[0]
        return G, D
    train.train(s, networks)


def slow_main(arguments):
    """train.py in float64, with a pause in every step, so that a signal finds it in their midst."""
    torch.set_default_dtype(torch.float64)
    update = train.update_ema
    train.update_ema = lambda *a: (time.sleep(0.2), update(*a))
    train.main(arguments)


# ---- The same numbers ----------------------------------------------------------------------------


def same(found, wanted, tolerance):
    """Every tensor within the tolerance, relative to its own largest value.

    A bias before batch norm has the gradient 0; what rounding leaves of it is compared with the
    largest of all gradients.
    """
    largest = max(v.abs().max() for v in wanted.values())
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, msg=name,
                                   atol=float(tolerance * value.abs().max() + 1e-15 * largest))


@pytest.mark.parametrize("model", ["oasis", "spade+"])
def test_gradients_and_statistics_of_a_step_are_those_of_one_process(tmp_path, model):
    for processes in PROCESSES:
        several.run(one_step, model, settings(model, tmp_path), tmp_path, processes=processes)
    one, *others = (torch.load(tmp_path / f"{processes}.pt") for processes in PROCESSES)
    assert len(one) > 80 and one["G first.weight"].abs().max() > 0
    for found in others:
        same(found, one, 1e-10)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function: model -> the final checkpoints of runs of 20 steps by 1, 2, 3 processes."""
    folder = tmp_path_factory.mktemp("runs")

    def make(model):
        for processes in PROCESSES:
            several.run(whole_run, model, settings(model, folder / model / str(processes), "--steps", 20),
                        processes=processes)
        return [several.checkpoint(folder / model / str(processes)) for processes in PROCESSES]
    found = {}
    return lambda model: found.setdefault(model, None) or found.update({model: make(model)}) or found[model]


def equal_checkpoints(found, wanted, tolerance):
    for part in ("generator", "discriminator", "ema"):
        for name, value in wanted[part].items():
            torch.testing.assert_close(found[part][name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("model", ["oasis", "spade+"])
def test_after_twenty_steps_weights_average_and_statistics_are_those_of_one_process(runs, model):
    one, *others = runs(model)
    assert one["ema"]["first.weight"].dtype == torch.float64
    for found in others:
        equal_checkpoints(found, one, 1e-8)
        assert found["log"][-1]["loss_G"] == pytest.approx(one["log"][-1]["loss_G"], rel=1e-8)


def test_scores_of_a_checkpoint_are_those_of_one_process(runs, tmp_path):
    path = tmp_path / "run"
    torch.save(runs("oasis")[0], path)
    for processes in PROCESSES:
        several.run(score, path, tmp_path, processes=processes)
    one, *others = (torch.load(path) for path in sorted(tmp_path.glob("*.pt")))
    assert len(others) == 5 and {"miou", "miou_real", "fd_segmenter", "d_miou"} <= one.keys()
    for scores in others:                                   # every process returns the same
        assert scores == pytest.approx(one, rel=1e-10, abs=1e-12)


def test_sigterm_to_one_process_ends_all_after_one_step_and_one_process_can_go_on(runs, tmp_path):
    run, arguments = tmp_path / "run", [*several.TINY, "--steps", "20", "--checkpoint-every", "4"]
    jobs = several.start(slow_main, [*arguments, "--run-dir", str(run)], processes=3, log=tmp_path / "log")
    several.wait_until((run / "latest.pt").exists, jobs)
    os.kill(jobs[1].pid, signal.SIGTERM)
    assert several.wait(jobs) == [1, 1, 1]
    log = (tmp_path / "log").read_text()
    assert 4 < several.checkpoint(run)["step"] < 20
    assert log.count(f"--run-dir {run} --resume") == 1 and "Traceback" not in log, log
    several.run(whole_run, "oasis", settings("oasis", run, "--checkpoint-every", 4, "--resume"))
    equal_checkpoints(several.checkpoint(run), runs("oasis")[0], 1e-8)


# ---- The real command, and bad input -------------------------------------------------------------


def torchrun(*arguments):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc_per_node=2", "train.py", *map(str, arguments)],
                          cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_in_float32_six_steps_of_two_processes_stay_within_a_thousandth(tmp_path):
    arguments = ("--preset toy --steps 6 --batch-size 4 --workers 0 --checkpoint-every 6 "
                 "--picture-every 100 --score-every 1000 --metrics none --seed 3 --precision fp32 "
                 "--run-dir").split()
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
    assert len(set(re.findall(r"^train.py: .*batch.size 5.* 2.*", done.stderr, re.M))) == 1, done.stderr
    assert "train.py\", line" not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("function, more, sentence", [
    (train.train, ["--batch-size", "2"], "2.* 3"),                # more processes than images
    (unequal_start, ["--steps", "2"], "processes differ after step 2"),
    (train.train, ["--steps", "2", "--lr-g", "1e30"], "not finite after step 2"),
])
def test_all_processes_end_with_exit_code_2_and_none_hangs(tmp_path, function, more, sentence):
    jobs = several.start(function, settings("oasis", tmp_path / "run", *more), processes=3, log=tmp_path / "log")
    assert several.wait(jobs, 100) == [2, 2, 2]
    log = (tmp_path / "log").read_text()
    assert re.search(f"train.py: .*{sentence}", log) and "Traceback" not in log, log
    assert not (tmp_path / "run" / "latest.pt").exists()
