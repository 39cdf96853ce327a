"""Boxes drawn on images, and grids of images, as PIL images."""

import colorsys
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from redetr.choices import LabelChoice
from redetr.data.drawn import MARK
from redetr.files import write_whole
from redetr.masks import CroppedMasks, crops_of
from redetr.outlines import outlines
from redetr.pages.fonts import drawing_font

PathLike = str | os.PathLike[str]
Color = tuple[int, int, int]
Boxes = np.ndarray  # [N, 4] xyxy, pixels of the canvas

# Images with a shorter longest side are enlarged by a whole factor, to about this size.
_READABLE_PX = 480
# Images full of small boxes are enlarged until the median box has about this size, up to this
# maximum.
_READABLE_BOX_PX = 48
_LARGEST_PX = 1600
_INK: Color = (33, 37, 41)
_PAPER: Color = (255, 255, 255)
NO_COLOR: Color = (150, 150, 150)  # of objects without a class or track
_GAP_PX = 12
_CAPTION_LETTER_PX = 18
_CAPTION_PX = 240  # a column may be wider than its images by a caption of this width
_JPEG_SIDE_PX = 65_500  # the most that libjpeg writes
_MANY_BOXES = 30  # in one image
_MASK_OPACITY = 0.4
_MOST_HIDDEN = 0.15  # of a box, by the tag of another
# The colors of scores from 0 to 1, at equal distances: dark to bright, also for the colour-blind.
SCORE_COLORS: tuple[Color, ...] = (
    (40, 60, 190),
    (140, 50, 180),
    (215, 70, 120),
    (250, 150, 60),
    (245, 235, 70),
)
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


def score_color(score: float) -> Color:
    """The RGB color of a score from 0 to 1, for a single class."""
    position = score * (len(SCORE_COLORS) - 1)
    below = min(int(position), len(SCORE_COLORS) - 2)
    share = position - below
    mixed = []
    for low, high in zip(SCORE_COLORS[below], SCORE_COLORS[below + 1], strict=True):
        mixed.append(round(low + share * (high - low)))
    red, green, blue = mixed
    return red, green, blue


def to_pil(image: Image.Image | Tensor) -> Image.Image:
    """A new RGB image from a PIL image or a uint8 tensor `[C, H, W]`: the first three channels, or
    the first one in grey if there are fewer.

    Raises ValueError for other tensors.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.dtype != torch.uint8 or image.ndim != 3:
        raise ValueError(f"expected a uint8 image [C, H, W], got {image.dtype} {list(image.shape)}")
    if len(image) >= 3:
        rgb = image[:3]
    else:
        rgb = image[:1].expand(3, -1, -1)
    pixels = rgb.permute(1, 2, 0).contiguous()  # [H, W, 3]
    return Image.fromarray(pixels.cpu().numpy())


def draw_objects(
    image: Image.Image | Tensor,
    boxes: Tensor,
    labels: Sequence[int],
    class_names: Sequence[str],
    within_px: int,
    masks: Tensor | None = None,
) -> Image.Image:
    """The image with annotated boxes `[N, 4]` (xyxy pixels) and masks, bool `[N, H, W]`, in the
    colors of their classes, at most `within_px` large."""
    # If there is a single class, names would only hide parts of the image.
    names = [class_names[label] if len(class_names) > 1 else "" for label in labels]
    colors = [class_color(label) for label in labels]
    return draw_boxes(image, boxes, names, None, colors, within_px=within_px, masks=masks)


def draw_boxes(
    image: Image.Image | Tensor,
    boxes: Tensor,
    labels: Sequence[str],
    scores: Sequence[float] | None,
    colors: Sequence[Color],
    scale: int | None = None,
    *,
    tags: LabelChoice = "auto",
    line_width: int | None = None,
    within_px: int | None = None,
    masks: Tensor | CroppedMasks | None = None,
) -> Image.Image:
    """A copy of the image (PIL, or uint8 `[channels, H, W]`, see `to_pil`) with tagged boxes
    `[N, 4]` (xyxy pixels of that image), and with masks, bool `[N, H, W]`.

    Masks are translucent, with a thin outline, below all boxes and tags.

    A tag is the text in `labels` with the score in percent, in the color of its box. If `tags` is
    "auto", tags without room are left out: those that would hide a part of another tag or much of a
    box, or, among more than 30 boxes, those that are larger than their box. The first box is on top
    and is tagged first. Tags stay inside the image.

    `scale` enlarges the image by a whole factor before drawing, so that lines and text stay sharp.
    By default, small images are enlarged to about 480 px, and those full of small boxes further, up
    to 1600 px. Lines are `line_width` px wide, by default 1 or 2 px on most images. The result is
    no longer than `within_px`, if given: a larger image is reduced before anything is drawn. Raises
    ValueError for sequences of different lengths.
    """
    canvas = to_pil(image)
    if within_px:
        boxes, masks = _reduce(canvas, boxes, masks, within_px)
        scale = max(1, within_px // max(canvas.size))
    longest = max(canvas.size)
    if not scale:
        scale = _readable_scale(longest, _median_side(boxes))
    canvas = ImageOps.scale(canvas, scale)
    texts = _tag_texts(labels, scores)
    enlarged = boxes * scale  # [N, 4]
    if line_width is None:
        line_width = _line_width(scale * longest, _median_side(enlarged))
    rectangles = _rectangles(enlarged)
    if masks is not None:
        _draw_masks(canvas, masks, colors, scale)
    _draw_rectangles(canvas, rectangles, colors, line_width)
    if tags != "none":
        _draw_tags(canvas, rectangles, texts, colors, only_where_room=tags == "auto")
    return canvas


def grid(panels: Sequence[tuple[Image.Image, str]], columns: int) -> Image.Image:
    """One image of (image, caption) panels in rows of `columns`, with captions above the images.

    Each column is as wide as its widest image, and each row as high as its tallest one. Captions
    that are too long lose their middle. Raises ValueError if there are no panels or no columns.
    """
    if not panels or columns < 1:
        raise ValueError("a grid needs at least one panel and one column")
    columns = min(columns, len(panels))
    has_captions = any(caption for _, caption in panels)
    caption_px = 28 if has_captions else 0
    widths = []
    heights = []
    for image, caption in panels:
        font = drawing_font(caption, _CAPTION_LETTER_PX)
        text_px = round(font.getlength(caption) + 1)
        widths.append(max(image.width, min(text_px, _CAPTION_PX)))
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
        font = drawing_font(caption, _CAPTION_LETTER_PX)
        text = _shortened(caption, column_widths[column], font)
        drawing.text((x, y + caption_px / 2), text, _INK, font, anchor="lm")
        canvas.paste(image, (x, y + caption_px))
    return canvas


def comparison_grid(
    scenes: Sequence[tuple[Image.Image, Image.Image]],
    caption: str = "predictions",
    names: Sequence[str] = (),
) -> Image.Image:
    """A grid of scenes, two in a row, each given as (drawn ground truth, drawn predictions).

    `caption` is above the predictions, and the name of the scene, or "ground truth" without names,
    is above the truth. Raises ValueError if there are no scenes, or fewer names than scenes.
    """
    names = names or ["ground truth"] * len(scenes)
    panels = []
    for (truth, predictions), name in zip(scenes, names, strict=True):
        panels.append((truth, name))
        panels.append((predictions, caption))
    return grid(panels, columns=4)


def save_image(image: Image.Image, path: PathLike) -> None:
    """Writes the image in the format of the path's suffix, PNG or JPEG, completely or not at all,
    with a mark that `data.drawn.is_drawn` recognises.

    The folder must exist. As JPEG, a larger image is reduced to the most that the format can hold.
    """
    if Path(path).suffix.lower() in (".jpg", ".jpeg") and max(image.size) > _JPEG_SIDE_PX:
        image = image.copy()
        image.thumbnail((_JPEG_SIDE_PX, _JPEG_SIDE_PX))
    text = PngInfo()
    text.add_text("Software", MARK)

    def save(temporary: Path) -> None:
        # Each format ignores the options of the other. As PNG, a photograph takes a third of the
        # time of the default level 6, for a tenth more bytes.
        image.save(temporary, pnginfo=text, compress_level=3, comment=MARK)

    write_whole(Path(path), save)


def _rectangles(boxes: Tensor) -> Boxes:
    """The boxes in PIL's coordinates: an edge at x = 10 is the end of pixel 9, and no box is
    inverted."""
    corner_1, corner_2 = boxes[:, :2], boxes[:, 2:] - 1
    corners = torch.cat([corner_1, torch.maximum(corner_1, corner_2)], dim=1)
    return corners.double().numpy()


def _tag_texts(labels: Sequence[str], scores: Sequence[float] | None) -> list[str]:
    if scores is None:
        return list(labels)
    texts = []
    for label, score in zip(labels, scores, strict=True):
        texts.append(f"{label} {100 * score:.0f}%".strip())
    return texts


def _draw_masks(
    canvas: Image.Image, masks: Tensor | CroppedMasks, colors: Sequence[Color], scale: int
) -> None:
    """Draws masks `[N, H, W]`, the first one on top. The canvas is an enlarged copy of their
    image."""
    drawing = ImageDraw.Draw(canvas)
    pairs = list(zip(crops_of(masks), colors, strict=True))
    for (pixels, top, left), color in reversed(pairs):
        if not pixels.numel():
            continue
        opacity = Image.fromarray(pixels.numpy().astype(np.uint8) * round(255 * _MASK_OPACITY))
        enlarged = ImageOps.scale(opacity, scale, Image.Resampling.NEAREST)
        canvas.paste(color, (left * scale, top * scale), enlarged)
        for polygon in outlines(pixels.numpy()):
            closed = np.append(polygon, polygon[:1], axis=0) + (left, top)
            drawing.line((closed * scale).ravel().tolist(), fill=color)


def _draw_rectangles(
    canvas: Image.Image, boxes: Boxes, colors: Sequence[Color], line_width: int
) -> None:
    """Draws the boxes, the first one on top."""
    drawing = ImageDraw.Draw(canvas)
    pairs = list(zip(boxes.tolist(), colors, strict=True))
    for (x1, y1, x2, y2), color in reversed(pairs):
        if line_width > 1:
            # A thin dark line around the coloured one is visible on a background of any color. It
            # would hide too much of objects so small that their lines are 1 px wide.
            outer = (x1 - 1, y1 - 1, x2 + 1, y2 + 1)
            drawing.rectangle(outer, outline=_INK, width=line_width + 2)
        drawing.rectangle((x1, y1, x2, y2), outline=color, width=line_width)


def _draw_tags(
    canvas: Image.Image,
    boxes: Boxes,
    texts: Sequence[str],
    colors: Sequence[Color],
    only_where_room: bool,
) -> None:
    """Writes the texts beside their boxes, each where it hides least of earlier tags and boxes.

    Among many boxes, a tag that is larger than its box has no room, because all tags together would
    hide the image.
    """
    drawing = ImageDraw.Draw(canvas)
    font_size = _font_size(canvas, boxes)
    box_sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    box_areas = box_sides.prod(1)
    drawn_tags = np.zeros((0, 4))
    is_crowded = only_where_room and len(boxes) > _MANY_BOXES
    for box, box_area, text, color in zip(boxes.tolist(), box_areas, texts, colors, strict=True):
        if not text:
            continue
        font = drawing_font(text, font_size)
        width = font.getlength(text) + 8
        height = font_size * 1.25
        if is_crowded and width * height > box_area:
            continue
        positions = _tag_positions(box, (width, height), canvas.size)
        tag = _best_position(positions, drawn_tags, boxes, box_areas, only_where_room)
        if tag is None:
            continue
        drawn_tags = np.concatenate([drawn_tags, tag[None]])
        _draw_tag(drawing, tag, text, color, font)


def _best_position(
    positions: list[np.ndarray],
    drawn_tags: np.ndarray,
    boxes: Boxes,
    box_areas: np.ndarray,
    only_where_room: bool,
) -> np.ndarray | None:
    """The first of the positions of a tag that hides no part of the `drawn_tags` `[M, 4]` and not
    much of a box. If there is none, the one that hides least; None with `only_where_room`."""
    best: np.ndarray | None = None
    best_rank = (math.inf, math.inf)
    for tag in positions:
        hidden_tags = float(_common_areas(tag, drawn_tags).sum())
        if only_where_room and hidden_tags:
            continue
        hidden_share = float((_common_areas(tag, boxes) / box_areas).max())
        rank = (hidden_tags, max(hidden_share, _MOST_HIDDEN))
        if rank == (0.0, _MOST_HIDDEN):
            return tag
        if best is None or rank < best_rank:
            best = tag
            best_rank = rank
    return None if only_where_room else best


def _tag_positions(
    box: list[float], size: tuple[float, float], canvas_size: tuple[int, int]
) -> list[np.ndarray]:
    """The possible positions of a tag with this width and height: above its box, below it, inside
    at the top, and inside at the bottom; each at the left and at the right."""
    x1, y1, x2, y2 = box
    width, height = size
    rightmost = canvas_size[0] - width - 1
    lowest = canvas_size[1] - height - 1
    tags = []
    for y in (y1 - height, y2, y1, y2 - height):
        for x in (x1, x2 - width):
            left = max(0.0, min(x, rightmost))
            top = max(0.0, min(y, lowest))
            tags.append(np.array([left, top, left + width, top + height]))
    return tags


def _draw_tag(
    drawing: ImageDraw.ImageDraw,
    tag: np.ndarray,
    text: str,
    color: Color,
    font: ImageFont.FreeTypeFont,
) -> None:
    left, top, right, bottom = tag.tolist()
    drawing.rectangle((left, top, right, bottom), fill=color)
    is_bright = np.dot(color, _LUMA) > 140
    ink = _INK if is_bright else _PAPER
    drawing.text((left + 4, (top + bottom) / 2), text, ink, font, anchor="lm")


def _common_areas(tag: np.ndarray, boxes: Boxes) -> np.ndarray:
    """The areas `[N]` that a tag `[4]` has in common with each box, px squared."""
    left, top, right, bottom = tag
    # By column: a reduction over two numbers costs ten times as much, and this runs for each box.
    widths = np.minimum(right, boxes[:, 2]) - np.maximum(left, boxes[:, 0])
    heights = np.minimum(bottom, boxes[:, 3]) - np.maximum(top, boxes[:, 1])
    return np.maximum(widths, 0) * np.maximum(heights, 0)


def _reduce(
    canvas: Image.Image, boxes: Tensor, masks: Tensor | CroppedMasks | None, longest_px: int
) -> tuple[Tensor, Tensor | CroppedMasks | None]:
    """Reduces the canvas in place if it is too large; returns the boxes and masks on it, at the
    same scale."""
    reduction = min(1.0, longest_px / max(canvas.size))
    canvas.thumbnail((longest_px, longest_px))
    if masks is not None:
        size = (canvas.height, canvas.width)
        _, height, width = masks.shape
        crops = [crop.reduced((height, width), size) for crop in crops_of(masks)]
        masks = CroppedMasks(tuple(crops), size)
    return boxes * reduction, masks


def _median_side(boxes: Tensor) -> float:
    """The median of the longer sides of boxes `[N, 4]` in px; infinite if there are few boxes."""
    if len(boxes) <= _MANY_BOXES:
        return math.inf
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    return max(1.0, float(sides.median()))


def _readable_scale(longest: float, median_side: float) -> int:
    """The factor that makes an image, and its boxes if they are many, large enough to read."""
    for_image = round(_READABLE_PX / longest)
    for_boxes = math.ceil(min(_READABLE_BOX_PX / median_side, _LARGEST_PX // longest))
    return max(1, for_image, for_boxes)


def _line_width(longest: float, median_side: float) -> int:
    """The width of lines in px, for an image whose longer side is `longest`."""
    widest = max(2, round(longest / 400))
    if math.isinf(median_side):
        return widest
    return max(1, min(widest, round(median_side / 40)))


def _font_size(canvas: Image.Image, boxes: Boxes) -> int:
    """The size of letters in px, which depends on the image, and is smaller if it is full of small
    boxes."""
    longest = max(canvas.size)
    median_side = _median_side(torch.from_numpy(boxes))
    if math.isinf(median_side):
        return max(15, round(longest / 42))
    return max(11, round(min(longest / 42, median_side / 4)))


def _shortened(caption: str, width_px: int, font: ImageFont.FreeTypeFont) -> str:
    """The caption, without its middle if it is wider than `width_px`, because both ends of a file
    name identify it."""
    shown = caption
    kept = len(caption)
    while font.getlength(shown) > width_px and kept > 2:
        kept -= 1
        end = kept // 2
        shown = f"{caption[: kept - end]}…{caption[len(caption) - end :]}"
    return shown


def _panel_edges(sizes: Sequence[int]) -> list[int]:
    """The starts of panels of these sizes, with gaps around them, followed by the end of the last
    gap."""
    edges = [_GAP_PX]
    for size in sizes:
        edges.append(edges[-1] + size + _GAP_PX)
    return edges
