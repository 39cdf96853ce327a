"""Reads image files completely, as stored, or refuses them in one line."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, features
from torch import Tensor

from redetr.data.archives import open_data_file
from redetr.data.bands import (
    bands_bytes,
    bands_orientation,
    bands_shape,
    count_images,
    has_bands,
    holds_inks,
    in_channels,
    read_bands,
)
from redetr.data.orientation import exif_orientation, stored_size, turned
from redetr.data.pixels import PlanesError, is_deep, is_transparent, to_rgb
from redetr.errors import InputError, first_line

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
# The formats of PIL that are read, and their suffixes. Others run programs (Ghostscript for EPS),
# or accept nearly any file (TGA, PCX).
_ENDINGS = {
    "JPEG": JPEG_SUFFIXES,
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
}
if "avif" in features.modules and features.check("avif"):  # some builds of PIL lack it
    _ENDINGS["AVIF"] = (".avif", ".avifs")
FORMATS = tuple(_ENDINGS)
ARRAY = ".npy"
IMAGE_SUFFIXES = (*chain.from_iterable(_ENDINGS.values()), ARRAY)
NO_IMAGE = f"not an image ({', '.join(FORMATS)} are read)"

# Contents that occur instead of images: an offset, the bytes there, and their meaning.
_OTHER_FILES = (
    (0, b"version https://git-lfs", "a Git LFS pointer, which `git lfs pull` replaces"),
    (0, b"<", "text such as a web page or SVG"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypavif", "AVIF, which this Pillow lacks"),
    (4, b"ftyp", "a video"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (128, b"DICM", "DICOM"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\3\4", "an archive"),
)
_HEAD = 132  # bytes that show it
_MANY_FRAMES = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")
# The suffixes of files that may hold several pages or frames.
SUFFIXES_OF_MANY = tuple(chain.from_iterable(_ENDINGS.get(name, ()) for name in _MANY_FRAMES))
_PILLOW_BYTES = 4  # of a pixel in Pillow's memory, at most
_SUBFILE_TYPE, _REDUCED = 254, 1  # a tag of TIFF
_SAMPLES = 277  # another one: values of each pixel
READ_REMEDY = (
    "replace the file, or remove it from the annotations (train --skip-unreadable leaves it out)"
)
ROW_REMEDY = "replace the image in this row, or delete the row"  # for images that are not files

# For a file of another size than annotated, and for one whose tag explains that.
SIZE_REMEDY = "restore the file that was annotated, or export the annotations again"
TURNED_REMEDY = "it was annotated as its EXIF tag rotates it: save it rotated, without the tag"


def suffix_of(image: Image.Image) -> str:
    """The usual suffix of files in the format of an opened image."""
    if image.format == "MPO":  # which the reader of JPEG opens
        return ".mpo"
    return _ENDINGS[image.format or ""][0]


def is_image_name(path: str) -> bool:
    """Whether a file has the suffix of an image and is not hidden, such as the `._a.jpg` that macOS
    adds to archives."""
    name = path.rpartition("/")[2]
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def cached_copies(names: Iterable[str]) -> set[str]:
    """The files among the `names` of a folder or archive that Ultralytics wrote as a cache: the
    pixels of an image beside them, in BGR, as `a.npy` beside `a.jpg`, and `val.cache.npy`."""
    arrays = []
    stems = set()
    for name in names:
        stem, suffix = os.path.splitext(name)
        suffix = suffix.lower()
        if suffix == ARRAY:
            arrays.append((name, stem))
        elif suffix in IMAGE_SUFFIXES:
            stems.add(stem)
    return {name for name, stem in arrays if stem in stems or stem.endswith(".cache")}


class BandsError(ValueError):
    """A file that Pillow cannot read, but `data/bands.py` may."""


def read_image(file: Path | BinaryIO, channels: int = 3) -> Tensor:
    """The image in a file, uint8 `[channels, H, W]`, as stored: boxes refer to stored pixels, so
    EXIF is not applied. Three channels are RGB.

    Raises InputError if the file is missing, not an image, damaged or truncated, or has another
    number of bands.
    """
    image, _ = decode(file, channels=channels)
    return image


def read_upright(file: Path | BinaryIO, name: str, channels: int = 3) -> Tensor:
    """The image in a file as viewers show it, rotated according to its EXIF tag, uint8
    `[channels, H, W]`.

    Of an animation, the first image is returned. Raises InputError like `read_image`, which calls
    the file `name`.
    """
    pixels, _ = _decoded(file, name, "give another file", channels, _upright_pixels, _upright_bands)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_counted(file: Path | BinaryIO, name: str, channels: int = 3) -> tuple[Tensor, int]:
    """The image of `read_upright`, and the number of pages or frames of its file. Raises InputError
    like `read_upright`."""
    with decoder_errors(name, "give another file"), _opened(file) as opened:
        image = read_upright(opened, name, channels)
        num_frames = 1
        with suppress(InputError):  # damage after the first frame
            num_frames = describe(opened, name).frames
        return image, num_frames
    raise AssertionError("errors of decoders were raised")  # for the type checker


def problem_of(file: Path | BinaryIO) -> str:
    """Why an image cannot be read, with the text that training reports. For files whose header
    could not be read."""
    try:
        read_image(file, channels_to_look_at(file))
    except InputError as error:
        return error.text
    return "cannot read the header of the image"


def upright(image: Image.Image, channels: int = 3) -> Tensor:
    """An image that PIL has opened, as viewers show it, uint8 `[channels, H, W]`: RGB, or its
    brightness. Raises InputError if it cannot be decoded, or has no pixels."""
    if 0 in image.size:
        raise InputError(f"has no pixels ({image.width}x{image.height})", where="this image")
    with decoder_errors("this image", "open another one"):
        pixels = _upright_pixels(image)
    if channels != 3:
        pixels = in_channels(pixels, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _upright_pixels(image: Image.Image) -> np.ndarray:
    orientation = exif_orientation(image)
    return turned(to_rgb(image), orientation)


def _upright_bands(file: BinaryIO) -> np.ndarray:
    """All bands of an opened file as viewers show them, `[H, W, C]`."""
    values = read_bands(file)
    return turned(values, _file_orientation(file))


def _file_orientation(file: BinaryIO) -> int:
    """The EXIF orientation of an opened file."""
    with suppress(BandsError), _identified(file) as image:
        return exif_orientation(image)
    return bands_orientation(file)


def decode(
    file: Path | BinaryIO,
    needed: tuple[int, int] | None = None,
    name: str = "",
    channels: int = 3,
    remedy: str = READ_REMEDY,
) -> tuple[Tensor, tuple[int, int]]:
    """The image in a file, as from `read_image`, and its stored size; errors call it `name`
    (default: its path), and have this `remedy` if they have none of their own.

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, if that leaves the size `needed`: its
    decoder then skips most of the work.
    """
    # torchvision's decoders are deprecated, and that for PNG crashes on some damaged files.
    # simplejpeg and OpenCV take a fifth less time, which is a tenth of a whole sample: too little
    # for another dependency.

    def read(image: Image.Image) -> np.ndarray:
        if needed:
            height, width = needed
            image.draft("RGB", (width, height))
        return to_rgb(image)

    called = name or str(file)
    pixels, stored = _decoded(file, called, remedy, channels, read, read_bands)
    # The channels of a pixel stay adjacent, see `views.interleaved`.
    return torch.from_numpy(pixels).permute(2, 0, 1), stored


def _decoded(
    file: Path | BinaryIO,
    name: str,
    remedy: str,
    channels: int,
    read: Callable[[Image.Image], np.ndarray],
    read_all: Callable[[BinaryIO], np.ndarray],
) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels `[H, W, channels]` of a file, and its stored height and width, if `read` and
    `read_all` do not rotate it.

    `read` converts an image that Pillow opened to RGB. If it cannot be used, `read_all` returns all
    bands of the file, which are not converted. Raises InputError like `read_image`.
    """
    with decoder_errors(name, remedy), _opened(file) as opened:
        if channels in (1, 3):
            with suppress(BandsError, PlanesError), _identified(opened) as image:
                width, height = stored_size(image)
                pixels = read(image)
                if channels == 1:
                    pixels = in_channels(pixels, channels)
                return pixels, (height, width)
        if channels in (1, 3) and holds_inks(opened):
            text = "printing inks (CMYK) of a kind that Pillow cannot convert to RGB"
            raise InputError(text, remedy="save it as RGB")
        pixels = in_channels(read_all(opened), channels)
        height, width, _ = pixels.shape
        return pixels, (height, width)
    raise AssertionError("errors of decoders were raised")  # for the type checker


@contextmanager
def open_image(
    file: Path | BinaryIO, name: str = "", remedy: str = READ_REMEDY
) -> Iterator[Image.Image]:
    """A context with the opened image, which can be decoded in it. Errors there become
    InputErrors."""
    with (
        decoder_errors(name or str(file), remedy),
        _opened(file) as opened,
        _identified(opened) as image,
    ):
        yield image


def _identified(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if not has_bands(file):
            raise InputError(_no_image(file)) from None
    raise BandsError(
        "arrays and this kind of TIFF cannot be read: save it as a PNG or TIFF file of 8 or 16 bits"
    )


def _no_image(file: BinaryIO) -> str:
    """Why a file is not read as an image, judging by its first bytes."""
    file.seek(0)
    head = file.read(_HEAD)
    if not head:
        return "not an image: the file is empty"
    for offset, start, name in _OTHER_FILES:
        if head[offset:].startswith(start):
            return f"not an image that is read, but {name} ({', '.join(FORMATS)} are read)"
    return NO_IMAGE


class Description(NamedTuple):
    """The content of an image file's header."""

    width: int
    height: int
    orientation: int  # of EXIF, 1 to 8; 1 = not rotated
    frames: int
    is_deep: bool  # more than 8 bits, or another number of bands than Pillow reads


def describe(file: Path | BinaryIO, name: str = "") -> Description:
    """The header of an image file. Raises InputError if it cannot be read, which calls it `name`
    (default: its path)."""
    with decoder_errors(name or str(file), READ_REMEDY), _opened(file) as opened:
        with suppress(BandsError), _identified(opened) as image:
            size = stored_size(image)
            orientation = exif_orientation(image)
            return Description(*size, orientation, frame_count(image), is_deep(image))
        height, width, _ = bands_shape(opened)
        orientation = bands_orientation(opened)
        return Description(width, height, orientation, count_images(opened), True)
    raise AssertionError("errors of decoders were raised")  # for the type checker


def count_bands(file: Path | BinaryIO) -> tuple[int, bool]:
    """The number of bands of a file, and whether Pillow reads the file: then it is at least three,
    of which Pillow uses three. (3, True) also for files that cannot be read, and for images with
    transparency or in printing inks, which Pillow turns to RGB."""
    with suppress(Exception), _opened(file) as opened:  # see `decoder_errors`
        with suppress(BandsError), _identified(opened) as image:
            samples = 3
            is_in_rgb = is_transparent(image) or image.mode == "CMYK"
            if isinstance(image, TiffImagePlugin.TiffImageFile) and not is_in_rgb:
                samples = max(3, image.tag_v2.get(_SAMPLES, 3))
            return samples, True
        return bands_shape(opened)[2], False
    return 3, True


def channels_to_look_at(file: Path | BinaryIO) -> int:
    """The number of channels with which a file is read for display: three (RGB), or two if it has
    two bands."""
    bands, _ = count_bands(file)
    return 2 if bands == 2 else 3


def frame_count(image: Image.Image) -> int:
    """The number of pages or frames of the opened file, without smaller copies of a page.

    The second picture of a photograph (MPO) does not count: phones write previews there.
    """
    if image.format not in _MANY_FRAMES or not getattr(image, "is_animated", False):
        return 1
    count = 0
    try:
        for number in range(getattr(image, "n_frames", 1)):
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                image.seek(number)
                if image.tag_v2.get(_SUBFILE_TYPE) == _REDUCED:
                    continue
            count += 1
    except Exception:  # see `decoder_errors`; the frames before the damage
        return max(1, count)
    return count


def image_size(file: Path | BinaryIO | str) -> tuple[int, int]:
    """Width and height from the header of an image file, as stored; (0, 0) if it cannot be
    read."""
    try:
        with _opened(file) as opened:
            with suppress(BandsError), _identified(opened) as image:
                return stored_size(image)
            height, width, _ = bands_shape(opened)
            return width, height
    except Exception:  # see `decoder_errors`
        return 0, 0


def decoded_bytes(file: BinaryIO, channels: int) -> int:
    """The size in memory of what is decoded for a model with so many channels, from the header of
    an opened image file; 0 if it cannot be read."""
    try:
        with suppress(BandsError), _identified(file) as image:
            if channels in (1, 3) or not has_bands(file):
                return _PILLOW_BYTES * image.width * image.height
        return bands_bytes(file)
    except Exception:  # see `decoder_errors`
        return 0


def image_frame(file: Path | BinaryIO | str) -> tuple[int, int, int]:
    """Width and height from the header of an image file, as stored, and its orientation; (0, 0, 1)
    if it cannot be read."""
    try:
        with _opened(file) as opened:
            with suppress(BandsError), _identified(opened) as image:
                width, height = stored_size(image)
                return width, height, exif_orientation(image)
            height, width, _ = bands_shape(opened)
            return width, height, bands_orientation(opened)
    except Exception:  # see `decoder_errors`
        return 0, 0, 1


def _opened(file: Path | BinaryIO | str) -> AbstractContextManager[BinaryIO]:
    return open_data_file(file) if isinstance(file, Path | str) else nullcontext(file)


@contextmanager
def decoder_errors(name: str, remedy: str) -> Iterator[None]:
    """A context for calls of PIL, in which errors become an InputError of one line.

    All exceptions are caught, because PIL's decoders and EXIF reader do not document theirs:
    besides OSError, damaged files raise SyntaxError, ValueError, struct.error,
    DecompressionBombError and others.
    """
    try:
        yield
    except FileNotFoundError:
        problem = "the image file is missing"
    except InputError as error:  # which has its own remedy
        raise InputError(error.text, where=name, remedy=error.remedy or remedy) from None
    except Exception as error:
        problem = f"cannot decode the image ({first_line(error)})"
    else:
        return
    raise InputError(problem, where=name, remedy=remedy)


def require_whole(file: BinaryIO, source: Path | BinaryIO) -> int:
    """The size in bytes of an image file, opened from `source`. Raises InputError if it is
    truncated: JPEG and PNG are judged by their last bytes, and other formats are decoded."""
    start = file.read(8)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 16))
    end = file.read()
    whole_jpeg = start.startswith(b"\xff\xd8") and end.rstrip(b"\0").endswith(b"\xff\xd9")
    whole_png = start == b"\x89PNG\r\n\x1a\n" and b"IEND" in end
    if not (whole_jpeg or whole_png):
        read_image(source, channels_to_look_at(source))
    return size
