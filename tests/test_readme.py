"""The README is short, and its numbers come from results; `test_docs.py` runs its commands and Python."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_length():
    assert README.count("\n") < 200


def test_measured_numbers_are_recorded():
    """Every number in the table of measurements stands, rounded, in a file of results."""
    recorded = set()
    for path in (ROOT / "benchmarks/results").glob("*.json"):
        recorded |= numbers(json.loads(path.read_text()))
    table = README.split("## Measured")[1].split("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|") and re.search(r"\d", line)]
    assert rows
    for row in rows:
        for number in re.findall(r"(?<![\w.])\d+\.\d(?![\w.])", row):
            assert float(number) in recorded, f"{number} in {row}"


def numbers(content) -> set[float]:
    """All numbers in a result, as they are, in percent, and in minutes, with one decimal."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return set().union(*(numbers(part) for part in content)) if content else set()
    if isinstance(content, (int, float)):
        return {round(content, 1), round(100 * content, 1), round(content / 60, 1)}
    return set()
