"""Annotations of large data sets, kept as arrays on disk: read once, then mapped into the memory of
every process, which share it.

A store is a folder in the user's cache, named after the data set, the state of all files below it
(paths, sizes, times of change) and the code of this package: what has changed is read again. It is
written under another name and renamed, so each is whole or not there.

A new store replaces those of earlier states, but not while a process has them open: its loader
processes may yet open them by their path, and on a shared disk a file that another host removes is
gone for those who have it mapped. So each process that has a store open locks its files.
"""

import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import redetr
from redetr.data.annotations import (
    IMAGE_COLUMNS,
    OBJECT_COLUMNS,
    Annotations,
    Masks,
    Split,
    data_folder,
)
from redetr.data.faults import Fault
from redetr.data.mask_columns import MaskColumns, MaskUse
from redetr.data.segment_images import SegmentImages
from redetr.files import (
    RUN_FILES,
    UNFINISHED,
    cache_folder,
    hashed_name,
    holds_run,
    write_json,
)

try:
    import fcntl
except ImportError:  # on Windows, where nobody can remove an open file
    fcntl = None  # type: ignore[assignment]

# A data set with fewer images and objects is not stored: it is read in a second.
WORTH = 100_000
_ABANDONED_S = 86_400.0  # since the last file was added to an unfinished store
_COLUMNS = (*IMAGE_COLUMNS, "first", *OBJECT_COLUMNS)

# The classes that hold masks, if they were read, and their columns.
_MASK_KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "MaskColumns": (MaskColumns, ("points", "first_point", "counts", "first_count")),
    "SegmentImages": (SegmentImages, ("segment_files", "segment_file", "segment_ids")),
}

# What `load` raises if a store is missing or damaged.
_NOT_LOADED = (OSError, ValueError, KeyError, TypeError)

Read = Callable[[Path, Split, float, MaskUse], tuple[Annotations, str]]


def stamp_of(folder: Path) -> str:
    """A hash of the path, size and times of change of every file below a folder, including linked
    folders, but not those of runs. Takes about 4 us per file."""
    total = 0
    seen: set[tuple[int, int]] = set()
    pending = [os.fspath(folder)]
    while pending:
        parent = pending.pop()
        stat = os.stat(parent)
        if (stat.st_dev, stat.st_ino) in seen:  # a link that leads back to a parent
            continue
        seen.add((stat.st_dev, stat.st_ino))
        of_folder = 0
        below = []
        run_files = set()
        with os.scandir(parent) as entries:  # one by one, as there may be a million
            for entry in entries:
                if entry.is_dir():
                    below.append(entry.path)
                    continue
                of_folder += _number(entry)  # a sum does not depend on the order of the entries
                if entry.name in RUN_FILES:
                    run_files.add(entry.name)
        if parent == os.fspath(folder) or not holds_run(run_files):
            total += of_folder
            pending += below
    return f"{total % 2**128:032x}"


def _number(entry: os.DirEntry[str]) -> int:
    """A hash of one file as a number."""
    try:
        stat = entry.stat()
    except OSError:  # a link that leads nowhere
        text = entry.path
    else:
        # The last is set by the system alone: `cp -p` and `rsync -t` keep the time of a copy.
        text = f"{entry.path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
    digest = hashlib.blake2b(os.fsencode(text), digest_size=16).digest()
    return int.from_bytes(digest, "big")


def read_stored(
    root: Path,
    split: Split,
    val_fraction: float,
    stamp: str | None,
    read: Read,
    masks: MaskUse = "none",
) -> tuple[Annotations, str]:
    """What `read` returns of a folder, or of a YAML file: from its store if there is one, else
    stored for the next time, if it is large. `stamp` is that of the folder, if it is known."""
    folder = data_folder(root)
    try:
        # Before it is read: what changes meanwhile is read again next time.
        stamp = stamp or stamp_of(folder)
    except OSError:  # reported by `read`
        return read(root, split, val_fraction, masks)
    store = _stores(root, split, val_fraction, masks) / _name(stamp)
    with suppress(*_NOT_LOADED):  # none yet, or a damaged one
        return load(store)
    annotations, note = read(root, split, val_fraction, masks)
    if not _is_worth_it(annotations, folder):
        return annotations, note
    return _stored(store, annotations, note)


def load(store: Path) -> tuple[Annotations, str]:
    """The annotations in a store, mapped, and the sentence about them. Raises OSError, ValueError,
    KeyError or TypeError if the store is missing or damaged."""
    about = json.loads((store / "about.json").read_bytes())
    columns: dict[str, Any] = {}
    for name in _COLUMNS:
        columns[name] = _mapped(store / f"{name}.npy")
    masks: Masks | None = None
    if about["masks"]:
        kind, names = _MASK_KINDS[about["masks"]]
        parts: dict[str, Any] = {name: _mapped(store / f"{name}.npy") for name in names}
        if about["masks_folder"]:
            parts["folder"] = Path(about["masks_folder"])
        masks = kind(**parts)
    faults = [Fault.from_json(fault) for fault in about["faults"]]
    annotations = Annotations(
        source=Path(about["source"]),
        folder=Path(about["folder"]),
        category_ids=tuple(about["category_ids"]),
        class_names=tuple(about["class_names"]),
        faults=faults,
        box_format=about["box_format"],
        root=Path(about["root"]),
        masks=masks,
        is_thing=tuple(about["is_thing"]),
        is_upright=about["is_upright"],
        object_kind=about["object_kind"],
        stored=store,
        **columns,
    )
    num_images = len(annotations.ids)
    num_objects = int(annotations.first[num_images])
    expected = dict.fromkeys(IMAGE_COLUMNS, num_images) | {"first": num_images + 1}
    expected |= dict.fromkeys(OBJECT_COLUMNS, num_objects)
    lengths = {name: len(columns[name]) for name in _COLUMNS}
    has_whole_masks = masks is None or masks.is_whole(num_objects)
    if lengths != expected or not has_whole_masks:
        raise ValueError(f"{store}: columns of different lengths")
    return annotations, about["note"]


def _mapped(file: Path) -> np.ndarray:
    """The array in a file, mapped. As long as it is in memory, nobody removes the file's store."""
    lock = os.open(file, os.O_RDONLY)
    try:
        if fcntl is not None:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        array = np.load(file, mmap_mode="r")
    except BaseException:
        os.close(lock)
        raise
    weakref.finalize(array, os.close, lock)
    return array


def reopened(store: Path, faults: list[Fault]) -> Annotations:
    """The annotations in a store that another process has open."""
    annotations, _ = load(store)
    return replace(annotations, faults=faults)


def remembered(splits: list[Annotations], name: str, compute: Callable[[], Any]) -> Any:
    """The result of `compute`, plain JSON values that depend only on these splits of one folder and
    its files. It is computed only once if one of the splits is stored."""
    stores = [annotations.stored for annotations in splits if annotations.stored]
    if not stores or len({annotations.root for annotations in splits}) > 1:
        return compute()
    parts = [name]
    for annotations in splits:
        parts.append(annotations.stored.name if annotations.stored else _digest(annotations))
    file = stores[0] / "-".join(parts)
    with suppress(OSError, ValueError):  # not computed yet
        return json.loads(file.read_bytes())
    value = compute()
    with suppress(OSError):  # a store that cannot be written only costs time
        write_json(file, value)
    return value


def _digest(annotations: Annotations) -> str:
    """A hash of annotations, of which there are few."""
    digest = hashlib.blake2b(digest_size=12)
    for name in _COLUMNS:
        digest.update(getattr(annotations, name).tobytes())
    return digest.hexdigest()


def _stores(root: Path, split: Split, val_fraction: float, masks: MaskUse = "none") -> Path:
    """The folder with the stores of a split, with or without masks."""
    identity = f"{root.absolute()}\0{split}\0{val_fraction}"
    if masks != "none":
        identity += f"\0{masks}"
    return cache_folder("annotations") / hashed_name(os.fsencode(identity))


def _name(stamp: str) -> str:
    """The name of the store for data with this stamp."""
    return hashed_name(f"{stamp}{_code()}".encode())


@functools.cache
def _code() -> str:
    """A hash of the code of this package, because another version may read the data differently."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(Path(redetr.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _is_worth_it(annotations: Annotations, folder: Path) -> bool:
    """Whether annotations should be stored: there are many, without errors, and all of their files
    are in the folder, whose stamp shows when they change."""
    if len(annotations.ids) + len(annotations.boxes) < WORTH:
        return False
    has_errors = any(fault.severity == "error" for fault in annotations.faults)
    paths = (annotations.source, annotations.folder)
    return not has_errors and all(path.is_relative_to(folder) for path in paths)


def _stored(store: Path, annotations: Annotations, note: str) -> tuple[Annotations, str]:
    """The annotations, mapped from a new store, or from the one that another process has written
    while they were read; in memory if none can be written."""
    is_there = os.path.exists(store)  # False for a folder that is closed
    with suppress(*_NOT_LOADED):
        return load(store)
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=store.parent, prefix=UNFINISHED))
        try:
            if is_there:  # a damaged one, of which another process may still have files open
                os.rename(store, store.with_name(temporary.name.removeprefix(UNFINISHED)))
            _write(temporary, annotations, note)
            _place(temporary, store)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _remove_others(store)
        return load(store)
    except _NOT_LOADED:  # only costs time and memory
        return annotations, note


def _place(temporary: Path, store: Path) -> None:
    """Gives a written store its name, unless another process was quicker. Its store is the same,
    and may be open."""
    try:
        os.rename(temporary, store)
    except OSError:
        if not os.path.exists(store):
            raise
        shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, annotations: Annotations, note: str) -> None:
    arrays = {name: getattr(annotations, name) for name in _COLUMNS}
    masks = annotations.masks
    kind = ""
    if masks is not None:
        kind = type(masks).__name__
        _, mask_columns = _MASK_KINDS[kind]
        for name in mask_columns:
            arrays[name] = getattr(masks, name)
    for name, array in arrays.items():
        with open(folder / f"{name}.npy", "wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    about = {
        "source": str(annotations.source),
        "folder": str(annotations.folder),
        "root": str(annotations.root),
        "category_ids": annotations.category_ids,
        "class_names": annotations.class_names,
        "box_format": annotations.box_format,
        "faults": [fault.to_json() for fault in annotations.faults],
        "note": note,
        "masks": kind,
        "masks_folder": str(masks.folder) if isinstance(masks, SegmentImages) else "",
        "is_thing": annotations.is_thing,
        "is_upright": annotations.is_upright,
        "object_kind": annotations.object_kind,
    }
    write_json(folder / "about.json", about)


def _remove_others(store: Path) -> None:
    """Removes stores of earlier states of the same data that no process has open, and what killed
    processes have left."""
    for other in store.parent.iterdir():
        is_being_written = other.name.startswith(UNFINISHED) and not _is_abandoned(other)
        if other == store or is_being_written or _is_open(other):
            continue
        shutil.rmtree(other, ignore_errors=True)


def _is_abandoned(unfinished: Path) -> bool:
    """Whether the process that was writing a store is certainly gone: writing takes minutes."""
    with suppress(OSError):  # another process has just renamed or removed it
        return time.time() - unfinished.stat().st_mtime > _ABANDONED_S
    return False


def _is_open(store: Path) -> bool:
    """Whether any process has a store open."""
    return any(_is_locked(file) for file in store.glob("*.npy"))


def _is_locked(file: Path) -> bool:
    if fcntl is None:
        return False
    try:
        # Opened for writing as well, because shared disks do not lock files that are open only for
        # reading.
        opened = os.open(file, os.O_RDWR)
    except OSError:  # another process is removing it, or it belongs to another user
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a disk without locks
        return False
    finally:
        os.close(opened)
    return False
