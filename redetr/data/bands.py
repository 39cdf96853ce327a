"""Reads images with any number of bands: arrays in `.npy` files, and TIFF files that Pillow cannot
read, such as GeoTIFF of satellites.

TIFF needs the extra `tiff` (tifffile, and imagecodecs for compression). The first page is read.
Bands of more than 8 bits are converted to 8 by the rule of `data/pixels.py`: red, green and blue
together, and other bands separately, because they may measure different quantities.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from redetr.choices import MOST_BANDS
from redetr.data.orientation import known_orientation
from redetr.data.pixels import NAN, brightness, scaled_to_8_bits
from redetr.errors import InputError

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
_NPY_START = b"\x93NUM"  # and "PY": as many bytes as of a TIFF are compared
_ORIENTATION = 274  # a tag of TIFF
_NO_DATA = 42113  # another one, of GeoTIFF: the value of pixels without one
_INKS = 5  # a value of its tag "photometric interpretation"
_LAYOUTS = ("YX", "YXS", "YXC", "SYX")  # axes of an image, with S or C for its bands


def is_tiff(file: BinaryIO) -> bool:
    """Whether an opened file begins like a TIFF. The file is left at its start."""
    return _start(file) in TIFF_STARTS


def has_bands(file: BinaryIO) -> bool:
    """Whether `read_bands` can read this kind of file."""
    return _start(file) == _NPY_START or is_tiff(file)


def read_bands(file: BinaryIO) -> NDArray:
    """The stored values `[H, W, C]` of all bands in an opened file; NaN for values that are marked
    as missing.

    Raises ValueError for a file with other contents, and the errors of NumPy, tifffile and Pillow.
    """
    start = _start(file)
    if start == _NPY_START:
        values = np.load(file, allow_pickle=False)
    elif start in TIFF_STARTS:
        values = _read_tiff(file)
    else:
        with Image.open(file) as image:
            values = np.array(image)
    _require_image(values.shape, values.dtype)
    return values.reshape(*values.shape[:2], -1)


def bands_shape(file: BinaryIO) -> tuple[int, int, int]:
    """Height, width and number of bands of the result of `read_bands`, without decoding the
    file."""
    shape, _ = _described(file)
    return shape


def bands_bytes(file: BinaryIO) -> int:
    """The size of the result of `read_bands` in memory, without decoding the file."""
    (height, width, bands), dtype = _described(file)
    return height * width * bands * dtype.itemsize


def _described(file: BinaryIO) -> tuple[tuple[int, int, int], np.dtype]:
    """Height, width and number of bands of an array or a TIFF, and the type of its values."""
    if _start(file) == _NPY_START:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0
        if version[0] > 1:
            read_header = np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        _require_image(shape, dtype)
        bands = shape[2] if len(shape) == 3 else 1
        return (shape[0], shape[1], bands), dtype
    with ExitStack() as stack:
        page, axes = _first_page(file, stack)
        sizes = dict(zip(axes, page.shape, strict=True))
        dtype = np.dtype(page.dtype)
    bands = sizes.get("S", sizes.get("C", 1))
    return (sizes["Y"], sizes["X"], bands), dtype


def bands_orientation(file: BinaryIO) -> int:
    """The EXIF orientation of an opened file, 1 to 8; 1 = not rotated. `read_bands` does not apply
    it."""
    if not is_tiff(file):
        return 1
    with ExitStack() as stack:
        image, _ = _first_page(file, stack)
        return known_orientation(image.keyframe.tags.valueof(_ORIENTATION))


def holds_inks(file: BinaryIO) -> bool:
    """Whether an opened TIFF holds printing inks instead of lights."""
    if not is_tiff(file):
        return False
    with ExitStack() as stack:
        image, _ = _first_page(file, stack)
        return image.keyframe.photometric == _INKS


def count_images(file: BinaryIO) -> int:
    """The number of images in a file, of which `read_bands` reads the first. Smaller copies, and
    pages that are bands of one image, do not count."""
    if _start(file) == _NPY_START:
        return 1
    with ExitStack() as stack:
        image, _ = _first_page(file, stack)
        whole_pages = sum(not page.is_reduced for page in image.parent.pages)
        bands_in_pages = hasattr(image, "levels")  # a series rather than a page
        read_pages = len(image.pages) if bands_in_pages else 1
        return 1 + max(0, whole_pages - read_pages)


def in_channels(values: NDArray, channels: int) -> NDArray[np.uint8]:
    """Values `[H, W, C]` as 8 bits for a model with `channels` channels, `[H, W, channels]`.

    A model with three channels gets the first three bands, or a single band three times. A model
    with one channel gets the brightness of three bands. Raises ValueError if the number of bands
    does not fit the model.
    """
    bands = values.shape[2]
    if channels == 3 and bands == 1:
        return scaled_to_8_bits(values).repeat(3, axis=2)
    if channels == 3 and bands > 3:
        values = values[:, :, :3]
    elif channels == 1 and bands == 3:
        # 8 bits keep their scale; looking for it would take longer than all else of a frame.
        if values.dtype != np.uint8:
            values = scaled_to_8_bits(values)
        return brightness(values)
    elif bands != channels:
        raise ValueError(f"it has {bands} bands, but the model takes {channels}")
    if channels == 3:
        return scaled_to_8_bits(values)
    scaled = [scaled_to_8_bits(values[:, :, band]) for band in range(channels)]
    return np.stack(scaled, axis=2)


def _start(file: BinaryIO) -> bytes:
    """The first bytes of an opened file. The file is left at its start."""
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    return start


def _require_image(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind not in "buif":
        raise ValueError(f"an array of {dtype} is not an image")
    is_stack = len(shape) == 3 and shape[2] <= MOST_BANDS
    if 0 in shape or not (len(shape) == 2 or is_stack):
        raise ValueError(
            f"an array of {list(shape)} is not an image: write [height, width, bands], at most "
            f"{MOST_BANDS} bands"
        )


def _first_page(file: BinaryIO, stack: ExitStack) -> tuple[Any, str]:
    """The first image of a TIFF file, and its axes. The file stays open as long as the stack.
    Raises InputError if tifffile is not installed."""
    try:
        import tifffile
    except ImportError:
        remedy = 'pip install "redetr[tiff]", or save it with 8 or 16 bits and at most four bands'
        raise InputError("Pillow cannot read this kind of TIFF", remedy=remedy) from None
    stack.enter_context(_damage_raises(tifffile.logger()))
    tiff = stack.enter_context(tifffile.TiffFile(file))
    series = tiff.series[0]
    axes = series.axes
    is_stack_of_bands = axes == "CYX" and series.shape[0] <= MOST_BANDS
    if axes in _LAYOUTS or is_stack_of_bands:
        return series, axes
    page = tiff.pages[0]
    if page.axes not in _LAYOUTS:
        raise ValueError(f"a TIFF with the axes {page.axes}")
    return page, page.axes


class _DamageOfThread(logging.Filter):
    """Takes the records of threads that read a file, and keeps the errors of each thread apart.

    All files of a process share tifffile's logger, and other threads read other files meanwhile. So
    the filter stays: lists of handlers and filters must not change while a thread iterates them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of_thread = threading.local()  # `messages` while the thread reads a file

    def filter(self, record: logging.LogRecord) -> bool:
        messages = getattr(self.of_thread, "messages", None)
        if messages is None:  # the logger is used outside of this module
            return True
        if record.levelno >= logging.ERROR:
            messages.append(record.getMessage())
        return False


_DAMAGE = _DamageOfThread()


@contextmanager
def _damage_raises(logger: logging.Logger) -> Iterator[None]:
    """Raises ValueError for damage that tifffile only logs as an error, in this thread."""
    logger.addFilter(_DAMAGE)  # does nothing if it is there
    messages: list[str] = []
    _DAMAGE.of_thread.messages = messages
    try:
        yield
    finally:
        _DAMAGE.of_thread.messages = None
    if messages:
        raise ValueError(messages[0])


def _read_tiff(file: BinaryIO) -> NDArray:
    with ExitStack() as stack:
        image, axes = _first_page(file, stack)
        values = image.asarray()
        page = image.keyframe
        gap = page.tags.get(_NO_DATA)
        is_inverted = page.photometric == 0  # white is zero
    if axes in ("SYX", "CYX"):
        values = np.moveaxis(values, 0, 2)
    if is_inverted and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    try:
        missing = float(gap.value) if gap else None
    except ValueError:
        missing = None
    if missing is not None and values.dtype != np.uint8:
        values = np.where(values == missing, NAN, values)
    return values
