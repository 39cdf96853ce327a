"""Formats that are not read: which of them the files in a folder are in, and what to export
instead."""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from redetr.files import first_bytes

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")

_EXPORT = "export in COCO format"
_MOST_FILES = 300  # in each folder that is looked into
_MOST_FOLDERS = 20
_HEAD = 2**12  # bytes


class _Format(NamedTuple):
    """A format by the endings and the first bytes of its files."""

    endings: tuple[str, ...]  # in lower case
    is_its: Callable[[bytes], bool]
    name: str
    remedy: str = _EXPORT


def _holds(*parts: bytes) -> Callable[[bytes], bool]:
    """Whether all of the parts are in the first bytes."""
    return lambda head: all(part in head for part in parts)


def _is_keras(head: bytes) -> bool:
    """Whether a line is `a.jpg 24,16,60,48,0`."""
    words = head.split(b"\n")[0].split()
    return len(words) > 1 and b"." in words[0] and words[1].count(b",") == 4


def _is_kitti(head: bytes) -> bool:
    """Whether a line is a class and 14 or 15 numbers."""
    words = head.split(b"\n")[0].split()
    return len(words) in (15, 16) and words[0][:1].isalpha()


def _anything(head: bytes) -> bool:
    return True


_FORMATS = (
    _Format((".json",), _holds(b'"geometryType"'), "Supervisely"),
    _Format((".json",), _holds(b'"classes"', b'"title"', b'"shape"'), "Supervisely"),
    _Format(
        (".json",),
        _holds(b'"original_width"'),
        "Label Studio's own JSON",
        "export as COCO with images",
    ),
    _Format(
        (".json",), _holds(b'"annotations"', b'"data"', b'"result"'), "Label Studio's own JSON"
    ),
    _Format((".json",), _holds(b'"coordinates"', b'"image"'), "CreateML"),
    _Format((".json",), _holds(b'"assets"', b'"asset"'), "VoTT"),
    _Format((".json",), _holds(b'"bounding_box"'), "FiftyOne", "export as COCODetectionDataset"),
    _Format((".json",), _holds(b'"attributes"', b'"box2d"'), "BDD100K"),
    _Format((".jsonl",), _holds(b'"suffix"', b"<loc"), "PaliGemma"),
    _Format((".csv",), _holds(b"region_shape_attributes"), "CSV of VIA", "export as JSON or COCO"),
    _Format((".csv",), _holds(b"ImageID", b"LabelName"), "Open Images' CSV"),
    _Format((".csv",), _holds(b"xmin", b"ymin"), "CSV"),
    _Format((".csv",), _holds(b".jpg,"), "CSV"),
    _Format((".csv",), _holds(b".png,"), "CSV"),
    _Format((".tfrecord", ".tfrecords", ".record"), _anything, "TFRecord"),
    _Format((".xml",), _holds(b"<imagesize>"), "the XML of LabelMe 3"),
    _Format((".txt",), _is_keras, "the text format of Keras YOLO"),
    _Format((".txt",), _is_kitti, "KITTI", "convert it to COCO format"),
    _Format(ARCHIVES, _anything, "an archive", "unpack it"),
    _Format((".parquet", ".arrow"), _anything, "Parquet", "give hf:FOLDER"),
)


def unread_format(root: Path) -> tuple[str, str]:
    """What is in a folder without a data set that is read, such as "a.json is in Supervisely
    format", and what to do about it; both empty if nothing is known."""
    files = list(_files(root))
    for known in _FORMATS:
        for file in files:
            if file.name.lower().endswith(known.endings) and known.is_its(first_bytes(file, _HEAD)):
                name = file.relative_to(root)
                if known.name == "an archive":
                    return f"{name} is an archive", known.remedy
                return f"{name} is in a format that is not read ({known.name})", known.remedy
    return "", ""


def _files(root: Path) -> Iterator[Path]:
    """Some of the files in the folder and, two levels deep, in those in it."""
    folders = [root]
    for pattern in ("*/", "*/*/"):
        folders += islice(sorted(root.glob(pattern)), _MOST_FOLDERS)
    endings = tuple(ending for known in _FORMATS for ending in known.endings)
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        wanted = (name for name in names if name.lower().endswith(endings) and name[0] != ".")
        for name in islice(wanted, _MOST_FILES):
            yield folder / name
