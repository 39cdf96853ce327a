"""Parses COCO's `segmentation`: polygons, or RLE with counts as numbers or text."""

import reprlib
from collections.abc import Sequence
from typing import Any, TypeGuard

import hotcoco.mask
import numpy as np

from redetr.data.formats.outlines import is_number
from redetr.data.mask_columns import LARGEST_SIDE_PX, MOST_PIXELS, MaskProblem

_INVALID = "mask-invalid"
_EXPORT = "export the annotations again, or delete it"
_FIRST_CHARACTER = 48  # of compressed counts: characters hold 6 bits each
_CONTINUED = 0x20  # this bit is set if the number continues
_BITS = 5  # of a number in each character
_LONGEST = 8  # characters of a number: 40 bits


def parse_segmentation(value: Any) -> Sequence[Sequence[float]] | bytes | MaskProblem | None:
    """Polygons unchanged, an RLE compressed, None if there is no mask, or the problem of an invalid
    value."""
    if value is None or value == [] or value == "":
        return None
    if isinstance(value, dict):
        return _parse_rle(value)
    if isinstance(value, list):
        return _parse_polygons(value)
    text = f"its segmentation {reprlib.repr(value)} is neither polygons nor RLE"
    return MaskProblem(_INVALID, text, _EXPORT)


def _parse_polygons(value: list[Any]) -> list[list[float]] | MaskProblem:
    if all(is_number(number) for number in value):
        text = "its segmentation is a list of numbers, not of polygons"
        return MaskProblem(_INVALID, text, "write [[x, y, x, y, ...]]")
    for number, polygon in enumerate(value, start=1):
        reason = _no_polygon(polygon)
        if reason:
            called = "its polygon" if len(value) == 1 else f"polygon {number} of its {len(value)}"
            return MaskProblem(_INVALID, f"{called} {reason}", "correct or delete it")
    return value


def _no_polygon(value: Any) -> str:
    """Why the value is not a polygon; empty if it is one."""
    if not isinstance(value, list):
        return f"is {reprlib.repr(value)}, not [x, y, x, y, ...]"
    if not all(map(is_number, value)):
        strange = [number for number in value if not is_number(number)]
        return f"holds {reprlib.repr(strange[0])}, which is not a finite number"
    if len(value) % 2:
        return f"has {len(value)} numbers, not x and y of each point"
    if len(value) < 6:
        return f"has {len(value) // 2} points, but an area needs three"
    return ""


def _parse_rle(value: dict[str, Any]) -> bytes | MaskProblem:
    size = value.get("size")
    if not _is_size(size):
        text = f"its RLE has the size {reprlib.repr(size)}, not [height, width]"
        return MaskProblem(_INVALID, text, _EXPORT)
    height, width = size
    if height * width > MOST_PIXELS:
        text = f"its RLE is of {width}x{height} px, and masks have at most {MOST_PIXELS:,} px"
        return MaskProblem(_INVALID, text, _EXPORT)
    counts = value.get("counts")
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")
    try:
        numbers = _numbers_of(counts)
    except ValueError as error:
        return MaskProblem(_INVALID, f"its RLE {error}", _EXPORT)
    if (numbers < 0).any():
        return MaskProblem(_INVALID, f"its RLE has a count of {numbers.min()} pixels", _EXPORT)
    total = int(numbers.sum())
    if total != height * width:
        text = f"the counts of its RLE add up to {total} pixels, not to those of {width}x{height}"
        return MaskProblem(_INVALID, text, _EXPORT)
    if isinstance(counts, bytes):
        return counts
    rle = {"size": [height, width], "counts": numbers.tolist()}
    return hotcoco.mask.frPyObjects(rle, height, width)["counts"]


def _is_size(value: Any) -> TypeGuard[list[int]]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(type(side) is int and 0 < side <= LARGEST_SIDE_PX for side in value)


def _numbers_of(counts: Any) -> np.ndarray:
    """The numbers of an RLE, int64 `[N]`. Raises ValueError, with the reason, if they are not
    valid."""
    if isinstance(counts, list):
        for number in counts:
            if type(number) is not int or abs(number) >= 2**40:
                raise ValueError(f"holds {reprlib.repr(number)}, which is not a count")
        return np.array(counts, np.int64)
    if not isinstance(counts, bytes):
        raise ValueError(f"has the counts {reprlib.repr(counts)}, neither numbers nor text")
    return decompressed(counts)


def decompressed(text: bytes) -> np.ndarray:
    """The numbers in compressed counts, int64 `[N]`. Raises ValueError, with the reason, if they
    are not valid.

    Source: pycocotools. A number is a sequence of groups of 5 bits, lowest first, of which the last
    has the sign. From the fourth number on, each is stored as the difference to the number two
    places before it.
    """
    characters = np.frombuffer(text, np.uint8).astype(np.int64)
    values = characters - _FIRST_CHARACTER
    is_invalid = (values < 0) | (values > 63)
    if is_invalid.any():
        raise ValueError(f"has {reprlib.repr(text)} as counts, which are not compressed counts")
    if not len(values):
        return np.zeros(0, np.int64)
    is_continued = (values & _CONTINUED) > 0
    if is_continued[-1]:
        raise ValueError("has counts that are cut off")
    ends = np.flatnonzero(~is_continued)  # the last character of each number
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        raise ValueError("has a count of more than 40 bits")
    position = np.arange(len(values)) - np.repeat(starts, lengths)  # in its number
    bits = (values & (_CONTINUED - 1)) << (_BITS * position)
    numbers = np.add.reduceat(bits, starts)
    is_negative = (values[ends] & 0x10) > 0
    limits = 1 << (_BITS * lengths)
    numbers = np.where(is_negative, numbers - limits, numbers)
    # The first three numbers are stored directly; pycocotools adds differences from the fourth on.
    for start in (1, 2):
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers
