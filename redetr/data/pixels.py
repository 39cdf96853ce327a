"""Converts pixels of any depth, with or without transparency, to 8-bit RGB, by the same rule
everywhere.

**Depth.** Values of more than 8 bits are divided by the largest one of their scale: of 8, 10, 12,
14 or 16 bits, or 0 to 1 for floats, whichever is the smallest that holds the values of the image.
Where they leave these scales (negative, or more than 16 bits), or fill less than a quarter of one,
the smallest value of the image becomes black and the largest one white. So 12 bits in a 16-bit file
are not dark, and 28,000 to 32,000 of a thermal camera are not grey. One pixel in ten thousand at
either end does not count, and is clipped: a hot pixel would make the whole image dark.

**Transparency.** Transparent pixels are shown over white, as in browsers: their own colour, which
no viewer shows, is often arbitrary. A colour that stands for transparency is compared in all bits.
"""

import io
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from redetr.data.orientation import pillow_turns, turned_back

_SCALES = (0xFF, 0x3FF, 0xFFF, 0x3FFF, 0xFFFF)  # the largest values of 8 to 16 bits
_LEAST_FILLED = 0.25  # share of a scale
_CLIPPED = 1e-4  # share of the values at each end that may exceed the scale
_BLOCK = 2**17  # values that are computed with at once, in 64 bits each
_COUNTED = (np.uint8, np.uint16)  # types of so few values that each can be counted
_SAMPLED_SIDE = 256  # px: enough to see that pixels differ
_FEW_PIXELS = 1e-3  # share of an image: dead pixels, or a frame around nothing
_NEARLY_ONE = 3  # levels between which noise and JPEG move a plain surface
_BITS = 258  # a tag of TIFF: bits of each channel
_PLANES, _SEPARATE = 284, 2
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a tag of TIFF
_NO_DATA = 42113  # another one, of elevation models: the value of pixels without one
_EXTRA_SAMPLES = 338  # another one, which says whether a fourth band is transparency
_SHALLOW_GREYS = {"L;2": 85, "L;4": 17}  # how PIL unpacks them, and 255 / their largest value
_OPAQUE = {"RGBA": "RGB", "LA": "L"}
# How PIL spells the order of the bytes of 16-bit colour; it reads the first of each two.
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


NAN = np.float32(np.nan)  # 16 bits beside it take 32; beside Python's NaN, they take 64
BRIGHTNESS = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in it


class PlanesError(ValueError):
    """A TIFF that Pillow would read wrongly, but tifffile can read."""


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels `[H, W, 3]` of an image that PIL has opened.

    Must be called before `image.load()`, in which PIL drops 8 bits of 16-bit colour. Pixels are
    returned as stored, although PIL rotates a TIFF according to its tag. Raises the errors of PIL's
    decoders, and ValueError if no pixel is a finite number.
    """
    orientation = pillow_turns(image)
    _scale_transparent_grey(image)
    image = _in_8_bits(image)
    if is_transparent(image):
        image = _over_white(image)
    elif image.mode in _OPAQUE:
        image = image.convert(_OPAQUE[image.mode])
    if image.mode != "RGB":
        image = image.convert("RGB")
    return turned_back(np.array(image), orientation)


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has values of more than 8 bits."""
    if image.format == "JPEG":  # most files: no need to look closer
        return False
    is_grey = image.mode in ("I", "F") or image.mode.startswith("I;")
    return is_grey or _raw_mode(image) != "" or _has_deep_planes(image)


def one_colour(pixels: NDArray[np.uint8]) -> str:
    """The colour that nearly all pixels `[H, W, 3]` have, such as "(0, 0, 0)"; empty if they
    differ."""
    rows = 1 + pixels.shape[0] // _SAMPLED_SIDE
    columns = 1 + pixels.shape[1] // _SAMPLED_SIDE
    sample = pixels[::rows, ::columns]
    colour = _common_colour(sample)
    if colour and sample.size < pixels.size:
        colour = _common_colour(pixels)
    return colour


def _common_colour(pixels: NDArray[np.uint8]) -> str:
    levels = []
    for channel in np.moveaxis(pixels, 2, 0):
        counts = np.bincount(channel.reshape(-1), minlength=256)
        up_to = np.cumsum(counts)
        few = _FEW_PIXELS * channel.size
        low = int(np.searchsorted(up_to, few, "right"))
        high = int(np.searchsorted(up_to, channel.size - few))
        if high - low > _NEARLY_ONE:
            return ""
        levels.append(int(counts.argmax()))
    return f"({', '.join(map(str, levels))})"


def scaled_to_8_bits(values: NDArray) -> NDArray[np.uint8]:
    """Values of any type and shape in 0 to 255, by the rule at the top of this file; those that are
    not finite become black.

    Raises ValueError if none is finite.
    """
    black, white = _black_and_white(values)
    return _levels(values, black, white)


def _black_and_white(values: NDArray) -> tuple[float, float]:
    """The values that become black and white, by those of an image of any shape. Raises ValueError
    if none is finite."""
    finite = values.reshape(-1)
    if values.dtype not in _COUNTED:
        finite = finite[np.isfinite(finite)]  # a copy also if all are
    if not finite.size:
        raise ValueError("no pixel is a finite number")
    lowest, highest = _extent(finite)
    is_float = np.issubdtype(values.dtype, np.floating)
    return _range(lowest, highest, is_float)


def _levels(values: NDArray, black: float, white: float) -> NDArray[np.uint8]:
    """Values of any type and shape in 0 to 255; those that are not finite become black."""
    levels = np.empty(values.size, np.uint8)
    factor = 255 / (white - black)
    for block, result in _blocks(values.reshape(-1), levels):
        wide = block.astype(np.float64)
        wide[~np.isfinite(block)] = black
        wide -= black
        wide *= factor
        result[:] = wide.round().clip(0, 255)
    return levels.reshape(values.shape)


def brightness(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The brightness `[H, W, 1]` of RGB pixels `[H, W, 3]`."""
    levels = np.empty(pixels.shape[0] * pixels.shape[1], np.uint8)
    for block, result in _blocks(pixels.reshape(-1, 3), levels):
        result[:] = (block @ BRIGHTNESS).round()
    return levels.reshape(*pixels.shape[:2], 1)


def _blocks(*arrays: NDArray) -> Iterator[tuple[NDArray, ...]]:
    """Parts of arrays of the same length, one after the other: all values of an image in 64 bits
    would take eight times the memory of 8 bits."""
    for start in range(0, len(arrays[0]), _BLOCK):
        yield tuple(array[start : start + _BLOCK] for array in arrays)


def _extent(values: NDArray) -> tuple[float, float]:
    """The smallest and the largest of the values `[N]`, without the few most extreme ones, unless
    all others are equal. May change the order of the values."""
    num_clipped = int(_CLIPPED * values.size)
    if num_clipped:
        low, high = _ordered(values, num_clipped, values.size - 1 - num_clipped)
        if low < high:
            return low, high
    return float(values.min()), float(values.max())


def _ordered(values: NDArray, first: int, second: int) -> tuple[float, float]:
    """The values at two positions if `values` `[N]` were sorted. Those of types that cannot be
    counted are partly sorted in place, which saves a copy."""
    if values.dtype not in _COUNTED:
        values.partition((first, second))
        return float(values[first]), float(values[second])
    num_kinds = np.iinfo(values.dtype).max + 1
    counts = np.zeros(num_kinds, np.int64)
    for (block,) in _blocks(values):
        counts += np.bincount(block, minlength=num_kinds)
    low, high = np.searchsorted(counts.cumsum(), (first, second), "right")
    return float(low), float(high)


def _range(lowest: float, highest: float, is_float: bool) -> tuple[float, float]:
    """The values that become black and white."""
    scales = (1, *_SCALES) if is_float else _SCALES
    span = highest - lowest
    for scale in scales:
        if lowest < 0 or highest > scale:
            continue
        is_filled = span >= _LEAST_FILLED * scale
        is_exact = scale == 0xFF and not is_float  # one level is one value: nothing to gain
        if is_filled or is_exact or not span:
            return 0.0, float(scale)
        break
    return (lowest, highest) if span else (lowest, lowest + 1)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """The image in a mode with 8 bits. An image that has no more bits is returned unchanged."""
    if _has_deep_planes(image):
        text = "16-bit colour in separate planes: save it with its channels side by side"
        if image.mode == "CMYK":  # tifffile would take inks for red, green and blue
            raise ValueError(text)
        raise PlanesError(text)
    raw_mode = _raw_mode(image)
    if raw_mode and isinstance(image, ImageFile.ImageFile):
        return _colour_in_8_bits(image, raw_mode)
    if not is_deep(image):
        return image
    values = _without_gaps(image)
    opaque = _differs_from(image.info.get("transparency"), values[..., None])
    levels = _opaque_to_8_bits(values, opaque)
    if _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:  # PIL turns only 8 bits round
        levels = 255 - levels
    return _with_opacity(levels, opaque)


def _differs_from(colour: Any, values: NDArray) -> NDArray[np.bool_] | None:
    """Which pixels of `values` `[H, W, C]` differ from the colour that stands for transparency in a
    PNG, a number or a tuple, bool `[H, W]`; None if there is no such colour."""
    numbers = colour if isinstance(colour, tuple) else (colour,)
    if colour is None or len(numbers) != values.shape[-1]:
        return None
    return (values != np.array(numbers)).any(-1)


def _opaque_to_8_bits(values: NDArray, opaque: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """Values `[H, W]` or `[H, W, C]` in 0 to 255, where only `opaque` pixels choose the scale: the
    colour that stands for transparency is often the largest value of the file."""
    if opaque is None or not opaque.any():
        return scaled_to_8_bits(values)
    shown = opaque if values.ndim == 2 else opaque[..., None]
    # A mask of the same shape selects without the indices of all pixels, of 64 bits each.
    black, white = _black_and_white(values[np.broadcast_to(shown, values.shape)])
    levels = _levels(values, black, white)
    levels *= shown
    return levels


def _with_opacity(levels: NDArray[np.uint8], opaque: NDArray[np.bool_] | None) -> Image.Image:
    image = Image.fromarray(levels)
    if opaque is not None:
        image.putalpha(Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8)))
    return image


def _scale_transparent_grey(image: Image.Image) -> None:
    """Corrects the grey that stands for transparency in a PNG of 2 or 4 bits: PIL states it as
    stored, but scales pixels to 8 bits when they are decoded."""
    colour = image.info.get("transparency")
    tiles = getattr(image, "tile", None) or []
    if isinstance(colour, int) and tiles:
        image.info["transparency"] = colour * _SHALLOW_GREYS.get(tiles[0][3], 1)


def _without_gaps(image: Image.Image) -> NDArray:
    """The values of a grey image; NaN for values that the file marks as missing."""
    values = np.asarray(image)
    try:
        gap = float(str(_tiff_tag(image, _NO_DATA)))
    except ValueError:
        return values
    return np.where(values == gap, NAN, values)


def _raw_mode(image: Image.Image) -> str:
    """How PIL would unpack 16-bit colour; empty for other images, and once they are loaded."""
    tiles = getattr(image, "tile", None) or []
    for tile in tiles:
        arguments = tile[3]
        raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        if not isinstance(raw_mode, str):
            continue
        channels, _, order = raw_mode.partition(";")
        is_grey = channels == "I" or image.mode == "LA"  # the second: Pillow before 11
        if order in _OTHER_BYTE and not is_grey:
            return raw_mode
    return ""


def _colour_in_8_bits(image: ImageFile.ImageFile, raw_mode: str) -> Image.Image:
    """Converts 16-bit colour to 8 bits."""
    channels = raw_mode.partition(";")[0]
    if channels == "CMYK":  # the first bytes are those of an 8-bit file, which PIL turns from inks
        return image
    values = _deep_colour(image, raw_mode)
    if channels == "RGB":
        opaque = _differs_from(image.info.get("transparency"), values)
        return _with_opacity(_opaque_to_8_bits(values, opaque), opaque)
    num_colours = 1 if channels == "LA" else 3
    levels = scaled_to_8_bits(values[..., :num_colours])
    shallow = Image.fromarray(levels.squeeze(-1) if num_colours == 1 else levels)
    if is_transparent(image):
        opacity = (values[..., -1] >> 8).astype(np.uint8)
        shallow.putalpha(Image.fromarray(opacity))
    return shallow


def _deep_colour(image: ImageFile.ImageFile, raw_mode: str) -> NDArray[np.uint16]:
    """All bits of 16-bit colour. The image is decoded twice, once for each byte, because PIL cannot
    return both at once."""
    channels, _, order = raw_mode.partition(";")
    if channels == "LA":  # four bytes a pixel, as in RGBA, which PIL takes one by one
        pairs = _decoded_as(image, "RGBA")
        high, low = pairs[..., ::2], pairs[..., 1::2]
    else:
        low = _decoded_as(image, f"{channels};{_OTHER_BYTE[order]}")
        high = _decoded_as(image, raw_mode)
    values = high.astype(np.uint16)
    values <<= 8
    values |= low
    return values


def _decoded_as(opened: ImageFile.ImageFile, raw_mode: str) -> NDArray[np.uint8]:
    """The pixels of an image that is opened but not loaded, unpacked with this raw mode."""
    assert opened.fp is not None and opened.format is not None
    opened.fp.seek(0)
    content = io.BytesIO(opened.fp.read())
    with Image.open(content, formats=(opened.format,)) as image:
        image.seek(opened.tell())
        tiles: list[Any] = []
        for tile in image.tile:
            arguments: Any = raw_mode
            if isinstance(tile[3], tuple):
                arguments = (raw_mode, *tile[3][1:])
            parts = (*tile[:3], arguments)
            tiles.append(type(tile)._make(parts) if hasattr(tile, "_make") else parts)
        image.tile = tiles
        return np.asarray(image)


def _has_deep_planes(image: Image.Image) -> bool:
    """Whether a TIFF has 16-bit colour in separate planes, which PIL decodes wrongly."""
    bits = _tiff_tag(image, _BITS)
    is_deep_colour = isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8
    return is_deep_colour and _tiff_tag(image, _PLANES) == _SEPARATE


def _tiff_tag(image: Image.Image, number: int) -> object:
    """The value of a TIFF file's tag; None if it has none, and for other files."""
    tags = getattr(image, "tag_v2", None)
    return None if tags is None else tags.get(number)


def is_transparent(image: Image.Image) -> bool:
    """Whether an opened image has an alpha channel or a transparent colour.

    A fourth band of a TIFF file is not transparency unless the file states it, because it may be
    infrared.
    """
    if image.format == "TIFF" and not _tiff_tag(image, _EXTRA_SAMPLES):
        return False
    return image.has_transparency_data


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
