"""Masks of many objects as stated in annotations, polygons or RLE, stored in arrays.

They are converted to pixels only where they are used: polygons take less memory, and `convert` can
write them as they were drawn.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import hotcoco.mask
import numpy as np

from redetr.data.orientation import stored_points
from redetr.structures import Size

# Whether masks are read: not at all, for a check, or for training.
MaskUse = Literal["none", "check", "train"]

LARGEST_SIDE_PX = 2**18 - 1  # of an image with masks: an outline takes memory for each pixel
MOST_PIXELS = 2**32 - 1  # of an image with masks: hotcoco counts them in 32 bits
_BLOCK = 2**16  # rows that are copied at a time


@dataclass(frozen=True, eq=False)
class MaskColumns:
    """The masks of A objects; each has polygons, or a compressed RLE, or neither."""

    points: np.ndarray  # [P, 2] float64, x and y in px; NaN between the polygons of an object
    first_point: np.ndarray  # [A + 1] int64: object `i` has points[first[i] : first[i + 1]]
    counts: np.ndarray  # [R] uint8, as pycocotools writes them
    first_count: np.ndarray  # [A + 1] int64

    def __len__(self) -> int:
        return len(self.first_point) - 1

    @property
    def has_polygons(self) -> np.ndarray:
        """Which objects have polygons, bool `[A]`."""
        return np.diff(self.first_point) > 0

    @property
    def has_mask(self) -> np.ndarray:
        """Which objects have polygons or an RLE, bool `[A]`."""
        return self.has_polygons | (np.diff(self.first_count) > 0)

    def is_whole(self, count: int) -> bool:
        """Whether these are the complete masks of `count` objects."""
        has_points = len(self.first_point) == count + 1 and self.first_point[-1] == len(self.points)
        has_counts = len(self.first_count) == count + 1 and self.first_count[-1] == len(self.counts)
        return bool(has_points and has_counts)

    def polygons(self, index: int) -> list[np.ndarray]:
        """The polygons of an object, each float64 `[points, 2]`."""
        start, stop = self.first_point[index : index + 2].tolist()
        points = self.points[start:stop]
        is_gap = np.isnan(points[:, 0])
        if not is_gap.any():
            return [points] if len(points) else []
        first, *others = np.split(points, np.flatnonzero(is_gap))
        return [first, *(part[1:] for part in others)]  # each of the others begins with its gap

    def rle(self, index: int, size: Size) -> bytes:
        """The compressed RLE of an object in an image of this height and width, by the rules of
        pycocotools; empty if it has no mask."""
        start, stop = self.first_count[index : index + 2].tolist()
        if stop > start:
            return self.counts[start:stop].tobytes()
        polygons = [polygon.ravel().tolist() for polygon in self.polygons(index)]
        if not polygons:
            return b""
        parts = hotcoco.mask.frPyObjects(polygons, *size)
        if len(parts) == 1:
            return parts[0]["counts"]
        return hotcoco.mask.merge(parts)["counts"]

    def rles(self, objects: slice, size: Size) -> list[bytes]:
        """The compressed RLE of each object of an image of this size."""
        return [self.rle(i, size) for i in range(objects.start, objects.stop)]

    def take(self, rows: np.ndarray) -> "MaskColumns":
        """The masks of the objects at these indices."""
        points, first_point = _taken(self.points, self.first_point, rows)
        counts, first_count = _taken(self.counts, self.first_count, rows)
        return MaskColumns(points, first_point, counts, first_count)

    def only(self, kept: np.ndarray) -> "MaskColumns":
        """The masks of the objects that are `kept`, bool `[A]`. All other objects have none."""
        points, first_point = _emptied(self.points, self.first_point, kept)
        counts, first_count = _emptied(self.counts, self.first_count, kept)
        return MaskColumns(points, first_point, counts, first_count)

    def with_polygons(self, polygons_of: Mapping[int, Sequence[np.ndarray]]) -> "MaskColumns":
        """The masks, with these polygons `[points, 2]` of some objects."""
        parts = []
        lengths = np.diff(self.first_point)
        end = 0  # of the points that were taken
        for row in sorted(polygons_of):
            start, stop = self.first_point[row : row + 2].tolist()
            points = _with_gaps(polygons_of[row])
            parts += [self.points[end:start], points]
            lengths[row] = len(points)
            end = stop
        parts.append(self.points[end:])
        first_point = np.append(0, np.cumsum(lengths))
        return MaskColumns(np.concatenate(parts), first_point, self.counts, self.first_count)


def _with_gaps(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """The points of polygons, with NaN between them."""
    parts = []
    for polygon in polygons:
        parts += [np.full((1, 2), np.nan), polygon]
    return np.concatenate(parts[1:]) if parts else np.zeros((0, 2))


def may_have_masks(sizes: np.ndarray) -> np.ndarray:
    """Which images of these heights and widths, int64 `[N, 2]`, are small enough for masks, bool
    `[N]`."""
    return (sizes <= LARGEST_SIDE_PX).all(1) & (sizes.prod(1) <= MOST_PIXELS)


def _taken(
    values: np.ndarray, first: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The concatenated values of these rows, and the start of each."""
    lengths = first[rows + 1] - first[rows]
    starts = np.append(0, np.cumsum(lengths))
    count = int(starts[-1])
    taken = np.empty((count, *values.shape[1:]), values.dtype)
    for start_row in range(0, len(rows), _BLOCK):
        stop_row = min(start_row + _BLOCK, len(rows))
        block = slice(start_row, stop_row)
        begin = int(starts[start_row])
        end = int(starts[stop_row])
        shift = first[rows[block]] - starts[block]  # of each row, from its new to its old position
        sources = np.repeat(shift, lengths[block]) + np.arange(begin, end)
        taken[begin:end] = values[sources]
    return taken, starts


def _emptied(
    values: np.ndarray, first: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The values of the rows that are kept, and the start of each row. All other rows have no
    values."""
    taken, _ = _taken(values, first, np.flatnonzero(kept))
    lengths = np.where(kept, np.diff(first), 0)
    return taken, np.append(0, np.cumsum(lengths))


class MaskProblem(NamedTuple):
    """Why a value in an annotation is not a valid mask."""

    code: str
    text: str
    remedy: str


class MaskBuilder:
    """Collects masks while annotations are read, one object after another.

    `for_training`: whether invalid masks are errors or warnings.
    """

    @classmethod
    def of(cls, use: MaskUse) -> "MaskBuilder | None":
        """A builder of masks for this use; None if masks are not read."""
        return None if use == "none" else cls(use == "train")

    def __init__(self, for_training: bool):
        self.for_training = for_training
        self.severity: Literal["error", "warning"] = "error" if for_training else "warning"
        self.problems: dict[int, MaskProblem] = {}  # by the index of the object
        self._points = array("d")
        self._first_point = array("q", [0])
        self._counts = bytearray()
        self._first_count = array("q", [0])

    def add(self, mask: Sequence[Sequence[float]] | bytes | MaskProblem | None) -> None:
        """Adds the next object: its polygons `[x, y, x, y, ...]`, its compressed RLE, its problem,
        or None if no mask is stated."""
        if isinstance(mask, MaskProblem):
            self.problems[len(self._first_point) - 1] = mask
        elif isinstance(mask, bytes):
            self._counts += mask
        elif mask is not None:
            for number, polygon in enumerate(mask):
                if number:
                    self._points.extend((math.nan, math.nan))
                self._points.extend(polygon)
        self._first_point.append(len(self._points) // 2)
        self._first_count.append(len(self._counts))

    def scale(self, factors: np.ndarray, orientations: np.ndarray) -> None:
        """Converts the points of all objects, fractions of images as viewers show them, to pixels
        of the stored images. `factors` `[A, 2]` are width and height of the image of each object,
        and `orientations` `[A]` those of the images."""
        points = np.frombuffer(self._points, np.float64).reshape(-1, 2)
        counts = np.diff(self._first_point)
        orientation = np.repeat(orientations, counts)
        turned = np.flatnonzero(orientation != 1)
        points[turned] = stored_points(points[turned], orientation[turned])
        points *= np.repeat(factors, counts, axis=0)
        # Whole numbers of px that were stored as fractions are whole again.
        np.round(points, 9, out=points)

    def columns(self) -> MaskColumns:
        """The masks of all objects that were added."""
        return MaskColumns(
            np.frombuffer(self._points, np.float64).reshape(-1, 2),
            np.frombuffer(self._first_point, np.int64),
            np.frombuffer(self._counts, np.uint8),
            np.frombuffer(self._first_count, np.int64),
        )
