"""Finds the images that a `data.yaml` names. They have to be in its folder: files elsewhere are
refused, and paths that do not exist are looked for by their ends, with a note."""

import os
import posixpath
import reprlib
from pathlib import Path
from typing import Any

from redetr.data.annotations import Split
from redetr.data.faults import Fault, Rows, Severity
from redetr.data.formats.darknet import data_root
from redetr.data.formats.paths import Finder, Resolved, read_lines
from redetr.errors import InputError

KEYS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid"),
    "test": ("test",),
}


def entries_of(file: Path, config: dict[str, Any], split: Split) -> list[str]:
    """The folders and lists of images of a split, as written in the file."""
    value: Any = []
    for key in KEYS[split]:
        if config.get(key):
            value = config[key]
            break
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        remedy = "write a folder of images, relative to this file"
        raise InputError(f"{split} is not a path", where=file, remedy=remedy)
    return entries


class ImagePaths:
    """The paths of the images that a `data.yaml` names, in its folder."""

    def __init__(self, file: Path, config: dict[str, Any], faults: list[Fault]):
        """Raises InputError if `path` in the file leads out of its folder."""
        self.file = file
        self.config = config
        self.faults = faults
        self.root = data_root(file)
        self.finder = Finder(self.root)
        self.base = self._find_base()  # entries are relative to this folder below the root

    def _find_base(self) -> str:
        stated = self.config.get("path")
        if not isinstance(stated, str):
            return ""
        base = self.finder.find(stated, origins=[os.getcwd()])
        if base.outside:
            raise InputError(
                f"path: {stated} is outside {self.root}, the folder of this file",
                where=self.file,
                remedy=f"move this file to {base.outside}, without path",
            )
        if not base.inside or base.is_guess:
            taken = self.root / base.inside
            names = (self.root.resolve().name, taken.name)
            if posixpath.basename(posixpath.normpath(stated.replace("\\", "/"))) not in names:
                text = f"path: {stated} does not exist; {taken} is used"
                self._report_guess("warning", text, "write the path of the data")
        return base.inside

    def of(self, split: Split) -> list[Resolved]:
        """The files and folders to which the entries of a split lead."""
        bases = (self.base, "")
        return [self.finder.find(entry, bases, ends=True) for entry in self.entries(split)]

    def entries(self, split: Split) -> list[str]:
        return entries_of(self.file, self.config, split)

    def require(self, split: Split) -> list[str]:
        """The paths of the entries of a split below the data folder. Raises InputError if one does
        not exist there."""
        locations = []
        for entry, resolved in zip(self.entries(split), self.of(split), strict=True):
            quoted = f"{split}: {reprlib.repr(entry)}"
            if resolved.outside:
                text = f"{quoted} is outside {self.root}, the folder of this file"
                remedy = "move this file up, or write a path relative to it"
                raise InputError(text, where=self.file, remedy=remedy)
            if not resolved.inside:
                text = f"{quoted} is not in {self.root}"
                remedy = "put it there, or write a path relative to this file"
                if split == "val":
                    remedy += "; or delete the line, and hold out images with --val-fraction 0.1"
                raise InputError(text, where=self.file, remedy=remedy)
            if resolved.is_guess and not entry.startswith(".."):
                text = f"{quoted} does not exist; {self.root / resolved.inside} is used"
                remedy = "write a path relative to this file"
                self._report_guess("note", text, remedy)
            locations.append(resolved.inside)
        return locations

    def listed(self, location: str) -> list[str]:
        """The images that a text file lists, one per line."""
        file = self.root / location
        bases = (posixpath.dirname(location), self.base, "")
        lines = read_lines(file)
        resolved = self._find_lines(lines, bases)
        if not any(target.inside for target in resolved):  # all paths may begin with another folder
            resolved = self._find_lines(lines, bases, ends=True)
        rows = Rows(len(lines), self.faults, lambda i: (file, f"line {i + 1}"))
        rows.fault(
            "path-outside",
            [target.outside != "" for target in resolved],
            lambda i: f"{reprlib.repr(lines[i])} is outside {self.root}",
            "move the image into it, or write a path inside",
        )
        rows.fault(
            "image-missing",
            [
                line != "" and not target.inside
                for line, target in zip(lines, resolved, strict=True)
            ],
            lambda i: f"{reprlib.repr(lines[i])} is not in {self.root}",
            "put it there, or delete the line",
        )
        rows.fault(
            "path-foreign",
            [target.is_guess for target in resolved],
            lambda i: f"{reprlib.repr(lines[i])} does not exist; {resolved[i].inside} is used",
            "write paths relative to the list",
            "note",
        )
        names: dict[str, None] = {}
        repeated = []
        for target in resolved:
            repeated.append(target.inside in names)
            if target.inside:
                names[target.inside] = None
        rows.fault(
            "line-twice",
            repeated,
            lambda i: f"{reprlib.repr(lines[i])} is listed twice, and read once",
            "delete the line",
            "note",
        )
        return list(names)

    def _find_lines(
        self, lines: list[str], bases: tuple[str, ...], ends: bool = False
    ) -> list[Resolved]:
        """The file that each line of a list means; nothing for an empty line, which would otherwise
        mean the folder itself."""
        resolved = []
        for line in lines:
            resolved.append(self.finder.find(line, bases, ends=ends) if line else Resolved())
        return resolved

    def _report_guess(self, severity: Severity, text: str, remedy: str) -> None:
        """Adds a fault for a path that does not exist, in place of which another one is used."""
        self.faults.append(Fault(severity, "path-foreign", self.file, "", text, remedy))
