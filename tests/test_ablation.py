"""The ablation: rows, a real table of two tiny runs, resuming, refusals."""

import math
import re
import statistics

import pytest

import ablation
import oasis
import train

TINY = ["--height", "32", "--width", "32", "--channels", "2", "--num-blocks", "3", "--spade-hidden", "4",
        "--d-channels", "4", "8", "--patch-channels", "4", "8", "--batch-size", "4", "--segmenter-steps", "2",
        "--score-images", "8", "--log-every", "2", "--score-every", "4", "--steps", "4"]
ROWS = "OASIS without noise: --no-noise\nSPADE+: --model spade+ --lambda-vgg 0   # no VGG\nSPADE:--model spade\n"


def run(folder, *more):
    """The exit code of python ablation.py on the rows of the folder."""
    with pytest.raises(SystemExit) as e:
        ablation.main(["--rows", str(folder / "rows.txt"), "--out", str(folder / "out"), *TINY, *more])
    return e.value.code


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a finished table of two rows, one seed."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "rows.txt").write_text(ROWS)
    assert run(folder, "--seeds", "3", "--jobs", "2") == 0
    return folder


def test_the_shipped_rows_are_valid_and_named_apart(tmp_path):
    rows = str(ablation.Path(ablation.__file__).with_name("ablation.txt"))
    arguments = dict(rows=rows, seeds=[0, 1], out=str(tmp_path), jobs=1)
    (tmp_path / "vgg.pth").touch()
    with_vgg = ablation.plan(ablation.argparse.Namespace(**arguments, vgg_weights=str(tmp_path / "vgg.pth")), [])
    without = ablation.plan(ablation.argparse.Namespace(**arguments, vgg_weights=""), [])
    assert (len(with_vgg), len(without)) == (26, 16)
    assert len({run.folder for run in with_vgg}) == 26
    assert all(bool(run.settings.vgg_weights) == (run.settings.lambda_vgg > 0) for run in with_vgg)
    differing = {name for run in without for name, value in vars(run.settings).items()
                 if value != getattr(without[0].settings, name)}
    assert differing == {"seed", "run_dir", "model", "multimodal", "noise_dim", "lambda_labelmix",
                         "no_class_balance", "precision"}     # the same data, sizes, steps, learning rates


def test_a_table_of_two_runs(done, capsys):
    """The table again from what is kept; nothing is trained, which the checkpoints' times tell."""
    files = [done / "out" / name / "seed3" / "latest.pt" for name in ("oasis-without-noise", "spade-plus")]
    before = [path.stat().st_mtime_ns for path in files]
    assert run(done, "--seeds", "3") == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    printed = capsys.readouterr().out
    assert "Left out, as --vgg-weights FILE is not given: SPADE\n" in printed
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in
            (line.split("|") for line in printed.splitlines() if line.startswith("|"))}
    assert rows[""] == ["miou", "fd_segmenter", "ms_ssim", "seconds_per_step", "parameters", "seeds"]
    for name, file in zip(("OASIS without noise", "SPADE+"), files):
        scores = train.read_rows(file.with_name("scores.csv"))[-1]
        assert rows[name][:2] == [f"{scores['miou']:.4g}", f"{scores['fd_segmenter']:.4g}"]
        assert rows[name][2] == "1" and rows[name][-1] == "1"        # without noise: no diversity
        checkpoint = oasis.load_checkpoint(file)
        networks = train.models.make_networks(train.parse_arguments(
            [*TINY, "--model", checkpoint["model"], "--no-noise"])[0], 10)
        assert rows[name][4] == f"{sum(p.numel() for n in networks for p in n.parameters()):,}"
        assert checkpoint["config"]["seed"] == 3 and checkpoint["config"]["data_seed"] == 0
    assert (done / "out" / "ablation.csv").read_text().count("\n") == 3


def test_mean_and_spread_over_seeds():
    results = [dict(row=row, seed=seed, miou=value, parameters=1234567) for row, seed, value in
               (("a", 0, 0.5), ("a", 1, 0.7), ("b", 0, 0.25))]
    lines = ablation.table(results).splitlines()
    assert lines[2] == f"| a | 0.6 ± {statistics.stdev([0.5, 0.7]):.3g} | 1,234,567 | 2 |"
    assert lines[3] == "| b | 0.25 | 1,234,567 | 1 |"
    assert math.isclose(statistics.stdev([0.5, 0.7]), 0.1 * 2 ** 0.5)


def test_a_run_that_fails_is_named_and_the_others_go_on(done, tmp_path, capsys):
    (tmp_path / "rows.txt").write_text("OASIS without noise: --no-noise\nlarge: --batch-size 4000\n")
    (tmp_path / "out").mkdir()
    for name in ("segmenter.pt", "oasis-without-noise"):
        (tmp_path / "out" / name).symlink_to(done / "out" / name)
    assert run(tmp_path, "--seeds", "3") == 1
    printed = capsys.readouterr().out
    assert "large, seed 3: exit code 2: train.py: error: --batch-size 4000: the training set has" in printed
    assert "| OASIS without noise |" in printed and "| large |" not in printed


@pytest.mark.parametrize("rows, arguments, sentence", [
    ("OASIS\n", [], "rows.txt, line 1: write NAME: OPTIONS"),
    ("a:\n# b\na: --no-noise\n", [], "line 3: a second row named 'a'"),
    ("a b:\na-b:\n", ["--seeds", "0"], "a b, seed 0: .* share its folder"),
    ("a: --multimodal encoder\n", [], "--multimodal encoder: an image encoder belongs"),
    ("a: --model spade\n", [], "there is no row to train"),
    ("a:\n", ["--seed", "3"], "--seed: is chosen for each run"),
    ("a:\n", ["--jobs", "0"], "--jobs 0: must be at least 1"),
])
def test_a_mistake_is_one_sentence_exit_code_2_and_nothing_written(tmp_path, capsys, rows, arguments, sentence):
    (tmp_path / "rows.txt").write_text(rows)
    assert run(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(sentence, error), error
    assert not (tmp_path / "out").exists()


def test_another_tables_folder_is_refused(done, capsys):
    assert run(done, "--seeds", "3", "--lr-g", "0.5") == 2
    assert re.search("oasis-without-noise.seed3: was trained with --lr-g 0.001, not 0.5", capsys.readouterr().err)
