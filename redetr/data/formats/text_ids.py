"""Converts ids that are text in a file in COCO's format, which requires whole numbers."""

from collections.abc import Sequence

from redetr.data.formats.columns import Column


def number_text_ids(ids: Column, references: Column) -> str:
    """Converts ids that are text to numbers, together with the references to them. Returns a
    sentence on it, empty if nothing was converted.

    Text that is a number becomes that number. If all ids are text and some are not numbers, they
    are numbered in alphabetical order, which is the same for all files with the same ids. If an id
    occurs twice, nothing is changed, and the reader reports it.
    """
    texts = ids.texts()
    wanted = references.texts()
    if not texts and not wanted:
        return ""
    number_of = numbers_of(texts, len(ids), wanted)
    if not number_of:
        return ""
    ids.replace_texts(number_of)
    references.replace_texts(number_of)
    example = next(iter(number_of))
    return f"ids are text: {example!r} is read as {number_of[example]}"


def numbers_of(texts: Sequence[str], num_rows: int, wanted: Sequence[str]) -> dict[str, int]:
    """The number of each text; empty if the texts cannot be numbered safely.

    `texts` are the ids that are text among those of all rows, and `wanted` the references that are.
    """
    everything = list(dict.fromkeys([*texts, *wanted]))
    if all(is_number_text(text) for text in everything):
        return {text: int(text) for text in everything}
    distinct = set(texts)
    if len(texts) < num_rows or len(distinct) < num_rows:
        return {}
    return {text: number for number, text in enumerate(sorted(distinct), start=1)}


def is_number_text(text: str) -> bool:
    """Whether an id is the text of a whole number."""
    return text.isascii() and text.isdecimal() and len(text) < 19
