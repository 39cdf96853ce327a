"""The README is short, and its numbers come from results; `test_docs.py` runs its commands and Python."""

import json
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_length():
    assert README.count("\n") < 200


def test_measured_numbers_are_recorded():
    """Every number in the table of measurements stands, rounded, in a file of results."""
    table = README.split("## Measured")[1].split("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|") and re.search(r"\d", line)]
    assert rows
    for row in rows:
        for number in re.findall(r"(?<![\w.])\d+\.\d(?![\w.])", row):
            assert float(number) in recorded(), f"{number} in {row}"


def test_speeds_are_recorded():
    """The same for every number with a unit, and every ratio, in docs/speed.md."""
    text = (ROOT / "docs/speed.md").read_text().replace("2020", "")  # the year of the original
    found = re.findall(r"(?<![\w.-])(\d[\d,]*(?:\.\d+)?)(?= ms| MB| s\b| \||%| billion| times|\ntimes)", text)
    assert len(found) > 40
    for number in found:
        value = float(number.replace(",", ""))
        half = 0.5001 * 0.1 ** len(number.partition(".")[2])
        assert any(abs(value - each) <= half for each in every_number()), number


@cache
def contents() -> list:
    return [json.loads(path.read_text()) for path in (ROOT / "benchmarks/results").glob("*.json")]


@cache
def recorded() -> set[float]:
    return numbers(contents())


@cache
def every_number() -> set[float]:
    """Numbers as they are, in percent, and in seconds instead of milliseconds."""
    found, left = set(), list(contents())
    while left:
        content = left.pop()
        if isinstance(content, (dict, list)):
            left += content.values() if isinstance(content, dict) else content
        elif isinstance(content, (int, float)):
            found |= {content, 100 * content, content / 1000}
    return found


def numbers(content) -> set[float]:
    """All numbers in a result, as they are, in percent, and in minutes, with one decimal."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return set().union(*(numbers(part) for part in content)) if content else set()
    if isinstance(content, (int, float)):
        return {round(content, 1), round(100 * content, 1), round(content / 60, 1)}
    return set()
