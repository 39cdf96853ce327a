"""Where commands print, and how results look there."""

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from redetr.errors import InputError
from redetr.metrics import METRIC_NAMES

# Names of classes and paths may have brackets, which are no markup.
ERRORS = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
OUT = Console(highlight=False, markup=False)


def print_result(result: dict[str, Any]) -> None:
    """The COCO numbers as a table, in percent."""
    table = Table(*METRIC_NAMES, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_row(*(percent(result[name]) for name in METRIC_NAMES))
    OUT.print(table)
    classes = Table("class", "AP")
    for name, value in sorted(result["per_class"].items(), key=lambda item: -(item[1] or 0)):
        classes.add_row(name, percent(value))
    OUT.print(classes)


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def require_images(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} must be at least 1")


def print_json(content: Any) -> None:
    print(json.dumps(content, indent=2))


def print_file(path: Path) -> None:
    """A text file line by line, however large."""
    with open(path, encoding="utf-8") as text:
        for line in text:
            print(line, end="")
