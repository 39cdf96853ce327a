"""What every reader of a data set yields: one split as arrays, and all that is wrong with it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from redetr.errors import InputError

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Fault:
    """One kind of fault in one file: the first place, what is wrong there, what to do, and how often it occurs.

    An error would spoil training; `open_dataset` raises the first one. Warnings and notes are told and left to the user.
    """

    severity: Severity
    code: str  # a short name of the kind that does not change, such as "box-outside"
    file: Path
    where: str  # such as "annotation 17" or "line 3"; empty for the file as a whole
    text: str  # what is wrong there
    remedy: str  # what to do about it
    count: int = 1

    def __str__(self) -> str:
        place = f"{self.file}: {self.where}: " if self.where else f"{self.file}: "
        more = f" (and {self.count - 1} more like it)" if self.count > 1 else ""
        return f"{place}{self.text}; {self.remedy}{more}"


@dataclass(frozen=True)
class Annotations:
    """One split, sorted by image id. N images, A objects, of which image `i` owns `first[i]:first[i + 1]`.

    Rows that an error speaks of are left out, so that the rest can be looked at.
    """

    source: Path  # the annotation file, or the folder of them
    folder: Path  # image files are below it
    names: np.ndarray  # [N] bytes, path of each image below the folder
    ids: np.ndarray  # [N] int64
    sizes: np.ndarray  # [N, 2] int64, height and width as the annotations state them
    category_ids: tuple[int, ...]  # as in the source; label `i` is the i-th of them
    class_names: tuple[str, ...]
    first: np.ndarray  # [N + 1] int64
    boxes: np.ndarray  # [A, 4] float32, xyxy pixels of the stored image, inside it
    labels: np.ndarray  # [A] int64
    iscrowd: np.ndarray  # [A] bool; also objects marked as to be ignored
    area: np.ndarray  # [A] float32, pixels
    object_ids: np.ndarray  # [A] int64, the annotation's id, or its number in the source
    faults: list[Fault] = field(default_factory=list)

    def require_sound(self) -> None:
        """Raises InputError with the first error, and how many other kinds there are."""
        errors = [fault for fault in self.faults if fault.severity == "error"]
        if errors:
            more = f"; {len(errors) - 1} more kinds of faults: redetr check tells them" if len(errors) > 1 else ""
            raise InputError(f"{errors[0]}{more}")
