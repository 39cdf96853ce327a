"""Pictures: boxes drawn on images, and grids of images, as PIL images."""

import colorsys
import os
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from redetr.boxes import box_iou
from redetr.files import write_whole

if TYPE_CHECKING:
    pass

PathLike = str | os.PathLike[str]
Color = tuple[int, int, int]

# Images whose longer side is shorter are enlarged by a whole factor, about to this size.
_READABLE_PX = 480
_INK: Color = (33, 37, 41)
_PAPER: Color = (255, 255, 255)
_GAP_PX = 12
_MANY = 30  # boxes in one picture


def class_color(label: int) -> Color:
    """The RGB color of a class, the same in every picture."""
    # Steps of the golden ratio never come back to a hue; neighbouring classes differ in lightness
    # as well.
    hue = (label * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 - 0.3 * (label % 2), 1 - 0.2 * (label % 3))
    return round(255 * red), round(255 * green), round(255 * blue)


def to_pil(image: Image.Image | Tensor) -> Image.Image:
    """A new RGB image from a PIL image or a uint8 tensor `[3, H, W]`. Raises ValueError for other
    tensors."""
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
    """A copy of the image (PIL, or uint8 `[3, H, W]`) with tagged boxes `[N, 4]` (xyxy pixels of
    that image).

    A tag is the text in `labels` with the score in percent; `classes` (contiguous labels) choose
    the colors. `scale` enlarges the image by a whole factor before anything is drawn, so that lines
    and text stay crisp; without it small images are brought to about 480 px. Tags avoid each other
    where there is room, and stay in the picture. The first box lies on top. Raises ValueError for
    sequences of different lengths.
    """
    picture = to_pil(image)
    scale = scale or max(1, round(_READABLE_PX / max(picture.size)))
    picture = ImageOps.scale(picture, scale)
    if scores is not None:
        labels = [
            f"{label} {100 * score:.0f}%" for label, score in zip(labels, scores, strict=True)
        ]
    drawing = ImageDraw.Draw(picture)
    edges = boxes * scale
    line_px = max(2, round(_drawn_for(picture, edges.tolist()) / 250))
    # The edge at x = 10 ends the pixel 9; PIL refuses boxes that are inside out.
    edges[:, 2:] = torch.maximum(edges[:, :2], edges[:, 2:] - 1)
    enlarged = edges.tolist()
    for (left, top, right, bottom), label in reversed(list(zip(enlarged, classes, strict=True))):
        # A thin dark line around the coloured one: it is seen on a background of any color.
        drawing.rectangle(
            (left - 1, top - 1, right + 1, bottom + 1), outline=_INK, width=line_px + 2
        )
        drawing.rectangle((left, top, right, bottom), outline=class_color(label), width=line_px)
    _draw_tags(picture, enlarged, labels, classes)
    return picture


def grid(panels: Sequence[tuple[Image.Image, str]], columns: int) -> Image.Image:
    """One picture of (image, caption) panels in rows of `columns`, captions above the images, none
    for "".

    Each column is as wide as its widest panel and each row as high as its highest. Raises
    ValueError for no panels or no columns.
    """
    if not panels or columns < 1:
        raise ValueError("a grid needs at least one panel and one column")
    columns = min(columns, len(panels))
    font = _font(18)
    caption_px = 28 if any(caption for _, caption in panels) else 0
    widths = [max(image.width, round(font.getlength(caption) + 1)) for image, caption in panels]
    heights = [image.height + caption_px for image, _ in panels]
    lefts = _edges([max(widths[i::columns]) for i in range(columns)])
    tops = _edges([max(heights[i : i + columns]) for i in range(0, len(panels), columns)])
    canvas = Image.new("RGB", (lefts[-1], tops[-1]), _PAPER)
    drawing = ImageDraw.Draw(canvas)
    for i, (image, caption) in enumerate(panels):
        x, y = lefts[i % columns], tops[i // columns]
        drawing.text((x, y + caption_px / 2), caption, _INK, font, anchor="lm")
        canvas.paste(image, (x, y + caption_px))
    return canvas


def comparison_grid(
    scenes: Sequence[tuple[Image.Image, Image.Image]], caption: str = "predictions"
) -> Image.Image:
    """A grid of scenes, two in a row, each given as (drawn ground truth, drawn predictions) and
    shown in this order.

    `caption` stands above the predictions. Raises ValueError for no scenes.
    """
    captions = ("ground truth", caption)
    return grid(
        [panel for scene in scenes for panel in zip(scene, captions, strict=True)], columns=4
    )


def save_image(image: Image.Image, path: PathLike) -> None:
    """Writes the image in the format of the path's ending, whole or not at all; the folder must
    exist."""
    write_whole(Path(path), image.save)


def _draw_tags(
    picture: Image.Image, boxes: list[list[float]], texts: Sequence[str], classes: Sequence[int]
) -> None:
    """Writes the texts at their boxes on the color of the class, each where it hides least of the
    earlier ones."""
    drawing = ImageDraw.Draw(picture)
    font = _font(max(15, round(_drawn_for(picture, boxes) / 42)))
    height = font.size * 1.25
    taken = torch.zeros(0, 4)
    for (left, top, _, bottom), text, label in zip(boxes, texts, classes, strict=True):
        if not text:
            continue
        width = font.getlength(text) + 8
        x = max(0.0, min(left, picture.width - width - 1))
        rows = [
            max(0.0, min(y, picture.height - height - 1))
            for y in (top - height, bottom, top, bottom - height)
        ]
        places = [torch.tensor([x, y, x + width, y + height]) for y in rows]
        place = min(places, key=lambda place: float(box_iou(place[None], taken).sum()))
        taken = torch.cat([taken, place[None]])
        color = class_color(label)
        drawing.rectangle(place.tolist(), fill=color)
        ink = (
            _INK if np.dot(color, (0.299, 0.587, 0.114)) > 140 else _PAPER
        )  # whichever contrasts more
        drawing.text((x + 4, float(place[1]) + height / 2), text, ink, font, anchor="lm")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font with Latin, Greek and Cyrillic letters, which Pillow's own does not have; `size` in
    pixels."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _drawn_for(picture: Image.Image, boxes: list[list[float]]) -> float:
    """The side that lines and tags are made for, px: that of the picture, or less if it is full of
    small boxes."""
    sides = sorted(max(right - left, bottom - top) for left, top, right, bottom in boxes)
    return (
        min(max(picture.size), 12 * sides[len(sides) // 2])
        if len(boxes) > _MANY
        else max(picture.size)
    )


def _edges(sizes: Sequence[int]) -> list[int]:
    """Where panels of these sizes begin, with gaps before, between and after them; last, where the
    last gap ends."""
    return list(accumulate(sizes, lambda place, size: place + size + _GAP_PX, initial=_GAP_PX))
