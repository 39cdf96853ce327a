"""What is wrong with the image files of a data set: cut short, turned, of another size, there
twice, not used."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from redetr.data.annotations import Annotations, Fault, Severity, Split
from redetr.data.forms.paths import IMAGE_SUFFIXES
from redetr.data.headers import PLAIN, Header

_ALIKE_BITS, _BLOCK = (
    4,
    1024,
)  # copies of half the size or poor quality differ in 0 to 6 bits, others in 10 and more


def found(
    bad: np.ndarray,
    severity: Severity,
    code: str,
    file: Path,
    tell: Callable[[int], tuple[str, str]],
    remedy: str,
) -> list[Fault]:
    """One fault for all places where `bad` (bool `[N]`) is True; `tell` says where the first is and
    what is wrong."""
    places = np.flatnonzero(bad)
    return (
        [Fault(severity, code, file, *tell(int(places[0])), remedy, len(places))]
        if len(places)
        else []
    )


def image_place(annotations: Annotations, index: int) -> str:
    """Such as "image 12 ('a.jpg')"."""
    return f"image {annotations.ids[index]} ({os.fsdecode(annotations.names[index])!r})"


def image_faults(annotations: Annotations, headers: list[Header]) -> list[Fault]:
    """Files that cannot be read, or are not what was annotated."""
    actual, stated = (
        np.array([header[:2] for header in headers]).reshape(-1, 2),
        annotations.sizes[:, ::-1],
    )
    damaged = np.array([header.problem != "" for header in headers], bool)
    differs = (actual != stated).any(1) & ~damaged
    turned = differs & (actual == stated[:, ::-1]).all(1)
    tagged = np.array([header.orientation != 1 for header in headers], bool) & ~differs

    def fault(
        bad: np.ndarray, severity: Severity, code: str, text: Callable[[int], str], remedy: str
    ) -> list[Fault]:
        return found(
            bad,
            severity,
            code,
            annotations.source,
            lambda i: (image_place(annotations, i), text(i)),
            remedy,
        )

    def size(i: int) -> str:
        return "is {}x{} px, but annotated as {}x{}".format(*actual[i], *stated[i])

    return [
        *fault(
            damaged,
            "error",
            "image-unreadable",
            lambda i: headers[i].problem,
            "replace the file, or take it out of the annotations",
        ),
        *fault(
            differs & ~turned,
            "error",
            "image-size",
            size,
            "put back the file that was annotated, or export the annotations again",
        ),
        *fault(
            turned,
            "error",
            "image-turned",
            size,
            "it was annotated as its EXIF tag turns it: save it turned that way, without the tag",
        ),
        *fault(
            tagged,
            "warning",
            "image-orientation",
            lambda i: f"has the EXIF orientation {headers[i].orientation}",
            "training and evaluation take it as stored, predict turns it: save it turned, without "
            "the tag, with"
            " boxes that fit (see the sheet of --report)",
        ),
    ]


def copies(
    splits: Mapping[Split, Annotations], headers: Mapping[Split, list[Header]]
) -> list[Fault]:
    """Images that are there twice, in one split or in two."""
    files = [header for split in splits for header in headers[split]]
    places = [
        image_place(annotations, i)
        for annotations in splits.values()
        for i in range(len(annotations))
    ]
    split_of = np.repeat(list(splits), [len(annotations) for annotations in splits.values()])
    first: dict[str, int] = {}
    same = np.array(
        [first.setdefault(header.content or str(i), i) for i, header in enumerate(files)], int
    )
    originals = np.where(
        same == np.arange(len(files)), _first_alike([header.looks for header in files]), same
    )
    copied, leaked = originals != np.arange(len(files)), split_of[originals] != split_of

    def tell(i: int) -> tuple[str, str]:
        return places[
            i
        ], f"is the same picture as {places[originals[i]]} of {split_of[originals[i]]}"

    faults = []
    for split, annotations in splits.items():
        here = copied & (split_of == split)
        faults += [
            *found(
                here & ~leaked,
                "warning",
                "image-twice",
                annotations.source,
                tell,
                "keep one, with all boxes",
            ),
            *found(
                here & leaked,
                "warning",
                "image-leak",
                annotations.source,
                tell,
                "take it out of one split: AP will be better than on images never seen",
            ),
        ]
    return faults


def _first_alike(looks: list[str]) -> np.ndarray:
    """Which image is the first that looks like each one: but for a few of 64 bits, int64 `[N]`."""
    signs = np.zeros(
        (len(looks), 64), np.float32
    )  # +1 and -1: the product of two is 64 - 2 * the bits that differ
    for i, look in enumerate(looks):
        if look not in ("", PLAIN):
            signs[i] = 2.0 * np.unpackbits(np.frombuffer(bytes.fromhex(look), np.uint8)) - 1
    first = np.arange(len(looks))
    for start in range(0, len(looks) if signs.any() else 0, _BLOCK):
        rows = signs[start : start + _BLOCK]
        near = rows @ signs[: start + len(rows)].T >= 64 - 2 * _ALIKE_BITS
        own = first[start : start + _BLOCK]
        own[:] = np.where(near.any(1), near.argmax(1), own)
    return first


def unused_files(splits: Iterable[Annotations]) -> list[Fault]:
    """Image files beside those of the data set that no split names."""
    used: dict[Path, set[str]] = {}
    for annotations in splits:
        for i in range(len(annotations)):
            path = annotations.path(i)
            used.setdefault(path.parent, set()).add(path.name)
    return [fault for folder, names in used.items() for fault in _unused_in(folder, names)]


def _unused_in(folder: Path, used: set[str]) -> list[Fault]:
    files = sorted(file for file in os.listdir(folder) if file.lower().endswith(IMAGE_SUFFIXES))
    unused = np.array([file not in used for file in files], bool)
    return found(
        unused,
        "warning",
        "image-unused",
        folder,
        lambda i: (files[i], "no annotation names this image"),
        "annotate it, or take it out of the folder",
    )
