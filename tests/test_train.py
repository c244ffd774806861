"""Training: settings, the two updates, the moving average, checkpoints, kills, and refusals."""

import copy
import dataclasses
import itertools
import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_datasets
import torch

import data
import losses
import oasis
import settings
import train

ROOT = Path(__file__).resolve().parent.parent
# Toy scenes with networks so small that a step takes a few hundredths of a second.
TINY = ["--height", "32", "--width", "32", "--channels", "2", "--num-blocks", "3", "--spade-hidden", "4",
        "--d-channels", "4", "8", "--batch-size", "4", "--segmenter-steps", "2", "--score-images", "8",
        "--log-every", "2", "--picture-every", "4", "--score-every", "4", "--checkpoint-every", "2"]


def run_tiny(folder, *more):
    train.main([*TINY, "--run-dir", str(folder), *more])
    return oasis.load_checkpoint(Path(folder) / "latest.pt")


def start_tiny(folder, *more):
    """The same in a process of its own, which can be killed. As many threads as in this one."""
    threads = f"torch.set_num_threads({torch.get_num_threads()})"
    command = [sys.executable, "-c", f"import torch, train; {threads}; train.main()"]
    return subprocess.Popen([*command, *TINY, "--run-dir", str(folder), *more], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"{path} was not written"
        time.sleep(0.01)


def rows_of(path):
    with open(path, newline="") as f:
        return [{k: float(v) if v else v for k, v in row.items()} for row in csv.DictReader(f)]


def same_bits(a, b):
    """Two checkpoints are equal in every tensor and counter, but for what names folder and time."""
    differences = []

    def compare(x, y, where):
        if isinstance(x, dict):
            assert x.keys() == y.keys(), where
            for key in x:
                if key not in ("seconds", "run_dir", "resume", "steps"):
                    compare(x[key], y[key], f"{where}/{key}")
        elif isinstance(x, torch.Tensor):
            if not torch.equal(x, y):
                differences.append(where)
        elif x != y:
            differences.append(where)

    compare(a, b, "")
    return differences == [] or differences


# ---- Settings --------------------------------------------------------------------------------------


def test_defaults_are_the_papers():
    s, _ = settings.parse_arguments(["--preset", "ade20k", "--data-root", "x"])
    assert (s.height, s.width, s.batch_size, s.epochs) == (256, 256, 32, 200)
    assert (s.lr_g, s.lr_d, s.beta1, s.beta2) == (1e-4, 4e-4, 0, 0.999)
    assert (s.lambda_labelmix, s.ema_decay, s.init_gain_g, s.init_gain_d) == (10, 0.9999, 0.02, 0.02)
    s, _ = settings.parse_arguments(["--preset", "cityscapes"])
    assert (s.height, s.width, s.batch_size, s.lr_g, s.lambda_labelmix) == (256, 512, 20, 4e-4, 5)
    s, _ = settings.parse_arguments(["--preset", "coco-stuff", "--epochs", "7"])
    assert s.epochs == 7                                         # the command line beats the preset


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as e:
        settings.parse_arguments(["--help"])
    text = capsys.readouterr().out
    assert e.value.code == 0
    for field in dataclasses.fields(settings.Settings):
        assert "--" + field.name.replace("_", "-") in text and field.metadata["help"].split()[0] in text


@pytest.mark.parametrize("arguments, sentence", [
    (["--height", "60"], "--height 60: must be a multiple of 8.*56 or 64"),
    (["--width", "4"], "--width 4: .*nearest: 8"),
    (["--batch-size", "3000"], "3000: the training set has only 2000 images"),
    (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
    (["--seed", "99999999999999999999"], "--seed 9+: must lie in"),
    (["--ema-decay", "1"], r"--ema-decay 1.0: must lie in \[0, 1\)"),
    (["--lambda-labelmix", "-1"], "--lambda-labelmix -1.0: must not be negative"),
    (["--metrics", "miou,beauty"], "--metrics beauty: known are .*miou"),
    (["--preset", "mars"], "mars.*ade20k"),
    (["--colour", "red"], "unrecognized arguments: --colour red"),
    (["--preset", "folder", "--data-root", "/nowhere"], "/nowhere"),
    (["--preset", "folder"], "--data-root"),
    (["--resume"], "holds no latest.pt"),
    (["--epochs", "0"], "--epochs 0: there is nothing to train"),
    (["--d-channels", "8", "1"], "--d-channels 8 1: each must be at least 2"),
    (["--height", "8", "--width", "8", "--batch-size", "1"], "one pixel"),
])
def test_a_mistake_is_one_sentence_exit_code_2_and_nothing_written(tmp_path, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as e:
        train.main([*arguments, "--run-dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert e.value.code == 2 and "Traceback" not in error
    assert re.search(sentence, error), error
    assert not (tmp_path / "run").exists()


def test_a_file_for_a_run_folder_is_refused(tmp_path, capsys):
    (tmp_path / "run").touch()
    with pytest.raises(SystemExit) as e:
        train.main(["--run-dir", str(tmp_path / "run")])
    assert e.value.code == 2 and "run: is a file; name a folder" in capsys.readouterr().err


# ---- The two updates -------------------------------------------------------------------------------


def tiny_state(**changes):
    s = settings.Settings(**{**settings.PRESETS["toy"], "height": 16, "width": 16, "channels": 2,
                          "num_blocks": 2, "spade_hidden": 4, "d_channels": (4, 8), **changes})
    return s, train.State(s, 5, torch.device("cpu"))


def tiny_batch(n=4):
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (n, 4, 4), generator=g).repeat_interleave(4, 1).repeat_interleave(4, 2)
    real = torch.rand(n, 3, 16, 16, generator=g) * 2 - 1
    return (real, labels, torch.randn(n, 64, generator=g), losses.labelmix_mask(labels, 5, g),
            losses.class_weights(labels, 5, 0))


def step(state, batch, lambda_labelmix=10.0):
    return train.training_step(state.G, state.D, state.D, state.optimizer_G, state.optimizer_D, *batch,
                               lambda_labelmix)


@pytest.mark.parametrize("lambda_labelmix", [0.0, 10.0])
def test_each_network_gets_the_gradient_of_its_own_objective(lambda_labelmix):
    """Against the plain form: one pass for each image, nothing frozen, D first, then G."""
    _, state = tiny_state()
    G, D = copy.deepcopy(state.G), copy.deepcopy(state.D)
    real, labels, noise, mask, weights = batch = tiny_batch()
    # Spectral norm's power iteration moves at every forward pass, and here they differ in number;
    # from converged singular vectors it does not move.
    for network in (G, D, state.G, state.D):
        for m in network.modules():
            if hasattr(m, "_u"):
                m.n_power_iterations = 500
    terms = step(state, batch, lambda_labelmix)

    fake = G(labels, noise)
    loss_D = losses.real_loss(D(real), labels, weights) + losses.fake_loss(D(fake.detach()))
    if lambda_labelmix:
        mix = losses.labelmix(real, fake.detach(), mask)
        loss_D = loss_D + lambda_labelmix * losses.labelmix_loss(D(mix), D(real), D(fake.detach()), mask)
    expected = torch.autograd.grad(loss_D, list(D.parameters()))
    for (name, p), g in zip(state.D.named_parameters(), expected):
        torch.testing.assert_close(p.grad, g, rtol=2e-3, atol=2e-5, msg=name)
    assert (terms["loss_D_real"] + terms["loss_D_fake"] + lambda_labelmix * terms["loss_labelmix"]
            ).item() == pytest.approx(loss_D.item(), rel=1e-4)

    loss_G = losses.real_loss(state.D(G(labels, noise)), labels, weights)      # D has been updated
    expected = torch.autograd.grad(loss_G, list(G.parameters()))
    for (name, p), g in zip(state.G.named_parameters(), expected):
        torch.testing.assert_close(p.grad, g, rtol=2e-3, atol=2e-5, msg=name)
    assert terms["loss_G"].item() == pytest.approx(loss_G.item(), rel=1e-4)


def test_the_update_of_g_leaves_no_gradient_in_d_and_d_unfrozen():
    _, state = tiny_state(lr_d=0.0)
    before = [p.clone() for p in state.D.parameters()]
    step(state, tiny_batch())
    gradients = [p.grad.clone() for p in state.D.parameters()]
    step(state, tiny_batch())
    assert all(p.requires_grad for p in state.D.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, state.D.parameters()))      # lr_d = 0
    assert any(g.abs().max() > 0 for g in gradients)


def test_without_class_balance_every_labelled_pixel_weighs_the_same():
    s, state = tiny_state(no_class_balance=True, lambda_labelmix=0.0, lr_d=0.0)
    real, labels, noise, mask, weights = tiny_batch()
    D = copy.deepcopy(state.D)
    terms = train.update(s, state, state.G, state.D, real, labels, noise, mask, weights, None,
                         torch.autocast("cpu", enabled=False))
    assert state.terms == ["loss_G", "loss_D_real", "loss_D_fake"]             # no LabelMix in the log
    cross_entropy = torch.nn.functional.cross_entropy(D(real), labels, reduction="none")
    expected = cross_entropy[labels != 0].sum() / labels.numel()                # 0 is the unknown
    assert terms["loss_D_real"].item() == pytest.approx(expected.item(), rel=1e-3)


# ---- The moving average ----------------------------------------------------------------------------


def test_ema_is_the_weighted_mean_of_all_weights_so_far():
    _, state = tiny_state()
    expected = [p.detach().clone() for p in state.G.parameters()]
    for _ in range(3):
        step(state, tiny_batch())
        train.update_ema(state.ema, state.G, 0.9)
        expected = [0.9 * e + 0.1 * p.detach() for e, p in zip(expected, state.G.parameters())]
    for e, p in zip(expected, state.ema.parameters()):
        torch.testing.assert_close(e, p.detach())


def test_refreshed_average_has_the_statistics_of_its_own_features():
    """Layer by layer: what the first batch norm stores is mean and variance of what reaches it."""
    _, state = tiny_state()
    for _ in range(3):
        step(state, tiny_batch())
        train.update_ema(state.ema, state.G, 0.5)
    batches = [tiny_batch()[1] for _ in range(2)]
    train.refresh_ema(state.ema, state.G, batches, seed=0)
    assert not state.ema.training
    features = [oasis.convolve(state.ema.first, state.ema.condition_pyramid(b, torch.randn(
        len(b), 64, generator=train.random_stream(0, "ema", i)))[0]) for i, b in enumerate(batches)]
    norm = state.ema.blocks[0].norm_0.norm
    torch.testing.assert_close(norm.running_mean, torch.stack(
        [f.mean((0, 2, 3)) for f in features]).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, torch.stack(
        [f.var((0, 2, 3)) for f in features]).mean(0), rtol=1e-4, atol=1e-5)
    first = copy.deepcopy(state.ema.state_dict())
    train.refresh_ema(state.ema, state.G, batches, seed=0)       # again: nothing changes
    assert all(torch.equal(first[k], v) for k, v in state.ema.state_dict().items())


# ---- A whole run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 12 steps; other tests interrupt theirs and compare."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run_tiny(folder, "--steps", "12")


def test_a_run_leaves_everything_behind_that_it_promises(whole):
    folder, checkpoint = whole
    for name in ("latest.pt", "best.pt", "log.csv", "scores.csv", "curves.png", "segmenter.pt",
                 "samples/step_000000.png", "samples/step_000012.png"):
        assert (folder / name).stat().st_size > 0, name
    assert not list(folder.glob("*.tmp"))
    rows = rows_of(folder / "log.csv")
    assert [r["step"] for r in rows] == [2, 4, 6, 8, 10, 12]
    assert list(rows[0]) == ["step", "seconds", "loss_G", "loss_D_real", "loss_D_fake", "loss_labelmix"]
    assert all(value > 0 for r in rows for value in r.values())
    assert {"miou", "miou_real", "fd_segmenter"} <= rows_of(folder / "scores.csv")[0].keys()
    assert checkpoint["step"] == 12 and checkpoint["best"]["miou"] == max(r["miou"] for r in rows_of(folder / "scores.csv"))


def test_reloaded_generator_draws_the_same_picture_to_the_last_bit(whole):
    """save → load → sample: no statistics, no singular vector is lost on the way."""
    folder, checkpoint = whole
    s = settings.Settings(**checkpoint["config"])
    state = train.State(s, 10, torch.device("cpu"))
    state.load(checkpoint)
    labels = torch.stack([data.open_dataset("toy", "val", (32, 32))[i][1] for i in range(8)])
    noise = oasis.noise_from_seeds(range(8))
    G = oasis.generator_from(oasis.load_checkpoint(folder / "latest.pt"))
    with torch.no_grad():
        assert torch.equal(state.ema.eval()(labels, noise), G(labels, noise))


def test_killed_and_resumed_ends_in_the_same_bits(whole, tmp_path):
    process = start_tiny(tmp_path / "run", "--steps", "12")
    wait_for(tmp_path / "run" / "latest.pt", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = oasis.load_checkpoint(tmp_path / "run" / "latest.pt")["step"]
    assert killed_at < 12                                        # it was killed while it ran
    resumed = run_tiny(tmp_path / "run", "--resume", "--steps", "12")
    assert same_bits(resumed, whole[1]) is True
    logs = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(f / name)]
            for name in ("log.csv", "scores.csv") for f in (whole[0], tmp_path / "run")]
    assert logs[0] == logs[1] and logs[2] == logs[3]             # no row twice, none missing


def test_twenty_kills_at_random_moments_and_during_saving_change_no_bit(tmp_path):
    """And none loses more steps than --checkpoint-every: see tests/kills.py."""
    done = subprocess.run([sys.executable, ROOT / "tests" / "kills.py", tmp_path], capture_output=True,
                          text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 20 and found["half_written"] >= 5 and found["most_lost"] <= 3, found
    killed, whole = (oasis.load_checkpoint(tmp_path / name / "latest.pt") for name in ("killed", "whole"))
    assert whole["step"] == 100 and same_bits(killed, whole) is True
    assert not list(tmp_path.glob("*/*.tmp"))


def test_sigterm_finishes_the_step_saves_and_says_how_to_go_on(whole, tmp_path):
    process = start_tiny(tmp_path / "run", "--steps", "100000", "--checkpoint-every", "100000")
    wait_for(tmp_path / "run" / "log.csv", process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "Traceback" not in output, output
    assert f"train.py --run-dir {tmp_path / 'run'} --resume" in output
    stopped = oasis.load_checkpoint(tmp_path / "run" / "latest.pt")["step"]
    assert stopped < 12
    assert same_bits(run_tiny(tmp_path / "run", "--resume", "--steps", "12", "--checkpoint-every", "2"),
                     whole[1]) in (True, ["/config/checkpoint_every"])


def test_resume_goes_on_beyond_the_first_end_and_keeps_its_settings(whole, tmp_path):
    run_tiny(tmp_path / "run", "--steps", "6")
    train.main(["--run-dir", str(tmp_path / "run"), "--resume", "--steps", "12"])
    assert same_bits(oasis.load_checkpoint(tmp_path / "run" / "latest.pt"), whole[1]) is True


def test_what_resuming_may_change_it_changes(whole, tmp_path):
    """Learning rates, scores and the rhythm of the log; asking for epochs voids the old steps."""
    shutil.copytree(whole[0], tmp_path / "run")
    train.main(["--run-dir", str(tmp_path / "run"), "--resume", "--lr-g", "0", "--metrics", "accuracy",
                "--steps", "14", "--log-every", "5"])
    resumed = oasis.load_checkpoint(tmp_path / "run" / "latest.pt")
    assert all(torch.equal(p, resumed["generator"][name]) for name, p in whole[1]["generator"].items()
               if "weight" in name and name.endswith(("original", "shared.weight", "bias")))
    assert any(not torch.equal(p, resumed["discriminator"][name])
               for name, p in whole[1]["discriminator"].items())
    last = rows_of(tmp_path / "run" / "scores.csv")[-1]
    assert last["step"] == 14 and last["accuracy"] != "" and last["miou"] == ""
    assert all(value > 0 for value in rows_of(tmp_path / "run" / "log.csv")[-1].values())
    s, _ = settings.parse_arguments(["--epochs", "3"])
    assert s.steps == 0


def test_a_run_of_other_classes_is_not_resumed(whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path / "run")
    checkpoint = oasis.load_checkpoint(tmp_path / "run" / "latest.pt")
    checkpoint["dataset"]["class_names"][1] = "ocean"
    torch.save(checkpoint, tmp_path / "run" / "latest.pt")
    with pytest.raises(SystemExit) as e:
        train.main(["--run-dir", str(tmp_path / "run"), "--resume", "--steps", "14"])
    assert e.value.code == 2 and "trained on other classes" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_not_saved():
    _, state = tiny_state()
    train.check_weights(state)
    next(state.D.parameters()).data[0] = float("inf")
    with pytest.raises(train.TrainingStopped, match="Discriminator are not finite after step 0"):
        train.check_weights(state)


@pytest.mark.parametrize("arguments, sentence", [
    ([], "already holds a run.*--resume.*--run-dir"),
    (["--resume", "--channels", "3"], "--channels 3: .*was started with 2"),
    (["--resume", "--preset", "cityscapes"], "--preset cityscapes: .*started with toy"),
    (["--resume"], "is complete, 12 steps of 12"),
])
def test_an_existing_run_is_neither_overwritten_nor_changed(whole, capsys, arguments, sentence):
    before = {p: p.read_bytes() for p in whole[0].glob("*") if p.is_file()}
    with pytest.raises(SystemExit) as e:
        train.main([*arguments, "--run-dir", str(whole[0])])
    error = capsys.readouterr().err
    assert e.value.code == 2 and __import__("re").search(sentence, error), error
    assert before == {p: p.read_bytes() for p in whole[0].glob("*") if p.is_file()}


def test_resuming_from_a_checkpoint_that_is_cut_off_is_refused(whole, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    content = (whole[0] / "latest.pt").read_bytes()
    (tmp_path / "run" / "latest.pt").write_bytes(content[:len(content) // 3])
    with pytest.raises(SystemExit) as e:
        train.main(["--run-dir", str(tmp_path / "run"), "--resume"])
    assert e.value.code == 2 and "cut off" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["latest.pt"]


def test_full_disk_leaves_the_previous_checkpoint_whole(tmp_path):
    """A real limit on file size stands for the full disk: the write itself fails halfway."""
    path = tmp_path / "latest.pt"
    train.save_checkpoint({"weights": torch.zeros(1000)}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(train.TrainingStopped, match="latest.pt could not be written.*--resume"):
            train.save_checkpoint({"weights": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["latest.pt"]


def test_a_loss_that_is_not_finite_stops_the_run_before_the_checkpoint(tmp_path, capsys, monkeypatch):
    original, calls = train.training_step, []

    def poisoned(*arguments):
        calls.append(None)
        terms = original(*arguments)
        return terms | {"loss_D_fake": torch.tensor(float("nan"))} if len(calls) == 5 else terms

    monkeypatch.setattr(train, "training_step", poisoned)
    with pytest.raises(SystemExit) as e:
        train.main([*TINY, "--run-dir", str(tmp_path / "run"), "--steps", "12"])
    assert e.value.code == 1
    assert "loss_D_fake is nan at step 5" in capsys.readouterr().err
    assert oasis.load_checkpoint(tmp_path / "run" / "latest.pt")["step"] == 4


def test_weights_that_are_not_finite_are_neither_scored_nor_saved(tmp_path, capsys, monkeypatch):
    """After finite losses, at a step that is scored: NaN could pass for the best score, or end in a traceback."""
    original, calls = train.update_ema, []

    def poisoned(ema, G, decay):
        original(ema, G, decay)
        calls.append(None)
        if len(calls) == 4:
            G.last.weight.data.fill_(float("nan"))

    monkeypatch.setattr(train, "update_ema", poisoned)
    with pytest.raises(SystemExit) as e:
        train.main([*TINY, "--run-dir", str(tmp_path / "run"), "--steps", "12"])
    assert e.value.code == 1 and "weights of Generator are not finite after step 4" in capsys.readouterr().err
    assert [row["step"] for row in train.read_rows(tmp_path / "run" / "scores.csv")] == [0]
    assert oasis.load_checkpoint(tmp_path / "run" / "latest.pt")["step"] == 2


# ---- Faults in the middle of a run, and what a long one holds ---------------------------------------

PHOTOS = ["--preset", "folder", "--height", "16", "--width", "16", "--channels", "2", "--num-blocks", "2",
          "--spade-hidden", "4", "--d-channels", "4", "8", "--batch-size", "4", "--metrics", "none"]


def run_on_photos(folder, monkeypatch, after_report, *more):
    """A run on twelve photographs in folder/data; after_report(step) is called after each step."""
    tiny_datasets.write_folder(folder / "data", train=12, val=8, size=(16, 16))
    original = train.report

    def report(s, state, *rest, **options):
        original(s, state, *rest, **options)
        after_report(state.step)

    monkeypatch.setattr(train, "report", report)
    train.main([*PHOTOS, "--data-root", str(folder / "data"), "--run-dir", str(folder / "run"), *more])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_photo_that_becomes_unreadable_ends_the_run_in_one_sentence(tmp_path, capsys, monkeypatch, workers):
    def cut_off(step):
        if step == 4:                            # the check at the start is long past
            for path in (tmp_path / "data" / "images" / "train").iterdir():
                os.truncate(path, path.stat().st_size // 2)

    with pytest.raises(SystemExit) as e:
        run_on_photos(tmp_path, monkeypatch, cut_off, "--workers", workers, "--checkpoint-every", "2",
                      "--steps", "40")
    error = capsys.readouterr().err.split("\r")[-1].strip().splitlines()
    assert e.value.code == 2 and len(error) <= 2 and "Traceback" not in error[-1]
    sentence = rf"train.py: error: {tmp_path}/data/images/train/street.*: .*cannot be read as a picture"
    assert re.match(sentence, error[-1]), error
    assert 4 <= oasis.load_checkpoint(tmp_path / "run" / "latest.pt")["step"] < 40


def test_a_killed_worker_ends_the_run_in_one_sentence(tmp_path):
    """In a process of its own: PyTorch raises the error from a signal handler, wherever the program is."""
    tiny_datasets.write_folder(tmp_path / "data", train=12, val=8, size=(16, 16))
    program = """if True:
        import multiprocessing, os, signal, sys, train
        original = train.report
        def report(s, state, *rest, **options):
            original(s, state, *rest, **options)
            if state.step == 4:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        train.report = report
        train.main(sys.argv[1:])"""
    done = subprocess.run([sys.executable, "-c", program, *PHOTOS, "--data-root", str(tmp_path / "data"),
                           "--run-dir", str(tmp_path / "run"), "--workers", "2", "--checkpoint-every", "2",
                           "--steps", "400"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"train.py: a process that loads images was ended from outside; the last checkpoint.* is "
                     rf"whole; go on by: python train.py --run-dir {tmp_path}/run --resume\n", done.stderr)
    assert 4 <= oasis.load_checkpoint(tmp_path / "run" / "latest.pt")["step"] < 400


def test_memory_and_open_files_do_not_grow(tmp_path, monkeypatch):
    """After warming up; with a worker, pictures, scores and checkpoints all the time."""
    held = {}

    def measure(step):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        held[step] = pages * resource.getpagesize() / 2**20, len(os.listdir("/proc/self/fd"))

    run_on_photos(tmp_path, monkeypatch, measure, "--workers", "1", "--metrics", "miou,fd_segmenter",
                  "--segmenter-steps", "2", "--log-every", "5", "--picture-every", "40", "--score-every", "40",
                  "--checkpoint-every", "10", "--steps", "160")
    assert held[160][0] - held[80][0] < 8, held                  # MiB
    assert held[160][1] - held[80][1] < 8, held                 # the loader holds some in flight


def test_scoring_and_pictures_do_not_disturb_the_training(whole, tmp_path):
    other = run_tiny(tmp_path / "run", "--steps", "12", "--score-every", "12", "--picture-every", "6")
    assert all(torch.equal(v, whole[1]["generator"][k]) for k, v in other["generator"].items())
    assert all(torch.equal(v, whole[1]["ema"][k]) for k, v in other["ema"].items())


def test_batch_and_noise_do_not_depend_on_the_number_of_processes():
    s, _ = tiny_state(batch_size=6)
    scenes = data.open_dataset("toy", "train", (16, 16), num_images=12)
    whole_batch = list(itertools.islice(data.BatchSampler(12, 6, seed=0), 5))
    labels = torch.zeros(6, 16, 16, dtype=torch.int64)
    noise = train.draw(s, 3, labels, scenes, 0, 1)[0]
    for world in (2, 3):
        for rank in range(world):
            share = itertools.islice(data.BatchSampler(12, 6, 0, rank, world), 5)
            assert list(share) == [batch[rank::world] for batch in whole_batch]
            own = train.draw(s, 3, labels[rank::world], scenes, rank, world)[0]
            assert torch.equal(own, noise[rank::world])
