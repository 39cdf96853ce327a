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
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from redetr.data.images import decode, read_image, require_whole
from redetr.distributed import rank_cores
from redetr.errors import InputError
from redetr.files import write_whole

_ORIENTATION = 0x0112  # the number of the EXIF tag


_PER_TASK = 64  # images that a thread reads before it asks for more


_CONTRAST = 4.0  # brightness, of 255: a thumbnail with less says nothing of copies


PLAIN = "plain"


_THUMBNAIL = (192, 216)  # px, height and width


_ENTRY = (
    int,
    int,
    int,
    int,
    int,
    str,
    str,
    str,
)  # of the cache: time of change, bytes, then the Header


class Header(NamedTuple):
    """What is known of one image file. Pixels as stored; strings are empty where not asked for."""

    width: int = 0
    height: int = 0
    orientation: int = 1  # how viewers turn the image; training does not
    content: str = ""  # hash of the file
    looks: str = ""  # hash of a thumbnail, "plain" for one without contrast
    problem: str = ""  # why it cannot be read


def read_headers(
    folder: Path, names: Sequence[str], content: bool = False, looks: bool = False
) -> list[Header]:
    """The headers of images below a folder, read on all cores; sound ones are remembered in the
    user's cache folder.

    `looks` decodes every image, which finds damage in the middle as well. Threads, not processes:
    most of the time goes into files, hashes and decoders, and a process that holds a GPU should not
    be forked.
    """
    file = cache_file(folder)
    known = _read_cache(file)
    read = partial(_read_some, folder, known, content, looks)
    with ThreadPoolExecutor(max(2, rank_cores())) as pool:
        parts = pool.map(read, [names[i : i + _PER_TASK] for i in range(0, len(names), _PER_TASK)])
        entries = {name: entry for part in parts for name, entry in part.items()}
    headers = [Header(*entries[name][2:]) for name in names]
    sound = {
        name: entries[name]
        for name, header in zip(names, headers, strict=True)
        if not header.problem
    }
    if any(known.get(name) != entry for name, entry in sound.items()):
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(
                f"{file}.lock", timeout=60
            ):  # other ranks have read other files meanwhile
                everything = _read_cache(file) | sound
                write_whole(file, lambda path: path.write_text(json.dumps(everything)))
    return headers


def read_header(path: Path, content: bool = False, looks: bool = False) -> Header:
    """What one file says."""
    try:
        require_whole(path)
        with Image.open(path) as image:
            header = Header(*image.size, _orientation(image))
            if looks or image.mode in (
                "I",
                "F",
            ):  # pixels of 32 bits may be more than training takes
                header = header._replace(looks=_looks(path))
        with open(path, "rb") as file:
            return (
                header._replace(content=hashlib.file_digest(file, "sha256").hexdigest())
                if content
                else header
            )
    except (
        Exception
    ):  # decoders raise nearly everything; reading the image says it in the words of training
        return Header(problem=_problem(path))


def cache_file(folder: Path) -> Path:
    """Where the headers of the images in a folder are remembered."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        caches
        / "redetr"
        / f"images-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}.json"
    )


def _read_some(
    folder: Path, known: dict, content: bool, looks: bool, names: Sequence[str]
) -> dict[str, list]:
    """Entries of the cache for these images, taken from there if the file is the same as then."""
    entries = {}
    for name in names:
        path, then = folder / name, known.get(name, [])
        stat = path.stat() if path.exists() else None
        stamp = [stat.st_mtime_ns, stat.st_size] if stat else [0, 0]
        header = Header(*then[2:])
        if then[:2] != stamp or content > bool(header.content) or looks > bool(header.looks):
            header = read_header(path, content, looks)
        entries[name] = [*stamp, *header]
    return entries


def _read_cache(file: Path) -> dict[str, list]:
    try:
        known = json.loads(file.read_bytes())
    except (
        OSError,
        ValueError,
        RecursionError,
    ):  # there is none, or it is damaged: everything is read again
        return {}
    rows = known.items() if isinstance(known, dict) else ()
    return {
        name: row for name, row in rows if isinstance(row, list) and tuple(map(type, row)) == _ENTRY
    }


def _orientation(image: Image.Image) -> int:
    """How the EXIF tag turns the image, 1 to 8; 1 = not at all."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return int(exif.get(_ORIENTATION, 1)) or 1
    except Exception:  # a damaged tag turns nothing
        return 1


def _looks(path: Path) -> str:
    """Which way the brightness changes over 8x8 parts: nearly equal for copies of another size or
    quality."""
    grey = (
        decode(path, _THUMBNAIL)[0].float().mean(0)
    )  # all of the file is read, but a JPEG is not decoded in full
    small = adaptive_avg_pool2d(grey[None], (8, 9))[0]
    steps = small[:, 1:] - small[:, :-1]
    return (
        np.packbits((steps > 0).numpy()).tobytes().hex() if steps.abs().max() > _CONTRAST else PLAIN
    )


def _problem(path: Path) -> str:
    try:
        read_image(path)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ").rpartition("; ")[0]
    return "cannot read the header of the image"
