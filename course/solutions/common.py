"""What the scripts of the exercises share: a model, its data, a scorer.

    python course/solutions/08_mistakes.py                          # the model in assets/toy.pt
    python course/solutions/08_mistakes.py runs/baseline/latest.pt  # or one of your own

Import this module first: it tells Python where oasis.py and the others are.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import data  # noqa: E402  (found only now)
import metrics  # noqa: E402
import sample  # noqa: E402
import train  # noqa: E402


def open_model(text, other=False, **numbers):
    """Command line -> (arguments, checkpoint). numbers: {name of an option: (default, help)}.

    other: take a second checkpoint, arguments.other, too.
    """
    parser = argparse.ArgumentParser(description=text,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=ROOT / "assets" / "toy.pt")
    parser.add_argument("--num-images", type=int, metavar="N", help="score on N (default: all)")
    if other:
        parser.add_argument("other", nargs="?", type=Path, help="a second checkpoint")
    for name, (default, what) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    args = parser.parse_args()
    with data.exit_in_words(Path(sys.argv[0]).name):
        return args, sample.load_checkpoint(args.checkpoint)


def datasets(checkpoint, size=None):
    """(training set, validation set) of a model, at its own size or another (H, W)."""
    settings, about = checkpoint["settings"], checkpoint["dataset"]
    both = []
    for split in ("train", "val"):
        both.append(data.open_dataset(about["preset"], split, size or about["size"],
                                      settings["data_root"] or None, seed=settings["data_seed"]))
    return both


def settings_of(checkpoint):
    """The settings of a checkpoint's training, as train.py has them."""
    return train.Settings(**checkpoint["settings"])


def make_scorer(args, checkpoint, names=("miou", "fd_segmenter")):
    """A scorer with the segmenter in the checkpoint, or beside it; else it trains one (minutes)."""
    train_set, val_set = datasets(checkpoint)
    own = checkpoint.get("segmenter")
    return metrics.Scorer(val_set, train_set, "cpu", names, num_images=args.num_images,
                          segmenter=own, run_dir=None if own else args.checkpoint.parent)
