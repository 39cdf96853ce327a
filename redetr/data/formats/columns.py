"""Keeps rows of JSON as columns of arrays, in a tenth of the memory that lists of Python objects
take."""

import reprlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike

from redetr.data.faults import Fault, Rows
from redetr.data.formats.flags import flag_of
from redetr.data.formats.outlines import LARGEST, is_number

_EXACT = 2**53  # float64 represents every whole number up to here
_NO_BOX = (np.nan,) * 4
_SHORT = reprlib.Repr()
_SHORT.maxstring = 200

Row = dict[str, Any]


def are_rows(value: Any) -> TypeGuard[list[Row]]:
    """Whether a value of JSON is a list of objects."""
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


class _Absent:
    """The value for a key that a row does not have."""


_ABSENT = _Absent()


@dataclass(frozen=True)
class _Missing:
    """Rows that all lack the key."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return _ABSENT

    def tolist(self) -> list[Any]:
        return [_ABSENT] * self.count


@dataclass(frozen=True)
class _Mixed:
    """A mix of Python's int and float: `[n]`, or `[n, 4]` for boxes."""

    numbers: np.ndarray  # float64
    is_int: np.ndarray  # bool

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> Any:
        row = slice(i, i + 1)
        (value,) = _Mixed(self.numbers[row], self.is_int[row]).tolist()
        return value

    def tolist(self) -> list[Any]:
        values = self.numbers.astype(object)
        values[self.is_int] = self.numbers[self.is_int].astype(np.int64).astype(object)
        return values.tolist()


_Part = np.ndarray | _Missing | _Mixed | list


class Column(Sequence[Any]):
    """The values of the rows under one key; None for rows without it. The values are exactly those
    of the file, although most are stored in arrays."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._starts: list[int] = []  # the first row of each part
        self._count = 0

    def extend(self, values: list[Any]) -> None:
        """Appends the values of further rows; `_ABSENT` for rows without the key."""
        if not values:
            return
        self._parts.append(_packed(values))
        self._starts.append(self._count)
        self._count += len(values)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: Any) -> Any:
        value = self._stored(int(i))
        return None if value is _ABSENT else value

    def __iter__(self) -> Iterator[Any]:
        for part in self._parts:
            for value in _values(part):
                yield None if value is _ABSENT else value

    def lacks(self, i: int) -> bool:
        """Whether row `i` lacks the key."""
        return self._stored(i) is _ABSENT

    def _stored(self, i: int) -> Any:
        number = bisect_right(self._starts, i) - 1
        value = self._parts[number][i - self._starts[number]]
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else value

    def numbers(self) -> np.ndarray:
        """The values as float64 `[N]`; NaN for values that are not numbers."""
        numbers = np.empty(self._count, np.float64)
        for rows, part in self._placed():
            numbers[rows] = _numbers(part)
        return numbers

    def whole_numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """The values as int64 `[N]`, and which of them are not whole numbers, bool `[N]`; the value
        of these is 0."""
        numbers = np.empty(self._count, np.int64)
        bad = np.empty(self._count, bool)
        for rows, part in self._placed():
            numbers[rows], bad[rows] = _whole_numbers(part)
        return numbers, bad

    def boxes(self) -> np.ndarray:
        """The values as float64 `[N, 4]`; NaN for values that are not numbers, or not in a list of
        four."""
        boxes = np.empty((self._count, 4), np.float64)
        for rows, part in self._placed():
            boxes[rows] = _boxes(part)
        return boxes

    def texts(self) -> list[str]:
        """The values that are text, in order."""
        texts = []
        for part in self._parts:
            if isinstance(part, list):
                texts += [value for value in part if isinstance(value, str)]
        return texts

    def replace_texts(self, number_of: Mapping[str, int]) -> None:
        """Replaces the texts in `number_of` by their numbers."""
        for i, part in enumerate(self._parts):
            if isinstance(part, list):
                values = []
                for value in part:
                    values.append(number_of.get(value, value) if isinstance(value, str) else value)
                self._parts[i] = _packed(values)

    def is_absent(self) -> bool:
        """Whether no row has the key."""
        return all(isinstance(part, _Missing) for part in self._parts)

    def flags(self) -> tuple[np.ndarray, np.ndarray]:
        """Which rows are marked, bool `[N]`, and which have an unclear mark, bool `[N]`."""
        is_set = np.empty(self._count, bool)
        unclear = np.empty(self._count, bool)
        for rows, part in self._placed():
            is_set[rows], unclear[rows] = _flags(part)
        return is_set, unclear

    def _placed(self) -> Iterator[tuple[slice, _Part]]:
        """Each part with its rows. What is made of a part is put in its place at once: all of them
        side by side would take as much memory as the column again."""
        for start, part in zip(self._starts, self._parts, strict=True):
            yield slice(start, start + len(part)), part


class Columns:
    """Rows as columns: one for each of the keys, whatever else the rows hold."""

    def __init__(self, keys: Iterable[str]):
        self.columns = {key: Column() for key in keys}
        self.count = 0

    def extend(self, rows: list[Row]) -> None:
        """Adds rows."""
        for key, column in self.columns.items():
            column.extend([row.get(key, _ABSENT) for row in rows])
        self.count += len(rows)


def _number_of(value: Any) -> float:
    """The value, NaN if it is not a number."""
    return float(value) if is_number(value) else np.nan


def _values(part: _Part) -> list[Any]:
    """Python's objects, `_ABSENT` where a row lacks the key."""
    return part if isinstance(part, list) else part.tolist()


def _packed(values: list[Any]) -> _Part:
    """The values as arrays, if these hold them exactly."""
    kinds = set(map(type, values))
    if kinds == {list} and set(map(len, values)) == {4}:
        flat = [number for four in values for number in four]
        packed = _packed_numbers(flat, set(map(type, flat)))
        if isinstance(packed, np.ndarray):
            return packed.reshape(-1, 4)
        if isinstance(packed, _Mixed):
            return _Mixed(packed.numbers.reshape(-1, 4), packed.is_int.reshape(-1, 4))
        return values
    if kinds == {_Absent}:
        return _Missing(len(values))
    return _packed_numbers(values, kinds)


def _packed_numbers(values: list[Any], kinds: set[type]) -> _Part:
    if kinds == {float}:
        return np.array(values, np.float64)
    if kinds == {int} and min(values) >= -LARGEST and max(values) < LARGEST:
        return np.array(values, _int_type(min(values), max(values)))
    if kinds == {int, float}:
        is_int = np.array([type(value) is int for value in values], bool)
        whole = [value for value in values if type(value) is int]
        if min(whole) >= -_EXACT and max(whole) <= _EXACT:
            return _Mixed(np.array(values, np.float64), is_int)
    return values


def _int_type(least: int, most: int) -> type[np.signedinteger]:
    """The smallest integer type that can hold both numbers."""
    for dtype in (np.int8, np.int16, np.int32):
        limits = np.iinfo(dtype)
        if limits.min <= least and most <= limits.max:
            return dtype
    return np.int64


def _numbers(part: _Part) -> np.ndarray:
    """The numbers in a part with one number for each row, float64 `[n]`."""
    if isinstance(part, _Mixed):
        numbers = part.numbers
    elif isinstance(part, np.ndarray):
        numbers = part.astype(np.float64)
    else:
        return np.array([_number_of(value) for value in _values(part)], np.float64)
    if numbers.ndim > 1:
        return np.full(len(part), np.nan)
    return np.where(np.abs(numbers) < LARGEST, numbers, np.nan)


def _whole_numbers(part: _Part) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(part, _Missing):
        return np.zeros(len(part), np.int64), np.ones(len(part), bool)
    if isinstance(part, np.ndarray) and part.dtype.kind == "i" and part.ndim == 1:
        return part.astype(np.int64), np.zeros(len(part), bool)
    numbers = np.zeros(len(part), np.int64)
    bad = np.ones(len(part), bool)
    for i, value in enumerate(_values(part)):
        if is_number(value) and value == int(value):
            numbers[i] = int(value)
            bad[i] = False
    return numbers, bad


def _boxes(part: _Part) -> np.ndarray:
    """The boxes in a part, float64 `[n, 4]`."""
    if isinstance(part, np.ndarray | _Mixed):
        numbers = part.numbers if isinstance(part, _Mixed) else part.astype(np.float64)
        if numbers.ndim == 2:
            return np.where(np.abs(numbers) < LARGEST, numbers, np.nan)
        return np.full((len(part), 4), np.nan)
    boxes = []
    for value in _values(part):
        is_four = isinstance(value, list) and len(value) == 4
        boxes.append([_number_of(number) for number in value] if is_four else _NO_BOX)
    return np.array(boxes, np.float64)


def _flags(part: _Part) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(part, _Missing):
        return np.zeros(len(part), bool), np.zeros(len(part), bool)
    if isinstance(part, np.ndarray) and part.ndim == 1:
        is_set = part == 1
        is_clear = (part == 0) | np.isnan(part)
        return is_set, ~(is_set | is_clear)
    flags = [flag_of(None if value is _ABSENT else value) for value in _values(part)]
    is_set = np.array([flag is True for flag in flags], bool)
    unclear = np.array([flag is None for flag in flags], bool)
    return is_set, unclear


def quoted(value: Any) -> str:
    """The value for a message, shortened to a line."""
    return _SHORT.repr(value)


def name_of(kind: str, columns: Mapping[str, Column], i: int) -> str:
    """The name of row `i` in messages, such as "image 12 ('a.jpg')"."""
    name = f"{kind} number {i} (without id)"
    if not columns["id"].lacks(i):
        name = f"{kind} {quoted(columns['id'][i])}"
    for key in ("file_name", "name"):
        if key in columns and not columns[key].lacks(i):
            name += f" ({quoted(columns[key][i])})"
    return name


class Table(Rows):
    """The rows of one list of a file, with their faults."""

    def __init__(self, file: Path, kind: str, columns: Columns, faults: list[Fault]):
        """`kind` names what a row describes, such as "image"."""
        self.columns = columns.columns
        # Not a method: a table that refers to itself would stay in memory until the next garbage
        # collection.
        named = partial(name_of, kind, self.columns)
        super().__init__(columns.count, faults, lambda i: (file, named(i)))

    def quoted(self, i: int, key: str) -> str:
        """The value of row `i` under `key`, shortened to one line."""
        return quoted(self.columns[key][i])

    def forget(self) -> None:
        self.columns.clear()

    def report(self, code: str, bad: ArrayLike, text: str, remedy: str) -> None:
        """Adds a fault for the rows that are `bad`, bool `[N]`. `{key}` in the text is replaced by
        the value that the first of these rows has under that key."""

        def filled(i: int) -> str:
            return text.format_map(_Quotes(self, i))

        self.fault(code, bad, filled, remedy)

    def ids(self) -> np.ndarray:
        """The ids of the rows, int64 `[N]`. Reports ids that are not whole numbers or occur
        twice."""
        ids, bad = self.columns["id"].whole_numbers()
        text = "its id {id} is not a whole number below 2^63"
        self.report("id-invalid", bad, text, "number all of them")
        good = np.flatnonzero(self.good)
        _, first = np.unique(ids[good], return_index=True)
        repeated = np.ones(len(ids), bool)
        repeated[good[first]] = False
        self.report("id-twice", repeated, "its id {id} occurs twice", "give each its own")
        return ids

    def rows_of(self, key: str, ids: np.ndarray, known: np.ndarray) -> np.ndarray:
        """For each row, the row of another table that it names by its id, int64 `[N]`; -1 if there
        is none.

        `ids` are the ids of the other table, which are valid where they are `known`.
        """
        wanted, bad = self.columns[key].whole_numbers()
        rows = np.flatnonzero(known)
        if not len(rows):
            return np.full(len(wanted), -1)
        order = np.argsort(ids[rows])
        rows = rows[order]
        last = len(rows) - 1
        nearest = np.searchsorted(ids[rows], wanted)
        nearest = nearest.clip(max=last)
        candidates = rows[nearest]
        is_there = ids[candidates] == wanted
        return np.where(is_there & ~bad, candidates, -1)


class _Quotes(dict[str, str]):
    """The values of a row, quoted by `Table.quoted` on access."""

    def __init__(self, table: Table, row: int):
        super().__init__()
        self.table = table
        self.row = row

    def __missing__(self, key: str) -> str:
        return self.table.quoted(self.row, key)
