"""The README's commands run as they stand, made small; what README, extras, course show exists."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_datasets as tiny
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = "--batch-size 2 --channels 2 --num-blocks 3 --spade-hidden 4 --d-channels 4 8 --workers 0"
QUICK = "--steps 2 --metrics none --picture-every 99 --checkpoint-every 2"
# Script -> options that make it small. A command of any other script fails the test.
OPTIONS = {
    "train.py": f"{SMALL} {QUICK} --height 32 --width 32",
    "train.py --resume": "--steps 3 --metrics none",
    "sample.py": "--limit 1 --num 1",
    "data.py": "",
    "oasis.py": "",
    "metrics.py": "--metrics d_miou --num-images 4",
}
# Tested elsewhere: pip and pytest by .ci/run, extras and notebook by their own tests.
ELSEWHERE = ("python3 -m venv", ".", "pip", "python -m pytest", "jupyter", "python -m extras.")


def commands():
    """Every command in a bash block or in `inline code` that begins with python, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    lines = [line.split("  #")[0] for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(python [^`]*)`", README)
    return list(dict.fromkeys(part.strip() for line in lines for part in line.split("&&")))


def small(command):
    """The words of a command, made small; None where another test runs it."""
    words = shlex.split(command)
    if command.startswith(ELSEWHERE):
        assert "-m extras" not in command or (ROOT / f"{words[2].replace('.', '/')}.py").is_file()
        return None
    launcher = [sys.executable]
    if words[0] == "torchrun":
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        words = [word for word in words if not word.startswith("--nproc")]
    script, given = words[1], words[2:]
    options = OPTIONS[script + " --resume" * ("--resume" in given)].split()
    given = [word for word in given if word != "--compile"]       # minutes; test_train compiles
    clash = {"--num", "--limit"} & set(given)
    options = [w for i, w in enumerate(options) if not {w, options[i - 1]} & clash]
    if "--preset" in given and script == "train.py":
        options += ["--run-dir", f"runs/{given[given.index('--preset') + 1]}"]
    return [*launcher, str(ROOT / script), *given, *options]


def test_every_command_of_the_readme_runs(tmp_path):
    tiny.make_cityscapes(tmp_path / "cityscapes")
    tiny.make_ade20k(tmp_path)
    tiny.make_folder(tmp_path / "my_photos")
    Image.linear_gradient("L").save(tmp_path / "mask.png")        # white in a part, not all
    found = [small(command) for command in commands()]
    training = [words for words in found if words and "train.py" in words[1]]
    assert len(training) >= 4 and sum("--resume" in words for words in training) == 1
    # The default training makes the run that sampling, scoring and --resume go on with.
    order = sorted((words for words in found if words), key=lambda words: words != training[0])
    for words in order:
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    assert list(tmp_path.glob("samples/**/*.png"))


def test_an_unknown_script_fails():
    with pytest.raises(KeyError):
        small("python unknown.py")


def tracked():
    """Files under version control; those of the folder where there is no git."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return set(listing.stdout.splitlines()) or {
        str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()}


@pytest.mark.parametrize("page", ["README.md", "extras/README.md", "course/exercises.md"])
def test_what_a_page_shows_is_there(page):
    text, files = (ROOT / page).read_text(encoding="utf-8"), tracked()
    shown = re.findall(r"\]\(([^)#:]+)\)", text)
    shown += re.findall(r"`((?:assets|results|extras|course|tests)/[\w./-]+\.\w+)`", text)
    folder = os.path.dirname(page)
    for name in shown:
        names = {os.path.normpath(name), os.path.normpath(os.path.join(folder, name))}
        assert names & files or any((ROOT / n).is_dir() for n in names), f"{page} shows {name}"


def test_the_readme_keeps_its_promises():
    """The method's length: losses.py, oasis.py, and train.py to the end of train()."""
    readme = " ".join(README.split())
    assert "The method is 800 lines in three files, read from the top; five more files" in readme
    lines = {path.name: path.read_text(encoding="utf-8").splitlines()
             for path in ROOT.glob("*.py")}
    train = ast.parse("\n".join(lines["train.py"])).body
    end = next(node.end_lineno for node in train if getattr(node, "name", "") == "train")
    assert len(lines) == 8 and len(lines["losses.py"]) + len(lines["oasis.py"]) + end <= 800
    assert len(README.split()) <= 1800
