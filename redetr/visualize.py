"""Pictures: boxes drawn on images, grids of images, curves of a run.

Image functions return PIL images; `save_image` and `plot_curves` write files, each whole or not at all.
"""

import colorsys
import json
import math
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom
Metrics = list[dict[str, Any]]  # the lines of a metrics.jsonl

# Neighbouring classes differ in hue and in lightness; beyond the end, hues step by the golden ratio.
_PALETTE: tuple[Color, ...] = (
    (230, 57, 70),
    (46, 134, 222),
    (255, 183, 3),
    (46, 160, 67),
    (155, 93, 229),
    (0, 201, 200),
    (251, 111, 20),
    (255, 105, 180),
    (161, 214, 41),
    (141, 85, 36),
    (52, 73, 180),
    (245, 230, 99),
    (10, 110, 100),
    (178, 20, 110),
    (170, 190, 215),
)
_GOLDEN_RATIO = 0.618034
# Images whose longer side is shorter are enlarged by a whole factor, about to this size.
_READABLE_PX = 480
_INK: Color = (33, 37, 41)
_PAPER: Color = (255, 255, 255)
_GAP_PX = 12


def class_color(label: int) -> Color:
    """The RGB color of a class, the same in every picture."""
    if label < len(_PALETTE):
        return _PALETTE[label]
    hue = (label * _GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 - 0.3 * (label % 2), 0.95 - 0.25 * (label % 3))
    return round(255 * red), round(255 * green), round(255 * blue)


def to_pil(image: Image.Image | Tensor) -> Image.Image:
    """A new RGB image from a PIL image or a uint8 tensor `[3, H, W]`. Raises ValueError for other tensors."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        raise ValueError(f"expected a uint8 image [3, H, W], got {image.dtype} {list(image.shape)}")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def draw_boxes(
    image: Image.Image | Tensor,
    boxes: Tensor,
    labels: Sequence[str],
    scores: Sequence[float] | None,
    classes: Sequence[int],
    scale: int | None = None,
) -> Image.Image:
    """A copy of the image (PIL, or uint8 `[3, H, W]`) with tagged boxes `[N, 4]` (xyxy pixels of that image).

    A tag is the text in `labels` with the score in percent; `classes` (contiguous labels) choose the colors.
    `scale` enlarges the image by a whole factor before anything is drawn, so that lines and text stay crisp;
    without it small images are brought to about 480 px. Tags avoid each other where there is room, and stay
    in the picture. The first box lies on top. Raises ValueError for sequences of different lengths.
    """
    picture = to_pil(image)
    scale = scale or max(1, round(_READABLE_PX / max(picture.size)))
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
    line_px = max(2, round(max(picture.size) / 250))
    drawing = ImageDraw.Draw(picture)
    scaled = [_pixels(box, scale) for box in boxes.tolist()]
    for box, label in reversed(list(zip(scaled, classes, strict=True))):
        _draw_outline(drawing, box, class_color(label), line_px)
    texts = list(labels) if scores is None else [_tag(*pair) for pair in zip(labels, scores, strict=True)]
    _draw_tags(drawing, picture.size, scaled, texts, classes)
    return picture


def grid(panels: Sequence[tuple[Image.Image, str]], columns: int) -> Image.Image:
    """One picture of (image, caption) panels in rows of `columns`, captions above the images, none for "".

    Each column is as wide as its widest panel and each row as high as its highest.
    Raises ValueError for no panels or no columns.
    """
    if not panels or columns < 1:
        raise ValueError("a grid needs at least one panel and one column")
    columns = min(columns, len(panels))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    font = _font(18)
    caption_px = 28 if any(caption for _, caption in panels) else 0
    widths = [
        max(max(image.width, _text_width(font, caption)) for image, caption in panels[column::columns])
        for column in range(columns)
    ]
    heights = [max(image.height for image, _ in row) + caption_px for row in rows]
    size = (sum(widths) + _GAP_PX * (columns + 1), sum(heights) + _GAP_PX * (len(rows) + 1))
    canvas = Image.new("RGB", size, _PAPER)
    drawing = ImageDraw.Draw(canvas)
    y = _GAP_PX
    for row, height in zip(rows, heights, strict=True):
        x = _GAP_PX
        for (image, caption), width in zip(row, widths, strict=False):
            drawing.text((x, y + caption_px / 2), caption, _INK, font, anchor="lm")
            canvas.paste(image, (x, y + caption_px))
            x += width + _GAP_PX
        y += height + _GAP_PX
    return canvas


def comparison_grid(scenes: Sequence[tuple[Image.Image, Image.Image]], scenes_per_row: int = 2) -> Image.Image:
    """A grid of scenes, each given as (drawn ground truth, drawn predictions) and shown in this order.

    Raises ValueError for no scenes.
    """
    panels = []
    for truth, predicted in scenes:
        panels += [(truth, "ground truth"), (predicted, "predictions")]
    return grid(panels, 2 * scenes_per_row)


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes the image in the format of the path's ending, whole or not at all; the folder must exist."""
    _write_whole(Path(path), image.save)


def plot_curves(
    runs: Sequence[str | os.PathLike[str] | Metrics], path: str | os.PathLike[str], names: Sequence[str] = ()
) -> None:
    """Writes a PNG: the loss over steps, AP (solid) and AP50 (dashed) over minutes, one color for each run.

    A run is a run folder, a `metrics.jsonl`, or its lines as dicts. `names` default to the folders' names.
    Raises InputError for a file that is missing or not JSON lines, ValueError for no runs or too few names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not runs:
        raise ValueError("plot_curves needs at least one run")
    figure = Figure(figsize=(12, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, ap_axes = figure.subplots(1, 2)
    names = names or [_run_name(run, i) for i, run in enumerate(runs)]
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        metrics = run if isinstance(run, list) else read_metrics(run)
        color = "#{:02x}{:02x}{:02x}".format(*class_color(i if len(runs) > 1 else 1))
        _plot_loss(loss_axes, metrics, color, name)
        _plot_ap(ap_axes, metrics, color, name if len(runs) > 1 else "")
    _label_axes(loss_axes, "Training loss", "step", legend=len(runs) > 1)
    _label_axes(ap_axes, "Average precision (validation), %", "minutes", legend=True)
    _write_whole(Path(path), figure.savefig)


def read_metrics(run: str | os.PathLike[str]) -> Metrics:
    """The lines of a run folder's `metrics.jsonl` (or of the file itself) as dicts.

    A last line without its end is left out: the run is writing it or was killed at it.
    Raises InputError for a file that is missing or not JSON lines.
    """
    path = Path(run)
    path = path / "metrics.jsonl" if path.is_dir() else path
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not made of JSON lines: {error}") from error


def _pixels(box: Sequence[float], scale: int) -> Rectangle:
    """First and last pixels of an xyxy box in the enlarged picture, never inside out (which PIL refuses)."""
    left, top, right, bottom = (value * scale for value in box)
    # The edge at x = 10 ends the pixel 9.
    return left, top, max(left, right - 1), max(top, bottom - 1)


def _tag(label: str, score: float) -> str:
    return f"{label} {100 * score:.0f}%"


def _draw_outline(drawing: ImageDraw.ImageDraw, box: Rectangle, color: Color, line_px: int) -> None:
    """The outline in the color on a thin dark one, so that it is seen on a background of any color."""
    left, top, right, bottom = box
    drawing.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_INK, width=line_px + 2)
    drawing.rectangle(box, outline=color, width=line_px)


def _draw_tags(
    drawing: ImageDraw.ImageDraw,
    size: tuple[int, int],
    boxes: Sequence[Rectangle],
    texts: Sequence[str],
    classes: Sequence[int],
) -> None:
    """Writes the texts at their boxes on the color of the class; earlier ones choose their place first."""
    font = _font(max(15, round(max(size) / 42)))
    taken: list[Rectangle] = []
    for box, text, label in zip(boxes, texts, classes, strict=True):
        if not text:
            continue
        extent = (_text_width(font, text) + 8, font.size * 1.25)
        place = _tag_place(box, extent, size, taken)
        taken.append(place)
        color = class_color(label)
        drawing.rectangle(place, fill=color)
        drawing.text((place[0] + 4, (place[1] + place[3]) / 2), text, _text_color(color), font, anchor="lm")


def _tag_place(
    box: Rectangle, extent: tuple[float, float], size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Where the tag overlaps the earlier ones least: above, below or inside the box, at its left or right."""
    (left, top, right, bottom), (width, height) = box, extent
    places = []
    for x, y in product((left, right - width), (top - height, bottom, top, bottom - height)):
        x = max(0.0, min(x, size[0] - width - 1))
        y = max(0.0, min(y, size[1] - height - 1))
        places.append((x, y, x + width, y + height))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _text_color(background: Color) -> Color:
    """Dark or white, whichever contrasts more with the background."""
    red, green, blue = background
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else _PAPER


@lru_cache
def _font(size_px: int) -> Any:
    return ImageFont.load_default(size_px)


def _text_width(font: Any, text: str) -> int:
    return math.ceil(font.getlength(text))


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary file beside `path`, which then takes its place at once."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _run_name(run: str | os.PathLike[str] | Metrics, position: int) -> str:
    if isinstance(run, list):
        return f"run {position + 1}"
    path = Path(run).absolute()
    return path.parent.name if path.suffix == ".jsonl" else path.name


def _number(value: Any) -> float:
    """The value, nan for the null that stands for it in JSON."""
    return math.nan if value is None else float(value)


def _plot_loss(axes: "Axes", metrics: Metrics, color: str, name: str) -> None:
    """The loss of each logged step, faint, and smoothed."""
    lines = [line for line in metrics if "loss" in line]
    steps, losses = [line["step"] for line in lines], [_number(line["loss"]) for line in lines]
    axes.plot(steps, losses, color=color, alpha=0.3, linewidth=0.8)
    axes.plot(steps, _smoothed(losses), color=color, linewidth=2, label=name)


def _plot_ap(axes: "Axes", metrics: Metrics, color: str, name: str) -> None:
    """AP solid and AP50 dashed, in percent, with a mark for each evaluation."""
    lines = [line for line in metrics if "AP" in line]
    minutes = [line["time_s"] / 60 for line in lines]
    for key, style in (("AP", "-"), ("AP50", "--")):
        percent = [100 * _number(line.get(key)) for line in lines]
        axes.plot(minutes, percent, style, color=color, marker="o", markersize=3, label=f"{name} {key}".strip())


def _label_axes(axes: "Axes", title: str, x_label: str, legend: bool) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(x_label)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False)


def _smoothed(values: Sequence[float]) -> NDArray[np.float64]:
    """The mean around each place over a twentieth of all values, without those that are not finite."""
    reach = len(values) // 40
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.where(finite, values, 0.0).cumsum()])
    count = np.concatenate([[0], finite.cumsum()])
    place = np.arange(len(values))
    first, last = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    around = count[last] - count[first]
    return np.where(around > 0, (total[last] - total[first]) / np.maximum(around, 1), math.nan)
