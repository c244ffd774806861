"""A page in the browser to paint label maps on; the scene beside them is redrawn at every stroke.

    python -m extras.paint                              # newest run, else assets/toy.pt
    python -m extras.paint --checkpoint runs/my_town/latest.pt --size 192 256
    python -m extras.paint --address 0.0.0.0 --port 8000     # other computers can open it, too

Choose a class and paint. "Other weather" is Figure 1: a circle, or what the brush marks, gets the
noise of another seed, and the rest of the scene stays. The noise vector decides light and colour;
the slider walks from the present vector to the next one. A model with noise at every pixel has a
second part, the field, which decides texture; "Another texture" draws it anew. "Photo" lets the
discriminator read a label map off a photo of yours (Figure 4). "Save" gives the scene and the label
map, a png of ids that `sample.py --labels` takes.

The canvas has the size of the training images, but at least 128×192. Where a model needs more than
a second for that, it draws coarsely first.

Only this computer can open the page unless --address names another one. It loads nothing from the
internet and reports nothing. The canvas is paint.js. Every visitor has a state of his own.
"""

import argparse
import base64
import functools
import io
import os
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.spatial import cKDTree

import data
import oasis
import sample

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"     # read by gradio when it is imported
import gradio as gr                                  # noqa: E402

LEAST_SIZE = 128, 192
FIRST_LOCAL_SEED = 1000     # of the areas; the whole scene counts from 0
UNDO_STEPS = 30


# ---- Pictures to the browser and back ------------------------------------------------------------


def to_url(pixels):
    """Picture (H, W, 3 or 4) uint8 -> a png as data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def from_url(url):
    """A png as data URL -> PIL image. UserError."""
    with data.readable("the canvas"):
        return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def to_canvas(labels, palette):
    """Label map (H, W) -> the value of paint.js: its picture, and an area without a pixel."""
    area = np.zeros((*labels.shape, 4), np.uint8)
    return f"{to_url(palette[labels])} {to_url(area)}"


def from_canvas(value, palette, size):
    """The value of paint.js -> (labels int64 (H, W), area bool (H, W)). UserError for other things.

    Each pixel gets the class of the nearest colour, because some browsers blur what a page reads.
    """
    pictures = [from_url(url) for url in str(value).split(" ")]
    if [picture.size[::-1] for picture in pictures] != [size, size]:
        raise data.UserError("the canvas must be two pictures, label map and area, of "
                             f"{size[1]}×{size[0]} pixels (width × height)")
    with data.readable("the canvas"):
        colours = np.asarray(pictures[0].convert("RGB"))
        area = np.asarray(pictures[1].convert("RGBA"))[..., 3] > 127
    labels = cKDTree(palette).query(colours.reshape(-1, 3))[1]
    return labels.reshape(size).astype(np.int64), area


def distinct_colours(palette, least=6):
    """The palette (N, 3), changed where two classes look alike: some data sets have one colour for
    two classes, and the canvas knows classes by their colours."""
    colours = []
    for colour in palette.astype(int):
        while any(np.abs(colour - other).max() < least for other in colours):
            colour = (colour + (7, 29, 53)) % 256
        colours.append(colour)
    return np.array(colours, np.uint8)


# ---- The noise of a visitor's scene --------------------------------------------------------------


def at_every_pixel(noise, size):
    """(1, C) or (1, C, H, W) -> (1, C, H, W)"""
    return noise[:, :, None, None].expand(-1, -1, *size) if noise.ndim == 2 else noise


def make_noise(state, t, generator):
    """The noise of a scene, (1, C), or (1, C, H, W) where it differs between pixels.

    Light and colour are t of the way from the vector of seed `weather` to that of the next seed.
    The field is that of seed `texture`. An area has both from its own seed.
    """
    noise_dim, pixel_noise = generator.noise_dim, generator.pixel_noise
    size, vector_dim = state["labels"].shape, noise_dim - pixel_noise
    seeds = [state["weather"], state["weather"] + 1]
    now, then = oasis.noise_from_seeds(seeds, noise_dim)[:, :vector_dim]
    vector = sample.interpolate(now, then, 101)[round(100 * t)]
    noise = vector[None]
    if pixel_noise:
        noise = oasis.draw_noise([state["texture"]], size, noise_dim, pixel_noise)
        noise[:, :vector_dim] = vector[:, None, None]
    for seed in np.unique(state["areas"]):
        if seed >= FIRST_LOCAL_SEED:
            inside = oasis.draw_noise([seed], size, noise_dim, pixel_noise)
            noise = oasis.local_noise(at_every_pixel(noise, size), at_every_pixel(inside, size),
                                      state["areas"] == seed)
    return noise


# ---- What the page's buttons do ------------------------------------------------------------------


class Painter:
    """What the page's buttons do, for all visitors.

    A visitor's state is a dict: labels (H, W); areas (H, W), the seed of the noise at each pixel of
    an area, 0 elsewhere; weather and texture, the seeds of the rest; next_area, the seed of the
    next area; number, of the validation map that comes next; past, earlier states.
    """

    def __init__(self, model, dataset=None, size=None):
        """size: (H, W) of the canvas, see canvas_size."""
        self.model, self.dataset, self.size = model, dataset, size or canvas_size(model)
        self.palette = distinct_colours(model.palette)
        # One latent vector for the whole image is all that SPADE's image encoder knows.
        self.local = model.generator.noise_dim > 0 and not hasattr(model.generator, "image_size")
        self.coarse = 1                     # the first picture has every second, fourth … pixel
        state = self.start()
        self.show(state)                    # the first painting is slower than the others
        begin = time.monotonic()
        self.show(state)
        seconds = time.monotonic() - begin
        while seconds > 0.7 and self.coarse < 8:
            self.coarse, seconds = 2 * self.coarse, seconds / 4

    def start(self):
        """The state of a new visitor; without a dataset the canvas is all of one class."""
        labels = np.full(self.size, min(1, len(self.palette) - 1))
        state = {"labels": labels, "areas": np.zeros_like(labels), "weather": 0, "texture": 0,
                 "next_area": FIRST_LOCAL_SEED, "number": 0, "past": []}
        if self.dataset:
            state["labels"] = self.dataset[0][1].numpy()
            state["number"] = 1
        return state

    def show(self, state, t=0):
        """The scene as data URL, every `coarse`-th pixel of it. t: where the slider stands."""
        return self.fine(state, t, self.coarse)

    def fine(self, state, t=0, step=1):
        """The scene as data URL, every step-th pixel of it."""
        labels, noise = state["labels"], make_noise(state, t, self.model.generator)
        if noise.ndim == 4:
            noise = noise[:, :, ::step, ::step]
        picture = sample.paint(self.model.generator, labels[::step, ::step].copy(), noise)[0]
        return to_url(picture)

    def changed(self, state, **new):
        """The state with new values, which undo() takes back."""
        before = {name: state[name] for name in state if name != "past"}
        past = [*state["past"], before][-UNDO_STEPS:]
        return state | new | {"past": past}

    def stroke(self, canvas, state, t):
        """-> scene, state. A marked area gets another weather."""
        labels, area = from_canvas(canvas, self.palette, self.size)
        new = {"labels": labels}
        if area.any() and self.local:
            new["areas"] = np.where(area, state["next_area"], state["areas"])
            new["next_area"] = state["next_area"] + 1
        state = self.changed(state, **new)
        return self.show(state, t), state

    def another_weather(self, state):
        """The vector at the slider's end becomes the present one -> scene, state, slider."""
        state = self.changed(state, weather=state["weather"] + 1)
        return self.show(state), state, 0

    def another_texture(self, state, t):
        """-> scene, state"""
        state = self.changed(state, texture=state["texture"] + 1)
        return self.show(state, t), state

    def exchange(self, state, labels, t, **new):
        """Another label map, without areas -> canvas, scene, state."""
        areas = np.zeros_like(state["areas"])
        state = self.changed(state, labels=labels, areas=areas, **new)
        return to_canvas(labels, self.palette), self.show(state, t), state

    def next_map(self, state, t):
        number = state["number"]
        labels = self.dataset[number % len(self.dataset)][1].numpy()
        return self.exchange(state, labels, t, number=number + 1)

    def empty(self, state, t):
        """A canvas of the class that most of the pixels have."""
        most = np.bincount(state["labels"].ravel()).argmax()
        return self.exchange(state, np.full_like(state["labels"], most), t)

    def recreate(self, file, state, t):
        """Figure 4: the label map that D sees in a photo."""
        photo = data.read_photo(file, self.size, upright=True)
        labels = sample.predict_labels(self.model.discriminator, photo)
        return self.exchange(state, labels, t)

    def undo(self, state, t):
        """-> canvas, scene, state. Without a past nothing changes."""
        if state["past"]:
            *past, before = state["past"]
            state = before | {"past": past}
        return to_canvas(state["labels"], self.palette), self.show(state, t), state

    def save(self, state, t):
        """-> a list of files: scene.png, and labels.png with the ids of the dataset's own files."""
        model, folder = self.model, Path(tempfile.mkdtemp())
        scene, labels = folder / "scene.png", folder / "labels.png"
        from_url(self.fine(state, t)).save(scene)
        ids = data.file_ids(model.preset, len(model.palette))
        image = Image.fromarray(ids[state["labels"]])
        table = data.id_table(model.preset, len(model.palette))
        image.putpalette(model.palette[table.clip(0)].tobytes())
        image.save(labels)
        return gr.Files([str(scene), str(labels)], visible=True)


def canvas_size(model, asked=None):
    """(H, W) of the canvas: as asked, else that of the training images, but at least 128×192."""
    fixed = getattr(model.generator, "image_size", None)
    if fixed:
        if asked and tuple(asked) != fixed:
            raise data.UserError(f"--size {asked[0]} {asked[1]}: this model paints {fixed[0]} "
                                 f"{fixed[1]} only")
        return fixed
    if asked:
        return tuple(asked)
    height, width = model.size
    return LEAST_SIZE if height * width < LEAST_SIZE[0] * LEAST_SIZE[1] else (height, width)


# ---- The page ------------------------------------------------------------------------------------


def in_words(handler):
    """A UserError inside the handler becomes a message on the visitor's page."""
    @functools.wraps(handler)
    def wrapped(*arguments):
        try:
            return handler(*arguments)
        except data.UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
    return wrapped


def build_canvas(painter, start):
    """paint.js as an element of the page."""
    colours = ["#%02x%02x%02x" % tuple(colour) for colour in painter.palette]
    return gr.HTML(to_canvas(start["labels"], painter.palette), html_template="",
                   js_on_load=Path(__file__).with_name("paint.js").read_text("utf-8"),
                   apply_default_css=False, elem_id="canvas", names=painter.model.class_names,
                   colours=colours, rows=painter.size[0], columns=painter.size[1],
                   local=painter.local)


def build_page(painter):
    """The page as gr.Blocks; launch() starts it. What the model cannot do has no button."""
    model, start = painter.model, painter.start()
    noisy, textured = model.generator.noise_dim > 0, model.generator.pixel_noise > 0
    with gr.Blocks(title="OASIS", delete_cache=(600, 3600)) as page:
        gr.Markdown("**Choose a class and paint: the scene follows.** Draw a circle of other "
                    "weather: only there the noise is another one." if painter.local else
                    "**Choose a class and paint: the scene follows.**")
        state = gr.State(start)
        with gr.Row():
            with gr.Column():
                canvas = build_canvas(painter, start)
            with gr.Column():
                scene = gr.HTML(painter.fine(start), html_template='<img src="${value}">',
                                apply_default_css=False, elem_id="scene")
                t = gr.Slider(0, 1, 0, step=0.01, visible=noisy, elem_id="walk",
                              label="light and colour: from this weather to the next")
        with gr.Row():
            weather = gr.Button("Another weather", size="md", visible=noisy)
            texture = gr.Button("Another texture", size="md", visible=textured)
            next_map = gr.Button("Next map", size="md", visible=painter.dataset is not None)
            empty = gr.Button("Empty", size="md")
            photo = gr.UploadButton("Photo", file_types=["image"], size="md",
                                    visible=model.discriminator is not None)
            undo = gr.Button("Undo", size="md", elem_id="undo")
            save = gr.Button("Save", size="md")
        files = gr.Files(visible=False, show_label=False, height=140)
        drawn, exchanged = [scene, state], [canvas, scene, state]
        for event, handler, inputs, outputs in (
                (canvas.input, painter.stroke, [canvas, state, t], drawn),
                (t.input, painter.show, [state, t], scene),
                (weather.click, painter.another_weather, state, [*drawn, t]),
                (texture.click, painter.another_texture, [state, t], drawn),
                (next_map.click, painter.next_map, [state, t], exchanged),
                (empty.click, painter.empty, [state, t], exchanged),
                (photo.upload, painter.recreate, [photo, state, t], exchanged),
                (undo.click, painter.undo, [state, t], exchanged),
                (save.click, painter.save, [state, t], files)):
            done = event(in_words(handler), inputs, outputs, trigger_mode="always_last",
                         show_progress="hidden")
            if painter.coarse > 1 and handler != painter.save:
                done.then(in_words(painter.fine), [state, t], scene, show_progress="hidden",
                          trigger_mode="always_last", api_name=False)
    return page


# ---- The command line ----------------------------------------------------------------------------


def open_maps(model, size, asked):
    """Validation label maps to start from; None where there are none. UserError."""
    root = asked or model.settings["data_root"]
    if model.preset != "toy" and not asked and not Path(root or "none").is_dir():
        print("the data set of the training is not here, so the canvas starts empty; --data-root "
              "names it")
        return None
    dataset = data.open_dataset(model.preset, "val", size, root, seed=model.settings["data_seed"])
    if list(dataset.class_names) != list(model.class_names):
        raise data.UserError(f"--data-root {root}: has other classes than the model")
    return dataset


def check_place(address, port):
    """gradio would try a hundred ports. UserError: address or port cannot be had."""
    try:
        socket.create_server((address, port or 0)).close()
    except (OSError, ValueError) as error:
        place = f"--address {address}" + (f" --port {port}" if port else "")
        raise data.UserError(f"{place}: no page can be served there ({error})") from error


def launch(page, size, address, port, wait=True):
    """Serve the page until Ctrl-C; without waiting, open no browser. Returns the page's address."""
    # The scene is as large as the canvas, and both fit on a screen.
    width = f"{62 * size[1] / size[0]:.0f}vh"
    style = (f"#canvas, #scene {{ max-width: {width}; margin: auto }}"
             "#scene img { width: 100%; border-radius: 8px; display: block }")
    page.launch(server_name=address, server_port=port, share=False, inbrowser=wait,
                show_error=True, max_file_size="20mb", footer_links=[], css=style,
                prevent_thread_lock=not wait, quiet=not wait)
    return page.local_url


def parse_options(argv):
    parser = argparse.ArgumentParser("python -m extras.paint", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    side, port = sample.whole_number(8, 2048), sample.whole_number(1, 65535)
    add("--checkpoint", metavar="FILE", help="latest.pt or best.pt of a run")
    add("--size", type=side, nargs=2, metavar=("H", "W"), help="of the canvas")
    add("--data-root", metavar="DIR", help="the dataset, for label maps to start from")
    add("--address", default="127.0.0.1", help="where to listen (default: loopback only)")
    add("--port", type=port, metavar="N", help="default: the first free one from 7860")
    return parser.parse_args(argv)


@data.exit_in_words("extras.paint")
def main(argv=None):
    options = parse_options(argv)
    check_place(options.address, options.port)
    path = sample.find_checkpoint(options.checkpoint)
    model = sample.load_model(path, "cuda" if torch.cuda.is_available() else "cpu")
    print(f"{path}: {model.preset}, {len(model.palette)} classes, step {model.step}")
    size = canvas_size(model, options.size)
    painter = Painter(model, open_maps(model, size, options.data_root), size)
    launch(build_page(painter), size, options.address, options.port)


if __name__ == "__main__":
    main()
