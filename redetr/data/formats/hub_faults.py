"""Rows of a Hugging Face data set that are reported while they are read."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from redetr.data.faults import Fault, Rows
from redetr.data.formats.hub_frames import Frame, stated_size
from redetr.data.formats.hub_rows import Columns, Row
from redetr.data.images import ROW_REMEDY
from redetr.wording import counted

_ROTATE = (
    "see the sheet of --report; to train on upright images, save them rotated, without the tag"
)


@dataclass
class OddRows:
    """Rows with something to report, by their numbers."""

    unreadable: dict[int, str] = field(default_factory=dict)  # why their images cannot be read
    unequal: dict[int, str] = field(default_factory=dict)  # the lengths of lists that differ
    resized: dict[int, str] = field(default_factory=dict)  # how stated and actual size differ
    turned: dict[int, int] = field(default_factory=dict)  # the orientation of their images
    as_stored: dict[int, int] = field(default_factory=dict)  # the same if boxes are not turned
    nulls: dict[int, int] = field(default_factory=dict)  # the number of null objects
    key_points: list[int] = field(default_factory=list)  # rows that have some

    def judge_size(
        self, number: int, row: Row, columns: Columns, shown: Frame, frame: Frame
    ) -> None:
        """Notes the orientation of a row's image, and a stated size that is not its own. `shown` is
        the image as `datasets` decodes it, `frame` that of the boxes."""
        if frame.orientation != 1:
            self.turned[number] = frame.orientation
        elif shown.orientation != 1:
            self.as_stored[number] = shown.orientation
        width, height = frame.size
        stated = stated_size(row, columns)
        if stated is not None and stated != frame.size:
            written = f"{row['width']}x{row['height']} px"
            self.resized[number] = (
                f"its columns state {written}, but its image is {width}x{height} px"
            )

    def faults(self, source: Path, count: int) -> list[Fault]:
        """The faults of these among `count` rows."""
        faults: list[Fault] = []
        rows = Rows(count, faults, lambda i: (source, f"row {i}"))
        rows.fault(
            "image-unreadable",
            _among(rows, self.unreadable),
            lambda i: self.unreadable[i],
            ROW_REMEDY,
        )
        rows.fault(
            "objects-unequal",
            _among(rows, self.unequal),
            lambda i: self.unequal[i],
            "give each object one of each",
        )
        rows.fault(
            "image-size",
            _among(rows, self.resized),
            lambda i: self.resized[i],
            "its boxes may refer to another size: correct the columns or the image",
        )
        self._report_orientations(rows)
        rows.fault(
            "object-null",
            _among(rows, self.nulls),
            lambda i: f"has {counted(self.nulls[i], 'object')} without any values, left out",
            "nothing to do, if the image shows no other objects",
            "note",
        )
        rows.fault(
            "key-points",
            _among(rows, self.key_points),
            lambda i: "has keypoints",
            "its boxes are used",
            "note",
        )
        return faults

    def _report_orientations(self, rows: Rows) -> None:
        def turned(i: int) -> str:
            return (
                f"has the EXIF orientation {self.turned[i]}: its boxes are read in the upright "
                "image, as `datasets` decodes it; training and evaluation use the stored pixels, "
                "with these boxes turned to them"
            )

        def as_stored(i: int) -> str:
            return (
                f"has the EXIF orientation {self.as_stored[i]}, but its columns state the size of "
                "the stored image: its boxes are read in the stored pixels"
            )

        rows.fault("image-upright", _among(rows, self.turned), turned, _ROTATE, "note")
        is_as_stored = _among(rows, self.as_stored)
        rows.fault("image-orientation", is_as_stored, as_stored, _ROTATE, "warning")


def _among(rows: Rows, numbers: Iterable[int]) -> np.ndarray:
    """Which rows have one of these numbers, bool `[N]`."""
    return np.isin(np.arange(len(rows.good)), list(numbers))
