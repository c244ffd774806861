"""extras/own_segmenter.py: an exported network with its own classes reads known images."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import data                                 # noqa: E402  (the lines above must come first)
import metrics                              # noqa: E402
import oasis                                # noqa: E402
from extras import own_segmenter            # noqa: E402
from tiny_run import make_checkpoint        # noqa: E402


class ByColour(nn.Module):
    """The class with the nearest colour, as logits."""

    def __init__(self, colours):
        super().__init__()
        self.register_buffer("colours", torch.as_tensor(colours) / 127.5 - 1)

    def forward(self, images):
        return -(images[:, None] - self.colours[:, :, None, None]).square().sum(2)


def export(colours, path):
    dims = {0: torch.export.Dim("batch", max=1024)}
    program = torch.export.export(ByColour(colours).eval(), (torch.zeros(2, 3, 32, 32),),
                                  dynamic_shapes=(dims,))
    torch.export.save(program, path)
    return path


@pytest.fixture
def dataset():
    return data.open_dataset("toy", "val", (32, 32), num_images=6)


def test_classes_are_matched(dataset, tmp_path):
    """The dataset's classes backwards, one that it does not have, one that the network lacks."""
    order = list(range(dataset.num_classes - 1, 1, -1))                  # lacks classes 0 and 1
    path = export([*dataset.palette[order].tolist(), [0, 0, 0]], tmp_path / "own.pt2")
    lines = [dataset.class_names[order[0]], *map(str, order[1:]), "-"]
    (tmp_path / "classes.txt").write_text("\n".join(lines) + "\n")
    own = own_segmenter.load_exported(path, dataset, classes=tmp_path / "classes.txt")
    labels = torch.stack([dataset[i][1] for i in range(6)])
    images = (torch.as_tensor(dataset.palette) / 127.5 - 1)[labels].permute(0, 3, 1, 2)
    confusion = own.confusion(images, labels)
    assert metrics.mean_iou(confusion) == 1                     # the unknown is not scored
    assert confusion.sum() == (labels > 1).sum() and "own.pt2" in own.description
    # Images of another size are resized for it, its answer back.
    own.size = (32, 32)
    large = nn.functional.interpolate(images, (64, 64))
    target = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert metrics.mean_iou(own.confusion(large, target)) > 0.6


def test_script(dataset, tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "run" / "latest.pt")
    path = export(dataset.palette, tmp_path / "own.pt2")
    ask = ["--checkpoint", str(checkpoint), "--num-images", "4"]
    own_segmenter.main([str(path), *ask])
    out = capsys.readouterr().out
    assert out.startswith("miou ") and "own.pt2" in out and "4 images of toy val at 32×32" in out
    assert list(checkpoint.parent.iterdir()) == [checkpoint]             # nothing is kept
    (tmp_path / "classes.txt").write_text("sky\nwhale\n")
    few = export(dataset.palette[:3], tmp_path / "few.pt2")
    for arguments, words in (([checkpoint.parent / "no.pt2"], "no.pt2: not a file"),
                             ([checkpoint], "latest.pt: not a file"),      # a zip archive, too
                             ([path, "--size", "0", "32"], "--size: 0: must be"),
                             ([path, "--num-images", "-1"], "--num-images: -1: must be"),
                             ([path, "--classes", "no/file.txt"], "no/file.txt"),
                             ([few], "knows 3 classes"),
                             ([few, "--classes", tmp_path / "classes.txt"], "line 2: 'whale'")):
        with pytest.raises(SystemExit) as stop:
            own_segmenter.main([*map(str, arguments), *ask])
        assert stop.value.code == 2 and words in capsys.readouterr().err
