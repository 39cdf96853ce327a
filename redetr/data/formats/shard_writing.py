"""Packs the images of a data set into tar archives of a limited size, in the order of the data
set."""

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

_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BLOCK = 512  # bytes of a header; contents are padded to a multiple of it


def parse_bytes(text: str) -> int:
    """The number of bytes in a text such as `500MB`, `1.5 GB` or `100000`. Raises InputError for
    other texts."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    count = 0
    if parts:
        number = float(parts[1])
        prefix = parts[2]
        count = int(number * _BYTES[prefix])
    if count < 1:
        raise InputError(f"{text!r} is not a size", remedy="write a size such as 500MB or 1GB")
    return count


def pack(splits: Splits, root: Path, limit: int) -> Splits:
    """Writes the images of all splits into archives in `root`: `train-00000.tar` and so on. Returns
    the splits with the new paths of their images.

    An archive has at most about `limit` bytes, or a single image. The same images give the same
    archives, byte for byte. Raises OSError if an image cannot be read.
    """
    packed = {}
    for split, annotations in splits.items():
        packed[split] = _packed(annotations, split, root, limit)
    return packed


def _packed(annotations: Annotations, split: Split, root: Path, limit: int) -> Annotations:
    names = names_of(annotations)
    distinct_names = dict.fromkeys(names)
    path_of: dict[str, bytes] = {}
    with _ArchiveWriter(split, root, limit) as writer:
        for name in distinct_names:
            with open_data_file(annotations.folder / name) as file:
                content = file.read()
            archive = writer.add(name, content)
            path_of[name] = os.fsencode(f"{archive}/{name}")
    paths = np.array([path_of[name] for name in names], "S")
    return replace(annotations, names=paths, folder=root, stored=None)


def write_file_list(root: Path) -> None:
    """Writes the files that `redetr.data.remote` needs on a server: the index of each archive, and
    the list of all files."""
    for archive in archives_in(root):
        rows = open_archive(archive).rows
        index_file = archive.with_name(archive.name + INDEX)
        write_whole(index_file, partial(save_index, rows))
    names = []
    for file in root.rglob("*"):
        if file.is_file():
            names.append(file.relative_to(root).as_posix())
    write_json(root / LIST_FILE, {"files": sorted(names)})


class _ArchiveWriter:
    """Writes the archives of a split, one after another."""

    def __init__(self, split: Split, root: Path, limit: int):
        self._split = split
        self._root = root
        self._limit = limit
        self._count = 0  # archives so far
        self._archive = ""  # the name of the current one
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> "_ArchiveWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None

    def add(self, name: str, content: bytes) -> str:
        """Writes a file to the current archive, or to a new one if that would become too large.
        Returns the name of the archive."""
        size = _BLOCK + len(content)
        if self._tar is not None and self._tar.offset + size > self._limit:
            self._close()
        if self._tar is None:
            self._archive = f"{self._split}-{self._count:05d}.tar"
            self._tar = self._open(self._root / self._archive)
            self._count += 1
        member = tarfile.TarInfo(name)  # without owner and time, so that archives are reproducible
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        self._tar.getmembers().clear()  # each member would take a kilobyte of memory
        return self._archive

    def _open(self, path: Path) -> tarfile.TarFile:
        return tarfile.open(
            path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        )
