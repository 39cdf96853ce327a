"""Ids that are text in a file of COCO's format, which wants whole numbers."""

from typing import Any

Row = dict[str, Any]


def number_text_ids(rows: list[Row], references: list[Row], key: str) -> str:
    """Gives rows whose ids are text numbers as ids, and the references to them, which hold an id
    under `key`; returns a sentence on it, empty if there was nothing to do.

    Text that is a number becomes that number. If all ids are text and some are no numbers, they
    are numbered in alphabetical order, the same for each file that has the same ids. Nothing is
    changed where ids are there twice, which others report.
    """
    texts = [row["id"] for row in rows if isinstance(row.get("id"), str)]
    wanted = [row[key] for row in references if isinstance(row.get(key), str)]
    if not texts and not wanted:
        return ""
    number_of = _numbers(texts, len(rows), wanted)
    if not number_of:
        return ""
    for row in rows:
        row["id"] = _replaced(row.get("id"), number_of)
    for row in references:
        row[key] = _replaced(row.get(key), number_of)
    example = next(iter(number_of))
    return f"ids are text: {example!r} is read as {number_of[example]}"


def _numbers(texts: list[str], num_rows: int, wanted: list[str]) -> dict[str, int]:
    """The number of each text, empty if there is no sound way to number them."""
    everything = list(dict.fromkeys([*texts, *wanted]))
    if all(_is_number(text) for text in everything):
        return {text: int(text) for text in everything}
    distinct = set(texts)
    if len(texts) < num_rows or len(distinct) < num_rows:
        return {}
    return {text: number for number, text in enumerate(sorted(distinct), start=1)}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19


def _replaced(value: Any, number_of: dict[str, int]) -> Any:
    return number_of.get(value, value) if isinstance(value, str) else value
