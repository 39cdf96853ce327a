"""Where the files in a tar archive begin: read once, then mapped by every process that needs it.

The index of an archive lies in the user's cache, named after the path, the size and the time of
change of the archive, so that one that has changed is read again. With it, each file is one read
away, in any order: an archive is as good as a folder.
"""

import hashlib
import io
import os
import shutil
import tarfile
from array import array
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from redetr.data.relative_paths import path_inside
from redetr.errors import InputError
from redetr.files import write_whole

_BLOCK = 512  # bytes; everything in an archive begins at a multiple of it
_PIECE = 2**20  # bytes read at a time, of what follows the end
_FIELDS = ("name", "offset", "size")
_REMEDY = "write the archive again"


def read_index(file: BinaryIO, archive: str) -> np.ndarray:
    """The files in an archive that is opened, sorted by name as bytes: structured `[N]`, with
    `name`, and with `offset` and `size` of the content in bytes.

    `archive` is its name in errors. Raises InputError for one that is cut short or damaged, and for
    what only unpacking could make a file of its own: links, sparse files, paths that lead out of
    the archive, a name that is there twice.
    """
    names: list[bytes] = []
    spans = array("q")  # a list would take seven times the memory
    for member in _members(file, archive):
        if member.isdir():
            continue
        name = path_inside(member.name)
        problem = _problem(member, name)
        if problem:
            raise InputError(problem, where=archive, item=repr(member.name), remedy=_REMEDY)
        names.append(os.fsencode(name))
        spans.extend((member.offset_data, member.size))
    return as_index(names, np.array(spans, np.int64).reshape(-1, 2), archive)


def as_index(names: list[bytes], spans: np.ndarray, archive: str) -> np.ndarray:
    """The index of files with these names and spans (offset and size, `[N, 2]`). Raises InputError
    for a name that is there twice."""
    longest = max(map(len, names), default=1)
    rows = np.empty(len(names), [("name", f"S{longest}"), ("offset", "i8"), ("size", "i8")])
    rows["name"] = names
    rows["offset"] = spans[:, 0]
    rows["size"] = spans[:, 1]
    rows = rows[np.argsort(rows["name"], kind="stable")]
    is_repeated = rows["name"][1:] == rows["name"][:-1]
    if is_repeated.any():
        name = os.fsdecode(rows["name"][int(is_repeated.argmax())])
        raise InputError("is there twice", where=archive, item=repr(name), remedy=_REMEDY)
    return rows


def _problem(member: tarfile.TarInfo, name: str) -> str:
    """Why a member cannot be read from where it is; empty if it can."""
    if not name:
        return "its path leads out of the archive"
    if member.islnk() or member.issym():
        return "is a link, and its content lies elsewhere (tar --dereference --hard-dereference)"
    if member.issparse() or not member.isreg():
        return "is no plain file"
    return ""


def _members(file: BinaryIO, archive: str) -> Iterator[tarfile.TarInfo]:
    """The members of an archive. Raises InputError unless it is whole to its end."""
    try:
        tar = tarfile.open(  # noqa: SIM115 - it holds no more than `file`, which its opener closes
            fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
        )
        before = -1
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else a kilobyte for each would stay
            if member.size < 0 or tar.offset <= before:
                raise tarfile.ReadError("a member of negative size")
            before = tar.offset
            yield member
        _require_end(file, tar.offset, archive)
    # ValueError and the others: numbers and records in headers that `tarfile` does not check.
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        text = f"no whole tar archive ({error})"
        if isinstance(error, tarfile.ReadError) and _is_compressed(file):
            text = "compressed, so that its files cannot be read one by one"
            raise InputError(text, where=archive, remedy="decompress it") from None
        raise InputError(text, where=archive, remedy="copy or write it again") from None


def _is_compressed(file: BinaryIO) -> bool:
    """Whether a file is one of gzip, bzip2, xz or Zstandard."""
    file.seek(0)
    starts = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
    return file.read(6).startswith(starts)


def _require_end(file: BinaryIO, offset: int, archive: str) -> None:
    """Raises InputError unless the archive ends at this byte, where `tarfile` has stopped: it does
    so as well at a header that is damaged, or where a file is cut between two members."""
    file.seek(offset)
    end = file.read(_BLOCK)
    if len(end) < _BLOCK:
        text = f"cut short: it has no end after {offset:,} bytes"
        raise InputError(text, where=archive, remedy="copy or write it again")
    if any(end):
        text = f"damaged at byte {offset:,}, where a file should begin"
        raise InputError(text, where=archive, remedy="copy or write it again")
    while piece := file.read(_PIECE):
        if piece.count(0) < len(piece):
            text = f"holds more after its end at byte {offset:,}"
            remedy = "if archives were joined, give each a file of its own"
            raise InputError(text, where=archive, remedy=remedy)


def index_folder(archive: str) -> Path:
    """Where the indices of an archive are, of each state that it was in."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.blake2b(os.fsencode(os.path.abspath(archive)), digest_size=12).hexdigest()
    return Path(caches) / "redetr" / "archives" / digest


def stored_index(archive: str, state: str) -> np.ndarray | None:
    """The index of an archive in this state, mapped; None if it is not there or damaged."""
    with suppress(OSError, ValueError, EOFError):
        rows = np.load(index_folder(archive) / _file_name(state), mmap_mode="r")
        if rows.dtype.names == _FIELDS:
            return rows.view(np.ndarray)  # still mapped; a `memmap` takes 2 us for each item
    return None


def store_index(archive: str, state: str, rows: np.ndarray) -> None:
    """Keeps the index of an archive in this state, in place of those of earlier ones."""
    folder = index_folder(archive)
    file = folder / _file_name(state)
    with suppress(OSError):  # costs time and memory at the next start, nothing else
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, partial(save_index, rows))
        for other in folder.glob("*.npy"):
            if other != file and not other.name.startswith("."):
                other.unlink(missing_ok=True)


def forget_index(archive: str) -> None:
    """Deletes the indices of an archive."""
    shutil.rmtree(index_folder(archive), ignore_errors=True)


def require_index(content: bytes, archive_size: int, source: str) -> np.ndarray:
    """The index in a file of NumPy's format that lies beside an archive of this size. Raises
    InputError, which calls the file `source`, for one that cannot be its index."""
    remedy = "delete it, and the archive is read instead"
    try:
        rows = np.load(io.BytesIO(content), allow_pickle=False)
        names = rows["name"]
        ends = rows["offset"] + rows["size"]
        is_sound = rows.dtype.names == _FIELDS and names.dtype.kind == "S" and rows.ndim == 1
        is_sound = is_sound and rows["offset"].dtype == rows["size"].dtype == np.int64
    except (ValueError, EOFError, OSError, IndexError, TypeError, SyntaxError):
        is_sound = False
    if not is_sound:
        raise InputError("no index of an archive", where=source, remedy=remedy)
    is_inside = (rows["offset"] >= _BLOCK) & (rows["size"] >= 0) & (ends <= archive_size)
    is_sorted = (names[1:] > names[:-1]).all()
    if not is_inside.all() or not is_sorted:
        raise InputError("not the index of this archive", where=source, remedy=remedy)
    return rows


def save_index(rows: np.ndarray, path: Path) -> None:
    """Writes an index in NumPy's format."""
    with open(path, "wb") as file:  # under this name: with a path, NumPy may add an ending
        np.save(file, rows, allow_pickle=False)


def _file_name(state: str) -> str:
    return hashlib.blake2b(state.encode(), digest_size=12).hexdigest() + ".npy"
