"""Faults of the image files of a data set: damaged, rotated, of another size, or duplicate."""

from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from redetr.data.annotations import Annotations, Split, image_reference
from redetr.data.faults import MOST_ITEMS, Fault, Severity
from redetr.data.header_cache import PLAIN, Headers, first_same
from redetr.data.images import READ_REMEDY, SIZE_REMEDY, TURNED_REMEDY
from redetr.doctor.splits import of_split

# Copies with half the size or low quality differ in 0 to 6 of 64 bits, and other images in 10 or
# more.
_ALIKE_BITS = 4
_PARTS = 7

Describe = Callable[[int], tuple[str, str]]  # the place and the problem of row `i`
# The bad images, the severity, the code, and the problem of image `i`.
_Check = tuple[np.ndarray, Severity, str, Callable[[int], str]]


def faults_of(
    bad: np.ndarray,
    severity: Severity,
    code: str,
    file: Path,
    describe: Describe,
    remedy: str,
) -> list[Fault]:
    """A list with one fault for all rows that are `bad` (bool `[N]`), which describes the first of
    them; empty if there are none."""
    rows = np.flatnonzero(bad)
    if not len(rows):
        return []
    where, text = describe(int(rows[0]))
    items = tuple(describe(row)[0] for row in rows[:MOST_ITEMS].tolist())
    return [Fault(severity, code, file, where, text, remedy, len(rows), items)]


def image_faults(annotations: Annotations, headers: Headers) -> list[Fault]:
    """Faults for files that cannot be read, differ from the annotated image, or do not have exactly
    one image."""
    faults = []
    checks = _size_checks(annotations, headers) + _content_checks(headers)
    for bad, severity, code, text_of in checks:

        def describe(i: int, text_of: Callable[[int], str] = text_of) -> tuple[str, str]:
            where = image_reference(annotations, i)
            return where, text_of(i)

        remedy = _REMEDIES[code]
        faults += faults_of(bad, severity, code, annotations.source, describe, remedy)
    return faults


def _size_checks(annotations: Annotations, headers: Headers) -> list[_Check]:
    """Checks for files that have another size than annotated, or that viewers rotate."""
    rows = headers.rows
    actual = np.stack([rows["width"], rows["height"]], axis=1)
    has_tag = rows["orientation"] != 1
    # Where boxes were drawn on rotated images, the reader has turned them, and said so.
    is_misread = has_tag & (not annotations.is_upright)
    stated = annotations.sizes[:, ::-1]
    differs = (actual != stated).any(1) & headers.is_sound()
    turned = differs & (actual == annotations.sizes).all(1)

    def size(i: int) -> str:
        width, height = actual[i]
        stated_width, stated_height = stated[i]
        return f"is {width}x{height} px, but annotated as {stated_width}x{stated_height}"

    def orientation(i: int) -> str:
        return f"has the EXIF orientation {headers[i].orientation}"

    return [
        (differs & ~turned, "error", "image-size", size),
        (turned & has_tag, "error", "image-turned", size),
        (turned & ~has_tag, "error", "image-sideways", size),
        (is_misread & ~differs, "warning", "image-orientation", orientation),
    ]


def _content_checks(headers: Headers) -> list[_Check]:
    """Checks for files that are damaged, have a single colour, or hold several images."""
    is_plain = headers.rows["plain"] != b""
    has_frames = headers.rows["frames"] > 1
    return [
        (~headers.is_sound(), "error", "image-unreadable", lambda i: headers[i].problem),
        (is_plain, "warning", "image-plain", lambda i: f"is nearly all {headers[i].plain}"),
        (has_frames, "note", "image-frames", lambda i: f"holds {headers[i].frames} images"),
    ]


_REMEDIES = {
    "image-unreadable": READ_REMEDY,
    "image-size": SIZE_REMEDY,
    "image-turned": TURNED_REMEDY,
    "image-sideways": (
        "restore the file that was annotated, or swap width and height in the annotations if the "
        "boxes fit (see the sheet of --report)"
    ),
    "image-orientation": (
        "training and evaluation use it as stored, predict rotates it: save it rotated, without "
        "the tag, and with boxes that fit (see the sheet of --report)"
    ),
    "image-plain": (
        "look at it: replace it if it is damaged, or clip its extreme values if a few of them hide "
        "the rest"
    ),
    "image-frames": "only the first is read: save the others as files if they are annotated",
}


def copies(splits: Mapping[Split, Annotations], headers: Mapping[Split, Headers]) -> list[Fault]:
    """Faults for duplicate images, within a split or in two splits."""
    if not splits:
        return []
    names = list(splits)
    counts = [len(annotations) for annotations in splits.values()]
    starts = np.append(0, np.cumsum(counts))
    split_of = np.repeat(np.arange(len(names)), counts)
    rows = np.concatenate([headers[split].rows for split in names])
    originals = _originals(rows)
    copied = originals != np.arange(len(rows))
    leaked = split_of[originals] != split_of

    def reference(i: int) -> str:
        annotations = splits[names[split_of[i]]]
        return image_reference(annotations, i - starts[split_of[i]])

    def describe(i: int) -> tuple[str, str]:
        original = originals[i]
        split = names[split_of[original]]
        return reference(i), f"is the same image as {reference(original)} of {split}"

    faults = []
    for number, split in enumerate(splits):
        copied_here = copied & (split_of == number)
        source = splits[split].source
        copies_found = faults_of(
            copied_here & ~leaked,
            "warning",
            "image-twice",
            source,
            describe,
            "keep one, with all boxes",
        )
        copies_found += faults_of(
            copied_here & leaked,
            "warning",
            "image-leak",
            source,
            describe,
            "remove it from one split: otherwise AP is higher than on unseen images",
        )
        faults += of_split(copies_found, split, splits)
    return faults


def _originals(rows: np.ndarray) -> np.ndarray:
    """For each file, the first file that is equal or looks alike; the file itself if there is none,
    int64 `[N]`. `rows` are the rows of `Headers`."""
    same = first_same(rows["content"])
    alike = _first_alike(rows["looks"])
    return np.where(same == np.arange(len(rows)), alike, same)


def _first_alike(looks: np.ndarray) -> np.ndarray:
    """For each image, the first that looks like it, up to a few of 64 bits, int64 `[N]`."""
    first = np.arange(len(looks))
    rows = np.flatnonzero((looks != b"") & (looks != PLAIN.encode()))
    if not len(rows):
        return first
    packed = np.frombuffer(bytes.fromhex(looks[rows].tobytes().decode()), np.uint64)
    distinct, first_row, index = np.unique(packed, return_index=True, return_inverse=True)
    by_appearance = np.argsort(first_row)  # the distinct values, in the order of the images
    position = np.argsort(by_appearance)  # of each distinct value in that order
    nearest = _first_near(distinct[by_appearance])
    nearest_of_row = nearest[position[index]]
    first_row_by_appearance = first_row[by_appearance]
    first[rows] = rows[first_row_by_appearance[nearest_of_row]]
    return first


def _first_near(bits: np.ndarray) -> np.ndarray:
    """For each of U different numbers of 64 bits, the first that differs in only a few bits; the
    number itself if there is none, int64 `[U]`.

    If at most 4 bits differ, at least 3 of 7 parts are equal. So only numbers that are neighbours
    when sorted by 3 of the parts are compared, in time that grows with their number instead of its
    square.
    """
    first = np.arange(len(bits))
    for parts in combinations(range(_PARTS), _PARTS - _ALIKE_BITS):
        mask = np.uint64(0)
        for bit in range(64):
            if bit % _PARTS in parts:
                mask |= np.uint64(1) << np.uint64(bit)
        keys = bits & mask
        order = np.argsort(keys, kind="stable")  # equal keys stay in the order of the images
        keys = keys[order]
        distance = 1
        rows = np.arange(len(keys) - 1)
        while len(rows):
            rows = rows[keys[rows] == keys[rows + distance]]
            earlier = order[rows]
            later = order[rows + distance]
            differing = np.bitwise_count(bits[earlier] ^ bits[later])
            is_near = differing <= _ALIKE_BITS
            np.minimum.at(first, later[is_near], earlier[is_near])
            distance += 1
            rows = rows[rows + distance < len(keys)]
    return first
