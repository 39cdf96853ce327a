"""Where commands print, and how results look there."""

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from redetr.errors import InputError

# Names of classes and paths may have brackets, which are no markup.
ERRORS = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
OUT = Console(highlight=False, markup=False)


def print_results(results: list[dict[str, Any]]) -> None:
    """The COCO numbers as a table, in percent, and those of each class; of several results, each
    has its number."""
    from redetr.metrics import METRIC_NAMES

    numbers = [str(i + 1) for i in range(len(results))] if len(results) > 1 else [""]
    table = Table("", *METRIC_NAMES, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for number, result in zip(numbers, results, strict=True):
        table.add_row(number, *(percent(result[name]) for name in METRIC_NAMES))
    OUT.print(table)
    columns = [f"{name} {number}".strip() for number in numbers for name in ("AP", "AP50")]
    classes = Table("class", *(Column(name, justify="right") for name in ("objects", *columns)))
    for name, _ in sorted(results[0]["per_class"].items(), key=lambda item: -(item[1] or 0)):
        values = [
            percent(result[key][name])
            for result in results
            for key in ("per_class", "per_class_AP50")
        ]
        classes.add_row(name, str(results[0]["objects"][name]), *values)
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
