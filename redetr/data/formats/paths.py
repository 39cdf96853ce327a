"""Finds the files that annotations name, inside the data folder only, and reads the sizes of
images."""

import codecs
import os
import posixpath
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from redetr.data.archives import names_below
from redetr.data.images import image_frame, image_size
from redetr.data.relative_paths import is_absolute, path_inside
from redetr.errors import InputError
from redetr.files import open_file

_GZIP = b"\x1f\x8b"
_READERS = 8  # threads, which mostly wait if the disk is not cached
_PER_TASK = 256  # images in a task of a thread


Normal = Callable[[str], str]


def composed(name: str) -> str:
    """The name in Unicode's composed form, in which a letter and its accent are one character."""
    return unicodedata.normalize("NFC", name)


def without_capitals(name: str) -> str:
    """A name that is the same for all spellings that Windows and macOS do not distinguish."""
    return composed(name).casefold()


def name_taken(file: Path) -> InputError:
    """The error for a file that exists where an image is to be written."""
    text = (
        "two images would share this file, because the disk ignores capitals or Unicode forms of "
        "their names"
    )
    return InputError(text, where=file.name, remedy="rename one of them")


def in_capitals(parent: Path, names: Collection[str]) -> list[Path]:
    """The files and folders with these names in any case: CVAT writes `Train`."""
    try:
        entries = sorted(os.listdir(parent))
    except OSError:
        return []
    wanted = {name.lower() for name in names}
    return [parent / name for name in entries if name not in names and name.lower() in wanted]


class Listing:
    """The files below a folder, also in archives. Each directory is listed once, because checking
    file by file is slow."""

    def __init__(self, root: Path):
        self.root = root
        self._files: dict[str, set[str]] = {}
        self._spellings: dict[tuple[str, Normal], dict[str, list[str]]] = {}

    def files(self, parent: str) -> set[str]:
        """The names in the directory `parent` below the folder; an empty set if it does not
        exist."""
        if parent not in self._files:
            self._files[parent] = names_below(self.root / parent)
        return self._files[parent]

    def __contains__(self, name: str) -> bool:
        parent, _, file = name.rpartition("/")
        return file in self.files(parent)

    def spelled(self, name: str, normal: Normal = composed) -> str:
        """The path of the only file whose name equals `name` after `normal` was applied to both;
        empty if there is none, or several.

        By default, names are equal in any normal form of Unicode, because macOS stores letters and
        accents separately.
        """
        if name in self:
            return name
        if normal is composed and name.isascii():
            return ""
        parent, _, file = name.rpartition("/")
        if parent:
            parent = self.spelled(parent, normal)
            if not parent:
                return ""
        key = (parent, normal)
        if key not in self._spellings:
            by_spelling: dict[str, list[str]] = {}
            for stored in self.files(parent):
                by_spelling.setdefault(normal(stored), []).append(stored)
            self._spellings[key] = by_spelling
        candidates = self._spellings[key].get(normal(file), [])
        if len(candidates) != 1:
            return ""
        return posixpath.join(parent, candidates[0])


@dataclass(frozen=True)
class Resolved:
    """The file that a path in an annotation file leads to."""

    inside: str = ""  # the path below the data folder; empty if the file is not there
    outside: str = ""  # the path of a file outside the data folder, which is not read
    is_guess: bool = False  # the path does not exist, and `inside` has the same end


class Finder:
    """Finds the files that the paths in an annotation file mean, inside the data folder only."""

    def __init__(self, root: Path):
        self.listing = Listing(root)
        self._root = os.path.abspath(root)
        self._real_root = os.path.realpath(root)
        self._everywhere = Listing(Path("/"))
        self._real_folders: dict[str, str] = {}

    def find(
        self,
        text: str,
        bases: Iterable[str] = ("",),
        origins: Iterable[str] = (),
        ends: bool = False,
    ) -> Resolved:
        """The file that `text` means, relative to one of the `bases` below the data folder, or to
        one of the `origins`, which are folders anywhere.

        If the path exists, it is used, or refused if it is outside the data folder. Otherwise, it
        was written on another machine. Then the longest end of an absolute path that exists in the
        data folder is used, and of `../train/images`, which Roboflow writes one level too high, the
        rest. With `ends`, this applies to other paths as well, such as CVAT's `data/train.txt`. The
        case of a relative path may differ, as on Windows and macOS.
        """
        if "\0" in text:
            return Resolved()
        forward = posixpath.expanduser(text.replace("\\", "/"))
        path = posixpath.normpath(forward)
        leads_out = is_absolute(path) or path == ".." or path.startswith("../")
        inside = "" if leads_out else self._below(path, bases)
        if inside:
            return Resolved(inside)
        starts = list(origins)
        if leads_out:
            starts += [posixpath.join(self._root, base) for base in bases]
        locations = [posixpath.normpath(posixpath.join(start, path)) for start in starts]
        for location in locations:
            inside = self._inside(location)
            if inside:
                return Resolved(inside)
        for location in locations:
            if self._is_there(location):
                return Resolved(outside=location)
        if not leads_out:
            inside = self._below(path, bases, without_capitals)
            if inside or not ends:
                return Resolved(inside, is_guess=bool(inside))
        ends_of_path = _ends(path) if leads_out else inner_ends(path)
        for end in ends_of_path:
            inside = self._below(end, bases)
            if inside:
                return Resolved(inside, is_guess=True)
        return Resolved()

    def _below(self, path: str, bases: Iterable[str], normal: Normal = composed) -> str:
        """The first of the paths below the bases that exists, in any spelling that `normal` makes
        equal; empty if none exists."""
        for base in bases:
            candidate = posixpath.normpath(posixpath.join(base, path))
            if candidate == ".":
                return "."
            inside = path_inside(candidate)
            spelled = self.listing.spelled(inside, normal) if inside else ""
            if spelled:
                return spelled
        return ""

    def _inside(self, location: str) -> str:
        """The part of an absolute path below the data folder; empty if it does not exist there."""
        for root, path in ((self._root, location), (self._real_root, self._real(location))):
            if path == root:
                return "."
            if path.startswith(f"{root}/"):
                inside = path[len(root) + 1 :]
                if inside in self.listing:
                    return inside
        return ""

    def _is_there(self, location: str) -> bool:
        return location == "/" or location.removeprefix("/") in self._everywhere

    def _real(self, location: str) -> str:
        """The path, with links in its folder resolved."""
        folder, name = posixpath.split(location)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return posixpath.join(self._real_folders[folder], name)


def _ends(path: str) -> list[str]:
    """The paths on this machine that a path of another machine may mean, longest first."""
    if not is_absolute(path):
        while path == ".." or path.startswith("../"):
            path = path[3:] or "."
        return [path]
    return inner_ends(path)


def inner_ends(path: str) -> list[str]:
    """The ends of a path, longest first, without the whole path."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(1, len(parts))]


def read_file(file: Path) -> bytes:
    """The content of an annotation file. Raises InputError if it cannot be read."""
    try:
        with open_file(file) as opened:
            content = opened.read()
    except OSError as error:
        text = f"cannot be read: {error.strerror}"
        raise InputError(text, where=file, remedy="copy the annotations again") from None
    _require_plain(file, content)
    return content


def _require_plain(file: Path, head: bytes) -> None:
    """Raises InputError if a file is a pointer of Git LFS, or is compressed."""
    if head.startswith(b"version https://git-lfs"):
        text = "is a Git LFS pointer instead of the annotations"
        raise InputError(text, where=file, remedy="git lfs pull replaces it")
    if head.startswith(_GZIP):
        raise InputError("is compressed with gzip", where=file, remedy="unpack it with gunzip")


def read_blocks(file: Path, size: int) -> Iterator[bytes]:
    """The content of an annotation file, `size` bytes at a time. Raises InputError if it cannot be
    read."""
    try:
        with open_file(file) as opened:
            while block := opened.read(size):
                if opened.tell() == len(block):
                    _require_plain(file, block)
                yield block
    except OSError as error:
        text = f"cannot be read: {error.strerror}"
        raise InputError(text, where=file, remedy="copy the annotations again") from None


def read_lines(file: Path) -> list[str]:
    """The stripped lines of a text file that names files. The encoding is UTF-8, or UTF-16 with a
    byte order mark, which PowerShell writes. Raises InputError if the file cannot be read."""
    content = read_file(file).removeprefix(codecs.BOM_UTF8)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", "replace").encode()
    return [os.fsdecode(line.strip()) for line in content.splitlines()]


def read_sizes(folder: Path, names: list[str]) -> np.ndarray:
    """Height and width of each image as stored, int64 `[N, 2]`, from the header of its file; 0 if
    it cannot be read."""

    def size(name: str) -> tuple[int, int]:
        width, height = image_size(f"{folder}/{name}")
        return height, width

    return _table(size, names, 2)


def read_frames(folder: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The sizes of `read_sizes`, and the orientation of each image, int64 `[N]`; 1 if it cannot be
    read. Each header is read once for both, because that takes time on a network disk."""

    def frame(name: str) -> tuple[int, int, int]:
        width, height, orientation = image_frame(f"{folder}/{name}")
        return height, width, orientation

    table = _table(frame, names, 3)
    return table[:, :2], table[:, 2]


def _table(
    read: Callable[[str], tuple[int, ...]], names: list[str], num_columns: int
) -> np.ndarray:
    """What `read` returns for each name, int64 `[N, columns]`. It is called in threads."""

    def read_part(start: int) -> list[tuple[int, ...]]:
        stop = start + _PER_TASK
        return [read(name) for name in names[start:stop]]

    starts = range(0, len(names), _PER_TASK)
    rows: list[tuple[int, ...]] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for part in pool.map(read_part, starts):
            rows += part
    table = np.array(rows, np.int64)
    return table.reshape(-1, num_columns)
