"""The column of a Hugging Face data set that holds its images."""

from typing import Any

from redetr.errors import InputError

_COLUMN = "image"
_VALUES = (
    "string",
    "large_string",
    "binary",
    "large_binary",
    "null",
)  # paths and contents of files
_PARTS = {"bytes", "path"}  # of an image as `datasets` stores it


def image_column(source: str, features: Any) -> str:
    """The column called `image`, or else the first whose type is Image; empty if there is none.
    Raises InputError if `image` does not hold an image for each row."""
    from datasets import Image

    if _COLUMN not in features:
        images = [name for name, feature in features.items() if isinstance(feature, Image)]
        return images[0] if images else ""
    feature = features[_COLUMN]
    if _is_image(feature):
        return _COLUMN
    raise InputError(
        f"its column {_COLUMN} holds {_called(feature)}, not an image of each row",
        where=source,
        remedy=f"write one image in each row, or rename the column if {_COLUMN} is not the image",
    )


def _is_image(feature: Any) -> bool:
    """Whether `datasets` casts values of this type to images."""
    from datasets import Image

    if isinstance(feature, Image):
        return True
    if isinstance(feature, dict):
        return bool(feature) and set(feature) <= _PARTS
    if _is_array(feature):
        return True
    return _dtype(feature) in _VALUES


def _is_array(feature: Any) -> bool:
    """Whether values are pixels: whole numbers in an array, or in lists of lists."""
    depth = 0
    if hasattr(feature, "shape"):
        depth = len(feature.shape)
    while hasattr(feature, "feature"):
        feature = feature.feature
        depth += 1
    return depth in (2, 3) and _dtype(feature).startswith(("int", "uint"))


def _dtype(feature: Any) -> str:
    return str(getattr(feature, "dtype", ""))


def _called(feature: Any) -> str:
    """The type of a column, in few words."""
    if isinstance(feature, dict):
        return f"dicts of {', '.join(feature)}"
    inner = getattr(feature, "feature", None)
    if inner is not None:
        return f"lists of {_called(inner)}"
    kind = type(feature).__name__
    return _dtype(feature) if kind == "Value" else kind
