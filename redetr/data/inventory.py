"""Which images a run was trained on, so that it can be repeated and is not resumed on others; and
which files of its data folder nothing claims."""

import hashlib
import json
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from redetr.data.annotations import Annotations, Fault, Split, data_folder
from redetr.data.dataset import DetectionDataset
from redetr.data.formats.folder import AnnotatedDataset, FolderDataset
from redetr.data.formats.label_images import is_label_folder
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.formats.listing import Contents, contents_of, passed_over
from redetr.data.formats.panoptic import png_folder
from redetr.data.headers import read_headers
from redetr.data.store import remembered
from redetr.distributed import Dist
from redetr.errors import InputError
from redetr.files import write_whole
from redetr.wording import counted


def inventory(data: DetectionDataset, dist: Dist) -> dict[str, Any]:
    """Which images a data set has, with the hash of each (on rank 0), and hashes of its
    annotations, so that a run can be repeated. Communicates: each rank reads its share of the
    files, so none waits for another longer than for a share.

    Raises InputError if ranks have read different annotations.
    """
    dist.doing(f"reading the images of {data.name}")
    images: dict[str, str] = {}
    if isinstance(data, FolderDataset):
        images = _contents_of_images(data.annotations, dist)
    hashes = {}
    if isinstance(data, AnnotatedDataset):
        annotations = data.annotations
        hashes = remembered([annotations], "hashes", lambda: _hashes(annotations))
    dist.meet()
    for rank, others in enumerate(dist.gather([hashes])):
        if others != hashes:
            text = f"rank {rank} has read other annotations than rank {dist.rank}"
            raise InputError(text, where=data.name, remedy="give all hosts the same data")
    return {
        "name": data.name,
        "count": len(data),
        "classes": list(data.class_names),
        "annotations": hashes,
        "images": images,
    }


def _contents_of_images(annotations: Annotations, dist: Dist) -> dict[str, str]:
    """The hash of each image file by its name; on rank 0, where a large data set's are remembered.
    Communicates."""
    stored = annotations.stored
    file = stored / "contents.npy" if stored else None
    # Rank 0 alone decides: what others see may be another host's.
    is_known, *_ = dist.gather([file is not None and file.exists()])
    if is_known and file is not None:
        if dist.rank > 0:
            return {}
        hashes = np.load(file, mmap_mode="r").tolist()
        known = {}
        for name, hash_ in zip(annotations.names.tolist(), hashes, strict=True):
            known[os.fsdecode(name)] = hash_.decode()
        return known
    share = [os.fsdecode(name) for name in annotations.names[dist.rank :: dist.world_size]]
    headers = read_headers(annotations.folder, share, content=True)
    contents = [(name, header.content) for name, header in zip(share, headers, strict=True)]
    dist.meet()
    images = dict(sorted(dist.gather(contents)))
    if dist.rank > 0:
        return {}
    if file is not None:
        hashes = np.array([images[os.fsdecode(name)] for name in annotations.names.tolist()], "S64")
        with suppress(OSError):  # costs time, nothing else
            write_whole(file, lambda path: np.save(path, hashes))
    return images


def _hashes(annotations: Annotations) -> dict[str, str]:
    """Hashes of what training and evaluation take from annotations, by what a message calls it.

    Ids of images and objects are not among it. Some 2 s for a thousand million bytes of boxes.
    """
    names = b"\0".join(annotations.names.tolist())
    classes = repr((annotations.category_ids, annotations.class_names)).encode()
    columns = {
        "images, their sizes or their order": (_bytes(names), annotations.sizes),
        "classes": (_bytes(classes),),
        "boxes": (annotations.first, annotations.boxes),
        "labels": (annotations.labels,),
        "crowds and areas": (annotations.iscrowd, annotations.area),
    }
    hashes = {}
    for name, values in columns.items():
        digest = hashlib.blake2b(digest_size=16)
        for value in values:
            digest.update(np.ascontiguousarray(value).data)
        hashes[name] = digest.hexdigest()
    return hashes


def _bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def require_unchanged(file: Path, inventories: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Raises InputError if `file`, the inventories of the run that resumes, has other images,
    another content of one, or other annotations. Returns notes on what could not be compared.
    """
    if not file.exists():
        return [f"warning: {file} is gone: whether the data has changed was not checked"]
    before = _read_inventories(file)
    notes = []
    for split, current in inventories.items():
        recorded = before[split]
        images = set(recorded["images"].items()) ^ set(current["images"].items())
        hashes = recorded.get("annotations", {})
        hashes_now = current["annotations"]
        columns = [name for name, value in hashes.items() if hashes_now.get(name) != value]
        change = ""
        if images:
            change = f"{min(images)[0]} of {split} is not what it was"
        elif columns:
            change = f"the {' and the '.join(columns)} of {split} are not what they were"
        if change:
            remedy = "put the data back, or give another --output"
            raise InputError(f"{change} when the run began", where=file, remedy=remedy)
        if "annotations" not in recorded:
            notes.append(
                f"note: {file} is of an earlier version, without hashes of annotations: whether "
                f"those of {split} have changed was not checked"
            )
    return notes


def _read_inventories(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
        for split in ("train", "val"):
            dict(content[split]["images"])
            dict(content[split].get("annotations", {}))
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise InputError(
            "cut short or damaged: whether the data has changed cannot be checked",
            where=file,
            remedy="delete it to resume without that check",
        ) from None
    return content


def copied_images(inventories: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence on images that several splits have, and one on those that a split has twice; the
    content of their files is the same."""
    first_with: dict[str, tuple[str, str]] = {}
    twice: list[str] = []
    leaked: list[str] = []
    for split, inventory_of_split in inventories.items():
        for name, content in sorted(inventory_of_split["images"].items()):
            if not content:
                continue
            first_split, first = first_with.setdefault(content, (split, name))
            if first_split != split:
                leaked.append(f"{name} of {split} is the same image as {first} of {first_split}")
            elif first != name:
                twice.append(f"{name} of {split} is the same image as {first}")
    remedies = {
        "take it out of one split: AP will be better than on images never seen": leaked,
        "keep one, with all boxes": twice,
    }
    sentences = []
    for remedy, copies in remedies.items():
        if copies:
            more = f" (and {len(copies) - 1} more like it)" if len(copies) > 1 else ""
            sentences.append(f"warning: {copies[0]}; {remedy}{more}")
    return sentences


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
    return [*_unused_faults(folder, unused, used), *passed_over(_near(contents, used))]


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
    faults = passed_over(_near(contents, used))
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
    return contents


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
