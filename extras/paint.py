"""A page in the browser to paint label maps on; the scene beside them is redrawn at every stroke.

    python -m extras.paint                              # newest run, else assets/toy.pt
    python -m extras.paint --checkpoint run.pt --address 0.0.0.0 --port 8000

Choose a class and paint. "area" marks pixels; "Another noise here" re-samples these alone, and the
rest of the scene stays (Figure 1). The slider walks from the present noise to the next one. "Photo"
lets the discriminator read a label map off a photo of yours (Figure 4). "Save" gives the scene and
the label map, a png of ids that `sample.py --labels` takes.

Only this computer can open the page unless --address names another one. It loads nothing from the
internet and reports nothing. The canvas is paint.js. Every visitor has a state of his own: the
label map, and for each pixel the seed of its noise vector.
"""

import argparse
import base64
import functools
import io
import os
import tempfile
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


def to_url(pixels):
    """Picture (H, W, 3 or 4) uint8 -> a png as data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def to_canvas(labels, palette):
    """Label map (H, W) -> the value of paint.js: its picture, and an area without a pixel."""
    area = np.zeros((*labels.shape, 4), np.uint8)
    return f"{to_url(palette[labels])} {to_url(area)}"


def from_canvas(value, palette, size):
    """The value of paint.js -> (labels int64 (H, W), area bool (H, W)). UserError for other things.

    Each pixel gets the class of the nearest colour: blended edges of a stroke do no harm.
    """
    with data.readable("the canvas"):
        pictures = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
                    for url in str(value).split(" ")]
        if [picture.size for picture in pictures] != 2 * [size[::-1]]:
            raise data.UserError("the canvas must be two pictures, label map and area, of "
                                  f"{size[1]}×{size[0]} pixels (width × height)")
        pixels, area = (np.asarray(picture.convert("RGBA")) for picture in pictures)
    labels = cKDTree(palette).query(pixels[..., :3].reshape(-1, 3))[1]
    return labels.reshape(size).astype(np.int64), area[..., 3] > 127


def make_noise(seeds, end, t, noise_dim):
    """A noise vector per pixel, t of the way to seed `end`'s: seeds (H, W) -> (1, C, H, W)."""
    known, places = np.unique(seeds, return_inverse=True)
    goal = oasis.noise_from_seeds([end], noise_dim)[0]
    vectors = torch.stack([sample.interpolate(start, goal, 101)[round(100 * t)]
                           for start in oasis.noise_from_seeds(known, noise_dim)])
    return vectors[torch.from_numpy(places.reshape(seeds.shape))].permute(2, 0, 1)[None]


class Painter:
    """What the page's buttons do, for all visitors.

    A visitor's state is a dict: labels (H, W); seeds (H, W), of the noise at each pixel; end, the
    seed that comes next; number, of the validation map that comes next.
    """

    def __init__(self, model, dataset=None):
        self.model, self.dataset = model, dataset

    def start(self):
        """The state of a new visitor; without a dataset the canvas is all of one class."""
        labels = np.full(self.model.size, min(1, len(self.model.palette) - 1))
        state = {"labels": labels, "seeds": np.zeros_like(labels), "end": 1, "number": 0}
        return self.next_map(state)[2] if self.dataset else state

    def show(self, state, t=0):
        """-> the scene as data URL, the state. t: where the slider stands."""
        noise = make_noise(state["seeds"], state["end"], t, self.model.generator.noise_dim)
        return to_url(sample.paint(self.model.generator, state["labels"], noise)[0]), state

    def stroke(self, canvas, state, t):
        labels, _ = from_canvas(canvas, self.model.palette, self.model.size)
        return self.show(state | {"labels": labels}, t)

    def another_noise(self, canvas, state, everywhere=True):
        """The noise at the slider's end becomes the present one -> scene, state, slider."""
        labels, area = from_canvas(canvas, self.model.palette, self.model.size)
        if not everywhere and not area.any():
            raise data.UserError("choose 'area' and mark the pixels that shall change")
        seeds = np.where(area | everywhere, state["end"], state["seeds"])
        end = state["end"] + 1
        return *self.show(state | {"labels": labels, "seeds": seeds, "end": end}), 0

    def another_noise_here(self, canvas, state):
        return self.another_noise(canvas, state, everywhere=False)

    def exchange(self, state, labels):
        """Another label map, with one noise everywhere -> canvas, scene, state, slider."""
        seeds = np.full_like(labels, np.bincount(state["seeds"].ravel()).argmax())
        canvas = to_canvas(labels, self.model.palette)
        return canvas, *self.show(state | {"labels": labels, "seeds": seeds}), 0

    def next_map(self, state):
        if not self.dataset:
            raise data.UserError("there are no validation label maps here; --data-root names them")
        labels = self.dataset[state["number"] % len(self.dataset)][1].numpy()
        return self.exchange(state | {"number": state["number"] + 1}, labels)

    def empty(self, state):
        """A canvas of the class that most of the pixels have."""
        most = np.bincount(state["labels"].ravel()).argmax()
        return self.exchange(state, np.full_like(state["labels"], most))

    def recreate(self, file, state):
        """Figure 4: the label map that D sees in a photo."""
        if self.model.discriminator is None:
            raise data.UserError("this checkpoint holds no discriminator that could read a photo")
        photo = data.read_photo(file, self.model.size, upright=True)
        return self.exchange(state, sample.predict_labels(self.model.discriminator, photo))

    def save(self, state, t):
        """-> a list of files: scene.png, and labels.png with the ids of the dataset's own files."""
        folder, key = Path(tempfile.mkdtemp()), (self.model.preset, len(self.model.palette))
        scene, labels = folder / "scene.png", folder / "labels.png"
        scene.write_bytes(base64.b64decode(self.show(state, t)[0].partition(",")[2]))
        image = Image.fromarray(data.file_ids(*key)[state["labels"]])
        image.putpalette(self.model.palette[data.id_table(*key).clip(0)].tobytes())
        image.save(labels)
        return gr.Files([str(scene), str(labels)], visible=True)


def in_words(handler):
    """A UserError inside the handler becomes a message on the visitor's page."""
    @functools.wraps(handler)
    def wrapped(*arguments):
        try:
            return handler(*arguments)
        except data.UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
    return wrapped


def build_page(painter):
    """The page as gr.Blocks; launch() starts it."""
    model, start = painter.model, painter.start()
    with gr.Blocks(title="OASIS", delete_cache=(600, 3600)) as page:
        gr.Markdown("**Choose a class and paint: the scene follows.** Mark an area to re-sample it"
                    " alone.")
        state = gr.State(start)
        with gr.Row():
            canvas = gr.HTML(to_canvas(start["labels"], model.palette), html_template="",
                             js_on_load=Path(__file__).with_name("paint.js").read_text("utf-8"),
                             apply_default_css=False, elem_id="canvas", names=model.class_names,
                             colours=["#%02x%02x%02x" % tuple(colour) for colour in model.palette],
                             rows=model.size[0], columns=model.size[1])
            with gr.Column():
                scene = gr.HTML(painter.show(start)[0], html_template='<img src="${value}">',
                                apply_default_css=False, elem_id="scene")
                t = gr.Slider(0, 1, 0, step=0.01, label="from this noise to the next")
        with gr.Row():
            another, here, next_map, empty, save = (
                gr.Button(text, size="md")
                for text in ("Another noise", "Another noise here", "Next map", "Empty", "Save"))
            photo = gr.UploadButton("Photo", file_types=["image"], size="md")
        files = gr.Files(visible=False, show_label=False, height=140)
        drawn, exchanged = [scene, state, t], [canvas, scene, state, t]
        for event, handler, inputs, outputs in (
                (canvas.input, painter.stroke, [canvas, state, t], [scene, state]),
                (t.input, painter.stroke, [canvas, state, t], [scene, state]),
                (another.click, painter.another_noise, [canvas, state], drawn),
                (here.click, painter.another_noise_here, [canvas, state], drawn),
                (next_map.click, painter.next_map, state, exchanged),
                (empty.click, painter.empty, state, exchanged),
                (photo.upload, painter.recreate, [photo, state], exchanged),
                (save.click, painter.save, [state, t], files)):
            event(in_words(handler), inputs, outputs, trigger_mode="always_last",
                  show_progress="hidden")
    return page


@data.exit_in_words("extras.paint")
def main(argv=None):
    parser = argparse.ArgumentParser("python -m extras.paint", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", help="latest.pt or best.pt of a run")
    add("--data-root", metavar="DIR", help="the dataset, for label maps to start from")
    add("--address", default="127.0.0.1", help="where to listen (default: loopback only)")
    add("--port", type=int, metavar="N", help="default: the first free one from 7860")
    args = parser.parse_args(argv)
    path = sample.find_checkpoint(args.checkpoint)
    model = sample.load_model(path, "cuda" if torch.cuda.is_available() else "cpu")
    print(f"{path}: {model.preset}, {len(model.palette)} classes, step {model.step}")
    root, dataset = args.data_root or model.settings["data_root"], None
    if root or model.preset == "toy":
        dataset = data.open_dataset(model.preset, "val", model.size, root,
                                    seed=model.settings["data_seed"])
    # The scene is as large as the canvas, and both fit on a screen.
    style = "#canvas, #scene { max-width: 62vh; margin: auto } #scene img { width: 100% }"
    build_page(Painter(model, dataset)).launch(
        server_name=args.address, server_port=args.port, share=False, inbrowser=True,
        show_error=True, max_file_size="20mb", footer_links=[], css=style)


if __name__ == "__main__":
    main()
