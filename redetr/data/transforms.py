"""From a sample in pixels to what the model sees: augmentation on torchvision's `transforms.v2`, then resizing.

All random draws come from torch's generator, which `augment` seeds from (seed, epoch, image id): a draw does not
depend on the rank, the worker or the order of loading.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from redetr.boxes import box_area, box_xyxy_to_cxcywh
from redetr.structures import Target

AUGMENTS = ("plain", "detr", "photo", "aerial")
Augment = Literal["plain", "detr", "photo", "aerial"]
Resize = Literal["aspect", "square"]

# ImageNet's statistics: what every pretrained backbone expects.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_MIN_VISIBLE = 0.4  # a box of which less remains after a native crop is not an object any more


def normalize(images: Tensor) -> Tensor:
    """Float images for the model from uint8 `[..., 3, H, W]`, on whatever device they are."""
    mean = torch.tensor(_MEAN, device=images.device).mul(255)[:, None, None]
    std = torch.tensor(_STD, device=images.device).mul(255)[:, None, None]
    return (images - mean) / std


class RandomSizeCrop(v2.Transform):
    """A crop whose sides are drawn between `min_px` and `max_px`, cut to the image (the original DETR's)."""

    def __init__(self, min_px: int, max_px: int):
        super().__init__()
        self.min_px, self.max_px = min_px, max_px

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        return _random_window(height, width, *(self._side(side) for side in (height, width)))

    def _side(self, side: int) -> int:
        low, high = min(self.min_px, side), min(self.max_px, side)
        return int(torch.randint(low, high + 1, ()))

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


class RandomNativeCrop(v2.Transform):
    """A square of `size` px at a zoom drawn from `zoom`: for imagery of fixed scale, such as aerial photographs.

    With probability `object_share` the window holds the centre of an object, if there is one.
    """

    def __init__(self, size: int, zoom: tuple[float, float], object_share: float = 0.7):
        super().__init__()
        self.size, self.zoom, self.object_share = size, zoom, object_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        zoom = float(torch.empty(()).uniform_(*self.zoom))
        side = min(round(self.size / zoom), height, width)
        window = _random_window(height, width, side, side)
        boxes = next(part for part in flat_inputs if isinstance(part, tv_tensors.BoundingBoxes))
        if len(boxes) and float(torch.rand(())) < self.object_share:
            left, top, right, bottom = boxes[int(torch.randint(len(boxes), ()))].tolist()
            window["left"] = _holding((left + right) / 2, side, width)
            window["top"] = _holding((top + bottom) / 2, side, height)
        return window

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resized_crop, inpt, **params, size=[self.size, self.size], antialias=True)


def _holding(place: float, side: int, length: int) -> int:
    """A random start in [0, length - side] of a stretch of `side` px that holds `place`."""
    low, high = max(0, math.ceil(place) - side), min(int(place), length - side)
    return int(torch.randint(min(low, high), high + 1, ()))


class RandomQuarterTurn(v2.Transform):
    """A rotation by 0, 90, 180 or 270 degrees."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"turns": int(torch.randint(4, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if params["turns"] == 0:
            return inpt
        return self._call_kernel(F.rotate, inpt, angle=90.0 * params["turns"], expand=True)


def _random_window(height: int, width: int, crop_height: int, crop_width: int) -> dict[str, int]:
    top = int(torch.randint(height - crop_height + 1, ()))
    left = int(torch.randint(width - crop_width + 1, ()))
    return {"top": top, "left": left, "height": crop_height, "width": crop_width}


def resizer(resize: Resize, image_size: int, max_size: int | None) -> v2.Transform:
    """What evaluation does: "aspect" takes the shorter side to `image_size`, the longer to at most `max_size`;
    "square" stretches to `image_size` x `image_size`."""
    if resize == "square":
        return v2.Resize([image_size, image_size], antialias=True)
    return v2.Resize(image_size, max_size=max_size, antialias=True)


def augmentation(augment: Augment, resize: Resize, image_size: int, max_size: int | None) -> v2.Transform:
    """What training does. "plain": resize only. "detr": the original's flip, multi-scale resize and crop. "photo":
    colour, zoom-out, flip. "aerial": crops at native scale, quarter turns, flips, colour."""
    final = resizer(resize, image_size, max_size)
    if augment == "plain":
        return final
    if augment == "photo":
        return v2.Compose([
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05),
            v2.RandomApply([v2.RandomZoomOut(fill=127, side_range=(1.0, 2.0), p=1.0)], p=0.3),
            v2.RandomHorizontalFlip(),
            final,
        ])  # fmt: skip
    if augment == "aerial":
        return v2.Compose([
            RandomNativeCrop(image_size, zoom=(0.7, 1.4)),
            RandomQuarterTurn(),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.2),
            final,
        ])  # fmt: skip
    scales = [round(image_size * k / 800) for k in range(480, 801, 32)]
    crop = (round(image_size * 384 / 800), round(image_size * 600 / 800))
    multi_scale = v2.RandomShortestSize(scales, max_size=max_size, antialias=True)
    before_crop = v2.RandomShortestSize([round(image_size * k / 800) for k in (400, 500, 600)], antialias=True)
    cropped = v2.Compose([before_crop, RandomSizeCrop(*crop), multi_scale])
    parts = [v2.RandomHorizontalFlip(), v2.RandomChoice([multi_scale, cropped])]
    if resize == "square":
        parts.append(final)
    return v2.Compose(parts)


def drawn_from(*key: int) -> int:
    """A seed that is a function of the whole numbers in `key`, such as (seed, epoch, image id)."""
    return int(np.random.SeedSequence([abs(k) for k in key]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def apply(transform: Callable, image: Tensor, target: Target, seed: int = 0) -> tuple[Tensor, Target]:
    """`transform` on a uint8 `image` `[3, H, W]` and its `target` (xyxy pixels), with draws from `seed`.

    Returns the image and a target whose boxes are cxcywh as fractions of it. Crowds are dropped, and so are boxes of
    which less than a pixel, or less than 40% of their area, is left.
    """
    height, width = image.shape[-2:]
    keep = ~target["iscrowd"]
    boxes = tv_tensors.BoundingBoxes(
        target["boxes"][keep], format="XYXY", canvas_size=(height, width), clamping_mode=None
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        image, boxes = transform(tv_tensors.Image(image), boxes)
    height, width = image.shape[-2:]
    whole = boxes.as_subclass(Tensor)
    visible = whole.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    sides = visible[:, 2:] - visible[:, :2]
    kept = (sides >= 1).all(1) & (box_area(visible) >= _MIN_VISIBLE * box_area(whole))
    fractions = box_xyxy_to_cxcywh(visible[kept]) / torch.tensor([width, height, width, height])
    seen = Target(
        boxes=fractions.float(),
        labels=target["labels"][keep][kept],
        iscrowd=torch.zeros(int(kept.sum()), dtype=torch.bool),
        area=target["area"][keep][kept],
        image_id=target["image_id"],
        orig_size=target["orig_size"],
        size=(height, width),
    )
    return image.as_subclass(Tensor), seen
