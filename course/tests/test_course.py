"""The course: the notebook runs, every patch applies and trains, every script measures right."""

import ast
import csv
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
COURSE = ROOT / "course"
SOLUTIONS = COURSE / "solutions"
PATCHES = sorted(path.stem for path in SOLUTIONS.glob("*.patch"))
SCRIPTS = sorted(path.stem for path in SOLUTIONS.glob("[0-9]*.py"))
SECTIONS = 10
# A training of a second: networks and images as small as they can be.
TINY = ("--steps 2 --batch-size 2 --height 32 --width 32 --num-blocks 3 --channels 4 "
        "--spade-hidden 16 --d-channels 8 8 8 --log-every 1 --picture-every 9 --checkpoint-every 2 "
        "--segmenter-steps 1 --score-every 2").split()


def read_notebook():
    return nbformat.read(COURSE / "oasis.ipynb", as_version=4)


def run(*command, cwd=ROOT):
    """Run a script of the project; returns what it prints."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(text):
    return [float(word) for word in re.findall(r"(?<![\w.])-?\d+\.?\d*(?:e[+-]\d+)?", text)]


# ---- The notebook --------------------------------------------------------------------------------


def sections(notebook):
    """[cells of section 1, …]: a section starts at the text cell that holds its heading."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(r"^## \d+\. ", cell.source, re.M):
            found.append([])
        if found:
            found[-1].append(cell)
    return found


def pictures(cells):
    return [output for cell in cells for output in cell.get("outputs", ())
            if "image/png" in output.get("data", {})]


def test_notebook_is_short_and_plain():
    notebook = read_notebook()
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert sum(len(text.split()) for text in texts) <= 2500
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 15
    headings = re.findall(r"^## (\d+)\. ", "\n".join(texts), re.M)
    assert headings == [str(k) for k in range(1, SECTIONS + 1)]


def test_notebook_takes_everything_from_the_core():
    """Its own functions show things. None has the name of one of the project."""
    own, core = set(), set()
    for cell in read_notebook().cells:
        if cell.cell_type == "code":
            source = re.sub(r"^%.*", "", cell.source, flags=re.M)
            own |= {node.name for node in ast.walk(ast.parse(source))
                    if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for file in ROOT.glob("*.py"):
        core |= {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert not own & core and len(own) <= 5


def test_stored_outputs():
    notebook = read_notebook()
    assert all(pictures(cells) for cells in sections(notebook))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count
            for output in cell.outputs:
                assert output.output_type != "error" and output.get("name") != "stderr"
    assert (COURSE / "oasis.ipynb").stat().st_size < 2e6


def execute(cells, folder):
    """Run these cells in a kernel that starts in this folder; their outputs replace the stored."""
    for cell in cells:
        if cell.cell_type == "code":
            cell.outputs = []
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3",
                            resources={"metadata": {"path": str(folder)}}).execute()


def test_notebook_finds_the_project_from_the_root_too():
    execute([cell for cell in read_notebook().cells if cell.cell_type == "code"][:1], ROOT)


def test_notebook_runs_in_a_fresh_kernel():
    notebook, began = read_notebook(), time.monotonic()
    execute(notebook.cells, COURSE)
    print(f"the notebook took {time.monotonic() - began:.0f} s")
    assert len(pictures(notebook.cells)) >= 8
    assert all(pictures(cells) for cells in sections(notebook))
    printed = "".join(output.text for cell in notebook.cells for output in cell.get("outputs", ())
                      if output.output_type == "stream" and output.name == "stdout")
    by_hand = re.findall(r"by hand ([\d.]+) +losses.py ([\d.]+)", printed)
    assert len(by_hand) == 3
    assert all(float(a) == pytest.approx(float(b), abs=2e-6) for a, b in by_hand)
    assert float(re.search(r"standard deviation .*: (\S+)", printed)[1]) < 1e-12


# ---- The exercises -------------------------------------------------------------------------------


def test_text_and_solutions_belong_together():
    text = (COURSE / "exercises.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\d+)\. ", text, re.M) == [str(k) for k in range(1, 13)]
    assert len(text.split()) <= 1800
    solutions = {path.name for path in SOLUTIONS.iterdir() if path.name[0].isdigit()}
    assert solutions == set(re.findall(r"\b\d\d_\w+\.(?:patch|py)\b", text))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run folder of the code as it is: latest.pt, log.csv, segmenter.pt."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run("train.py", *TINY, "--metrics", "miou", "--run-dir", folder)
    return folder


def losses_of(folder):
    with open(folder / "log.csv", newline="") as file:
        return [[float(row[k]) for k in row if k.startswith("loss")] for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", PATCHES)
def test_patch_applies_and_trains(name, tiny_run, tmp_path):
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path)
    for options in (["--check"], []):
        # Without a repository around it, git patches plain files.
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
        subprocess.run(["git", "apply", *options, SOLUTIONS / f"{name}.patch"], cwd=tmp_path,
                       check=True, env=environment)
    run("train.py", *TINY, "--metrics", "none", "--run-dir", "run", cwd=tmp_path)
    patched, plain = losses_of(tmp_path / "run"), losses_of(tiny_run)
    if name.startswith("01"):       # the fake class first: the same losses, from the same start
        assert sum(patched, []) == pytest.approx(sum(plain, []), rel=1e-3)
    else:
        assert len(patched) == len(plain) and patched != plain


def test_cutmix_takes_one_rectangle_per_image(tmp_path):
    shutil.copy(ROOT / "losses.py", tmp_path)
    shutil.copy(ROOT / "train.py", tmp_path)
    subprocess.run(["git", "apply", SOLUTIONS / "04_cutmix.patch"], cwd=tmp_path, check=True,
                   env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)})
    code = ("import torch, losses; m = losses.labelmix_mask(torch.zeros(600, 32, 48).long(), 5, "
            "torch.Generator().manual_seed(0))[:, 0]; rows, columns = m.amax(2), m.amax(1); "
            "print(torch.equal(m, rows[:, :, None] * columns[:, None]), m.mean().item())")
    product, mean = run("-c", code, cwd=tmp_path).split()
    assert product == "True" and abs(float(mean) - 0.5) < 0.05


@pytest.fixture(scope="session")
def printed(tiny_run):
    """script(number) -> the lines that it prints, its numbers read, for the tiny run."""
    shutil.copy(tiny_run / "latest.pt", tiny_run / "step2.pt")        # for exercise 7

    def script(number):
        name = next(name for name in SCRIPTS if name.startswith(f"{number:02d}"))
        small = {2: ["--batches", 2], 9: [], 12: None}.get(number, ["--num-images", 8])
        options = [] if small is None else [tiny_run / "latest.pt", *small]
        return [(line, numbers(line)) for line in run(SOLUTIONS / f"{name}.py",
                                                      *options).splitlines()]
    return script


def test_every_script_is_tested():
    assert [int(name[:2]) for name in SCRIPTS] == [2, 6, 7, 8, 9, 10, 11, 12]


def test_02_equal_over_a_whole_batch_not_over_shares(printed):
    for _, (_, ours, plain, ours_shared, plain_shared) in printed(2)[-2:]:
        assert ours == pytest.approx(plain, abs=3e-6) and ours == pytest.approx(ours_shared, abs=3e-6)
        assert ours != plain_shared


def test_06_two_kinds_of_noise(printed):
    rows = dict((line[:13], values) for line, values in printed(6))
    assert rows["one vector pe"] != rows["one per pixel"] and len(rows) == 2


def test_07_six_averages(printed):
    lines = printed(7)
    assert len(lines) == 7 and "2" in lines[0][0]
    values = {line[:26].strip(): value for line, value in lines[1:]}
    # One checkpoint: the means of weights and of images are those of a single G.
    assert values["G, its own statistics"] == values["mean of images"]
    assert values["G, its own statistics"] == values["mean of weights, its own"]


def test_08_a_row_for_each_class(printed):
    lines = printed(8)
    assert lines[2][0].startswith("unknown") and len(lines) == 2 + 14
    for _, values in lines[3:]:
        if len(values) == 8:                    # classes that occur in these few images
            assert all(0 <= value <= 100 for value in values)


def test_09_the_reach_of_a_pixel_goes_by_what_divides_it(printed):
    """7s − 2 down and right, s − 1 less up and left."""
    for _, values in printed(9)[2:]:
        stride, reach = int(values[2]), values[3:7]
        assert reach == 2 * [6 * stride - 1, 7 * stride - 2]


def test_10_lengths(printed):
    lengths = [values[-4] for _, values in printed(10)]
    assert lengths[0] == pytest.approx(8, abs=0.6) and lengths[1] == pytest.approx(8, abs=0.6)
    assert lengths[2] == pytest.approx(5.7, abs=0.6) and lengths[3] == 0
    assert lengths[4] == pytest.approx(2 * lengths[0], abs=1e-2)


def test_11_the_texture_of_scenes_does_not_come_again(printed):
    (_, real), (_, generated) = printed(11)
    assert real[0] > 0.005 and abs(real[1]) < 0.2 and -1 <= generated[1] <= 1


def test_12_all_three_exchanges_make_one_batch(printed):
    errors = [values for line, values in printed(12) if " G " in line]
    assert len(errors) == 4 and all(max(pair) > 1e-3 for pair in errors[:3])
    assert max(errors[3]) < 1e-12
