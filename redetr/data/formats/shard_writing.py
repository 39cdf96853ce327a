"""The images of a data set in tar archives of a limited size, in the order of the data set."""

import io
import os
import re
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from redetr.data.annotations import Annotations, Split
from redetr.data.archives import archives_in, open_archive, open_data_file
from redetr.data.formats.writers import Splits, names_of
from redetr.data.remote import INDEX, LIST_FILE
from redetr.data.tar_index import save_index
from redetr.errors import InputError
from redetr.files import write_json, write_whole

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BLOCK = 512  # bytes: a header, and what contents are filled up to


def parse_bytes(text: str) -> int:
    """The number that `500MB`, `1.5 GB` or `100000` stands for. Raises InputError."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper())
    unit = parts[2] if parts else "?"
    if unit in ("K", "M", "G", "T"):
        unit += "B"
    count = 0
    if parts and unit in (*_UNITS, "B"):
        count = int(float(parts[1]) * _UNITS.get(unit, 1))
    if count < 1:
        raise InputError(f"{text!r} is no size", remedy="write it as in 500MB or 1GB")
    return count


def pack(splits: Splits, root: Path, limit: int) -> Splits:
    """Writes the images of all splits into archives in `root`, `train-00000.tar` and so on, each of
    about `limit` bytes at most, or of one image. Returns the splits with the paths there.

    Archives of the same images are equal byte for byte. Raises OSError for an image that cannot be
    read.
    """
    packed = {}
    for split, annotations in splits.items():
        packed[split] = _packed(annotations, split, root, limit)
    return packed


def _packed(annotations: Annotations, split: Split, root: Path, limit: int) -> Annotations:
    names = names_of(annotations)
    path_of: dict[str, bytes] = {}
    with _Archives(split, root, limit) as archives:
        for name in dict.fromkeys(names):
            with open_data_file(annotations.folder / name) as file:
                content = file.read()
            path_of[name] = os.fsencode(f"{archives.add(name, content)}/{name}")
    paths = np.array([path_of[name] for name in names], "S")
    return replace(annotations, names=paths, folder=root, stored=None)


def write_file_list(root: Path) -> None:
    """Writes what a server has to have for `redetr.data.remote`: the index of each archive, and the
    list of all files."""
    for archive in archives_in(root):
        index = partial(save_index, open_archive(archive).rows)
        write_whole(archive.with_name(archive.name + INDEX), index)
    files = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
    write_json(root / LIST_FILE, {"files": files})


class _Archives:
    """The archives of a split, of which one is written."""

    def __init__(self, split: Split, root: Path, limit: int):
        self._split = split
        self._root = root
        self._limit = limit
        self._count = 0
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> "_Archives":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tar is not None:
            self._tar.close()

    def add(self, name: str, content: bytes) -> str:
        """Writes a file, into a new archive if this one would become too large; returns the name of
        the archive."""
        grown = _BLOCK + len(content)
        if self._tar is not None and self._tar.offset + grown > self._limit:
            self._tar.close()
            self._tar = None
        if self._tar is None:
            path = self._root / f"{self._split}-{self._count:05d}.tar"
            self._tar = tarfile.open(  # noqa: SIM115 - closed with the archives
                path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
            )
            self._count += 1
        member = tarfile.TarInfo(name)  # of nobody, and of no time
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        self._tar.getmembers().clear()  # else there would be a kilobyte for each
        return f"{self._split}-{self._count - 1:05d}.tar"
