"""Which sources an earlier `predict` has finished, however their paths are written now.

A record names sources as they were given. Lines of relative paths also state the `folder` in which
the command ran, seen from the output folder, so that both may be moved together.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from redetr.detector.record_lines import Line
from redetr.detector.records import deleted_images, ends, picture_of
from redetr.errors import InputError


def start_of(source: str, output: Path) -> dict[str, str]:
    """The `folder` of a line: where a relative path starts, seen from the output folder. Empty for
    other sources."""
    from redetr.detector.sources import path_of

    if os.path.isabs(source) or path_of(source) == source:  # the latter: no file
        return {}
    here = os.getcwd()
    try:
        return {"folder": os.path.relpath(here, os.path.realpath(output))}
    except ValueError:  # on another drive of Windows
        return {"folder": here}


def earlier_results(folder: Path, sources: Sequence[str]) -> dict[str, str | None]:
    """`records.finished`, with the names that the `sources` have now."""
    from redetr.detector.sources import path_of

    name_now = {path_of(source): source for source in sources}
    results: dict[str, str | None] = {}
    for line in ends(folder):
        recorded: str = line["image"]
        path = _recorded_path(line, folder)
        name = name_now.get(path, recorded)
        results[name] = picture_of(line)
    return results


def require_same_files(folder: Path, sources: Sequence[str]) -> None:
    """Raises InputError if the record calls another file by the name of a source, as after a run in
    another working directory: two images of one name cannot be told apart there."""
    from redetr.detector.sources import path_of

    names = set(sources)
    for line in ends(folder):
        name = line["image"]
        path = _recorded_path(line, folder)
        if name in names and path != path_of(name):
            raise InputError(
                f"{name} is {path} there, which is another file than the source of this name",
                where=folder,
                remedy="run the command in the same folder as before, or give absolute paths",
            )


def _recorded_path(line: Line, output: Path) -> str:
    """The absolute path of the source of a line; URLs and cameras as they are.

    A relative path starts in the current folder if earlier versions wrote the line, or if no file
    is where the line says: images may have been moved.
    """
    from redetr.data.archives import split_path
    from redetr.detector.sources import path_of

    path_from_here = path_of(line["image"])
    if "folder" not in line:
        return path_from_here
    start = os.path.join(os.path.realpath(output), line["folder"])
    path = os.path.abspath(os.path.join(start, line["image"]))
    exists = os.path.lexists(path) or split_path(path) is not None
    return path if exists else path_from_here


def require_kept(folder: Path, sources: Sequence[str], resume: bool) -> None:
    """Raises InputError if --overwrite, or --resume with `resume`, would delete a source."""
    flag = "--resume" if resume else "--overwrite"
    deleted = {_identity(folder / name) for name in deleted_images(folder, resume)} - {None}
    for source in sources:
        if _identity(source) in deleted:
            text = f"is an annotated image of {folder}, which {flag} deletes"
            raise InputError(text, where=source, remedy="give another --output")


def _identity(path: str | os.PathLike) -> tuple[int, int] | None:
    """What two paths of one file share, however they are written: with links, or on Windows and
    macOS in other capitals. None if there is no such file."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte
        return None
    return stat.st_dev, stat.st_ino
