"""Files in folders and in tar archives alike: `shards/train-000.tar/a.jpg` is the path of one.

A file in an archive is read by its position, which the index of the archive has, so the order in
which files are read does not matter.
"""

import errno
import os
import shutil
import threading
from bisect import bisect_left
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from redetr.data.remote import RemoteFile, state_of
from redetr.data.tar_index import read_index, store_index, stored_index
from redetr.files import open_file

SUFFIX = ".tar"
_INSIDE = f"{SUFFIX}/"

# By path: the state that an archive was in, and its index.
_OPENED: dict[str, tuple[str, "Archive"]] = {}
_OF_THREAD = threading.local()


@dataclass(frozen=True)
class Archive:
    """An archive and where the files in it begin."""

    path: str
    rows: np.ndarray  # [N] as `read_index` returns, often mapped from a file
    mtime_ns: int
    remote: RemoteFile | None = None  # where it is, if not here

    def span(self, name: str) -> tuple[int, int]:
        """Where the content of a file begins, and its size in bytes. Raises FileNotFoundError."""
        sought = os.fsencode(name)
        i = bisect_left(self.rows, sought, key=_name)
        if i == len(self.rows) or self.rows[i]["name"] != sought:
            raise FileNotFoundError(errno.ENOENT, "no such file in the archive", self._inside(name))
        row = self.rows[i]
        return int(row["offset"]), int(row["size"])

    def read(self, name: str) -> bytes:
        """What is in a file. Raises OSError."""
        offset, size = self.span(name)
        if self.remote is not None:
            return self._received(self.remote, offset, size)
        with open_file(self.path) as file:
            if hasattr(os, "posix_fadvise"):  # else as much again is read ahead, for nothing
                os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_RANDOM)
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            text = f"cut short: {len(content):,} of {size:,} bytes are there"
            raise OSError(errno.EIO, text, self._inside(name))
        return content

    def _received(self, remote: RemoteFile, offset: int, size: int) -> bytes:
        """A part of an archive on a server. A thread keeps the last one: the check of an image
        reads it several times."""
        last = getattr(_OF_THREAD, "received", None)
        key = (remote, offset, size)
        if last is None or last[0] != key:
            last = (key, remote.read(offset, size))
            _OF_THREAD.received = last
        return last[1]

    def names(self) -> list[str]:
        """The path of each file in the archive, sorted as bytes."""
        return list(map(os.fsdecode, self.rows["name"].tolist()))

    def _inside(self, name: str) -> str:
        return f"{self.path}/{name}"


def _name(row: Any) -> bytes:
    return row["name"]


def open_archive(path: str | os.PathLike) -> Archive:
    """An archive with its index, which is read from it if it is new or has changed. Raises
    InputError for one that is damaged, OSError if it cannot be read."""
    location = os.path.abspath(path)
    state = state_of(location)
    known_state, known = _OPENED.get(location, ("", None))
    if known is not None and state == known_state:
        return known
    rows = stored_index(location, state)
    remote = RemoteFile.in_pointer(location)
    if rows is None:
        if remote is not None:
            rows = remote.index()
        else:
            with open_file(location) as file:
                rows = read_index(file, os.fspath(path))
        store_index(location, state, rows)
        mapped = stored_index(location, state)  # loader processes share what is mapped
        rows = rows if mapped is None else mapped
    archive = Archive(location, rows, os.stat(location).st_mtime_ns, remote)
    _OPENED[location] = state, archive
    return archive


def split_path(path: str | os.PathLike) -> tuple[str, str] | None:
    """The path of an archive, and that of a file in it; None for the path of any other file."""
    text = os.fspath(path)
    end = text.find(_INSIDE)
    while end >= 0:
        archive = text[: end + len(SUFFIX)]
        if os.path.isfile(archive):
            return archive, text[end + len(_INSIDE) :].rstrip("/")
        end = text.find(_INSIDE, end + 1)
    if text.endswith(SUFFIX) and os.path.isfile(text):
        return text, ""
    return None


def open_data_file(path: str | os.PathLike) -> BytesIO | BufferedReader:
    """The file at `path`, in a folder or in an archive, opened for reading; of one in an archive,
    all is read. Raises OSError as `open_file` does, and InputError for a damaged archive."""
    try:
        return open_file(path)
    except NotADirectoryError:
        parts = split_path(path)
        if parts is None:
            raise
    archive, name = parts
    return BytesIO(open_archive(archive).read(name))


def stamp_of_file(path: str | os.PathLike) -> tuple[int, int]:
    """When a file was changed (ns), in an archive when that was, and its bytes. Raises OSError and
    ValueError."""
    try:
        stat = os.stat(path)
    except NotADirectoryError:
        parts = split_path(path)
        if parts is None:
            raise
    else:
        return stat.st_mtime_ns, stat.st_size
    archive = open_archive(parts[0])
    _, size = archive.span(parts[1])
    return archive.mtime_ns, size


def names_below(path: str | os.PathLike) -> set[str]:
    """The names in a folder, or in an archive or a folder of it; none if it is not there. Raises
    InputError for a damaged archive."""
    try:
        return set(os.listdir(path))
    except NotADirectoryError:
        parts = split_path(path)
    except (OSError, ValueError):  # not there, or no path: it holds a null byte
        return set()
    if parts is None:
        return set()
    rows = open_archive(parts[0]).rows
    prefix = os.fsencode(f"{parts[1]}/") if parts[1] else b""
    start = bisect_left(rows, prefix, key=_name)
    names = set()
    for name in rows["name"][start:].tolist():
        if not name.startswith(prefix):
            break
        names.add(os.fsdecode(name[len(prefix) :].split(b"/", 1)[0]))
    return names


def copy_data_file(source: Path, destination: Path) -> None:
    """Writes what is in a file, in a folder or in an archive, into another one."""
    try:
        shutil.copyfile(source, destination)
    except NotADirectoryError:
        with open_data_file(source) as file:
            destination.write_bytes(file.read())


def archives_in(folder: Path) -> list[Path]:
    """The tar archives in a folder, sorted by name as bytes; none if it is not there."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    is_archive = [name for name in names if name.endswith(SUFFIX) and not name.startswith(".")]
    archives = [folder / name for name in sorted(is_archive, key=os.fsencode)]
    return [archive for archive in archives if archive.is_file()]
