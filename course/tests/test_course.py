"""The course: the notebook runs and its sentences say what it shows, every patch applies and
trains, every script measures right.
"""

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
sys.path.insert(0, str(ROOT))                   # where sample.py and the others are

import data  # noqa: E402  (found only now)
import sample  # noqa: E402
import train  # noqa: E402

COURSE = ROOT / "course"
SOLUTIONS = COURSE / "solutions"
PATCHES = sorted(path.stem for path in SOLUTIONS.glob("*.patch"))
SCRIPTS = sorted(path.stem for path in SOLUTIONS.glob("[0-9]*.py"))
SECTIONS = 11
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
    assert sum(len(text.split()) for text in texts) <= 3400
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
    assert not own & core and len(own) <= 7


def test_stored_outputs():
    notebook = read_notebook()
    assert all(pictures(cells) for cells in sections(notebook))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count
            for output in cell.outputs:
                assert output.output_type != "error" and output.get("name") != "stderr"
    assert (COURSE / "oasis.ipynb").stat().st_size < 4e6


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


def printed_by(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.output_type == "stream")


# What the texts say, and the line that the notebook prints about it: one group for each number.
# `loose`: from a training of 100 steps, or a sum of very small numbers; it may differ by a third.
SAID = [
    (r"mean probability of ([\d.]+) in real", r"real +fake ([\d.]+)"),
    (r"in real scenes and ([\d.]+) in generated", r"generated +fake ([\d.]+)"),
    (r"right one at (\d+) of 100 pixels", r"real .* is right 0([.\d]+)"),
    (r"right one at (\d+) of 100 pixels", r"generated .* is right 0([.\d]+)"),
    (r"costs \$-.log 0.4 = ([\d.]+)\$", "0.9163"),
    (r"= 2\$ gives ([\d.]+)\.", "1.8326"),
    (r"within two pixels of a seam it is ([\d.]+) on", r"of a seam ([\d.]+),"),
    (r"on average, elsewhere ([\d.]+)\. The loss", r"of a seam .*, elsewhere ([\d.]+)"),
    (r"is (\d+) times the smallest", r"α differs by a factor of (\d+),"),
    (r"gradient ([\d.]+) times the shortest", r"^with α: .* over smallest ([\d.]+),"),
    (r"log \$.alpha\$ is ([\d.]+), with it", r"^without: .* log α (-?[\d.]+)"),
    (r", with it ([\d.]+):", r"^with α: .* log α ([\d.]+)"),
    (r"differs by a factor of ([\d.]+) only", r"α \(1 − p\) by a factor of ([\d.]+)"),
    (r"There the correlation is ([\d.]+)\.", r"^own loss, with α: .* log α ([\d.]+)"),
    (r"the loss falls from ([\d.]+) to", r"step 0, loss ([\d.]+)"),
    (r"the loss falls from [\d.]+ to ([\d.]+),", r"step 30, loss ([\d.]+)"),
    (r"`loss_D_fake`, ([\d.]+), is near", r"loose steps 81 to 100 .*'loss_D_fake': ([\d.]+)"),
    (r"is near its line at ([\d.]+):", r"loss_D_fake = ([\d.]+);"),
    (r"`loss_G`, ([\d.]+), and", r"loose steps 81 to 100 .*'loss_G': ([\d.]+)"),
    (r"`loss_D_real`, ([\d.]+), are", r"loose steps 81 to 100 .*'loss_D_real': ([\d.]+)"),
    (r"on their way to ([\d.]+):", r"loss_D_real = ([\d.]+),"),
    (r"`loss_G` went up to ([\d.]+)\.", r"loose largest loss_G ([\d.]+),"),
    (r"of this notebook: ([\d.]+),", r"assets/toy.pt .*'loss_G': ([\d.]+)"),
    (r"of this notebook: [\d.]+, ([\d.]+) and", r"assets/toy.pt .*'loss_D_real': ([\d.]+)"),
    (r"of this notebook: [\d.]+, [\d.]+ and ([\d.]+),", r"assets/toy.pt .*'loss_D_fake': ([\d.]+)"),
    (r"at the dotted line, ([\d.]+)\. ", r"D knows nothing: ([\d.]+)"),
    (r"the mean colour moves by ([\d.]+) of 255", r"same field: mean colour moves by ([\d.]+)"),
    (r"recognisable: correlation ([\d.]+)\.", r"same field: .* textures ([\d.]+)"),
    (r"the colour moves by ([\d.]+) and", r"other field: mean colour moves by ([\d.]+)"),
    (r"a new one: correlation ([\d.]+)\.", r"other field: .* textures ([\d.]+)"),
    (r"Here it is ([\d.]+)\. The paper", r"mIoU of D on 50 real scenes: ([\d.]+)"),
    (r"times 2 is ([\d.]+)\. The car", "1.0217"),
    (r"The car cost ([\d.]+) before", "4.6052"),
    (r"4.61 - 1.02\)/4\$ to ([\d.]+)\.", "0.8770"),
    (r"keeps a length near ([\d.]+), as", "6.9282"),                # √48
]
# Numbers that are not measured: names, sizes, settings, the paper's; checked below or plain to see.
GIVEN = ["N = 14 classes", "**noise** $z$", "64 random numbers", "64 more channels",
         "first 48 numbers", "last 16 are drawn", "vector of 64 numbers", "the first 64 seeds",
         "64×64", "128×128", "192×256", "of 48 normal numbers", "means over 50:", "of 100 pixels",
         "probability 0.4,", "sky 0.10, car 0.60, fake 0.30", "10 or 5, for our landscapes 2",
         "100 batches", "100 steps", "12,000 steps", "same 64 numbers", "of 255", "3D noise",
         "3 × H × W", "reaches 0.40", "ADE20K", "their 150 classes"]


def stripped(text):
    """The text without formulas, code, addresses, headings and cross-references."""
    for pattern in (r"\$\$.*?\$\$", r"\$.*?\$", r"`[^`]*`", r"\]\([^)]*\)", r"^#.*?$"):
        text = re.sub(pattern, " ", text, flags=re.S | re.M)
    reference = r"\b(sections?|exercises?|eq\.|figure|your turn|iclr) \d+( (to|and) (eq\. )?\d+)?"
    text = re.sub(reference, " ", text, flags=re.I)
    return re.sub(r"N ?[+−] ?1|\*\*\d\.\*\*", " ", text)


def test_every_number_in_the_texts_is_checked():
    for cell in read_notebook().cells:
        if cell.cell_type != "markdown":
            continue
        text = cell.source
        spans = {found.span(1) for pattern, _ in SAID for found in re.finditer(pattern, text, re.I)}
        for start, end in sorted(spans, reverse=True):
            text = text[:start] + "–" + text[end:]
        for words in GIVEN:
            text = text.replace(words, " ")
        assert not re.findall(r"\d+\.\d+|\d{2,}|[3-9]", stripped(text)), text


def compare_texts(notebook, tolerance, loose):
    """Every sentence of SAID agrees with what the notebook has printed."""
    texts = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    printed = printed_by(notebook)
    for pattern, source in SAID:
        said = re.search(pattern, texts, re.I)
        assert said, pattern
        is_loose, source = source.startswith("loose "), source.removeprefix("loose ")
        shown = source if source[0].isdigit() else re.search(source, printed, re.M)[1]
        wanted = float(shown) * (100 if shown[0] == "." else 1)
        digits = len(said[1].partition(".")[2])
        near = 0.5001 * 10 ** -digits + (loose if is_loose else tolerance) * abs(wanted)
        assert abs(float(said[1]) - wanted) <= near, (said[0], shown)


def test_texts_say_what_the_stored_outputs_show():
    compare_texts(read_notebook(), tolerance=0, loose=0)


def test_given_numbers():
    checkpoint = sample.load_checkpoint(ROOT / "assets" / "toy.pt")
    settings = checkpoint["settings"]
    assert settings["noise_dim"] == 64 and settings["pixel_noise"] == 16
    assert settings["lambda_labelmix"] == 2 and checkpoint["dataset"]["size"] == [64, 64]
    assert len(checkpoint["dataset"]["class_names"]) == 14 and checkpoint["step"] == 12_000
    assert train.PRESETS["cityscapes"]["lambda_labelmix"] == 5
    assert train.Settings.lambda_labelmix == 10


@pytest.fixture(scope="session")
def fresh():
    """The notebook, run now."""
    notebook, began = read_notebook(), time.monotonic()
    execute(notebook.cells, COURSE)
    print(f"the notebook took {time.monotonic() - began:.0f} s")
    return notebook


def test_notebook_runs_in_a_fresh_kernel(fresh):
    assert len(pictures(fresh.cells)) >= 15
    assert all(pictures(cells) for cells in sections(fresh))
    printed = printed_by(fresh)
    by_hand = re.findall(r"by hand ([\d.]+) +losses.py ([\d.]+)", printed)
    assert len(by_hand) == 3
    assert all(float(a) == pytest.approx(float(b), abs=2e-6) for a, b in by_hand)
    assert float(re.search(r"one vector +standard deviation .* (\S+)", printed)[1]) < 1e-12
    assert printed.count("not answered yet") == 3


def test_texts_say_what_a_fresh_run_shows(fresh):
    compare_texts(fresh, tolerance=0.03, loose=0.35)


def test_a_perfect_generator_ends_where_the_notebook_says(fresh):
    """The same two numbers by extras.symptoms, which computes them in another way."""
    from extras import symptoms
    settings = train.parse_settings(["--steps", "100"])
    train_set = data.open_dataset("toy", "train", (64, 64))
    ends = symptoms.ends_of(settings, train_set, 100)
    shown = re.search(r"loss_D_real = ([\d.]+), loss_D_fake = ([\d.]+)", printed_by(fresh))
    assert float(shown[1]) == pytest.approx(ends["loss_D_real"], abs=0.006)
    assert float(shown[2]) == pytest.approx(ends["loss_D_fake"], abs=0.006)


ANSWERS = [             # (the line to fill in, a right answer, wrong ones)
    ("houses = None", "houses = (t == wall) | (t == roof)",
     ["houses = t == wall", "houses = ~sky"]),
    ("new_loss_G = None", "new_loss_G = 0.877", ["new_loss_G = 1.02", "new_loss_G = 1.773"]),
    ("    return None", "    return 1 / (1 + alpha)", ["    return alpha / (1 + alpha)",
                                                       "    return 0 * alpha + 0.5"]),
]


def test_your_turns_say_right_or_wrong():
    """The cells that each of them needs, with right and wrong answers in place of None."""
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    needed = ("import copy", "def pixels", "val_set =", "SCENE =", "SEEDS =", "sky =", "tiny_t =",
              "def logits")
    start = [cell.source for cell in cells if any(words in cell.source for words in needed)]
    turns = [cell.source for cell in cells if "<- your turn" in cell.source]
    assert len(turns) == len(ANSWERS) == 3
    tries, wanted = [], []
    for (blank, right, wrong), source in zip(ANSWERS, turns):
        assert source.count(blank) == 1
        tries += [source.replace(blank, answer) for answer in (right, *wrong)]
        wanted += ["right"] + ["wrong"] * len(wrong)
    said = [nbformat.v4.new_code_cell(source) for source in tries]
    execute([nbformat.v4.new_code_cell(source) for source in start] + said, COURSE)
    found = []
    for cell in said:
        words = "".join(output.get("text", "") for output in cell.outputs)
        found.append(words.partition(".")[0].strip())
    assert found == wanted


# ---- The exercises -------------------------------------------------------------------------------


def test_texts_and_solutions_belong_together():
    for name, most in (("exercises.md", 2200), ("answers.md", 2200), ("lecturer.md", 1200)):
        text = (COURSE / name).read_text(encoding="utf-8")
        assert len(text.split()) <= most
        assert max(map(len, text.splitlines())) <= 130 or name != "exercises.md"
        for path in re.findall(r"\]\(([^)h][^)]*)\)", text):
            assert (COURSE / path).exists(), path
        if name != "lecturer.md":
            numbers = re.findall(r"^## (\d+)\. ", text, re.M)
            assert numbers == [str(k) for k in range(1, 13)]
    answers = (COURSE / "answers.md").read_text(encoding="utf-8")
    solutions = {path.name for path in SOLUTIONS.iterdir() if path.name[0].isdigit()}
    assert solutions == set(re.findall(r"\b\d\d_\w+\.(?:patch|py)\b", answers))


def test_every_exercise_can_be_marked():
    """Each says what is given, what is handed in, how close, and how long it takes."""
    text = (COURSE / "exercises.md").read_text(encoding="utf-8")
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        for word in ("Given", "Hand in", "Time"):
            assert part.count(f"* **{word}**") == 1, part
        minutes, machine = re.search(r"Time\*\* (\d+) minutes, of which (\d+)", part).groups()
        assert int(machine) < int(minutes) <= 40


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run folder of the code as it is: latest.pt, log.csv, segmenter.pt."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run("train.py", *TINY, "--metrics", "miou", "--run-dir", folder)
    return folder


def losses_of(folder):
    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [[float(row[k]) for k in row if k.startswith("loss")] for row in rows]


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
    assert [int(name[:2]) for name in SCRIPTS] == [2, 3, 6, 7, 8, 9, 10, 11, 12]


def test_02_equal_over_a_whole_batch_not_over_shares(printed):
    for _, (_, ours, plain, ours_shared, plain_shared) in printed(2)[-2:]:
        assert ours == pytest.approx(plain, abs=3e-6)
        assert ours == pytest.approx(ours_shared, abs=3e-6)
        assert ours != plain_shared


def test_03_a_row_for_each_class(printed):
    lines = printed(3)
    assert len(lines) == 2 + 14 and " miou " in lines[0][0]
    assert sum(len(values) == 2 for _, values in lines[2:]) >= 10       # painted, real


def test_06_the_field_is_the_texture_and_the_vector_the_light(printed):
    (_, vector), (_, field) = printed(6)
    assert all(-1 <= values[1] <= 1 for values in (vector, field)) and vector != field


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


def test_11_texture_is_random_unless_the_field_is_held_still():
    """For the model in the repository: a field decides the texture, as chance does in a scene."""
    script = run(SOLUTIONS / "11_random_or_not.py", ROOT / "assets" / "toy.pt", "--num-images", 8)
    (_, real), (_, painted), (_, still) = [(line, numbers(line)) for line in script.splitlines()]
    assert abs(real[1]) < 0.2 and real[0] > 0.02
    assert abs(painted[1]) < 0.2 and painted[0] > 0.02
    assert still[1] > 0.5 and still[0] < painted[0] / 3


def test_12_all_three_exchanges_make_one_batch(printed):
    errors = [values for line, values in printed(12) if " G " in line]
    assert len(errors) == 4 and all(max(pair) > 1e-3 for pair in errors[:3])
    assert max(errors[3]) < 1e-12


def test_12_starts_with_three_gaps():
    """It runs as it is handed out, and nothing is exchanged."""
    source = (COURSE / "start" / "12_two_processes.py").read_text(encoding="utf-8")
    assert source.count("<- your turn") == 4            # the mean's forward and backward
    lines = run(COURSE / "start" / "12_two_processes.py").splitlines()[-4:]
    assert len({tuple(numbers(line)) for line in lines}) == 1
