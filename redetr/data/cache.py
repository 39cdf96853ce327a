"""Caches decoded images, once per host for all ranks and loader processes of a run.

They are in a file without a name, in memory or on a disk. When the run ends in any way, the file is
gone, so nothing is left behind or out of date. Linux only.
"""

import os
import platform
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redetr.data.cgroups import group_memory

_SHARE = 0.25  # of the free memory or space, unless the user sets a size
_HEADER = 8  # bytes, with the length of the used part of the file
_ROW = 32  # bytes per image: offset of its pixels (0 = not cached), height, width, channels


def host() -> str:
    """Equal for processes that can open each other's files."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    kernel = boot_id.read_text() if boot_id.exists() else platform.node()
    return kernel + os.readlink("/proc/self/ns/pid")


def spare_bytes(folder: str | None = None) -> int:
    """A share of the free space on the disk of `folder`, or else of the available memory of this
    host, or of the container or job of this process."""
    if folder:
        free = shutil.disk_usage(folder).free
        return int(_SHARE * free)
    return int(_SHARE * available_memory())


def available_memory() -> int:
    """The available bytes of memory of this host, or of the container or job of this process."""
    return max(0, int(min(_host_memory(), group_memory())))


def _host_memory() -> int:
    """The available bytes of memory of this host."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, kilobytes, *_ = line.split()
        if name == "MemAvailable:":
            return int(kilobytes) * 1024
    raise OSError("/proc/meminfo does not state MemAvailable")


def _nameless_file(folder: str) -> int:
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


def _row_at(index: int) -> int:
    """The offset of an image's row in the file."""
    return _HEADER + _ROW * index


class ImageCache:
    """A cache of images `[C, H, W]` uint8, by index; beyond `limit` bytes, no more images are
    added.

    The file lives as long as the object that created it. Other processes of the user on this
    `host()` share it by its `path`. If two processes decode an image at the same time, both write
    it, which only takes space.
    """

    def __init__(self, num_images: int, limit: int, folder: str | None = None):
        """Creates a new file, on the disk of `folder` or in memory."""
        file = _nameless_file(folder) if folder else os.memfd_create("images")
        weakref.finalize(self, os.close, file)
        self.path = f"/proc/{os.getpid()}/fd/{file}"
        self.limit = limit
        self._start = _HEADER + _ROW * num_images
        self._process = 0
        self._file = -1

    def get(self, index: int) -> Tensor | None:
        """The image; None if it is not cached."""
        file = self._opened()
        row = os.pread(file, _ROW, _row_at(index))
        if not any(row):  # also beyond the end of the file
            return None
        start, height, width, channels = np.frombuffer(row, np.int64).tolist()
        pixels = np.empty((height, width, channels), np.uint8)
        os.preadv(file, [pixels.data], start)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def put(self, index: int, image: Tensor) -> None:
        """Adds the image, if there is space."""
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        # The disk is full: the image will be decoded again, which only costs time.
        with suppress(OSError):
            self._write(index, pixels)

    def _write(self, index: int, pixels: np.ndarray) -> None:
        start = self._take(pixels.nbytes)
        if not start:
            return
        file = self._opened()
        count = os.pwrite(file, pixels.data, start)
        if count == pixels.nbytes:
            # The row comes last, so that a process that sees it can read all pixels.
            row = np.array([start, *pixels.shape], np.int64)
            os.pwrite(file, row.data, _row_at(index))

    def _take(self, count: int) -> int:
        """The offset of `count` bytes that no other process will write; 0 if there is not enough
        space."""
        with self._locked() as file:
            taken = int.from_bytes(os.pread(file, _HEADER, 0), "little")
            start = max(self._start, taken)
            end = start + count
            if end > self._start + self.limit:
                return 0
            os.pwrite(file, end.to_bytes(_HEADER, "little"), 0)
            return start

    @contextmanager
    def _locked(self) -> Iterator[int]:
        import fcntl  # not on Windows; the cache is for Linux

        file = self._opened()
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield file
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)

    def _opened(self) -> int:
        """The file, opened separately in each process, because processes that share an opening do
        not lock each other out."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._file = os.open(self.path, os.O_RDWR)
            weakref.finalize(self, os.close, self._file)
        return self._file
