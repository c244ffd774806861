"""The README is true: its commands run, what it names exists, its figures come from files.

A figure is believed if a comment stands directly before its table, paragraph or block of code:

    <!-- figures: results/toy.csv results/toy.json -->    each number occurs in one of these files
    <!-- figures: paper -->              ... in tests/golden/paper_figures.txt
    <!-- figures: code -->               ... in what oasis.py, spade.py and train.py --help print
    <!-- figures: by hand: REASON -->    not checked

A number occurs if one of theirs rounds to it at the precision shown (0.711 is 0.7108…); "%" and "M" may
stand for a hundredth and a million. Numbers in `backticks`, sizes like 64×64, and references like Table 1
are no figures.

Commands run in this process, in a folder that holds what they name, with tiny networks and two steps;
torchrun's as plain scripts. These go only as far as their first costly function, so that their options
are parsed and checked: ablation.py, bench.py, data.py --benchmark, an exported segmenter, and a training
with --compile, with VGG19, or of a model that another command has trained in full; such a training reads
its data first. Scores that need downloaded weights (FID, LPIPS) are left out. Each of these has a test
file of its own; the published layouts are trained in test_end_to_end.py.
"""

import ast
import contextlib
import functools
import importlib
import io
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.run
from PIL import Image

import data
import metrics
import released_layout
import settings
import tiny_datasets
import toy

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = {path.stem for path in ROOT.glob("*.py")}

TINY = ["--height", "64", "--width", "64", "--channels", "2", "--num-blocks", "3", "--spade-hidden", "4",
        "--d-channels", "4", "8", "--patch-channels", "4", "8", "--batch-size", "2", "--workers", "0"]
SHORT = ["--steps", "2", "--metrics", "none"]
TOY_IMAGES = 60
# One letter may stand for two things, depending on the option before it.
SUBSTITUTES = {("--checkpoint", "F"): "runs/folder/latest.pt", ("--data-root", "D"): "my_photos",
               ("--real", "R"): "photos", ("--fake", "F"): "generated", ("--recreate", "PHOTO"): "photo.jpg",
               ("--rows", "two.txt"): "ablation.txt"}           # which the line before has cut out of it
# What is appended to make a script's commands small; a script that is not here fails the test.
SMALL = {"train.py": TINY + SHORT, "ablation.py": TINY + SHORT, "bench.py": TINY + ["-n", "1"],
         "sample.py": ["--limit", "2"], "metrics.py": ["--num-images", "8", "--segmenter-steps", "2"],
         "data.py": [], "oasis.py": [], "spade.py": [], "toy.py": [], "losses.py": [],
         "assets/figures.py": [], "tests/tricks.py": []}


# ---- Reading the README --------------------------------------------------------------------------


@dataclass
class Block:
    """Lines without an empty one between them, or a block of code. language: None where it is no code."""
    line: int
    language: str | None
    lines: list

    def text(self):
        return "\n".join(self.lines)


def read_blocks(text):
    blocks, fence, fresh = [], None, True
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if fence is None:
                fence = Block(number, line[3:].strip(), [])
                blocks.append(fence)
            else:
                fence, fresh = None, True
        elif fence is not None:
            fence.lines.append(line)
        elif not line.strip():
            fresh = True
        else:
            if fresh:
                blocks.append(Block(number, None, []))
            blocks[-1].lines.append(line)
            fresh = False
    for block in blocks:
        if block.language is None and all(line.startswith("    ") for line in block.lines):
            block.language = ""
    return blocks


def backticked(text):
    """[(line, what stands between two backticks)], of prose and tables."""
    return [(block.line + block.text()[:found.start()].count("\n"), " ".join(found[1].split()))
            for block in read_blocks(text) if block.language is None
            for found in re.finditer(r"`([^`]+)`", block.text())]


def commands(text):
    """[words] of each different `python FILE.py …` and `torchrun … FILE.py …`, in blocks or backticks."""
    lines = [span for _, span in backticked(text)]
    for block in read_blocks(text):
        if block.language in ("", "bash", "sh", "shell", "console"):
            lines += block.text().replace("\\\n", " ").splitlines()
    found = {}
    for line in lines:
        for part in line.split("&&"):
            if re.match(r"\s*(\$ )?([A-Z_]+=\S+ )*(python3? [^-]|torchrun )", part):
                words = [w for w in shlex.split(part, comments=True) if w not in ("...", "…", "$")]
                words = words[next(i for i, w in enumerate(words) if "=" not in w):]
                found[" ".join(words)] = words
    return list(found.values())


# ---- Commands ------------------------------------------------------------------------------------


class Reached(BaseException):
    """Raised in place of a costly function: all that comes before it has been carried out."""


def load(script):
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


def split_command(words):
    """[python | torchrun, …] -> (script, its arguments); torchrun's own options must be torchrun's."""
    if words[0] == "torchrun":
        args = torch.distributed.run.get_args_parser().parse_args(words[1:])
        return args.training_script, args.training_script_args
    return words[1], words[2:]


def shrink(script, argv, trained):
    """(the arguments of a small form, the function before which it ends or None).

    trained: the models that were trained in full so far.
    """
    if "--help" in argv:
        return argv, None
    argv = [SUBSTITUTES.get(pair, pair[1]) for pair in zip(["", *argv], argv)]
    small, costly = argv + SMALL[script], {"ablation.py": "steps_done", "bench.py": "workloads",
                                             "tests/tricks.py": "measure"}.get(script)
    if script == "data.py" and "--benchmark" in argv:
        costly = "benchmark"
    if script == "metrics.py":
        args = metrics.parse_arguments(argv)
        names = args.metrics or (metrics.SCRIPT_METRICS if args.checkpoint else ("colour", "texture"))
        small += ["--metrics", ",".join(name for name in names if name not in ("fid", "lpips"))]
        costly = "score_checkpoint" if (args.segmenter or "").endswith(".pt2") else None
    if script == "train.py":
        s, _ = settings.parse_arguments(small)
        what = (s.run_dir, "resumed") if s.resume else (s.model, s.multimodal)
        if s.resume:
            small += ["--steps", "3"]
            costly = "settings_of_resumed_run" if s.run_dir != "runs/toy" or what in trained else None
        else:
            costly = ("open_data" if s.lambda_vgg else
                      "State" if s.compile or what in trained else None)
            small += ["--run-dir", "trained/" + (s.preset + "-".join(what) if not costly else "none")]
        if not costly:
            trained.add(what)
    return small, costly


def run_command(words, trained):
    """Runs the small form of a command -> None, or a sentence on what went wrong."""
    shown, printed = " ".join(words), io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            script, argv = split_command(words)
            if script not in SMALL:
                return f"`{shown}`: test_readme.py knows no small form of {script}; add one to SMALL"
            argv, costly = shrink(script, argv, trained)
    except SystemExit:
        return f"`{shown}`: {printed.getvalue().strip()[-500:]}"
    module = load(script)

    def reached(*_, **__):
        raise Reached

    with (contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed),
          pytest.MonkeyPatch.context() as patch):
        patch.setattr(data, "open_dataset", functools.partial(data.open_dataset, num_images=TOY_IMAGES))
        if costly:
            patch.setattr(module, costly, reached)
        try:
            code = module.main(argv) if argv or module.main.__code__.co_argcount else module.main()
        except Reached:
            return None
        except SystemExit as e:
            code = e.code
    if costly:
        return f"`{shown}`: ended with {code} before {costly}: {printed.getvalue()[-500:]}"
    return f"`{shown}`: exit code {code}: {printed.getvalue()[-500:]}" if code else None


def save_picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder that holds everything the README's commands name; runs of tiny networks among it."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("my_photos", "camvid"):
            tiny_datasets.write_folder(folder / name, train=4, val=8, size=(64, 64))
        tiny_datasets.write_ade20k(folder)
        tiny_datasets.write_coco(folder / "coco")
        tiny_datasets.write_cityscapes(folder / "cityscapes")
        shutil.copytree(ROOT / "assets", folder / "assets")
        shutil.copy(ROOT / "ablation.txt", folder)
        for name in ("FOLDER", "maps", "six_label_maps"):
            shutil.copytree(folder / "my_photos/labels/val", folder / name)
        for name in ("photos", "generated"):
            shutil.copytree(folder / "my_photos/images/val", folder / name)
        photo, _ = toy.draw_scene(0, 0, 64, 64)
        save_picture(folder / "photo.jpg", photo)
        save_picture(folder / "drawn.png", np.tri(64, 64, -20, dtype=np.uint8) * 255)
        save_picture(folder / "coloured/0.png", np.full((64, 64, 3), (0, 200, 0), np.uint8))
        (folder / "classes.txt").write_text("sky 0 0 200\ngrass 0 200 0\n")
        torch.save(released_layout.fill(released_layout.generator_layout(2, 151), 0), "latest_EMA.pth")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)        # on networks this small, two threads wait for each other
        for preset, root in (("folder", ["--data-root", "my_photos"]), ("toy", [])):
            problem = run_command(["python", "train.py", "--preset", preset, *root], set())
            assert problem is None, problem
            shutil.copytree(f"trained/{preset}oasis-noise", f"runs/{preset}")
        yield folder, {("oasis", "noise")}
        torch.set_num_threads(threads)


@pytest.mark.parametrize("words", commands(README), ids=" ".join)
def test_a_command_runs(words, workplace, monkeypatch):
    folder, trained = workplace
    monkeypatch.chdir(folder)
    problem = run_command(words, trained)
    assert problem is None, problem


# ---- Names ---------------------------------------------------------------------------------------

OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
SCRIPTS_WITH_OPTIONS = ("train.py", "sample.py", "metrics.py", "data.py", "ablation.py", "bench.py",
                        "losses.py", "assets/figures.py", "torchrun")


@functools.cache
def options(script):
    """The options that a script's --help, or torchrun's, tells of."""
    if script == "torchrun":
        return set(OPTION.findall(torch.distributed.run.get_args_parser().format_help()))
    printed, module = io.StringIO(), load(script)
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        module.main(["--help"])
    more = options("train.py") if script in ("ablation.py", "bench.py") else set()
    return set(OPTION.findall(printed.getvalue())) | more


def wrong_names(text):
    """Sentences on files, attributes, options in backticks, and imports in Python, that do not exist."""
    problems = []
    for line, span in backticked(text):
        words = span.split()
        for word in words:
            if (re.fullmatch(r"[\w./-]+\.py|(assets|tests|results)/[\w./-]+", word)
                    and not any((folder / word).exists() for folder in (ROOT, ROOT / "tests"))):
                problems.append(f"line {line}: there is no file {word}")
        named = re.match(r"([a-z_]+)\.([A-Za-z_][\w.]*)", span)
        if (named and named[1] in MODULES
                and not re.fullmatch(r"py|png|csv|json|txt|md|pth?|gif", named[2])):
            found = importlib.import_module(named[1])
            for part in named[2].rstrip(".").split("."):
                if not hasattr(found, part):
                    problems.append(f"line {line}: there is no {named[0]}")
                    break
                found = getattr(found, part)
        scripts = [w for w in words if w in SCRIPTS_WITH_OPTIONS] or SCRIPTS_WITH_OPTIONS
        for option in OPTION.findall(span):
            if not any(option in options(script) for script in scripts):
                problems.append(f"line {line}: {option} is no option of {', '.join(scripts)}")
    for block in read_blocks(text):
        for node in ast.walk(ast.parse(block.text())) if block.language == "python" else ():
            if isinstance(node, ast.ImportFrom) and node.module in MODULES:
                problems += [f"line {block.line}: there is no {node.module}.{name.name}" for name
                             in node.names if not hasattr(importlib.import_module(node.module), name.name)]
    return problems


# ---- Links and pictures --------------------------------------------------------------------------


def anchor(heading):
    """What a link to a heading is called: lower case, no punctuation, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def broken_links(text):
    """Sentences on relative links and pictures that lead nowhere."""
    prose = "\n\n".join(block.text() for block in read_blocks(text) if block.language is None)
    prose = re.sub(r"`[^`]+`", "", prose)
    anchors = {anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.M)}
    problems = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"", prose):
        target = target[0] or target[1]
        path, _, section = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        if path and not (ROOT / path).exists() or not path and section not in anchors:
            problems.append(f"the link to {target} leads nowhere")
    return problems


# ---- Figures -------------------------------------------------------------------------------------

MARKER = re.compile(r"<!-- figures: (.+?) -->\s*")
NUMBER = re.compile(r"(?<![\w.,])[-−]?(\d+(?:,\d{3})*)(\.\d+)?(e[-−]?\d+)?(\s?%|M\b)?(?!\w)")
NOT_FIGURES = re.compile(
    r"`[^`]*`|!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)|<[^>]*>"                 # code, pictures, links, html
    r"|\b(?:Eq|Fig|Figure|Table|Sec|Section)s?\.? ?\d+(?:(?:, \d)* and \d\b|–\d\b)?"   # references
    r"|\d+(?: ?× ?\d+)+|\d+(?:\.\d+){2,}|\b[A-Za-z] ?[+−-] ?1\b")          # sizes, versions, N + 1


def quoted_numbers(text):
    """[(as shown, value, half a unit of its last digit, what one unit may stand for)]"""
    found = []
    for match in NUMBER.finditer(NOT_FIGURES.sub(" ", text)):
        whole, decimals, exponent, unit = match.groups()
        power = 10.0 ** int((exponent or "e0")[1:].replace("−", "-"))
        value = float(whole.replace(",", "") + (decimals or "")) * power
        half = 0.5 * power * 10.0 ** -len((decimals or ".")[1:])
        sign = -1 if match[0][0] in "-−" else 1
        found.append((match[0].strip(), sign * value, half,
                      {"%": 100, "M": 1e-6}.get((unit or "").strip(), 1)))
    return found


def numbers_in(text):
    """All numbers of a results file, as an array; 74,314,691 counts as one number and as three."""
    number = r"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\d)"
    whole = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return np.array([float(n) for n in re.findall(number, text) + re.findall(number, whole)] or [np.nan])


@functools.cache
def printed_by_the_code():
    import oasis
    import spade
    import train
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        oasis.main()
        spade.main()
        train.main(["--help"])
    return printed.getvalue()


def numbers_of(marker):
    """The numbers in a marker's sources, None where figures are given by hand. FileNotFoundError."""
    if marker.startswith("by hand: "):
        return None
    if marker == "code":
        return numbers_in(printed_by_the_code())
    paths = ["tests/golden/paper_figures.txt"] if marker == "paper" else marker.split()
    return np.concatenate([numbers_in((ROOT / path).read_text(encoding="utf-8")) for path in paths])


def wrong_figures(text):
    """Sentences on tables without a marker, and on numbers that no file of their marker holds."""
    problems, marker = [], None
    for block in read_blocks(text):
        content, found = block.text(), MARKER.match(block.text())
        if found and block.language is None:
            marker, content = found[1], content[found.end():]
            if not content:                 # the comment stands alone: it speaks of the next block
                continue
        quoted = quoted_numbers(content)
        if marker is None:
            if quoted and block.language is None and re.search(r"^\|", content, re.M):
                problems.append(f"line {block.line}: a table with figures ({quoted[0][0]}, …) and no "
                                f"marker; put <!-- figures: results/FILE --> before it")
            continue
        try:
            pool = numbers_of(marker)
        except FileNotFoundError as e:
            problems.append(f"line {block.line}: the marker names {e.filename}, which does not exist")
            pool = None
        for shown, value, half, unit in quoted if pool is not None else ():
            close = [np.abs(scale * pool - value) <= half * (1 + 1e-9) for scale in (1, unit)]
            if not np.any(close):
                problems.append(f"line {block.line}: {shown} is not in {marker}")
        marker = None
    return problems


# ---- The README, and the checks themselves -------------------------------------------------------


def test_every_name_in_backticks_exists():
    assert wrong_names(README) == []


def test_every_link_leads_somewhere_and_every_picture_is_used():
    unused = [path.name for path in (ROOT / "assets").glob("*.png") if f"assets/{path.name}" not in README]
    assert broken_links(README) == [] and unused == []


def test_every_figure_is_in_the_file_that_its_marker_names():
    by_hand = [reason for reason in MARKER.findall(README) if reason.startswith("by hand")]
    assert wrong_figures(README) == [], f"not checked: {by_hand}"


WRONG = """# Title
See [there](no_such_file.md), [below](#title), [nowhere](#else), ![picture](assets/none.png) and `no_file.py`,
`oasis.py`, `oasis.Generator`, `oasis.NoSuchThing`, `sample.py --num`, `sample.py --lr-g`, `--no-such-option`.

    python no_file.py            # unknown
    python train.py --preset moon
    torchrun --no-such 8 train.py

```python
from oasis import Generator, Painter
```

| FID | of |
|---|---|
| 28.4 | no marker |

<!-- figures: paper -->
| FID | size | FID of the other |
|---|---|---|
| 28.4 | 64×64, `99.9` | 28.5 |

<!-- figures: paper -->

OASIS (94M, Table 1) has 28, not 28.35 or 27, mIoU 0.506 and 50.6 %.

<!-- figures: results/none.csv -->
One figure: 3.

<!-- figures: by hand: a guess -->
| 12345 |
|---|
"""


def test_the_checks_find_what_is_wrong():
    assert wrong_names(WRONG) == [
        "line 2: there is no file no_file.py", "line 3: there is no oasis.NoSuchThing",
        "line 3: --lr-g is no option of sample.py",
        f"line 3: --no-such-option is no option of {', '.join(SCRIPTS_WITH_OPTIONS)}",
        "line 9: there is no oasis.Painter"]
    assert broken_links(WRONG) == [f"the link to {target} leads nowhere" for target in
                                   ("no_such_file.md", "#else", "assets/none.png")]
    missing, *others = wrong_figures(WRONG)
    assert missing.startswith("line 13: a table with figures (28.4, …) and no marker")
    assert others[:-1] == [f"line {line}: {number} is not in paper" for line, number in
                           ((17, "28.5"), (24, "28.35"), (24, "27"), (24, "0.506"))]
    assert re.fullmatch("line 26: the marker names .*none.csv, which does not exist", others[-1])
    unknown, moon, launcher = [run_command(words, set()) for words in commands(WRONG)]
    assert "knows no small form of no_file.py" in unknown
    assert "invalid choice: 'moon'" in moon and "no-such" in launcher


def test_a_number_is_compared_at_the_precision_shown():
    quoted = quoted_numbers("3.00 ± 0.1, 2,000 and −24 %, 1e-5, 94M; N + 1, 3D, Eq. 1, 64×64, 8², `5`")
    assert quoted == [("3.00", 3, 0.005, 1), ("0.1", 0.1, 0.05, 1), ("2,000", 2000, 0.5, 1),
                      ("−24 %", -24, 0.5, 100), ("1e-5", 1e-5, pytest.approx(5e-6), 1),
                      ("94M", 94, 0.5, 1e-6)]
    pool = numbers_in('{"a": 0.7108, "b3": [-2e-3, 74,314,691]}\n100,250,1e-05')
    assert {0.7108, -0.002, 74314691, 100, 250, 1e-5} <= set(pool) and 3 not in pool
