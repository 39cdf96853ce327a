"""Reads the lines of YOLO label files, and determines what their columns mean.

Five columns are `class cx cy w h`. More columns are an outline, `class x y x y x y ...`; or a box
with keypoints, `class cx cy w h x y x y ...` or `... x y v x y v ...`; or a box with a score and
an id, which trackers write. The number of columns does not distinguish these. `kpt_shape` does, and
without it, the numbers have to look like an outline.
"""

import math
import reprlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from redetr.data.contradictions import cross_themselves
from redetr.data.mask_columns import MaskBuilder
from redetr.errors import InputError
from redetr.files import open_file
from redetr.wording import counted

BOX, OUTLINE, KEY_POINTS, BAD = range(4)
_NO_VALUES = (-1.0, 0.0, 0.0, 1.0, 1.0)  # class and box of a line that cannot be read
_LARGEST = 1e6  # as a fraction of an image
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SAMPLE = 1000  # lines that are examined if columns are ambiguous
# Shares of the lines in the sample.
_NEARLY_ALL = 0.95
_MOST = 0.9
_HALF = 0.5
_MANY = 0.3
_NOT_BY_CHANCE = 3  # lines
_TRACKED = 7  # columns of a box with a score and an id
_FOUR_POINTS = 9  # columns of an oriented box


@dataclass(frozen=True)
class KeyPoints:
    """The value of `kpt_shape`: the number of points in each line, and of numbers (2 or 3) for each
    point."""

    count: int
    dims: int

    @property
    def columns(self) -> int:
        """The number of columns of a line, including class and box."""
        return 5 + self.count * self.dims


class Doubt(NamedTuple):
    """What longer lines may be instead of outlines."""

    columns: int  # of the lines in question
    text: str
    remedy: str


class Lines:
    """The A lines of all label files.

    They are kept in arrays instead of lists, because a large data set has millions of lines.
    """

    def __init__(
        self,
        files: list[str],
        key_points: KeyPoints | None = None,
        masks: MaskBuilder | None = None,
    ):
        """`files` has the label file of each image, which need not exist. Outlines are added to
        `masks`, as fractions of their images."""
        self.files = files
        self.key_points = key_points
        self.any_file = False  # whether at least one file exists
        self.image = array("q")  # [A], index of the image
        self.line = array("q")  # [A], from 1
        self.kind = array("b")  # [A]
        self.columns = array("q")  # [A]
        self.values = array("d")  # [5 A], class and box as cxcywh fractions
        for index, file in enumerate(files):
            content = _content(file)
            if content is None:
                continue
            self.any_file = True
            for number, line in enumerate(content.splitlines(), start=1):
                words = line.split()
                if words:
                    kind, values = _parse(line, words, key_points)
                    self.image.append(index)
                    self.line.append(number)
                    self.kind.append(kind)
                    self.columns.append(len(words))
                    self.values.extend(values)
                    if masks is not None and kind == OUTLINE:
                        masks.add([[float(word) for word in words[1:]]])
                    elif masks is not None:
                        masks.add(None)

    def locate(self, i: int) -> tuple[Path, str]:
        """The file of line `i`, and its line number there."""
        return Path(self._file(i)), f"line {self.line[i]}"

    def quoted(self, i: int) -> str:
        """The text of line `i`, shortened."""
        text = self._text(i).decode("utf-8", "replace")
        return reprlib.repr(text)

    def _file(self, i: int) -> str:
        image = self.image[i]
        return self.files[image]

    def _text(self, i: int) -> bytes:
        content = _content(self._file(i)) or b""
        number = self.line[i]
        return content.splitlines()[number - 1]

    def problem(self, i: int, numbers_of: dict[str, int]) -> tuple[str, str]:
        """Why line `i` cannot be read, and a remedy; `numbers_of` has the numbers of classes by
        name."""
        content = self._text(i)
        text = content.decode("utf-8", "replace")
        if "\0" in text:
            return "it is not in UTF-8", "save the file as UTF-8"
        for mark, name in ((";", "semicolons"), (",", "commas")):
            if mark in text:
                return f"it holds {name}", "separate numbers with spaces, and write a decimal point"
        words = text.split()
        return _problem_of_words(words, self.key_points, numbers_of)

    def doubt(self) -> Doubt | None:
        """What lines that are read as outlines seem to be instead; None if they look like
        outlines."""
        columns = np.array(self.columns, np.int64)
        kinds = np.array(self.kind, np.int8)
        outlines = np.flatnonzero(kinds == OUTLINE)
        if not len(outlines):
            return None
        counts = np.bincount(columns[outlines])
        most_common = int(counts.argmax())
        if counts[most_common] < _NEARLY_ALL * len(outlines):  # polygons have any number of points
            return None
        rows = outlines[columns[outlines] == most_common]
        return _doubt(self._numbers(rows))

    def stray_key_points(self) -> tuple[int, int, int] | None:
        """The first line whose keypoints are outside its box, the number of such lines in a
        sample, and the size of the sample; None if it is not most of them."""
        kinds = np.array(self.kind, np.int8)
        rows = np.flatnonzero(kinds == KEY_POINTS)
        if self.key_points is None or not len(rows):
            return None
        rows = _sample(rows)
        strays = ~_fit_key_points(self._numbers(rows), self.key_points.dims)
        if strays.mean() <= _HALF:
            return None
        first = rows[strays.argmax()]
        return int(first), int(strays.sum()), len(rows)

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        """The numbers in these lines, or in a sample of them, float64 `[S, columns]`. All lines
        must have the same number of columns."""
        numbers = []
        file = ""
        lines: list[bytes] = []
        for i in _sample(rows).tolist():
            if file != self._file(i):
                file = self._file(i)
                lines = (_content(file) or b"").splitlines()
            line = lines[self.line[i] - 1]
            numbers.append(list(map(float, line.split())))
        return np.array(numbers, np.float64)


def _sample(rows: np.ndarray) -> np.ndarray:
    """At most `_SAMPLE` of the rows, spread over all of them, in order."""
    step = math.ceil(len(rows) / _SAMPLE)
    return rows[::step]


def _content(file: str) -> bytes | None:
    """The content of the file; None if there is no file. Raises InputError if it cannot be read."""
    try:
        with open_file(file) as opened:
            return opened.read().removeprefix(_BYTE_ORDER_MARK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        text = f"cannot be read: {error.strerror}"
        raise InputError(text, where=file, remedy="copy the labels again") from None


def _parse(
    line: bytes, words: list[bytes], key_points: KeyPoints | None
) -> tuple[int, Sequence[float]]:
    """The kind of a line with these words, its class, and its box as cxcywh fractions."""
    if b"_" in line:  # Python reads 2_5 as 25
        return BAD, _NO_VALUES
    try:
        numbers = list(map(float, words))
    except ValueError:
        return BAD, _NO_VALUES
    total = sum(map(abs, numbers))
    if not total < _LARGEST:  # also true for NaN
        return BAD, _NO_VALUES
    if len(numbers) == 5:
        return BOX, numbers
    if key_points is not None:
        if len(numbers) != key_points.columns:
            return BAD, _NO_VALUES
        return KEY_POINTS, numbers[:5]
    if len(numbers) < 7 or len(numbers) % 2 == 0:
        return BAD, _NO_VALUES
    label = numbers[0]
    x = numbers[1::2]
    y = numbers[2::2]
    x_min = min(x)
    x_max = max(x)
    y_min = min(y)
    y_max = max(y)
    center_x = (x_min + x_max) / 2
    center_y = (y_min + y_max) / 2
    return OUTLINE, (label, center_x, center_y, x_max - x_min, y_max - y_min)


def _problem_of_words(
    words: list[str], key_points: KeyPoints | None, numbers_of: dict[str, int]
) -> tuple[str, str]:
    """Why a line with these words cannot be read, and a remedy."""
    write_box = "write class cx cy w h"
    texts = [word for word in words if not _is_number(word)]
    if texts == words[:1]:
        remedy = f"{write_box}, with the number of the class"
        if words[0] in numbers_of:
            remedy = f"write {numbers_of[words[0]]}, the number of that class"
        return f"it begins with a name, {reprlib.repr(words[0])}", remedy
    if len(words) == 10 and texts == words[8:9]:
        remedy = "write class x1 y1 x2 y2 x3 y3 x4 y4 as fractions of the image"
        return "it is a line in DOTA format, with the class after the corners", remedy
    if texts:
        return f"{reprlib.repr(texts[0])} is not a number", write_box
    for word in words:
        if not abs(float(word)) < _LARGEST:  # also true for NaN
            return f"{word} is not a finite fraction", write_box
    count = len(words)
    if count == 5:
        return "its blanks or digits are not ASCII", write_box
    if key_points is not None:
        shape = f"kpt_shape: [{key_points.count}, {key_points.dims}]"
        columns = counted(count, "column")
        text = f"it has {columns}, and {shape} of data.yaml makes {key_points.columns}"
        return text, "correct the line or kpt_shape"
    if count == 6:
        text = f"its sixth column, {reprlib.repr(words[5])}, may be a score, a track id or an angle"
        return text, f"{write_box}, without it"
    text = f"it has {counted(count, 'column')}"
    if count > 6 and (count - 5) % 3 == 0:
        shape = f"kpt_shape: [{(count - 5) // 3}, 3]"
        return text, f"if these are a box and keypoints, write {shape} into data.yaml"
    if count > 6:
        return text, "if this is an outline with a score or a track id at the end, delete that"
    return text, write_box


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word


def _doubt(numbers: np.ndarray) -> Doubt | None:
    """What lines with the same number of columns may be instead of outlines, judging by their
    numbers `[S, columns]`."""
    columns = numbers.shape[1]
    points = (columns - 1) // 2
    text = f"has {columns} columns, as nearly all long lines: an outline of {points} points, or "
    settle = "write task: segment into data.yaml if these are outlines"
    if columns == _TRACKED and _are_tracked(numbers):
        remedy = f"delete the last two columns, or {settle}"
        return Doubt(columns, f"{text}a box with a score and a track id?", remedy)
    if columns == _FOUR_POINTS and _are_oriented_boxes(numbers):
        return None
    for dims in (3, 2):
        count, rest = divmod(columns - 5, dims)
        if rest or not _are_key_points(numbers, dims):
            continue
        remedy = f"write kpt_shape: [{count}, {dims}] into data.yaml for keypoints; {settle}"
        return Doubt(columns, f"{text}a box with {counted(count, 'keypoint')}?", remedy)
    return None


def _are_tracked(numbers: np.ndarray) -> bool:
    """Whether the last two columns are a score and a whole number."""
    scores = numbers[:, -2]
    ids = numbers[:, -1]
    is_score = (scores >= 0) & (scores <= 1)
    is_id = ids == ids.round()
    fits = is_score & is_id & _are_boxes(numbers)
    return bool(fits.mean() >= _NEARLY_ALL)


def _are_oriented_boxes(numbers: np.ndarray) -> bool:
    """Whether four points are the corners of a rotated box: a parallelogram, whose diagonals have
    the same midpoint. This also holds in fractions of an image that is not square."""
    corners = numbers[:, 1:].reshape(-1, 4, 2)
    first, second, third, fourth = corners.swapaxes(0, 1)
    gaps = np.abs(first + third - second - fourth)  # between the middles of the diagonals, twice
    tolerances = 0.05 * np.ptp(corners, axis=1) + 1e-3
    is_turned_box = (gaps <= tolerances).all(1)
    return bool(is_turned_box.mean() > _HALF)


def _are_key_points(numbers: np.ndarray, dims: int) -> bool:
    """Whether the numbers are more likely a box and points with `dims` numbers each."""
    if dims == 3:
        visibility = numbers[:, 7::3]
        is_flag = np.isin(visibility, (0, 1, 2)).all(1)
        are_flags = is_flag & _are_boxes(numbers)
        if are_flags.mean() >= _NEARLY_ALL:
            return True
    if _fit_key_points(numbers, dims).mean() < _MOST:
        return False
    # Outlines look like points with visibility flags only by chance.
    if dims == 3 and len(numbers) >= _NOT_BY_CHANCE:
        return True
    has_hidden = (_points(numbers, dims) == 0).all(2).any(1)
    no_outlines = (
        has_hidden
        | cross_themselves(numbers[:, 1:].reshape(len(numbers), -1, 2))
        | ~_fit_outlines(numbers)
    )
    return bool(no_outlines.mean() > _MANY)


def _are_boxes(numbers: np.ndarray) -> np.ndarray:
    """Whether columns 1 to 4 can be a box (cxcywh) inside the image, bool `[S]`."""
    centers = numbers[:, 1:3]
    half_sides = numbers[:, 3:5] / 2
    starts = centers - half_sides
    ends = centers + half_sides
    is_inside = (starts >= -0.01) & (ends <= 1.01)
    has_area = half_sides > 0
    return np.all(is_inside & has_area, axis=1)


def _fit_key_points(numbers: np.ndarray, dims: int) -> np.ndarray:
    """Whether columns 1 to 4 can be a box, and the following ones points in it or near it, bool
    `[S]`."""
    centers = numbers[:, None, 1:3]
    sides = numbers[:, None, 3:5]
    points = _points(numbers, dims)
    distances = np.abs(points - centers)
    is_near = (distances <= 0.6 * sides + 0.01).all(2)
    is_hidden = (points == 0).all(2)
    fits = is_near | is_hidden  # [S, points]
    return _are_boxes(numbers) & fits.all(1)


def _points(numbers: np.ndarray, dims: int) -> np.ndarray:
    """x and y of the keypoints that follow a box, `[S, count, 2]`."""
    count = (numbers.shape[1] - 5) // dims
    return numbers[:, 5:].reshape(len(numbers), count, dims)[:, :, :2]


def _fit_outlines(numbers: np.ndarray) -> np.ndarray:
    """Whether columns 3 and 4 are a point near all others, bool `[S]`. In a line with keypoints,
    they are width and height."""
    points = numbers[:, 1:].reshape(len(numbers), -1, 2)
    second = points[:, 1]
    others = np.delete(points, 1, axis=1)
    low = others.min(1)
    high = others.max(1)
    reach = high - low
    if others.shape[1] == 2:  # a triangle, in which any corner may be far from the others
        reach = 2 * (high - low).max(1, keepdims=True)
    is_near = (second >= low - reach) & (second <= high + reach)
    return np.all(is_near, axis=1)
