"""Which files of a data folder nothing claims: images that no split names, and what is passed
over."""

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from redetr.data.annotations import Annotations, Fault, Split, data_folder
from redetr.data.archives import archives_in, open_archive, split_path
from redetr.data.formats.label_images import is_label_folder
from redetr.data.formats.labels import LABEL_SUFFIX, label_name
from redetr.data.formats.layouts import annotation_suffix, read_annotations, splits_of
from redetr.data.formats.listing import Contents, contents_of, passed_over
from redetr.data.formats.panoptic import png_folder
from redetr.data.formats.voc_masks import voc_mask_folder
from redetr.data.images import is_image_name
from redetr.errors import InputError
from redetr.wording import counted


def unclaimed_files(splits: Mapping[Split, Annotations]) -> list[Fault]:
    """The images in the data folder that no split names, and whatever else is passed over there: a
    line for each kind, with its count and an example.

    `splits` are those that were read, without errors; a test split that is there and not among them
    is read if there are images that it may name. Nothing is reported of data without a folder.
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
    """What `unclaimed_files` reports, of a single split: of images, only those in the folders of
    its own. The other splits are read if there are images that they may name."""
    root = annotations.root
    if root is None:
        return []
    folder = data_folder(root)
    used = _used(folder, [annotations])
    contents = _contents(folder, used)
    folders = _folders(used)
    unused = [path for path in _unused(contents, used) if path.rpartition("/")[0] in folders]
    faults = [*_unread_namesakes(root, contents, used), *passed_over(_near(contents, used))]
    for split in splits_of(root) if unused else ():
        try:
            used |= _used(folder, [read_annotations(root, split)])
        except InputError as error:
            fault = Fault.from_error("split-unreadable", error, root)
            return [replace(fault, severity="warning"), *faults]
    unused = [path for path in unused if path not in used]
    return [*_unused_faults(folder, unused, used), *faults]


def _used(folder: Path, splits: Iterable[Annotations]) -> set[str]:
    """The paths of all images of the splits, label images too, relative to the data folder."""
    used = set()
    for annotations in splits:
        below = os.path.relpath(annotations.folder, folder)
        prefix = "" if below == "." else f"{below}/"
        used |= {prefix + os.fsdecode(name) for name in annotations.names.tolist()}
        used |= {prefix + name for name in annotations.unreadable}
        source = annotations.source
        labels = source if is_label_folder(source) else png_folder(source)
        labels = labels or voc_mask_folder(source)
        if labels is not None:
            below = os.path.relpath(labels, folder)
            used |= {f"{below}/{name}" for name in contents_of(labels).files}
    return used


def _folders(paths: Iterable[str]) -> set[str]:
    return {path.rpartition("/")[0] for path in paths}


def _contents(folder: Path, used: set[str]) -> Contents:
    """What is below the data folder, also in those linked folders that hold images of the data."""
    contents = contents_of(folder, is_wide=False)
    folders = _folders(used)
    for link in list(contents.links):
        if any(f"{name}/".startswith(f"{link}/") for name in folders):
            contents.links.remove(link)
            linked = contents_of(folder / link)
            for paths, more in zip(contents.lists(), linked.lists(), strict=True):
                paths += [posixpath.join(link, path) for path in more]
    contents.files += _archived(folder, folders)
    return contents


def _archived(folder: Path, folders: set[str]) -> list[str]:
    """The images in the archives beside those that hold images of the data set, and in these."""
    archives = set()
    for name in folders:
        parts = split_path(folder / name)
        if parts is not None:
            archives.update(archives_in(Path(parts[0]).parent))
    paths = []
    for archive in sorted(archives):
        below = os.path.relpath(archive, folder)
        for name in open_archive(archive).names():
            if is_image_name(name):
                paths.append(f"{below}/{name}")
    return paths


def _unused(contents: Contents, used: set[str]) -> list[str]:
    return [path for path in contents.files if path not in used]


def _unused_faults(folder: Path, unused: list[str], used: set[str]) -> list[Fault]:
    """A warning on images beside those of the data set, and a note on folders without any of its
    images."""
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
        remedy = "annotate it, or take it out of the folder"
        faults.append(
            Fault("warning", "image-unused", folder, beside[0], text, remedy, len(beside))
        )
    if elsewhere:
        parent, names = next(iter(elsewhere.items()))
        images = counted(len(names), "image")
        text = f"no split has {images} of this folder, such as {names[0]}"
        remedy = "nothing to do if they are not meant to be"
        where = parent or "."
        faults.append(Fault("note", "folder-unused", folder, where, text, remedy, len(elsewhere)))
    return faults


def _unread_namesakes(root: Path, contents: Contents, used: set[str]) -> list[Fault]:
    """A warning on files beside images of the data set that are called as they are, as annotations
    in another format would be, and are not read."""
    folders = _folders(used)
    suffix = annotation_suffix(root)
    faults = []
    for path, count in contents.namesakes.items():
        parent, _, _ = path.rpartition("/")
        stem, ending = posixpath.splitext(path)
        is_read = ending.lower() == suffix
        if suffix == LABEL_SUFFIX:
            is_read = label_name(stem) == path
        if parent in folders and not is_read:
            text = "lies beside the image of that name, and is not read"
            remedy = (
                "delete such files, or give the images that they describe a folder of their own"
            )
            faults.append(
                Fault("warning", "annotation-unread", contents.root, path, text, remedy, count)
            )
    return faults


def _near(contents: Contents, used: set[str]) -> Contents:
    """The contents without files of unknown kinds far from the images of the data set."""
    folders = _folders(used)
    return replace(
        contents,
        others=[path for path in contents.others if _is_near(path, folders)],
        links=[path for path in contents.links if _is_near(path, folders)],
    )


def _is_near(path: str, folders: set[str]) -> bool:
    """Whether a folder of images of the data set holds the path, at whatever depth."""
    parent = path
    while parent:
        parent = parent.rpartition("/")[0]
        if parent in folders:
            return True
    return False
