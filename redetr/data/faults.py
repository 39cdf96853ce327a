"""The faults of a data set: what is wrong, where, and what to do."""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from redetr.errors import InputError
from redetr.files import scheme_of

Severity = Literal["error", "warning", "note"]

MOST_ITEMS = 1000  # that a fault lists; it counts all


def listed(items: Iterable[str]) -> tuple[str, ...]:
    """The items of a fault, as many as it lists."""
    return tuple(islice(items, MOST_ITEMS))


def listed_locations(locations: Iterable[tuple[Path, str]]) -> tuple[str, ...]:
    """The items of a fault, from files and parts of them, such as "line 3". The name of a file that
    is the only one is left out."""
    pairs = list(islice(locations, MOST_ITEMS))
    is_one_file = len({file for file, _ in pairs}) == 1
    items = []
    for file, where in pairs:
        if not where:
            items.append(str(file))
        elif is_one_file:
            items.append(where)
        else:
            items.append(f"{file}: {where}")
    return tuple(items)


@dataclass(frozen=True)
class Fault:
    """A kind of fault in a file: its first occurrence, the problem, the remedy, and how often it
    occurs.

    An error would spoil training, so `open_dataset` raises the first one. Warnings and notes are
    reported, and users decide.
    """

    severity: Severity
    code: str  # a short name of the kind that does not change, such as "box-outside"
    file: Path | str  # a text is a URL: a path would lose one of its slashes
    where: str  # such as "annotation 17" or "line 3"; empty for the file as a whole
    text: str  # what is wrong there
    remedy: str  # what to do about it
    count: int = 1
    items: tuple[str, ...] = ()  # all that it concerns, the first `MOST_ITEMS`; () = the file

    @classmethod
    def from_error(cls, code: str, error: InputError, source: Path | str) -> "Fault":
        """The fault described by `error`; `source` is the file, or a URL, if the error names
        none."""
        file = source
        if error.where is not None:
            file = os.fspath(error.where)
        remedy = error.remedy or ""
        return cls("error", code, _path_or_url(file), error.item, error.text, remedy)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The fault with the values of `to_json`."""
        changed = {"file": _path_or_url(values["file"]), "items": tuple(values["items"])}
        return cls(**values | changed)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"file": str(self.file), "items": list(self.items)}

    def to_error(self, addition: str = "") -> InputError:
        """An error with the same parts; `addition` ends its line."""
        return InputError(
            self.text,
            where=self.file,
            item=self.where,
            remedy=self.remedy + self._repetitions() + addition,
        )

    def in_split(self, split: str) -> "Fault":
        """The fault with its severity in this split: an error in test does not spoil training."""
        if split == "test" and self.severity == "error":
            return replace(self, severity="warning")
        return self

    def others(self, most: int) -> str:
        """At most this many items after the first, which the fault itself names, in words; empty if
        there are none. Paths are relative to the folder of the file."""
        folder = f"{Path(self.file).parent}{os.sep}"
        shown = [item.removeprefix(folder) for item in self.items[1 : most + 1]]
        if not shown:
            return ""
        total = len(self.items)
        if total == MOST_ITEMS:  # there may be more than are listed
            total = max(self.count, total)
        rest = total - 1 - len(shown)
        more = f" and {rest:,} more" if rest else ""
        return f"also {', '.join(shown)}{more}"

    def _repetitions(self) -> str:
        if self.count == 1:
            return ""
        return f" (and {self.count - 1} more like it)"

    def __str__(self) -> str:
        return str(self.to_error())


class Rows:
    """Images, objects or classes while they are read. Collects faults; rows with errors are left
    out."""

    def __init__(self, count: int, faults: list[Fault], locate: Callable[[int], tuple[Path, str]]):
        """`locate` returns the file of row `i`, and the place of the row in it."""
        self.good = np.ones(count, bool)
        self.faults = faults
        self.locate = locate

    def fault(
        self,
        code: str,
        bad: ArrayLike,
        text: Callable[[int], str],
        remedy: str,
        severity: Severity = "error",
    ) -> None:
        """Adds a fault for the rows that are `bad` (bool `[N]`), with the `text` of the first. Rows
        with an earlier error do not count."""
        bad = np.asarray(bad, bool) & self.good
        if not bad.any():
            return
        row = int(bad.argmax())
        file, where = self.locate(row)
        count = int(bad.sum())
        rows = np.flatnonzero(bad)[:MOST_ITEMS].tolist()
        items = listed_locations(map(self.locate, rows))
        self.faults.append(Fault(severity, code, file, where, text(row), remedy, count, items))
        if severity == "error":
            self.good &= ~bad

    def forget(self) -> None:
        """Frees the memory of the rows. No more faults can be added afterwards."""


def _path_or_url(file: Path | str) -> Path | str:
    return file if scheme_of(file) else Path(file)
