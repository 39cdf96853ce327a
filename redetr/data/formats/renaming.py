"""Gives images new names in formats that have one folder for all splits."""

import os
import posixpath
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from redetr.data.annotations import IMAGE_COLUMNS, OBJECT_COLUMNS, Annotations, Split
from redetr.data.formats.paths import without_capitals
from redetr.data.formats.writers import Splits, names_of
from redetr.wording import counted


def apart(splits: Splits) -> tuple[Splits, dict[Path, Path], list[str]]:
    """Gives images the split as prefix if their names without suffix are in several splits, in any
    capitals.

    Returns the splits; the file of each renamed image, by the path of its new name; and a sentence
    on them."""
    splits_with: dict[str, set[Split]] = defaultdict(set)
    for split, annotations in splits.items():
        for name in names_of(annotations):
            splits_with[_spelling(name)].add(split)
    files: dict[Path, Path] = {}
    renamed: Splits = {}
    for split, annotations in splits.items():
        new_names = []
        for name in names_of(annotations):
            new_name = name
            if len(splits_with[_spelling(name)]) > 1:
                new_name = _prefixed(name, split)
                files[annotations.folder / new_name] = annotations.folder / name
            new_names.append(new_name)
        renamed[split] = _with_names(annotations, new_names)
    if not files:
        return splits, {}, []
    example, original = next(iter(files.items()))
    images = counted(len(files), "image")
    note = (
        f"VOC has one folder for all splits: {images} with names that are in several splits get "
        f"the split as prefix, such as {example.name} for {original.name}"
    )
    return renamed, files, [note]


def _spelling(name: str) -> str:
    """The name without suffix, in the form that Windows and macOS do not distinguish from
    others."""
    stem, _ = posixpath.splitext(name)
    return without_capitals(stem)


def _prefixed(name: str, split: Split) -> str:
    folder, file = posixpath.split(name)
    return posixpath.join(folder, f"{split}_{file}")


def _with_names(annotations: Annotations, names: list[str]) -> Annotations:
    """The same images with other names, sorted by them."""
    encoded = np.array([os.fsencode(name) for name in names], "S")
    order = np.lexsort((annotations.ids, encoded))
    counts = np.diff(annotations.first)[order]
    first = np.append(0, np.cumsum(counts))
    shift = annotations.first[:-1][order] - first[:-1]  # of each image's objects
    rows = np.arange(first[-1]) + np.repeat(shift, counts)
    columns: dict[str, Any] = {}
    for name in IMAGE_COLUMNS:
        columns[name] = getattr(annotations, name)[order]
    for name in OBJECT_COLUMNS:
        columns[name] = getattr(annotations, name)[rows]
    columns |= {"names": encoded[order], "first": first}
    if annotations.masks is not None:
        columns["masks"] = annotations.masks.take(rows)
    return replace(annotations, stored=None, **columns)
