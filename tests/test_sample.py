"""sample.py: noise and locality in closed form, every mode on a small run, refusals."""

import subprocess
import sys
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


def mean_change(before, after, region):
    """Mean |after - before| of pictures, 0 ... 255 -> (inside, outside the region)."""
    change = np.mean([np.abs(picture - before).mean(axis=2) for picture in after], axis=0)
    return change[region].mean(), change[~region].mean()


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


@pytest.mark.parametrize("channels", [4, 8])
def test_a_walk_keeps_the_variance_of_vector_and_field(channels):
    """K = 4: of eight channels four are the vector; K = 8: there is no vector at all."""
    start, end = oasis.draw_noise([3, 4], (48, 48), 8, channels)
    walk = sample.interpolate(start, end, 5)
    assert torch.equal(walk[0], start) and torch.equal(walk[-1], end)
    fields = walk[:, -channels:]
    assert (fields.std((2, 3)) - 1).abs().max() < 0.05                # a straight line: 0.71
    steps = (fields[1:] - fields[:-1]).square().mean((1, 2, 3))
    torch.testing.assert_close(steps, steps.mean().expand(4), rtol=0.02, atol=0)
    if channels == 4:       # the vector is that of K = 0, the same at every pixel
        vectors = sample.interpolate(*oasis.noise_from_seeds([3, 4], 8)[:, :4], 5)
        torch.testing.assert_close(walk[:, :4], vectors[:, :, None, None].expand(-1, -1, 48, 48),
                                   rtol=0, atol=1e-4)


def test_a_walk_of_one_step_is_its_start():
    assert torch.equal(sample.interpolate(*torch.eye(3)[:2], 1), torch.eye(3)[:1])


def generator(pixel_noise=0):
    return tiny_run.vivid(oasis.Generator(5, 8, channels=4, num_blocks=3, spade_hidden=8,
                                          pixel_noise=pixel_noise))


@pytest.mark.parametrize("pixel_noise", [0, 4])
@pytest.mark.parametrize("size", [(33, 50), (32, 48), (3, 1)])
def test_any_size_is_painted_as_the_map_with_its_border_repeated(size, pixel_noise):
    """The oracle pads by numpy; where nothing is missing, it is the generator's own picture."""
    G = generator(pixel_noise)
    labels = np.random.default_rng(0).integers(0, 5, (2, *size))
    noise = oasis.draw_noise([0, 1], size, 8, pixel_noise)
    margins = (0, 0), (0, -size[0] % 4), (0, -size[1] % 4)
    padded = torch.from_numpy(np.pad(labels, margins, mode="edge"))
    wide = noise
    if pixel_noise:
        wide = torch.from_numpy(np.pad(noise.numpy(), ((0, 0), *margins), mode="edge"))
    with torch.no_grad():
        expected = data.to_uint8(G(padded, wide))[:, :size[0], :size[1]]
    painted = sample.paint(G, labels, noise)
    assert painted.shape == (2, *size, 3) and (painted == expected).all()
    assert (sample.paint(G, labels, wide) == expected).all()          # noise of the padded size


def test_ids_and_noise_that_do_not_fit_are_refused():
    G, noise = generator(), oasis.noise_from_seeds([0], 8)
    for wrong in (-1, 5, 255):
        with pytest.raises(ValueError, match="0 to 4"):
            sample.paint(G, np.full((8, 8), wrong), noise)
    with pytest.raises(ValueError, match="noise of"):
        sample.paint(G, np.zeros((8, 8), int), torch.randn(1, 8, 4, 8))


def test_a_picture_does_not_depend_on_its_batch():
    G = sample.load_model().generator
    labels = np.random.default_rng(0).integers(0, G.num_classes, (8, 32, 32))
    noise = oasis.draw_noise(range(8), (32, 32), G.noise_dim, G.pixel_noise)
    together, alone = (sample.paint(G, labels, noise, batch_size=b) for b in (8, 1))
    assert together.shape == (8, 32, 32, 3) and together.dtype == np.uint8 and together.std() > 10
    assert np.abs(together.astype(int) - alone).max() <= 1          # where rounding is a close call


@torch.no_grad()
@pytest.mark.parametrize("blocks, pixel_noise", [(1, 0), (3, 0), (4, 0), (3, 4)])
def test_local_noise_changes_nothing_beyond_the_reach_to_the_last_bit(blocks, pixel_noise):
    """The farthest path: the coarsest block's cells are s = 2^(blocks-1) pixels wide. Two
    convolutions of SPADE and two of the block carry a change 4 cells on, those of the finer blocks
    2 (s - 1) pixels, the last layer 1; a cell is painted s - 1 pixels on. In all 7 s - 2."""
    G = tiny_run.vivid(oasis.Generator(5, 8, channels=4, num_blocks=blocks, spade_hidden=8))
    s, width, column = G.size_multiple, 256, 96
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (1, s, width)))
    a, b = oasis.draw_noise([0, 1], (s, width), 8, pixel_noise)[:, None]
    region = np.zeros((s, width), bool)
    region[:, column] = True
    before, after = (G(labels, oasis.local_noise(a, inside, region)) for inside in (a, b))
    changed = (before != after)[0].any(0).any(0).nonzero().ravel()
    assert 0 < len(changed) and (changed - column).abs().max() <= 7 * s - 2 < width - column


def test_sample_starts_without_slow_imports():
    """torch takes seconds already; each of these would add half a second or more."""
    program = "import sys, sample; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True,
                             text=True, cwd=Path(sample.__file__).parent).stdout
    assert "torch" in printed.split()
    slow = {"torchvision", "matplotlib", "torch._dynamo", "pandas"}
    assert not slow & set(printed.split())


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
    command("--limit", 2, "--num", 2)
    assert capsys.readouterr().out.count("5 files written") == 2
    Image.new("RGB", (32, 32)).save("out/val_00000_seed0.png")       # of an older run, perhaps
    command("--limit", 2, "--num", 10)
    second = contents(folder / "out")
    assert "21 files written" in capsys.readouterr().out          # twenty pictures, their sheet
    assert len(second) == 22 and all(second[path] == first[path] for path in first)


@pytest.mark.parametrize("place, options", [("meadow", ["--resample-class", "meadow"]),
                                            ("drawn", ["--resample-mask", "drawn.png"])])
def test_another_class_or_a_drawn_area_changes_there(folder, capsys, place, options):
    labels = data.open_dataset("toy", "val", (32, 32))[0][1].numpy()
    region = labels == data.read_class_table("toy")[0].index("meadow")
    if place == "drawn":
        region = np.zeros((32, 32), bool)
        region[8:24, 8:24] = True
        Image.fromarray(region.repeat(4, 0).repeat(4, 1)).save("drawn.png")        # enlarged
    command(*options, "--limit", 1, "--num", 3)
    names = sorted(path.name for path in (folder / "out").glob("val_00000_*"))
    assert names == [f"val_00000_seed0_resample-{place}_seed{k}.png" for k in range(3)]
    before, *after = (pixels(folder / "out" / name) for name in names)
    inside, outside = mean_change(before, after, region)
    assert inside > 2 * outside
    assert "first picture of each row has the noise of seed 0" in capsys.readouterr().out
    command("--limit", 1, "--num", 1)            # outside is what the whole picture's noise gives
    assert (pixels("out/val_00000_seed0.png") == before).all()


def test_label_maps_without_the_class_are_skipped(folder, capsys):
    (folder / "maps").mkdir()
    for name, ids in (("both", [1, 3]), ("one", [3, 3])):
        Image.fromarray(np.uint8(ids).repeat(16)[:, None].repeat(32, 1)).save(f"maps/{name}.png")
    command("--labels", "maps", "--resample-class", 1, "--num", 2)
    assert sorted(path.name for path in (folder / "out").glob("*_seed?.png")) == [
        "both_seed0_resample-1_seed0.png", "both_seed0_resample-1_seed1.png"]
    assert "pixel to change" in refuse(capsys, "--labels", "maps/one.png", "--resample-class", "1")


def test_a_walk_gives_a_strip_and_a_gif_there_and_back(folder):
    command("--interpolate", 5, "--limit", 1)
    frames = [pixels(f"out/val_00000_walk0-1_{k}of5.png") for k in ("001", "002", "003", "005")]
    assert Image.open("out/val_00000_walk0-1_all5.gif").n_frames == 8
    strip = pixels("out/val_00000_walk0-1_all5.png")            # six times as large
    assert (strip[4:196:6, 4:196:6] == frames[0]).all() and strip.shape[1] > 5 * 192
    command("--limit", 1, "--num", 2)            # the ends are the pictures of the two seeds
    for frame, seed in ((frames[0], 0), (frames[-1], 1)):
        assert np.abs(frame - pixels(f"out/val_00000_seed{seed}.png")).max() <= 1
    assert np.abs(frames[2] - frames[1]).mean() < np.abs(frames[-1] - frames[0]).mean()
    command("--interpolate", 3, "--limit", 1, "--resample-class", "meadow")
    assert (folder / "out/val_00000_seed0_resample-meadow_walk0-1_all3.gif").exists()


def test_the_modes_treat_noise_at_every_pixel(folder):
    """Vector and field change inside the region only, and walk together."""
    run = tiny_run.make_checkpoint(folder / "run.pt")
    checkpoint = torch.load(run)
    checkpoint["generator_args"]["pixel_noise"] = 4       # the same weights: no layer depends on it
    torch.save(checkpoint, run)
    ask = ["--checkpoint", run, "--limit", 1]
    labels = data.open_dataset("toy", "val", (32, 32))[0][1]
    G = sample.load_model(run).generator
    a, b = oasis.draw_noise([0, 1], (32, 32), 8, 4)
    command(*ask, "--num", 2)
    expected = sample.paint(G, labels, torch.stack([a, b]))
    assert (pixels("out/val_00000_seed1.png") == expected[1]).all()
    region = labels == data.read_class_table("toy")[0].index("meadow")
    for words, noise in ((["--resample-class", "meadow", "--num", 2], torch.where(region, b, a)),
                         (["--interpolate", 3], sample.interpolate(a, b, 3)[1])):
        command(*ask, *words)
        name = "seed0_resample-meadow_seed1" if "--num" in words else "walk0-1_002of3"
        expected = sample.paint(G, labels, noise[None])[0]
        assert np.abs(pixels(f"out/val_00000_{name}.png") - expected).max() <= 1


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
    ids.putpalette([7] * 768)                                         # colours do not matter
    ids.save("maps/palette.png")
    command("--labels", "maps", "--num", 1)
    assert (pixels("out/grey_seed0.png") == pixels("out/palette_seed0.png")).all()
    assert pixels("out/grey_seed0.png").shape == (32, 64, 3)         # a label map's own size


def test_255_is_read_as_the_ignored_class_of_own_photographs(folder):
    """As in training; tiny_datasets' class 4 is "unlabelled"."""
    tiny_datasets.make_folder(folder / "data")
    run = tiny_run.make_checkpoint(folder / "run.pt", preset="folder", data_root=folder / "data")
    for name, ids in (("with255", [0, 255]), ("with4", [0, 4])):
        Image.fromarray(np.uint8(ids).repeat(16)[:, None].repeat(32, 1)).save(f"{name}.png")
        command("--checkpoint", run, "--labels", f"{name}.png", "--num", 1)
    assert (pixels("out/with255_seed0.png") == pixels("out/with4_seed0.png")).all()


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
    assert (folder / "out/street.0_seed0_resample-traffic-light_seed0.png").exists()
    (folder / "data").rename("moved")
    assert "--data-root" in refuse(capsys, "--checkpoint", "run.pt")
    command("--checkpoint", "run.pt", "--num", 1, "--data-root", "moved")


@pytest.mark.skipif(not INCLUDED.exists(), reason="assets/toy.pt is not there")
def test_without_a_run_the_included_model_draws_other_skies(folder, capsys):
    (folder / "runs").rename("elsewhere")
    command("--resample-class", "sky", "--limit", 1, "--num", 2)
    assert str(INCLUDED) in capsys.readouterr().out.splitlines()[0]
    before, after = (pixels(f"out/val_00000_seed0_resample-sky_seed{k}.png") for k in range(2))
    labels = data.open_dataset("toy", "val", (64, 64))[0][1].numpy()
    inside, outside = mean_change(before, [after], labels == 1)
    assert inside > 6 and inside > 5 * outside


# ---- Bad input -----------------------------------------------------------------------------------


def bad_files():
    """Label maps, photos and checkpoints with which something is wrong."""
    Image.fromarray(np.full((32, 32), 77, np.uint8)).save("ids.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save("good.png")
    Image.new("RGB", (32, 32)).save("photo.jpg")
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save("clear.png")
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
    ("--resample-mask clear.png", "clear.png: is white everywhere"),
    ("--labels ids.png", "ids.png: holds the ids [77]"),
    ("--labels missing", "missing"),
    ("--labels runs", "runs"),
    ("--labels cut.png", "cut.png"),
    ("--labels photo.jpg", "photo.jpg"),
    ("--labels=", "--labels: the name is empty"),
    ("--interpolate 1", "--interpolate: 1: must be a whole number, 2 to"),
    ("--num 0", "--num: 0: must be a whole number, 1 to"),
    ("--limit 0", "--limit: 0: must be a whole number, 1 to"),
    ("--data-root runs", "--data-root runs: the preset toy"),
    ("--out runs/toy/latest.pt", "runs/toy/latest.pt"),
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


@pytest.mark.parametrize("option", ["num", "seed", "limit", "interpolate", "size", "labels",
                                    "checkpoint", "recreate", "resample-class", "resample-mask",
                                    "data-root"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "word", "no/such/path"])
def test_no_value_of_an_option_ends_in_a_traceback(folder, capsys, option, value):
    """What cannot be done is refused in a sentence that names it; the rest paints what it says."""
    words = ["--size", value, "32"] if option == "size" else [f"--{option}={value}"]
    if value == "0" and option in ("seed", "resample-class"):       # class 0 is in some of the maps
        command(*words, "--num", 1)
        assert list((folder / "out").glob("val_*_seed0.png"))
        return
    assert value in refuse(capsys, *words)


@pytest.mark.parametrize("size", [(75, 100), (33, 64), (5, 3)])
def test_a_label_map_of_any_size_gives_pictures_of_its_size(folder, size):
    """Also by --size, and for a photograph that D reads."""
    Image.fromarray(np.ones(size, np.uint8)).save("odd.png")
    command("--labels", "odd.png", "--num", 1)
    assert pixels("out/odd_seed0.png").shape == (*size, 3)
    command("--num", 1, "--limit", 1, "--size", *size)
    command("--num", 1, "--limit", 1, "--size", *size, "--recreate")
    for words in ("", "recreated_"):
        name = "val_00000_{}x{}_{}seed0.png".format(*size, words)
        assert pixels(folder / "out" / name).shape == (*size, 3)


@pytest.mark.parametrize("count, words", [(4, []), (3, ["--num", 3]), (2, ["--num", 2])])
def test_num_pictures_are_num_pictures_in_every_mode(folder, count, words):
    """Also with another class, where the first has the noise of the first seed everywhere."""
    for k, mode in enumerate(([], ["--resample-class", "meadow"], ["--recreate"])):
        sample.main([str(w) for w in ["--out", f"out{k}", "--limit", 1, *words, *mode]])
        assert len(list(Path(f"out{k}").glob("val_*seed?.png"))) == count


def test_commands_that_ask_for_other_things_write_other_sheets(folder):
    """Label maps, noises, classes; a sheet of small pictures is enlarged to 192 pixels."""
    (folder / "maps").mkdir()
    Image.fromarray(np.ones((32, 32), np.uint8)).save("maps/meadow.png")
    asked = [[], ["--labels", "maps"], ["--labels", "maps/meadow.png"], ["--seed", 4],
             ["--recreate"], ["--resample-class", "meadow"], ["--resample-class", "sky"],
             ["--interpolate", 2], ["--size", 64, 64], ["--num", 2]]
    for words in asked:
        command(*words, *([] if "--labels" in words else ["--limit", 1]))
    sheets = {path.name: pixels(path) for path in (folder / "out").glob("contact_sheet*.png")}
    assert len(sheets) == len(asked)
    assert sheets["contact_sheet_limit-1.png"].shape == (18 + 196, 4 + 5 * 196, 3)
    assert sheets["contact_sheet_limit-1_size-64x64.png"].shape == (18 + 196, 4 + 5 * 196, 3)
    assert sheets["contact_sheet_labels-maps.png"].shape == (18 + 196, 4 + 5 * 196, 3)


def test_a_palette_that_contradicts_the_classes_is_refused(folder, capsys):
    """An image editor has sorted the palette: each colour is right, each index wrong."""
    tiny_datasets.make_folder(folder / "data")
    (folder / "data/classes.txt").write_text("sky 0 0 200\nroad 90 90 90\ngrass 0 200 0\n")
    for path in (folder / "data/labels").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) % 3).save(path)
    run = tiny_run.make_checkpoint(folder / "run.pt", preset="folder", data_root=folder / "data")
    picture = Image.fromarray(np.uint8([[0, 1, 2]]).repeat(32, 0).repeat(16, 1))
    picture.putpalette([90, 90, 90, 0, 200, 0, 0, 0, 200])
    picture.save("editor.png")
    ask = ["--checkpoint", run, "--labels", "editor.png"]
    assert "editor.png: the palette" in refuse(capsys, *ask)
    picture.putpalette([0, 0, 200, 90, 90, 90, 0, 200, 0])
    picture.save("editor.png")
    command(*ask, "--num", 1)


def test_a_folder_that_cannot_be_written_shows_before_anything_is_painted(folder, capsys,
                                                                           monkeypatch):
    monkeypatch.setattr(sample, "paint", lambda *a: pytest.fail("painted"))
    (folder / "file").write_text("here")
    assert "file" in refuse(capsys, "--out", "file/below")


def test_a_full_disk_leaves_no_half_picture(folder, monkeypatch, capsys):
    def full(self, path, **options):
        path.write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Image.Image, "save", full)
    assert "No space left on device" in refuse(capsys, "--limit", "1", "--out", "out")
    assert not contents(folder / "out")

