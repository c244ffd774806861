"""extras/paint.py: every button through gradio's client, strokes in a real browser."""

import base64
import copy
import dataclasses
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

pytest.importorskip("gradio", reason="extras/requirements.txt is not installed")
import gradio_client                        # noqa: E402  (the lines above must come first)

import data                                 # noqa: E402
import oasis                                # noqa: E402
import sample                               # noqa: E402
import tiny_run                             # noqa: E402
from extras import paint, spade             # noqa: E402
from extras.tests import browser            # noqa: E402

SIZE = (128, 192)
FIELD = 3                                   # noise channels of the second model, drawn per pixel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_run.make_checkpoint(tmp_path_factory.mktemp("run") / "toy.pt", size=(64, 64))


@pytest.fixture(scope="module")
def painter(checkpoint):
    model = sample.load_model(checkpoint)
    return paint.Painter(model, data.open_dataset("toy", "val", SIZE))


@pytest.fixture(scope="module")
def textured(painter):
    """A Painter whose model knows noise at every pixel. No layer depends on the number."""
    generator = oasis.Generator(**painter.model.generator.config | {"pixel_noise": FIELD})
    generator.load_state_dict(painter.model.generator.state_dict())
    model = dataclasses.replace(painter.model, generator=generator.eval())
    return paint.Painter(model, painter.dataset)


@pytest.fixture(scope="module")
def address(painter):
    page = paint.build_page(painter)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, share=False, show_error=True,
                            server_name="127.0.0.1")
    yield url
    page.close()


@pytest.fixture
def visitor(address):
    return gradio_client.Client(address, verbose=False)


def pixels(url):
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def canvas(painter, labels, area=None):
    """What the browser sends."""
    marked = np.zeros((*labels.shape, 4), np.uint8)
    if area is not None:
        marked[area] = 255
    return f"{paint.to_url(painter.palette[labels])} {paint.to_url(marked)}"


def first_map(painter):
    return painter.dataset[0][1].numpy()


def square(top, left, side):
    area = np.zeros(SIZE, bool)
    area[top:top + side, left:left + side] = True
    return area


# ---- Through gradio's client ---------------------------------------------------------------------


def test_the_first_scene_is_that_of_seed_0_and_the_slider_ends_at_seed_1(painter, visitor):
    now = canvas(painter, first_map(painter))
    scenes = [pixels(visitor.predict(now, t, api_name="/stroke")) for t in (0, 0.5, 1)]
    G = painter.model.generator
    for scene, seed in ((scenes[0], 0), (scenes[2], 1)):       # as sample.py paints them
        expected = sample.paint(G, first_map(painter), oasis.noise_from_seeds([seed], 8))[0]
        assert np.abs(scene - expected).max() <= 1
    assert np.abs(scenes[1] - scenes[0]).mean() < np.abs(scenes[2] - scenes[0]).mean()
    assert np.abs(pixels(visitor.predict(1, api_name="/show")) - scenes[2]).max() <= 1
    scene, slider = visitor.predict(api_name="/another_weather")
    assert slider == 0 and np.abs(pixels(scene) - scenes[2]).max() <= 1


def test_another_weather_in_an_area_and_undo(painter, visitor):
    labels, area = first_map(painter), square(0, 0, 30)
    before = pixels(visitor.predict(canvas(painter, labels), 0, api_name="/stroke"))
    scene = pixels(visitor.predict(canvas(painter, labels, area), 0, api_name="/stroke"))
    change = np.abs(scene - before).mean(2)
    assert change[area].mean() > 10 * change[~area].mean()
    far = ~square(0, 0, 90)                     # nothing that G computes reaches from there to here
    assert (scene[far] == before[far]).all()
    # The rest has kept its noise, and the change stays with the next stroke.
    again = pixels(visitor.predict(canvas(painter, labels), 0, api_name="/stroke"))
    assert (again == scene).all()
    # The same area again: a third noise.
    third = pixels(visitor.predict(canvas(painter, labels, area), 0, api_name="/stroke"))
    assert np.abs(third - scene)[area].mean() > 2
    # Undo, through all four strokes. The fifth has nothing to take back.
    for wanted in (scene, scene, before, before, before):
        now, undone = visitor.predict(0, api_name="/undo")
        assert (pixels(undone) == wanted).all()
    assert (paint.from_canvas(now, painter.palette, SIZE)[0] == labels).all()


def test_label_maps_are_exchanged(painter, visitor):
    now, _ = visitor.predict(0, api_name="/next_map")
    labels, area = paint.from_canvas(now, painter.palette, SIZE)
    assert (labels == painter.dataset[1][1].numpy()).all() and not area.any()
    now, _ = visitor.predict(0, api_name="/empty")
    assert len(np.unique(paint.from_canvas(now, painter.palette, SIZE)[0])) == 1
    now, _ = visitor.predict(0, api_name="/undo")
    assert (paint.from_canvas(now, painter.palette, SIZE)[0] == labels).all()


def test_a_photo_becomes_the_label_map_that_the_discriminator_sees(painter, visitor, tmp_path):
    photo = data.to_uint8(painter.dataset[3][0][None])[0]
    Image.fromarray(photo).save(tmp_path / "photo.png")
    file = gradio_client.handle_file(tmp_path / "photo.png")
    now, _ = visitor.predict(file, 0, api_name="/recreate")
    labels, _ = paint.from_canvas(now, painter.palette, SIZE)
    assert (labels == sample.predict_labels(painter.model.discriminator, photo)).all()


def test_saved_files_are_drawn_again_by_sample(painter, checkpoint, visitor, tmp_path):
    labels = first_map(painter)
    labels[20:40, 20:40] = 5
    visitor.predict(canvas(painter, labels), 0, api_name="/stroke")
    saved = visitor.predict(0, api_name="/save")
    scene, ids = saved["value"] if isinstance(saved, dict) else saved
    assert (data.read_label_map(ids, data.id_table("toy", 14)) == labels).all()
    sample.main(["--checkpoint", str(checkpoint), "--labels", ids, "--num", "1", "--out",
                 str(tmp_path)])
    drawn = data.read_photo(tmp_path / f"{Path(ids).stem}_seed0.png").astype(int)
    assert np.abs(drawn - data.read_photo(scene)).max() <= 1


def test_rubbish_gets_its_sentence_and_the_next_call_works(painter, visitor, tmp_path):
    good = canvas(painter, first_map(painter))
    other = canvas(painter, np.zeros((32, 64), int))
    for value, words in (("", "canvas"), ("rubbish", "canvas"), ("data:image/png,! x", "canvas"),
                         (f"{good[:300]} {good[:90]}", "canvas"), (other, "192×128 pixels")):
        with pytest.raises(Exception, match=words):
            visitor.predict(value, 0, api_name="/stroke")
    whole = base64.b64decode(good.split()[0].partition(",")[2])
    for name, content in (("cut.png", whole[:100]), ("text.png", b"no picture"), ("no.jpg", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Exception, match=name):
            visitor.predict(gradio_client.handle_file(tmp_path / name), 0, api_name="/recreate")
    assert pixels(visitor.predict(good, 0, api_name="/stroke")).shape == (*SIZE, 3)


def test_visitors_do_not_see_each_others_canvas(painter, address):
    visitors = [gradio_client.Client(address, verbose=False) for _ in range(2)]
    labels = [np.full(SIZE, k) for k in (3, 7)]
    for visitor, own in zip(visitors, labels):
        visitor.predict(canvas(painter, own), 0, api_name="/stroke")
    for visitor, own in zip(visitors, labels):
        now, _ = visitor.predict(0, api_name="/empty")
        assert (paint.from_canvas(now, painter.palette, SIZE)[0] == own).all()


# ---- Without a page ------------------------------------------------------------------------------


def test_both_parts_of_the_noise(textured):
    """The slider moves the vector, "Another texture" the field, an area has both of its own."""
    G, state = textured.model.generator, textured.start()
    first, second, local = oasis.draw_noise([0, 1, paint.FIRST_LOCAL_SEED], SIZE, 8, FIELD)
    assert torch.equal(paint.make_noise(state, 0, G)[0], first)
    walked = paint.make_noise(state, 1, G)[0]
    assert torch.equal(walked[:-FIELD], second[:-FIELD])
    assert torch.equal(walked[-FIELD:], first[-FIELD:])
    _, state = textured.another_texture(state, 0)
    noise = paint.make_noise(state, 0, G)[0]
    assert torch.equal(noise[:-FIELD], first[:-FIELD])
    assert torch.equal(noise[-FIELD:], second[-FIELD:])
    area = torch.from_numpy(square(5, 5, 20))
    _, state = textured.stroke(canvas(textured, state["labels"], area.numpy()), state, 0)
    noise, before = paint.make_noise(state, 0.5, G)[0], noise
    assert torch.equal(noise[:, area], local[:, area])
    assert torch.equal(noise[-FIELD:, ~area], before[-FIELD:, ~area])


def test_a_slow_model_draws_every_second_pixel_first(textured):
    state, G = textured.start(), textured.model.generator
    noise = oasis.draw_noise([0], SIZE, 8, FIELD)
    expected = sample.paint(G, state["labels"][::2, ::2].copy(), noise[:, :, ::2, ::2])[0]
    assert (pixels(textured.fine(state, 0, 2)) == expected).all()
    slow = copy.copy(textured)
    slow.coarse = 2
    assert (pixels(slow.show(state)) == expected).all()
    page = paint.build_page(slow)
    handlers = [function.name for function in page.fns.values()]
    assert handlers.count("fine") == 8              # after every event but "Save"


@pytest.mark.parametrize("arguments, size, local", [
    (dict(noise_dim=8), (64, 96), True), (dict(noise_dim=0), (60, 90), False)])
def test_generators_of_the_baselines_paint(painter, arguments, size, local):
    """Without noise there is no other weather. The size needs to be no multiple of anything."""
    G = spade.Generator(14, channels=2, num_blocks=4, spade_hidden=4, **arguments).eval()
    own = paint.Painter(dataclasses.replace(painter.model, generator=G), None, size)
    assert own.local == local and pixels(own.show(own.start())).shape == (*size, 3)
    paint.build_page(own)


def test_the_generator_with_an_image_encoder_keeps_its_size(painter):
    G = spade.EncoderGenerator(14, (64, 64), 8, channels=2, num_blocks=4, spade_hidden=4).eval()
    model = dataclasses.replace(painter.model, generator=G)
    own = paint.Painter(model)
    assert not own.local and pixels(own.show(own.start(), 0.5)).shape == (64, 64, 3)
    with pytest.raises(data.UserError, match="64 64 only"):
        paint.canvas_size(model, (128, 192))


@pytest.mark.parametrize("trained, asked, wanted", [
    ((64, 64), None, (128, 192)), ((96, 128), None, (128, 192)), ((256, 256), None, (256, 256)),
    ((128, 256), None, (128, 256)), ((64, 64), [50, 70], (50, 70))])
def test_the_size_of_the_canvas(painter, trained, asked, wanted):
    model = dataclasses.replace(painter.model, size=trained)
    assert paint.canvas_size(model, asked) == wanted


def test_blended_colours_go_to_the_nearest_class(painter):
    labels = first_map(painter)
    blur = np.random.default_rng(0).integers(-12, 13, (*SIZE, 3))
    picture = paint.to_url((painter.palette[labels] + blur).clip(0, 255).astype(np.uint8))
    found, area = paint.from_canvas(f"{picture} {picture}", painter.palette, SIZE)
    assert (found == labels).all() and area.all()


@pytest.mark.parametrize("preset", ["cityscapes", "coco-stuff"])
def test_every_class_has_a_colour_of_its_own(preset):
    """Cityscapes paints cars and license plates in one colour."""
    names, palette, _ = data.read_class_table(preset)
    labels = np.arange(len(names)).reshape(1, -1)
    colours = paint.distinct_colours(palette)
    found, _ = paint.from_canvas(paint.to_canvas(labels, colours), colours, labels.shape)
    assert (found == labels).all()


# ---- The command ---------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """The options of launch(), which starts no page here."""
    calls = []

    def launch(page, **options):
        calls.append(options)
        page.local_url = "not served"

    monkeypatch.setattr(paint.gr.Blocks, "launch", launch)
    return calls


def test_the_command_listens_at_loopback_unless_told_otherwise(checkpoint, asked):
    paint.main(["--checkpoint", str(checkpoint)])
    paint.main(["--checkpoint", str(checkpoint), "--address", "0.0.0.0", "--port", "8001"])
    assert [options["server_name"] for options in asked] == ["127.0.0.1", "0.0.0.0"]
    assert not any(options["share"] for options in asked) and asked[1]["server_port"] == 8001


def test_a_model_of_the_preset_small_without_its_data_starts_empty(tmp_path, asked, capsys):
    names = ["various", "building", "car", "door", "pavement", "road", "sky", "tree", "window"]
    path = tiny_run.make_checkpoint(tmp_path / "small.pt", preset="small", size=(96, 128),
                                    data_root="/nowhere", class_names=names)
    paint.main(["--checkpoint", str(path)])
    assert len(asked) == 1 and "--data-root" in capsys.readouterr().out
    model = sample.load_model(path)
    own = paint.Painter(model)
    state = own.start()
    assert pixels(own.show(state)).shape == (*SIZE, 3)
    own.save(state, 0)
    with pytest.raises(SystemExit) as end:
        paint.main(["--checkpoint", str(path), "--data-root", str(tmp_path)])
    assert end.value.code == 2


@pytest.mark.parametrize("arguments", [
    ["--size", "0", "10"], ["--size", "nan", "10"], ["--size", "-1", "8"], ["--port", "0"],
    ["--port", "nan"], ["--port", "70000"], ["--address", "word"], ["--address", "-1"],
    ["--address", "192.0.2.1", "--port", "8000"], ["--checkpoint", "/nowhere.pt"],
    ["--data-root", "/nowhere"]])
def test_a_wrong_value_is_refused_in_a_sentence(arguments, asked, capsys):
    with pytest.raises(SystemExit) as end:
        paint.main(arguments)
    err = capsys.readouterr().err
    assert end.value.code == 2 and not asked
    assert arguments[0] in err or arguments[1] in err


# ---- In a browser --------------------------------------------------------------------------------


def requested_urls(chrome):
    """All that the page has loaded."""
    urls = set()
    for entry in chrome.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.add(message["params"]["request"]["url"])
    return urls


@pytest.mark.skipif(browser.is_missing(), reason="needs chromium and chromium-driver")
def test_strokes_in_a_browser_change_the_picture_there(painter):
    pytest.importorskip("selenium", reason="extras/requirements.txt is not installed")
    page = paint.build_page(painter)
    address = paint.launch(page, SIZE, "127.0.0.1", None, wait=False)
    with browser.open_page(address) as visitor:
        before = pixels(visitor.scene())
        visitor.press("water")
        painted = pixels(visitor.drag(-0.3, -0.3, (60, 0), (0, 60)))
        change = np.abs(painted - before).mean(2)
        assert change[20:50, 30:60].mean() > 3              # the upper left, where it was drawn
        assert (change[80:, 140:] == 0).all()
        visitor.press("other weather: circle")              # a radius of 50 of some 570 pixels
        weather = pixels(visitor.drag(0.25, 0.2, (30, 0), (20, 0)))
        change = np.abs(weather - painted).mean(2)
        assert change[84:96, 138:150].mean() > 3 and (change[:, :60] == 0).all()
        for wanted in (painted, before):
            visitor.press("Undo")
            visitor.wait(lambda: (pixels(visitor.scene()) == wanted).all())
        urls = requested_urls(visitor.chrome)
    page.close()
    assert urls
    for url in urls:
        assert re.match(r"data:|blob:|http://127\.0\.0\.1:", url), url
