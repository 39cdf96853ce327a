"""What was found in many images: predictions.jsonl, written as it goes, and the other forms, made
of it at the end.

A line is an image, or a frame of a video: `image` (its name), `picture` (the name of the annotated
one, or video, if there is one), `image_size`, `detections`, of a frame also `frame` and `time_s`. A
video ends with a line of its `frames`, and what cannot be read has an `error` instead. Nothing here
holds more than the names of all images and pictures in memory.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import merge
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from redetr.errors import InputError
from redetr.files import remove_unfinished, write_whole

RECORD = "predictions.jsonl"
_PICTURES = (".png", ".jpg", ".mp4")

Line = dict[str, Any]


class Record:
    """The lines of one process. Of several processes, each writes a file of its own until
    `join`."""

    def __init__(self, folder: Path, rank: int = 0, world_size: int = 1):
        path = folder / (RECORD if world_size == 1 else f"predictions.part-{rank}.jsonl")
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def add(self, line: Line) -> None:
        """Appends a line; once this returns, a killed process does not lose it."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def require_no_predictions(folder: Path) -> None:
    """Raises InputError if the folder holds what an earlier run wrote."""
    if _files(folder) or _forms(folder):
        raise InputError(
            f"{folder}: holds predictions already: give another --output, --resume to go on with "
            "them, "
            "or --overwrite to delete them"
        )


def begin(folder: Path, resume: bool) -> None:
    """Makes the folder ready: with `resume`, all whole lines of an earlier run are brought into one
    file, without errors and videos that were not looked at to their end; otherwise all that it
    wrote is deleted, the pictures that its lines name included."""
    files = _files(folder)
    if not resume:
        for picture in (line.get("picture") for file in files for line in _lines(file)):
            # A record from elsewhere may name anything: only a picture in this very folder is
            # deleted.
            if (
                isinstance(picture, str)
                and Path(picture).name == picture
                and picture.endswith(_PICTURES)
            ):
                (folder / picture).unlink(missing_ok=True)
        files += _forms(folder)
    if resume and files:
        whole = finished(folder)
        lines = (
            line for line in _distinct(files) if line["image"] in whole and "error" not in line
        )
        _write(folder / RECORD, lines)
        files = files[1:] if files[0].name == RECORD else files
    for file in files:
        file.unlink()
    remove_unfinished(folder)


def finished(folder: Path) -> dict[str, str | None]:
    """All images and videos that were looked at to their end, by name, and the name of the picture
    of each."""
    return {
        line["image"]: line.get("picture")
        for line in _distinct(_files(folder))
        if "frames" in line or ("detections" in line and "frame" not in line)
    }


def join(folder: Path, order: Sequence[str]) -> None:
    """One file out of those of all processes, which each have followed the `order` of names."""
    place = {name: number for number, name in enumerate(order)}
    parts = [file for file in _files(folder) if file.name != RECORD]
    if parts:
        earlier = list(set(_files(folder)) - set(parts))
        added = merge(*(_lines(part) for part in parts), key=lambda line: place[line["image"]])
        _write(folder / RECORD, (line for some in (_distinct(earlier), added) for line in some))
        for part in parts:
            part.unlink()


class Summary(NamedTuple):
    """What was found in all images of a record; frames of videos count as images."""

    images: int
    without: int  # images in which nothing was found
    classes: Counter[str]  # objects by the name of their class


def summary(folder: Path) -> Summary:
    """Of the record in a folder, that of earlier runs that were resumed included."""
    images, without, classes = 0, 0, Counter[str]()
    for line in _found(folder / RECORD):
        images += 1
        without += not line["detections"]
        classes.update(found["label"] for found in line["detections"])
    return Summary(images, without, classes)


def _files(folder: Path) -> list[Path]:
    return [
        file
        for file in (folder / RECORD, *sorted(folder.glob("predictions.part-*.jsonl")))
        if file.exists()
    ]


def _forms(folder: Path) -> list[Path]:
    return [folder / name for name, _ in _FORMS.values() if (folder / name).exists()]


def _lines(file: Path) -> Iterator[Line]:
    with open(file, encoding="utf-8") as text:
        for row in text:
            try:
                line = json.loads(row)
            except ValueError:  # the process was killed while it wrote this line
                continue
            if isinstance(line, dict) and "image" in line:
                yield line


def _distinct(files: Sequence[Path]) -> Iterator[Line]:
    """Each line once: a run that is killed while it joins files leaves some twice."""
    seen = set()
    for file in files:
        for line in _lines(file):
            key = (line["image"], line.get("frame"), "frames" in line)
            if key not in seen:
                seen.add(key)
                yield line


def _write(path: Path, lines: Iterator[Line]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8") as text:
            text.writelines(json.dumps(line) + "\n" for line in lines)

    write_whole(path, write)


def write_forms(folder: Path, forms: Sequence[str]) -> None:
    """Makes predictions.json, predictions.coco.json and predictions.csv ("json", "coco", "csv") of
    the record."""
    for form in forms:
        name, write = _FORMS[form]

        def write_text(temporary: Path, write: Any = write) -> None:
            with open(temporary, "w", encoding="utf-8", newline="") as text:
                write(text, folder / RECORD)

        write_whole(folder / name, write_text)


def _found(record: Path) -> Iterator[Line]:
    return (line for line in _lines(record) if "detections" in line)


def _key(line: Line) -> str:
    """The name of an image; of a frame also its number."""
    return f"{line['image']}#{line['frame']}" if "frame" in line else line["image"]


def _write_json(text: TextIO, record: Path) -> None:
    separator = "{\n"
    for line in _found(record):
        entry = {key: value for key, value in line.items() if key != "image"}
        text.write(f"{separator}  {json.dumps(_key(line))}: {json.dumps(entry)}")
        separator = ",\n"
    text.write("\n}\n" if separator != "{\n" else "{}\n")


def _write_coco(text: TextIO, record: Path) -> None:
    """The entries of a COCO results file. Images called by whole numbers, as COCO's, have these as
    their ids; else they are counted from 1. Each entry names its file as well."""
    stems = [Path(_key(line)).stem for line in _found(record)]
    numbered = all(stem.isdecimal() for stem in stems) and len(set(map(int, stems))) == len(stems)
    separator = "[\n"
    for count, line in enumerate(_found(record), start=1):
        image_id = int(stems[count - 1]) if numbered else count
        for found in line["detections"]:
            x1, y1, x2, y2 = found["box"]
            box = [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]
            entry = {
                "image_id": image_id,
                "category_id": found["category_id"],
                "bbox": box,
                "score": found["score"],
                "file_name": _key(line),
            }
            text.write(f"{separator}  {json.dumps(entry)}")
            separator = ",\n"
    text.write("\n]\n" if separator != "[\n" else "[]\n")


def _write_csv(text: TextIO, record: Path) -> None:
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        ("image", "frame", "label", "category_id", "score", "x1", "y1", "x2", "y2", "picture")
    )
    for line in _found(record):
        for found in line["detections"]:
            about = (line["image"], line.get("frame", ""), found["label"], found["category_id"])
            rows.writerow((*about, found["score"], *found["box"], line.get("picture", "")))


_FORMS = {
    "json": ("predictions.json", _write_json),
    "coco": ("predictions.coco.json", _write_coco),
    "csv": ("predictions.csv", _write_csv),
}
