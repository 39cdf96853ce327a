"""The index of a tar archive: read once, then mapped by every process that needs it.

The index of an archive is kept in the user's cache under the path, the size and the time of
change of the archive, so an archive that has changed is read again. With the index, any file takes
a single read, in any order: an archive is as good as a folder.
"""

import io
import os
import shutil
import tarfile
from array import array
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.format import read_array

from redetr.data.relative_paths import path_inside
from redetr.errors import InputError
from redetr.files import cache_folder, hashed_name, write_whole

_BLOCK = 512  # bytes; all parts of an archive begin at a multiple of it
_CHUNK = 2**20  # bytes that are read at a time after the end
_FIELDS = ("name", "offset", "size")
_MOST_STATES = 32  # of an archive whose indices are kept
_REMEDY = "write the archive again"
_COPY_AGAIN = "copy or write it again"
# The first bytes of files in the formats gzip, bzip2, xz and Zstandard.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


def read_index(file: BinaryIO, archive: str) -> np.ndarray:
    """The index of an opened archive: a structured array `[N]`, sorted by `name` as bytes, with the
    `offset` and the `size` of each file's content in bytes.

    Errors call the archive `archive`. Raises InputError if the archive is truncated or damaged, or
    has members that cannot be read without unpacking: links, sparse files, paths that lead out of
    the archive, and names that occur twice.
    """
    names: list[bytes] = []
    spans = array("q")  # offset, size, offset, size, ...; a list would take 7 times the memory
    for member in _members(file, archive):
        if member.isdir():
            continue
        name = path_inside(member.name)
        problem = _problem(member, name)
        if problem:
            raise InputError(problem, where=archive, item=repr(member.name), remedy=_REMEDY)
        names.append(os.fsencode(name))
        spans.extend((member.offset_data, member.size))
    pairs = np.array(spans, np.int64).reshape(-1, 2)
    return _sorted_index(names, pairs, archive)


def _sorted_index(names: list[bytes], spans: np.ndarray, archive: str) -> np.ndarray:
    """The index of files with these names and spans (offset and size, `[N, 2]`). Raises InputError
    for a name that occurs twice."""
    longest = max(map(len, names), default=1)
    dtype = [("name", f"S{longest}"), ("offset", "i8"), ("size", "i8")]
    rows = np.empty(len(names), dtype)
    rows["name"] = names
    rows["offset"] = spans[:, 0]
    rows["size"] = spans[:, 1]
    order = np.argsort(rows["name"], kind="stable")
    rows = rows[order]
    sorted_names = rows["name"]
    is_repeated = sorted_names[1:] == sorted_names[:-1]
    if is_repeated.any():
        first = int(is_repeated.argmax())
        name = os.fsdecode(sorted_names[first])
        raise InputError("occurs twice", where=archive, item=repr(name), remedy=_REMEDY)
    return rows


def _problem(member: tarfile.TarInfo, name: str) -> str:
    """Why a member cannot be read without unpacking; empty if it can."""
    if not name:
        return "its path leads outside the archive"
    if member.islnk() or member.issym():
        return "is a link to content elsewhere (tar --dereference --hard-dereference)"
    if member.issparse() or not member.isreg():
        return "is not a plain file"
    return ""


def _members(file: BinaryIO, archive: str) -> Iterator[tarfile.TarInfo]:
    """The members of an archive. Raises InputError unless the archive is whole up to its end."""
    try:
        tar = tarfile.open(  # noqa: SIM115 - whoever opened `file` closes it
            fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
        )
        previous_offset = -1
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # each would keep a kilobyte
            if member.size < 0 or tar.offset <= previous_offset:
                raise tarfile.ReadError("a member of negative size")
            previous_offset = tar.offset
            yield member
        _require_end(file, tar.offset, archive)
    # Numbers and records in headers, which `tarfile` does not check, raise the other kinds.
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        if isinstance(error, tarfile.ReadError) and _is_compressed(file):
            text = "compressed, so that its files cannot be read one by one"
            raise InputError(text, where=archive, remedy="decompress it") from None
        text = f"not a complete tar archive ({error})"
        raise InputError(text, where=archive, remedy=_COPY_AGAIN) from None


def _is_compressed(file: BinaryIO) -> bool:
    file.seek(0)
    head = file.read(6)
    return head.startswith(_COMPRESSED)


def _require_end(file: BinaryIO, offset: int, archive: str) -> None:
    """Raises InputError unless the archive ends at this byte, where `tarfile` stopped reading.

    `tarfile` also stops at a damaged header, and at the end of a file that is truncated between two
    members.
    """
    file.seek(offset)
    end = file.read(_BLOCK)
    if len(end) < _BLOCK:
        text = f"cut short: it has no end after {offset:,} bytes"
        raise InputError(text, where=archive, remedy=_COPY_AGAIN)
    if any(end):
        text = f"damaged at byte {offset:,}, where a file should begin"
        raise InputError(text, where=archive, remedy=_COPY_AGAIN)
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            text = f"holds more data after its end at byte {offset:,}"
            remedy = "if archives were joined, keep each in its own file"
            raise InputError(text, where=archive, remedy=remedy)


def index_folder(archive: str) -> Path:
    """The folder in the user's cache with the indices of all states of the archive."""
    path = os.fsencode(os.path.abspath(archive))
    return cache_folder("archives") / hashed_name(path)


def stored_index(archive: str, state: str) -> np.ndarray | None:
    """The index of an archive in this state, mapped; None if it is missing or damaged."""
    file = index_folder(archive) / _file_name(state)
    with suppress(OSError, ValueError, EOFError):
        rows = np.load(file, mmap_mode="r")
        if _is_index(rows):
            return rows.view(np.ndarray)  # still mapped; a `memmap` takes 2 us for each item
    return None


def store_index(archive: str, state: str, rows: np.ndarray) -> None:
    """Stores the index of an archive in this state, and deletes the oldest ones beyond
    `_MOST_STATES`.

    Not all others: hosts that share a home folder may each have a copy of the archive at this path,
    and have its index mapped.
    """
    folder = index_folder(archive)
    file = folder / _file_name(state)
    with suppress(OSError):  # without it, the next start takes more time and memory
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, partial(save_index, rows))
        dated = []
        for other in folder.glob("*.npy"):
            if not other.name.startswith("."):
                dated.append((other.stat().st_mtime_ns, other))
        for _, oldest in sorted(dated)[:-_MOST_STATES]:
            oldest.unlink(missing_ok=True)


def forget_index(archive: str) -> None:
    """Deletes the indices of an archive."""
    shutil.rmtree(index_folder(archive), ignore_errors=True)


def require_index(content: bytes, archive_size: int, source: str) -> np.ndarray:
    """The index that the `content` of an index file holds, for an archive of this size in bytes.

    Raises InputError if it cannot be the index of that archive. Errors call the file `source`.
    """
    remedy = "delete it: the archive is then read instead"
    rows: Any = None
    with suppress(ValueError, EOFError, OSError, TypeError, SyntaxError):
        rows = read_array(io.BytesIO(content), allow_pickle=False)
    if not _is_index(rows):
        raise InputError("no index of an archive", where=source, remedy=remedy)
    offsets = rows["offset"]
    sizes = rows["size"]
    names = rows["name"]
    is_inside = (offsets >= _BLOCK) & (sizes >= 0) & (offsets + sizes <= archive_size)
    is_sorted = (names[1:] > names[:-1]).all()
    if not is_inside.all() or not is_sorted:
        raise InputError("not the index of this archive", where=source, remedy=remedy)
    return rows


def _is_index(rows: Any) -> bool:
    """Whether `rows`, from a NumPy file, has the type of an index."""
    if not isinstance(rows, np.ndarray) or rows.ndim != 1 or rows.dtype.names != _FIELDS:
        return False
    name = rows.dtype["name"]
    offset = rows.dtype["offset"]
    size = rows.dtype["size"]
    return name.kind == "S" and offset == size == np.int64


def save_index(rows: np.ndarray, path: Path) -> None:
    """Writes an index in NumPy's format."""
    with open(path, "wb") as file:  # given a path, NumPy may add a suffix to the name
        np.save(file, rows, allow_pickle=False)


def _file_name(state: str) -> str:
    return f"{hashed_name(state.encode())}.npy"
