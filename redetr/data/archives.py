"""Opens files in folders and in tar archives alike: `shards/train-000.tar/a.jpg` is the path of
`a.jpg` in an archive.

The index of an archive has the offset of each file, so files can be read in any order.
"""

import errno
import os
import shutil
import threading
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import BufferedReader, BytesIO
from pathlib import Path

import numpy as np

from redetr.data.remote import RemoteFile, state_of
from redetr.data.tar_index import read_index, store_index, stored_index
from redetr.files import open_file

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

SUFFIX = ".tar"
_INSIDE = f"{SUFFIX}/"
_OPEN_FILES = 2**16  # more archives than that need larger ones

# For each path, the state of the archive when it was opened, and its index.
_OPENED: dict[str, tuple[str, "Archive"]] = {}
_THREAD = threading.local()


@dataclass(frozen=True)
class Archive:
    """An archive with its index."""

    path: str
    rows: np.ndarray  # [N] as `read_index` returns, often mapped from a file
    mtime_ns: int  # when its content changed, as stated
    ctime_ns: int  # when the system last changed it
    remote: RemoteFile | None = None  # the archive on a server, if `path` only points to it

    def span(self, name: str) -> tuple[int, int]:
        """The offset and size of a file's content in bytes. Raises FileNotFoundError if there is no
        such file."""
        encoded_name = os.fsencode(name)
        names = self.rows["name"]
        i = bisect_left(names, encoded_name)
        if i == len(names) or names[i] != encoded_name:
            path = self._path_of(name)
            raise FileNotFoundError(errno.ENOENT, "no such file in the archive", path)
        row = self.rows[i]
        return int(row["offset"]), int(row["size"])

    def read(self, name: str) -> bytes:
        """The content of a file. Raises OSError if it cannot be read."""
        offset, size = self.span(name)
        if self.remote is not None:
            return self._received(self.remote, offset, size)
        with open_file(self.path) as file:
            if hasattr(os, "posix_fadvise"):
                # Otherwise, the kernel would read the same amount again ahead, in vain.
                os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_RANDOM)
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            text = f"cut short: {len(content):,} of {size:,} bytes are there"
            raise OSError(errno.EIO, text, self._path_of(name))
        return content

    def _received(self, remote: RemoteFile, offset: int, size: int) -> bytes:
        """A part of an archive on a server.

        Each thread keeps the last part, because the check of an image reads it several times.
        """
        part = (remote, offset, size)
        last_part, content = getattr(_THREAD, "received", (None, b""))
        if part != last_part:
            content = remote.read(offset, size)
            _THREAD.received = (part, content)
        return content

    def names(self) -> list[str]:
        """The path of each file in the archive, sorted as bytes."""
        return list(map(os.fsdecode, self.rows["name"].tolist()))

    def _path_of(self, name: str) -> str:
        return f"{self.path}/{name}"


@cache
def _allow_many_files() -> None:
    """Raises the limit on open files of this process as far as the system allows, up to
    `_OPEN_FILES`: each mapped index keeps one open, and shells allow 1,024."""
    if resource is None:
        return
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(_OPEN_FILES, most)
    if allowed == resource.RLIM_INFINITY or allowed >= wanted:
        return
    with suppress(OSError, ValueError):  # the system has a lower limit than it states
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def open_archive(path: str | os.PathLike) -> Archive:
    """The archive at `path` with its index, which is created if the archive is new or has changed.

    Raises InputError if the archive is damaged, or has changed on its server since this process
    opened it; OSError if it cannot be read.
    """
    location = os.path.abspath(path)
    state = state_of(location)
    opened_state, opened = _OPENED.get(location, ("", None))
    if opened is not None and opened_state == state:
        return opened
    _allow_many_files()
    remote = RemoteFile.in_pointer(location)
    if opened is not None and opened.remote is not None and opened.remote != remote:
        # Another process has updated the pointer, but the annotations here are of the old version.
        raise opened.remote.changed()
    rows = stored_index(location, state)
    if rows is None:
        if remote is not None:
            rows = remote.index()
        else:
            with open_file(location) as file:
                rows = read_index(file, os.fspath(path))
        store_index(location, state, rows)
        mapped = stored_index(location, state)
        if mapped is not None:  # loader processes share the mapped memory
            rows = mapped
    stat = os.stat(location)
    archive = Archive(location, rows, stat.st_mtime_ns, stat.st_ctime_ns, remote)
    _OPENED[location] = (state, archive)
    return archive


def split_path(path: str | os.PathLike) -> tuple[str, str] | None:
    """The path of an archive, and the path inside it; None if `path` is neither that of an archive
    nor inside one."""
    text = os.fspath(path)
    start = text.find(_INSIDE)
    while start >= 0:
        end = start + len(SUFFIX)
        archive = text[:end]
        if os.path.isfile(archive):
            name = text[end + 1 :].rstrip("/")
            return archive, name
        start = text.find(_INSIDE, end)
    if text.endswith(SUFFIX) and os.path.isfile(text):
        return text, ""
    return None


def open_data_file(path: str | os.PathLike) -> BytesIO | BufferedReader:
    """The file at `path`, in a folder or in an archive, opened for reading.

    A file in an archive is read into memory. Raises OSError like `open_file`, and InputError if an
    archive is damaged.
    """
    try:
        return open_file(path)
    except NotADirectoryError:
        parts = split_path(path)
        if parts is None:
            raise
    archive, name = parts
    return BytesIO(open_archive(archive).read(name))


def stamp_of_file(path: str | os.PathLike) -> tuple[int, int, int]:
    """The time of the last change in ns, the size in bytes, and the time in ns at which the system
    last changed the file, which programs cannot set: `cp -p` and `rsync -t` set the first.

    A file in an archive has the times of the archive. Raises OSError if the file is missing, and
    ValueError for an impossible path.
    """
    try:
        stat = os.stat(path)
    except NotADirectoryError:
        parts = split_path(path)
        if parts is None:
            raise
    else:
        return stat.st_mtime_ns, stat.st_size, stat.st_ctime_ns
    path_of_archive, name = parts
    archive = open_archive(path_of_archive)
    _, size = archive.span(name)
    return archive.mtime_ns, size, archive.ctime_ns


def names_below(path: str | os.PathLike) -> set[str]:
    """The names in a folder, in an archive, or in a folder inside an archive; empty if `path` does
    not exist. Raises InputError if an archive is damaged."""
    try:
        return set(os.listdir(path))
    except NotADirectoryError:
        parts = split_path(path)
    except (OSError, ValueError):  # it does not exist, or is no path, as it has a null byte
        return set()
    if parts is None:
        return set()
    archive, folder = parts
    prefix = os.fsencode(f"{folder}/") if folder else b""
    paths = open_archive(archive).rows["name"]
    start = bisect_left(paths, prefix)
    names = set()
    for path_inside in paths[start:].tolist():
        if not path_inside.startswith(prefix):
            break
        name, _, _ = path_inside.removeprefix(prefix).partition(b"/")
        names.add(os.fsdecode(name))
    return names


def copy_data_file(source: Path, destination: Path) -> None:
    """Copies a file of a folder or of an archive."""
    try:
        shutil.copyfile(source, destination)
    except NotADirectoryError:
        with open_data_file(source) as file:
            destination.write_bytes(file.read())


def archives_in(folder: Path) -> list[Path]:
    """The tar archives in a folder, sorted by name as bytes; empty if it cannot be listed."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    archives = []
    for name in sorted(names, key=os.fsencode):
        file = folder / name
        if name.endswith(SUFFIX) and not name.startswith(".") and file.is_file():
            archives.append(file)
    return archives
