"""extras/paint.py: every button through gradio's client, one stroke in a real browser."""

import base64
import io
import json
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

pytest.importorskip("gradio", reason="extras/requirements.txt is not installed")
import gradio_client                        # noqa: E402  (the lines above must come first)

import data                                 # noqa: E402
import oasis                                # noqa: E402
import sample                               # noqa: E402
import tiny_run                             # noqa: E402
from extras import paint                    # noqa: E402

SIZE = (64, 64)


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    path = tiny_run.make_checkpoint(tmp_path_factory.mktemp("run") / "toy.pt", size=SIZE)
    return paint.Painter(sample.load_model(path), data.open_dataset("toy", "val", SIZE))


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
    picture = paint.to_canvas(labels, painter.model.palette).split()[0]
    marked = np.zeros((*labels.shape, 4), np.uint8)
    marked[... if area is None else area] = 0 if area is None else 255
    return f"{picture} {paint.to_url(marked)}"


def first_map(painter):
    return painter.dataset[0][1].numpy()


def test_another_noise_is_the_one_at_the_sliders_end(painter, visitor):
    now = canvas(painter, first_map(painter))
    scenes = [pixels(visitor.predict(now, t, api_name="/stroke")) for t in (0, 0.5, 1)]
    G = painter.model.generator
    for scene, seed in ((scenes[0], 0), (scenes[2], 1)):       # as sample.py draws them
        expected = sample.paint(G, first_map(painter), oasis.noise_from_seeds([seed], 8))[0]
        assert np.abs(scene - expected).max() <= 1
    assert np.abs(scenes[1] - scenes[0]).mean() < np.abs(scenes[2] - scenes[0]).mean()
    scene, slider = visitor.predict(now, api_name="/another_noise")
    assert slider == 0 and np.abs(pixels(scene) - scenes[2]).max() <= 1


def test_another_noise_here_changes_the_marked_area(painter, visitor):
    labels, area = first_map(painter), np.zeros(SIZE, bool)
    area[:12, :12] = True
    before = pixels(visitor.predict(canvas(painter, labels), 0, api_name="/stroke"))
    with pytest.raises(Exception, match="mark the pixels"):
        visitor.predict(canvas(painter, labels), api_name="/another_noise_here")
    scene, _ = visitor.predict(canvas(painter, labels, area), api_name="/another_noise_here")
    inside, outside = sample.mean_change(before, pixels(scene)[None], area)
    assert inside > 10 * outside
    # The rest has kept its noise, and the change stays with the next stroke.
    again = pixels(visitor.predict(canvas(painter, labels), 0, api_name="/stroke"))
    assert (again == pixels(scene)).all()


def test_label_maps_are_exchanged(painter, visitor):
    now, scene, slider = visitor.predict(api_name="/next_map")
    labels, area = paint.from_canvas(now, painter.model.palette, SIZE)
    assert (labels == painter.dataset[1][1].numpy()).all() and not area.any() and slider == 0
    now, scene, _ = visitor.predict(api_name="/empty")
    labels, _ = paint.from_canvas(now, painter.model.palette, SIZE)
    assert len(np.unique(labels)) == 1


def test_a_photo_becomes_the_label_map_that_the_discriminator_sees(painter, visitor, tmp_path):
    photo = data.to_uint8(painter.dataset[3][0][None])[0]
    Image.fromarray(photo).save(tmp_path / "photo.png")
    file = gradio_client.handle_file(tmp_path / "photo.png")
    now, _, _ = visitor.predict(file, api_name="/recreate")
    labels, _ = paint.from_canvas(now, painter.model.palette, SIZE)
    assert (labels == sample.predict_labels(painter.model.discriminator, photo)).all()


def test_saved_files_are_drawn_again_by_sample(painter, visitor, tmp_path):
    labels = first_map(painter)
    labels[20:40, 20:40] = 5
    visitor.predict(canvas(painter, labels), 0, api_name="/stroke")
    saved = visitor.predict(0, api_name="/save")
    scene, ids = saved["value"] if isinstance(saved, dict) else saved
    assert (data.read_label_map(ids, data.id_table("toy", 14)) == labels).all()
    path = tiny_run.make_checkpoint(tmp_path / "toy.pt", size=SIZE)
    sample.main(["--checkpoint", str(path), "--labels", ids, "--num", "1", "--out", str(tmp_path)])
    drawn = data.read_photo(tmp_path / f"{Path(ids).stem}_seed0.png").astype(int)
    assert np.abs(drawn - data.read_photo(scene)).max() <= 1


def test_blended_colours_go_to_the_nearest_class(painter):
    labels = first_map(painter)
    noisy = painter.model.palette[labels] + np.random.default_rng(0).integers(-12, 13, (*SIZE, 3))
    picture = paint.to_url(noisy.clip(0, 255).astype(np.uint8))
    found, area = paint.from_canvas(f"{picture} {picture}", painter.model.palette, SIZE)
    assert (found == labels).all() and area.all()


def test_rubbish_gets_its_sentence_and_the_next_call_works(painter, visitor, tmp_path):
    good = canvas(painter, first_map(painter))
    other = canvas(painter, np.zeros((32, 64), int))
    for value, words in (("", "canvas"), ("rubbish", "canvas"), ("data:image/png,! x", "canvas"),
                         (f"{good[:300]} {good[:90]}", "canvas"), (other, "64×64 pixels")):
        with pytest.raises(Exception, match=words):
            visitor.predict(value, 0, api_name="/stroke")
    for name, content in (("cut.png", None), ("text.png", b"no picture"), ("empty.jpg", b"")):
        whole = base64.b64decode(good.split()[0].partition(",")[2])
        (tmp_path / name).write_bytes(whole[:100] if content is None else content)
        with pytest.raises(Exception, match=name):
            visitor.predict(gradio_client.handle_file(tmp_path / name), api_name="/recreate")
    assert pixels(visitor.predict(good, 0, api_name="/stroke")).shape == (*SIZE, 3)


def test_visitors_do_not_see_each_others_canvas(painter, address):
    one, two = (gradio_client.Client(address, verbose=False) for _ in range(2))
    labels = [np.full(SIZE, k) for k in (3, 7)]
    for visitor, own in zip((one, two), labels):
        visitor.predict(canvas(painter, own), 0, api_name="/stroke")
    for visitor, own in zip((one, two), labels):
        now, _, _ = visitor.predict(api_name="/empty")
        assert (paint.from_canvas(now, painter.model.palette, SIZE)[0] == own).all()


def test_the_command_listens_at_loopback_unless_told_otherwise(tmp_path, monkeypatch):
    path, asked = tiny_run.make_checkpoint(tmp_path / "toy.pt", size=SIZE), []
    monkeypatch.setattr(paint.gr.Blocks, "launch", lambda page, **options: asked.append(options))
    paint.main(["--checkpoint", str(path)])
    paint.main(["--checkpoint", str(path), "--address", "0.0.0.0", "--port", "8001"])
    assert [options["server_name"] for options in asked] == ["127.0.0.1", "0.0.0.0"]
    assert not any(options["share"] for options in asked) and asked[1]["server_port"] == 8001


def test_a_stroke_in_a_browser_changes_the_picture_there(address):
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("needs chromium and chromium-driver, which are Debian packages")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,800"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))

    def scene():
        found = chrome.find_elements("css selector", "#scene img")
        return found and found[0].get_attribute("src")

    def wait(condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the page did not answer"
            time.sleep(0.1)

    try:
        chrome.get(address)
        wait(lambda: scene() and chrome.find_elements("css selector", "#canvas button"))
        before = scene()
        buttons = {b.text: b for b in chrome.find_elements("css selector", "#canvas button")}
        buttons["water"].click()
        top = chrome.find_elements("css selector", "#canvas canvas")[1]
        x, y = (int(top.rect[side] * -0.3) for side in ("width", "height"))    # from the middle
        webdriver.ActionChains(chrome).move_to_element_with_offset(top, x, y).click_and_hold() \
            .move_by_offset(60, 0).move_by_offset(0, 60).release().perform()
        wait(lambda: scene() != before)
        change = np.abs(pixels(scene()) - pixels(before)).mean(2)
        stroke = change[8:24, 8:24].mean()                      # the upper left, where it was drawn
        assert stroke > 3 * change[40:, 40:].mean() and stroke > 3
        urls = {json.loads(entry["message"])["message"]["params"]["request"]["url"]
                for entry in chrome.get_log("performance")
                if "Network.requestWillBeSent\"" in entry["message"]}
        assert urls and all(re.match(r"data:|blob:|http://127\.0\.0\.1:", url) for url in urls)
    finally:
        chrome.quit()
