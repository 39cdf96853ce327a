"""How viewers rotate an image, by one rule for training, checks and prediction.

The orientation is what Pillow takes for it: the EXIF tag, that of a TIFF file, or else that of XMP.
Pillow finds what a PNG states after its pixels, as ExifTool and ImageMagick write it, only by
decoding the image. Here, the last 64 KiB of the file are searched for it.
"""

import io
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

_ORIENTATION = 0x0112  # the number of the tag
_WIDTH, _LENGTH = 256, 257  # tags of TIFF
_TAIL = 2**16  # bytes
_HEAD = 33  # bytes of the signature of a PNG and its first chunk
_NO_PIXELS = b"\0\0\0\0IDAT\x35\xaf\x06\x1e"  # an empty chunk of them
_STATEMENTS = (b"eXIf", b"iTXt", b"zTXt", b"tEXt")  # kinds of chunks that may state it
_KINDS = re.compile(b"|".join((b"IDAT", *_STATEMENTS)))
_FRAME = 12  # bytes of a chunk besides its content

# What viewers do with pixels [H, W, C].
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, 3),  # clockwise
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
_OPPOSITES = {6: 8, 8: 6}  # the others undo themselves
# The same for points: viewers mirror the stored x or y of these orientations, and then swap both.
_MIRRORED_X = (2, 3, 7, 8)
_MIRRORED_Y = (3, 4, 6, 7)
_SWAPPED = (5, 6, 7, 8)


def exif_orientation(image: Image.Image) -> int:
    """The orientation of an image that PIL has opened, 1 to 8; 1 = not rotated, also if the tag is
    damaged or has a value that EXIF does not define.

    Must be called before the image is decoded: Pillow then rotates a TIFF, and forgets its tag.
    """
    try:
        return known_orientation(_stated(image))
    except Exception:  # PIL's readers do not document their errors; a damaged tag turns nothing
        return 1


def known_orientation(value: Any) -> int:
    """The orientation with this number; 1 if EXIF does not define it."""
    return value if isinstance(value, int) and value in _TURNS else 1


def _stated(image: Image.Image) -> Any:
    """The value of the tag; None if there is none."""
    if isinstance(image, PngImagePlugin.PngImageFile) and image.fp is not None:
        # `PngImageFile.getexif` would decode the pixels to find it.
        info = image.info | _late_info(image.fp)
        image = Image.new("1", (1, 1))
        image.info = info
    return image.getexif().get(_ORIENTATION)


def _late_info(file: IO[bytes]) -> dict[Any, Any]:
    """What Pillow reads from the chunks of a PNG after its pixels."""
    position = file.tell()
    try:
        file.seek(0)
        head = file.read(_HEAD)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read(_TAIL)
    finally:
        file.seek(position)
    late = _late_statements(tail)
    if not late:
        return {}
    content = io.BytesIO(head + late + _NO_PIXELS)
    with suppress(Exception), Image.open(content, formats=("PNG",)) as rest:
        return rest.info
    return {}  # they are damaged


def _late_statements(tail: bytes) -> bytes:
    """The chunks after the pixels of a PNG that may state its orientation. `tail` is the end of the
    file, which may begin within a chunk."""
    if not any(kind in tail for kind in _STATEMENTS):  # half the time of the search below
        return b""
    tried: set[int] = set()
    for match in _KINDS.finditer(tail):
        chunks = _chunks(tail, match.start() - 4, tried)
        late: list[bytes] = []
        for kind, chunk in chunks:
            if kind == b"IDAT":
                late = []
            elif kind in _STATEMENTS:
                late.append(chunk)
        if chunks:
            return b"".join(late)
    return b""


def _chunks(content: bytes, start: int, tried: set[int]) -> list[tuple[bytes, bytes]]:
    """The kinds and bytes of the chunks from `start` up to the end chunk of a PNG; none if these
    bytes are something else, such as pixels in which the name of a chunk occurs by chance.

    Where this fails once, it fails again: the places are added to `tried`, or many false names
    would take quadratic time.
    """
    chunks: list[tuple[bytes, bytes]] = []
    while start >= 0 and start not in tried:
        tried.add(start)
        length = int.from_bytes(content[start : start + 4], "big")
        kind = content[start + 4 : start + 8]
        stop = start + length + _FRAME
        if stop > len(content):
            break
        if kind == b"IEND":
            return chunks
        chunks.append((kind, content[start:stop]))
        start = stop
    return []


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the stored pixels of an opened image. For a TIFF, Pillow states those of
    the rotated image."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2[_WIDTH]), int(image.tag_v2[_LENGTH])
    return image.size


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels `[H, W, C]` as viewers show them."""
    if orientation == 1:
        return pixels
    return np.ascontiguousarray(_TURNS[orientation](pixels))


def turned_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The stored pixels of an image that Pillow has rotated, `[H, W]` or `[H, W, C]`."""
    return turned(pixels, _OPPOSITES.get(orientation, orientation))


def stored_points(points: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """Points `[P, 2]` in stored images, from those in the images as viewers show them. Both are x
    and y as fractions of their image; `orientations` `[P]` are those of the images."""
    return _mirrored(stored_sides(points, orientations), orientations)


def upright_points(points: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """The inverse of `stored_points`."""
    return stored_sides(_mirrored(points, orientations), orientations)


def stored_sides(sides: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """Widths and heights `[P, 2]` in stored images, from those in the images as viewers show them,
    or the reverse."""
    is_swapped = np.isin(orientations, _SWAPPED)
    return np.where(is_swapped[:, None], sides[:, ::-1], sides)


def _mirrored(points: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    is_mirrored = [np.isin(orientations, _MIRRORED_X), np.isin(orientations, _MIRRORED_Y)]
    return np.where(np.stack(is_mirrored, axis=1), 1 - points, points)


def pillow_turns(image: Image.Image) -> int:
    """The orientation by which Pillow rotates an opened image when it decodes it; 1 = it does
    not."""
    is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
    return exif_orientation(image) if is_tiff else 1
