"""Words of messages that depend on a number."""

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
