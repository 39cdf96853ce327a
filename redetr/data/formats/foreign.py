"""Paths that annotation files brought from another machine, such as `/content/data/a.jpg`,
`..\\..\\media\\a.jpg` or the address of an annotation server: what they mean in the data folder."""

import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from redetr.data.formats.paths import Listing, path_inside

_LOCAL_FILES = "?d="  # what follows is a path, in the addresses that Label Studio writes
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass
class FoundFiles:
    """Where the N files that a document names are."""

    folder: Path
    names: list[str]  # [N], paths below the folder; empty for those that lead elsewhere
    is_foreign: np.ndarray  # [N], found by the end of a path of another machine
    is_missing: np.ndarray  # [N], not in the folder


def find_files(texts: list[Any], folders: list[Path]) -> FoundFiles:
    """The files in the first of the folders that holds most of them.

    A path that leads out of the folder is looked for by its last parts, the longest end first,
    unless there is a file where it leads: that one is not read, nor another in its place.
    """
    candidates = [folder for folder in folders if folder.is_dir()] or folders[:1]
    ends = [_ends(text, candidates) for text in texts]
    best = _found_in(candidates[0], texts, ends)
    for folder in candidates[1:]:
        found = _found_in(folder, texts, ends)
        if found.is_missing.sum() < best.is_missing.sum():
            best = found
    return best


def _found_in(folder: Path, texts: list[Any], ends: list[list[str]]) -> FoundFiles:
    there = Listing(folder)
    names = []
    for text, ends_of_text in zip(texts, ends, strict=True):
        name = "" if ends_of_text else path_inside(text)
        for end in ends_of_text:
            if end in there:
                name = end
                break
        names.append(name)
    is_missing = np.array([name not in there for name in names], bool)
    is_foreign = np.array([bool(ends_of_text) for ends_of_text in ends], bool) & ~is_missing
    return FoundFiles(folder, names, is_foreign, is_missing)


def _ends(text: Any, folders: list[Path]) -> list[str]:
    """What a path that leads out may be called here; empty for others, and for one that leads to
    a file that is there."""
    if not isinstance(text, str) or "\0" in text:
        return []
    ends = foreign_ends(text)
    forward = text.replace("\\", "/")
    for folder in folders if ends else ():
        location = posixpath.normpath(posixpath.join(os.path.abspath(folder), forward))
        if os.path.lexists(location) and not _is_below(location, folders):
            return []
    return ends


def _is_below(location: str, folders: list[Path]) -> bool:
    return any(location.startswith(f"{os.path.abspath(folder)}/") for folder in folders)


def foreign_ends(text: str) -> list[str]:
    """The ends of a path that leads out of its folder, the longest first; empty if it does not."""
    if path_inside(text) and not _is_address(text):
        return []
    path = text.replace("\\", "/")
    if _is_address(path):
        _, _, local = path.partition(_LOCAL_FILES)
        without_query = re.split("[?#]", path)[0]
        path = unquote(local or _ADDRESS.sub("", without_query))
    parts = [part for part in posixpath.normpath(path).split("/") if part not in ("", ".", "..")]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    return [end for end in ends if path_inside(end)]


def _is_address(path: str) -> bool:
    return _ADDRESS.match(path) is not None or _LOCAL_FILES in path
