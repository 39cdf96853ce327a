"""Numbers in messages, and the words that depend on them."""

from collections.abc import Iterable
from typing import SupportsInt


def counted(number: SupportsInt, singular: str, plural: str = "") -> str:
    """`number` with its noun: "1 image", "0 images", "12,000 images".

    `plural` is for nouns that take more than an "s": `counted(2, "box", "boxes")`.
    """
    count = int(number)
    noun = plural or f"{singular}s"
    if count == 1:
        noun = singular
    return f"{count:,} {noun}"


def alternatives(names: Iterable[str]) -> str:
    """The names as in a sentence: "A", "A or B", "A, B or C"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def percent(fraction: float | None) -> str:
    """A fraction in percent; a dash if it is not known."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def duration(seconds: float) -> str:
    """A length of time to two digits or so: "40 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
