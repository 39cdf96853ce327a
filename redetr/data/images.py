"""Image files: read whole, as stored, or refused in one line."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from redetr.errors import InputError


def read_image(path: Path) -> Tensor:
    """The image in a file, uint8 `[3, H, W]` RGB, as stored: boxes count stored pixels, EXIF is not applied.

    Raises InputError if the file is missing, not an image, damaged or cut short.
    """
    return decode(path)[0]


def decode(path: Path, needed: tuple[int, int] | None = None) -> tuple[Tensor, tuple[int, int]]:
    """The image in a file as `read_image` gives it, and its stored size.

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, if that leaves the size `needed`: its decoder then skips most
    of the work.
    """
    try:
        # Not torchvision's decoders: they are deprecated, and that of PNG crashes on some damaged files. simplejpeg and
        # OpenCV take a fifth less time, a tenth of a whole sample's: too little for another dependency.
        with Image.open(path) as image:
            stored = (image.height, image.width)
            if needed:
                image.draft("RGB", (needed[1], needed[0]))
            # Channels of a pixel stay side by side, see `views.interleaved`.
            return torch.from_numpy(_rgb(image)).permute(2, 0, 1), stored
    except FileNotFoundError:
        what = "the image file is missing"
    except UnidentifiedImageError:
        what = "not an image (JPEG, PNG, WebP, BMP, GIF and TIFF are read)"
    except Exception as error:  # decoders raise nearly everything on damaged files
        what = f"cannot decode the image ({(str(error) or type(error).__name__).splitlines()[0]})"
    raise InputError(f"{path}: {what}; replace the file, or take it out of the annotations")


def require_whole(path: Path) -> None:
    """Raises InputError if an image file is cut short. JPEG and PNG are told by their last bytes, others decoded."""
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
    if image.mode == "P":  # a palette may carry transparency, which PIL wants to see converted on its own
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
