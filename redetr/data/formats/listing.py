"""The contents of a folder: files of the requested types, and everything that is skipped; and
images that are listed twice."""

import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from redetr.data.annotations import Annotations, Fault, Severity
from redetr.data.images import IMAGE_SUFFIXES
from redetr.files import holds_run, open_file
from redetr.wording import counted

_RECORD = ("predictions", ".jsonl")  # how records of `redetr predict` begin and end

# Files that lie beside images and are none: nobody misses them.
_TEXTS = (".csv", ".htm", ".html", ".json", ".jsonl", ".log", ".md", ".rst", ".tsv", ".txt", ".xml")
_DOCUMENTS = (".doc", ".docx", ".pdf", ".url", ".xls", ".xlsx")
_SETTINGS = (".cfg", ".conf", ".data", ".ini", ".names", ".toml", ".yaml", ".yml")
_PROGRAMS = (".ipynb", ".js", ".py", ".sh")
_ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst")
_STORED = (".bin", ".cache", ".db", ".index", ".lock")
_WEIGHTS = (".onnx", ".pkl", ".pt", ".pth", ".safetensors")
_NO_IMAGES = {*_TEXTS, *_DOCUMENTS, *_SETTINGS, *_PROGRAMS, *_ARCHIVES, *_STORED, *_WEIGHTS}
# What systems and tools leave, as everything that begins with a dot.
_SYSTEM_NAMES = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
    + ("__pycache__", "node_modules", "site-packages")
)
_ANNOTATION_SUFFIXES = (".txt", ".xml", ".json")
# The images that other commands write, beside a file by which their folders are known.
_OUTPUTS = {
    "index.html": {"sheet.png", "augmented.png"},  # check --report
    "demo": {"curves.png", "predictions.png"},  # demo
}
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
_DEVICES = ("/dev", "/proc", "/run", "/sys")  # no files of a user, some without end
MOST_OTHERS = 200_000  # files below a folder that are of no kind asked for
_OTHERS_PER_FILE = 10
_MOST_ENDINGS = 6  # in a message


@dataclass
class Contents:
    """The files below a folder, as paths relative to it with forward slashes, sorted as bytes."""

    root: Path
    files: list[str] = field(default_factory=list)  # of the kinds asked for
    others: list[str] = field(default_factory=list)  # of other kinds, which may be images
    system: list[str] = field(default_factory=list)  # like images or annotations, but hidden
    links: list[str] = field(default_factory=list)  # to folders, which are not followed
    closed: list[str] = field(default_factory=list)  # folders that cannot be listed
    outputs: list[str] = field(default_factory=list)  # images that redetr wrote
    # of each folder and ending, how many such files lie beside one asked for and are called as it
    # is, like the annotations of an image; by the path of the first
    namesakes: dict[str, int] = field(default_factory=dict)
    is_whole: bool = True  # False: the walk ended, as far too many files are of no kind asked for

    def lists(self) -> tuple[list[str], ...]:
        """Each of the lists."""
        return self.files, self.others, self.system, self.links, self.closed, self.outputs


def contents_of(
    root: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, is_wide: bool = True
) -> Contents:
    """What is below the folder, at any depth. The files asked for end in one of the `suffixes`,
    which are in lower case; those of the files may be in upper case. Unless the walk `is_wide`, it
    ends where there are far more files of other kinds, as below `/` or a home folder."""
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
        outputs = output_images(parent, files)
        for file in files:
            path = below + file
            ending = file.lower()
            if _is_system(file):
                if ending.endswith((*suffixes, *_ANNOTATION_SUFFIXES)):
                    contents.system.append(path)
            elif file in outputs:
                contents.outputs.append(path)
            elif ending.endswith(suffixes):
                contents.files.append(path)
            elif may_be_image(parent, file):
                contents.others.append(path)
        contents.namesakes.update(_namesakes(below, files, suffixes))
    for paths in contents.lists():
        paths.sort(key=os.fsencode)
    return contents


def _namesakes(below: str, files: list[str], suffixes: tuple[str, ...]) -> dict[str, int]:
    """The files of a folder that end as annotations do and are called as one of the `suffixes` is:
    of each ending the path of the first, and how many there are."""
    texts = [file for file in files if file.lower().endswith(_ANNOTATION_SUFFIXES)]
    if not texts:
        return {}
    stems = set()
    for file in files:
        if file.lower().endswith(suffixes):
            stem, _ = posixpath.splitext(file)
            stems.add(stem)
    by_ending: dict[str, list[str]] = {}
    for text in texts:
        stem, ending = posixpath.splitext(text)
        if stem in stems and not _is_system(text):
            by_ending.setdefault(ending.lower(), []).append(text)
    return {below + min(names): len(names) for names in by_ending.values()}


def first_below(root: Path, suffixes: tuple[str, ...]) -> str:
    """The path of some file that `contents_of` would return; empty if there is none."""
    for parent, folders, files in os.walk(root):
        folders[:] = [folder for folder in folders if not _is_system(folder)]
        for file in files:
            if file.lower().endswith(suffixes) and not _is_system(file):
                return os.path.join(parent, file)
    return ""


def _followed(
    parent: str, below: str, folders: list[str], contents: Contents, suffixes: tuple[str, ...]
) -> list[str]:
    """The folders in `parent` to look into; the others are added to the `contents`."""
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
    """Whether a folder that is not looked into holds files of the kinds asked for."""
    try:
        return any(file.lower().endswith(suffixes) for file in os.listdir(folder))
    except OSError:
        return False


def output_images(folder: str, files: Iterable[str]) -> set[str]:
    """Which of the `files` in a folder are images that redetr wrote there, which are not data."""
    names = set(files)
    outputs: set[str] = set()
    for mark, images in _OUTPUTS.items():
        if mark in names:
            outputs |= images
    start, end = _RECORD
    for name in names:
        if name.startswith(start) and name.endswith(end):
            outputs |= _recorded_images(os.path.join(folder, name))
    return outputs & names


def _recorded_images(record: str) -> set[str]:
    """The annotated images, and those of masks and segments, that a record of `redetr predict`
    names."""
    images = set()
    with open_file(record) as rows:
        for row in rows:
            try:
                line = json.loads(row)
            except (ValueError, RecursionError):  # cut short, or of another program
                continue
            if not isinstance(line, dict):
                continue
            for key in ("picture", "mask_picture", "panoptic_picture"):
                name = line.get(key)
                if isinstance(name, str):
                    images.add(name)
    return images


def _is_system(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM_NAMES


def may_be_image(folder: str, file: str) -> bool:
    """Whether a file of no known ending may be an image; if it has none, its first bytes say so."""
    _, suffix = posixpath.splitext(file)
    if suffix:
        return suffix.lower() not in _NO_IMAGES
    try:
        with open_file(os.path.join(folder, file)) as opened:
            return opened.read(8).startswith(_STARTS)
    except OSError:
        return False


def passed_over(contents: Contents) -> list[Fault]:
    """A line for each way in which files below the folder were passed over."""
    endings = Counter(posixpath.splitext(path)[1] or "no suffix" for path in contents.others)
    counts = ", ".join(f"{count} {end}" for end, count in endings.most_common(_MOST_ENDINGS))
    ways: list[tuple[Severity, str, list[str], str, str]] = [
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
            "system-file",
            contents.system,
            "is hidden or a system file, and is skipped",
            "delete it",
        ),
    ]
    faults = _cut_short(contents)
    for severity, code, paths, text, remedy in ways:
        if paths:
            example = paths[0]
            faults.append(Fault(severity, code, contents.root, example, text, remedy, len(paths)))
    return faults


def _cut_short(contents: Contents) -> list[Fault]:
    """A warning if the folder was only partly searched."""
    if contents.is_whole:
        return []
    text = f"holds more than {MOST_OTHERS:,} files of other types: it was only partly searched"
    remedy = "move the data to a separate folder"
    return [Fault("warning", "folder-wide", contents.root, "", text, remedy)]


def listed_twice(annotations: Annotations) -> list[Fault]:
    """An error if one image file has several entries with different objects, as of several
    annotators; a warning if they are the same."""
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
    where = f"image {annotations.ids[i]} ({os.fsdecode(names[i])!r})"
    remedy = "merge them into one entry with all objects"
    source = annotations.source
    return [Fault(severity, "image-listed-twice", source, where, text, remedy, len(repeated))]


def _same_objects(annotations: Annotations, first: int, second: int) -> bool:
    """Whether two images have the same boxes of the same classes, in any order."""
    rows = []
    for image in (first, second):
        objects = annotations.objects_of(image)
        labels = annotations.labels[objects, None]
        table = np.concatenate([annotations.boxes[objects], labels], axis=1)  # [T, 5]
        rows.append(sorted(table.tolist()))
    return rows[0] == rows[1]
