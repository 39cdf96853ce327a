"""Finds files in a data folder that belong to no split: images, and files of other types."""

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from redetr.data.annotations import Annotations, Split, data_folder
from redetr.data.archives import archives_in, open_archive, split_path
from redetr.data.faults import Fault, listed
from redetr.data.formats.label_images import is_label_folder
from redetr.data.formats.labels import LABEL_SUFFIX, label_name
from redetr.data.formats.layouts import annotation_suffix, read_annotations, splits_of
from redetr.data.formats.listing import Contents, contents_of, passed_over
from redetr.data.formats.panoptic import png_folder
from redetr.data.formats.voc_masks import voc_mask_folder
from redetr.data.images import cached_copies, is_image_name
from redetr.errors import InputError
from redetr.wording import counted


def unclaimed_files(splits: Mapping[Split, Annotations]) -> list[Fault]:
    """Faults for images in the data folder that no split names, and for other files that are
    skipped: one for each kind, with the count and an example.

    `splits` were read without errors. A test split that is not among them is read as well if it may
    name images that the others do not. Data without a folder has no faults.
    """
    annotations = next(iter(splits.values()), None)
    if annotations is None or annotations.root is None:
        return []
    root = annotations.root
    folder = data_folder(root)
    used = _used(folder, splits.values())
    contents = _contents(folder, used)
    unused = _unused(contents, used)
    if unused and "test" not in splits and "test" in splits_of(root):
        try:
            test = read_annotations(root, "test")
        except InputError as error:
            return [Fault.from_error("split-unreadable", error, root).in_split("test")]
        used |= _used(folder, [test])
        unused = _unused(contents, used)
    return [
        *_unused_faults(folder, unused, used),
        *_unread_namesakes(root, contents, used),
        *passed_over(_near(contents, used)),
    ]


def unclaimed_beside(annotations: Annotations) -> list[Fault]:
    """The faults of `unclaimed_files` for a single split, with only the images in its folders.

    The other splits are read if they may name images that this one does not.
    """
    root = annotations.root
    if root is None:
        return []
    folder = data_folder(root)
    used = _used(folder, [annotations])
    contents = _contents(folder, used)
    folders = _folders(used)
    unused = [path for path in _unused(contents, used) if posixpath.dirname(path) in folders]
    faults = [*_unread_namesakes(root, contents, used), *passed_over(_near(contents, used))]
    other_splits = splits_of(root) if unused else []
    for split in other_splits:
        try:
            used |= _used(folder, [read_annotations(root, split)])
        except InputError as error:
            fault = Fault.from_error("split-unreadable", error, root)
            return [replace(fault, severity="warning"), *faults]
    unused = [path for path in unused if path not in used]
    return [*_unused_faults(folder, unused, used), *faults]


def _used(folder: Path, splits: Iterable[Annotations]) -> set[str]:
    """The paths of all images and label images of the splits, relative to the data folder."""
    used = set()
    for annotations in splits:
        parent = os.path.relpath(annotations.folder, folder)
        names = [os.fsdecode(name) for name in annotations.names.tolist()]
        names += annotations.unreadable
        used.update(_below(parent, names))
        label_images = _label_image_folder(annotations.source)
        if label_images is not None:
            parent = os.path.relpath(label_images, folder)
            used.update(_below(parent, contents_of(label_images).files))
    return used


def _below(parent: str, names: Iterable[str]) -> list[str]:
    """The paths of names in `parent`, which is "." for the data folder itself."""
    prefix = "" if parent == "." else f"{parent}/"
    return [prefix + name for name in names]


def _label_image_folder(source: Path) -> Path | None:
    """The folder of the label images that belong to a file or folder of annotations, if any."""
    if is_label_folder(source):
        return source
    return png_folder(source) or voc_mask_folder(source)


def _folders(paths: Iterable[str]) -> set[str]:
    return {posixpath.dirname(path) for path in paths}


def _contents(folder: Path, used: set[str]) -> Contents:
    """The contents of the data folder, with linked folders and archives that hold used images."""
    contents = contents_of(folder, is_wide=False)
    folders = _folders(used)
    for link in list(contents.links):
        is_used = any(f"{name}/".startswith(f"{link}/") for name in folders)
        if not is_used:
            continue
        contents.links.remove(link)
        linked = contents_of(folder / link)
        for paths, linked_paths in zip(contents.lists(), linked.lists(), strict=True):
            paths += _below(link, linked_paths)
    archived = _archived(folder, folders)
    caches = cached_copies(archived)
    contents.files += [path for path in archived if path not in caches]
    contents.caches += sorted(caches)
    # An array beside an image of its name is data if an annotation names it.
    contents.caches = [path for path in contents.caches if path not in used]
    return contents


def _archived(folder: Path, folders: set[str]) -> list[str]:
    """The images in archives that hold used images, and in the archives beside these."""
    archives = set()
    for name in folders:
        parts = split_path(folder / name)
        if parts is not None:
            archives.update(archives_in(Path(parts[0]).parent))
    paths = []
    for archive in sorted(archives):
        images = [name for name in open_archive(archive).names() if is_image_name(name)]
        paths += _below(os.path.relpath(archive, folder), images)
    return paths


def _unused(contents: Contents, used: set[str]) -> list[str]:
    return [path for path in contents.files if path not in used]


def _unused_faults(folder: Path, unused: list[str], used: set[str]) -> list[Fault]:
    """A warning on unused images beside used ones, and a note on folders with only unused ones."""
    folders = _folders(used)
    beside = []
    elsewhere: dict[str, list[str]] = defaultdict(list)
    for path in unused:
        parent, _, name = path.rpartition("/")
        if parent in folders:
            beside.append(path)
        else:
            elsewhere[parent].append(name)
    faults = []
    if beside:
        text = "no annotation names this image"
        remedy = "annotate it, or remove it from the folder"
        count = len(beside)
        items = listed(beside)
        faults.append(
            Fault("warning", "image-unused", folder, items[0], text, remedy, count, items)
        )
    if elsewhere:
        names = next(iter(elsewhere.values()))
        images = counted(len(names), "image")
        text = f"no split has {images} in this folder, such as {names[0]}"
        remedy = "nothing to do if that is intended"
        items = listed(parent or "." for parent in elsewhere)
        count = len(elsewhere)
        faults.append(Fault("note", "folder-unused", folder, items[0], text, remedy, count, items))
    return faults


def _unread_namesakes(root: Path, contents: Contents, used: set[str]) -> list[Fault]:
    """A warning on files that have the name of a used image beside them and are not read: they may
    be annotations in another format."""
    folders = _folders(used)
    suffix = annotation_suffix(root)
    faults = []
    for namesakes in contents.namesakes:
        path = namesakes.paths[0]
        parent = posixpath.dirname(path)
        _, ending = posixpath.splitext(path)
        is_read = ending.lower() == suffix
        if suffix == LABEL_SUFFIX:
            is_read = label_name(path) == path
        if parent in folders and not is_read:
            text = "has the name of an image beside it, but is not read"
            remedy = "delete such files, or move the images that they describe to another folder"
            faults.append(
                Fault(
                    "warning",
                    "annotation-unread",
                    contents.root,
                    path,
                    text,
                    remedy,
                    namesakes.count,
                    listed(namesakes.paths),
                )
            )
    return faults


def _near(contents: Contents, used: set[str]) -> Contents:
    """The contents without other files and links outside the folders of used images."""
    folders = _folders(used)
    return replace(
        contents,
        others=[path for path in contents.others if _is_near(path, folders)],
        links=[path for path in contents.links if _is_near(path, folders)],
    )


def _is_near(path: str, folders: set[str]) -> bool:
    """Whether the path lies in one of the folders, at any depth."""
    parent = path
    while parent:
        parent = posixpath.dirname(parent)
        if parent in folders:
            return True
    return False
