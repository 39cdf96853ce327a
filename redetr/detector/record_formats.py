"""The files of detections that are made from predictions.jsonl at the end, and how they are told
from files that others wrote."""

import csv
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from redetr.detector.record_lines import RECORD, Line, images_of, lines_of
from redetr.errors import InputError
from redetr.files import first_bytes, write_whole

PAGE_MARK = "redetr predict"  # distinguishes the page from those of other programs
_NAME_ERRORS = "surrogateescape"  # how Python holds file names that are not UTF-8
_COLUMNS = (
    *("image", "frame", "label", "category_id", "score"),
    *("x1", "y1", "x2", "y2", "picture", "track_id"),
)
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_HEAD_BYTES = 1 << 16  # of a file, which show who wrote it: names of images may be long


def write_formats(folder: Path, formats: Sequence[str]) -> None:
    """Writes predictions.json, predictions.coco.json, predictions.csv, index.html or
    predictions.panoptic.json ("json", "coco", "csv", "html", "panoptic")."""
    for format in formats:
        file_format = _FORMATS[format]
        write_text = partial(_write_text, file_format.write, folder / RECORD)
        write_whole(folder / file_format.name, write_text)


def _write_text(write: Callable[[TextIO, Path], None], record: Path, temporary: Path) -> None:
    # File names need not be UTF-8: their bytes are written unchanged.
    with open(temporary, "w", encoding="utf-8", errors=_NAME_ERRORS, newline="") as text:
        write(text, record)


def written_formats(folder: Path) -> list[str]:
    """The formats of `write_formats` in which an earlier run wrote files."""
    formats = []
    for format, file_format in _FORMATS.items():
        path = folder / file_format.name
        if path.exists() and file_format.wrote(path):
            formats.append(format)
    return formats


def written_files(folder: Path) -> list[Path]:
    """The files of `written_formats`."""
    return [folder / _FORMATS[format].name for format in written_formats(folder)]


def require_no_foreign_files(folder: Path, formats: Sequence[str]) -> None:
    """Raises InputError if writing one of the formats would replace a file that `predict` did not
    write."""
    for format in formats:
        file_format = _FORMATS[format]
        path = folder / file_format.name
        if path.exists() and not file_format.wrote(path):
            kind = "page" if format == "html" else "file"
            raise InputError(
                f"is a {kind} that predict did not write",
                where=path,
                remedy=f"give another --output, or move that {kind} elsewhere",
            )


def _key(line: Line) -> str:
    """The name of an image, or the name and number of a frame."""
    return f"{line['image']}#{line['frame']}" if "frame" in line else line["image"]


def _write_json(text: TextIO, record: Path) -> None:
    separator = "{\n"
    for line in images_of(record):
        entry = {key: value for key, value in line.items() if key != "image"}
        text.write(f"{separator}  {json.dumps(_key(line))}: {json.dumps(entry)}")
        separator = ",\n"
    text.write("\n}\n" if separator != "{\n" else "{}\n")


def _write_coco(text: TextIO, record: Path) -> None:
    """Writes the entries of a COCO results file; each names its image file as well."""
    separator = "[\n"
    for line, image_id in zip(images_of(record), _image_ids(record), strict=True):
        for detection in line["detections"]:
            left, top, right, bottom = detection["box"]
            width = round(right - left, 3)
            height = round(bottom - top, 3)
            entry = {
                "image_id": image_id,
                "category_id": detection["category_id"],
                "bbox": [left, top, width, height],
                "score": detection["score"],
                "file_name": _key(line),
            }
            for key in ("segmentation", "track_id"):
                if key in detection:
                    entry[key] = detection[key]
            text.write(f"{separator}  {json.dumps(entry)}")
            separator = ",\n"
    text.write("\n]\n" if separator != "[\n" else "[]\n")


def _image_ids(record: Path) -> list[int]:
    """The COCO id of each image: the whole number in its name, if all names are distinct numbers,
    as COCO's are. Otherwise, images are counted from 1."""
    stems = [Path(_key(line)).stem for line in images_of(record)]
    if all(stem.isdecimal() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(stems) + 1))


def _write_panoptic(text: TextIO, record: Path) -> None:
    """Writes the segments of all images in COCO's panoptic format, with the categories that occur.
    Frames of videos have no PNG and are left out."""
    images = []
    annotations = []
    categories: dict[int, dict[str, Any]] = {}
    for line, image_id in zip(images_of(record), _image_ids(record), strict=True):
        if "panoptic_picture" not in line:
            continue
        height, width = line["image_size"]
        name = {"file_name": line["image"]}
        images.append({"id": image_id, "width": width, "height": height, **name})
        segments = []
        for id_, detection in enumerate(line["detections"], start=1):
            left, top, right, bottom = detection["box"]
            category_id = detection["category_id"]
            segment = {
                "id": id_,
                "category_id": category_id,
                "isthing": detection["isthing"],
                "area": detection["area"],
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
                "score": detection["score"],
            }
            segments.append(segment)
            categories[category_id] = {
                "id": category_id,
                "name": detection["label"],
                "isthing": detection["isthing"],
            }
        png = line["panoptic_picture"]
        annotations.append({"image_id": image_id, "file_name": png, "segments_info": segments})
    by_id = [categories[category_id] for category_id in sorted(categories)]
    content = {"images": images, "annotations": annotations, "categories": by_id}
    text.write(json.dumps(content))


def _write_csv(text: TextIO, record: Path) -> None:
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for line in images_of(record):
        frame = line.get("frame", "")
        picture = line.get("picture", "")
        for detection in line["detections"]:
            row = [_no_formula(line["image"], "./"), frame]
            row += [_no_formula(detection["label"], "'"), detection["category_id"]]
            row += [detection["score"], *detection["box"], picture, detection.get("track_id")]
            rows.writerow(row)


def _no_formula(cell: str, prefix: str) -> str:
    """A cell that spreadsheets do not compute: `./` before a file name leaves it the same file, and
    `'` is how they mark text."""
    return prefix + cell if cell.startswith(_FORMULA_STARTS) else cell


def _write_html(text: TextIO, record: Path) -> None:
    from redetr.detector.contact_sheet import contact_sheet

    text.write(contact_sheet(lines_of(record)))


class _Format(NamedTuple):
    """A file of detections."""

    name: str
    write: Callable[[TextIO, Path], None]  # from a record
    start: str  # a pattern of how such files begin

    def wrote(self, path: Path) -> bool:
        """Whether `predict` wrote the file at `path`, judging by how it begins."""
        head = first_bytes(path, _HEAD_BYTES)
        return re.match(self.start.encode(), head) is not None


# Other programs write such content on a single line, or an object on several lines.
_JSON_KEYS = "folder|picture|mask_picture|panoptic_picture|frame|image_size"
_JSON_START = rf'\{{\n  "(?:[^"\\]|\\.)*": \{{"(?:{_JSON_KEYS})": |\{{\}}\n\Z'
_COCO_START = r'\[\n  \{"image_id": \d+, "category_id": |\[\]\n\Z'
_PANOPTIC_START = r'\{"images": \[(?:\{"id": \d+, "width": \d+, "height": \d+, "file_name": |\], )'
_CSV_START = ",".join(_COLUMNS[:-1])  # earlier versions had no tracks
_HTML_START = rf"(?s:.{{0,1000}}?){PAGE_MARK}"

_FORMATS = {
    "json": _Format("predictions.json", _write_json, _JSON_START),
    "coco": _Format("predictions.coco.json", _write_coco, _COCO_START),
    "csv": _Format("predictions.csv", _write_csv, _CSV_START),
    "html": _Format("index.html", _write_html, _HTML_START),
    "panoptic": _Format("predictions.panoptic.json", _write_panoptic, _PANOPTIC_START),
}
FILES = frozenset(format.name for format in _FORMATS.values())
