"""Chromium without a window, for the page's test and its picture in README.

    python extras/tests/browser.py assets/paint.png        # other options are extras.paint's
"""

import contextlib
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import sample                               # noqa: E402  (the line above must come first)
from extras import paint                    # noqa: E402


def is_missing():
    """Chromium and its driver are Debian packages, chromium and chromium-driver."""
    return not (shutil.which("chromium") and shutil.which("chromedriver"))


class Visitor:
    """A page in Chromium, and what a person does there."""

    def __init__(self, chrome):
        self.chrome = chrome
        self.wait(lambda: self.scene() and self.find("#canvas button"))

    def find(self, selector):
        return self.chrome.find_elements("css selector", selector)

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the page did not answer"
            time.sleep(0.05)

    def scene(self):
        """The scene as data URL."""
        found = self.find("#scene img")
        return found and found[0].get_attribute("src")

    def press(self, text):
        buttons = {button.text: button for button in self.find("button")}
        buttons[text].click()

    def drag(self, right, down, *moves):
        """A stroke, until the scene has followed. Returns the new scene.

        right, down: where it begins, from the middle of the canvas, as a share of its size.
        moves: (right, down) in pixels of the screen.
        """
        from selenium.webdriver import ActionChains
        before, top = self.scene(), self.find("#canvas canvas")[1]
        start = int(right * top.rect["width"]), int(down * top.rect["height"])
        action = ActionChains(self.chrome).move_to_element_with_offset(top, *start)
        action = action.click_and_hold()
        for move in moves:
            action = action.move_by_offset(*move)
        action.release().perform()
        self.wait(lambda: self.scene() != before)
        return self.scene()


@contextlib.contextmanager
def open_page(address):
    """Yields the Visitor of a page."""
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,800"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    chrome = webdriver.Chrome(options, service)
    try:
        chrome.get(address)
        yield Visitor(chrome)
    finally:
        chrome.quit()


def main(file, *arguments):
    """The second validation map with a pond, and other weather on the right -> a png."""
    options = paint.parse_options(arguments)
    model = sample.load_model(options.checkpoint)
    size = paint.canvas_size(model, options.size)
    maps = paint.open_maps(model, size, options.data_root)
    page = paint.build_page(paint.Painter(model, maps, size))
    address = paint.launch(page, size, options.address, options.port, wait=False)
    with open_page(address) as visitor:
        before = visitor.scene()
        for _ in range(2):
            visitor.press("Next map")
            visitor.wait(lambda: visitor.scene() != before)
            before = visitor.scene()
        visitor.press("water")
        visitor.drag(-0.42, 0.3, (60, 8), (70, -4))
        visitor.press("other weather: circle")
        visitor.drag(0.25, -0.2, (30, 30), (60, 40))
        time.sleep(1)                       # until the mark of the area is gone
        visitor.chrome.set_window_size(1280, 800)
        visitor.chrome.save_screenshot(file)
    page.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
