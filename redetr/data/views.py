"""How an image is looked at: which window of it, at what size, mirrored or turned.

Every geometric augmentation is drawn as one `View` before pixels are touched. So an image is
resampled once, only what is kept of it is, and the size of a sample is known without decoding its
image.

Frames: *stored* px are those of the image file, which annotations count; boxes are xyxy. They are
NumPy arrays here: some dozen operations on a few numbers, which would take PyTorch as long as
resizing the image.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Size = tuple[int, int]  # height, width in px
Window = tuple[int, int, int, int]  # left, top, right, bottom in stored px
Random = random.Random  # its streams are the same in every version of Python

_GREY = 127  # beyond the border of an image


@dataclass(frozen=True)
class View:
    """A window of an image, mirrored, turned, and scaled to `size`. What lies beyond the image is
    grey."""

    window: Window
    size: Size  # of the result
    mirrored: bool = False
    quarter_turns: int = 0  # counter-clockwise, after mirroring

    @property
    def window_size(self) -> Size:
        left, top, right, bottom = self.window
        return bottom - top, right - left

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Stored boxes `[T, 4]` as px of the result; they may leave it."""
        height, width = self.window_size
        x1, y1, x2, y2 = (boxes - np.array(self.window[:2] * 2, boxes.dtype)).T
        if self.mirrored:
            x1, x2 = width - x2, width - x1
        for _ in range(self.quarter_turns):
            x1, y1, x2, y2 = y1, width - x2, y2, width - x1
            height, width = width, height
        across, down = self.size[1] / width, self.size[0] / height
        return np.stack([x1 * across, y1 * down, x2 * across, y2 * down], axis=1)

    def pixels(self, image: Tensor, stored: Size) -> Tensor:
        """What is seen, uint8 `[3, *size]`, of an image `[3, h, w]` decoded at its `stored` size or
        smaller."""
        left, top, right, bottom = self.window
        inside = np.array(
            [[max(left, 0), max(top, 0), min(right, stored[1]), min(bottom, stored[0])]], float
        )
        scale = [
            image.shape[2] / stored[1],
            image.shape[1] / stored[0],
        ] * 2  # 1, unless it was decoded smaller
        left, top, right, bottom = _whole_pixels(inside[0] * scale, image.shape[1:])
        part = image[:, top:bottom, left:right]
        if self.mirrored:
            part = part.flip(2)
        if self.quarter_turns:
            part = part.rot90(self.quarter_turns, (1, 2))
        left, top, right, bottom = _whole_pixels(self.boxes(inside)[0], self.size)
        part = F.resize(interleaved(part), [bottom - top, right - left], antialias=True)
        if part.shape[1:] == self.size:
            return part
        canvas = torch.full((*self.size, 3), _GREY, dtype=torch.uint8).permute(2, 0, 1)
        canvas[:, top:bottom, left:right] = part
        return canvas


def interleaved(image: Tensor) -> Tensor:
    """The image with the channels of a pixel side by side, as decoders give it: resizing takes a
    fifth of the time."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _whole_pixels(
    box: Sequence[float] | np.ndarray, size: Sequence[int]
) -> tuple[int, int, int, int]:
    """The box on the pixel grid of an image of this size (height, width); at least a pixel of
    it."""
    left, top = min(round(box[0]), size[1] - 1), min(round(box[1]), size[0] - 1)
    return left, top, max(round(box[2]), left + 1), max(round(box[3]), top + 1)


@dataclass(frozen=True)
class Fit:
    """A window as the model sees it: the shorter side of `shorter` px, unless the longer one would
    exceed `longest`."""

    shorter: int
    longest: int | None = None

    def __call__(self, height: int, width: int) -> Size:
        short, long = self.shorter, int(self.shorter * max(height, width) / min(height, width))
        if self.longest and long > self.longest:
            short, long = max(1, int(self.longest * short / long)), self.longest
        return (short, long) if height <= width else (long, short)

    def closer(self, factor: float) -> "Fit":
        """The size of the whole image, `factor` times as large, however long."""
        return Fit(math.ceil(factor * self.shorter))


@dataclass(frozen=True)
class Stretch:
    """A window as the model sees it: stretched to a square of `side` px."""

    side: int

    def __call__(self, height: int, width: int) -> Size:
        return self.side, self.side

    def closer(self, factor: float) -> "Stretch":
        """The size of the whole image, `factor` times as large."""
        return Stretch(math.ceil(factor * self.side))


Final = Fit | Stretch


@dataclass(frozen=True)
class Whole:
    """All of the image."""

    final: Final

    def __call__(self, random: Random, height: int, width: int, boxes: np.ndarray) -> View:
        return View((0, 0, width, height), self.final(height, width))


@dataclass(frozen=True)
class MultiScale:
    """The original DETR's: mirrored or not; in one half of the cases whole, in the other cropped;
    at one of 11 scales.

    Deviations: the original resizes, crops, and resizes what is left; here the crop is drawn in the
    resized frame all the same, but cut from the stored image (on whole px of it) and resampled
    once, so it is a little sharper. Sizes are rounded as torchvision does, which may differ by a
    pixel. For a `Stretch` the scales have no effect.
    """

    final: Final
    scales: tuple[int, ...]  # shorter sides of the result
    crop_from: tuple[int, ...]  # shorter sides of the resized image that is cropped
    crop: tuple[int, int]  # the least and largest side of the crop

    def __call__(self, random: Random, height: int, width: int, boxes: np.ndarray) -> View:
        mirrored = random.random() < 0.5
        final = self.final
        if isinstance(final, Fit):
            final = replace(final, shorter=random.choice(self.scales))
        if random.random() < 0.5:
            return View((0, 0, width, height), final(height, width), mirrored)
        resized = Fit(random.choice(self.crop_from))(height, width)
        (top, bottom), (left, right) = (self._stretch(random, side) for side in resized)
        down, across = height / resized[0], width / resized[1]
        window = _whole_pixels(
            [left * across, top * down, right * across, bottom * down], (height, width)
        )
        return View(window, final(bottom - top, right - left), mirrored)

    def _stretch(self, random: Random, side: int) -> tuple[int, int]:
        """Where the crop begins and ends on a side of the resized image."""
        length = random.randint(*(min(end, side) for end in self.crop))
        start = random.randint(0, side - length)
        return start, start + length


@dataclass(frozen=True)
class Zoomed:
    """Mirrored or not; with probability `out` on a grey canvas of up to `largest` times its sides;
    then, with probability `into`, a window that holds an object to some extent (that of SSD).
    """

    final: Final
    out: float
    largest: float
    into: float = 0.0

    def __call__(self, random: Random, height: int, width: int, boxes: np.ndarray) -> View:
        window = (0, 0, width, height)
        if random.random() < self.out:
            ratio = random.uniform(1.0, self.largest)
            tall, wide = int(height * ratio), int(width * ratio)
            left, top = -random.randint(0, wide - width), -random.randint(0, tall - height)
            window = (left, top, left + wide, top + tall)
        if random.random() < self.into:
            window = _window_with_objects(random, window, boxes)
        mirrored = random.random() < 0.5
        left, top, right, bottom = window
        return View(window, self.final(bottom - top, right - left), mirrored)


def _window_with_objects(random: Random, whole: Window, boxes: np.ndarray) -> Window:
    """A part of the window `whole` whose IoU with a box is at least what is drawn, or `whole` if
    none is found.

    As in SSD: sides of 0.3 to 1, an aspect ratio of 0.5 to 2, the centre of a box inside.
    """
    least_iou = random.choice((0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0))
    if least_iou == 1.0 or not len(boxes):
        return whole
    height, width = whole[3] - whole[1], whole[2] - whole[0]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    for _ in range(40):
        tall, wide = (
            max(1, int(height * random.uniform(0.3, 1))),
            max(1, int(width * random.uniform(0.3, 1))),
        )
        if not 0.5 <= wide / tall <= 2:
            continue
        left, top = (
            whole[0] + random.randint(0, width - wide),
            whole[1] + random.randint(0, height - tall),
        )
        window = (left, top, left + wide, top + tall)
        within = ((centers > window[:2]) & (centers < window[2:])).all(1)
        if within.any() and _iou(boxes[within], window).max() >= least_iou:
            return window
    return whole


def _iou(boxes: np.ndarray, window: Window) -> np.ndarray:
    """IoU `[T]` of boxes `[T, 4]` that have an area with a window."""
    common = (
        (np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2]))
        .clip(min=0)
        .prod(1)
    )
    both = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (window[2] - window[0]) * (window[3] - window[1])
    return common / (both - common)


@dataclass(frozen=True)
class NativeCrop:
    """A square at a zoom drawn from `zoom`, mirrored and turned: for imagery of fixed scale and no
    up or down, such as aerial photographs. With probability `object_share` it holds the centre of
    an object, if there is one.
    """

    final: Stretch
    zoom: tuple[float, float] = (0.7, 1.4)
    object_share: float = 0.7

    def __call__(self, random: Random, height: int, width: int, boxes: np.ndarray) -> View:
        side = min(round(self.final.side / random.uniform(*self.zoom)), height, width)
        left, top = random.randint(0, width - side), random.randint(0, height - side)
        if len(boxes) and random.random() < self.object_share:
            x1, y1, x2, y2 = boxes[random.randrange(len(boxes))].tolist()
            left, top = (
                _holding(random, (x1 + x2) / 2, side, width),
                _holding(random, (y1 + y2) / 2, side, height),
            )
        mirrored, turns = random.random() < 0.5, random.randrange(4)
        return View((left, top, left + side, top + side), self.final(side, side), mirrored, turns)


def _holding(random: Random, place: float, side: int, length: int) -> int:
    """A random start in [0, length - side] of a stretch of `side` px that holds `place`."""
    latest = min(int(place), length - side)
    return random.randint(min(max(0, int(place) + 1 - side), latest), latest)
