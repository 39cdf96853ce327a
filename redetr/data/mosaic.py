"""Samples made of several images: mosaics of four images, and mixes of two."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from redetr.data.transforms import MIN_VISIBLE, Sample, StoredSample, Transform
from redetr.data.views import Random, Size, View
from redetr.structures import RelativeBoxes, Target

_MOSAICS = 0.5  # share of the samples that are mosaics
_MIXED = 0.2  # and of those that are two images mixed
_SPLIT = (0.3, 0.7)  # the range of the division of a mosaic, as a share of its sides
# The size of the part of an image in a mosaic, as a share of the largest part with the right shape.
_WINDOW = (0.5, 1.0)
_WEIGHT = (0.45, 0.55)  # of the first of two mixed images


def combined(
    rng: Random,
    transform: Transform,
    view: View,
    first: StoredSample,
    other: Callable[[], StoredSample],
) -> Sample:
    """A sample of `first` alone, in a mosaic, or mixed with another image.

    `other` draws further images.
    """
    draw = rng.random()
    can_be_divided = min(view.size) > 1
    if draw < _MOSAICS and can_be_divided:
        return mosaic(rng, transform, view.size, [first, other(), other(), other()])
    sample = transform.show(rng, view, *first)
    is_mixed = _MOSAICS <= draw < _MOSAICS + _MIXED
    if not is_mixed:
        return sample
    image, target = other()
    another_view = replace(transform.view(rng, target), size=view.size)
    weight = rng.uniform(*_WEIGHT)
    another = transform.show(rng, another_view, image, target)
    return mixed(weight, sample, another)


def mosaic(rng: Random, transform: Transform, size: Size, sources: list[StoredSample]) -> Sample:
    """A mosaic of four images with this size. Each image fills its part, and may be cropped.

    The result has the id of the first source.
    """
    transform = replace(transform, min_visible=MIN_VISIBLE)
    height, width = size
    channels = len(sources[0][0])
    canvas = torch.empty(height, width, channels, dtype=torch.uint8).permute(2, 0, 1)
    targets = []
    order = rng.sample(range(4), 4)
    for source, (rows, columns) in zip(order, _quarters(rng, size), strict=True):
        image, stored = sources[source]
        part_height = rows.stop - rows.start
        part_width = columns.stop - columns.start
        view = _part(rng, stored["orig_size"], (part_height, part_width))
        pixels, target = transform.show(rng, view, image, stored)
        canvas[:, rows, columns] = pixels
        # Boxes `[T, 4]`, cxcywh, from fractions of the part to fractions of the mosaic.
        scale = torch.tensor([part_width / width, part_height / height]).repeat(2)
        shift = torch.tensor([columns.start / width, rows.start / height, 0, 0])
        target["boxes"] = RelativeBoxes(target["boxes"] * scale + shift)
        if "masks" in target:
            target["masks"] = _in_canvas(target["masks"], size, rows, columns)
        targets.append(target)
    image_id = sources[0][1]["image_id"]
    orig_size = sources[0][1]["orig_size"]
    return canvas, _joined(targets, image_id, orig_size, size)


def _in_canvas(masks: Tensor, size: Size, rows: slice, columns: slice) -> Tensor:
    """Masks `[T, h, w]` of a part of an image as masks of the whole image, `[T, *size]`."""
    whole = torch.zeros(len(masks), *size, dtype=torch.bool)
    whole[:, rows, columns] = masks
    return whole


def _quarters(rng: Random, size: Size) -> Iterator[tuple[slice, slice]]:
    """The rows and columns of four parts that meet in a random point."""
    height, width = size
    down = max(1, round(height * rng.uniform(*_SPLIT)))
    across = max(1, round(width * rng.uniform(*_SPLIT)))
    for rows in (slice(0, down), slice(down, height)):
        for columns in (slice(0, across), slice(across, width)):
            yield rows, columns


def _part(rng: Random, stored: Size, size: Size) -> View:
    """A random window of the shape of `size`, mirrored or not."""
    stored_height, stored_width = stored
    shown_height, shown_width = size
    largest_scale = min(stored_height / shown_height, stored_width / shown_width)
    scale = largest_scale * rng.uniform(*_WINDOW)
    height = max(1, int(shown_height * scale))
    width = max(1, int(shown_width * scale))
    left = rng.randint(0, stored_width - width)
    top = rng.randint(0, stored_height - height)
    region = (left, top, left + width, top + height)
    is_mirrored = rng.random() < 0.5
    return View(region, size, is_mirrored)


def mixed(weight: float, first: Sample, second: Sample) -> Sample:
    """The weighted mean of both images, which have the same size, with the objects of both."""
    image, target = first
    other_image, other_target = second
    blended = torch.lerp(other_image.float(), image.float(), weight)
    pixels = blended.round_().to(torch.uint8)
    targets = [target, other_target]
    return pixels, _joined(targets, target["image_id"], target["orig_size"], target["size"])


def _joined(targets: list[Target], image_id: int, orig_size: Size, size: Size) -> Target:
    """The objects of all targets as those of one image."""
    boxes = torch.cat([target["boxes"] for target in targets])
    joined = Target(
        boxes=RelativeBoxes(boxes),
        labels=torch.cat([target["labels"] for target in targets]),
        iscrowd=torch.cat([target["iscrowd"] for target in targets]),
        area=torch.cat([target["area"] for target in targets]),
        image_id=image_id,
        orig_size=orig_size,
        size=size,
    )
    if any("masks" in target for target in targets):
        joined["masks"] = torch.cat([_masks_of(target, size) for target in targets])
    return joined


def _masks_of(target: Target, size: Size) -> Tensor:
    """The masks of a target, bool `[T, *size]`; empty ones, which mean that they are not known, if
    it has none."""
    if "masks" in target:
        return target["masks"]
    return torch.zeros(len(target["labels"]), *size, dtype=torch.bool)
