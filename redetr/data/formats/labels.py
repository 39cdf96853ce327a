"""Matches images and label files in YOLO format, and reports label files that belong to no
image."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from redetr.data.faults import Fault, listed
from redetr.data.formats.listing import contents_of
from redetr.data.formats.paths import Listing
from redetr.data.images import IMAGE_SUFFIXES
from redetr.files import open_file

LABEL_SUFFIX = ".txt"
_MOST_COMPARED = 300  # label files without an image that are compared with the names of images
_SEPARATED = "(?:^|[^0-9a-z]){}(?:$|[^0-9a-z])"


def label_name(image: str) -> str:
    """The path of an image's label file, in which the last folder `images` is replaced by `labels`.
    Both paths are relative to the data folder."""
    path, _ = posixpath.splitext(image)
    start, folder, end = f"/{path}".rpartition("/images/")
    if not folder:
        return path + LABEL_SUFFIX
    return f"{start}/labels/{end}{LABEL_SUFFIX}"[1:]


def label_names(root: Path, images: Iterable[str]) -> list[str]:
    """The path of the label file of each image, relative to the data folder `root`. It is that of
    `label_name`, or the same name in another normal form of Unicode, if that is stored."""
    listing = Listing(root)
    labels = []
    for image in images:
        label = label_name(image)
        spelled = "" if label.isascii() else listing.spelled(label)
        labels.append(spelled or label)
    return labels


def label_faults(root: Path, below: str, images: list[str], labels: list[str]) -> list[Fault]:
    """The faults of label files that belong to several images, or to none.

    `images` and their `labels` are relative to the data folder `root`. They are all images in its
    folder `below`, or, if that is ".", the images in a list.
    """
    listing = Listing(root)
    faults = _shared(root, images, labels, listing)
    unclaimed = _unclaimed(root, below, images, labels, listing)
    if not unclaimed:
        return faults
    unlabelled = [
        image for image, label in zip(images, labels, strict=True) if label not in listing
    ]
    meant: list[tuple[str, str]] = []  # label files, each with an image to which it may belong
    others = unclaimed[_MOST_COMPARED:]
    for label in unclaimed[:_MOST_COMPARED]:
        image = _image_meant(label, unlabelled)
        if image:
            meant.append((label, image))
        else:
            others.append(label)
    if meant:
        faults.append(_of_another_name(root, meant))
    if others:
        folders = {posixpath.dirname(image) for image in images}
        faults.append(_of_no_image(root, others, folders, listing))
    return faults


def label_elsewhere(root: Path, label: str) -> str:
    """A label file of this name in another folder, at most three levels deep, relative to the data
    folder; empty if there is none."""
    name = posixpath.basename(label)
    for pattern in ("*/", "*/*/", "*/*/*/"):
        for folder in sorted(root.glob(pattern)):
            if _holds_labels(folder / name):
                return (folder / name).relative_to(root).as_posix()
    return ""


def _shared(root: Path, images: list[str], labels: list[str], listing: Listing) -> list[Fault]:
    """A warning if images share a label file."""
    first_with: dict[str, str] = {}
    pairs = []
    for image, label in zip(images, labels, strict=True):
        first = first_with.setdefault(label, image)
        if first != image and label in listing:
            pairs.append((label, first, image))
    if not pairs:
        return []
    label, first, image = pairs[0]
    text = f"{first} and {image} share this file: both have its objects"
    remedy = "give each image its own name and label file"
    items = listed(str(root / label) for label, _, _ in pairs)
    count = len(pairs)
    return [Fault("warning", "annotation-shared", root / label, "", text, remedy, count, items)]


def _unclaimed(
    root: Path, below: str, images: list[str], labels: list[str], listing: Listing
) -> list[str]:
    """The label files that belong to no image, in all folders of label files, sorted."""
    claimed = set(labels)
    image_folders = {posixpath.dirname(image) for image in images}
    if below == ".":  # a list need not name all images of a folder
        for folder in image_folders:
            for file in listing.files(folder):
                if file.lower().endswith(IMAGE_SUFFIXES):
                    claimed.add(label_name(posixpath.join(folder, file)))
        folders = {posixpath.dirname(label) for label in claimed}
        files: set[str] = set()
        for folder in folders:
            files.update(posixpath.join(folder, file) for file in listing.files(folder))
    else:
        folder = posixpath.dirname(label_name(f"{below}/x"))
        contents = contents_of(root / folder, (LABEL_SUFFIX,))
        files = {posixpath.join(folder, file) for file in contents.files}
    unclaimed = []
    for file in sorted(files - claimed, key=os.fsencode):
        is_text = file.lower().endswith(LABEL_SUFFIX)
        is_hidden = posixpath.basename(file).startswith(".")
        if is_text and not is_hidden and _holds_labels(root / file):
            unclaimed.append(file)
    return unclaimed


def _holds_labels(file: Path) -> bool:
    """Whether the first line is that of a label file, rather than a list of classes or a note."""
    try:
        with open_file(file) as lines:
            written = (line for line in lines if line.strip())
            words = next(written, b"").split()
        for word in words:
            float(word)
    except (OSError, ValueError):
        return False
    return len(words) > 4


def _of_another_name(root: Path, meant: list[tuple[str, str]]) -> Fault:
    """An error for label files that nearly match images, because these images would count as
    empty."""
    label, image = meant[0]
    text = f"belongs to no image; does it belong to {image}, which has no label file?"
    expected_name = posixpath.basename(label_name(image))
    remedy = f"call it {expected_name}, or delete it"
    items = listed(str(root / unclaimed) for unclaimed, _ in meant)
    return Fault("error", "label-unclaimed", root / label, "", text, remedy, len(meant), items)


def _of_no_image(root: Path, labels: list[str], folders: set[str], listing: Listing) -> Fault:
    """A warning for label files without an image; `folders` are the folders of images."""
    label = labels[0]
    text = "belongs to no image"
    remedy = "add its image, or delete it"
    for folder in folders:
        for file in listing.files(folder):
            path = posixpath.join(folder, file)
            if path != label and label_name(path) == label:
                text = f"is left out, because {path} is not read as an image"
                remedy = "convert it to JPEG or PNG"
    items = listed(str(root / label) for label in labels)
    count = len(labels)
    return Fault("warning", "label-unclaimed", root / label, "", text, remedy, count, items)


def _image_meant(label: str, unlabelled: Iterable[str]) -> str:
    """The only image to which the label file seems to belong; empty if there are none or
    several."""
    stem, _ = posixpath.splitext(posixpath.basename(label))
    wanted = _plain(stem)
    parts = re.compile(_SEPARATED.format(re.escape(wanted)))
    similar = (image for image in unlabelled if _is_similar(wanted, parts, image))
    candidates = list(islice(similar, 2))
    if len(candidates) != 1:
        return ""
    return candidates[0]


def _is_similar(wanted: str, parts: re.Pattern[str], image: str) -> bool:
    """Whether the names of a label file and an image differ only in a part, the suffix, or the
    spelling of letters."""
    name = _plain(posixpath.basename(image))
    stem, _ = posixpath.splitext(name)
    letters = _letters(wanted)
    if not letters:
        return False
    is_same = letters in (_letters(stem), _letters(name))
    return is_same or parts.search(stem) is not None


def _letters(name: str) -> str:
    """The letters and digits of a name."""
    return re.sub(r"[^\w]|_", "", name)


def _plain(name: str) -> str:
    """The name in composed lower-case letters, without the escapes of a URL."""
    return unicodedata.normalize("NFC", unquote(name)).lower()
