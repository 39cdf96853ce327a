"""The detections in many images: predictions.jsonl, written line by line. The other formats are
made from it at the end: see `record_formats`.

A line is an image or a frame of a video: `image` (its name), `picture` (the name of the annotated
image or video, if there is one), `mask_picture` (the name of the image of its masks),
`panoptic_picture` (the name of the image of its segments), `image_size` (height, width) and
`detections`; frames also have `frame` and `time_s`, and those of a camera or live stream `live`.
The last line of a video states how many `frames` it has. For a source that cannot be read, the line
has an `error` instead. If `image` is a relative path, the line has the `folder` in which it starts,
seen from the output folder.

Memory holds the names of all images at most, and the segments, of which an image has few.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from heapq import merge
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from redetr.detector.record_formats import FILES, written_files
from redetr.detector.record_lines import RECORD, Line, images_of, is_line, lines_of
from redetr.errors import InputError
from redetr.files import first_bytes, json_lines, remove_unfinished, write_whole
from redetr.wording import counted

LOCK = "predict.lock"
LOCKED_FOR = "has been writing predictions there since"
_KINDS = {"mask_picture": "masks", "panoptic_picture": "panoptic"}  # of further images
_PICTURE_KEYS = ("picture", *_KINDS)
_PICTURES = (".png", ".jpg", ".mp4")
_CLASSES_NAMED = 5  # in a sentence
_LINE_START = b'{"image": '
_LONGEST_START = 1 << 20  # bytes of a line that is cut off in which its end is looked for


class Record:
    """The lines that one process writes. Each process has its own file until `join`."""

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
    """Raises InputError if the folder holds the output of an earlier run."""
    if _files(folder) or written_files(folder):
        raise InputError(
            f"{folder}: already holds predictions: give another --output, --resume to continue "
            "them, or --overwrite to delete them"
        )


def require_record(folder: Path) -> None:
    """Raises InputError if `predict` did not write the record in the folder, because resuming would
    delete its lines."""
    for file in _files(folder):
        if not _is_record(file):
            raise InputError(
                "is not a record of redetr predict",
                where=file,
                remedy="give another --output, or --overwrite to delete it",
            )


def _is_record(file: Path) -> bool:
    """Whether all that can be read in the file are lines of `predict`, or there is only the start
    of its first line, as after a killed process, or the zero bytes that a crash may leave."""
    has_lines = False
    for entry in json_lines(file):
        if not is_line(entry):
            return False
        has_lines = True
    start = first_bytes(file, _LONGEST_START).strip(b"\0")
    is_start = _LINE_START.startswith(start[: len(_LINE_START)])
    return has_lines or (is_start and b"\n" not in start)


def require_no_cut_stream(folder: Path) -> None:
    """Raises InputError if the record holds frames of a camera or a live stream whose process was
    killed, because resuming would delete them, and they do not come again."""
    from redetr.detector.sources import is_camera
    from redetr.detector.streams import is_rtsp

    ended = finished(folder)
    for line in _distinct(_files(folder)):
        name = line["image"]
        # Earlier versions wrote no `live`.
        is_live = "live" in line or is_camera(name) or is_rtsp(name)
        if "frame" in line and name not in ended and is_live:
            source = f"camera {name}" if is_camera(name) else name
            raise InputError(
                f"holds frames of {source}, which was cut off: a live stream cannot be resumed",
                where=folder,
                remedy="give another --output, or --overwrite to delete what is there",
            )


def begin(folder: Path, resume: bool) -> None:
    """Prepares the folder for a run.

    With `resume`, the complete lines of an earlier run are joined into one file, without errors and
    without videos that were not processed to their end, whose annotated versions are deleted.
    Otherwise, all that the earlier run wrote is deleted, including the annotated images that its
    lines name.
    """
    files = _files(folder)
    deleted = deleted_images(folder, resume)
    for name in deleted:
        (folder / name).unlink(missing_ok=True)
    if not resume:
        files += written_files(folder)
    if resume and files:
        _write(folder / RECORD, _finished_lines(files, finished(folder)))
        files = [file for file in files if file.name != RECORD]
    for file in files:
        file.unlink()
    remove_unfinished(folder, deleted | {RECORD, *FILES})


def _finished_lines(files: list[Path], names: Collection[str]) -> Iterator[Line]:
    """The lines of the images and videos with these names."""
    for line in _distinct(files):
        if line["image"] in names and "error" not in line:
            yield line


def written_images(folder: Path) -> set[str]:
    """The names of the annotated images and videos that the records in a folder name."""
    return _pictures(_distinct(_files(folder)))


def deleted_images(folder: Path, resume: bool) -> set[str]:
    """Which of the `written_images` `begin` deletes: all, or with `resume`, those that no line it
    keeps names."""
    written = written_images(folder)
    if not resume:
        return written
    return written - _pictures(_finished_lines(_files(folder), finished(folder)))


def _pictures(lines: Iterable[Line]) -> set[str]:
    """The names of the annotated images and videos of these lines.

    A record from elsewhere may name anything: only names of files in the folder itself count.
    """
    names = set()
    for line in lines:
        for key in _PICTURE_KEYS:
            name = line.get(key)
            if not isinstance(name, str):
                continue
            if Path(name).name == name and name.endswith(_PICTURES):
                names.add(name)
    return names


def finished(folder: Path) -> dict[str, str | None]:
    """For each image and video that was processed to its end, the name of its annotated version. If
    only further images were written, such as its masks, it is the name beside which they are."""
    return {line["image"]: picture_of(line) for line in ends(folder)}


def ends(folder: Path) -> Iterator[Line]:
    """The line of each image, and the last one of each video, that was processed to its end."""
    for line in _distinct(_files(folder)):
        is_video_end = "frames" in line
        is_image = "detections" in line and "frame" not in line
        if is_video_end or is_image:
            yield line


def picture_of(line: Line) -> str | None:
    """The name of the annotated version that `finished` returns for a line."""
    return line.get("picture") or _name_of_further(line)


def _name_of_further(line: Line) -> str | None:
    """The name of an annotated image that was not written, from that of a further image."""
    for key, kind in _KINDS.items():
        name = line.get(key)
        if isinstance(name, str) and name.endswith(f".{kind}.png"):
            return name.removesuffix(f"{kind}.png") + "png"
    return None


def join(folder: Path, order: Sequence[str]) -> None:
    """Joins the files of all processes. Each process wrote its lines in the `order` of names."""
    position = {name: number for number, name in enumerate(order)}
    parts = [file for file in _files(folder) if file.name != RECORD]
    if not parts:
        return
    earlier = [file for file in _files(folder) if file.name == RECORD]
    lines_of_parts = [lines_of(part) for part in parts]
    added = merge(*lines_of_parts, key=lambda line: position[line["image"]])
    _write(folder / RECORD, chain(_distinct(earlier), added))
    for part in parts:
        part.unlink()


class Summary(NamedTuple):
    """The detections in all images of a record; frames of videos count as images."""

    images: int
    without: int  # images without detections
    classes: Counter[str]  # objects by the name of their class
    tracks: int  # identities of all videos together

    def in_words(self) -> str:
        """How many objects there are, in how many images, of which classes."""
        with_objects = self.images - self.without
        images = f"{with_objects:,} of {counted(self.images, 'image')}"
        if self.without:
            images += f" (none in {self.without})"
        most_common = self.classes.most_common(_CLASSES_NAMED)
        classes = ", ".join(f"{count} {name}" for name, count in most_common)
        further = len(self.classes) - _CLASSES_NAMED
        if further > 0:
            classes += f" and {counted(further, 'more class', 'more classes')}"
        return f"{self.classes.total()} in {images}: {classes}"


def summary(folder: Path) -> Summary:
    """The summary of the record in a folder, with earlier runs that were resumed."""
    images = 0
    without = 0
    classes = Counter[str]()
    tracks = set()
    for line in images_of(folder / RECORD):
        images += 1
        if not line["detections"]:
            without += 1
        for detection in line["detections"]:
            classes[detection["label"]] += 1
            if detection.get("track_id"):
                tracks.add((line["image"], detection["track_id"]))
    return Summary(images, without, classes, len(tracks))


def _files(folder: Path) -> list[Path]:
    """The records in a folder: the joined one first, then those of single processes."""
    parts = sorted(folder.glob("predictions.part-*.jsonl"))
    return [file for file in (folder / RECORD, *parts) if file.exists()]


def _distinct(files: Sequence[Path]) -> Iterator[Line]:
    """Each line once: a run that is killed while it joins files leaves duplicates."""
    seen = set()
    for file in files:
        for line in lines_of(file):
            key = (line["image"], line.get("frame"), "frames" in line)
            if key not in seen:
                seen.add(key)
                yield line


def _write(path: Path, lines: Iterable[Line]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8") as text:
            text.writelines(json.dumps(line) + "\n" for line in lines)

    write_whole(path, write)
