"""Records the images and annotations of a run, so that it can be repeated, and is not resumed on
others."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from redetr.data.annotations import Annotations
from redetr.data.dataset import DetectionDataset
from redetr.data.formats.folder import AnnotatedDataset, FolderDataset
from redetr.data.header_cache import content_text, first_same
from redetr.data.headers import read_headers
from redetr.data.store import remembered
from redetr.distributed import Dist
from redetr.errors import InputError
from redetr.files import open_file, write_json, write_whole

_MOST_IN_TEXT = 100_000  # images whose hashes are written as text
# What reading a damaged file may raise: errors of the disk and of arrays, and of JSON.
_DAMAGE = (
    *(OSError, ValueError, BadZipFile, EOFError),
    *(RecursionError, AttributeError, KeyError, TypeError),
)


@dataclass(frozen=True)
class ImageHashes:
    """The image files of a split, each name once, sorted as bytes, with their hashes."""

    names: np.ndarray  # [N] bytes
    contents: np.ndarray  # [N, 4] uint64, SHA-256; zeros for a file that could not be read

    @classmethod
    def of(cls, names: np.ndarray, contents: np.ndarray) -> "ImageHashes":
        """The hashes of files; names may be in any order, each once."""
        distinct, first = np.unique(names, return_index=True)
        return cls(distinct, contents[first])

    @classmethod
    def from_json(cls, images: Mapping[str, str]) -> "ImageHashes":
        """The inverse of `to_json`. Raises ValueError for values that it does not return."""
        hashes = [bytes.fromhex(text or 64 * "0") for text in images.values()]
        if not all(len(hash_) == 32 for hash_ in hashes):
            raise ValueError("a hash of another length")
        encoded_names = [os.fsencode(name) for name in images]
        names = np.array(encoded_names, "S")
        all_bytes = b"".join(hashes)
        contents = np.frombuffer(all_bytes, np.uint64).reshape(-1, 4)
        return cls.of(names, contents)

    def __contains__(self, name: str) -> bool:
        return bool((self.names == os.fsencode(name)).any())

    def to_json(self) -> dict[str, str]:
        """The hashes as text, by name; empty for files that could not be read."""
        images = {}
        for name, content in zip(self.names.tolist(), self.contents, strict=True):
            images[os.fsdecode(name)] = content_text(content)
        return images

    def first_change(self, other: "ImageHashes") -> str:
        """The first name that only one of the two has, or that has different hashes; empty if both
        are equal."""
        common, mine, theirs = np.intersect1d(
            self.names, other.names, assume_unique=True, return_indices=True
        )
        differs = (self.contents[mine] != other.contents[theirs]).any(1)
        alone = np.setxor1d(self.names, other.names, assume_unique=True)
        changed = np.concatenate([common[differs], alone])
        return os.fsdecode(min(changed.tolist())) if len(changed) else ""


@dataclass(frozen=True)
class Inventory:
    """The images and annotations of a split, so that a run can be repeated."""

    name: str
    count: int
    classes: tuple[str, ...]
    annotations: dict[str, str] | None  # hashes, by what a message calls it; None: not recorded
    images: ImageHashes  # of image files, on rank 0


def inventory(data: DetectionDataset, dist: Dist) -> Inventory:
    """The images of a data set with their hashes (on rank 0), and hashes of its annotations.

    Communicates: each rank reads its share of the files, so no rank waits longer than for a share.
    Raises InputError if ranks have read different annotations.
    """
    dist.doing(f"reading the images of {data.name}")
    images = _NO_IMAGES
    if isinstance(data, FolderDataset):
        images = _contents_of_images(data.annotations, dist)
    hashes = {}
    if isinstance(data, AnnotatedDataset):
        annotations = data.annotations
        hashes = remembered([annotations], "hashes", lambda: _hashes(annotations))
    dist.meet()
    for rank, others in enumerate(dist.gather([hashes])):
        if others != hashes:
            text = f"rank {rank} read different annotations from rank {dist.rank}"
            raise InputError(text, where=data.name, remedy="give all hosts the same data")
    return Inventory(data.name, len(data), tuple(data.class_names), hashes, images)


def _contents_of_images(annotations: Annotations, dist: Dist) -> ImageHashes:
    """The hash of each image file, on rank 0, which caches those of a large data set.
    Communicates."""
    file = annotations.stored / "contents.npy" if annotations.stored else None
    contents = None
    if dist.rank == 0 and file is not None:
        contents = _read_contents(file, len(annotations))
    # Only rank 0 decides, because other ranks may see the cache of another host.
    is_known, *_ = dist.gather([contents is not None])
    if not is_known:
        share = slice(dist.rank, None, dist.world_size)
        names = [os.fsdecode(name) for name in annotations.names[share]]
        headers = read_headers(annotations.folder, names, content=True)
        dist.meet()
        shares = dist.gather([headers.rows["content"]])
        if dist.rank == 0:
            contents = np.empty((len(annotations), 4), np.uint64)
            for rank, rows in enumerate(shares):
                contents[rank :: dist.world_size] = rows
            if file is not None:
                _write_array(file, contents)
    if contents is None:
        return _NO_IMAGES
    return ImageHashes.of(annotations.names, contents)


def _read_contents(file: Path, count: int) -> np.ndarray | None:
    """The hashes of this many images; None if they are missing or damaged."""
    with suppress(OSError, ValueError, EOFError):
        contents = np.load(file)
        if contents.shape == (count, 4) and contents.dtype == np.uint64:
            return contents
    return None


def _write_array(file: Path, array: np.ndarray) -> None:
    with suppress(OSError):  # only costs time
        write_whole(file, lambda path: np.save(path, array))


_NO_IMAGES = ImageHashes(np.zeros(0, "S1"), np.zeros((0, 4), np.uint64))


def _hashes(annotations: Annotations) -> dict[str, str]:
    """Hashes of the parts of annotations that training and evaluation use, by their names in
    messages.

    Ids of images and objects do not count. Takes about 2 s for 1 GB of boxes.
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


def write_inventories(file: Path, inventories: Mapping[str, Inventory]) -> None:
    """Writes the inventories of a run as JSON. The hashes of many images are written to an array
    file next to it, because writing and reading them as text would take a gigabyte."""
    content = {}
    for split, current in inventories.items():
        fields: dict[str, Any] = {
            "name": current.name,
            "count": current.count,
            "classes": list(current.classes),
            "annotations": current.annotations,
        }
        if len(current.images.names) <= _MOST_IN_TEXT:
            fields["images"] = current.images.to_json()
        else:
            write_whole(_array_file(file, split), partial(_save_hashes, current.images))
        content[split] = fields
    write_json(file, content)


def require_unchanged(file: Path, inventories: Mapping[str, Inventory]) -> list[str]:
    """Raises InputError if `file`, the inventories of the resumed run, has other images, an image
    with other content, or other annotations.

    Returns notes on parts that could not be compared.
    """
    if not file.exists():
        return [f"warning: {file} is missing, so the data could not be checked for changes"]
    before = _read_inventories(file)
    notes = []
    for split, current in inventories.items():
        recorded = before[split]
        image = current.images.first_change(recorded.images)
        change = _change_of(split, image, recorded, current)
        remedy = "restore the data, or give another --output"
        if image and _is_in_other_split(image, split, before, inventories):
            change = f"{image} was in another split when the run began"
            remedy = (
                "restore the data; if it is unchanged, an earlier version of redetr held out other "
                "images: give another --output"
            )
        if change:
            raise InputError(change, where=file, remedy=remedy)
        if recorded.annotations is None:
            notes.append(
                f"note: {file} is from an earlier version, without hashes of annotations, so those "
                f"of {split} could not be checked for changes"
            )
    return notes


def _change_of(split: str, image: str, recorded: Inventory, current: Inventory) -> str:
    """What has changed in a split since the run began: `image`, the first that differs, if there is
    one, or else annotations or classes. Empty if nothing has."""
    if image and image not in recorded.images:
        return f"{image} has been added to {split} since the run began"
    if image and image not in current.images:
        return f"{image} has been removed from {split} since the run began"
    if image:
        return f"{image} of {split} has changed since the run began"
    hashes = recorded.annotations or {}
    hashes_now = current.annotations or {}
    columns = [name for name, value in hashes.items() if hashes_now.get(name) != value]
    if columns:
        names = " and the ".join(columns)
        return f"the {names} of {split} have changed since the run began"
    if current.classes != recorded.classes:  # of a data set of the user's own
        return f"the classes of {split} have changed since the run began"
    return ""


def _is_in_other_split(
    image: str, split: str, before: Mapping[str, Inventory], now: Mapping[str, Inventory]
) -> bool:
    """Whether an image of one inventory of a split is in another split of the other."""
    for inventories, others in ((before, now), (now, before)):
        if image not in inventories[split].images:
            continue
        for name, other in others.items():
            if name != split and image in other.images and image not in others[split].images:
                return True
    return False


def was_trained_on(file: Path, dataset: DetectionDataset) -> bool:
    """Whether the run with the inventories `file` was trained on an image of `dataset`, and not
    evaluated on one of that name; False if they cannot be read."""
    if not isinstance(dataset, FolderDataset):
        return False
    try:
        run_inventories = _read_inventories(file)
    except InputError:
        return False
    names = dataset.annotations.names
    in_train = np.isin(names, run_inventories["train"].images.names)
    in_val = np.isin(names, run_inventories["val"].images.names)
    return bool((in_train & ~in_val).any())


def _read_inventories(file: Path) -> dict[str, Inventory]:
    inventories = {}
    try:
        content = json.loads(file.read_bytes())
        for split in ("train", "val"):
            inventories[split] = _read_inventory(file, split, content[split])
    except _DAMAGE:
        raise InputError(
            "cut short or damaged: whether the data has changed cannot be checked",
            where=file,
            remedy="delete it to resume without that check",
        ) from None
    return inventories


def _read_inventory(file: Path, split: str, fields: Mapping[str, Any]) -> Inventory:
    hashes = fields.get("annotations")
    return Inventory(
        name=fields["name"],
        count=fields["count"],
        classes=tuple(fields["classes"]),
        annotations=None if hashes is None else dict(hashes),
        images=_read_images(_array_file(file, split), fields),
    )


def _array_file(file: Path, split: str) -> Path:
    return file.with_name(f"{file.stem}-{split}.npz")


def _save_hashes(images: ImageHashes, path: Path) -> None:
    np.savez(path, names=images.names, contents=images.contents)


def _read_images(file: Path, fields: Mapping[str, Any]) -> ImageHashes:
    """The hashes in the text of an inventory, or in the file next to it."""
    if "images" in fields:
        return ImageHashes.from_json(fields["images"])
    with open_file(file) as opened, np.load(opened) as arrays:
        return ImageHashes(arrays["names"], arrays["contents"])


def copied_images(inventories: Mapping[str, Inventory]) -> list[str]:
    """A sentence on images that are in several splits, and one on images that are in a split twice.
    The contents of their files are equal."""
    splits = list(inventories)
    counts = [len(inventories[split].images.names) for split in splits]
    split_of = np.repeat(np.arange(len(splits)), counts)
    starts = np.append(0, np.cumsum(counts))
    contents = [current.images.contents for current in inventories.values()]
    first = first_same(np.concatenate(contents))  # [N], over the images of all splits
    is_copy = first != np.arange(len(first))
    is_leaked = is_copy & (split_of[first] != split_of)

    def name(i: int) -> str:
        number = split_of[i]
        return os.fsdecode(inventories[splits[number]].images.names[i - starts[number]])

    sentences = []
    leaked = np.flatnonzero(is_leaked)
    if len(leaked):
        i = leaked[0]
        original = first[i]
        text = f"of {splits[split_of[i]]} is the same image as {name(original)} of "
        text += splits[split_of[original]]
        remedy = "remove it from one split: otherwise AP is higher than on unseen images"
        sentences.append(_about_copies(name(i), text, remedy, len(leaked)))
    twice = np.flatnonzero(is_copy & ~is_leaked)
    if len(twice):
        i = twice[0]
        original = first[i]
        text = f"of {splits[split_of[i]]} is the same image as {name(original)}"
        remedy = "keep one, with all boxes"
        sentences.append(_about_copies(name(i), text, remedy, len(twice)))
    return sentences


def _about_copies(name: str, text: str, remedy: str, count: int) -> str:
    more = f" (and {count - 1} more like it)" if count > 1 else ""
    return f"warning: {name} {text}; {remedy}{more}"
