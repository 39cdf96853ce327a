"""The data that both pages pass to their scripts: the image with its classes, and arrays as
compressed bytes.

Compression keeps a page with 100 queries in 6 layers at a few MB.
"""

import base64
import zlib
from typing import Any

import numpy as np
from torch import Tensor

from redetr.pages.drawing import class_color, to_pil
from redetr.pages.images import data_uri

_LONGEST_SIDE_PX = 960


def picture_data(image: Tensor, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The image, its original size in pixels, and the names and colors of the classes."""
    picture = to_pil(image)
    width, height = picture.size
    picture.thumbnail((_LONGEST_SIDE_PX, _LONGEST_SIDE_PX))
    colors = []
    for label in range(len(class_names)):
        red, green, blue = class_color(label)
        colors.append(f"rgb({red}, {green}, {blue})")
    return {
        "picture": data_uri(picture),
        "width": width,
        "height": height,
        "names": class_names,
        "colors": colors,
    }


def packed(array: Tensor | np.ndarray, dtype: Any) -> dict[str, Any]:
    """An array for the scripts: its type, shape and compressed bytes."""
    values = np.ascontiguousarray(np.asarray(array).astype(dtype))
    compressed = zlib.compress(values.tobytes(), 9)
    return {
        "dtype": values.dtype.name,
        "shape": list(values.shape),
        "bytes": base64.b64encode(compressed).decode(),
    }
