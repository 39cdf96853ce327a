"""Views of an image: the visible region, its size, mirroring and rotation.

Every geometric augmentation is drawn as one `View` before any pixels are processed. So an image is
resampled only once, and only its visible part, and the size of a sample is known without decoding
its image.

Frames: *stored* px are those of the image file, which annotations count in; boxes are xyxy. They
are NumPy arrays here: some dozen operations on a few numbers, which would take PyTorch as long as
resizing the image.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from redetr.structures import Size

Region = tuple[int, int, int, int]  # left, top, right, bottom in stored px
Random = random.Random  # its streams are the same in every version of Python

_PADDING_GREY = 127  # beyond the border of an image

# How SSD draws a region with objects.
_LEAST_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
_LEAST_SIDE = 0.3  # of the whole
_ASPECT_RATIOS = (0.5, 2)
_REGIONS_TRIED = 40


@dataclass(frozen=True)
class View:
    """A region of an image, mirrored, rotated, and scaled to `size`.

    Parts beyond the image are grey.
    """

    region: Region
    size: Size  # of the result
    mirrored: bool = False
    quarter_turns: int = 0  # counter-clockwise, after mirroring

    @property
    def region_size(self) -> Size:
        """Height and width of the region, in stored px."""
        left, top, right, bottom = self.region
        return bottom - top, right - left

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Returns stored boxes `[T, 4]` in px of the result, `[T, 4]`; they may extend beyond
        it."""
        height, width = self.region_size
        left, top, _, _ = self.region
        origin = np.array([left, top, left, top], boxes.dtype)
        x1, y1, x2, y2 = (boxes - origin).T
        if self.mirrored:
            x1, x2 = width - x2, width - x1
        for _ in range(self.quarter_turns):
            # The right side becomes the top, and the top becomes the left side.
            x1, y1, x2, y2 = y1, width - x2, y2, width - x1
            height, width = width, height
        result_height, result_width = self.size
        scale_x = result_width / width
        scale_y = result_height / height
        return np.stack([x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y], axis=1)

    def pixels(self, image: Tensor, stored: Size) -> Tensor:
        """Returns the view of `image`, uint8 `[C, *size]`.

        `image` is uint8 `[C, h, w]`, decoded at its `stored` size or smaller.
        """
        stored_height, stored_width = stored
        visible = np.array([self._visible(stored)], float)  # [1, 4], xyxy stored px
        _, height, width = image.shape
        scale_x = width / stored_width  # 1, unless the image was decoded smaller
        scale_y = height / stored_height
        decoded = visible[0] * [scale_x, scale_y, scale_x, scale_y]  # [4], xyxy px of `image`
        left, top, right, bottom = _whole_pixels(decoded, (height, width))
        part = image[:, top:bottom, left:right]
        if self.mirrored:
            part = part.flip(2)
        if self.quarter_turns:
            part = part.rot90(self.quarter_turns, (1, 2))

        (shown,) = self.boxes(visible)
        left, top, right, bottom = _whole_pixels(shown, self.size)
        part = F.resize(interleaved(part), [bottom - top, right - left], antialias=True)
        if part.shape[1:] == self.size:
            return part
        bands_last = (*self.size, len(image))
        canvas = torch.full(bands_last, _PADDING_GREY, dtype=torch.uint8).permute(2, 0, 1)
        canvas[:, top:bottom, left:right] = part
        return canvas

    def show_mask(self, mask: np.ndarray, shown: np.ndarray) -> None:
        """Writes the view of `mask`, bool `[H, W]` of the stored image, to `shown`, bool `[*size]`,
        which must be False everywhere.

        The mask is resampled exactly like the image, as a black and white image. Pixels that are at
        least half as bright as the brightest one belong to it, so an edge does not move, and a line
        that is thinner than a pixel does not vanish.
        """
        visible = self._visible(mask.shape)
        left, top, right, bottom = visible
        part = mask[top:bottom, left:right]
        (box,) = self.boxes(np.array([visible], float))
        left, top, right, bottom = _whole_pixels(box, self.size)
        # The result is mirrored instead of the mask, so that rounding is the same in both cases.
        turned_back = np.rot90(shown[top:bottom, left:right], -self.quarter_turns)
        if self.mirrored:
            turned_back = turned_back[:, ::-1]
        _resample_mask(part, turned_back)

    def _visible(self, stored: Size) -> Region:
        """The part of the region inside an image of this size, in stored px."""
        height, width = stored
        left, top, right, bottom = self.region
        return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def _resample_mask(mask: np.ndarray, shown: np.ndarray) -> None:
    """Writes `mask`, bool `[h, w]`, to `shown`, bool `[H, W]`, at the size of `shown`. Only the
    part around True pixels is resampled, which takes a fifth of the time of the whole mask."""
    rows = _reach(np.logical_or.reduce(mask, axis=1), len(shown))
    columns = _reach(np.logical_or.reduce(mask, axis=0), shown.shape[1])
    if rows is None or columns is None:
        return
    part = np.ascontiguousarray(mask[rows.source, columns.source])
    pixels = Image.fromarray(part.view(np.uint8) * np.uint8(255))
    shown_part = shown[rows.result, columns.result]
    height, width = shown_part.shape
    box = (columns.start, rows.start, columns.stop, rows.stop)
    resized = pixels.resize((width, height), Image.Resampling.BILINEAR, box)
    coverage = np.asarray(resized).astype(np.int32)
    # Rounding is up to 1 in 255. Pixels that are half covered are inside.
    full = max(coverage.max(), 1)
    shown_part[:] = 2 * coverage + 2 >= full


class _Reach(NamedTuple):
    """Corresponding ranges on an axis of a mask and of its resampled version."""

    source: slice  # of the mask
    result: slice  # of the resampled mask
    start: float  # start and end of `result`, in px from the start of `source`
    stop: float


def _reach(is_set: np.ndarray, length: int) -> _Reach | None:
    """The range of an axis that has True values, and the corresponding range at this length, with
    all pixels that it affects; None if nothing is set."""
    set_indices = np.flatnonzero(is_set)
    if not len(set_indices):
        return None
    first, last = int(set_indices[0]), int(set_indices[-1])
    scale = len(is_set) / length  # px of the mask per px of the result
    support = max(scale, 1.0)  # the reach of a pixel of the result from its middle, px of the mask
    start = max(0, math.floor((first - support) / scale))
    stop = min(length, math.ceil((last + 1 + support) / scale))
    source_start = max(0, math.floor(start * scale - support) - 1)
    source_stop = min(len(is_set), math.ceil(stop * scale + support) + 1)
    return _Reach(
        slice(source_start, source_stop),
        slice(start, stop),
        start * scale - source_start,
        min(stop * scale - source_start, source_stop - source_start),
    )


def interleaved(image: Tensor) -> Tensor:
    """Returns `image` `[C, h, w]` with the channels of a pixel adjacent in memory.

    This is the layout of decoders, with which resizing takes a fifth of the time.
    """
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _whole_pixels(box: Sequence[float] | np.ndarray, size: Size) -> Region:
    """Returns a box (xyxy, px) rounded to the pixel grid of an image of `size`, with at least one
    pixel."""
    height, width = size
    x1, y1, x2, y2 = box
    left = min(round(x1), width - 1)
    top = min(round(y1), height - 1)
    right = max(round(x2), left + 1)
    bottom = max(round(y2), top + 1)
    return left, top, right, bottom


@dataclass(frozen=True)
class Fit:
    """Scaling that keeps the aspect ratio: the shorter side becomes `shorter` px.

    It becomes smaller if the longer side would exceed `longest` px.

    Source: Carion et al., "End-to-End Object Detection with Transformers", 2020, whose code rounds
    the shorter side and then cuts off the fraction of the longer one, which may so be a little
    above or below `longest`. If `shorter` is not below `longest`, the longer side is exactly that,
    as in Table Transformer. Deviation: however long an image is, its shorter side keeps a pixel,
    and the longer one does not exceed twice `longest`.
    """

    shorter: int
    longest: int | None = None

    def __call__(self, height: int, width: int) -> Size:
        """Returns the size that a region of `height` x `width` stored px is scaled to."""
        stored_short, stored_long = sorted((height, width))
        short = self.shorter
        if self.longest:
            short = min(short, max(1, round(self.longest * stored_short / stored_long)))
        long = short * stored_long // stored_short
        if self.longest:
            long = min(long, 2 * self.longest)
            if self.shorter >= self.longest:
                long = self.longest
        if height <= width:
            return short, long
        return long, short

    def closer(self, factor: float) -> "Fit":
        """Returns the scaling to `factor` times the size, without a limit for the longer side."""
        return Fit(math.ceil(factor * self.shorter))


@dataclass(frozen=True)
class Stretch:
    """Scaling to one size in px, a square unless it has a `width`, regardless of the aspect
    ratio."""

    height: int
    width: int | None = None

    @property
    def size(self) -> Size:
        """Height and width, px."""
        return self.height, self.height if self.width is None else self.width

    def __call__(self, height: int, width: int) -> Size:
        """Returns the size that a region of `height` x `width` stored px is scaled to."""
        return self.size

    def closer(self, factor: float) -> "Stretch":
        """Returns the scaling to `factor` times the size."""
        height, width = self.size
        return Stretch(math.ceil(factor * height), math.ceil(factor * width))


Scaling = Fit | Stretch


@dataclass(frozen=True)
class Whole:
    """Draws the view of the whole image, always the same."""

    final: Scaling
    sees_boxes = False  # whether the view depends on the boxes

    def __call__(self, rng: Random, height: int, width: int, boxes: np.ndarray) -> View:
        """Returns the view of an image of `height` x `width` stored px."""
        return View((0, 0, width, height), self.final(height, width))


@dataclass(frozen=True)
class MultiScale:
    """Draws the views of the original DETR, at one of several scales.

    Half of them are cropped, and half are mirrored. For a `Stretch` the scales have no effect.

    Deviations: the original resizes, crops, and resizes the crop. Here the crop is drawn in the
    resized frame all the same, but cut from the stored image (on whole px of it) and resampled
    once, so it is a little sharper.
    """

    final: Scaling
    scales: tuple[int, ...]  # shorter sides of the result
    crop_from: tuple[int, ...]  # shorter sides of the resized image that is cropped
    crop: tuple[int, int]  # the least and largest side of the crop
    sees_boxes = False

    def __call__(self, rng: Random, height: int, width: int, boxes: np.ndarray) -> View:
        """Returns a view of an image of `height` x `width` stored px."""
        mirrored = rng.random() < 0.5
        final = self.final
        if isinstance(final, Fit):
            final = replace(final, shorter=rng.choice(self.scales))
        if rng.random() < 0.5:
            return View((0, 0, width, height), final(height, width), mirrored)

        resize = Fit(rng.choice(self.crop_from))
        resized_height, resized_width = resize(height, width)
        top, bottom = self._crop_side(rng, resized_height)
        left, right = self._crop_side(rng, resized_width)
        # Back to stored px.
        scale_x = width / resized_width
        scale_y = height / resized_height
        crop = [left * scale_x, top * scale_y, right * scale_x, bottom * scale_y]
        region = _whole_pixels(crop, (height, width))
        # Sizes follow from the crop's shape in the resized frame, as in the original.
        return View(region, final(bottom - top, right - left), mirrored)

    def _crop_side(self, rng: Random, side: int) -> tuple[int, int]:
        """Draws the start and end of the crop on a `side` of the resized image, in px."""
        least, largest = self.crop
        length = rng.randint(min(least, side), min(largest, side))
        start = rng.randint(0, side - length)
        return start, start + length


@dataclass(frozen=True)
class Zoomed:
    """Draws views that are zoomed out or in, or both; half of them are mirrored.

    With probability `out`, the image lies on a grey canvas of up to `largest` times its sides.
    Then, with probability `into`, a region that overlaps an object is cut out, as in SSD.
    """

    final: Scaling
    out: float
    largest: float
    into: float = 0.0

    @property
    def sees_boxes(self) -> bool:
        """Whether the view depends on the boxes."""
        return self.into > 0

    def __call__(self, rng: Random, height: int, width: int, boxes: np.ndarray) -> View:
        """Returns a view of an image of `height` x `width` stored px with `boxes` `[T, 4]`."""
        region = (0, 0, width, height)
        if rng.random() < self.out:
            ratio = rng.uniform(1.0, self.largest)
            canvas_height = int(height * ratio)
            canvas_width = int(width * ratio)
            left = -rng.randint(0, canvas_width - width)
            top = -rng.randint(0, canvas_height - height)
            region = (left, top, left + canvas_width, top + canvas_height)
        if rng.random() < self.into:
            region = _region_with_objects(rng, region, boxes)
        mirrored = rng.random() < 0.5
        left, top, right, bottom = region
        return View(region, self.final(bottom - top, right - left), mirrored)


def _region_with_objects(rng: Random, whole: Region, boxes: np.ndarray) -> Region:
    """Draws a part of the region `whole` that overlaps one of `boxes` `[T, 4]` (stored px).

    As in SSD: its IoU with a box is at least a drawn one, its sides are 0.3 to 1 of the whole, its
    aspect ratio is 0.5 to 2, and the box has its centre inside. Returns `whole` if the drawn IoU is
    1 (one draw in seven), if there is no box, or if 40 regions miss.
    """
    least_iou = rng.choice(_LEAST_IOUS)
    if least_iou == 1.0 or len(boxes) == 0:
        return whole
    whole_left, whole_top, whole_right, whole_bottom = whole
    whole_height = whole_bottom - whole_top
    whole_width = whole_right - whole_left
    least_ratio, largest_ratio = _ASPECT_RATIOS
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2  # [T, 2]
    for _ in range(_REGIONS_TRIED):
        height = max(1, int(whole_height * rng.uniform(_LEAST_SIDE, 1)))
        width = max(1, int(whole_width * rng.uniform(_LEAST_SIDE, 1)))
        if not least_ratio <= width / height <= largest_ratio:
            continue
        left = whole_left + rng.randint(0, whole_width - width)
        top = whole_top + rng.randint(0, whole_height - height)
        region = (left, top, left + width, top + height)
        inside = (centers > region[:2]) & (centers < region[2:])
        within = inside.all(1)  # [T]
        if within.any() and _iou(boxes[within], region).max() >= least_iou:
            return region
    return whole


def _iou(boxes: np.ndarray, region: Region) -> np.ndarray:
    """Returns the IoU `[T]` of boxes `[T, 4]`, which have an area, with a region."""
    left, top, right, bottom = region
    starts = np.maximum(boxes[:, :2], (left, top))
    ends = np.minimum(boxes[:, 2:], (right, bottom))
    common_sides = (ends - starts).clip(min=0)
    common = common_sides.prod(1)
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(1)
    region_area = (right - left) * (bottom - top)
    union = areas + region_area - common
    return common / union


@dataclass(frozen=True)
class NativeCrop:
    """Draws regions with the shape of `final` at a zoom from `zoom`, mirrored and rotated.

    For images with a fixed scale and no up or down, such as aerial photographs. With probability
    `object_share`, the region contains the centre of an object, if there is one. Squares are
    rotated by any multiple of 90 degrees, other shapes by 0 or 180.
    """

    final: Stretch
    zoom: tuple[float, float] = (0.7, 1.4)
    object_share: float = 0.7
    sees_boxes = True

    def __call__(self, rng: Random, height: int, width: int, boxes: np.ndarray) -> View:
        """Returns a view of an image of `height` x `width` stored px with `boxes` `[T, 4]`."""
        least_zoom, largest_zoom = self.zoom
        scale = 1 / rng.uniform(least_zoom, largest_zoom)
        final_height, final_width = self.final.size
        scale = min(scale, height / final_height, width / final_width)
        # At least one pixel: a wide shape in a narrow image would round to no height.
        seen_height = min(max(1, round(final_height * scale)), height)
        seen_width = min(max(1, round(final_width * scale)), width)
        left = rng.randint(0, width - seen_width)
        top = rng.randint(0, height - seen_height)
        if len(boxes) > 0 and rng.random() < self.object_share:
            x1, y1, x2, y2 = boxes[rng.randrange(len(boxes))].tolist()
            left = _start_around(rng, (x1 + x2) / 2, seen_width, width)
            top = _start_around(rng, (y1 + y2) / 2, seen_height, height)
        mirrored = rng.random() < 0.5
        quarter_turns = rng.randrange(4)
        if final_height != final_width:
            quarter_turns -= quarter_turns % 2
        region = (left, top, left + seen_width, top + seen_height)
        return View(region, self.final.size, mirrored, quarter_turns)


def _start_around(rng: Random, point: float, side: int, length: int) -> int:
    """Draws the start, in [0, length - side], of a range of `side` px that contains `point`."""
    latest = min(int(point), length - side)
    earliest = max(0, int(point) + 1 - side)
    return rng.randint(min(earliest, latest), latest)
