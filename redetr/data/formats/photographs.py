"""Which images show the same photograph, judging by their names: tiles, and augmented versions.

Shapes: N images.
"""

import posixpath
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# What `redetr convert --tile` appends to the name of an image: `a_x00512_y00000.png`.
_TILE = re.compile(rb"(.+)_x\d{5,}_y\d{5,}(\.\w+)?", re.DOTALL)
# What Roboflow makes of the name of an image, differently for each version: `a_jpg.rf.HASH.jpg`.
_VERSION = re.compile(
    rb"(.+?)(?:_(jpe?g|png|bmp|gif|webp|tiff?|avif|mpo))?\.rf\.[0-9a-z]{16,}(\.\w+)?",
    re.DOTALL | re.IGNORECASE,
)


def photographs(names: Sequence[bytes]) -> NDArray[np.int64]:
    """The number of the photograph in each of N images, int64 `[N]`, in the order in which they
    first occur.

    Tiles and versions show the same photograph as the image that they were made of, which may be
    beside them. An image without such a name is a photograph of its own, unless it is listed twice.
    """
    originals = [_original(name) for name in names]
    stems = {stem for stem, is_stem in originals if is_stem}
    number_of: dict[bytes, int] = {}
    numbers = []
    for original, is_stem in originals:
        if stems and not is_stem:
            stem, _ = posixpath.splitext(original)
            if stem in stems:
                original = stem
        numbers.append(number_of.setdefault(original, len(number_of)))
    return np.array(numbers, np.int64)


def _original(name: bytes) -> tuple[bytes, bool]:
    """The name of the image that a tile or version was made of, and whether it lacks its suffix,
    which a tile does not tell."""
    is_stem = False
    while b"_x" in name or b".rf." in name.lower():
        tile = _TILE.fullmatch(name)
        if tile is not None:
            name = tile[1]
            is_stem = True
            continue
        version = _VERSION.fullmatch(name)
        if version is None:
            break
        stem, suffix, _ = version.groups()
        is_stem = suffix is None
        name = stem if suffix is None else stem + b"." + suffix.lower()
    return name, is_stem
