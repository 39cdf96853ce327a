"""Formats that redetr does not read: how to recognise their files, and what to export instead."""

import codecs
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from redetr.data.images import IMAGE_SUFFIXES
from redetr.files import first_bytes

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")

_EXPORT = "export in COCO format"
_CONVERT = "convert it to COCO format"
_WITH_IMAGES = "export as COCO with images"
_RESULTS = "give the file of annotations that they were made for"
_LABEL_STUDIO = "Label Studio's own format"
# A remedy that states which tar archives are read without being unpacked.
_TAR = "train-000.tar is read, with a .json file for each image or COCO's file beside it"
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")  # the end of the name of a part of a TFRecord file
_MOST_FILES = 100  # that are read per folder
_MOST_FOLDERS = 20  # that are searched per level
_LEVELS = 3  # of folders below the data folder
_HEAD = 2**12  # bytes of a file that show its format


# The names of folders for which formats look. Windows and macOS do not distinguish other capitals.
_SPELLINGS = (
    *("Annotations", "annotations", "images", "labels", "masks", "json", "xml", "xmls"),
    *("train", "val", "valid", "validation", "test"),
    *("ImageSets", "JPEGImages", "Main", "SegmentationObject"),
)


class _Format(NamedTuple):
    """A format that is recognised by the suffixes and the first bytes of its files."""

    endings: tuple[str, ...]  # suffixes, in lower case
    matches: Callable[[bytes], bool]
    name: str
    remedy: str = _EXPORT


def _holds(*parts: bytes) -> Callable[[bytes], bool]:
    """A test of whether the first bytes hold all of the parts."""
    return lambda head: all(part in head for part in parts)


def _begins(pattern: bytes) -> Callable[[bytes], bool]:
    """A test of whether the first bytes match the regular expression."""
    compiled = re.compile(pattern)
    return lambda head: compiled.match(head.removeprefix(codecs.BOM_UTF8)) is not None


def _is_coco_results(head: bytes) -> bool:
    """Whether a file is a list of detections, or of COCO's annotations."""
    keys = (b'"image_id"', b'"category_id"')
    return head.lstrip().startswith(b"[") and all(key in head for key in keys)


def _anything(head: bytes) -> bool:
    return True


_NUMBER = rb"-?[\d.]+(?:e-?\d+)?"
_KERAS = rb"\S.*\.\w+ \d+,\d+,\d+,\d+,\d+"  # a.jpg 24,16,60,48,0
_KITTI = rb"[A-Za-z]\S*( +%b){14,15}[ \r]*(\n|$)" % _NUMBER  # a class and 14 or 15 numbers
# 8 numbers and a class, after lines such as `imagesource:GoogleEarth`.
_DOTA = rb"(imagesource:.*\n|gsd:.*\n)*(%b +){8}[A-Za-z]" % _NUMBER
_WIDER_FACE = rb"\S+\.jpe?g[ \r]*\n\d+[ \r]*\n(\d+ +){9}"  # a name, a count, then boxes
_MOT = rb"\d+,(-?\d+),(%b,){4,7}%b[ \r]*(\n|$)" % (_NUMBER, _NUMBER)  # also VisDrone
_LABELS = (b'"shape"', b'"title"')

# If several formats match a file, the first one counts.
_FORMATS = (
    _Format((".json",), _is_coco_results, "COCO results, without images and classes", _RESULTS),
    _Format((".json",), _holds(b'"geometryType"'), "Supervisely"),
    _Format((".json",), _holds(b'"classes"', *_LABELS), "Supervisely"),
    _Format((".json",), _holds(b'"original_width"'), _LABEL_STUDIO, _WITH_IMAGES),
    _Format((".json", ".csv", ".tsv"), _holds(b"rectanglelabels"), _LABEL_STUDIO, _WITH_IMAGES),
    _Format((".json", ".csv", ".tsv"), _holds(b"polygonlabels"), _LABEL_STUDIO, _WITH_IMAGES),
    _Format((".json",), _holds(b'"annotations"', b'"data"', b'"result"'), _LABEL_STUDIO),
    _Format((".json",), _holds(b'"coordinates"', b'"image"'), "CreateML"),
    _Format((".json",), _holds(b'"vid_list"', b'"fid_list"'), "VIA 3", _CONVERT),
    _Format((".json",), _holds(b'"assets"', b'"asset"'), "VoTT"),
    _Format((".json",), _holds(b'"slots"', b'"item"'), "V7 Darwin"),
    _Format((".json",), _holds(b'"className"', b'"instances"'), "SuperAnnotate"),
    _Format((".json", ".ndjson", ".jsonl"), _holds(b'"data_row"'), "Labelbox"),
    _Format((".json",), _holds(b'"External ID"'), "Labelbox"),
    _Format((".json",), _holds(b'"task_id"', b'"response"'), "Scale", _CONVERT),
    _Format((".json",), _holds(b'"task_id"', b'"attachment"'), "Scale", _CONVERT),
    _Format((".json",), _holds(b'"bounding_box"'), "FiftyOne", "export as COCODetectionDataset"),
    _Format((".json",), _holds(b'"box2d"'), "BDD100K", _CONVERT),
    _Format((".json",), _holds(b'"imgHeight"', b'"polygon"'), "Cityscapes", _CONVERT),
    _Format((".json",), _holds(b'"annotations"', b'"filename"', b'"class"'), "Sloth", _CONVERT),
    _Format((".json",), _holds(b'"caption"', b'"image_id"'), "COCO captions, without boxes"),
    _Format((".jsonl",), _holds(b'"suffix"', b"<loc"), "PaliGemma"),
    _Format((".manifest", ".jsonl"), _holds(b'"source-ref"'), "SageMaker's manifest", _CONVERT),
    _Format((".jsonl",), _holds(b'"imageGcsUri"'), "Vertex AI's JSON Lines", _CONVERT),
    _Format((".jsonl",), _holds(b'"topX"'), "Azure's JSON Lines"),
    _Format((".csv",), _holds(b"region_shape_attributes"), "CSV of VIA", "export as JSON or COCO"),
    _Format((".csv",), _holds(b"ImageID", b"LabelName"), "Open Images' CSV", _CONVERT),
    _Format((".csv",), _holds(b"gs://"), "Vertex AI's CSV", _CONVERT),
    _Format((".tfrecord", ".tfrecords", ".record"), _anything, "TFRecord"),
    _Format((".xml",), _holds(b"<imagesize>"), "the XML of LabelMe 3"),
    _Format((".xml",), _holds(b"<dataset>", b"<images>"), "the XML of dlib's imglab", _CONVERT),
    _Format((".txt",), _begins(_KERAS), "the text format of Keras YOLO"),
    _Format((".txt",), _begins(_KITTI), "KITTI", _CONVERT),
    _Format((".txt",), _begins(_DOTA), "DOTA", _CONVERT),
    _Format((".txt",), _begins(_WIDER_FACE), "WIDER FACE", _CONVERT),
    _Format((".txt",), _begins(_MOT), "MOT Challenge or VisDrone", _CONVERT),
    _Format((".mat",), _anything, "MATLAB", _CONVERT),
    _Format((".pkl", ".pickle"), _anything, "pickle, which may run programs", _CONVERT),
    _Format((".h5", ".hdf5"), _anything, "HDF5", _CONVERT),
    _Format((".xls", ".xlsx", ".ods"), _anything, "a spreadsheet", _CONVERT),
    _Format((".csv", ".tsv"), _anything, "CSV"),
    _Format((".jsonl", ".ndjson"), _anything, "JSON Lines", _CONVERT),
    _Format((".tar.gz", ".tgz"), _anything, "an archive", f"unpack or decompress it: {_TAR}"),
    _Format((".tar",), _anything, "an archive", f"unpack or rename it: {_TAR}"),
    _Format(ARCHIVES, _anything, "an archive", "unpack it"),
    _Format((".parquet", ".arrow"), _anything, "Parquet", "give hf:FOLDER"),
)


def unread_format(root: Path) -> tuple[str, str]:
    """What a folder contains instead of a data set that can be read, such as "a.json is in an
    unsupported format (Supervisely)", and a remedy; both empty if nothing is recognised."""
    heads = {file: first_bytes(file, _HEAD) for file in _files(root)}
    for format_ in _FORMATS:
        for file, head in heads.items():
            has_ending = _full_name(file.name).endswith(format_.endings)
            if not has_ending or not format_.matches(head):
                continue
            name = file.relative_to(root)
            text = f"{name} is in an unsupported format ({format_.name})"
            if format_.name == "an archive":
                text = f"{name} is an archive"
            return text, format_.remedy
    if not heads and _holds_images(root):
        remedy = "give the folder that holds both, or draw boxes in a tool such as CVAT"
        return "it holds images and no annotations", remedy
    return "", ""


def misspelt_folders(root: Path) -> dict[str, str]:
    """Folders whose names differ only in case from names for which formats look. Maps their paths
    below the data folder to the expected paths."""
    spelled = {name.lower(): name for name in _SPELLINGS}
    right = set(_SPELLINGS)
    misspelt = {}
    parents = [""]
    while parents:
        parent = parents.pop()
        for name in _visible_names(root / parent):
            usual = spelled.get(name.lower())
            if usual is None or not (root / parent / name).is_dir():
                continue
            path = posixpath.join(parent, name)
            parents.append(path)
            if name not in right:
                misspelt[path] = posixpath.join(parent, usual)
    return misspelt


def _holds_images(root: Path) -> bool:
    for folder in _folders(root):
        for name in _visible_names(folder):
            if name.lower().endswith(IMAGE_SUFFIXES):
                return True
    return False


def _files(root: Path) -> Iterator[Path]:
    """The first files with a suffix of these formats, in the folder and in folders below it."""
    endings: list[str] = []
    for format_ in _FORMATS:
        endings += format_.endings
    for folder in _folders(root):
        names = _visible_names(folder)
        candidates = [name for name in names if _full_name(name).endswith(tuple(endings))]
        for name in candidates[:_MOST_FILES]:
            yield folder / name


def _folders(root: Path) -> list[Path]:
    """The folder and the first folders of each level below it."""
    folders = [root]
    level = [root]
    for _ in range(_LEVELS):
        below: list[Path] = []
        for folder in level:
            below += sorted(folder.glob("*/"))
        level = below[:_MOST_FOLDERS]
        folders += level
    return folders


def _visible_names(folder: Path) -> list[str]:
    """The names in the folder; empty if it cannot be listed."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(name for name in names if not name.startswith("."))


def _full_name(name: str) -> str:
    """The name in lower case. A part of a TFRecord file gets the suffix of one."""
    return _SHARD.sub(".tfrecord", name.lower())
