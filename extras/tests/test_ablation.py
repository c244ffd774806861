"""extras/ablation.py: a tiny table with a failure; rates; verdicts; the colour table; jobs."""

import csv
import math
import os
import re
import statistics
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import data
import sample
import train
from extras import ablation, colour_table, judges, tables
from extras.jobs import Job, places, run_jobs
from extras.stripes import Texture

TINY = ("--judge-steps 2 --maps 2 --segmenter-steps 2 --steps 4 --channels 2 --num-blocks 3 "
        "--spade-hidden 4 --d-channels 4 8 --height 32 --width 32 --batch-size 2 --log-every 1 "
        "--score-every 2 --picture-every 4 --checkpoint-every 2").split()
ROWS = ["colour-table", "oasis-no-noise"]


def run(out, *words):
    words = list(words) if "--rows" in words else ["--rows", *ROWS, *words]
    with pytest.raises(SystemExit) as exit_of:
        ablation.main(["--out", str(out), "--seeds", "3", "--jobs", "2", *words, *TINY])
    return exit_of.value.code or 0


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Two rows, and one that fails."""
    out = tmp_path_factory.mktemp("ablation") / "a folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ablation.ROWS, "absent", "extras.absent")
        patch.setattr(judges, "SIDE", 32)               # a small second judge
        assert run(out, "--rows", *ROWS, "absent") == 1
    return out


# ---- The command ---------------------------------------------------------------------------------


def test_the_table_again_from_what_is_kept(done, capsys):
    """Nothing is trained, which the checkpoints' times tell."""
    files = [done / row / "seed3" / "latest.pt" for row in ROWS]
    before = [file.stat().st_mtime_ns for file in files]
    assert run(done) == 0 and [file.stat().st_mtime_ns for file in files] == before
    printed = capsys.readouterr().out
    assert (done / "table.md").read_text().strip() in printed
    rows = {}
    for line in printed.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows.setdefault(cells[0], cells[1:])
    assert rows[""] == ["seeds", *judges.COLUMNS.values()]
    checkpoint = sample.load_checkpoint(files[1])
    of_row = dict(zip(judges.COLUMNS, rows["oasis-no-noise"][1:]))
    assert of_row["miou"] == f"{checkpoint['scores'][-1]['miou']:.3g}"
    assert of_row["d_miou"] == f"{checkpoint['scores'][-1]['d_miou']:.3g}"
    assert of_row["ms_ssim"] == "1" and of_row["noises"] == "0"         # there is no noise
    table = dict(zip(judges.COLUMNS, rows["colour-table"][1:]))
    assert table["detail"] == table["stripes"] == table["parameters"] == "0"
    assert table["d_miou"] == table["seconds_per_step"] == ""
    real = dict(zip(judges.COLUMNS, rows["real images"][1:]))
    assert real["miou_lraspp"] and real["fd_lraspp"] and real["stripes"] and not real["ms_ssim"]


def test_a_table_of_what_is_complete(done, capsys):
    assert run(done, "--rows", "oasis", *ROWS, "--no-training") == 0
    assert not (done / "oasis").exists() and "| oasis-no-noise | 1 |" in capsys.readouterr().out


def test_files(done):
    checkpoint = sample.load_checkpoint(done / "oasis-no-noise" / "seed3" / "latest.pt")
    assert checkpoint["settings"]["seed"] == 3 and checkpoint["settings"]["noise_dim"] == 0
    assert [line["step"] for line in checkpoint["scores"]] == [2, 4]
    shared = (done / "segmenter.pt").read_bytes()
    assert (done / "oasis-no-noise" / "seed3" / "segmenter.pt").read_bytes() == shared
    with open(done / "ablation.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ROWS
    G = sample.build_generator(checkpoint)
    D = sample.build_discriminator(checkpoint)
    parameters = 0
    for network in (G, D):
        parameters += sum(p.numel() for p in network.parameters())
    assert int(lines[1]["parameters"]) == parameters
    sheet, curves = Image.open(done / "sheet.png"), Image.open(done / "curves.png")
    assert sheet.size == (4 + 4 * (32 * 6 + 4), 18 + 10 * (32 * 6 + 4)) and curves.size[0] > 900


def test_a_row_that_failed_is_left_out(done):
    assert "No module named extras.absent" in (done / "absent/seed3/output.txt").read_text()
    assert not (done / "absent" / "seed3" / "complete").exists()
    assert "absent" not in (done / "table.md").read_text()


def test_mistakes_are_one_sentence_and_exit_code_2(done, capsys):
    for words, sentence in ((["--seed", "3"], "--seed: is chosen by the rows"),
                            (["--lr-g", "0.5"], "colour-table.seed3: was trained by other"),
                            (["--rates", "--lr-d=1"], "--rates chooses them")):
        assert run(done, *words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and re.search(sentence, error), error


def test_rows_and_pairs_exist():
    assert ablation.expand_rows(["parts", "oasis", "claims"])[:2] == ["oasis+pixels", "oasis"]
    assert set(ablation.expand_rows(["parts", "claims", "pixels"])) == set(ablation.ROWS)
    for pair in ablation.PAIRS:
        assert set(pair) <= set(ablation.ROWS)


def test_the_rows_own_options_win(tmp_path):
    job = ablation.make_job("part-zeros", 5, tmp_path, ["--lr-g=1"],
                            ["--padding", "replicate", "--lr-g", "2"])
    settings = train.parse_settings(job.words[1:])
    assert (settings.padding, settings.lr_g, settings.seed) == ("zeros", 2.0, 5)


# ---- Learning rates ------------------------------------------------------------------------------


def test_the_lowest_distance_chooses_the_rates(tmp_path, monkeypatch, capsys):
    """Trainings are replaced by their scores; one of them has failed."""
    distances = {"1e-3_4e-3": 3.0, "2e-3_5e-3": 2.0, "9_9": None}

    def run_jobs(jobs, at_a_time):
        for job in jobs:
            distance = distances[job.folder.name]
            if distance is not None:
                scores = [{"step": 1, "fd_segmenter": 0.0, "miou": 1.0},
                          {"step": 2, "fd_segmenter": distance, "miou": 0.5}]
                torch.save({"format": "oasis-run-2", "scores": scores}, job.folder / "latest.pt")
        return [job for job in jobs if distances[job.folder.name] is not None], False

    monkeypatch.setattr(ablation, "run_jobs", run_jobs)
    assert run(tmp_path, "--rates", "--rows", "oasis", "--grid", "9,9", "1e-3,4e-3",
               "2e-3,5e-3") == 0
    with open(tmp_path / "rates.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["lr_g"], line["chosen"]) for line in lines] == [("9", ""), ("1e-3", ""),
                                                                  ("2e-3", "yes")]
    assert "| oasis | 2e-3 | 5e-3 | 2.0 | 0.5 | yes |" in capsys.readouterr().out
    for row, rates in (("oasis", True), ("oasis-patch", True), ("part-zeros", True),
                       ("spade+noise", False)):
        chosen = ["--lr-g=2e-3", "--lr-d=5e-3"] if rates else []
        assert ablation.chosen_rates(tmp_path, row) == chosen


def test_the_nearest_row_of_the_rates_counts(tmp_path):
    (tmp_path / "rates.csv").write_text("row,lr_g,lr_d,chosen\noasis+pixels,1,2,yes\n"
                                        "oasis,3,4,yes\noasis,5,6,\n")
    assert ablation.chosen_rates(tmp_path, "oasis+pixels") == ["--lr-g=1", "--lr-d=2"]
    assert ablation.chosen_rates(tmp_path, "oasis-no-noise") == ["--lr-g=3", "--lr-d=4"]


# ---- Table and verdicts --------------------------------------------------------------------------


def test_mean_and_spread_over_seeds():
    results = []
    for row, seed, value in (("a", 0, 0.5), ("a", 1, 0.7), ("b", 0, 0.25)):
        results.append((row, seed, dict.fromkeys(judges.COLUMNS, value)))
    lines = tables.table(results).splitlines()
    spread = f"{statistics.stdev([0.5, 0.7]):.2g}"
    assert lines[3].startswith(f"| a | 2 | 0.6 ± {spread} |")
    assert lines[4].startswith("| b | 1 | 0.25 | 0.25 |")


def test_verdict():
    """Two standard deviations: the root of the mean of both rows' variances."""
    first, second = [1.0, 3.0, 5.0], [0.0, 1.0, 2.0]                # variances 4 and 1
    difference, ratio, decided = tables.verdict(first, second)
    assert difference == 2 and ratio == pytest.approx(2 / math.sqrt(2.5)) and not decided
    # Just above two deviations, and just below, in either direction.
    shift = 2 * math.sqrt(2.5) - 2
    for sign in (1, -1):
        above = [sign * (value + shift + 1e-9) for value in first]
        below = [sign * (value + shift - 1e-9) for value in first]
        other = [sign * value for value in second]
        assert tables.verdict(above, other)[2] and not tables.verdict(below, other)[2]
    assert tables.verdict([1.0, 1.0], [1.0, 1.0]) == (0.0, 0.0, False)
    assert tables.verdict([2.0, 2.0], [1.0, 1.0])[1:] == (math.inf, True)
    difference, ratio, decided = tables.verdict([5.0], [1.0, 2.0])  # one seed has no variance
    assert difference == 3.5 and math.isnan(ratio) and not decided


def test_verdicts_of_pairs():
    results = [("a", 0, {"miou": 0.5}), ("a", 1, {"miou": 0.6}), ("b", 0, {"miou": 0.1}),
               ("b", 1, {"miou": 0.2}), ("c", 0, {"miou": 0.1})]
    text = tables.verdicts(results, [("a", "b"), ("a", "c"), ("a", "d")])
    assert "| a − b | **+0.4** (5.7) |" in text and "| a − c | +0.45 (–) |" in text
    assert "a − d" not in text


def test_mean_texture_counts_classes_alike():
    shares = {1: Texture(0.2, 10.0, 50), 2: Texture(0.6, 2.0, 900)}
    assert judges.mean_texture(shares, [1, 2]) == (0.4, 6.0)
    # Class 3 is painted in one colour: no share, no detail.
    assert judges.mean_texture(shares, [1, 2, 3]) == (0.4, 4.0)
    assert judges.mean_texture({}, [1]) == (0.0, 0.0)


# ---- The colour table ----------------------------------------------------------------------------


def test_mean_colours_of_classes():
    images = torch.rand(3, 3, 4, 4) * 2 - 1
    labels = torch.randint(0, 2, (3, 4, 4), generator=torch.Generator().manual_seed(0))

    class Pairs:
        num_classes = 3

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return images[i], labels[i]

    colours = colour_table.mean_colours(Pairs())
    for k in (0, 1):
        pixels = images.permute(0, 2, 3, 1)[labels == k]
        torch.testing.assert_close(colours[k], pixels.mean(0))
    assert colours[2].tolist() == [0, 0, 0]
    first = colour_table.mean_colours(Pairs(), most=1)
    torch.testing.assert_close(first[1], images[0].permute(1, 2, 0)[labels[0] == 1].mean(0))


def test_a_colour_table_paints_its_colours(done):
    """Through the checkpoint, at a size that it was not made for."""
    model = sample.load_model(done / "colour-table" / "seed3" / "latest.pt")
    labels = torch.arange(15).view(3, 5) % len(model.class_names)
    picture = sample.paint(model.generator, labels, torch.zeros(1, 0))[0]
    expected = data.to_uint8(model.generator.colours.detach()[None, :, :, None].permute(0, 2, 1, 3))
    np.testing.assert_array_equal(picture, expected[0, :, 0][labels])
    sky = model.class_names.index("sky")
    assert expected[0, sky, 0][2] > expected[0, sky, 0][0] - 60     # a colour that skies have


# ---- Jobs ----------------------------------------------------------------------------------------


def test_jobs_one_core_each_and_one_thread(tmp_path, capsys, monkeypatch):
    """The processes tell where they run; the one that fails is named by its last words."""
    (tmp_path / "tells.py").write_text(
        "import os, sys\n"
        "print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'], sys.argv[1:])\n"
        "sys.exit('it is broken' if 'broken' in sys.argv else 0)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    jobs = []
    for name in ("a", "b", "broken"):
        jobs.append(Job(name, tmp_path / name, ["tells", name]))
    complete, stopped = run_jobs(jobs, at_a_time=2)
    assert [job.name for job in complete] == ["a", "b"] and not stopped
    assert "broken: exit code 1: it is broken" in capsys.readouterr().out
    said = (tmp_path / "a" / "output.txt").read_text()
    assert f"1 ['a', '--run-dir={tmp_path / 'a'}']" in said
    # Given again, the complete ones are left alone, and the other goes on from its checkpoint.
    (tmp_path / "broken" / "latest.pt").touch()
    (tmp_path / "a" / "output.txt").unlink()
    run_jobs(jobs, at_a_time=1)
    assert not (tmp_path / "a" / "output.txt").exists()
    assert "--resume" in (tmp_path / "broken" / "output.txt").read_text()
    with pytest.raises(data.UserError, match="was trained by other options"):
        Job("a", tmp_path / "a", ["tells", "b"])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or torch.cuda.is_available(),
                    reason="processes are not tied to cores here")
def test_places():
    cores = sorted(os.sched_getaffinity(0))
    found = places(len(cores) + 1)
    assert found[:-1] == cores and found[-1] == cores[0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to pass on")
def test_a_signal_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "waits.py").write_text("import os, signal, time\n"
                                       "os.kill(os.getppid(), signal.SIGTERM)\n"
                                       "time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    jobs = [Job("first", tmp_path / "first", ["waits"]), Job("next", tmp_path / "next", ["waits"])]
    assert run_jobs(jobs) == ([], True)
    assert not (tmp_path / "next").exists()
