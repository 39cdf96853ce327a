"""Leaves out images that cannot be read, on request."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from redetr.data.annotations import SPLITS, Annotations, Split
from redetr.data.headers import read_headers
from redetr.data.images import problem_of
from redetr.errors import InputError
from redetr.wording import counted

# The images to leave out: all that cannot be read, which are searched for, or those with these
# names, which were found before, with the reasons. None: no image is left out, and one that cannot
# be read is an error.
LeaveOut = Mapping[str, str] | Literal["unreadable"] | None

LIST_FILE = "unreadable.json"  # in the folder of a run: the reasons, by split and name

_CODES = ("image-unreadable", "size-invalid")  # of errors about files without a readable size


def without(annotations: Annotations, leave_out: LeaveOut) -> Annotations:
    """The annotations without images that cannot be read, which their `unreadable` names.

    To find them, every image is decoded, on all cores; valid images are cached. Raises InputError
    if no image is left.
    """
    if leave_out is None:
        return annotations
    names = [os.fsdecode(name) for name in annotations.names.tolist()]
    unreadable = dict(annotations.unreadable)
    if leave_out == "unreadable":
        for name in unreadable:
            unreadable[name] = problem_of(annotations.folder / name)
        headers = read_headers(annotations.folder, names, looks=True)
        for i, problem in headers.problems.items():
            unreadable[names[i]] = problem
    elif unreadable.keys() <= leave_out.keys():
        unreadable = dict(leave_out)
    else:
        return annotations  # with the error on one that is damaged since
    is_kept = np.array([name not in unreadable for name in names], bool)
    if not is_kept.any():
        images = counted(len(unreadable), "image")
        text = f"none of its {images} can be read, such as {min(unreadable)}"
        raise InputError(text, where=annotations.source, remedy="restore the files")
    if not is_kept.all():
        annotations = annotations.only(is_kept, np.ones(len(annotations.boxes), bool))
    faults = annotations.faults
    if annotations.unreadable:
        faults = [fault for fault in faults if fault.code not in _CODES]
    return replace(annotations, faults=faults, unreadable=unreadable)


def what_was_left_out(unreadable: Mapping[str, str], split: Split) -> list[str]:
    """A warning with the number of images left out of a split, and one of them."""
    if not unreadable:
        return []
    first = min(unreadable)
    images = counted(len(unreadable), "image")
    others = " and others" if len(unreadable) > 1 else ""
    return [
        f"warning: {images} of {split} left out, because they cannot be read: {first} "
        f"({unreadable[first]}){others}"
    ]


def read_list(file: Path) -> dict[Split, dict[str, str]]:
    """The `LIST_FILE` of a run. Raises InputError if it cannot be read."""
    try:
        content = json.loads(file.read_bytes())
        lists: dict[Split, dict[str, str]] = {}
        for split in SPLITS:
            lists[split] = dict(content.get(split, {}))
    except (OSError, ValueError, RecursionError, AttributeError, TypeError) as error:
        text = f"cannot be read ({error}), and lists the images that the run leaves out"
        raise InputError(text, where=file, remedy="restore it") from None
    return lists
