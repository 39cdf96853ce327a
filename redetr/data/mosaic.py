"""Samples made of several images: mosaics of four, and two images mixed."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from redetr.data.transforms import MIN_VISIBLE, Sample, Transform
from redetr.data.views import Random, Size, View
from redetr.structures import Target

_MOSAICS = 0.5  # share of the samples
_MIXED = 0.2
_SPLIT = (0.3, 0.7)  # where a mosaic is divided, as a share of its sides
_WINDOW = (
    0.5,
    1.0,
)  # how much of an image is in a mosaic, as a share of the largest part that has the right shape
_WEIGHT = (0.45, 0.55)  # of the first of two mixed images


def combined(
    random: Random, transform: Transform, view: View, first: Sample, other: Callable[[], Sample]
) -> Sample:
    """The sample of `first` alone, in a mosaic, or mixed with another one; `other` draws images as
    they are stored."""
    luck = random.random()
    if luck < _MOSAICS:
        return mosaic(random, transform, view.size, [first, other(), other(), other()])
    sample = transform.show(random, view, *first)
    if luck < _MOSAICS + _MIXED:
        image, target = other()
        another = replace(transform.view(random, target), size=view.size)
        return mixed(
            random.uniform(*_WEIGHT), sample, transform.show(random, another, image, target)
        )
    return sample


def mosaic(random: Random, transform: Transform, size: Size, sources: list[Sample]) -> Sample:
    """Four images, as stored, side by side in one of this size; each fills its part, parts of it
    may be cut off.

    The result goes by the name of the first source.
    """
    transform = replace(transform, min_visible=MIN_VISIBLE)
    canvas, targets = torch.empty(*size, 3, dtype=torch.uint8).permute(2, 0, 1), []
    order = random.sample(range(4), 4)
    for place, (rows, columns) in zip(order, _quarters(random, size), strict=True):
        image, target = sources[place]
        part = (rows.stop - rows.start, columns.stop - columns.start)
        pixels, seen = transform.show(
            random, _part(random, target["orig_size"], part), image, target
        )
        canvas[:, rows, columns] = pixels
        scale = torch.tensor([part[1] / size[1], part[0] / size[0]]).repeat(2)
        shift = torch.tensor([columns.start / size[1], rows.start / size[0], 0, 0])
        targets.append(seen | {"boxes": seen["boxes"] * scale + shift})
    return canvas, joined(sources[0][1], size, targets)


def _quarters(random: Random, size: Size) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the four parts that meet in a random point."""
    down, across = (max(1, round(side * random.uniform(*_SPLIT))) for side in size)
    for rows in (slice(0, down), slice(down, size[0])):
        for columns in (slice(0, across), slice(across, size[1])):
            yield rows, columns


def _part(random: Random, stored: Size, size: Size) -> View:
    """A random window of the shape of `size`, mirrored or not."""
    scale = min(stored[0] / size[0], stored[1] / size[1]) * random.uniform(*_WINDOW)
    height, width = (max(1, int(side * scale)) for side in size)
    left, top = random.randint(0, stored[1] - width), random.randint(0, stored[0] - height)
    return View((left, top, left + width, top + height), size, random.random() < 0.5)


def mixed(weight: float, first: Sample, second: Sample) -> Sample:
    """Both images, of one size, laid over each other, with the objects of both."""
    (image, target), (other, added) = first, second
    pixels = torch.lerp(other.float(), image.float(), weight).round_().to(torch.uint8)
    return pixels, joined(target, target["size"], [target, added])


def joined(named: Target, size: Size, targets: list[Target]) -> Target:
    """The objects of all targets, under the name of `named`."""
    return Target(
        boxes=torch.cat([target["boxes"] for target in targets]),
        labels=torch.cat([target["labels"] for target in targets]),
        iscrowd=torch.cat([target["iscrowd"] for target in targets]),
        area=torch.cat([target["area"] for target in targets]),
        image_id=named["image_id"],
        orig_size=named["orig_size"],
        size=size,
    )
