"""Each published layout through the three scripts: two training steps, pictures, scores."""

import json

import pytest

import metrics
import sample
import tiny_datasets
import train

TINY = ["--height", "32", "--width", "64", "--channels", "2", "--num-blocks", "3", "--spade-hidden", "4",
        "--d-channels", "4", "8", "--batch-size", "2", "--workers", "0", "--steps", "2",
        "--segmenter-steps", "2", "--metrics", "miou,fd_segmenter"]


@pytest.mark.parametrize("preset, write, num_classes", [
    ("folder", tiny_datasets.write_folder, None),
    ("ade20k", tiny_datasets.write_ade20k, 151),
    ("ade20k-outdoors", tiny_datasets.write_ade20k, 151),
    ("coco-stuff", tiny_datasets.write_coco, 183),
    ("coco-stuff", tiny_datasets.write_coco_train_img, 183),
    ("cityscapes", tiny_datasets.write_cityscapes, 35),
])
def test_a_published_layout_trains_samples_and_scores(tmp_path, preset, write, num_classes):
    write(tmp_path / "data", val=8)
    more = ["--subset", str(tmp_path / "names.txt")] if preset == "ade20k-outdoors" else []
    if more:
        names = [n for split, n in tiny_datasets.write_ade20k(tmp_path / "again") if split == "train"]
        (tmp_path / "names.txt").write_text("\n".join(names))
    run = tmp_path / "run"
    train.main([*TINY, "--preset", preset, "--data-root", str(tmp_path / "data"), "--run-dir", str(run),
                *more])
    checkpoint = metrics.oasis.load_checkpoint(run / "latest.pt")
    assert checkpoint["step"] == 2
    if num_classes:
        assert checkpoint["generator_args"]["num_classes"] == num_classes

    assert sample.main(["--checkpoint", str(run / "latest.pt"), "--num", "2", "--out",
                        str(tmp_path / "pictures")]) == 0
    assert (tmp_path / "pictures" / "contact_sheet.png").exists()

    metrics.main(["--checkpoint", str(run / "latest.pt"), "--metrics", "miou,fd_segmenter,d_miou",
                  "--json", str(tmp_path / "scores.json")])
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert 0 <= scores["miou"]["value"] <= 1 and 0 <= scores["miou_real"]["value"] <= 1
    assert scores["fd_segmenter"]["value"] >= 0 and "d_miou" in scores


@pytest.mark.parametrize("train_images", [1, 5])
def test_very_few_images_train_without_scores(tmp_path, capsys, train_images):
    """Statistics of one validation image mean nothing, and are refused; training itself goes on."""
    tiny_datasets.write_folder(tmp_path / "data", train=train_images, val=1)
    command = [*TINY[:-2], "--preset", "folder", "--data-root", str(tmp_path / "data"),
               "--run-dir", str(tmp_path / "run"), "--batch-size", "1"]
    with pytest.raises(SystemExit) as e:
        train.main(command)
    assert e.value.code == 2 and "1 image for 1 process" in capsys.readouterr().err
    train.main([*command, "--metrics", "none"])
    assert metrics.oasis.load_checkpoint(tmp_path / "run" / "latest.pt")["step"] == 2
