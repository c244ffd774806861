"""What the measuring exercises share: a run's checkpoint, its data, and a scorer.

    python tests/exercises/08_mistakes.py runs/ablation/oasis/seed0     # they all take a run folder
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the modules of the project

import data  # noqa: E402  (only now is it found)
import metrics  # noqa: E402
import oasis  # noqa: E402
import settings  # noqa: E402
import train  # noqa: E402


def open_run():
    """(folder, checkpoint) of the run named on the command line; without, of `python train.py`."""
    oasis.keep_freed_memory()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/toy")
    try:
        checkpoint = oasis.load_checkpoint(folder / "latest.pt")
        if checkpoint["model"] != "oasis":
            raise oasis.CheckpointError(f"{folder}: holds a run of {checkpoint['model']}; these "
                                        f"exercises are about OASIS")
    except oasis.CheckpointError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    return folder, checkpoint


def datasets(checkpoint, size=None):
    """(training set, validation set) of a run, at its own size or another (H, W)."""
    config, about = checkpoint["config"], checkpoint["dataset"]
    return [data.open_dataset(about["preset"], split, size or about["size"],
                              config["data_root"] or None, seed=config["data_seed"])
            for split in ("train", "val")]


def label_batches(checkpoint):
    """The label maps from which the average took its batch-norm statistics in training."""
    s = settings.Settings(**checkpoint["config"])
    return train.first_label_maps(s, datasets(checkpoint)[0])


def make_scorer(folder, checkpoint, kind=metrics.Scorer, names=("miou", "fd_segmenter"),
                count=None):
    """A scorer with the segmenter of the run's own scores, wherever that lies."""
    train_set, val_set = datasets(checkpoint)
    segmenter = checkpoint["config"]["segmenter"] or folder / "segmenter.pt"
    return kind(val_set, train_set, "cpu", names, count, segmenter, folder)
