"""Pictures: noise in closed form, locality, the command on small runs, its refusals."""

import gc
import io
import json
import os

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

import data
import layouts
import oasis
import released_layout
import sample
import segmenter
import tiny_datasets
import train


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On networks this small, two threads spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def vivid(network):
    """Unit-gain weights instead of the initial, nearly silent ones: pictures with contrasts."""
    numbers = torch.Generator().manual_seed(0)
    for p in network.parameters():
        if p.ndim > 1:
            p.normal_(std=p[0].numel() ** -0.5, generator=numbers)
    for _ in range(10):        # spectral norm and batch norm get to know the new weights
        if isinstance(network, oasis.Generator):
            network(torch.randint(network.num_classes, (4, 32, 32), generator=numbers),
                    torch.randn(4, network.noise_dim, generator=numbers))
        else:
            network(torch.randn(4, 3, 32, 32, generator=numbers))
    return network.eval()


@pytest.fixture(scope="module")
def checkpoint():
    """The bytes of a checkpoint as train.py writes it, with tiny networks."""
    toy = data.open_dataset("toy", "val", (32, 32))
    G = vivid(oasis.Generator(10, noise_dim=8, channels=2, num_blocks=3, spade_hidden=8))
    D = vivid(oasis.Discriminator(10, channels=(8, 8, 8)))
    file = io.BytesIO()
    torch.save({
        "format": "oasis-run-1", "model": "oasis", "step": 7,
        "config": {"preset": "toy", "data_root": "", "seed": 0, "run_dir": "runs/toy",
                   "batch_size": 2, "height": 32, "width": 32},
        "dataset": {"preset": "toy", "class_names": list(toy.class_names), "size": [32, 32],
                    "palette": toy.palette.tolist(), "ignore_label": 0},
        "generator_args": G.config, "discriminator_args": D.config, "generator": G.state_dict(),
        "ema": G.state_dict(), "discriminator": D.state_dict()}, file)
    return file.getvalue()


@pytest.fixture
def folder(checkpoint, tmp_path, monkeypatch):
    """A working directory with one run, as after `python train.py`."""
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    (tmp_path / "runs" / "toy" / "best.pt").write_bytes(checkpoint)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*words):
    """One command, which must succeed."""
    assert sample.main([str(word) for word in words]) == 0


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# ---- Noise and pictures --------------------------------------------------------------------------


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


def test_local_noise_is_the_old_noise_outside_and_the_new_inside():
    outside, *inside = oasis.noise_from_seeds([0, 1, 2])
    region = np.zeros((4, 6), bool)
    region[1:3, 2:] = True
    noise = sample.local_noise(outside, torch.stack(inside), region)
    assert noise.shape == (2, 64, 4, 6)
    for k, y, x in np.ndindex(2, 4, 6):
        assert torch.equal(noise[k, :, y, x], inside[k] if region[y, x] else outside)


def test_classes_are_exchanged_all_at_once():
    labels = np.array([[0, 1], [2, 1]])
    assert sample.replace_classes(labels, {0: 1, 1: 0}).tolist() == [[1, 0], [2, 0]]
    assert labels.tolist() == [[0, 1], [2, 1]]


def test_prediction_is_the_best_real_class_even_where_fake_is_likelier():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = torch.nn.Parameter(torch.tensor([0.0, 2.0, 1.0, 9.0]))  # last: fake

        def forward(self, images):
            return self.scores[:, None, None].expand(len(images), 4, *images.shape[2:])
    assert (sample.predict_labels(Constant(), np.zeros((4, 5, 3), np.uint8)) == 1).all()


def test_change_is_averaged_by_distance_from_the_region():
    region = np.zeros((1, 20), bool)
    region[0, 0] = True
    before = np.zeros((1, 20, 3), np.uint8)
    after = before + np.arange(20, dtype=np.uint8)[None, ::-1, None]     # 19 inside, 18, 17, ... 0
    total, count = sample.change_by_distance(before, after, region)
    assert count.tolist() == [1, 8, 8, 3, 0, 0]
    np.testing.assert_allclose(total * 127.5, [19, sum(range(11, 19)), sum(range(3, 11)), 3, 0, 0])


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_new_noise_changes_nothing_beyond_the_reach_to_the_last_bit(blocks):
    G = vivid(oasis.Generator(5, noise_dim=8, channels=4, num_blocks=blocks, spade_hidden=8))
    s, width, column = G.size_multiple, 256, 96      # a multiple of s: seen at every scale
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (1, s, width)))
    a, b = oasis.noise_from_seeds([0, 1], 8)
    region = np.zeros((s, width), bool)
    region[:, column] = True
    noise = sample.local_noise(a, b[None], region)

    def changed_columns(G, dtype):
        before = G(labels, sample.local_noise(a, a[None], region).to(dtype))
        return (G(labels, noise.to(dtype)) != before)[0].any(0).any(0).nonzero().ravel()
    changed = changed_columns(G, torch.float32)
    assert 0 < len(changed) and (changed - column).abs().max() <= sample.reach(G) < width - column
    # The bound is tight. In float64, where nothing is rounded away, the farthest pixel does change.
    assert changed_columns(G.double(), torch.float64).max() - column == sample.reach(G)


def test_a_picture_does_not_depend_on_its_batch():
    G = vivid(oasis.Generator(5, noise_dim=8, channels=4, num_blocks=3, spade_hidden=8))
    labels = np.random.default_rng(0).integers(0, 5, (8, 32, 32))
    noise = oasis.noise_from_seeds(range(8), 8)
    together, alone = (sample.paint(G, labels, noise, batch_size=b) for b in (8, 1))
    assert together.shape == (8, 32, 32, 3) and together.dtype == np.uint8 and together.std() > 10
    assert np.abs(together.astype(int) - alone).max() <= 1          # where rounding is a close call


# ---- The command ---------------------------------------------------------------------------------


def test_without_arguments_the_newest_run_draws_its_validation_set(folder, capsys):
    command()
    out = folder / "runs/toy/samples/best_step000007"
    assert {p.name for p in out.iterdir()} == {"contact_sheet.png", "record.json"} | {
        f"val_{i:05d}_seed{k}.png" for i in range(8) for k in range(4)}
    assert "contact_sheet.png" in capsys.readouterr().out
    # Picture k has the noise of seed k; the checkpoint's network is all it takes to draw it.
    model = sample.load_model("runs/toy/best.pt")
    labels = data.open_dataset("toy", "val", (32, 32))[5][1]
    alone = sample.paint(model.generator, labels, sample.noise_from_seeds([3], 8))[0]
    assert np.abs(pixels(out / "val_00005_seed3.png") - alone).max() <= 1


def test_the_newest_run_is_the_one_written_to_last(tmp_path):
    for age, name in enumerate(["new/latest.pt", "old/best.pt", "old/latest.pt"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    assert sample.newest_checkpoint(tmp_path) == tmp_path / "new/latest.pt"
    os.utime(tmp_path / "old/latest.pt", (2e9, 2e9))             # that run goes on: its best so far
    assert sample.newest_checkpoint(tmp_path) == tmp_path / "old/latest.pt"


def test_a_second_run_draws_only_what_is_missing(folder, capsys):
    out = folder / "out"
    command("--limit", 3, "--num", 2, "--out", out)
    first = files(out)
    (out / "val_00001_seed1.png").unlink()
    command("--limit", 3, "--num", 3, "--out", out)
    second = files(out)
    assert "5 were there already" in capsys.readouterr().out
    kept = [p for p in first if "seed" in p.name and p.name != "val_00001_seed1.png"]
    assert len(kept) == 5 and all(second[p] == first[p] for p in kept)
    assert len([p for p in second if "seed" in p.name]) == 9


@pytest.mark.parametrize("edit", [
    [], ["--resample-class", "meadow"], ["--resample-box", 4, 8, 12, 16],
    ["--interpolate", 4, "--resample-class", "meadow"], ["--recreate"],
    ["--replace", "meadow=road"]])
def test_the_record_suffices_to_draw_every_picture_again(folder, edit):
    """Drawn here with the library alone, from what the record says."""
    command("--limit", 2, "--out", "out", "--json", "record.json", "--seed", 5, *edit,
            *([] if "--interpolate" in edit else ["--num", 2]))
    record = json.loads((folder / "record.json").read_text())["pictures"]
    assert len(record) == 8 if "--interpolate" in edit else len(record) in (4, 6)
    assert {p["file"] for p in record} == {
        str(p) for p in (folder / "out").glob("*seed*.png") if "strip" not in p.name}
    for entry in record:
        model = sample.load_model(entry["checkpoint"])
        dataset = data.open_dataset(entry["preset"], entry["split"], entry["size"],
                                    seed=entry["dataset_seed"])
        image, labels = dataset[entry["index"]]
        labels = labels.numpy()
        if entry["predicted"]:
            labels = sample.predict_labels(model.discriminator, data.to_uint8(image[None])[0])
        labels = sample.replace_classes(labels, {
            sample.class_id(a, model.class_names): sample.class_id(b, model.class_names)
            for a, b in entry["replace"].items()})
        a, b = sample.noise_from_seeds([entry["seed"], entry.get("to_seed", entry["seed"])], 8)
        if "frame" in entry:
            b = sample.interpolate(a, b, entry["frames"])[entry["frame"]]
        region = np.ones(labels.shape, bool)
        if entry.get("classes"):
            region = sample.class_region(labels, [model.class_names.index(c)
                                                  for c in entry["classes"]])
        if entry.get("box"):
            x, y, w, h = entry["box"]
            region = np.zeros(labels.shape, bool)
            region[y:y + h, x:x + w] = True
        again = sample.paint(model.generator, labels, sample.local_noise(a, b[None], region))[0]
        assert np.abs(pixels(entry["file"]) - again).max() <= 1


def test_memory_does_not_grow_with_the_number_of_label_maps(folder, monkeypatch):
    (folder / "maps").mkdir()
    for i in range(40):
        Image.fromarray(np.full((32, 32), i % 10, np.uint8)).save(f"maps/{i:02d}.png")
    alive, paint = [], sample.paint

    def counting_paint(*arguments):
        alive.append(sum(type(thing) is sample.Scene for thing in gc.get_objects()))
        return paint(*arguments)
    monkeypatch.setattr(sample, "paint", counting_paint)
    command("--labels", "maps", "--num", 1, "--batch-size", 4, "--out", "out")
    assert len(alive) == 10 and max(alive) <= 8      # one batch, the one before, the cache
    assert len(list((folder / "out").glob("*_seed0.png"))) == 40


def test_a_drawn_mask_changes_what_it_covers(folder, capsys):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    Image.fromarray(mask).save("drawn.png")
    command("--resample-mask", "drawn.png", "--limit", 2, "--num", 2, "--out", "out")
    before = pixels("out/val_00000_seed0.png")
    after = pixels("out/val_00000_seed0_resample-mask-drawn_seed1.png")
    change = np.abs(after - before).mean(2)
    assert change[mask > 0].mean() > 2 * change[mask == 0].mean() > 0
    assert "inside" in capsys.readouterr().out


def test_interpolation_gives_frames_a_strip_and_a_gif_there_and_back(folder):
    command("--interpolate", 5, "--limit", 1, "--out", "out")
    frames = [pixels(f"out/val_00000_seed0_to-seed1_{j:03d}of5.png") for j in range(5)]
    assert (pixels("out/val_00000_seed0_to-seed1_strip.png") == np.concatenate(frames, 1)).all()
    assert Image.open("out/val_00000_seed0_to-seed1.gif").n_frames == 8
    # The ends are the global pictures of the two seeds.
    command("--limit", 1, "--num", 2, "--out", "global")
    for j, seed in ((0, 0), (4, 1)):
        assert np.abs(frames[j] - pixels(f"global/val_00000_seed{seed}.png")).max() <= 1


def test_a_photo_is_segmented_and_drawn_anew(folder):
    photo = data.to_uint8(data.open_dataset("toy", "val", (48, 64))[0][0][None])[0]
    Image.fromarray(photo).save("photo.png")
    command("--recreate", "photo.png", "--num", 2, "--out", "out", "--size", 48, 64)
    model = sample.load_model("runs/toy/best.pt")
    predicted = sample.predict_labels(model.discriminator, photo)
    saved = sample.read_labels("out/photo_labels.png", model)
    assert (saved == predicted).all() and len(np.unique(saved)) > 1
    colours = np.asarray(Image.open("out/photo_labels.png").convert("RGB"))
    assert (colours == data.colourise(predicted, model.palette)).all()
    # Drawing from the saved label map is the same as drawing from the photo.
    command("--labels", "out/photo_labels.png", "--num", 2, "--out", "again")
    for k in range(2):
        assert (pixels(f"out/photo_seed{k}_recreated.png")
                == pixels(f"again/photo_labels_seed{k}.png")).all()
    command("--segment", "photo.png", "--out", "segmented")
    assert sorted(p.name for p in (folder / "segmented").iterdir()) == [
        "contact_sheet.png", "photo_labels.png"]


def test_ids_palette_indices_and_colours_are_the_same_label_map(folder):
    model = sample.load_model("runs/toy/best.pt")
    labels = data.open_dataset("toy", "val", (32, 64))[1][1].numpy()
    (folder / "maps").mkdir()
    ids = Image.fromarray(labels.astype(np.uint8))
    ids.save("maps/grey.png")
    Image.fromarray(data.colourise(labels, model.palette)).save("maps/colour.png")
    ids.putpalette([7] * 768)
    ids.save("maps/palette.png")
    command("--labels", "maps", "--num", 1, "--out", "out")
    drawn = [pixels(f"out/{name}_seed0.png") for name in ("grey", "colour", "palette")]
    assert drawn[0].shape == (32, 64, 3)                         # a label map's own size
    assert all(np.abs(other - drawn[0]).max() <= 1 for other in drawn[1:])
    command("--labels", "maps/grey.png", "--num", 1, "--out", "small", "--size", 16, 32)
    assert pixels("small/grey_seed0.png").shape == (16, 32, 3)


def test_a_class_that_some_label_maps_lack(folder, capsys):
    (folder / "maps").mkdir()
    for name, ids in (("both", [1, 3]), ("meadow", [3, 3])):
        labels = np.uint8(ids).repeat(16)[:, None].repeat(32, 1)
        Image.fromarray(labels).save(f"maps/{name}.png")
    command("--labels", "maps", "--resample-class", "sky", "--num", 1, "--out", "out")
    assert "meadow: skipped" in capsys.readouterr().out
    assert sorted(p.name for p in (folder / "out").glob("*seed*")) == [
        "both_seed0.png", "both_seed0_resample-sky_seed1.png"]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small generator in the authors' layout with COCO-Stuff's number of classes."""
    path = tmp_path_factory.mktemp("released") / "latest_EMA.pth"
    torch.save(released_layout.fill(released_layout.generator_layout(1, 183), "coco"), path)
    return path


def test_a_released_file_draws_label_maps_as_its_dataset_ships_them(released, folder):
    """COCO-Stuff's files say 0 ... 181 and 255, its networks 1 ... 182 and 0."""
    stored = np.uint8([[0, 181], [255, 9]]).repeat(16, 0).repeat(16, 1)
    Image.fromarray(stored).save("street.png")
    command("--checkpoint", released, "--preset", "coco-stuff", "--labels", "street.png",
            "--num", 1)
    labels = np.array([[1, 182], [0, 10]]).repeat(16, 0).repeat(16, 1)
    model = sample.load_model(released, "coco-stuff")
    expected = sample.paint(model.generator, labels, sample.noise_from_seeds([0]))[0]
    assert (pixels("samples/latest_EMA/street_seed0.png") == expected).all()
    assert model.class_names[1] == layouts.COCO_STUFF_NAMES[0] == "person"
    assert (model.id_table[model.file_ids] == np.arange(183)).all()


def test_names_of_a_released_ade20k_model_come_from_its_data(tmp_path):
    path = tmp_path / "latest_EMA.pth"
    torch.save(released_layout.fill(released_layout.generator_layout(1, 151), "ade"), path)
    tiny_datasets.write_ade20k(tmp_path / "ade")
    model = sample.load_model(path, "ade20k", data_root=tmp_path / "ade")
    assert sample.class_id("bed", model.class_names) == 8
    assert sample.load_model(path, "ade20k").class_names[8] == "class 8"


# ---- A generator that has learned ----------------------------------------------------------------


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """The folder of a run of `python train.py`, narrower and shorter: still a generator that has learned."""
    run = tmp_path_factory.mktemp("toy") / "run"
    train.main(["--run-dir", str(run), "--steps", "160", "--score-every", "160", "--picture-every", "160",
                "--d-channels", "16", "32", "48", "64", "--score-images", "100", "--segmenter-steps", "100"])
    return run


@torch.no_grad()
def test_a_seed_gives_the_same_picture_in_a_batch_of_1_and_of_8(toy_run):
    G = oasis.generator_from(oasis.load_checkpoint(toy_run / "latest.pt"))
    scenes = data.open_dataset("toy", "val", (64, 64))
    labels, noise = torch.stack([scenes[i][1] for i in range(8)]), oasis.noise_from_seeds(range(8))
    one_by_one = torch.cat([G(labels[i:i + 1], noise[i:i + 1]) for i in range(8)])
    torch.testing.assert_close(G(labels, noise), one_by_one, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_short_training_has_learned_layout_and_moods(toy_run):
    """The scores of the run itself: half the distance is gone, and noise changes the picture."""
    scores = train.read_rows(toy_run / "scores.csv")
    assert [row["step"] for row in scores] == [0, 160]
    assert scores[-1]["fd_segmenter"] < scores[0]["fd_segmenter"] / 2
    assert scores[-1]["miou"] > 1.5 * scores[0]["miou"]
    G = oasis.generator_from(oasis.load_checkpoint(toy_run / "latest.pt"))
    labels = data.open_dataset("toy", "val", (64, 64))[0][1]
    a, b = G(labels.expand(2, -1, -1), oasis.noise_from_seeds([0, 1]))
    assert (a - b).abs().mean() > 0.03


def test_local_resampling_of_a_trained_generator_is_local_and_keeps_the_layout(toy_run):
    """Every class in turn gets new noise; the change is read off by distance, the layout by the
    segmenter that the run is scored with."""
    model = sample.load_model(toy_run / "best.pt")
    scenes = data.open_dataset("toy", "val", model.size, seed=model.seed)
    judge = segmenter.load_segmenter(toy_run / "segmenter.pt", scenes, torch.device("cpu"))
    a, b = sample.noise_from_seeds([0, 1], model.generator.noise_dim)
    change, before_counts, after_counts = 0, 0, 0
    for labels in (scenes[i][1] for i in range(12)):
        regions = [sample.class_region(labels.numpy(), [k]) for k in labels.unique()]
        noise = torch.cat([a.expand(1, *labels.shape, -1).permute(0, 3, 1, 2)]
                          + [sample.local_noise(a, b[None], region) for region in regions])
        pictures = sample.paint(model.generator, labels, noise)
        change += sum(sample.change_by_distance(pictures[0], after, region)
                      for after, region in zip(pictures[1:], regions))
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            before_counts += judge.confusion(images[:1], labels[None]) * len(regions)
            after_counts += judge.confusion(images[1:], labels.expand(len(regions), -1, -1))
    inside, *outside = change[0] / change[1].clip(1)
    assert inside > 3 * change[0, 1:].sum() / change[1, 1:].sum()
    assert all(np.diff([inside, *outside[:4]]) < 0)              # fades with distance
    drop = segmenter.mean_iou(before_counts) - segmenter.mean_iou(after_counts)
    assert drop < 0.02


def test_beyond_its_reach_a_trained_generator_changes_not_one_bit(toy_run):
    """A panorama of four toy scenes; only the sky of the first is drawn anew."""
    model = sample.load_model(toy_run / "best.pt")
    scenes = data.open_dataset("toy", "val", model.size)
    labels = torch.cat([scenes[i][1] for i in range(4)], dim=1)[None]
    region = sample.class_region(labels[0].numpy(), [1])
    region[:, 64:] = False
    a, b = sample.noise_from_seeds([0, 1], model.generator.noise_dim)
    with torch.no_grad():
        before = model.generator(labels, sample.local_noise(a, a[None], region))
        after = model.generator(labels, sample.local_noise(a, b[None], region))
    distance = scipy.ndimage.distance_transform_edt(~region)
    changed = (before != after)[0].any(0).numpy()
    farthest = np.abs(np.argwhere(changed)[:, 1].max() - np.argwhere(region)[:, 1].max())
    assert 8 < farthest <= sample.reach(model.generator) < 100
    assert distance[changed].max() < 100 < distance.max()


# ---- Bad input -----------------------------------------------------------------------------------


def bad_files():
    """Label maps, masks and checkpoints with which something is wrong."""
    Image.fromarray(np.full((32, 32), 77, np.uint8)).save("ids.png")
    Image.fromarray(np.zeros((33, 64), np.uint8)).save("odd.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save("good.png")
    Image.new("RGB", (32, 32)).save("photo.jpg")
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save("small.png")
    whole = open("runs/toy/best.pt", "rb").read()
    open("cut.pt", "wb").write(whole[:len(whole) // 2])
    open("cut.png", "wb").write(open("good.png", "rb").read()[:50])
    torch.save({"weights": torch.zeros(3)}, "other.pt")
    checkpoint = torch.load("runs/toy/best.pt", weights_only=True)
    torch.save({**checkpoint, "generator_args": {**checkpoint["generator_args"], "channels": 3}},
               "changed.pt")
    del checkpoint["discriminator"]
    torch.save(checkpoint, "without_d.pt")


@pytest.mark.parametrize("words, culprit", [
    ("--resample-class bed", "'bed'; there are 0 unknown, 1 sky"),
    ("--resample-class 10", "'10'"),
    ("--resample-class sky --labels good.png", "a pixel of the class to re-sample: sky"),
    ("--resample-mask small.png", "the mask is 16×16"),
    ("--resample-mask good.png", "good.png: the mask is empty"),
    ("--resample-mask missing.png", "missing.png"),
    ("--resample-box 20 20 20 4", "--resample-box 20 20 20 4"),
    ("--labels ids.png", "ids.png: holds the ids 77; allowed are 0-9"),
    ("--labels odd.png", "odd.png: this generator draws multiples of 4 pixels, but its height is "
                         "33, the nearest are 32 and 36"),
    ("--labels missing", "missing"),
    ("--labels runs", "runs"),
    ("--labels cut.png", "cut.png"),
    ("--labels photo.jpg", "photo.jpg: is not a png"),
    ("--size 30 32", "its height is 30, the nearest are 28 and 32"),
    ("--checkpoint missing.pt", "missing.pt"),
    ("--checkpoint cut.pt", "cut.pt"),
    ("--checkpoint other.pt", "other.pt"),
    ("--checkpoint changed.pt", "another model"),
    ("--checkpoint without_d.pt --recreate photo.jpg", "need the discriminator"),
    ("--checkpoint released.pth", "--preset ade20k | "),
    ("--checkpoint released.pth --preset cityscapes", "draws 183 classes, but cityscapes has 35"),
    ("--checkpoint released.pth --preset coco-stuff", "--labels"),
    ("--checkpoint runs/toy/best.pt --preset ade20k", "not a generator of the authors'"),
    ("--recreate missing.jpg", "missing.jpg"),
    ("--recreate photo.jpg --labels good.png", "--labels and --recreate"),
    ("--replace sky", "--replace sky"),
    ("--replace sky=bed", "'bed'"),
    ("--num 0", "--num: 0"),
    ("--seed -1", "--seed: -1"),
    ("--num 2 --interpolate 3", "--num and --interpolate"),
    ("--device cuda:99", "cuda:99"),
    ("--nonsense", "--nonsense"),
])
def test_bad_input_ends_in_one_sentence_and_changes_nothing(folder, released, capsys, words,
                                                            culprit):
    bad_files()
    (folder / "released.pth").symlink_to(released)
    before = files(folder)
    try:
        code = sample.main(words.split())
    except SystemExit as stop:                                   # argparse's way out
        code = stop.code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("sample.py: error: ") and culprit in last
    assert files(folder) == before


def test_no_run_yet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sample.main([]) == 2
    assert "python train.py" in capsys.readouterr().err


def test_a_bad_label_map_is_found_before_the_first_picture(folder, capsys):
    bad_files()
    (folder / "maps").mkdir()
    for source, name in (("good.png", "a.png"), ("ids.png", "b.png")):
        (folder / "maps" / name).write_bytes((folder / source).read_bytes())
    assert sample.main(["--labels", "maps", "--out", "out"]) == 2
    assert "b.png" in capsys.readouterr().err and not (folder / "out").exists()


@pytest.mark.parametrize("foreign", [True, False])
def test_another_picture_under_the_name_is_not_overwritten(folder, capsys, foreign):
    if foreign:
        (folder / "out").mkdir()
        Image.new("RGB", (32, 32)).save("out/val_00000_seed0.png")
    else:
        command("--limit", 1, "--out", "out", "--size", 16, 16)
    before = files(folder)
    assert sample.main(["--limit", "1", "--out", "out"]) == 2
    assert "val_00000_seed0.png: exists already" in capsys.readouterr().err
    assert files(folder) == before


def test_a_full_disk_leaves_no_half_picture(folder, capsys, monkeypatch):
    def full(self, path, **options):
        path.write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Image.Image, "save", full)
    assert sample.main(["--limit", "1", "--out", "out"]) == 2
    assert "No space left on device" in capsys.readouterr().err and not files(folder / "out")
