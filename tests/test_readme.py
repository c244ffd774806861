"""The README is true: its commands run, what it names exists, its figures come from files that a command wrote.

A figure is believed if a comment stands directly before its table, paragraph or block of code:

    <!-- figures: results/toy.csv results/toy.json -->    each number below occurs in one of these files
    <!-- figures: paper -->                               ... in tests/golden/paper_figures.txt
    <!-- figures: code -->                                ... in what oasis.py, spade.py, train.py --help print
    <!-- figures: by hand: REASON -->                     not checked

A number occurs if one of theirs rounds to it at the precision shown (0.711 is 0.7108…); "%" and "M" may stand for a
hundredth and a million. Numbers in `backticks`, sizes like 64×64, and references like Table 1 are no figures.

Commands run in one process, in a folder that holds what they name, with tiny networks and two steps; torchrun's as
plain scripts. Only up to the first costly function (the options are parsed and checked) go: ablation.py, bench.py,
data.py --benchmark, an exported segmenter, --compile, VGG19, and a training on data and networks that an earlier
command has trained in full. The published layouts themselves are trained in test_end_to_end.py. Scores that need
downloaded weights (FID, LPIPS) are left out.
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

import metrics
import released_layout
import settings
import tiny_datasets
import toy

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = {path.stem for path in ROOT.glob("*.py")}

TINY = ["--height", "64", "--width", "64", "--channels", "2", "--num-blocks", "3", "--spade-hidden", "4", "--d-channels",
        "4", "8", "--patch-channels", "4", "8", "--batch-size", "2", "--workers", "0"]
SHORT = ["--steps", "2", "--metrics", "none"]
# What is appended to make a script's commands small; a script that is not here fails the test.
SMALL = {"train.py": TINY + SHORT, "ablation.py": TINY + SHORT, "bench.py": TINY + ["-n", "1"],
         "sample.py": ["--limit", "2"], "metrics.py": ["--num-images", "8", "--segmenter-steps", "2"],
         "data.py": [], "oasis.py": [], "spade.py": [], "toy.py": [], "losses.py": [], "assets/figures.py": []}


# ---- Reading the README --------------------------------------------------------------------------


@dataclass
class Block:
    """Lines without an empty one between them, or a block of code. language: None for prose and tables."""
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
    """[words] of each different `python FILE.py …` and `torchrun … FILE.py …`, in blocks and in backticks."""
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


def split_command(words):
    """[python | torchrun, …] -> (script, its arguments); torchrun's own options must be torchrun's."""
    if words[0] == "torchrun":
        args = torch.distributed.run.get_args_parser().parse_args(words[1:])
        return args.training_script, args.training_script_args
    return words[1], words[2:]


def shrink(script, argv, trained):
    """(the arguments of a small form, the function before which it ends or None).

    trained: the (data, networks) that were trained in full so far.
    """
    small, costly = argv + SMALL[script], {"ablation.py": "run_all", "bench.py": "workloads"}.get(script)
    if script == "data.py" and "--benchmark" in argv:
        costly = "benchmark"
    if script == "metrics.py":
        args = metrics.parse_arguments(argv)
        names = args.metrics or (metrics.SCRIPT_METRICS if args.checkpoint else ("colour", "texture"))
        small += ["--metrics", ",".join(name for name in names if name not in ("fid", "lpips"))]
        costly = "score_checkpoint" if (args.segmenter or "").endswith(".pt2") else None
    if script == "train.py":
        s, _ = settings.parse_arguments(small)
        what = (s.preset, s.model, s.multimodal)
        if s.resume:
            small += ["--steps", "3"]
            costly = None if s.run_dir == "runs/toy" else "settings_of_resumed_run"
        else:
            small += ["--run-dir", "trained/" + "-".join(what)]
            costly = "open_data" if s.lambda_vgg or s.compile or what in trained else None
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
        return f"`{shown}`: {printed.getvalue().strip().splitlines()[-1]}"
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))

    def reached(*_, **__):
        raise Reached

    with (contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed),
          pytest.MonkeyPatch.context() as patch):
        patch.setattr(toy, "draw_scene", functools.lru_cache(4096)(toy.draw_scene))
        if costly:
            patch.setattr(module, costly, reached)
        try:
            code = module.main(argv) if module.main.__code__.co_argcount else module.main()
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
        for name in ("my_photos", "camvid", "D"):
            tiny_datasets.write_folder(folder / name, train=4, val=8, size=(64, 64))
        tiny_datasets.write_ade20k(folder)
        tiny_datasets.write_coco(folder / "coco")
        tiny_datasets.write_cityscapes(folder / "cityscapes")
        shutil.copytree(ROOT / "assets", folder / "assets")
        shutil.copy(ROOT / "ablation.txt", folder)
        for name in ("FOLDER", "maps", "six_label_maps"):
            shutil.copytree(folder / "my_photos/labels/val", folder / name)
        for name in ("photos", "generated", "R"):
            shutil.copytree(folder / "my_photos/images/val", folder / name)
        photo, labels = toy.draw_scene(0, 0, 64, 64)
        for name in ("photo.jpg", "PHOTO.jpg"):
            save_picture(folder / name, photo)
        save_picture(folder / "drawn.png", np.where(np.arange(64) < 20, 255, 0)[None].repeat(64, 0).astype(np.uint8))
        save_picture(folder / "coloured/0.png", np.array([[0, 200, 0]], np.uint8)[None].repeat(64, 0).repeat(64, 1))
        (folder / "classes.txt").write_text("sky 0 0 200\ngrass 0 200 0\n")
        torch.save(released_layout.fill(released_layout.generator_layout(2, 151), 0), "latest_EMA.pth")
        for preset, root in (("folder", ["--data-root", "my_photos"]), ("toy", [])):
            problem = run_command(["python", "train.py", "--preset", preset, *root], set())
            assert problem is None, problem
            shutil.copytree(f"trained/{preset}-oasis-noise", f"runs/{preset}")
        shutil.copy("runs/folder/latest.pt", "F")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)        # on networks this small, two threads wait for each other
        yield folder, {("folder", "oasis", "noise"), ("toy", "oasis", "noise")}
        torch.set_num_threads(threads)


@pytest.mark.parametrize("words", commands(README), ids=" ".join)
def test_a_command_runs(words, workplace, monkeypatch):
    folder, trained = workplace
    monkeypatch.chdir(folder)
    problem = run_command(words, trained)
    assert problem is None, problem
