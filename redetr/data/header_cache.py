"""The headers of image files as arrays, and their cache between starts.

The cache of a folder of images is a folder in the user's cache, with arrays that are never changed:
each process adds an array of the headers that it has read. When there are many, a process merges
them. So no process waits for a lock, not even on network disks, and headers that are lost in a
merge are read from the images again.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from redetr.files import cache_folder, hashed_name, write_whole

PLAIN = "plain"
_VERSION = b"3"  # of what is read of headers; rows of earlier versions are not used
_MOST_PARTS = 16  # of a cache, before they are merged

_FIELDS = [
    ("stamp", np.int64, 3),  # `stamp_of_file` of the file that was read
    ("width", np.int32),
    ("height", np.int32),
    ("orientation", np.int32),
    ("frames", np.int32),
    ("content", np.uint64, 4),  # SHA-256; zeros where not asked for
    ("looks", "S16"),
    ("plain", "S20"),
]


class Header(NamedTuple):
    """The facts about an image file. Sizes are as stored; texts that were not requested are
    empty."""

    width: int = 0
    height: int = 0
    orientation: int = 1  # how viewers rotate the image; training does not
    content: str = ""  # hash of the file
    looks: str = ""  # hash of a thumbnail, "plain" for one without contrast
    problem: str = ""  # why it cannot be read
    frames: int = 1  # pages of a TIFF, frames of an animation; the first is read
    # the colour that nearly all pixels have; empty if they differ, or were not looked at
    plain: str = ""


class Headers(Sequence[Header]):
    """The headers of N images, with about 100 bytes each; as a list, they would take five times as
    much."""

    def __init__(self, rows: np.ndarray):
        """`rows` have the fields of `_FIELDS`."""
        self.rows = rows
        self.problems: dict[int, str] = {}  # by index

    @classmethod
    def unread(cls, count: int) -> "Headers":
        """The headers of so many images, to be put in."""
        return cls(np.zeros(count, _FIELDS))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Header:  # type: ignore[override]
        row = self.rows[i]
        return Header(
            int(row["width"]),
            int(row["height"]),
            int(row["orientation"]),
            content_text(row["content"]),
            row["looks"].decode(),
            self.problems.get(int(i), ""),
            int(row["frames"]),
            row["plain"].decode(),
        )

    def put(self, i: int, header: Header) -> None:
        """Stores the header of image `i`."""
        row = self.rows[i]
        row["width"], row["height"] = header.width, header.height
        row["orientation"], row["frames"] = header.orientation, header.frames
        row["content"] = np.frombuffer(bytes.fromhex(header.content or 64 * "0"), np.uint64)
        row["looks"], row["plain"] = header.looks, header.plain
        if header.problem:
            self.problems[i] = header.problem

    def is_sound(self) -> np.ndarray:
        """Which files can be read, bool `[N]`."""
        sound = np.ones(len(self), bool)
        sound[list(self.problems)] = False
        return sound


def content_text(content: np.ndarray) -> str:
    """A hash, uint64 `[4]`, as text; empty for zeros, which stand for none."""
    return content.tobytes().hex() if content.any() else ""


def first_same(contents: np.ndarray) -> np.ndarray:
    """For each hash, uint64 `[N, 4]`, the first row with the same hash, int64 `[N]`; the row itself
    if there is none, or if its hash is zeros, which stand for no hash."""
    # Sorted by 64 of the 256 bits, which takes less time; all of them are compared below.
    _, first, group = np.unique(contents[:, 0], return_index=True, return_inverse=True)
    earlier = first[group]
    is_same = (contents[earlier] == contents).all(1)
    is_known = contents.any(1)
    rows = np.arange(len(contents))
    return np.where(is_same & is_known, earlier, rows)


class HeaderCache:
    """The cached facts about the images in a folder."""

    def __init__(self, folder: Path):
        identity = _VERSION + os.fsencode(folder.resolve())
        digest = hashlib.sha256(identity).hexdigest()
        self.folder = cache_folder("images") / digest[:16]

    def look_up(
        self, names: np.ndarray, stamps: np.ndarray, looks: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows of files with these names, bytes `[N]`, and stamps, `[N, 3]`, and which of them
        are known, bool `[N]`.

        If looks are requested, only rows with looks are known; hashes may be missing.
        """
        rows = np.zeros(len(names), _FIELDS)
        is_known = np.zeros(len(names), bool)
        for _, part in self._parts():
            order = np.argsort(part["name"], kind="stable")
            part_names = part["name"][order]
            nearest = np.searchsorted(part_names, names).clip(max=len(part) - 1)
            index = order[nearest]
            same = part_names[nearest] == names
            same &= (part["stamp"][index] == stamps).all(1)
            if looks:
                same &= part["looks"][index] != b""
            is_new = same & ~is_known
            for name in rows.dtype.names or ():
                rows[name][is_new] = part[name][index[is_new]]
            is_known |= same
            has_no_hash = same & ~rows["content"].any(1)
            rows["content"][has_no_hash] = part["content"][index[has_no_hash]]
        return rows, is_known

    def add(self, names: np.ndarray, rows: np.ndarray) -> None:
        """Adds the rows of images with these names. Raises OSError if they cannot be written."""
        part = np.empty(len(rows), [*_FIELDS, ("name", names.dtype)])
        part["name"] = names
        for field in rows.dtype.names or ():
            part[field] = rows[field]
        self.folder.mkdir(parents=True, exist_ok=True)
        others = list(self._parts())
        if len(others) < _MOST_PARTS:
            self._write(part)
            return
        everything = np.concatenate([part, *(other for _, other in others)])
        _, newest = np.unique(everything["name"], return_index=True)  # the first of each name
        self._write(everything[newest])
        for file, _ in others:
            file.unlink(missing_ok=True)

    def _write(self, part: np.ndarray) -> None:
        digest = hashed_name(part.tobytes())

        def save(path: Path) -> None:
            np.save(path, part, allow_pickle=False)

        write_whole(self.folder / f"part-{digest}.npy", save)

    def _parts(self) -> list[tuple[Path, np.ndarray]]:
        """The arrays, newest first, without damaged ones."""
        parts = []
        dated = []
        for file in self.folder.glob("part-*.npy"):
            with suppress(OSError):  # another process has merged them
                dated.append((file.stat().st_mtime_ns, file))
        for _, file in sorted(dated, reverse=True):
            with suppress(OSError, ValueError, EOFError):
                part = np.load(file)
                if part.dtype.descr[:-1] == np.dtype(_FIELDS).descr and len(part):
                    parts.append((file, part))
        return parts
