"""Image files: read whole, as stored, or refused in one line."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from redetr.errors import InputError

# Of those that PIL knows; some of its others run programs (Ghostscript for EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")


def read_image(path: Path) -> Tensor:
    """The image in a file, uint8 `[3, H, W]` RGB, as stored: boxes count stored pixels, EXIF is not
    applied.

    Raises InputError if the file is missing, not an image, damaged or cut short.
    """
    return decode(path)[0]


def read_upright(file: Path | BinaryIO, name: str) -> Tensor:
    """The image in a file as viewers show it: turned as its EXIF tag says, uint8 `[3, H, W]` RGB.

    Of an animation the first picture. Raises InputError, which calls it `name`, as `read_image`
    does.
    """
    with _problems_told(name, "give another file"), Image.open(file, formats=FORMATS) as image:
        return _upright(image)


def upright(image: Image.Image) -> Tensor:
    """The same of an image that PIL has opened."""
    with _problems_told("this image", "open another one"):
        return _upright(image)


def _upright(image: Image.Image) -> Tensor:
    image.load()
    with suppress(Exception):  # a damaged tag turns nothing
        image = ImageOps.exif_transpose(image)
    return torch.from_numpy(_rgb(image)).permute(2, 0, 1)


def decode(
    file: Path | BinaryIO, needed: tuple[int, int] | None = None, name: str = ""
) -> tuple[Tensor, tuple[int, int]]:
    """The image in a file as `read_image` gives it, and its stored size; errors call it `name`, by
    default its path.

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, if that leaves the size `needed`: its
    decoder then skips most of the work.
    """
    # Not torchvision's decoders: they are deprecated, and that of PNG crashes on some damaged
    # files. simplejpeg and OpenCV take a fifth less time, a tenth of a whole sample's: too little
    # for another dependency.
    remedy = "replace the file, or take it out of the annotations"
    with _problems_told(name or str(file), remedy), Image.open(file, formats=FORMATS) as image:
        stored = (image.height, image.width)
        if needed:
            image.draft("RGB", (needed[1], needed[0]))
        # Channels of a pixel stay side by side, see `views.interleaved`.
        return torch.from_numpy(_rgb(image)).permute(2, 0, 1), stored


@contextmanager
def _problems_told(name: str, remedy: str) -> Iterator[None]:
    """Around the reading of an image: what goes wrong becomes an InputError of one line."""
    try:
        yield
        return
    except FileNotFoundError:
        what = "the image file is missing"
    except UnidentifiedImageError:
        what = "not an image (JPEG, PNG, WebP, BMP, GIF and TIFF are read)"
    except Exception as error:  # decoders raise nearly everything on damaged files
        what = f"cannot decode the image ({(str(error) or type(error).__name__).splitlines()[0]})"
    raise InputError(f"{name}: {what}; {remedy}")


def require_whole(path: Path) -> None:
    """Raises InputError if an image file is cut short. JPEG and PNG are told by their last bytes,
    others decoded."""
    with open(path, "rb") as file:
        start = file.read(8)
        file.seek(max(0, path.stat().st_size - 16))
        end = file.read()
    whole_jpeg = start.startswith(b"\xff\xd8") and end.rstrip(b"\0").endswith(b"\xff\xd9")
    whole_png = start == b"\x89PNG\r\n\x1a\n" and b"IEND" in end
    if not (whole_jpeg or whole_png):
        read_image(path)


def _rgb(image: Image.Image) -> np.ndarray:
    """Pixels `[H, W, 3]` uint8; 16-bit grey is scaled to 8 bits, transparency dropped."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 0xFFFF:
            raise ValueError("pixels of 32 bits, convert it to 8 bits")
        return np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if (
        image.mode == "P"
    ):  # a palette may carry transparency, which PIL wants to see converted on its own
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
