"""Files that annotations name: inside the data folder, or refused; there or missing; how large
their images are."""

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from redetr.data.images import image_size
from redetr.errors import InputError

_READERS = 8  # threads; on a cold disk, most of the time is waiting for it
_PER_TASK = 256  # images that a thread reads before it asks for more
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def path_inside(name: Any) -> str:
    """The relative path with forward slashes and no detours; empty if it is none or leads
    elsewhere."""
    if not isinstance(name, str) or not name or "\0" in name:
        return ""
    forward = name.replace("\\", "/")
    path = posixpath.normpath(forward)
    if path in (".", "..") or path.startswith("../") or _is_absolute(path):
        return ""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair: no file can have that name
        return ""
    return path


def _is_absolute(path: str) -> bool:
    """Whether it begins at the root, or at a drive of Windows."""
    return path.startswith("/") or re.match("[A-Za-z]:", path) is not None


class Listing:
    """Which files are below a folder. Lists each directory once: asking file by file is slow."""

    def __init__(self, root: Path):
        self.root = root
        self._files: dict[str, set[str]] = {}

    def files(self, parent: str) -> set[str]:
        """The names in the directory `parent` below the folder; none if it is not there."""
        if parent not in self._files:
            try:
                names = os.listdir(self.root / parent)
            except OSError:
                names = []
            self._files[parent] = set(names)
        return self._files[parent]

    def __contains__(self, name: str) -> bool:
        parent, _, file = name.rpartition("/")
        return file in self.files(parent)


def find_below(there: Listing, text: str, bases: Iterable[str] = ("",)) -> str:
    """The path below the folder that `text` means, relative to one of the `bases`; empty if none is
    there.

    Never a path outside: of `../train/images`, which Roboflow writes one level too high, the rest
    is taken; of an absolute path, most often of another machine, the longest end that is there.
    """
    forward = text.replace("\\", "/")
    path = posixpath.normpath(forward)
    while path == ".." or path.startswith("../"):
        path = path[3:] or "."
    ends = [path]
    if _is_absolute(path):
        parts = path.split("/")
        ends = []
        for start in range(1, len(parts)):
            ends.append("/".join(parts[start:]))
    for end in ends:
        for base in bases:
            candidate = posixpath.join(base, end)
            if posixpath.normpath(candidate) == ".":
                return "."
            inside = path_inside(candidate)
            if inside and inside in there:
                return inside
    return ""


def find_files(names: list[str], folders: list[Path]) -> tuple[Path, np.ndarray]:
    """The first of the folders that holds most of the files, and which files it lacks, bool
    `[N]`."""
    candidates = [folder for folder in folders if folder.is_dir()]
    if not candidates:
        candidates = folders[:1]
    best = candidates[0]
    lacking = missing_files(best, names)
    for folder in candidates[1:]:
        missing = missing_files(folder, names)
        if missing.sum() < lacking.sum():
            best = folder
            lacking = missing
    return best, lacking


def missing_files(folder: Path, names: list[str]) -> np.ndarray:
    """Which files the folder lacks, bool `[N]`."""
    there = Listing(folder)
    return np.array([name not in there for name in names], bool)


def find_images(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """The paths of all images below the folder, at any depth, in order."""
    paths = []
    for parent, _, files in os.walk(folder):
        below = Path(parent).relative_to(folder).as_posix()
        for file in files:
            is_hidden = file.startswith(".")
            is_image = file.lower().endswith(suffixes)
            if is_image and not is_hidden:
                path = posixpath.normpath(f"{below}/{file}")
                paths.append(path)
    return sorted(paths, key=os.fsencode)


def read_file(file: Path) -> bytes:
    """What is in an annotation file. Raises InputError if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        text = f"cannot be read: {error.strerror}"
        raise InputError(text, where=file, remedy="copy the annotations again") from None


def read_blocks(file: Path, size: int) -> Iterator[bytes]:
    """What is in an annotation file, `size` bytes at a time. Raises InputError if it cannot be
    read."""
    try:
        with open(file, "rb") as opened:
            while block := opened.read(size):
                yield block
    except OSError as error:
        text = f"cannot be read: {error.strerror}"
        raise InputError(text, where=file, remedy="copy the annotations again") from None


def read_sizes(folder: Path, names: list[str]) -> np.ndarray:
    """Height and width of each image as stored, int64 `[N, 2]`, from the first bytes of its file; 0
    if it has none."""

    def read_part(start: int) -> list[tuple[int, int]]:
        sizes = []
        stop = start + _PER_TASK
        for name in names[start:stop]:
            width, height = image_size(f"{folder}/{name}")
            sizes.append((height, width))
        return sizes

    starts = range(0, len(names), _PER_TASK)
    all_sizes: list[tuple[int, int]] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for sizes in pool.map(read_part, starts):
            all_sizes += sizes
    table = np.array(all_sizes, np.int64)
    return table.reshape(-1, 2)
