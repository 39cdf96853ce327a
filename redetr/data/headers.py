"""The headers of image files, read on all cores and cached."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from io import BufferedReader, BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from redetr.data.archives import open_data_file, stamp_of_file
from redetr.data.header_cache import PLAIN, Header, HeaderCache, Headers
from redetr.data.images import (
    channels_to_look_at,
    decode,
    describe,
    problem_of,
    read_image,
    require_whole,
)
from redetr.data.pixels import one_colour
from redetr.errors import InputError, first_line
from redetr.launch import rank_cores

_PER_TASK = 64  # images in a task of a thread
_CONTRAST = 4.0  # of 255; thumbnails with less cannot distinguish copies
_THUMBNAIL = (192, 216)  # px, height and width
# per pixel: photographs have 0.1 and more; half of that may still be a drawing
_PLAIN_BYTES = 0.05


def read_headers(
    folder: Path, names: Sequence[str], content: bool = False, looks: bool = False
) -> Headers:
    """The headers of images below a folder, read on all cores; those of valid images are cached in
    the user's cache folder.

    `looks` decodes every image, which also finds damage in the middle of files. Without it, images
    are decoded only if they have more than 8 bits, or so few bytes that they may have a single
    colour. Threads are used instead of processes, because most of the time is spent on files,
    hashes and decoders, and a process that uses a GPU should not be forked.
    """
    encoded = np.array([os.fsencode(name) for name in names], "S")
    with ThreadPoolExecutor(max(2, rank_cores())) as pool:
        stamps = pool.map(partial(_stamps, folder, names), _tasks(range(len(names))))
        stamp = np.array(list(chain.from_iterable(stamps)), np.int64).reshape(-1, 3)
        cache = HeaderCache(folder)
        rows, is_known = cache.look_up(encoded, stamp, looks)
        headers = Headers(rows)
        is_new = ~is_known
        if content:  # training needs hashes later than the other facts, which are not read again
            is_new |= ~rows["content"].any(1)
            hashed = np.flatnonzero(is_known & is_new)
            hashes = pool.map(partial(_hash_part, folder, names), _tasks(hashed.tolist()))
            digests = b"".join(hashes)
            rows["content"][hashed] = np.frombuffer(digests, np.uint64).reshape(-1, 4)
            is_known &= rows["content"].any(1)  # reading the others says what is wrong with them
        read_part = partial(_read_part, folder, names, content, looks)
        for part in pool.map(read_part, _tasks(np.flatnonzero(~is_known).tolist())):
            for i, header in part:
                headers.put(i, header)
    is_new &= headers.is_sound()
    if is_new.any():
        rows["stamp"][is_new] = stamp[is_new]
        with suppress(OSError):  # a cache that cannot be written only costs time
            cache.add(encoded[is_new], rows[is_new])
    return headers


def _tasks(images: Sequence[int]) -> list[Sequence[int]]:
    """The images, divided into tasks for threads."""
    return [images[start : start + _PER_TASK] for start in range(0, len(images), _PER_TASK)]


def headers_of_contents(count: int, content_of: Callable[[int], bytes]) -> Headers:
    """The headers of images that are not files of their own, read on all cores.

    `content_of` returns what the file of image `i` would hold. It is called in this thread only,
    and raises OSError or InputError if that cannot be read.
    """
    headers = Headers.unread(count)
    with ThreadPoolExecutor(max(2, rank_cores())) as pool:
        for part in _tasks(range(count)):  # in parts, so that few are in memory
            readable = []
            contents = []
            for i in part:
                try:
                    contents.append(BytesIO(content_of(i)))
                    readable.append(i)
                except (OSError, InputError) as error:
                    headers.put(i, Header(problem=first_line(error)))
            for i, header in zip(readable, pool.map(_read_content, contents), strict=True):
                headers.put(i, header)
    return headers


def _read_content(content: BytesIO) -> Header:
    return read_header(content, content=True)


def read_header(source: Path | BytesIO, content: bool = False, looks: bool = False) -> Header:
    """The header of one file, or of its content."""
    try:
        with _opened(source) as file:  # once, for all that is read of it
            num_bytes = require_whole(file, source)
            width, height, orientation, frames, has_many_bits = describe(file, str(source))
            digest = _hash(file).hex() if content else ""
            header = Header(width, height, orientation, digest, frames=frames)
            # Deep images may have more bits than training uses, or a few values that hide others.
            may_be_plain = num_bytes < _PLAIN_BYTES * width * height
            if looks or has_many_bits or may_be_plain:
                channels = channels_to_look_at(source) if has_many_bits else 3
                # A JPEG is decoded only in part.
                thumbnail, _ = decode(file, _THUMBNAIL, str(source), channels)
                header = header._replace(plain=_plain(source, thumbnail))
                if looks:
                    header = header._replace(looks=_looks(thumbnail))
    except (InputError, OSError):
        return Header(problem=problem_of(source))
    return header


def _opened(source: Path | BytesIO) -> AbstractContextManager[BufferedReader | BytesIO]:
    return open_data_file(source) if isinstance(source, Path) else nullcontext(source)


def _stamps(folder: Path, names: Sequence[str], part: Sequence[int]) -> list[tuple[int, ...]]:
    """The `stamp_of_file` of each file; zeros for files that are missing."""
    stamps: list[tuple[int, ...]] = []
    for i in part:
        try:
            stamps.append(stamp_of_file(f"{folder}/{names[i]}"))
        except (OSError, ValueError, InputError):  # reported when the file is read
            stamps.append((0, 0, 0))
    return stamps


def _hash_part(folder: Path, names: Sequence[str], part: Sequence[int]) -> bytes:
    """The hashes of files, one after another; zeros for those that cannot be read."""
    hashes = []
    for i in part:
        try:
            with open_data_file(f"{folder}/{names[i]}") as file:
                hashes.append(_hash(file))
        except (OSError, InputError):
            hashes.append(bytes(32))
    return b"".join(hashes)


def _hash(file: BytesIO | BufferedReader) -> bytes:
    """The SHA-256 hash of an opened file."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").digest()


def _read_part(
    folder: Path, names: Sequence[str], content: bool, looks: bool, part: Sequence[int]
) -> list[tuple[int, Header]]:
    headers = []
    for i in part:
        headers.append((i, read_header(folder / names[i], content, looks)))
    return headers


def _plain(source: Path | BytesIO, thumbnail: Tensor) -> str:
    """The colour of nearly all pixels of an image; empty if they differ."""
    if not one_colour(_channels_last(thumbnail)):
        return ""
    pixels = read_image(source, len(thumbnail))  # a thumbnail may have lost small details
    return one_colour(_channels_last(pixels))


def _channels_last(pixels: Tensor) -> NDArray[np.uint8]:
    """An image `[3, H, W]` as an array `[H, W, 3]`."""
    return pixels.permute(1, 2, 0).numpy()


def _looks(thumbnail: Tensor) -> str:
    """The directions in which the brightness changes over 8x8 parts, which are nearly equal for
    copies with another size or quality."""
    total = torch.zeros(thumbnail.shape[1:])
    for channel in thumbnail.float():  # `mean(0)` takes three times as long
        total += channel
    grey = total / len(thumbnail)
    small = adaptive_avg_pool2d(grey[None], (8, 9))[0]
    steps = small[:, 1:] - small[:, :-1]  # [8, 8]
    if steps.abs().max() <= _CONTRAST:
        return PLAIN
    return np.packbits((steps > 0).numpy()).tobytes().hex()
