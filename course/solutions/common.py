"""What the scripts of the exercises share: a model, its data, a scorer.

    python course/solutions/08_mistakes.py                          # the model in assets/toy.pt
    python course/solutions/08_mistakes.py runs/baseline/latest.pt  # or one of your own
"""

import argparse
import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))                   # where oasis.py and the others are

import data  # noqa: E402  (only now is it found)
import losses  # noqa: E402, F401
import metrics  # noqa: E402
import oasis  # noqa: E402
import sample  # noqa: E402
import train  # noqa: E402


def open_model(text, **others):
    """Command line -> (arguments, checkpoint). others: {name of a number: (default, help)}."""
    parser = argparse.ArgumentParser(description=text,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=ROOT / "assets" / "toy.pt")
    parser.add_argument("--num-images", type=int, metavar="N", help="score on N (default: all)")
    for name, (default, what) in others.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    args = parser.parse_args()
    with data.exit_in_words(Path(sys.argv[0]).name):
        return args, sample.load_checkpoint(args.checkpoint)


def datasets(checkpoint, size=None):
    """(training set, validation set) of a model, at its own size or another (H, W)."""
    settings, about = checkpoint["settings"], checkpoint["dataset"]
    return [data.open_dataset(about["preset"], split, size or about["size"],
                              settings["data_root"] or None, seed=settings["data_seed"])
            for split in ("train", "val")]


def label_batches(checkpoint):
    """(settings, the batches of label maps that train.py takes batch-norm statistics from)."""
    known = {field.name for field in dataclasses.fields(train.Settings)}
    kept = {k: v for k, v in checkpoint["settings"].items() if k in known}
    settings = train.Settings(**kept)
    return settings, train.first_label_maps(settings, datasets(checkpoint)[0])


def make_scorer(args, checkpoint, names=("miou", "fd_segmenter")):
    """A scorer with the segmenter in the checkpoint, or beside it; else it trains one (minutes)."""
    train_set, val_set = datasets(checkpoint)
    own = checkpoint.get("segmenter")
    return metrics.Scorer(val_set, train_set, "cpu", names, num_images=args.num_images,
                          segmenter=own, run_dir=None if own else args.checkpoint.parent)
