"""From a sample in pixels to what the model sees: a view of the image, its colours, and the objects
that are left.

All draws come from a generator made of (seed, epoch, image): a sample does not depend on the rank,
the worker or the order of loading. Images stay uint8 on the host; `normalize` makes floats of them
on the device.
"""

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from redetr.choices import Augment
from redetr.data.views import (
    Final,
    Fit,
    MultiScale,
    NativeCrop,
    Random,
    Stretch,
    View,
    Whole,
    Zoomed,
)
from redetr.structures import Target

Resize = Literal["aspect", "square"]
Sample = tuple[Tensor, Target]

# ImageNet's statistics: what every pretrained backbone expects.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_GREY = np.array([0.299, 0.587, 0.114])  # brightness of red, green and blue
MIN_VISIBLE = 0.4  # a box of which less is seen is not an object any more


def normalize(images: Tensor) -> Tensor:
    """Float images for the model from uint8 `[..., 3, H, W]`, on whatever device they are."""
    mean, std = _statistics(images.device)
    return (images - mean) / std


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation `[3, 1, 1]` of bytes. Kept: each copy to a GPU would wait for all that it
    has to do."""
    mean, std = (torch.tensor(values).mul(255)[:, None, None].to(device) for values in (MEAN, STD))
    return mean, std


def drawn_from(*key: int) -> int:
    """A seed that is a function of the whole numbers in `key`, such as (seed, epoch, image)."""
    return int(
        np.random.SeedSequence([abs(k) for k in key]).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )


def draws_of(*key: int) -> Random:
    """A generator that is a function of the whole numbers in `key`."""
    return random.Random(drawn_from(*key))


@dataclass(frozen=True)
class Jitter:
    """How far colours may be off: brightness, contrast and saturation as shares, hue as a share of
    a full turn."""

    brightness: float
    contrast: float
    saturation: float
    hue: float = 0.0

    def __call__(self, random: Random, image: Tensor) -> Tensor:
        """The uint8 image `[3, H, W]` with other colours.

        All four changes are linear in the colours (hue as a turn around the grey axis), so they are
        one matrix for all pixels, rounded and cut off once: 7 ms for 640x640, where one after the
        other takes 140.
        """
        mean = image[:, ::4, ::4].float().mean((1, 2)).double().numpy()
        matrix = tuple(self.matrix(random, mean).ravel().tolist())
        changed = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("RGB", matrix)
        return torch.from_numpy(np.array(changed)).permute(2, 0, 1)

    def matrix(self, random: Random, mean: np.ndarray) -> np.ndarray:
        """What takes (red, green, blue, 1) of an image with this mean colour to the new colours,
        `[3, 4]`."""
        brightness, contrast, saturation = (
            random.uniform(max(0.0, 1 - by), 1 + by)
            for by in (self.brightness, self.contrast, self.saturation)
        )
        turn = _hue_turn(random.uniform(-self.hue, self.hue))
        colours = turn @ (saturation * np.eye(3) + (1 - saturation) * _GREY) * brightness * contrast
        grey = brightness * (1 - contrast) * (_GREY @ mean)  # contrast is about the mean brightness
        return np.column_stack([colours, np.full(3, grey)])


def _hue_turn(share: float) -> np.ndarray:
    """A turn of colours around the grey axis, in the plane of NTSC's I and Q, `[3, 3]`: it keeps
    their brightness."""
    to_yiq = np.array([_GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    angle = 2 * np.pi * share
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    return np.linalg.inv(to_yiq) @ turn @ to_yiq


@dataclass(frozen=True)
class Transform:
    """How images are looked at: `draw` takes (random, height, width, boxes `[T, 4]`), all in stored
    px, to a `View`.

    `min_visible` is the share of a box that must be seen for it to stay. With `closest`, an image
    may be decoded smaller, but not smaller than this.
    """

    draw: Whole | MultiScale | Zoomed | NativeCrop
    jitter: Jitter | None = None
    min_visible: float = MIN_VISIBLE
    closest: Final | None = None

    def __call__(self, image: Tensor) -> Tensor:
        """The whole image `[3, H, W]` at the size that the model sees, without augmentation."""
        height, width = image.shape[-2:]
        return View((0, 0, width, height), self.draw.final(height, width)).pixels(
            image, (height, width)
        )

    def view(self, random: Random, target: Target) -> View:
        """The view of an image with this target as stored."""
        return self.draw(
            random, *target["orig_size"], target["boxes"].numpy()[~target["iscrowd"].numpy()]
        )

    def show(self, random: Random, view: View, image: Tensor, target: Target) -> Sample:
        """The sample that is seen: the image, uint8, and a target with boxes as fractions of it."""
        pixels = view.pixels(image, target["orig_size"])
        if self.jitter:
            pixels = self.jitter(random, pixels)
        return pixels, seen(view, target, self.min_visible)


def seen(view: View, target: Target, min_visible: float) -> Target:
    """The target of a view of an image: boxes cxcywh as fractions of it.

    Crowds are dropped, and so are boxes of which less than a pixel, or less than `min_visible` of
    their area, is left.
    """
    whole = view.boxes(target["boxes"].numpy())
    sides = np.array([view.size[1], view.size[0]], np.float32)
    visible = whole.reshape(-1, 2, 2).clip(0, sides)  # corners
    left = visible[:, 1] - visible[:, 0]
    area = (whole[:, 2:] - whole[:, :2]).prod(1)
    kept = ~target["iscrowd"].numpy() & (left >= 1).all(1) & (left.prod(1) >= min_visible * area)
    boxes = np.concatenate([visible.mean(1), left], axis=1)[kept] / np.tile(sides, 2)
    return Target(
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(target["labels"].numpy()[kept]),
        iscrowd=torch.from_numpy(np.zeros(len(boxes), bool)),
        area=torch.from_numpy(target["area"].numpy()[kept]),
        image_id=target["image_id"],
        orig_size=target["orig_size"],
        size=view.size,
    )


def resizer(resize: Resize, image_size: int, max_size: int | None) -> Transform:
    """What evaluation does: "aspect" takes the shorter side to `image_size`, the longer to at most
    `max_size`; "square" stretches to `image_size` x `image_size`."""
    return Transform(Whole(_final(resize, image_size, max_size)))


def augmentation(
    augment: Augment, resize: Resize, image_size: int, max_size: int | None
) -> Transform:
    """What training does. "plain": resize only. "detr": the original's flip, multi-scale resize and
    crop. "photo": colour, zoom-out, flip. "strong": the same, further out, and crops around
    objects. "aerial": crops at native scale, quarter turns, flips, colour."""
    final = _final(resize, image_size, max_size)
    colour = Jitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05)
    if augment == "plain":
        return Transform(Whole(final), closest=final)
    if augment == "photo":
        return Transform(Zoomed(final, out=0.3, largest=2), colour, closest=final)
    if augment == "strong":
        return Transform(
            Zoomed(final, out=0.5, largest=4, into=0.8), colour, closest=final.closer(1 / 0.3)
        )
    if augment == "aerial":
        return Transform(
            NativeCrop(Stretch(image_size)), Jitter(brightness=0.3, contrast=0.3, saturation=0.2)
        )
    scales, crop_from, (least, largest) = (
        tuple(round(image_size * px / 800) for px in sides)
        for sides in (range(480, 801, 32), (400, 500, 600), (384, 600))
    )
    draw = MultiScale(final, scales, crop_from, (least, largest))
    # The original keeps whatever is left of a box.
    return Transform(draw, min_visible=0.0, closest=final.closer(600 / 384))


def _final(resize: Resize, image_size: int, max_size: int | None) -> Final:
    return Stretch(image_size) if resize == "square" else Fit(image_size, max_size)
