"""The web page: drop an image, see what is found and why, and how training would judge it. Nothing leaves the machine.

Gradio draws the controls. What `explain` shows is its own page in a frame without rights.
"""

import base64
import json
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from redetr.app_api import MAX_BYTES, THRESHOLD, Turns, endpoint, read_upload
from redetr.app_guard import Guard
from redetr.data import DetectionDataset
from redetr.detector.detections import Detections
from redetr.detector.detector import Detector
from redetr.errors import InputError
from redetr.explain import explain, explain_loss, image_page, loss_page
from redetr.page import table

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_GPUS = 8
_KEPT_S = 3600  # of an uploaded image
_SIDE_PX = 280  # width of the controls
_LATEST: dict[str, Any] = {"trigger_mode": "always_last", "api_visibility": "private"}  # of several, the last is done


class Page:
    """What the controls call. All methods that look at an image take turns."""

    def __init__(self, detector: Detector, dataset: DetectionDataset | None, turns: Turns):
        """`dataset` is by default what the detector was trained on, opened when it is needed."""
        self.detector, self.turns = detector, turns
        self._dataset = dataset

    @cached_property
    def dataset(self) -> DetectionDataset:
        """Images that are trained on. Raises InputError."""
        return self.detector.open_data("train") if self._dataset is None else self._dataset

    @cached_property
    def image_ids(self) -> list[str]:
        return [str(self.dataset.image_id(i)) for i in range(len(self.dataset))]

    async def look(self, path: str | None, threshold: float) -> tuple[str, str, tuple[str, Detections] | None]:
        """What is found in an uploaded image, in words; the page that explains it; and what `listed` takes."""
        if path is None:
            return "", _WELCOME, None
        try:
            found, frame = await self.turns.take(self._look, path, threshold)
        except InputError as error:
            return _told(error), _WELCOME, None
        guesses = "" if len(found[1].above(threshold)) else _GUESSES
        return listed(found, threshold) + guesses, frame, found

    def _look(self, path: str, threshold: float) -> tuple[tuple[str, Detections], str]:
        with open(path, "rb") as file:
            image = read_upload(file)
        (found,) = self.detector.predict([image], threshold=0.0)
        explanation = explain(self.detector, image)
        page = image_page(explanation, threshold, title="what DETR did")
        page = page.replace("<body>", f"<body>{_FOLLOWS}", 1)
        return (Path(path).name, found), _framed(page, "Where DETR looked")

    async def judge(self, image_id: str, world_size: float, step: int = 0) -> tuple[str, str]:
        """The id of an image that is trained on, and the page on its loss: the image with this id (by default the
        first), or the one that comes `step` images later."""
        try:
            return await self.turns.take(self._judge, image_id.strip(), int(world_size), step)
        except InputError as error:
            return image_id, _told(error)

    def _judge(self, image_id: str, world_size: int, step: int) -> tuple[str, str]:
        ids = self.image_ids
        if image_id and image_id not in ids:
            raise InputError(
                f"{self.dataset.name} has no image with this id: try another, such as {', '.join(ids[:5])}"
            )
        chosen = ids[(ids.index(image_id or ids[0]) + step) % len(ids)]
        explanation = explain_loss(self.detector, self.dataset, int(chosen), world_size)
        page = loss_page(explanation, title="loss")
        return chosen, _framed(page, "From boxes to loss")


def listed(found: tuple[str, Detections] | None, threshold: float) -> str:
    """HTML: the detections with a score of `threshold` or more as a table, and a link that saves them as JSON."""
    if found is None:
        return ""
    name, detections = found[0], found[1].above(threshold)
    content = {"image": name, **detections.to_dict()}
    code = base64.b64encode(json.dumps(content, indent=2).encode()).decode()
    rows = [
        [row["label"], f"{row['score']:.2f}", ", ".join(f"{x:.0f}" for x in row["box"])]
        for row in content["detections"]
    ]
    count = "1 detection" if len(rows) == 1 else f"{len(rows) or 'No'} detections"
    save = f"<a download='{escape(Path(name).stem)}.json' href='data:application/json;base64,{code}'>Save as JSON</a>"
    boxes = table(["class", "score", "box, px"], rows)
    return f"<p><b>{count}</b> with a score of {threshold:.2f} or more. {save}</p><div class=found>{boxes}</div>"


def web_app(page: Page, title: str, host: str, uploads: Path) -> FastAPI:
    """The page at `/` and the endpoint at `/api`, for uvicorn. Gradio keeps files in `uploads` (`GRADIO_TEMP_DIR`)."""
    app = FastAPI(openapi_url=None)  # its own documentation would load scripts from elsewhere
    app.mount("/api", endpoint(page.detector, page.turns))
    app.add_middleware(Guard, uploads=uploads, hosts=_LOOPBACK if host in _LOOPBACK else None)
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return gr.mount_gradio_app(app, _blocks(page, title), path="/", theme=theme, css=_CSS, footer_links=[],
                               show_error=False, max_file_size=MAX_BYTES, run_history=False, ssr_mode=False,
                               mcp_server=False, app_kwargs={"openapi_url": None})  # fmt: skip


def _blocks(page: Page, title: str) -> gr.Blocks:
    with gr.Blocks(
        title=f"redetr: {title}", fill_width=True, analytics_enabled=False, delete_cache=(_KEPT_S, _KEPT_S)
    ) as blocks:
        known = _knows(page.detector.class_names)
        gr.HTML(f"<h1>What does DETR see?</h1><p><code>{escape(title)}</code> knows {known}.</p>")
        with gr.Tab("Find objects"):
            _look_tab(page)
        with gr.Tab("Matching and loss") as tab:
            _loss_tab(page, tab)
    return blocks.queue(max_size=_MOST_GPUS * 4, api_open=False)


def _look_tab(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=_SIDE_PX):
            image = gr.Image(type="filepath", image_mode=None, sources=["upload", "webcam", "clipboard"], height=240,
                             label="Image", buttons=[], elem_id="image")  # fmt: skip
            threshold = gr.Slider(0, 1, THRESHOLD, step=0.01, label="Smallest score", elem_id="threshold")
            found = gr.HTML(elem_id="found")
        with gr.Column(scale=4):
            explained = gr.HTML(_WELCOME, elem_id="explained")
    # Gradio would open the file in its own way; `read_upload` does, with limits and messages.
    image.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
    kept = gr.State()
    image.change(page.look, [image, threshold], [found, explained, kept], **_LATEST)
    threshold.change(listed, [kept, threshold], found, show_progress="hidden", **_LATEST)
    threshold.change(None, threshold, js=_TELL_FRAME)


def _loss_tab(page: Page, tab: gr.Tab) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=_SIDE_PX):
            gr.Markdown(_ABOUT_LOSS)
            image_id = gr.Textbox(label="Image id", elem_id="image-id")
            world_size = gr.Slider(1, _MOST_GPUS, 1, step=1, label="GPUs (world size)", elem_id="world-size")
            show = gr.Button("Show this image", size="sm", elem_id="show")
            other = gr.Button("Show the next", size="sm", elem_id="next")
        with gr.Column(scale=4):
            judged = gr.HTML(elem_id="judged")
    inputs, outputs = [image_id, world_size], [image_id, judged]
    gr.on([tab.select, show.click, image_id.submit, world_size.release], page.judge, inputs, outputs, **_LATEST)
    other.click(partial(page.judge, step=1), inputs, outputs, **_LATEST)


def _knows(names: tuple[str, ...]) -> str:
    if len(names) == 1:
        return f"one class: {escape(names[0])}"
    some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"{len(names)} classes: {escape(some)}"


def _told(error: InputError) -> str:
    return f"<p class=error>{escape(str(error))}</p>"


def _framed(page: str, title: str) -> str:
    """A page inside the page: it may run its script, but reach nothing of what is around it."""
    return f'<iframe title="{title}" sandbox="allow-scripts" srcdoc="{escape(page)}"></iframe>'


_TELL_FRAME = """(threshold) => {
  document.querySelector("#explained iframe")?.contentWindow.postMessage(threshold, "*");
}"""
# The slider of the frame is not shown: that of the page moves it.
_FOLLOWS = """<style>label:has([data-part=threshold]) { display: none } body { margin-top: .5em }
@media (min-width: 640px) { .story { grid-template-columns: 5fr 6fr; gap: 1.5em } .stage { position: sticky } }</style>
<script>addEventListener("message", ({ data }) => {
  const slider = document.querySelector("[data-part=threshold]");
  slider.value = Number(data);
  slider.dispatchEvent(new Event("input"));
});</script>"""
_WELCOME = """<p class=welcome>Drop an image at the left, or take one with the camera.</p><p class=welcome>Here you
will see what the model finds in it. A click on a box shows where the model looked, and how it came to that box.</p>"""
_GUESSES = "<p>The picture shows the best guesses below that.</p>"
_ABOUT_LOSS = """How training judges what the model answers to one of its images. With several GPUs, each has an image:
the first has this one, the others those that follow it."""
_CSS = """
.gradio-container { max-width: 1500px; width: 100%; margin: auto }
iframe { width: 100%; height: calc(100vh - 205px); min-height: 480px; border: 1px solid #ddd; border-radius: 6px;
  background: #fff }
.error { color: #c92a2a; font-weight: 600 }
.welcome { max-width: 32em; margin: 1em; color: #6c757d }
.found { overflow: auto; max-height: max(160px, 100vh - 640px) }
.found table { width: 100%; white-space: nowrap; font-size: 13px; border: 0 !important }
.found :is(tr, th, td) { padding: 2px 8px 2px 0 !important; border: 0 solid #ddd !important }
.found :is(th, td) { border-width: 0 0 1px !important }
"""
