"""Finds the files of the data folder that paths of other machines mean, such as
`/content/data/a.jpg`, `..\\..\\media\\a.jpg` or the URL of an annotation server."""

import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from redetr.data.archives import archives_in, open_archive
from redetr.data.formats.paths import Listing, composed, inner_ends
from redetr.data.images import IMAGE_SUFFIXES
from redetr.data.relative_paths import path_inside

_LOCAL_FILES = "?d="  # followed by a path, in the URLs that Label Studio writes
_QUOTES = "\"'"
_OF_ALL_SPLITS = ("images", "data", "img")  # names of folders
_XML = ".xml"
_FLAGS = ("-1", "0", "1")  # in lists of a class: not on the image, only difficult ones, on it
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass
class FoundFiles:
    """The N files that a document names."""

    folder: Path
    names: list[str]  # [N] paths below the folder; empty for paths that lead elsewhere
    is_foreign: np.ndarray  # bool [N], matched by the end of a path from another machine
    is_missing: np.ndarray  # bool [N], not in the folder
    similar: str = ""  # a file in the folder that may be the first missing one

    @classmethod
    def unsought(cls, texts: list[Any]) -> "FoundFiles":
        """The names in a document, without a search for the files."""
        nowhere = np.zeros(len(texts), bool)
        return cls(Path(), [path_inside(text) for text in texts], nowhere, nowhere)


def find_files(texts: list[Any], folders: list[Path]) -> FoundFiles:
    """The files with these names, in the folder that has most of them. Of several such folders, the
    one whose files share the most last parts with the paths of another machine is used, or else the
    first.

    A path that leads out of the folder is matched by its last parts, longest first. If it leads to
    an existing file, neither that file nor a substitute is read.
    """
    candidates = [folder for folder in folders if folder.is_dir()] or folders[:1]
    inside = [path_inside(text) for text in texts]
    names_of_split = {folder.name for folder in folders} - set(_OF_ALL_SPLITS)
    ends = [_ends(text, candidates) for text in texts]
    best = _files_in_one_of(candidates, inside, ends, names_of_split)
    if best.is_missing.all():  # all names may begin with a folder of another machine
        ends = []
        for text, path in zip(texts, inside, strict=True):
            ends.append(_ends(text, candidates) or inner_ends(path))
        files = _files_in_one_of(candidates, inside, ends, names_of_split)
        if not files.is_missing.all():
            best = files
    _take_same_names(best)
    return best


def _files_in_one_of(
    folders: list[Path], inside: list[str], ends: list[list[str]], names_of_split: set[str]
) -> FoundFiles:
    """`_files_in` the folder, with its archives, that `find_files` chooses."""
    best = None
    best_score = (0, 0)
    for folder in folders:
        files = _files_in(folder, inside, ends)
        _take_from_folders_of_archives(files, names_of_split - {folder.name})
        num_named = len(inside) - int(files.is_missing.sum())
        score = (num_named, _num_shared_parts(files, ends))
        if best is None or score > best_score:
            best = files
            best_score = score
        if not (best.is_missing.any() or best.is_foreign.any()):
            break
    assert best is not None
    return best


def _num_shared_parts(files: FoundFiles, ends: list[list[str]]) -> int:
    """The number of last parts that the paths of another machine and their files have in common, in
    total. The folder counts, so that all folders that lead to the same file are equal."""
    folder = os.path.abspath(files.folder)
    total = 0
    for i in np.flatnonzero(files.is_foreign).tolist():
        if not ends[i]:
            continue
        written = reversed(ends[i][0].split("/"))
        actual = reversed(f"{folder}/{files.names[i]}".split("/"))
        for part, other in zip(written, actual, strict=False):
            if part != other:
                break
            total += 1
    return total


def _take_same_names(files: FoundFiles) -> None:
    """Finds missing files whose stored names are in another normal form of Unicode, as on macOS, or
    without the escapes of a URL.

    Also sets `similar` to a file with nearly the same name as the first one that is still missing.
    """
    listing = Listing(files.folder)
    by_letters: dict[str, dict[str, str]] = {}  # folder -> composed name -> name as stored
    for i in np.flatnonzero(files.is_missing):
        parent, file = posixpath.split(files.names[i])
        if parent not in by_letters:
            names = listing.files(parent)
            by_letters[parent] = {composed(name): name for name in names}
        for spelling in (file, unquote(file)):
            actual = by_letters[parent].get(composed(spelling))
            if files.names[i] and actual:
                files.names[i] = posixpath.join(parent, actual)
                files.is_missing[i] = False
                files.is_foreign[i] = True
                break
    missing = [files.names[i] for i in np.flatnonzero(files.is_missing) if files.names[i]]
    if missing:
        files.similar = _similar(missing[0], listing)


def _similar(name: str, listing: Listing) -> str:
    """A file with this name in other case, with another suffix, or in another folder; empty if
    there is none."""
    parent, file = posixpath.split(name)
    for folder in dict.fromkeys((parent, "")):
        if file in listing.files(folder):
            return posixpath.join(folder, file)
        stem, _ = posixpath.splitext(file)
        for candidate in sorted(listing.files(folder)):
            candidate_stem, suffix = posixpath.splitext(candidate)
            is_image = suffix.lower() in IMAGE_SUFFIXES
            spellings = (stem.strip().casefold(), file.strip().casefold())
            if is_image and candidate_stem.casefold() in spellings:
                return posixpath.join(folder, candidate)
    return ""


def _files_in(folder: Path, inside: list[str], ends: list[list[str]]) -> FoundFiles:
    """The files in a folder, by their paths `inside` it, or by one of the `ends` of their paths."""
    listing = Listing(folder)
    names = []
    from_ends = []
    for path, ends_of_text in zip(inside, ends, strict=True):
        if path and path in listing:  # takes precedence over all interpretations of the name
            ends_of_text = []
        name = "" if ends_of_text else path
        for end in ends_of_text:
            if end in listing:
                name = end
                break
        names.append(name)
        from_ends.append(bool(ends_of_text))
    is_missing = np.array([name not in listing for name in names], bool)
    _take_from_archives(folder, names, is_missing)
    is_foreign = np.array(from_ends, bool) & ~is_missing
    return FoundFiles(folder, names, is_foreign, is_missing)


def _take_from_archives(folder: Path, names: list[str], is_missing: np.ndarray) -> None:
    """Finds missing files of a folder in its archives. A file that is in several archives stays
    missing, because it is ambiguous."""
    missing = np.flatnonzero(is_missing)
    archives = archives_in(folder) if len(missing) else []
    if not archives:
        return
    missing_names = np.array([os.fsencode(names[i]) for i in missing], "S")
    archive_of = np.full(len(missing_names), -1)  # index of the archive; -1 = none, -2 = several
    for number, archive in enumerate(archives):
        rows = open_archive(archive).rows
        is_there = np.isin(missing_names, rows["name"])
        archive_of[is_there] = np.where(archive_of[is_there] == -1, number, -2)
    for i, number in zip(missing.tolist(), archive_of.tolist(), strict=True):
        if number >= 0:
            names[i] = f"{archives[number].name}/{names[i]}"
            is_missing[i] = False


def _take_from_folders_of_archives(files: FoundFiles, names_of_split: set[str]) -> None:
    """Finds files that are still missing in folders inside the archives, which
    `tar cf train.tar train` creates.

    Archives and folders that are named after the split come first, since another split may have
    images with the same names. Files that are in several folders stay missing.
    """
    alike = "|".join(map(re.escape, names_of_split))
    of_split = re.compile(rf"(^|/)({alike})([^a-z/][^/]*)?/", re.IGNORECASE)
    wanted = {files.names[i] for i in np.flatnonzero(files.is_missing)}
    paths_of: dict[str, list[str]] = {}
    archives = archives_in(files.folder) if wanted else []
    for archive in archives:
        for path in open_archive(archive).names():
            for end in inner_ends(path):
                if end in wanted:
                    paths_of.setdefault(end, []).append(f"{archive.name}/{path}")
    paths_in_split: dict[str, list[str]] = {}
    for name, paths in paths_of.items():
        paths_in_split[name] = [path for path in paths if of_split.search(path)]
    if any(paths_in_split.values()):
        paths_of = paths_in_split
    for i in np.flatnonzero(files.is_missing):
        paths = paths_of.get(files.names[i], [])
        if len(paths) == 1:
            files.names[i] = paths[0]
            files.is_missing[i] = False
            files.is_foreign[i] = True


def _ends(text: Any, folders: list[Path]) -> list[str]:
    """The paths inside a folder that a path leading out of it may mean; empty for other paths, and
    for a path to an existing file."""
    if not isinstance(text, str) or "\0" in text:
        return []
    ends = foreign_ends(text)
    forward = text.replace("\\", "/")
    if not ends:
        return []
    for folder in folders:
        location = posixpath.normpath(posixpath.join(os.path.abspath(folder), forward))
        if os.path.lexists(location) and not _is_below(location, folders):
            return []
    return ends


def _is_below(location: str, folders: list[Path]) -> bool:
    return any(location.startswith(f"{os.path.abspath(folder)}/") for folder in folders)


def foreign_ends(text: str) -> list[str]:
    """The ends of a path that leads out of its folder, longest first; empty for other paths."""
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


def listed_stem(line: str, listing: Listing) -> str:
    """The path without suffix that a line in a list of Pascal VOC means; empty if it leads out of
    the folder. `listing` is that of the folder of XML files.

    Some tools quote names with spaces, or write the file name of the image or its path. In lists of
    a class, such as `cat_train.txt`, each name is followed by a flag that states whether the image
    shows an object of the class.
    """
    words = line.split()
    if len(words) == 2 and words[1] in _FLAGS and f"{line}{_XML}" not in listing:
        line = words[0]
    name = line if f"{line}{_XML}" in listing else _unquoted(line)
    inside = path_inside(name)
    below = re.sub("^(JPEGImages|Annotations)/", "", inside)
    for end in [inside, below, *foreign_ends(name)]:
        stem, suffix = posixpath.splitext(end)
        is_file_name = suffix.lower() in (*IMAGE_SUFFIXES, _XML)
        for candidate in (end, stem if is_file_name else end):
            spelled = listing.spelled(f"{candidate}{_XML}") if candidate else ""
            if spelled:
                return spelled.removesuffix(_XML)
    return inside


def is_foreign(line: str) -> bool:
    """Whether a line of a list is a path that leads out of its folder."""
    return bool(foreign_ends(_unquoted(line)))


def _unquoted(line: str) -> str:
    if len(line) > 2 and line[0] in _QUOTES and line[-1] == line[0]:
        return line[1:-1]
    return line
