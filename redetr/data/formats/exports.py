"""Data sets that an annotation tool exports as one file: CVAT for images (XML), the VGG Image
Annotator (JSON) and Datumaro (JSON).

The file is `annotations/train.json` (or `default.json`), lies in `train/` beside images, or in the
folder of the data set, where it is train; files of CVAT may divide their images into subsets. Each
is read by way of COCO's lists, with all checks of that format; ids count images and shapes in the
order of the file.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from redetr.data.annotations import SPLITS, Annotations, Fault, Split
from redetr.data.formats.coco import from_documents
from redetr.data.formats.coco_places import SPLIT_FOLDERS, image_folders
from redetr.data.formats.cvat import cvat_splits, is_cvat, read_cvat
from redetr.data.formats.datumaro import is_datumaro, read_datumaro
from redetr.data.formats.shapes import Document
from redetr.data.formats.via import is_via, read_via
from redetr.data.mask_columns import MaskBuilder
from redetr.errors import InputError
from redetr.files import first_bytes

_HEAD = 2**16  # bytes of a file that show which tool wrote it
_SUFFIXES = (".json", ".xml")
_SPLIT_NAMES = {name for names in SPLIT_FOLDERS.values() for name in names}
_MOST_FILES = 20  # of a folder that are looked into: LabelMe's has thousands


class _Tool(NamedTuple):
    """Whether a file that begins so is one of the tool, and what it says of a split."""

    is_its: Callable[[bytes], bool]
    read: Callable[[Path, Split], Document]


_TOOLS = (
    _Tool(is_cvat, read_cvat),
    _Tool(is_via, read_via),
    _Tool(is_datumaro, read_datumaro),
)


class _Location(NamedTuple):
    file: Path
    tool: _Tool
    folders: list[Path]  # where its images may be


def export_splits(root: Path) -> list[Split]:
    """The splits of the folder that are in such files. Raises InputError if several claim to be
    one."""
    return [split for split in SPLITS if _locate(root, split) is not None]


def export_sought(split: Split) -> str:
    """Where the split is looked for, in words."""
    return f"annotations.xml, annotations/{split}.json, or a JSON file in {split}/"


def read_export(root: Path, split: Split, masks: MaskBuilder | None = None) -> Annotations:
    """The split, which has to be there, with masks if there is a builder for them. Raises
    InputError for a file that cannot be read."""
    location = _locate(root, split)
    if location is None:
        raise InputError(f"no {split} split: looked for {export_sought(split)}", where=root)
    file = location.file
    document = location.tool.read(file, split)
    if not document.images:
        remedy = "export the annotations again"
        raise InputError("names no image", where=file, remedy=remedy)
    if not document.categories:
        raise InputError("names no class", where=file, remedy="annotate some images")
    remedy = "was the image resized? put back the one that was annotated"
    annotations = from_documents(file, [document.lists()], remedy, masks, location.folders)
    annotations.faults.extend(_without_class(file, document))
    annotations.faults.extend(_left_out(file, document))
    return annotations


def _without_class(file: Path, document: Document) -> list[Fault]:
    """An error if there are objects without class, or with several."""
    if not document.without_class:
        return []
    where = document.without_class[0]
    text = "has no class, or several"
    remedy = "give it one in the tool, and export again"
    count = len(document.without_class)
    return [Fault("error", "class-missing", file, where, text, remedy, count)]


def _left_out(file: Path, document: Document) -> list[Fault]:
    """A warning if there are shapes that are no objects."""
    if not document.left_out:
        return []
    kinds = Counter(kind for kind, _ in document.left_out)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    kind, where = document.left_out[0]
    text = f"a {kind} is no object that is read, and is left out (of such shapes: {listed})"
    remedy = "draw a box or a polygon"
    count = len(document.left_out)
    return [Fault("warning", "shape-left-out", file, where, text, remedy, count)]


def _locate(root: Path, split: Split) -> _Location | None:
    """Where the split is, None if there is none."""
    annotations = root / "annotations"
    stems = SPLIT_FOLDERS[split]
    if split == "train":
        stems += ("default",)
    named = [folder / f"{stem}.json" for folder in (annotations, root) for stem in stems]
    location = _first(root, split, [file for file in named if file.is_file()])
    if location is not None:
        return location
    for name in SPLIT_FOLDERS[split]:
        location = _first(root, split, _files_in(root / name))
        if location is not None:
            return location
    for folder in (root, annotations, root / "images"):
        files = [file for file in _files_in(folder) if file.stem not in _SPLIT_NAMES]
        location = _first(root, split, files)
        if location is not None and split in _splits_in(location):
            return location
    return None


def _splits_in(location: _Location) -> list[Split]:
    """The splits of a file that is not named after one."""
    if location.tool.read is read_cvat:
        return cvat_splits(location.file)
    return ["train"]


def _first(root: Path, split: Split, files: list[Path]) -> _Location | None:
    """The only one of the files that such a tool wrote; None if none did. Raises InputError if
    several did."""
    locations = []
    for file in files:
        head = first_bytes(file, _HEAD)
        for tool in _TOOLS:
            if tool.is_its(head):
                parent = file.parent
                folders = [parent, parent / "images", parent / "data", root / "data", root / "img"]
                folders += image_folders(root, file.stem, split)
                folders += _subset_folders(root / "images", split)
                locations.append(_Location(file, tool, folders))
                break
    if len(locations) > 1:
        names = ", ".join(location.file.name for location in locations[:3])
        text = f"several files of annotations ({names})"
        remedy = "keep one, or put each with its images into a folder of its own"
        raise InputError(text, where=files[0].parent, remedy=remedy)
    return locations[0] if locations else None


def _subset_folders(images: Path, split: Split) -> list[Path]:
    """The folders of a subset, in whatever letters: CVAT writes Train and Validation."""
    folders = images.iterdir() if images.is_dir() else ()
    return sorted(folder for folder in folders if folder.name.lower() in SPLIT_FOLDERS[split])


def export_files(root: Path) -> list[str]:
    """The names of such files in the folder."""
    names = []
    for file in _files_in(root):
        head = first_bytes(file, _HEAD)
        if any(tool.is_its(head) for tool in _TOOLS):
            names.append(file.name)
    return names


def _files_in(folder: Path) -> list[Path]:
    """Files in the folder that may be exports; none if it has as many as images."""
    try:
        names = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    except OSError:
        return []
    files = [path for path in names if not path.name.startswith(".")]
    return files if len(files) <= _MOST_FILES else []
