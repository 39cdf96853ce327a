"""Marks such as `iscrowd` and `difficult`, in the spellings of different tools."""

from typing import Any

_YES = ("1", "true", "yes", "y")
_NO = ("", "0", "false", "no", "n", "none", "null", "unspecified")


def flag_of(value: Any) -> bool | None:
    """Whether the value marks an object; None if it is not clear."""
    if value is None or value != value:  # NaN: pandas writes it for missing values
        return False
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _YES:
            return True
        return False if word in _NO else None
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    return None
