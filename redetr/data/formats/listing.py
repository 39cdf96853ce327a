"""Lists the contents of a folder, with all files that are skipped, and finds images that are listed
twice."""

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path

import numpy as np

from redetr.data.annotations import Annotations, Split, image_reference
from redetr.data.archives import SUFFIX as ARCHIVE
from redetr.data.archives import names_below
from redetr.data.drawn import is_drawn
from redetr.data.faults import MOST_ITEMS, Fault, Severity, listed
from redetr.data.images import ARRAY, IMAGE_SUFFIXES, cached_copies
from redetr.files import holds_run, json_lines, open_file
from redetr.wording import counted

_RECORD = ("predictions", ".jsonl")  # prefix and suffix of records of `redetr predict`
_DRAWN = (".png", ".jpg")  # suffixes of the images that it writes

# The folders of splits that several formats look for; COCO's has more, see `coco_places`.
USUAL_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid"),
    "test": ("test",),
}

# Files that are often next to images, and are skipped without a report.
_TEXTS = (".csv", ".htm", ".html", ".json", ".jsonl", ".log", ".md", ".rst", ".tsv", ".txt", ".xml")
_DOCUMENTS = (".doc", ".docx", ".pdf", ".url", ".xls", ".xlsx")
_SETTINGS = (".cfg", ".conf", ".data", ".ini", ".labels", ".names", ".toml", ".yaml", ".yml")
_PROGRAMS = (".ipynb", ".js", ".py", ".sh")
_ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst")
_STORED = (".bin", ".cache", ".db", ".index", ".lock")
_WEIGHTS = (".onnx", ".pkl", ".pt", ".pth", ".safetensors")
_NO_IMAGES = {*_TEXTS, *_DOCUMENTS, *_SETTINGS, *_PROGRAMS, *_ARCHIVES, *_STORED, *_WEIGHTS}
# Files of systems and tools, as are all files that begin with a dot.
_SYSTEM_NAMES = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
    + ("__pycache__", "node_modules", "site-packages")
)
_ANNOTATION_SUFFIXES = (".txt", ".xml", ".json")
# Images that other commands write, by a file that identifies their folder.
_OUTPUTS = {
    "index.html": {"sheet.png", "augmented.png"},  # check --report
    "demo": {"curves.png", "predictions.png"},  # demo
}
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
_DEVICES = ("/dev", "/proc", "/run", "/sys")  # no user files, and some have no end
MOST_OTHERS = 200_000  # files below a folder that are not of a requested type
_OTHERS_PER_FILE = 10
_MOST_ENDINGS = 6  # in a message


@dataclass
class Contents:
    """The files below a folder, as paths relative to it with forward slashes, sorted as bytes."""

    root: Path
    files: list[str] = field(default_factory=list)  # of the requested types
    others: list[str] = field(default_factory=list)  # of other types, which may be images
    system: list[str] = field(default_factory=list)  # of the requested types, but hidden
    links: list[str] = field(default_factory=list)  # to folders, which are not followed
    closed: list[str] = field(default_factory=list)  # folders that cannot be listed
    outputs: list[str] = field(default_factory=list)  # images that redetr wrote
    caches: list[str] = field(default_factory=list)  # arrays that Ultralytics wrote
    archives: list[str] = field(default_factory=list)  # of tar, which only some callers read
    namesakes: list["Namesakes"] = field(default_factory=list)  # of each folder and ending
    is_whole: bool = True  # False: the search ended early, as there are far too many other files

    def lists(self) -> tuple[list[str], ...]:
        """Each of the lists."""
        lists = (self.files, self.others, self.system, self.links, self.closed)
        return *lists, self.outputs, self.caches, self.archives


@dataclass(frozen=True)
class Namesakes:
    """Files that lie beside one asked for and are called as it is, like the annotations of an
    image."""

    paths: list[str]  # the first ones
    count: int


def contents_of(
    root: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, is_wide: bool = True
) -> Contents:
    """The contents of the folder, at any depth.

    The requested files have one of the `suffixes`, given in lower case, in lower or upper case.
    Unless `is_wide`, the search ends early if there are far more files of other types, as below `/`
    or a home folder.
    """
    contents = Contents(root)
    num_files = 0

    def on_error(error: OSError) -> None:
        contents.closed.append(os.path.relpath(error.filename, root))

    for parent, folders, files in os.walk(root, onerror=on_error):
        if parent != os.fspath(root) and holds_run(files):
            folders.clear()
            continue
        relative = os.path.relpath(parent, root).replace(os.sep, "/")
        below = "" if relative == "." else f"{relative}/"
        folders[:] = _followed(parent, below, folders, contents, suffixes)
        num_files += len(files)
        if not is_wide and num_files > MOST_OTHERS + _OTHERS_PER_FILE * len(contents.files):
            contents.is_whole = False
            break
        _add_files(contents, parent, below, files, suffixes)
        contents.namesakes.extend(_namesakes(below, files, suffixes))
    for paths in contents.lists():
        paths.sort(key=os.fsencode)
    return contents


def _add_files(
    contents: Contents, parent: str, below: str, files: list[str], suffixes: tuple[str, ...]
) -> None:
    """Adds the files of a folder to the `contents`."""
    outputs = output_images(parent, files)
    caches = cached_copies(files) if ARRAY in suffixes else set()
    for file in files:
        path = below + file
        ending = file.lower()
        if _is_system(file):
            if ending.endswith((*suffixes, *_ANNOTATION_SUFFIXES)):
                contents.system.append(path)
        elif file in outputs:
            contents.outputs.append(path)
        elif file in caches:
            contents.caches.append(path)
        elif ending.endswith(suffixes):
            contents.files.append(path)
        elif file.endswith(ARCHIVE):
            contents.archives.append(path)
        elif may_be_image(parent, file):
            contents.others.append(path)


def _namesakes(below: str, files: list[str], suffixes: tuple[str, ...]) -> list[Namesakes]:
    """The files of a folder that have a suffix of annotations and the stem of a file with one of
    the `suffixes`, for each suffix of annotations as it is written."""
    texts = [file for file in files if file.lower().endswith(_ANNOTATION_SUFFIXES)]
    if not texts:
        return []
    stems = set()
    for file in files:
        if file.lower().endswith(suffixes):
            stem, _ = posixpath.splitext(file)
            stems.add(stem)
    by_ending: dict[str, list[str]] = {}
    for text in texts:
        stem, ending = posixpath.splitext(text)
        if stem in stems and not _is_system(text):
            by_ending.setdefault(ending, []).append(text)
    namesakes = []
    for names in by_ending.values():
        paths = [below + name for name in nsmallest(MOST_ITEMS, names)]
        namesakes.append(Namesakes(paths, len(names)))
    return namesakes


def first_below(root: Path, suffixes: tuple[str, ...]) -> str:
    """The path of any file that `contents_of` would return; empty if there is none."""
    return next(files_below(root, suffixes), "")


def files_below(root: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """The paths of the files that `contents_of` would return, in any order."""
    for parent, folders, files in os.walk(root):
        folders[:] = [folder for folder in folders if not _is_system(folder)]
        for file in files:
            if _is_requested(file, suffixes):
                yield os.path.join(parent, file)


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The paths of the files of `files_below` that lie directly in the folder, sorted."""
    names = [name for name in names_below(folder) if _is_requested(name, suffixes)]
    return [os.path.join(folder, name) for name in sorted(names, key=os.fsencode)]


def _is_requested(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file has one of the suffixes, in lower or upper case, and is no system file."""
    return name.lower().endswith(suffixes) and not _is_system(name)


def _followed(
    parent: str, below: str, folders: list[str], contents: Contents, suffixes: tuple[str, ...]
) -> list[str]:
    """The folders in `parent` to search; the others are added to the `contents`."""
    followed = []
    for folder in sorted(folders):
        path = os.path.join(parent, folder)
        if os.path.islink(path):
            contents.links.append(below + folder)
        elif not _is_system(folder) and path not in _DEVICES:
            followed.append(folder)
        elif _holds(path, suffixes):
            contents.system.append(below + folder)
    return followed


def _holds(folder: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a folder that is not searched has files of the requested types."""
    try:
        return any(file.lower().endswith(suffixes) for file in os.listdir(folder))
    except OSError:
        return False


def output_images(folder: str, files: Iterable[str]) -> set[str]:
    """The images among the `files` of a folder that redetr wrote there, and that are not data."""
    names = set(files)
    outputs: set[str] = set()
    for mark, images in _OUTPUTS.items():
        if mark in names:
            outputs |= images
    records = []
    start, end = _RECORD
    for name in names:
        if name.startswith(start) and name.endswith(end):
            records.append(name)
    for record in records:
        outputs |= _recorded_images(Path(folder, record))
    if records:
        outputs |= _drawn_images(folder, names - outputs)
    return outputs & names


def _drawn_images(folder: str, names: Iterable[str]) -> set[str]:
    """Those of the files in an output folder of `redetr predict` that have the mark of redetr.

    A run that is interrupted has drawn images that its record does not name yet. Each file is
    opened for its header, so only output folders are searched.
    """
    images = set()
    for name in names:
        if name.endswith(_DRAWN) and is_drawn(Path(folder, name)):
            images.add(name)
    return images


def _recorded_images(record: Path) -> set[str]:
    """The annotated images, and the images of masks and segments, that a record of `redetr predict`
    names."""
    images = set()
    for line in json_lines(record):
        for key in ("picture", "mask_picture", "panoptic_picture"):
            name = line.get(key)
            if isinstance(name, str):
                images.add(name)
    return images


def _is_system(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM_NAMES


def may_be_image(folder: str, file: str) -> bool:
    """Whether a file with an unknown suffix may be an image. If it has no suffix, its first bytes
    decide."""
    _, suffix = posixpath.splitext(file)
    if suffix:
        return suffix.lower() not in _NO_IMAGES
    try:
        with open_file(os.path.join(folder, file)) as opened:
            return opened.read(8).startswith(_STARTS)
    except OSError:
        return False


def passed_over(contents: Contents) -> list[Fault]:
    """A fault for each reason for which files below the folder were skipped."""
    faults = _cut_short(contents)
    for severity, code, paths, text, remedy in _reasons(contents):
        if paths:
            items = listed(paths)
            root = contents.root
            faults.append(Fault(severity, code, root, items[0], text, remedy, len(paths), items))
    return faults


def _reasons(contents: Contents) -> list[tuple[Severity, str, list[str], str, str]]:
    """Severity, code, skipped files, text and remedy of each reason to skip files."""
    endings = Counter(posixpath.splitext(path)[1] or "no suffix" for path in contents.others)
    counts = ", ".join(f"{count} {end}" for end, count in endings.most_common(_MOST_ENDINGS))
    return [
        (
            "warning",
            "file-passed-over",
            contents.others,
            f"has a suffix that is not read, and is skipped (such files: {counts})",
            "convert it if it belongs to the data",
        ),
        (
            "warning",
            "link-passed-over",
            contents.links,
            "is a link to a folder, which is not followed",
            "put the folder itself there",
        ),
        (
            "warning",
            "folder-closed",
            contents.closed,
            "cannot be listed, and is skipped",
            "give read permission",
        ),
        (
            "note",
            "output-passed-over",
            contents.outputs,
            "is an image that redetr wrote, and is skipped",
            "write results into another folder",
        ),
        (
            "note",
            "cache-passed-over",
            contents.caches,
            "is a cache of Ultralytics (cache=disk) with the pixels of an image, and is skipped",
            "nothing to do; give it another name if it is an image of its own",
        ),
        (
            "note",
            "system-file",
            contents.system,
            "is hidden or a system file, and is skipped",
            "delete it",
        ),
    ]


def _cut_short(contents: Contents) -> list[Fault]:
    """A warning if the folder was only partly searched."""
    if contents.is_whole:
        return []
    text = f"holds more than {MOST_OTHERS:,} files of other types: it was only partly searched"
    remedy = "move the data to a separate folder"
    return [Fault("warning", "folder-wide", contents.root, "", text, remedy)]


def repeats(names: Iterable[str]) -> list[bool]:
    """For each name, whether it occurs earlier."""
    seen: set[str] = set()
    is_repeated = []
    for name in names:
        is_repeated.append(name in seen)
        seen.add(name)
    return is_repeated


def listed_twice(annotations: Annotations) -> list[Fault]:
    """An error if one image file has several entries with different objects, as from several
    annotators; a warning if the objects are the same."""
    names = annotations.names
    repeated = np.flatnonzero(names[1:] == names[:-1]) + 1  # images are sorted by name
    if not len(repeated):
        return []
    differing = [i for i in repeated.tolist() if not _same_objects(annotations, i - 1, i)]
    severity: Severity = "error" if differing else "warning"
    i = differing[0] if differing else int(repeated[0])
    num_files = len(np.unique(names))
    other = annotations.ids[i - 1]
    entries = counted(len(names), "entry", "entries")
    text = f"is the same file as image {other} ({entries} for {counted(num_files, 'file')})"
    if differing:
        text += ", and each entry lacks objects of the other"
    where = image_reference(annotations, i)
    remedy = "merge them into one entry with all objects"
    return [
        Fault(
            severity,
            "image-listed-twice",
            annotations.source,
            where,
            text,
            remedy,
            len(repeated),
            listed(image_reference(annotations, k) for k in repeated.tolist()),
        )
    ]


def _same_objects(annotations: Annotations, first: int, second: int) -> bool:
    """Whether two images have the same boxes of the same classes, in any order."""
    rows = []
    for image in (first, second):
        objects = annotations.objects_of(image)
        labels = annotations.labels[objects, None]
        table = np.concatenate([annotations.boxes[objects], labels], axis=1)  # [T, 5]
        rows.append(sorted(table.tolist()))
    return rows[0] == rows[1]
