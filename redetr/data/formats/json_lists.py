"""Reads the lists of a JSON file through a window, so that the file may be larger than the
memory."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from redetr.data.formats.paths import read_blocks
from redetr.errors import InputError
from redetr.garbage import no_garbage_collection

_BLOCK = 2**22  # bytes read at a time
_BATCH = 2**14  # minimum number of rows that are passed on at a time
_LONGEST = 2**20  # characters at the end of the window that are searched for its last object
# If the end of the window cuts a value, the parser reports an error within so many characters of
# the end.
_NEAR = 16
_SPACE = re.compile(r"[ \t\n\r]*")
# The start of the last object of a list in a text.
_LAST_OBJECT = re.compile(r".*\}[ \t\n\r]*,[ \t\n\r]*(\{)", re.DOTALL)
_DECODER = json.JSONDecoder()

TakeRows = Callable[[str, list[Any]], None]


def read_lists(file: Path, keys: tuple[str, ...], take: TakeRows) -> dict[str, bool]:
    """Passes the items of the lists under these keys of a JSON file to `take`, in batches. Returns
    for each key in the file whether its value is a list.

    Raises InputError if the file is not JSON, with the message and position of Python's own parser.
    """
    try:
        with no_garbage_collection():
            return _Document(file).lists(keys, take)
    except (ValueError, RecursionError) as error:  # also not UTF-8, or nested beyond reason
        remedy = "export or copy the annotations again"
        raise InputError(f"not JSON: {error}", where=file, remedy=remedy) from None


class _Document:
    """A JSON file, of which a window is in memory. Text that was read is dropped."""

    def __init__(self, file: Path):
        self._text = _decoded(file)
        self._window = ""
        self._at = 0  # in the window
        self._is_whole = False  # whether the window extends to the end of the file
        self._is_new = True  # whether nothing was read from this window yet
        # The dropped text, for the position of an error.
        self._characters = 0
        self._lines = 0
        self._column = 0  # characters since the last line break

    def lists(self, keys: tuple[str, ...], take: TakeRows) -> dict[str, bool]:
        """Does the work of `read_lists`. Raises ValueError if the file is not JSON."""
        self._skip_space()
        is_list: dict[str, bool] = {}
        if self._next() == "{":
            self._at += 1
            self._members(keys, take, is_list)
        else:
            self._value()
        self._skip_space()
        if self._next():
            raise self._error("Extra data", self._at)
        return is_list

    def _members(self, keys: tuple[str, ...], take: TakeRows, is_list: dict[str, bool]) -> None:
        """Reads the members of the object, up to its closing brace."""
        self._skip_space()
        if self._next() == "}":
            self._at += 1
            return
        while True:
            self._skip_space()
            if self._next() != '"':
                raise self._error("Expecting property name enclosed in double quotes", self._at)
            key = self._value()
            self._skip_space()
            if self._next() != ":":
                raise self._error("Expecting ':' delimiter", self._at)
            self._at += 1
            self._skip_space()
            if key in is_list:
                raise self._error(f'"{key}" occurs twice', self._at)
            if key in keys:
                is_list[key] = self._next() == "["
            if key in keys and is_list[key]:
                self._at += 1
                self._items(key, take)
            else:
                self._value()
            self._skip_space()
            if self._next() == "}":
                self._at += 1
                return
            if self._next() != ",":
                raise self._error("Expecting ',' delimiter", self._at)
            self._at += 1

    def _items(self, key: str, take: TakeRows) -> None:
        """Reads the items of a list, up to its closing bracket."""
        self._skip_space()
        if self._next() == "]":
            self._at += 1
            return
        items: list[Any] = []
        while True:
            items += self._objects()
            items.append(self._value())
            if len(items) >= _BATCH:
                take(key, items)
                items = []
            self._skip_space()
            end = self._next()
            if end not in (",", "]"):
                raise self._error("Expecting ',' delimiter", self._at)
            self._at += 1
            if end == "]":
                take(key, items)
                return
            self._skip_space()

    def _objects(self) -> list[Any]:
        """The items that are completely in the window, except the last one; empty if it is not
        clear which these are.

        Reading them together takes a third of the time, because Python's parser reuses their keys.
        """
        if not self._is_new:
            return []
        self._is_new = False
        last = _LAST_OBJECT.match(self._window[-_LONGEST:])
        if last is None:
            return []
        cut = max(0, len(self._window) - _LONGEST) + last.start(1)
        if cut <= self._at:
            return []
        text = self._window[self._at : cut]
        try:
            # A cut inside an item or string leaves brackets or quotes open.
            items = json.loads(f"[{text.rstrip().removesuffix(',')}]")
        except ValueError:
            return []
        self._at = cut
        return items

    def _value(self) -> Any:
        """Reads the value that begins at the current position."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._window, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self._window) - _NEAR
                is_cut |= error.msg.startswith("Unterminated string")
                if is_cut and self._read_on():
                    continue
                raise self._error(error.msg, error.pos) from None
            # A number at the end of the window may continue after it, also one before "e+".
            if end >= len(self._window) - 2 and self._read_on():
                continue
            self._at = end
            return value

    def _next(self) -> str:
        """The next character that is not a space; empty at the end of the file."""
        return self._window[self._at : self._at + 1]

    def _skip_space(self) -> None:
        """Moves to the next character that is not a space, which is then in the window."""
        while True:
            space = _SPACE.match(self._window, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._window) or not self._read_on():
                return

    def _read_on(self) -> bool:
        """Moves the window forward, and enlarges it if nothing in it was read. False at the end of
        the file."""
        if self._is_whole:
            return False
        passed = self._window[: self._at]
        self._characters += len(passed)
        lines = passed.count("\n")
        self._lines += lines
        last_line = passed.rpartition("\n")[2]
        self._column = len(last_line) + (0 if lines else self._column)
        parts = [self._window[self._at :]]
        # Doubled, so that a value longer than the window is parsed again only a few times.
        wanted = 2 * len(parts[0])
        count = len(parts[0])
        while count <= wanted:
            block = next(self._text, "")
            if not block:
                self._is_whole = True
                break
            parts.append(block)
            count += len(block)
        self._window = "".join(parts)
        self._at = 0
        self._is_new = True
        return True

    def _error(self, message: str, position: int) -> ValueError:
        """An error at a position in the window, with the wording of the `json` module."""
        passed = self._window[:position]
        lines = passed.count("\n")
        column = len(passed.rpartition("\n")[2]) + 1
        if not lines:
            column += self._column
        line = self._lines + lines + 1
        position_text = f"line {line} column {column} (char {self._characters + position})"
        return ValueError(f"{message}: {position_text}")


def _decoded(file: Path) -> Iterator[str]:
    """The text of the file in blocks. Raises ValueError, and InputError if it cannot be read."""
    decoder: Any = None
    count = 0  # bytes read
    for block in chain(read_blocks(file, _BLOCK), [b""]):
        if decoder is None:
            encoding = json.detect_encoding(block)
            decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        pending, _ = decoder.getstate()
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            offset = count - len(pending) + error.start
            raise ValueError(f"no {error.encoding} at byte {offset}: {error.reason}") from None
        count += len(block)
        if text:
            yield text
