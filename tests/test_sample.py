"""sample.py: noise and locality in closed form, every mode on a small run, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import oasis
import sample
import tiny_datasets
import tiny_run

INCLUDED = Path(sample.__file__).parent / "assets" / "toy.pt"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with one run, as after `python train.py`."""
    tiny_run.make_checkpoint(tmp_path / "runs/toy/latest.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*words):
    """One command, which must succeed; its pictures go to out/."""
    sample.main(["--out", "out", *map(str, words)])


def refuse(capsys, *words):
    """A command that must end with exit code 2 -> the last line that it prints."""
    with pytest.raises(SystemExit) as ended:
        sample.main([str(word) for word in words])
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- Arrays in, arrays out -----------------------------------------------------------------------


def test_interpolation_turns_at_a_steady_rate_along_the_sphere():
    start, end = oasis.noise_from_seeds([3, 4])
    walk = sample.interpolate(start, end, 7)
    assert torch.equal(walk[0], start) and torch.equal(walk[-1], end)
    angles = torch.cosine_similarity(walk[:-1], walk[1:], dim=1).arccos()
    whole = torch.cosine_similarity(start, end, dim=0).arccos()
    torch.testing.assert_close(angles, whole.expand(6) / 6, rtol=1e-4, atol=1e-5)
    lengths = torch.linspace(start.norm().item(), end.norm().item(), 7)
    torch.testing.assert_close(walk.norm(dim=1), lengths)
    assert lengths.min() > 6 > torch.lerp(start, end, 0.5).norm()    # the straight line leaves it
    torch.testing.assert_close(sample.interpolate(start, start, 3), start.expand(3, -1))


def test_prediction_is_the_best_real_class_even_where_fake_is_likelier():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = torch.nn.Parameter(torch.tensor([0.0, 2.0, 1.0, 9.0]))  # last: fake

        def forward(self, images):
            return self.scores[:, None, None].expand(len(images), 4, *images.shape[2:])
    assert (sample.predict_labels(Constant(), np.zeros((4, 5, 3), np.uint8)) == 1).all()


def test_mean_change_inside_and_outside():
    region = np.zeros((2, 4), bool)
    region[:, :2] = True
    before = np.full((2, 4, 3), 100, np.uint8)
    after = np.stack([before, before])
    after[0, :, :2] += 51             # in one picture of two by 0.4 on the scale of [-1, 1]
    after[1, 0, 3] -= 51
    assert sample.mean_change(before, after, region) == pytest.approx([0.2, 0.05])
    assert sample.mean_change(before, after, ~np.zeros_like(region))[1] == 0


def test_a_picture_does_not_depend_on_its_batch():
    G = sample.load_model().generator
    labels = np.random.default_rng(0).integers(0, G.num_classes, (8, 32, 32))
    noise = oasis.noise_from_seeds(range(8), 8)
    together, alone = (sample.paint(G, labels, noise, batch_size=b) for b in (8, 1))
    assert together.shape == (8, 32, 32, 3) and together.dtype == np.uint8 and together.std() > 10
    assert np.abs(together.astype(int) - alone).max() <= 1          # where rounding is a close call


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_local_noise_changes_nothing_beyond_the_reach_to_the_last_bit(blocks):
    """The farthest path: the coarsest block's cells are s = 2^(blocks-1) pixels wide. Two
    convolutions of SPADE and two of the block carry a change 4 cells on, those of the finer blocks
    2 (s - 1) pixels, the last layer 1; a cell is painted s - 1 pixels on. In all 7 s - 2."""
    G = tiny_run.vivid(oasis.Generator(5, 8, channels=4, num_blocks=blocks, spade_hidden=8))
    s, width, column = G.size_multiple, 256, 96
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (1, s, width)))
    a, b = oasis.noise_from_seeds([0, 1], 8)[:, None]
    region = np.zeros((s, width), bool)
    region[:, column] = True
    before, after = (G(labels, oasis.local_noise(a, inside, region)) for inside in (a, b))
    changed = (before != after)[0].any(0).any(0).nonzero().ravel()
    assert 0 < len(changed) and (changed - column).abs().max() <= 7 * s - 2 < width - column


# ---- The modes -----------------------------------------------------------------------------------


def test_without_options_the_newest_run_draws_its_validation_set(folder, capsys):
    sample.main([])
    out = folder / "samples/toy-latest-step7"
    assert {path.name for path in out.iterdir()} == {"contact_sheet.png"} | {
        f"val_{i:05d}_seed{k}.png" for i in range(8) for k in range(4)}
    printed = capsys.readouterr().out
    assert printed.startswith("runs/toy/latest.pt: toy") and "contact_sheet.png" in printed
    # Picture k has the noise of seed k; the checkpoint's networks are all it takes to draw it.
    labels = data.open_dataset("toy", "val", (32, 32))[5][1]
    model = sample.load_model("runs/toy/latest.pt")
    alone = sample.paint(model.generator, labels, oasis.noise_from_seeds([3], 8))[0]
    assert np.abs(pixels(out / "val_00005_seed3.png") - alone).max() <= 1


def test_drawn_again_pictures_are_the_same_and_replace_what_was_there(folder, capsys):
    command("--limit", 2, "--num", 2)
    first = contents(folder / "out")
    Image.new("RGB", (32, 32)).save("out/val_00000_seed0.png")       # of an older run, perhaps
    command("--limit", 2, "--num", 3)
    second = contents(folder / "out")
    assert "2 new files" in capsys.readouterr().out and len(second) == 7
    assert all(second[path] == first[path] for path in first if "contact" not in path.name)


@pytest.mark.parametrize("place, options", [("meadow", ["--resample-class", "meadow"]),
                                            ("drawn", ["--resample-mask", "drawn.png"])])
def test_another_class_or_a_drawn_area_changes_there(folder, capsys, place, options):
    labels = data.open_dataset("toy", "val", (32, 32))[0][1].numpy()
    region = labels == data.read_class_table("toy")[0].index("meadow")
    if place == "drawn":
        region = np.zeros((32, 32), bool)
        region[8:24, 8:24] = True
        Image.fromarray(region.repeat(4, 0).repeat(4, 1)).save("drawn.png")        # enlarged
    command(*options, "--limit", 1, "--num", 2)
    before, *after = (pixels(f"out/val_00000_seed0_resample-{place}_seed{k}.png") for k in range(3))
    inside, outside = sample.mean_change(before, after, region)
    assert inside > 2 * outside
    assert f"{inside:.4f} in the region, {outside:.4f} outside" in capsys.readouterr().out
    command("--limit", 1, "--num", 1)            # outside is what the whole picture's noise gives
    assert (pixels("out/val_00000_seed0.png") == before).all()


def test_label_maps_without_the_class_are_skipped(folder, capsys):
    (folder / "maps").mkdir()
    for name, ids in (("both", [1, 3]), ("one", [3, 3])):
        Image.fromarray(np.uint8(ids).repeat(16)[:, None].repeat(32, 1)).save(f"maps/{name}.png")
    command("--labels", "maps", "--resample-class", 1, "--num", 1)
    assert sorted(path.name for path in (folder / "out").glob("*_seed?.png")) == [
        "both_seed0_resample-1_seed0.png", "both_seed0_resample-1_seed1.png"]
    assert "pixel to change" in refuse(capsys, "--labels", "maps/one.png", "--resample-class", "1")


def test_a_walk_gives_a_strip_and_a_gif_there_and_back(folder):
    command("--interpolate", 5, "--limit", 1)
    frames = [pixels(f"out/val_00000_seed0-to-1_{k}of5.png") for k in ("001", "002", "003", "005")]
    assert Image.open("out/val_00000_seed0-to-1_walk5.gif").n_frames == 8
    strip = pixels("out/val_00000_seed0-to-1_walk5.png")
    assert (strip[4:36, 4:36] == frames[0]).all() and strip.shape[1] > 5 * 32
    command("--limit", 1, "--num", 2)            # the ends are the pictures of the two seeds
    for frame, seed in ((frames[0], 0), (frames[-1], 1)):
        assert np.abs(frame - pixels(f"out/val_00000_seed{seed}.png")).max() <= 1
    assert np.abs(frames[2] - frames[1]).mean() < np.abs(frames[-1] - frames[0]).mean()
    command("--interpolate", 3, "--limit", 1, "--resample-class", "meadow")
    assert (folder / "out/val_00000_seed0_resample-meadow_seed0-to-1_walk3.gif").exists()


def test_a_photo_is_read_by_the_discriminator_and_drawn_anew(folder):
    photo = data.to_uint8(data.open_dataset("toy", "val", (48, 64))[0][0][None])[0]
    Image.fromarray(photo).save("photo.png")
    command("--recreate", "photo.png", "--num", 2, "--size", 48, 64)
    model = sample.load_model()
    predicted = sample.predict_labels(model.discriminator, photo)
    saved = data.read_label_map("out/photo_48x64_labels.png", data.id_table("toy", 14))
    assert (saved == predicted).all() and len(np.unique(saved)) > 1
    assert (pixels("out/photo_48x64_labels.png") == model.palette[saved]).all()
    command("--labels", "out/photo_48x64_labels.png", "--num", 2)     # the same pictures again
    for k in range(2):
        assert (pixels(f"out/photo_48x64_recreated_seed{k}.png")
                == pixels(f"out/photo_48x64_labels_seed{k}.png")).all()
    command("--recreate", "--limit", 1, "--num", 1)           # photos of the validation set
    assert (folder / "out/val_00000_recreated_seed0.png").exists()


def test_grey_ids_and_palette_pngs_are_the_same_label_map(folder):
    labels = data.open_dataset("toy", "val", (32, 64))[1][1].numpy().astype(np.uint8)
    (folder / "maps").mkdir()
    ids = Image.fromarray(labels)
    ids.save("maps/grey.png")
    ids.putpalette([7] * 768)
    ids.save("maps/palette.png")
    command("--labels", "maps", "--num", 1)
    assert (pixels("out/grey_seed0.png") == pixels("out/palette_seed0.png")).all()
    assert pixels("out/grey_seed0.png").shape == (32, 64, 3)         # a label map's own size


@pytest.mark.parametrize("preset, stored, ids", [
    ("coco-stuff", [[0, 181], [255, 9]], [[1, 182], [0, 10]]),
    ("cityscapes", [[0, 33], [255, 7]], [[0, 33], [34, 7]])])
def test_label_maps_have_the_ids_of_their_archives(folder, preset, stored, ids):
    run = tiny_run.make_checkpoint(folder / "run.pt", preset=preset)
    Image.fromarray(np.uint8(stored).repeat(16, 0).repeat(16, 1)).save("street.png")
    command("--checkpoint", run, "--labels", "street.png", "--num", 1)
    G = sample.load_model(run).generator
    labels = np.array(ids).repeat(16, 0).repeat(16, 1)
    expected = sample.paint(G, labels, oasis.noise_from_seeds([0], 8))[0]
    assert np.abs(pixels("out/street_seed0.png") - expected).max() <= 1


def test_own_photographs_are_found_where_training_found_them_or_by_data_root(folder, capsys):
    tiny_datasets.make_folder(folder / "data")
    tiny_run.make_checkpoint(folder / "run.pt", preset="folder", data_root=folder / "data")
    command("--checkpoint", "run.pt", "--num", 1, "--resample-class", "traffic light")
    assert (folder / "out/street.0_seed0_resample-traffic-light_seed1.png").exists()
    (folder / "data").rename("moved")
    assert "--data-root" in refuse(capsys, "--checkpoint", "run.pt")
    command("--checkpoint", "run.pt", "--num", 1, "--data-root", "moved")


@pytest.mark.skipif(not INCLUDED.exists(), reason="assets/toy.pt is not there")
def test_without_a_run_the_included_model_draws_other_skies(folder, capsys):
    (folder / "runs").rename("elsewhere")
    command("--resample-class", "sky", "--limit", 4, "--num", 2)
    printed = capsys.readouterr().out.splitlines()
    assert str(INCLUDED) in printed[0]
    inside, outside = (float(word) for word in printed[-1].split() if word[0].isdecimal())
    assert inside > 0.05 and inside > 5 * outside


# ---- Bad input -----------------------------------------------------------------------------------


def bad_files():
    """Label maps, photos and checkpoints with which something is wrong."""
    Image.fromarray(np.full((32, 32), 77, np.uint8)).save("ids.png")
    Image.fromarray(np.zeros((33, 64), np.uint8)).save("odd.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save("good.png")
    Image.new("RGB", (32, 32)).save("photo.jpg")
    for name in ("runs/toy/latest.pt", "good.png"):
        whole = open(name, "rb").read()
        open("cut." + name[-3:].strip("."), "wb").write(whole[:len(whole) // 2])
    torch.save({"weights": torch.zeros(3)}, "other.pt")
    checkpoint = torch.load("runs/toy/latest.pt", weights_only=True)
    del checkpoint["discriminator_class"]
    torch.save(checkpoint, "without_d.pt")


@pytest.mark.parametrize("words, culprit", [
    ("--resample-class bed", "'bed'; there are unknown, sky"),
    ("--resample-class 99", "'99'"),
    ("--resample-mask missing.png", "missing.png"),
    ("--resample-mask good.png", "has a pixel to change"),
    ("--labels ids.png", "ids.png: holds the ids [77]"),
    ("--labels odd.png", "a label map of 33×64"),
    ("--labels missing", "missing"),
    ("--labels runs", "runs"),
    ("--labels cut.png", "cut.png"),
    ("--labels photo.jpg", "photo.jpg"),
    ("--size 30 32", "multiples of 4"),
    ("--checkpoint missing.pt", "missing.pt"),
    ("--checkpoint cut.pt", "cut.pt"),
    ("--checkpoint other.pt", "other.pt"),
    ("--checkpoint without_d.pt --recreate photo.jpg", "no discriminator"),
    ("--recreate missing.jpg", "missing.jpg"),
    ("--recreate photo.jpg --labels good.png", "not allowed with"),
])
def test_bad_input_ends_in_one_sentence_and_writes_nothing(folder, capsys, words, culprit):
    bad_files()
    before = contents(folder)
    last = refuse(capsys, *words.split())
    assert last.startswith("sample.py: ") and culprit in last
    assert contents(folder) == before


def test_a_full_disk_leaves_no_half_picture(folder, monkeypatch):
    def full(self, path, **options):
        path.write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        command("--limit", 1)
    assert not contents(folder / "out")
