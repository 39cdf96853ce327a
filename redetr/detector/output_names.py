"""The names of annotated images and videos in the output folder."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from redetr.data.formats.paths import without_capitals
from redetr.detector.sources import is_camera, is_video
from redetr.detector.streams import is_address, is_rtsp

_LONGEST_STEM_BYTES = 200


def output_names(
    folder: Path,
    sources: Sequence[str],
    taken: Collection[str],
    image_suffix: str,
    kinds: Collection[str] = (),
    earlier: Mapping[str, str | None] | None = None,
) -> dict[str, Path]:
    """The file of the annotated image or video of each source.

    Names that collide get a number: equal names from several folders, names that are `taken`, and
    names of sources in the output folder, which are never overwritten. Names that differ only in
    capitals or in the form of an accent collide too: on Windows and macOS they are one file. Each
    name also leaves room for further images `beside` it, of these `kinds`. Sources that an
    `earlier` run finished keep their names, so that the others get those of a run without an
    interruption.
    """
    names: dict[str, Path] = {}
    known = {source: name for source, name in (earlier or {}).items() if name}
    used = {without_capitals(name) for name in taken}
    for name in known.values():
        used |= _claimed(name, kinds)
    for source in _sources_in(folder, sources):
        used.add(without_capitals(os.path.basename(source)))
    count: Counter[str] = Counter()
    for source in sources:
        if source in known:
            names[source] = folder / known[source]
            continue
        stem, suffix = _named_after(source, image_suffix)
        name = f"{stem}.{suffix}"
        while _claimed(name, kinds) & used:
            count[stem] += 1
            name = f"{stem}-{count[stem] + 1}.{suffix}"
        used |= _claimed(name, kinds)
        names[source] = folder / name
    return names


def _sources_in(folder: Path, sources: Sequence[str]) -> Iterator[str]:
    """The sources that are files in the output folder itself, however its path is written."""
    output = without_capitals(os.path.realpath(folder))
    is_output: dict[str, bool] = {}  # for each folder, because resolving its links takes time
    for source in sources:
        parent = os.path.dirname(source)
        if parent not in is_output:
            is_output[parent] = without_capitals(os.path.realpath(parent)) == output
        if is_output[parent]:
            yield source


def beside(picture: Path, kind: str) -> Path:
    """The file of a further image of a source, such as its masks, next to its annotated image."""
    return picture.with_suffix(f".{kind}.png")


def all_names(file_names: Mapping[str, Path], kinds: Collection[str]) -> set[str]:
    """The names of the annotated images and videos, and of further images of these `kinds`."""
    names: set[str] = set()
    for path in file_names.values():
        names |= _with_others(path.name, kinds)
    return names


def _with_others(name: str, kinds: Collection[str]) -> set[str]:
    return {name, *(beside(Path(name), kind).name for kind in kinds)}


def _claimed(name: str, kinds: Collection[str]) -> set[str]:
    """The names that an annotated image takes with its further images, without capitals."""
    return {without_capitals(taken) for taken in _with_others(name, kinds)}


def _named_after(source: str, image_suffix: str) -> tuple[str, str]:
    """Stem and suffix of the annotated image or video of a source."""
    suffix = "mp4" if is_video(source) else image_suffix
    if is_camera(source):
        return f"camera-{source}", suffix
    path = urlsplit(source).path if is_address(source) or is_rtsp(source) else source
    stem = re.sub(r"[^\w.-]", "_", Path(path).stem).strip(".")
    return _shortened(stem) or "image", suffix


def _shortened(stem: str) -> str:
    """The first characters of a stem: with numbers, suffixes and those of temporary files, its name
    must not exceed the 255 bytes that file systems allow."""
    encoded = os.fsencode(stem)[:_LONGEST_STEM_BYTES]
    return encoded.decode(errors="ignore")
