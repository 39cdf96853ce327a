"""Files that annotations name: inside the data folder, or refused; there or missing; how large
their images are."""

import os
import posixpath
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from redetr.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def path_inside(name: Any) -> str:
    """The relative path with forward slashes and no detours; empty if it is none or leads
    elsewhere."""
    if not isinstance(name, str) or not name or "\0" in name:
        return ""
    path = posixpath.normpath(name.replace("\\", "/"))
    leads_out = path in (".", "..") or path.startswith(("/", "../")) or re.match("[A-Za-z]:", path)
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair: no file can be called so
        return ""
    return "" if leads_out else path


class Listing:
    """Which files are below a folder. Lists each directory once: asking file by file is slow."""

    def __init__(self, root: Path):
        self.root = root
        self._files: dict[str, set[str]] = {}

    def files(self, parent: str) -> set[str]:
        """The names in the directory `parent` below the folder; none if it is not there."""
        if parent not in self._files:
            try:
                self._files[parent] = set(os.listdir(self.root / parent))
            except OSError:
                self._files[parent] = set()
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
    path = posixpath.normpath(text.replace("\\", "/"))
    while path == ".." or path.startswith("../"):
        path = path[3:] or "."
    parts = path.split("/")
    ends = range(1, len(parts)) if path.startswith("/") or re.match("[A-Za-z]:", path) else [0]
    for candidate in (posixpath.join(base, *parts[start:]) for start in ends for base in bases):
        if posixpath.normpath(candidate) == ".":
            return "."
        if (inside := path_inside(candidate)) and inside in there:
            return inside
    return ""


def find_files(names: list[str], folders: list[Path]) -> tuple[Path, np.ndarray]:
    """The first of the folders that holds most of the files, and which files it lacks, bool
    `[N]`."""
    candidates = [folder for folder in folders if folder.is_dir()] or folders[:1]
    lacking = [missing_files(folder, names) for folder in candidates]
    best = min(range(len(candidates)), key=lambda i: lacking[i].sum())
    return candidates[best], lacking[best]


def missing_files(folder: Path, names: list[str]) -> np.ndarray:
    """Which files the folder lacks, bool `[N]`."""
    there = Listing(folder)
    return np.array([name not in there for name in names], bool)


def find_images(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """The paths of all images below the folder, at any depth, in order."""
    found = []
    for parent, _, files in os.walk(folder):
        below = Path(parent).relative_to(folder).as_posix()
        images = [f for f in files if f.lower().endswith(suffixes) and not f.startswith(".")]
        found += [posixpath.normpath(f"{below}/{file}") for file in images]
    return sorted(found, key=os.fsencode)


def read_file(file: Path) -> bytes:
    """What is in an annotation file. Raises InputError if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read: {error.strerror}; copy the annotations again"
        ) from None


def read_sizes(folder: Path, names: list[str]) -> np.ndarray:
    """Height and width of each image as stored, int64 `[N, 2]`, from the first bytes of its file; 0
    if it has none."""

    def size(name: str) -> tuple[int, int]:
        try:
            with Image.open(f"{folder}/{name}") as image:
                return image.height, image.width
        except Exception:  # decoders raise nearly everything on damaged files
            return 0, 0

    with ThreadPoolExecutor(8) as pool:  # on a cold disk, most of the time is waiting for it
        parts = pool.map(
            lambda start: list(map(size, names[start : start + 256])), range(0, len(names), 256)
        )
        return np.array(list(chain.from_iterable(parts)), np.int64).reshape(-1, 2)
