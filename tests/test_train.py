"""Training: settings, the two updates, the average, kills, signals, refusals, torch.compile."""

import copy
import csv
import dataclasses
import math
import os
import re
import resource
import shutil
import signal
import time
import types
from pathlib import Path

import pytest
import several
import tiny_datasets
import torch
from several import checkpoint, settings
from torch._dynamo.utils import counters
from torch.testing._internal.distributed.fake_pg import FakeStore

import data
import losses
import metrics
import oasis
import toy
import train

STEPS = ["--steps", "12", "--checkpoint-every", "3", "--log-every", "100"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 12 steps; others are interrupted, and compared with it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train.train(settings(folder, *STEPS))
    return folder


def differences(a, b, where=""):
    """Where two checkpoints differ in a bit, but for time and the settings of the computer."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        return [place for key in a if key not in ("seconds", *train.CHANGEABLE)
                for place in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)) and len(a) == len(b):
        return differences(dict(enumerate(a)), dict(enumerate(b)), where)
    return [] if (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b) else [where]


def rows(path):
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def refused(arguments, capsys):
    """train.main ends with exit code 2 and one sentence, which is returned."""
    with pytest.raises(SystemExit) as end:
        train.main([str(a) for a in arguments])
    error = capsys.readouterr().err.split("\r")[-1]
    assert end.value.code == 2 and "Traceback" not in error and error.count("train.py: ") == 1
    return error


def test_settings_are_the_papers_and_help_tells_each_of_them(capsys):
    s = train.parse_settings(["--preset", "ade20k", "--data-root", "x"])
    assert (s.height, s.width, s.batch_size, s.epochs, s.noise_dim) == (256, 256, 32, 200, 64)
    assert (s.lr_g, s.lr_d, s.lambda_labelmix, s.ema_decay) == (1e-4, 4e-4, 10, 0.9999)
    assert tuple(s.init_gain) == (0.02, 0.02) and s.padding == "zeros" and s.precision == "fp32"
    s = train.parse_settings(["--preset", "cityscapes"])
    assert (s.height, s.width, s.batch_size, s.lr_g, s.lambda_labelmix) == (256, 512, 20, 4e-4, 5)
    assert train.parse_settings(["--preset", "coco-stuff", "--epochs", "7"]).epochs == 7
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    fields = dataclasses.fields(train.Settings)
    assert end.value.code == 0 and len(fields) > 25
    for field in fields:
        assert "--" + field.name.replace("_", "-") in shown, field.name
        assert " ".join(field.metadata["help"].split()) in shown, field.name


@pytest.mark.parametrize("preset, value", [("toy", "64"), ("cityscapes", "512")])
def test_help_shows_the_values_that_a_run_would_take(capsys, preset, value):
    with pytest.raises(SystemExit):
        train.main(["--preset", preset, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"width of the images, a multiple of 2^(num_blocks-1) [{value}]" in shown


@pytest.mark.parametrize("field", dataclasses.fields(train.Settings), ids=lambda f: f.name)
@pytest.mark.parametrize("value", ["0", "-1", "nan", "word", "/nowhere/at/all"])
def test_every_value_of_every_option_is_taken_or_refused_in_words(tmp_path, capsys, field, value):
    """Options are read; the data and the networks are opened, but nothing is trained."""
    if field.type is bool:
        return
    values = [value] * (2 if field.name == "init_gain" else 1)
    arguments = [*several.TINY, "--run-dir", tmp_path / "run", "--steps", 1, "--workers", 0,
                 train.option_name(field), *values]
    if field.name == "run_dir" and value.startswith("/"):
        (tmp_path / "file").touch()
        arguments[-1] = tmp_path / "file"
    try:
        s = train.parse_settings([str(word) for word in arguments])
        train.open_scorer(s, *train.open_datasets(s), torch.device("cpu"))
    except data.UserError as error:
        assert "\n" not in str(error) and str(error)
    except SystemExit as end:                      # argparse's own refusal, in one sentence
        assert end.code == 2 and "error: argument --" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, sentence", [
    (["--preset", "folder", "--data-root", "/nowhere"], "/nowhere"),
    (["--batch-size", "30000"], "30000.* 20000"),
    (["--height", "30"], "--height 30 --width 32: .*multiples of 4"),
    (["--metrics", "miou,beauty"], "beauty.*miou"),
    (["--resume"], "latest.pt: there is no such file"),
    (["--frozen-norm", "50"], "--frozen-norm 50.*from 0 to 1"),
    (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
    (["--num-blocks", "0"], "--num-blocks 0: must be from 1 to 12"),
    (["--log-every", "0"], "--log-every 0: must be at least 1"),
    (["--steps", "-2"], "--steps -2: must be at least 0"),
    (["--lr-d", "nan"], "--lr-d nan: must be at least 0"),
    (["--d-channels", "8", "0"], "--d-channels .8, 0.: must be at least 2"),
    (["--pixel-noise", "65"], "--pixel-noise 65: the noise has 64 channels"),
    (["--data-root", "/nowhere"], "toy"),
])
def test_a_mistake_is_one_sentence_and_nothing_is_written(tmp_path, capsys, arguments, sentence):
    error = refused([*several.TINY, *arguments, "--run-dir", tmp_path / "run"], capsys)
    assert re.search(sentence, error), error
    assert not (tmp_path / "run").exists()


def test_g_learns_from_the_d_that_has_just_learned_and_on_the_same_images(tmp_path):
    torch.manual_seed(0)
    s = settings(tmp_path, "--init-gain", 1, 1)
    G, D = (network.double().eval() for network in train.make_networks(s, 5))
    old_G, new_D = copy.deepcopy(G), copy.deepcopy(D)
    real, noise, weights = (torch.rand(shape).double() for shape in ((2, 3, 16, 16), (2, 64), 5))
    labels, mask = torch.randint(5, (2, 16, 16)), torch.randint(2, (2, 1, 16, 16)).double()
    terms = train.training_step(
        G, D, *(torch.optim.SGD(network.parameters(), 0.1) for network in (G, D)),
        (real, labels, noise, mask, weights), s)

    fake = old_G(labels, noise)                                   # now one after the other
    of_real, of_fake, of_mix = (new_D(x) for x in (
        real, fake.detach(), losses.labelmix(real, fake.detach(), mask)))
    parts = [losses.real_loss(of_real, labels, weights), losses.fake_loss(of_fake),
             losses.labelmix_loss(of_mix, of_real, of_fake, mask)]
    (parts[0] + parts[1] + s.lambda_labelmix * parts[2]).backward()
    torch.optim.SGD(new_D.parameters(), 0.1).step()
    loss_G = losses.real_loss(new_D(fake), labels, weights)
    loss_G.backward()
    torch.optim.SGD(old_G.parameters(), 0.1).step()
    for p, q in zip([*D.parameters(), *G.parameters()], [*new_D.parameters(), *old_G.parameters()]):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13)
    assert list(terms) == ["loss_G", "loss_D_real", "loss_D_fake", "loss_labelmix"]
    torch.testing.assert_close(list(terms.values()), [x.detach() for x in (loss_G, *parts)])


def test_the_average_has_statistics_of_its_own_however_often_they_are_measured():
    torch.manual_seed(0)
    G, other = (oasis.Generator(4, channels=2, num_blocks=2, spade_hidden=4) for _ in range(2))
    ema, before = copy.deepcopy(G), [p.clone() for p in G.parameters()]
    train.update_average(ema, other, 0.9)
    for average, old, new in zip(ema.parameters(), before, other.parameters()):
        torch.testing.assert_close(average.data, 0.9 * old + 0.1 * new.data)
    maps = [torch.randint(4, (3, 32, 32), dtype=torch.uint8) for _ in range(4)]
    states, sizes = [], dict(batch_size=3, height=32, width=32)
    for _ in range(2):
        train.prepare_average(ema, other, maps, train.Settings(seed=5, **sizes))
        assert not ema.training
        states.append({k: v.clone() for k, v in ema.state_dict().items()})
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())
    assert states[0]["blocks.0.norm_0.norm.num_batches_tracked"] == 4
    train.prepare_average(ema, other, maps, train.Settings(seed=6, **sizes))      # other noise
    assert not torch.equal(ema.state_dict()["blocks.1.norm_0.norm.running_var"],
                           states[0]["blocks.1.norm_0.norm.running_var"])


def test_learning_rates_fall_to_zero_over_their_last_share(tmp_path):
    seen = []

    def step(G, D, optimizer_G, optimizer_D, batch, s):
        seen.append([o.param_groups[0]["lr"] for o in (optimizer_G, optimizer_D)])
        return {"loss_G": torch.zeros(())}
    train.train(settings(tmp_path, *"--steps 8 --lr-decay 0.5 --lr-g 1 --lr-d 2".split()),
                update=step)
    assert seen == [[x, 2 * x] for x in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)]


def test_in_the_last_steps_the_batch_norm_of_g_keeps_its_statistics(whole, tmp_path):
    """Also where the run was stopped among them; and the average has the same ones at the end."""
    means = []

    def step(G, *others):
        means.append(G.blocks[0].norm_0.norm.running_mean.clone())
        if len(means) == 10:
            os.kill(os.getpid(), signal.SIGTERM)          # stops after step 10
        return train.training_step(G, *others)
    train.train(settings(tmp_path, *STEPS), update=step)
    assert checkpoint(tmp_path)["step"] == 10
    train.train(settings(tmp_path, *STEPS, "--resume"), update=step)
    kept = [torch.equal(a, b) for a, b in zip(means, means[1:])]
    assert kept == [False] * 6 + [True] * 5               # --frozen-norm 0.5: steps 7 to 12
    assert differences(checkpoint(tmp_path), checkpoint(whole)) == []
    networks = [checkpoint(whole)[name] for name in ("generator", "ema")]
    for name in (name for name in networks[0] if "running" in name):
        assert torch.equal(*(network[name] for network in networks)), name


def test_a_run_that_is_cut_short_on_resume_measures_its_fixed_statistics(tmp_path):
    """Six of 40 steps; then 8 are asked for, so that steps 5 to 8 should have had fixed ones."""
    means = []

    def update(G, *others):
        means.append(G.blocks[0].norm_0.norm.running_mean.clone())
        if len(means) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return train.training_step(G, *others)
    train.train(settings(tmp_path, "--steps", 40), update=update)
    train.train(settings(tmp_path, "--steps", 8, "--resume"), update=update)
    assert len(means) == 8 and torch.equal(means[6], means[7])
    G, average = (checkpoint(tmp_path)[name] for name in ("generator", "ema"))
    assert torch.equal(G["blocks.0.norm_0.norm.running_mean"], means[7])
    assert torch.equal(average["blocks.0.norm_0.norm.running_mean"], means[7])
    # Measured, not collected with momentum: they come from 128 // 6 = 21 batches.
    assert G["blocks.0.norm_0.norm.num_batches_tracked"] == 21


@pytest.mark.parametrize("scores, best", [
    ([{"fid": 9, "miou": 0.1}, {"fid": 5, "miou": 0.3}, {"fid": 7, "miou": 0.9}], 2),
    ([{"fd_segmenter": 3, "miou": 0.1}, {"fd_segmenter": 2, "miou": 0.3},
      {"fd_segmenter": 4, "miou": 0.9}], 2),
    ([{"miou": 0.4}, {"miou": 0.6}, {"miou": 0.5}], 2)])
def test_best_is_the_lowest_fid_else_fd_segmenter_else_the_highest_miou(tmp_path, monkeypatch,
                                                                        scores, best):
    monkeypatch.setattr(metrics, "Scorer", lambda *_, **__: lambda G, D: dict(scores.pop(0)))
    monkeypatch.setattr(metrics, "show", lambda *_: None)
    train.train(settings(tmp_path, "--steps", 3, "--score-every", 1, "--metrics", "miou"))
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == best
    assert [row["step"] for row in rows(tmp_path / "scores.csv")] == ["1", "2", "3"]


def test_killed_three_times_and_resumed_ends_in_the_same_bits(whole, tmp_path):
    """Kills come 0 to 0.2 s after a checkpoint, and never after the next: it is too far."""
    run, before = tmp_path / "run", None
    for kill in range(3):
        options = settings(run, *STEPS, *["--resume"] * bool(before))
        job, = several.start(several.train_five_steps, options)
        several.wait_until(lambda: (run / "latest.pt").exists()
                           and (run / "latest.pt").stat().st_mtime_ns != before, [job])
        time.sleep(0.1 * kill)
        job.kill()
        assert several.wait([job]) == [-signal.SIGKILL]
        before = (run / "latest.pt").stat().st_mtime_ns
        assert checkpoint(run)["step"] == 3 * (kill + 1)
    train.train(settings(run, *STEPS, "--resume"))
    assert checkpoint(run)["step"] == 12 and differences(checkpoint(run), checkpoint(whole)) == []
    assert rows(run / "log.csv") == rows(whole / "log.csv")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_signal_finishes_the_step_saves_and_can_be_resumed(whole, tmp_path, number, send):
    """Also with loader processes, to the process alone or, as a terminal does, to its group."""
    run = tmp_path / "run"
    arguments = [*several.TINY, *STEPS, "--workers", "2", "--run-dir", str(run)]
    job, = several.start(several.slow_main, arguments, log=tmp_path / "log")
    several.wait_until((run / "latest.pt").exists, [job])
    send(job.pid, number)
    assert several.wait([job]) == [1]
    log = (tmp_path / "log").read_text()
    assert f"--run-dir {run} --resume" in log and "Traceback" not in log, log
    assert 3 < checkpoint(run)["step"] < 12
    several.wait_until(lambda: not several.members_of_session(job.pid))       # no loader is left
    train.train(settings(run, *STEPS, "--workers", 0, "--resume"))
    assert differences(checkpoint(run), checkpoint(whole)) == []


def test_a_signal_in_the_last_step_is_the_end_of_a_whole_run_and_handlers_are_as_before(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    steps = []

    def update(*arguments):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train.training_step(*arguments)
    assert train.train(settings(tmp_path, "--steps", 2), update=update) is not None
    assert checkpoint(tmp_path)["step"] == 2 and signal.getsignal(signal.SIGTERM) is before


def perfect(labels, ignore_label, *options):
    """train.losses_of_perfect_G of one batch of three classes."""
    dataset = types.SimpleNamespace(num_classes=3, ignore_label=ignore_label)
    return train.losses_of_perfect_G(train.training_step, settings("unused", *options),
                                [labels.to(torch.uint8)], dataset)


def test_no_logits_do_better_against_a_perfect_generator(capsys):
    """The best logits, found by descent on our losses, where real and painted are alike."""
    labels = torch.ones(2, 8, 8, dtype=torch.int64)
    labels[0, :2], labels[:, 7] = 2, 0                     # a rare class, an ignored one
    weights = losses.class_weights(labels, 3, ignore_label=0)
    # D knows the class of every pixel: one row of logits for each class, learned.
    logits = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=300, line_search_fn="strong_wolfe")

    def terms():
        image = logits[labels].permute(0, 3, 1, 2)
        return losses.real_loss(image, labels, weights), losses.fake_loss(image)

    def closure():
        optimizer.zero_grad()
        sum(terms()).backward()
        return sum(terms())

    optimizer.step(closure)
    ends = perfect(labels, 0)
    of_real, of_fake = (term.item() for term in terms())
    assert ends["loss_D_real"] == ends["loss_G"] == pytest.approx(of_real, abs=1e-3)
    assert ends["loss_D_fake"] == pytest.approx(of_fake, abs=1e-3)
    assert f"loss_D_fake {of_fake:.2f}" in capsys.readouterr().out
    # Without balance the odds are 1 to 1; without a pixel to learn from there is no loss.
    even = perfect(labels, None, "--no-class-balance")
    assert list(even.values()) == pytest.approx([math.log(2)] * 3)
    assert set(perfect(torch.zeros_like(labels), 0).values()) == {0.0}


def test_curves_show_each_value_and_what_it_is_measured_by(tmp_path, monkeypatch):
    figures = []
    save = metrics.Figure.savefig
    monkeypatch.setattr(metrics.Figure, "savefig",
                        lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    log = [{"step": 1, "seconds": 2.0, "loss_G": 3.0}, {"step": 2, "seconds": 3.0, "loss_G": 4.0}]
    log += [{"step": 2, "miou": 0.5, "miou_real": 0.6, "d_miou": 0.1}]
    metrics.save_curves(log, {"loss_G": 0.7}, tmp_path / "curves.png")
    shown = {}
    for axis in figures[0].axes:
        assert axis.get_xlabel() == "step"
        shown[axis.get_ylabel()] = [(line.get_linestyle(), *line.get_ydata())
                                    for line in axis.lines]
    assert shown == {"loss_G": [("-", 3.0, 4.0), ("--", 0.7, 0.7)],
                     "miou": [("-", 0.5), ("--", 0.6)], "d_miou": [("-", 0.1)]}


def test_a_full_disk_leaves_the_previous_checkpoint_whole(whole, tmp_path):
    """A limit on the size of files stands for the full disk: the write itself fails halfway."""
    run, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    shutil.copytree(whole, run)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises((data.UserError, OSError, RuntimeError)):
            train.train(settings(run, *STEPS, "--steps", 14, "--resume"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run / "latest.pt").read_bytes() == (whole / "latest.pt").read_bytes()
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_table_that_another_program_keeps_does_not_end_the_training(
        tmp_path, monkeypatch, capsys):
    """Excel on Windows keeps a csv that it shows. The rows come with the next checkpoint."""
    run, replace, kept = tmp_path / "run", os.replace, []

    def refuse_once(source, target):
        if Path(target).name == "log.csv" and not kept:
            kept.append(target)
            raise PermissionError(13, "Access is denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_once)
    train.train(settings(run, "--steps", 4, "--checkpoint-every", 2))
    assert "log.csv: cannot be written (Access is denied); the rows" in capsys.readouterr().out
    assert len((run / "log.csv").read_text().splitlines()) == 5 and checkpoint(run)["step"] == 4


def test_a_path_with_a_percent_sign_is_no_format_of_the_help(whole, tmp_path, capsys):
    content, run = checkpoint(whole), tmp_path / "100% run"
    content["settings"].update(data_root="50% crop")
    run.mkdir()
    torch.save(content, run / "latest.pt")
    with pytest.raises(SystemExit) as end:
        train.main(["--resume", "--run-dir", str(run), "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and "[50% crop]" in said and "100% run" in said


def test_a_resumed_run_is_compiled_only_if_asked_again(whole, tmp_path):
    """The other machine may have no compiler."""
    content = checkpoint(whole)
    content["settings"]["compile"] = True
    torch.save(content, tmp_path / "latest.pt")
    assert not train.parse_settings(["--resume", "--run-dir", str(tmp_path)]).compile


@pytest.mark.parametrize("lr", ["1e30", "1e12"])
def test_weights_and_statistics_that_are_not_finite_reach_no_checkpoint(tmp_path, capsys, lr):
    run = tmp_path / "run"
    error = refused([*several.TINY, "--run-dir", run, "--steps", 9, "--lr-g", lr,
                     "--checkpoint-every", 1], capsys)
    assert re.search(r"after step \d (weights are|a loss is) not finite", error), error
    assert f"last checkpoint, {run / 'latest.pt'}, is from before" in error
    if (run / "latest.pt").exists():
        for name in ("generator", "discriminator", "ema"):
            assert all(value.isfinite().all() for value in checkpoint(run)[name].values()), name


@pytest.mark.parametrize("arguments, change, sentence", [
    ([], {}, "holds a run already.*--resume.*--run-dir"),
    (["--resume", "--channels", "3"], {}, "channels 3: .*started with 2"),
    (["--resume"], {"optimizer_G": None}, "latest.pt: holds no optimizers"),
    (["--resume"], {"dataset": {"class_names": ["ocean"], "ignore_label": 0}}, "other classes"),
    (["--resume"], {"dataset": {"class_names": list(toy.CLASSES), "ignore_label": None}},
     "other classes"),
    (["--resume"], {"format": "oasis-run-1"}, "not a checkpoint of this edition"),
])
def test_a_run_is_neither_overwritten_nor_changed(
        whole, tmp_path, capsys, arguments, change, sentence):
    (tmp_path / "run").mkdir()
    content = {**checkpoint(whole), **change}
    torch.save({k: v for k, v in content.items() if v is not None}, tmp_path / "run" / "latest.pt")
    before = (tmp_path / "run" / "latest.pt").read_bytes()
    error = refused([*several.TINY, "--run-dir", tmp_path / "run", *arguments], capsys)
    assert re.search(sentence, error), error
    assert (tmp_path / "run" / "latest.pt").read_bytes() == before
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"latest.pt", ".lock0"}


def test_a_folder_in_use_is_refused_to_a_second_run(tmp_path, capsys):
    """Also before the first checkpoint. The lock ends with the run, however it ends."""
    job, = several.start(several.train_five_steps, settings(tmp_path / "run", *STEPS))
    several.wait_until((tmp_path / "run" / "latest.pt").exists, [job])
    for more in ([], ["--resume"]):
        assert "another run is using" in refused(
            [*several.TINY, *STEPS, *more, "--run-dir", tmp_path / "run"], capsys) or not more
    job.kill()
    several.wait([job])
    train.train(settings(tmp_path / "run", *STEPS, "--resume"))
    assert checkpoint(tmp_path / "run")["step"] == 12


def test_a_run_folder_that_cannot_be_written_is_refused_before_the_training(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert "file" in refused([*several.TINY, *STEPS, "--run-dir", tmp_path / "file"], capsys)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))     # stands for a full disk
    try:
        error = refused([*several.TINY, *STEPS, "--run-dir", tmp_path / "run"], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written" in error and not list((tmp_path / "run").glob("*.pt"))


def test_losses_that_are_not_finite_end_the_run_at_the_next_log_row(tmp_path, capsys):
    def update(*arguments):
        terms = train.training_step(*arguments)
        terms["loss_G"] *= float("nan")
        return terms
    with pytest.raises(data.UserError, match="after step 4 a loss is not finite.*latest.pt, is"):
        train.train(settings(tmp_path, *STEPS, "--log-every", 4), update=update)
    assert checkpoint(tmp_path)["step"] == 3


def test_resuming_goes_on_beyond_the_first_end_with_what_may_change(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    train.train(train.parse_settings(
        ["--run-dir", str(run), "--resume", "--steps", "14", "--lr-g", "0"]))
    old, new = checkpoint(whole), checkpoint(run)
    assert new["step"] == 14 and new["settings"]["channels"] == 2
    same = [torch.equal(old[part]["last.weight"], new[part]["last.weight"])
            for part in ("generator", "discriminator", "ema")]
    assert same == [True, False, False]


def test_a_resumed_run_takes_no_setting_from_todays_preset(whole, tmp_path):
    """A run from before there was pixel noise goes on without, though its preset now has some."""
    content = checkpoint(whole)
    assert content["settings"].pop("pixel_noise") == 16
    (tmp_path / "run").mkdir()
    torch.save(content, tmp_path / "run" / "latest.pt")
    s = train.parse_settings(["--run-dir", str(tmp_path / "run"), "--resume"])
    assert s.pixel_noise == 0 and s.preset == "toy" and s.channels == 2


def test_pictures_scores_and_checkpoints_change_no_weight(whole, tmp_path):
    train.train(settings(tmp_path, "--steps", 12, "--picture-every", 4, "--score-every", 5,
                         "--checkpoint-every", 2, "--metrics", "miou,d_miou"))
    for name in ("generator", "discriminator", "ema"):
        assert differences(checkpoint(tmp_path)[name], checkpoint(whole)[name]) == []
    assert [row["step"] for row in rows(tmp_path / "scores.csv")] == ["5", "10", "12"]
    assert len(rows(tmp_path / "log.csv")) == 12 and "d_miou" in rows(tmp_path / "scores.csv")[0]
    for name in ("best.pt", "curves.png", "segmenter.pt", "samples/step_000004.png"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert {path.name for path in tmp_path.rglob(".*")} == {".lock0"}       # no half-written file


def test_any_number_of_loader_processes_gives_the_same_weights(tmp_path):
    tiny_datasets.make_folder(tmp_path / "data", train=9, val=4, size=(36, 48))
    found = []
    for workers in (0, 1, 3):
        run = tmp_path / str(workers)
        train.train(settings(run, "--preset", "folder", "--data-root", tmp_path / "data",
                             "--batch-size", 4, "--steps", 5, "--workers", workers))
        found.append(checkpoint(run))
    assert differences(found[0], found[1]) == differences(found[0], found[2]) == []


def test_a_gpu_that_is_missing_or_lacks_bfloat16_is_refused(tmp_path, monkeypatch, capsys):
    for name, answer in dict(is_available=True, device_count=1, set_device=None).items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: including_emulation)
    with pytest.raises(data.UserError, match="--precision bf16"):
        settings(tmp_path, "--precision", "bf16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as end:
        train.train(settings(tmp_path))
    assert end.value.code == 2
    assert "2 processes need a GPU each, this machine has 1" in capsys.readouterr().err


def test_compiling_what_pytorch_cannot_compile_is_refused(tmp_path, monkeypatch):
    """The gradient of replicate padding has on a CPU another layout than Inductor expects."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(data.UserError, match="--compile: PyTorch cannot compile --padding"):
        settings(tmp_path, "--compile")
    assert settings(tmp_path, "--compile", "--padding", "zeros").compile


@pytest.mark.parametrize("emulated_processes", [1, 2])
def test_compiled_training_has_five_graphs_no_break_and_no_recompilation(
        tmp_path, monkeypatch, emulated_processes):
    """G; D on three images and on one per label map; what D minimises, what G minimises."""
    graphs, counts, compile = [], [], torch.compile

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def step(*arguments):
        terms = train.training_step(*arguments)
        counts.append(len(graphs))
        return terms

    torch._dynamo.reset()
    counters.clear()
    for name in ("discriminator_losses", "real_loss"):            # are put back at the end
        monkeypatch.setattr(losses, name, getattr(losses, name))
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile(f, backend=count, **options))
    tiny_datasets.make_folder(tmp_path / "data", train=12, val=4, size=(32, 32))
    more = "--num-blocks 2 --steps 20 --compile --picture-every 7 --score-every 6 --metrics d_miou"
    if emulated_processes == 2:                         # a group whose messages go nowhere
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        more = more.replace("d_miou", "none")
    try:
        train.train(settings(tmp_path / "run", "--preset", "folder", "--data-root",
                             tmp_path / "data", "--workers", 0, *more.split()), update=step)
    finally:
        if emulated_processes == 2:
            torch.distributed.destroy_process_group()
    assert counts == [5] * 20 and len(graphs) == 5
    assert not counters["graph_break"], counters["graph_break"]
