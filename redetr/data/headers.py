"""What the headers of image files say, read on all cores and remembered."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from redetr.data.images import channels_to_look_at, decode, describe, read_image, require_whole
from redetr.data.pixels import one_colour
from redetr.distributed import rank_cores
from redetr.errors import InputError
from redetr.files import open_file, write_whole

_PER_TASK = 64  # images that a thread reads before it asks for more
_CONTRAST = 4.0  # brightness, of 255: a thumbnail with less cannot tell copies apart
_THUMBNAIL = (192, 216)  # px, height and width
# per pixel: photographs have 0.1 and more; half of that may still be a drawing
_PLAIN_BYTES = 0.05
_LOCK_S = 60  # other ranks write to the cache as well, in an instant
PLAIN = "plain"

# The types of an entry of the cache: time of change, bytes, then the fields of a Header.
_ENTRY = (int, int, int, int, int, str, str, str, int, str)


class Header(NamedTuple):
    """What is known of one image file. Pixels as stored; strings are empty where not asked for."""

    width: int = 0
    height: int = 0
    orientation: int = 1  # how viewers turn the image; training does not
    content: str = ""  # hash of the file
    looks: str = ""  # hash of a thumbnail, "plain" for one without contrast
    problem: str = ""  # why it cannot be read
    frames: int = 1  # pages of a TIFF, frames of an animation; the first is read
    # the colour that nearly all pixels have; empty if they differ, or were not looked at
    plain: str = ""


def read_headers(
    folder: Path, names: Sequence[str], content: bool = False, looks: bool = False
) -> list[Header]:
    """The headers of images below a folder, read on all cores; sound ones are remembered in the
    user's cache folder.

    `looks` decodes every image, which finds damage in the middle as well. Without it, only those
    are decoded that have more than 8 bits, or so few bytes that they may be plain. Threads, not
    processes: most of the time goes into files, hashes and decoders, and a process that holds a GPU
    should not be forked.
    """
    file = cache_file(folder)
    known = _read_cache(file)
    parts = [names[start : start + _PER_TASK] for start in range(0, len(names), _PER_TASK)]
    read_part = partial(_read_part, folder, known, content, looks)
    entries: dict[str, list] = {}
    with ThreadPoolExecutor(max(2, rank_cores())) as pool:
        for part_entries in pool.map(read_part, parts):
            entries |= part_entries

    headers = []
    sound: dict[str, list] = {}
    for name in names:
        header = Header(*entries[name][2:])
        headers.append(header)
        if not header.problem:
            sound[name] = entries[name]
    if any(known.get(name) != entry for name, entry in sound.items()):
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            _add_to_cache(file, sound)
    return headers


def read_header(path: Path, content: bool = False, looks: bool = False) -> Header:
    """What one file says."""
    try:
        num_bytes = require_whole(path)
        width, height, orientation, frames, has_many_bits = describe(path)
        header = Header(width, height, orientation, frames=frames)
        # Many bits may be more than training takes, or hold a few values that hide the others.
        may_be_plain = num_bytes < _PLAIN_BYTES * width * height
        if looks or has_many_bits or may_be_plain:
            channels = channels_to_look_at(path) if has_many_bits else 3
            thumbnail, _ = decode(path, _THUMBNAIL, channels=channels)  # a JPEG only in part
            header = header._replace(plain=_plain(path, thumbnail))
            if looks:
                header = header._replace(looks=_looks(thumbnail))
        if content:
            with open_file(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            header = header._replace(content=digest)
    except (InputError, OSError):
        return Header(problem=_problem(path))
    return header


def cache_file(folder: Path) -> Path:
    """Where the headers of the images in a folder are remembered."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return Path(caches) / "redetr" / f"images-{digest[:16]}.json"


def _read_part(
    folder: Path, known: dict, content: bool, looks: bool, names: Sequence[str]
) -> dict[str, list]:
    """Entries of the cache for these images, taken from there if the file is the same as then."""
    entries = {}
    for name in names:
        path = folder / name
        stamp = [0, 0]
        if path.exists():
            stat = path.stat()
            stamp = [stat.st_mtime_ns, stat.st_size]
        remembered = known.get(name, [])
        header = Header(*remembered[2:])
        is_current = remembered[:2] == stamp
        lacks_content = content and not header.content
        lacks_looks = looks and not header.looks
        if not is_current or lacks_content or lacks_looks:
            header = read_header(path, content, looks)
        entries[name] = [*stamp, *header]
    return entries


def _read_cache(file: Path) -> dict[str, list]:
    """The entries that are whole; what is damaged is read from the images again."""
    try:
        known = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):  # not there, or no JSON
        return {}
    if not isinstance(known, dict):
        return {}
    entries = {}
    for name, entry in known.items():
        if isinstance(entry, list) and tuple(map(type, entry)) == _ENTRY:
            entries[name] = entry
    return entries


def _add_to_cache(file: Path, entries: dict[str, list]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock", timeout=_LOCK_S):
        everything = _read_cache(file) | entries  # other ranks have read other files meanwhile
        text = json.dumps(everything)
        write_whole(file, lambda path: path.write_text(text))


def _plain(path: Path, thumbnail: Tensor) -> str:
    """The colour that nearly all pixels of an image have, empty if they differ."""
    if not one_colour(_channels_last(thumbnail)):
        return ""
    pixels = read_image(path, len(thumbnail))  # a thumbnail may have lost what is small
    return one_colour(_channels_last(pixels))


def _channels_last(pixels: Tensor) -> NDArray[np.uint8]:
    """An image `[3, H, W]` as an array `[H, W, 3]`."""
    return pixels.permute(1, 2, 0).numpy()


def _looks(thumbnail: Tensor) -> str:
    """Which way the brightness changes over 8x8 parts: nearly equal for copies of another size or
    quality."""
    grey = thumbnail.float().mean(0)
    small = adaptive_avg_pool2d(grey[None], (8, 9))[0]
    steps = small[:, 1:] - small[:, :-1]  # [8, 8]
    if steps.abs().max() <= _CONTRAST:
        return PLAIN
    return np.packbits((steps > 0).numpy()).tobytes().hex()


def _problem(path: Path) -> str:
    """Why an image cannot be read, in the words of training."""
    try:
        read_image(path, channels_to_look_at(path))
    except InputError as error:
        return error.text
    return "cannot read the header of the image"
