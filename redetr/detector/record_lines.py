"""What a line of predictions.jsonl holds: see `redetr.detector.records`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redetr.files import json_lines

RECORD = "predictions.jsonl"

Line = dict[str, Any]

_NAMES = ("folder", "picture", "mask_picture", "panoptic_picture")
_COORDINATES = 4  # of a box


def lines_of(file: Path) -> Iterator[Line]:
    """The lines of a file. What a killed process has cut off is skipped."""
    return filter(has_key, json_lines(file))


def images_of(record: Path) -> Iterator[Line]:
    """The lines of images and frames, without those of errors and ends of videos."""
    return (line for line in lines_of(record) if "detections" in line)


def has_key(entry: Line) -> bool:
    """Whether the image and frame of an entry are of the types by which lines are told apart."""
    is_named = isinstance(entry.get("image"), str)
    return is_named and isinstance(entry.get("frame", 0), int)


def is_line(entry: Line) -> bool:
    """Whether `predict` may have written an entry: all that is read of it is there."""
    are_names = all(isinstance(entry.get(key, ""), str) for key in _NAMES)
    if not has_key(entry) or not are_names:
        return False
    if "detections" not in entry:
        return isinstance(entry.get("error"), str) or isinstance(entry.get("frames"), int)
    detections = entry["detections"]
    is_list = isinstance(detections, list)
    return "image_size" in entry and is_list and all(map(_is_detection, detections))


def _is_detection(entry: Any) -> bool:
    if not isinstance(entry, dict) or "category_id" not in entry:
        return False
    box = entry.get("box")
    if not isinstance(box, list) or len(box) != _COORDINATES:
        return False
    numbers = [*box, entry.get("score")]
    are_numbers = all(isinstance(number, int | float) for number in numbers)
    return are_numbers and isinstance(entry.get("label"), str)
