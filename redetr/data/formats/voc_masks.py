"""Reads masks of Pascal VOC from the folder `SegmentationObject/`, which is next to `Annotations/`.

In the PNG file of an image, 0 is background, 255 is void, and i is the i-th object of the XML file.
CVAT and Datumaro write the colours of the devkit's palette instead of these numbers.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redetr.data.faults import Fault, Rows
from redetr.data.images import open_image
from redetr.data.mask_columns import MaskBuilder, MaskProblem
from redetr.data.segment_images import encode_numbers, object_numbers
from redetr.errors import InputError
from redetr.launch import rank_cores

_FOLDER = "SegmentationObject"
_VOID = 255  # edges of objects, and pixels without annotation
_EDGE_PX = 5  # width of the void edge around an object, which its box includes
_EXPORT = "export the masks again"


def voc_mask_folder(annotations: Path) -> Path | None:
    """The folder of masks that belongs to a folder of XML files; None if there is none."""
    folder = annotations.parent / _FOLDER
    if annotations.name == "Annotations" and folder.is_dir():
        return folder
    return None


def add_voc_masks(
    annotations: Path,
    stems: Sequence[str],
    counts: Sequence[int],
    sizes: NDArray[np.int64],
    builder: MaskBuilder,
    faults: list[Fault],
) -> NDArray[np.float64]:
    """Adds the masks of all A objects to the builder, and the faults of their files to `faults`.

    Returns the boxes around the masks, xyxy `[A, 4]` in pixels; NaN for objects without a mask.
    `stems` are the paths of the N XML files without suffix, `counts` their numbers of objects, and
    `sizes` `[N, 2]` the height and width of the images. Decodes all files.
    """
    folder = voc_mask_folder(annotations)
    if folder is None:
        scenes = [_Scene([None] * count) for count in counts]
    else:
        with ThreadPoolExecutor(rank_cores()) as pool:
            read = partial(_read_scene, folder)
            scenes = list(pool.map(read, stems, counts, sizes.tolist()))
    boxes = np.full((sum(counts), 4), np.nan)
    row = 0
    for scene in scenes:
        for mask, box in zip_longest(scene.masks, scene.boxes):
            builder.add(mask)
            if box is not None:
                boxes[row] = box
            row += 1

    def locate(i: int) -> tuple[Path, str]:
        return annotations.parent / _FOLDER / f"{stems[i]}.png", ""

    rows = Rows(len(stems), faults, locate)
    rows.fault(
        "segment-unlisted",
        [scene.unlisted > 0 for scene in scenes],
        lambda i: f"{scenes[i].unlisted} has pixels, but the XML file has {counts[i]} objects",
        _EXPORT,
        builder.severity,
    )
    return boxes


@dataclass
class _Scene:
    """The content of a PNG file."""

    masks: list[bytes | MaskProblem | None]  # one for each object of the XML file
    # xyxy px around each mask with its void edge; NaN for an empty mask; an empty list without
    # masks
    boxes: list[list[float]] = field(default_factory=list)
    unlisted: int = 0  # the smallest number that is not an object of the XML file


def _read_scene(folder: Path, stem: str, count: int, size: Sequence[int]) -> _Scene:
    """The masks of the `count` objects in an image of `size` (height, width); all None if there is
    no file."""
    file = folder / f"{stem}.png"
    if not os.path.lexists(file):
        return _Scene([None] * count)
    try:
        with open_image(file) as image:
            numbers = object_numbers(image)
            if image.mode in ("RGB", "RGBA"):
                numbers = _indices_of_colours(numbers)
    except InputError as error:
        problem = MaskProblem("mask-invalid", f"its mask {file}: {error.text}", _EXPORT)
        return _Scene([problem] * count)
    mask_height, mask_width = numbers.shape
    height, width = size
    if (mask_height, mask_width) != (height, width):
        text = f"its mask in {file} is {mask_width}x{mask_height} px, its image {width}x{height} px"
        problem = MaskProblem("mask-size", text, _EXPORT)
        return _Scene([problem] * count)
    is_void = numbers == _VOID
    edge = _EDGE_PX if is_void.any() else 0
    masks = encode_numbers(numbers, range(1, count + 1))
    scene = _Scene([*masks], _boxes_in(numbers, count, edge))
    unlisted = numbers[(numbers > count) & ~is_void]
    if unlisted.size:
        scene.unlisted = int(unlisted.min())
    return scene


def _boxes_in(numbers: NDArray[np.int64], count: int, edge: int) -> list[list[float]]:
    """The xyxy around the pixels of each number from 1 to `count`, widened by `edge` px; NaN for
    numbers without pixels."""
    from scipy import ndimage  # slow to import, and not needed for boxes alone

    if not count:
        return []  # `find_objects` would return all numbers
    boxes = []
    for location in ndimage.find_objects(numbers, count):
        if location is None:
            boxes.append([math.nan] * 4)
            continue
        rows, columns = location
        box = [columns.start - edge, rows.start - edge, columns.stop + edge, rows.stop + edge]
        boxes.append(box)
    return boxes


def _indices_of_colours(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices in the devkit's palette for colours, `[H, W]`, which are given as red + 256 green
    + 65536 blue. If some are not in the palette, the numbers are returned unchanged.

    The bits of an index are assigned to red, green and blue in turn, beginning with the highest bit
    of each colour.
    """
    indices = np.zeros_like(numbers)
    for channel in range(3):
        values = numbers >> (8 * channel)
        for bit in range(8):
            is_set = (values >> (7 - bit)) & 1
            indices |= is_set << (3 * bit + channel)
    return indices if indices.max() <= _VOID else numbers
