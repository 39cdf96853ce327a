"""Converts a data set to another format: its boxes, and its masks if the format has them. All other
parts of annotations are left out."""

import os
import posixpath
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from redetr.bounds import require_in_bounds
from redetr.data.annotations import Annotations, Split, data_folder
from redetr.data.archives import archives_in, copy_data_file
from redetr.data.formats.cutting import Cut, cut_images
from redetr.data.formats.file_sizes import require_sizes, tags_note
from redetr.data.formats.folder import read_split
from redetr.data.formats.holdout import fraction_unused, hold_out
from redetr.data.formats.hub import Address, splits_and_others, write_images
from redetr.data.formats.layouts import splits_of
from redetr.data.formats.mask_writing import as_single_polygons
from redetr.data.formats.paths import name_taken, without_capitals
from redetr.data.formats.read_back import require_same
from redetr.data.formats.renaming import apart
from redetr.data.formats.shard_writing import pack, write_file_list
from redetr.data.formats.writers import (
    WRITERS,
    Splits,
    count_masks,
    names_of,
    write_coco_lists,
)
from redetr.data.mask_faults import MASKS_LEFT_OUT
from redetr.data.open import folder_of
from redetr.data.tar_index import forget_index
from redetr.data.unclaimed import unclaimed_files
from redetr.errors import InputError
from redetr.files import require_folder
from redetr.wording import counted


def convert(
    source: str | Path,
    destination: Path,
    form: str,
    copy: bool = False,
    follow_links: bool = False,
    cut: Cut | None = None,
    val_fraction: float = 0.0,
    shard_bytes: int | None = None,
) -> list[str]:
    """Writes the data set in the folder or YAML file `source` (or crowns, or `hf:NAME`) to
    `destination`, in the format `form`: coco, yolo or voc.

    All splits are written, or nothing. Images are hard links to those of `source` if the disk
    allows it, unless `copy` is set or they are `cut` into tiles. If there is no val split,
    `val_fraction` of the images become one; they are chosen before cutting, because tiles of one
    image overlap. With `shard_bytes`, images are packed into tar archives of about this size, which
    only COCO's format supports. Returns sentences on what was written, and on what the format
    cannot represent. Raises InputError if the data set has errors, if a file has another size than
    annotated, if the format cannot represent it, if `destination` already exists, or if images are
    symbolic links out of the data folder, or named outside it by rows of `hf:FOLDER`: in untrusted
    data, these may lead to any file. `follow_links` allows them.
    """
    require_in_bounds("val_fraction", val_fraction)
    if shard_bytes is not None and form != "coco":
        text = f"{form.upper()} cannot name images in archives"
        raise InputError(text, remedy="leave out --shards, or write coco")
    is_folder = not str(source).startswith("hf:")
    if is_folder:
        splits, notes = _read_folder(source, destination, follow_links, val_fraction)
        if cut is None:
            return [*_write(splits, destination, form, copy, shard_bytes), *notes]
    else:
        _require_new(Path(Address.of(str(source)).name), destination)
    with tempfile.TemporaryDirectory(dir=_room_for(destination), prefix=".images-") as folder:
        if not is_folder:
            images = Path(folder) / "whole"
            splits, notes = _read_hub(str(source), images, follow_links, val_fraction)
        if cut is not None:
            for split, annotations in splits.items():
                annotations.require_sound()
                if not count_masks({split: annotations}):
                    annotations = replace(annotations, masks=None)
                tiles = Path(folder) / "tiles" / split
                splits[split], sentences = cut_images(annotations, split, cut, tiles, _link)
                notes += sentences
        return [*_write(splits, destination, form, copy, shard_bytes), *notes]


def _read_folder(
    source: str | Path, destination: Path, follow_links: bool, val_fraction: float
) -> tuple[Splits, list[str]]:
    """The splits of a folder or YAML file, and sentences on `val_fraction` and on skipped files."""
    root = folder_of(source)
    if not root.exists():
        remedy = "give that of a data set, or crowns"
        if source == "digits":
            text = "is drawn on demand, so it has no images to write"
            raise InputError(text, where=source, remedy=remedy)
        raise InputError("no such folder", where=source, remedy=remedy)
    _require_new(root, destination)
    names = splits_of(root)
    _require_divisible(names, val_fraction, root)
    if val_fraction and "val" not in names:
        names = ["train", "val", *(name for name in names if name == "test")]
    splits = {}
    notes: dict[str, None] = {}  # an ordered set, as both splits have the same notes
    for split in names:
        splits[split], note = read_split(root, split, val_fraction, "check")
        if note:
            notes[note] = None
        has_masks = count_masks({split: splits[split]}) > 0
        for fault in splits[split].faults:
            if has_masks and fault.code in MASKS_LEFT_OUT:
                notes[f"{fault}: left out"] = None
            elif fault.severity != "error":
                notes[f"{fault.severity}: {fault}"] = None
    for fault in unclaimed_files(splits):
        notes[f"{fault.severity}: {fault}"] = None
    for annotations in splits.values():
        _require_apart(annotations.folder, destination)  # which may be outside `source`, by a link
        if not follow_links:
            _require_no_links_out(annotations, data_folder(root))
    return splits, [*notes]


def _read_hub(
    address: str, folder: Path, follow_links: bool, val_fraction: float
) -> tuple[Splits, list[str]]:
    """The splits of a data set on the hub, whose images are written to `folder`, and sentences on
    them."""
    names, others = splits_and_others(address)
    _require_divisible(names, val_fraction, address)
    splits = {}
    for split in names:
        splits[split] = write_images(address, split, folder / split, follow_links)
    notes: dict[str, None] = {}  # an ordered set, as both splits may have the same notes
    for annotations in splits.values():
        notes.update(dict.fromkeys(map(str, annotations.faults)))
    if others:
        unread = ", ".join(others)
        notes[f"{address}: only train, validation and test are read, not {unread}"] = None
    if val_fraction and "val" in splits:
        notes[fraction_unused(address)] = None
    elif val_fraction:
        everything = splits["train"]
        for split in ("train", "val"):
            splits[split], note = hold_out(everything, split, val_fraction, address)
            notes[note] = None
    return splits, [*notes]


def _require_divisible(names: list[Split], val_fraction: float, source: str | Path) -> None:
    """Raises InputError for a `val_fraction` of a data set that has only a test split."""
    if val_fraction and "train" not in names and "val" not in names:
        text = "has only a test split, and --val-fraction holds out images of train"
        raise InputError(text, where=source, remedy="leave it out")


def _write(
    splits: Splits, destination: Path, form: str, copy: bool, shard_bytes: int | None
) -> list[str]:
    """Writes the splits of any source, for `convert`."""
    for annotations in splits.values():
        annotations.require_sound()
    orientations = require_sizes(splits)
    splits, notes = _fitted(splits, form)
    notes += tags_note(splits, orientations, form)
    files: dict[Path, Path] = {}
    if form == "voc":
        splits, files, renamed = apart(splits)
        notes += renamed
        _require_separate_labels(splits)  # one folder for all splits

    def put(source: Path, target: Path) -> None:
        file = files.get(source, source)
        if copy:
            _copy(file, target)
        else:
            _link(file, target)

    unfinished = Path(tempfile.mkdtemp(dir=_room_for(destination), prefix=".unfinished-"))
    try:
        if shard_bytes is None:
            WRITERS[form](splits, unfinished, put, orientations)
        else:
            splits = pack(splits, unfinished, shard_bytes)
            write_coco_lists(splits, unfinished)
            write_file_list(unfinished)
        for split, annotations in splits.items():
            require_same(annotations, unfinished, split, form)
        for archive in archives_in(unfinished):
            forget_index(str(archive))  # its folder is about to be renamed
        unfinished.chmod(0o755)
        _put_in_place(unfinished, destination)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    counts = []
    for split, annotations in splits.items():
        images = counted(len(annotations), "image")
        objects = counted(len(annotations.boxes), "object")
        counts.append(f"{split} has {images}, {objects}")
    summary = f"{destination}: {', '.join(counts)}"
    return [summary, *notes]


def _room_for(destination: Path) -> Path:
    """The folder for unfinished files: on the disk of the result, which may be a mounted folder."""
    if destination.is_dir():
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    return destination.parent


def _put_in_place(unfinished: Path, destination: Path) -> None:
    """Moves a complete data set to its destination. An empty folder that exists is filled, not
    replaced: it may be a mounted disk, a link, or the current folder of a shell."""
    if not destination.is_dir():
        os.rename(unfinished, destination)
        return
    moved: list[Path] = []
    try:
        for path in sorted(unfinished.iterdir()):
            os.rename(path, destination / path.name)
            moved.append(path)
    except BaseException:
        for path in moved:
            os.rename(destination / path.name, path)
        raise
    unfinished.rmdir()


def _require_no_links_out(annotations: Annotations, root: Path) -> None:
    """Raises InputError if the path of an image has a symbolic link that leads out of the data
    folder."""
    real_root = os.path.realpath(root)
    real_folders: dict[str, str] = {}
    for name in names_of(annotations):
        file = os.path.join(annotations.folder, name)
        folder = os.path.dirname(file)
        if folder not in real_folders:
            real_folders[folder] = os.path.realpath(folder)
        real_file = os.path.join(real_folders[folder], os.path.basename(file))
        if os.path.islink(real_file):
            real_file = os.path.realpath(real_file)
        if os.path.commonpath([real_root, real_file]) != real_root:
            text = f"a symbolic link leads to {real_file}, outside the data folder"
            remedy = "put the file there, or use --follow-links if you trust the data"
            raise InputError(text, where=file, remedy=remedy)


def _require_new(root: Path, destination: Path) -> None:
    """Raises InputError if the result cannot be written to `destination`."""
    is_empty_folder = destination.is_dir() and not any(destination.iterdir())
    if destination.exists() and not is_empty_folder:
        remedy = "choose another folder"
        raise InputError("already exists", where=destination, remedy=remedy)
    require_folder(destination)
    _require_apart(data_folder(root), destination)


def _require_apart(folder: Path, destination: Path) -> None:
    """Raises InputError if the result would be written into a folder of the source."""
    if destination.resolve().is_relative_to(folder.resolve()):
        text = f"is inside {folder}, which must not change"
        raise InputError(text, where=destination, remedy="choose another folder")


def _fitted(splits: Splits, form: str) -> tuple[Splits, list[str]]:
    """The part of the splits that the format can represent, and sentences on the rest. Raises
    InputError if names would be lost."""
    if form == "coco":
        return splits, []
    notes = []
    num_masks = count_masks(splits)
    if any(_has_outlines(annotations) for annotations in splits.values()):
        note = (
            f"{form.upper()} has no areas: boxes decide which objects count as small, medium and "
            "large"
        )
        if form == "yolo" and num_masks:
            note += ", or masks where they are read"
        notes.append(note)
    if form == "voc":
        if num_masks:
            left_out = counted(num_masks, "mask is", "masks are")
            notes.append(f"VOC has no masks: {left_out} left out")
            splits = {split: replace(a, masks=None) for split, a in splits.items()}
        _require_distinct_names(splits)
        return splits, notes + _unused_classes(splits)
    for split, annotations in splits.items():
        _require_separate_labels({split: annotations})
    _require_same_classes(splits)
    crowds = 0
    objects: Splits = {}
    for split, annotations in splits.items():
        crowds += int(annotations.iscrowd.sum())
        objects[split], sentences = as_single_polygons(without_crowds(annotations))
        notes += [f"{split}: {sentence}" for sentence in sentences]
    if crowds:
        left_out = counted(crowds, "object is", "objects are")
        notes.append(f"YOLO has no crowds and no objects to ignore: {left_out} left out")
    return objects, notes


def _require_distinct_names(splits: Splits) -> None:
    """Raises InputError if several classes have the same name, for a format that identifies classes
    by name."""
    for annotations in splits.values():
        counts = Counter(annotations.class_names)
        for name, count in counts.items():
            if count > 1:
                text = f"VOC has no class ids: {count} called {name!r} would become one"
                remedy = "give each its own name"
                raise InputError(text, where=annotations.source, remedy=remedy)


def _unused_classes(splits: Splits) -> list[str]:
    """A sentence on the classes without objects, which VOC cannot represent."""
    listed: set[str] = set()
    used: set[str] = set()
    for a in splits.values():
        listed.update(a.class_names)
        numbers = np.unique(a.labels).tolist()
        used.update(a.class_names[number] for number in numbers)
    unused = listed - used
    if not unused:
        return []
    example = min(unused)
    left_out = counted(len(unused), "class without objects is", "classes without objects are")
    return [f"VOC has no class list: {left_out} left out, such as {example!r}"]


def _require_same_classes(splits: Splits) -> None:
    """Raises InputError if the splits list different classes."""
    first, *others = splits
    class_names = splits[first].class_names
    for split in others:
        annotations = splits[split]
        if annotations.class_names != class_names:
            text = f"{split} lists other classes than {first}, but YOLO has one list for all splits"
            raise InputError(text, where=annotations.source, remedy="make them the same")


def without_crowds(annotations: Annotations) -> Annotations:
    """All images, and the objects that are not crowds."""
    all_images = np.ones(len(annotations), bool)
    return annotations.only(all_images, ~annotations.iscrowd)


def _has_outlines(annotations: Annotations) -> bool:
    """Whether areas differ from those of the boxes."""
    boxes = annotations.boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(1)
    return not np.allclose(annotations.area, areas, rtol=0.01)


def _require_separate_labels(splits: Splits) -> None:
    """Raises InputError if two images would share a label file, also if they do so only on Windows
    and macOS."""
    first_with: dict[str, tuple[Split, str]] = {}
    for split, annotations in splits.items():
        for name in names_of(annotations):
            stem, _ = posixpath.splitext(name)
            spelling = without_capitals(stem)
            if spelling not in first_with:
                first_with[spelling] = split, name
                continue
            other_split, other = first_with[spelling]
            text = f"{other!r} and {name!r} would share one label file"
            remedy = "rename one of them"
            if other_split != split:
                text = f"{other!r} of {other_split} and {name!r} of {split} would share one file"
            elif other == name:
                text = f"two entries of image {name!r} would share one label file"
                remedy = "merge them into one, with all objects"
            if posixpath.splitext(other)[0] != stem:
                text += " on Windows and macOS, which ignore capitals and Unicode forms"
            raise InputError(text, where=annotations.source, remedy=remedy)


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(os.path.realpath(source), destination)
    except FileExistsError:
        raise name_taken(destination) from None
    except OSError:  # another disk, or a file system without hard links
        _copy(source, destination)


def _copy(source: Path, destination: Path) -> None:
    # A file that exists may be a hard link to an image of the source, which would be written to.
    if os.path.lexists(destination):
        raise name_taken(destination)
    copy_data_file(source, destination)
