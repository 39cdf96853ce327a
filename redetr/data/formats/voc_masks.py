"""Masks of Pascal VOC: `SegmentationObject/` beside `Annotations/`, in which the pixels of the i-th
object of an XML file have the number i, 0 is background, and 255 is void.
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
import torch
from numpy.typing import NDArray

from redetr.data.annotations import Fault, Rows
from redetr.data.images import open_image
from redetr.data.mask_columns import MaskBuilder, MaskProblem
from redetr.data.segment_images import object_numbers
from redetr.distributed import rank_cores
from redetr.errors import InputError
from redetr.masks import boxes_of_masks, encode

_FOLDER = "SegmentationObject"
_VOID = 255  # edges of objects, and what nobody has drawn
_EDGE_PX = 5  # of void around an object, which its box includes
_EXPORT = "export the masks again"


def voc_mask_folder(annotations: Path) -> Path | None:
    """The folder of masks that belongs to one of XML files, None if there is none."""
    folder = annotations.parent / _FOLDER
    return folder if annotations.name == "Annotations" and folder.is_dir() else None


def add_voc_masks(
    annotations: Path,
    stems: Sequence[str],
    counts: Sequence[int],
    sizes: NDArray[np.int64],
    builder: MaskBuilder,
    faults: list[Fault],
) -> NDArray[np.float64]:
    """Adds the masks of all objects to the builder, and what is wrong with their files to the
    faults; returns the boxes around them, xyxy `[A, 4]` in pixels, NaN without a mask. Decodes all
    files.

    `stems` are the paths of the XML files without ending, `counts` how many objects each has, and
    `sizes` `[N, 2]` the height and width of their images.
    """
    folder = voc_mask_folder(annotations)
    if folder is None:
        scenes = [_Scene([None] * count) for count in counts]
    else:
        with ThreadPoolExecutor(rank_cores()) as pool:
            scenes = list(pool.map(partial(_read, folder), stems, counts, sizes.tolist()))
    boxes = np.full((sum(counts), 4), np.nan)
    row = 0
    for scene in scenes:
        for mask, box in zip_longest(scene.masks, scene.boxes):
            builder.add(mask)
            if box is not None:
                boxes[row] = box
            row += 1
    rows = Rows(
        len(stems), faults, lambda i: (annotations.parent / _FOLDER / f"{stems[i]}.png", "")
    )
    rows.fault(
        "segment-unlisted",
        [scene.unlisted > 0 for scene in scenes],
        lambda i: f"{scenes[i].unlisted} has pixels, and the XML file has {counts[i]} objects",
        _EXPORT,
        builder.severity,
    )
    return boxes


@dataclass
class _Scene:
    """What a file of masks shows."""

    masks: list[bytes | MaskProblem | None]  # of each object of the XML file
    # xyxy px, around the masks and their void edges; NaN around an empty one
    boxes: list[list[float]] = field(default_factory=list)
    unlisted: int = 0  # the first number that no object has


def _read(folder: Path, stem: str, count: int, size: Sequence[int]) -> _Scene:
    """The masks of the objects of an image of (H, W); none without a file."""
    file = folder / f"{stem}.png"
    if not os.path.lexists(file):
        return _Scene([None] * count)
    try:
        with open_image(file) as image:
            numbers = object_numbers(image)
    except InputError as error:
        problem = MaskProblem("mask-invalid", f"its mask {file}: {error.text}", _EXPORT)
        return _Scene([problem] * count)
    height, width = numbers.shape
    if [height, width] != list(size):
        text = f"its mask in {file} is {width}x{height} px, its image {size[1]}x{size[0]} px"
        return _Scene([MaskProblem("mask-size", text, _EXPORT)] * count)
    masks = torch.from_numpy(numbers == np.arange(1, count + 1)[:, None, None])  # [n, H, W]
    boxes = boxes_of_masks(masks)
    if (numbers == _VOID).any():
        boxes += torch.tensor([-_EDGE_PX, -_EDGE_PX, _EDGE_PX, _EDGE_PX])
    boxes[~masks.flatten(1).any(1)] = math.nan
    scene = _Scene([*encode(masks)], boxes.tolist())
    further = numbers[(numbers > count) & (numbers != _VOID)]
    if further.size:
        scene.unlisted = int(further.min())
    return scene
