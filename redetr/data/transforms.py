"""Transforms a stored sample to the model's input: a view of the image, its colours, and the
visible objects.

All random numbers come from a generator for (seed, epoch, image), so a sample does not depend on
the rank, the worker or the order of loading. Images stay uint8 on the host; `normalize` converts
them to floats on the device.
"""

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from redetr.choices import Augment, ImageSize
from redetr.data.pixels import BRIGHTNESS
from redetr.data.views import (
    Fit,
    MultiScale,
    NativeCrop,
    Random,
    Scaling,
    Stretch,
    View,
    Whole,
    Zoomed,
)
from redetr.masks import decode
from redetr.structures import RelativeBoxes, StoredTarget, Target

Resize = Literal["aspect", "square"]
# uint8 [C, H, W] as stored, or decoded smaller (`Transform.least_decoded`), and its objects
StoredSample = tuple[Tensor, StoredTarget]
Sample = tuple[Tensor, Target]  # uint8 [C, h, w] as the model sees it

# ImageNet's statistics: what every pretrained backbone expects.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MIN_VISIBLE = 0.4  # a box with a smaller visible share is dropped


def normalize(images: Tensor) -> Tensor:
    """Float images for the model from uint8 `[..., C, H, W]`, on the same device: each channel less
    its mean and divided by its deviation, see `statistics`."""
    mean, std = _statistics(images.device, images.shape[-3])
    return (images - mean) / std


def statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for images from 0 to 1: those of ImageNet, or
    for channels other than red, green and blue, the mean of ImageNet's three."""
    if channels == len(MEAN):
        return MEAN, STD
    means = MEAN if channels > len(MEAN) else ()
    deviations = STD if channels > len(STD) else ()
    num_others = channels - len(means)
    mean_of_others = sum(MEAN) / len(MEAN)
    deviation_of_others = sum(STD) / len(STD)
    return (
        (*means, *[mean_of_others] * num_others),
        (*deviations, *[deviation_of_others] * num_others),
    )


@lru_cache
def _statistics(device: torch.device, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[C, 1, 1]` of bytes.

    Cached, because each copy to a GPU would wait for all of its pending work.
    """
    means, deviations = statistics(channels)
    with torch.inference_mode(False):  # what is cached there could not be used where gradients are
        mean = torch.tensor(means).mul(255)[:, None, None]
        std = torch.tensor(deviations).mul(255)[:, None, None]
        return mean.to(device), std.to(device)


def derived_seed(*key: int) -> int:
    """A seed that is a function of the whole numbers in `key`, such as (seed, epoch, image)."""
    sequence = np.random.SeedSequence([abs(number) for number in key])
    state = sequence.generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


def derived_rng(*key: int) -> Random:
    """A generator that is a function of the whole numbers in `key`."""
    return random.Random(derived_seed(*key))


@dataclass(frozen=True)
class Jitter:
    """The ranges of changes of colours.

    Brightness, contrast and saturation are shares, and hue is a share of a full turn.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float = 0.0

    def __call__(self, rng: Random, image: Tensor) -> Tensor:
        """The uint8 image `[3, H, W]` with changed colours. In an image with other channels, only
        brightness and contrast change, equally for all channels.

        All four changes are linear in the colours (hue as a turn around the grey axis), so they are
        one matrix for all pixels, rounded and clipped once: 7 ms for 640x640, where one after the
        other takes 140.
        """
        sampled = image[:, ::4, ::4]  # enough pixels for the mean
        if len(image) != len(MEAN):
            # The last bits of a sum of floats depend on the number of threads, which is another in
            # loader processes; a sum of integers is exact.
            total = int(sampled.sum(dtype=torch.int64))
            return self._without_colour(rng, image, total / sampled.numel())
        mean = sampled.float().mean((1, 2)).double().numpy()
        matrix = self.matrix(rng, mean).ravel().tolist()
        pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
        changed = pixels.convert("RGB", tuple(matrix))
        return torch.from_numpy(np.array(changed)).permute(2, 0, 1)

    def _without_colour(self, rng: Random, image: Tensor, mean: float) -> Tensor:
        """The uint8 image with changed brightness and contrast; `mean` is that of all its bytes."""
        brightness = _factor(rng, self.brightness)
        contrast = _factor(rng, self.contrast)
        scale = brightness * contrast
        shift = brightness * (1 - contrast) * mean  # contrast is about the mean brightness
        changed = image.float() * scale + shift
        return changed.round_().clamp_(0, 255).to(torch.uint8)

    def matrix(self, rng: Random, mean: np.ndarray) -> np.ndarray:
        """The map from (red, green, blue, 1) to the new colours, `[3, 4]`.

        `mean` is the mean colour of the image.
        """
        brightness = _factor(rng, self.brightness)
        contrast = _factor(rng, self.contrast)
        saturation = _factor(rng, self.saturation)
        turn = _hue_turn(rng.uniform(-self.hue, self.hue))
        to_grey = np.tile(BRIGHTNESS, (3, 1))  # [3, 3], makes all three colours the brightness
        saturated = saturation * np.eye(3) + (1 - saturation) * to_grey
        colours = turn @ saturated * brightness * contrast  # [3, 3]
        mean_brightness = BRIGHTNESS @ mean
        shift = brightness * (1 - contrast) * mean_brightness  # contrast is about it
        return np.column_stack([colours, np.full(3, shift)])


def _factor(rng: Random, deviation: float) -> float:
    return rng.uniform(max(0.0, 1 - deviation), 1 + deviation)


def _hue_turn(share: float) -> np.ndarray:
    """A turn of colours around the grey axis, `[3, 3]`, in the plane of NTSC's I and Q.

    It keeps their brightness.
    """
    to_yiq = np.array([BRIGHTNESS, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    angle = 2 * np.pi * share
    cos = np.cos(angle)
    sin = np.sin(angle)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return np.linalg.inv(to_yiq) @ turn @ to_yiq


@dataclass(frozen=True)
class Transform:
    """Transforms stored samples to those that the model sees.

    `draw` maps (rng, height, width, boxes `[T, 4]`), all in stored px, to a `View`.
    `min_visible` is the share of a box that must be visible for it to be kept. `least_decoded` maps
    the stored size to the smallest size at which the image may be decoded; None: always at full
    size.
    """

    draw: Whole | MultiScale | Zoomed | NativeCrop
    jitter: Jitter | None = None
    min_visible: float = MIN_VISIBLE
    least_decoded: Scaling | None = None

    def __call__(self, image: Tensor) -> Tensor:
        """The whole image `[C, H, W]`, uint8, at the size that the model sees, `[C, h, w]`; without
        augmentation."""
        height, width = image.shape[-2:]
        whole = View((0, 0, width, height), self.draw.final(height, width))
        return whole.pixels(image, (height, width))

    def view(self, rng: Random, target: StoredTarget) -> View:
        """The view of an image with this target."""
        height, width = target["orig_size"]
        is_object = ~target["iscrowd"].numpy()
        boxes = target["boxes"].numpy()[is_object]
        return self.draw(rng, height, width, boxes)

    def show(self, rng: Random, view: View, image: Tensor, target: StoredTarget) -> Sample:
        """The sample for this view of a stored image."""
        pixels = view.pixels(image, target["orig_size"])
        if self.jitter:
            pixels = self.jitter(rng, pixels)
        return pixels, seen(view, target, self.min_visible)


def seen(view: View, target: StoredTarget, min_visible: float) -> Target:
    """The target of a view of an image.

    Crowds are dropped, and so are boxes of which less than a pixel, or less than `min_visible` of
    their area, is visible, and objects with a mask of which nothing is visible. An object whose
    mask is not known, which is stored as an empty one, is kept by its box.
    """
    whole = view.boxes(target["boxes"].numpy())  # [T, 4] xyxy, px of the view
    height, width = view.size
    sides = np.array([width, height], np.float32)
    whole_corners = whole.reshape(-1, 2, 2)  # top left and bottom right, each x and y
    corners = whole_corners.clip(0, sides)  # [T, 2, 2], of the visible parts
    extent = corners[:, 1] - corners[:, 0]  # [T, 2] width and height
    visible_area = extent.prod(1)  # [T]
    whole_area = (whole[:, 2:] - whole[:, :2]).prod(1)

    is_object = ~target["iscrowd"].numpy()
    is_visible = (extent >= 1).all(1) & (visible_area >= min_visible * whole_area)
    kept = is_object & is_visible
    masks = _visible_masks(view, target, kept)  # [T, *size]
    centers = corners.mean(1)  # [T, 2]
    cxcywh = np.concatenate([centers, extent], axis=1)[kept]  # px of the view
    boxes = cxcywh / np.tile(sides, 2)  # fractions of the view
    result = Target(
        boxes=RelativeBoxes(torch.from_numpy(boxes)),
        labels=torch.from_numpy(target["labels"].numpy()[kept]),
        iscrowd=torch.from_numpy(np.zeros(len(boxes), bool)),
        area=torch.from_numpy(target["area"].numpy()[kept]),
        image_id=target["image_id"],
        orig_size=target["orig_size"],
        size=view.size,
    )
    if masks is not None:
        result["masks"] = masks
    return result


def _visible_masks(view: View, target: StoredTarget, kept: np.ndarray) -> Tensor | None:
    """The visible parts of the masks of objects that are `kept`, bool `[T]`, as bool
    `[kept, *size]`; None if the target has no masks. Objects of whose masks no pixel is visible are
    removed from `kept`; those with empty masks stay."""
    if "masks" not in target and "mask_counts" not in target:
        return None
    rows = np.flatnonzero(kept)
    masks = torch.zeros(len(rows), *view.size, dtype=torch.bool)
    is_unknown = torch.zeros(len(rows), dtype=torch.bool)
    for number, row in enumerate(rows.tolist()):
        if "masks" in target:
            stored = target["masks"][row]
        else:
            stored = decode([target["mask_counts"][row]], target["orig_size"])[0]
        view.show_mask(stored.numpy(), masks[number].numpy())
        is_unknown[number] = not stored.any()
    is_kept = masks.flatten(1).any(1) | is_unknown
    kept[rows] = is_kept.numpy()
    return masks[is_kept]


class Resizing(Protocol):
    """The settings with which a model resizes images, see `DetectionModel`."""

    @property
    def resize(self) -> Resize: ...
    @property
    def max_size(self) -> int | None: ...


def final_size(model: Resizing, image_size: ImageSize) -> Scaling:
    """The size at which a model sees images.

    "aspect" resizes the shorter side to `image_size`, and the longer one to at most `max_size`.
    "square" stretches to `image_size` x `image_size`, or to a height and a width. Raises ValueError
    if two sides are given for a model that keeps the aspect ratio.
    """
    if model.resize == "square":
        return Stretch(image_size) if isinstance(image_size, int) else Stretch(*image_size)
    if not isinstance(image_size, int):
        raise ValueError(f"a model that keeps the aspect ratio cannot take {image_size}")
    return Fit(image_size, model.max_size)


def resizer(final: Scaling) -> Transform:
    """The transform of evaluation: the whole image at its final size."""
    return Transform(Whole(final))


def augmentation(augment: Augment, final: Scaling) -> Transform:
    """The transform of training.

    "plain": resize only. "detr": the original's flip, multi-scale resize and crop. "photo": colour,
    zoom-out, flip. "strong": the same, further out, and crops around objects. "aerial": crops at
    native scale, quarter turns, flips, colour.
    """
    shorter = min(final.size) if isinstance(final, Stretch) else final.shorter
    colour = Jitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05)
    if augment == "plain":
        return Transform(Whole(final), least_decoded=final)
    if augment == "photo":
        return Transform(Zoomed(final, out=0.3, largest=2), colour, least_decoded=final)
    if augment == "strong":
        zoomed = Zoomed(final, out=0.5, largest=4, into=0.8)
        return Transform(zoomed, colour, least_decoded=final.closer(1 / 0.3))
    if augment == "aerial":
        less_colour = Jitter(brightness=0.3, contrast=0.3, saturation=0.2)
        shape = final if isinstance(final, Stretch) else Stretch(shorter)
        return Transform(NativeCrop(shape), less_colour)

    def scaled(px: int) -> int:
        """A length that the original states for images of 800 px, at this size."""
        return round(shorter * px / 800)

    scales = tuple(scaled(px) for px in range(480, 801, 32))
    crop_from = tuple(scaled(px) for px in (400, 500, 600))
    draw = MultiScale(final, scales, crop_from, crop=(scaled(384), scaled(600)))
    # The original keeps all boxes with a visible part.
    return Transform(draw, min_visible=0.0, least_decoded=final.closer(600 / 384))
