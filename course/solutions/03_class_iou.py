"""Exercise 3: the IoU of every class, of two runs side by side, read by one segmenter.

    python course/solutions/03_class_iou.py runs/baseline/latest.pt runs/mine/latest.pt

The segmenter is that of the first run's folder (or in its file). Without a second run: one column.
"""

from pathlib import Path

import torch
from common import make_scorer, open_model

import metrics
import sample


@torch.no_grad()
def main():
    args, checkpoint = open_model(__doc__, other=True)
    scorer = make_scorer(args, checkpoint, ["miou"])
    columns = {}
    for path in (args.checkpoint, args.other):
        if path is None:
            continue
        scores = scorer(sample.build_generator(sample.load_checkpoint(path)))
        columns[str(path)] = 100 * metrics.class_iou(scorer.sums["miou"])
        print(f"{path}: miou {scores['miou']:.3f}")
    columns["real scenes"] = 100 * metrics.class_iou(scorer.real["miou"])
    names = [f"{Path(title).parent.name or title:>12.12s}" for title in columns]
    print("IoU, per cent" + "".join(names))
    for c, name in enumerate(scorer.val_set.class_names):
        print(f"{name:13s}" + "".join(f"{ious[c]:12.1f}" for ious in columns.values()))


if __name__ == "__main__":
    main()
