"""Data sets that an annotation tool exports as one file: CVAT for images (XML), the VGG Image
Annotator (JSON) and Datumaro (JSON).

The file is `annotations/train.json` (or `default.json`), or any file in `train/` next to images, or
a file in the folder of the data set, which is then the train split. A CVAT file may divide its
images into subsets. Files are converted to COCO's lists and get all checks of that format; ids
count images and shapes in the order of the file.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from redetr.data.annotations import SPLITS, Annotations, Split
from redetr.data.faults import Fault, listed
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
_MOST_FILES = 20  # a folder with more is not searched: LabelMe's folders have thousands


class _Tool(NamedTuple):
    """How to recognise a tool's files by their first bytes, and how to read a split from one; the
    files of all splits may be needed for the classes."""

    matches: Callable[[bytes], bool]
    read: Callable[[Path, Split, Sequence[Path]], Document]


_TOOLS = (
    _Tool(is_cvat, read_cvat),
    _Tool(is_via, read_via),
    _Tool(is_datumaro, read_datumaro),
)


class _Location(NamedTuple):
    file: Path
    tool: _Tool
    folders: list[Path]  # where the images may be


def export_splits(root: Path) -> list[Split]:
    """The splits of the folder that have such files. Raises InputError if several files claim to be
    the same split."""
    return [split for split in SPLITS if _locate(root, split) is not None]


def export_sought(split: Split) -> str:
    """What a folder needs for a split in these formats, in words."""
    return f"annotations.xml, annotations/{split}.json, or a JSON file in {split}/"


def read_export(root: Path, split: Split, masks: MaskBuilder | None = None) -> Annotations:
    """The annotations of a split, with masks if there is a builder for them. Raises InputError if
    the split is missing, or if its file cannot be read."""
    location = _locate(root, split)
    if location is None:
        raise InputError(f"no {split} split: looked for {export_sought(split)}", where=root)
    file = location.file
    document = location.tool.read(file, split, _files_of_splits(root, location.tool))
    if not document.images:
        remedy = "export the annotations again"
        raise InputError("lists no images", where=file, remedy=remedy)
    if not document.categories:
        raise InputError("defines no classes", where=file, remedy="annotate some images")
    document.join_groups()
    remedy = "was the image resized? restore the one that was annotated"
    annotations = from_documents(file, [document.lists()], remedy, masks, location.folders)
    annotations.faults.extend(_faults_of_shapes(file, document))
    if split == "train" and document.other_subsets:
        annotations.faults.append(_unread_subsets(file, document.other_subsets))
    return annotations


def _files_of_splits(root: Path, tool: _Tool) -> list[Path]:
    """The files of all splits that this tool wrote; one that has several splits is listed once."""
    files: dict[Path, None] = {}  # an ordered set
    for split in SPLITS:
        location = _locate(root, split)
        if location is not None and location.tool is tool:
            files[location.file] = None
    return list(files)


def _faults_of_shapes(file: Path, document: Document) -> list[Fault]:
    """One fault for each kind of shape that is not read as it is drawn."""
    faults = []
    if document.without_class:
        where = document.without_class[0]
        text = "has no class, or several"
        remedy = "give it one in the tool, and export again"
        count = len(document.without_class)
        items = listed(document.without_class)
        faults.append(Fault("error", "class-missing", file, where, text, remedy, count, items))
    if document.left_out:
        kind, where = document.left_out[0]
        kinds = Counter(kind for kind, _ in document.left_out)
        by_kind = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        text = f"a {kind} is not an object and is left out (such shapes: {by_kind})"
        remedy = "draw a box or a polygon"
        count = len(document.left_out)
        items = listed(where for _, where in document.left_out)
        faults.append(Fault("warning", "shape-left-out", file, where, text, remedy, count, items))
    if document.grouped_in:
        where = document.grouped_in[0]
        text = "polygons of one label and one group are parts of one object"
        remedy = "the box around all of them is used"
        count = len(document.grouped_in)
        items = listed(document.grouped_in)
        faults.append(Fault("note", "shape-grouped", file, where, text, remedy, count, items))
    return faults


def _unread_subsets(file: Path, subsets: list[str]) -> Fault:
    """A warning about images whose subset is no split; `subsets` has an entry for each image."""
    names = Counter(subsets)
    by_name = ", ".join(f"{count} in {name!r}" for name, count in names.most_common())
    text = f"it has images in subsets that are not splits, which are not read ({by_name})"
    remedy = "call the subset Train, Validation or Test in CVAT, and export again"
    return Fault("warning", "subset-unread", file, "", text, remedy, len(subsets))


def _locate(root: Path, split: Split) -> _Location | None:
    """The file of the split; None if there is none."""
    annotations = root / "annotations"
    stems = SPLIT_FOLDERS[split]
    if split == "train":
        stems = (*stems, "default")
    usual_files = []
    for folder in (annotations, root):
        usual_files += [folder / f"{stem}.json" for stem in stems]
    location = _only_export(root, split, [file for file in usual_files if file.is_file()])
    if location is not None:
        return location
    for name in SPLIT_FOLDERS[split]:
        location = _only_export(root, split, _files_in(root / name))
        if location is not None:
            return location
    for folder in (root, annotations, root / "images"):
        files = [file for file in _files_in(folder) if file.stem not in _SPLIT_NAMES]
        location = _only_export(root, split, files)
        if location is not None and split in _splits_in(location):
            return location
    return None


def _splits_in(location: _Location) -> list[Split]:
    """The splits of a file that is not named after one."""
    if location.tool.read is read_cvat:
        return cvat_splits(location.file)
    return ["train"]


def _only_export(root: Path, split: Split, files: list[Path]) -> _Location | None:
    """The only one of the files that such a tool exported; None if there is none. Raises InputError
    if there are several."""
    locations = []
    for file in files:
        tool = _tool_of(file)
        if tool is None:
            continue
        parent = file.parent
        folders = [parent, parent / "images", parent / "data", root / "data", root / "img"]
        folders += image_folders(root, file.stem, split)
        locations.append(_Location(file, tool, folders))
    if len(locations) > 1:
        names = ", ".join(location.file.name for location in locations[:3])
        text = f"several files of annotations ({names})"
        remedy = "keep one, or put each with its images into a separate folder"
        raise InputError(text, where=files[0].parent, remedy=remedy)
    return locations[0] if locations else None


def _tool_of(file: Path) -> _Tool | None:
    """The tool that exported a file; None for files of other tools."""
    head = first_bytes(file, _HEAD)
    for tool in _TOOLS:
        if tool.matches(head):
            return tool
    return None


def export_files(root: Path) -> list[str]:
    """The names of such files in the folder."""
    return [file.name for file in _files_in(root) if _tool_of(file) is not None]


def _files_in(folder: Path) -> list[Path]:
    """The files in the folder that may be exports; none if there are too many."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []
    files = []
    for path in paths:
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
            files.append(path)
    return files if len(files) <= _MOST_FILES else []
