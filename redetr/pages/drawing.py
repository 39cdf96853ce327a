"""Boxes drawn on images, and grids of images, as PIL images."""

import colorsys
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from redetr.boxes import box_iou
from redetr.files import write_whole

PathLike = str | os.PathLike[str]
Color = tuple[int, int, int]

# Images whose longer side is shorter are enlarged by a whole factor, about to this size.
_READABLE_PX = 480
_INK: Color = (33, 37, 41)
_PAPER: Color = (255, 255, 255)
_GAP_PX = 12
_MANY_BOXES = 30  # in one image
_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in the brightness of a color


def class_color(label: int) -> Color:
    """The RGB color of a class, the same in every image."""
    # Steps of the golden ratio never return to a hue.
    hue = (label * 0.618034) % 1.0
    # Neighbouring classes differ in saturation and brightness as well.
    saturation = 0.85 - 0.3 * (label % 2)
    brightness = 1 - 0.2 * (label % 3)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def to_pil(image: Image.Image | Tensor) -> Image.Image:
    """A new RGB image from a PIL image or a uint8 tensor `[3, H, W]`.

    Raises ValueError for other tensors.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        raise ValueError(f"expected a uint8 image [3, H, W], got {image.dtype} {list(image.shape)}")
    pixels = image.permute(1, 2, 0)  # [H, W, 3]
    return Image.fromarray(pixels.contiguous().cpu().numpy())


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
    and text stay crisp; by default, small images are enlarged to about 480 px. Tags avoid each
    other where there is room, and stay inside the image. The first box lies on top. Raises
    ValueError for sequences of different lengths.
    """
    canvas = to_pil(image)
    if not scale:
        scale = max(1, round(_READABLE_PX / max(canvas.size)))
    canvas = ImageOps.scale(canvas, scale)
    texts = list(labels)
    if scores is not None:
        texts = [f"{label} {100 * score:.0f}%" for label, score in zip(labels, scores, strict=True)]
    enlarged = boxes * scale  # [N, 4]
    line_px = max(2, round(_drawing_size(canvas, enlarged.tolist()) / 250))
    # The edge at x = 10 ends the pixel 9; PIL refuses boxes that are inside out.
    enlarged[:, 2:] = torch.maximum(enlarged[:, :2], enlarged[:, 2:] - 1)
    rectangles = enlarged.tolist()
    _draw_rectangles(canvas, rectangles, classes, line_px)
    _draw_tags(canvas, rectangles, texts, classes)
    return canvas


def grid(panels: Sequence[tuple[Image.Image, str]], columns: int) -> Image.Image:
    """One image of (image, caption) panels in rows of `columns`; captions stand above the images.

    Each column is as wide as its widest panel and each row as high as its highest. Raises
    ValueError for no panels or no columns.
    """
    if not panels or columns < 1:
        raise ValueError("a grid needs at least one panel and one column")
    columns = min(columns, len(panels))
    font = _font(18)
    has_captions = any(caption for _, caption in panels)
    caption_px = 28 if has_captions else 0
    widths = []
    heights = []
    for image, caption in panels:
        text_px = round(font.getlength(caption) + 1)
        widths.append(max(image.width, text_px))
        heights.append(image.height + caption_px)
    column_widths = [max(widths[column::columns]) for column in range(columns)]
    row_starts = range(0, len(panels), columns)
    row_heights = [max(heights[start : start + columns]) for start in row_starts]
    x_edges = _panel_edges(column_widths)
    y_edges = _panel_edges(row_heights)
    canvas = Image.new("RGB", (x_edges[-1], y_edges[-1]), _PAPER)
    drawing = ImageDraw.Draw(canvas)
    for index, (image, caption) in enumerate(panels):
        row, column = divmod(index, columns)
        x = x_edges[column]
        y = y_edges[row]
        drawing.text((x, y + caption_px / 2), caption, _INK, font, anchor="lm")
        canvas.paste(image, (x, y + caption_px))
    return canvas


def comparison_grid(
    scenes: Sequence[tuple[Image.Image, Image.Image]], caption: str = "predictions"
) -> Image.Image:
    """A grid of scenes, two in a row, each given as (drawn ground truth, drawn predictions).

    `caption` stands above the predictions. Raises ValueError for no scenes.
    """
    panels = []
    for truth, predictions in scenes:
        panels.append((truth, "ground truth"))
        panels.append((predictions, caption))
    return grid(panels, columns=4)


def save_image(image: Image.Image, path: PathLike) -> None:
    """Writes the image in the format of the path's suffix, whole or not at all.

    The folder must exist.
    """
    write_whole(Path(path), image.save)


def _draw_rectangles(
    canvas: Image.Image, boxes: list[list[float]], classes: Sequence[int], line_px: int
) -> None:
    """Draws the boxes (xyxy pixels) in the colors of their classes, the first one on top."""
    drawing = ImageDraw.Draw(canvas)
    pairs = list(zip(boxes, classes, strict=True))
    for (x1, y1, x2, y2), label in reversed(pairs):
        # A thin dark line around the coloured one is visible on a background of any color.
        outer = (x1 - 1, y1 - 1, x2 + 1, y2 + 1)
        drawing.rectangle(outer, outline=_INK, width=line_px + 2)
        drawing.rectangle((x1, y1, x2, y2), outline=class_color(label), width=line_px)


def _draw_tags(
    canvas: Image.Image, boxes: list[list[float]], texts: Sequence[str], classes: Sequence[int]
) -> None:
    """Writes the texts beside their boxes, each where it hides least of the earlier ones."""
    drawing = ImageDraw.Draw(canvas)
    font = _font(max(15, round(_drawing_size(canvas, boxes) / 42)))
    height = font.size * 1.25
    drawn_tags = torch.zeros(0, 4)  # [number so far, 4] xyxy
    for (x1, y1, _, y2), text, label in zip(boxes, texts, classes, strict=True):
        if not text:
            continue
        width = font.getlength(text) + 8
        x = max(0.0, min(x1, canvas.width - width - 1))
        candidates = []
        # Above the box, below it, inside at its top, inside at its bottom.
        for y in (y1 - height, y2, y1, y2 - height):
            inside = max(0.0, min(y, canvas.height - height - 1))
            candidates.append(torch.tensor([x, inside, x + width, inside + height]))
        overlaps = [float(box_iou(tag[None], drawn_tags).sum()) for tag in candidates]
        tag = candidates[overlaps.index(min(overlaps))]
        drawn_tags = torch.cat([drawn_tags, tag[None]])
        color = class_color(label)
        drawing.rectangle(tag.tolist(), fill=color)
        is_bright = np.dot(color, _LUMA) > 140
        ink = _INK if is_bright else _PAPER
        middle = float(tag[1]) + height / 2
        drawing.text((x + 4, middle), text, ink, font, anchor="lm")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font of `size` px with Latin, Greek and Cyrillic letters, which Pillow's own lacks."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _drawing_size(canvas: Image.Image, boxes: list[list[float]]) -> float:
    """The side, in px, that lines and tags are scaled to.

    It is that of the image, or less where the image is full of small boxes.
    """
    longest = max(canvas.size)
    if len(boxes) <= _MANY_BOXES:
        return longest
    sides = sorted(max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes)
    median_side = sides[len(sides) // 2]
    return min(longest, 12 * median_side)


def _panel_edges(sizes: Sequence[int]) -> list[int]:
    """Where panels of these sizes begin, with gaps around them; last, where the last gap ends."""
    edges = [_GAP_PX]
    for size in sizes:
        edges.append(edges[-1] + size + _GAP_PX)
    return edges
