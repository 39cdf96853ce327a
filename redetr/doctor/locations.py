"""Where an object is in the files of its data set, as the readers of the formats say it."""

import os
import posixpath
import reprlib
from pathlib import Path

from redetr.data.annotations import Annotations, image_reference
from redetr.data.formats.darknet import data_root
from redetr.data.formats.labels import label_names


def location_of(annotations: Annotations, index: int) -> tuple[Path, str]:
    """The file of an object, and its part in the file, such as "line 3". If an image has no
    annotation file, or has one with another name, the source and the image."""
    a = annotations
    image = int(a.image_of()[index])
    where = f"{a.object_kind} {a.object_ids[index]}"
    name = os.fsdecode(a.names[image])
    file = None
    if a.object_kind == "line":
        file = _label_file(a, name)
    elif a.object_kind in ("object", "shape"):
        file = _file_beside(a, name)
    if file is None:
        return a.source, f"{where} in {image_reference(a, image)}"
    if a.object_kind != "line":
        class_name = a.class_names[a.labels[index]]
        where += f" ({reprlib.repr(class_name)})"
    return file, where


def _label_file(a: Annotations, name: str) -> Path:
    root = data_root(a.source)
    below = os.path.relpath(a.folder, root)
    image = name if below == "." else posixpath.join(below, name)
    (label,) = label_names(root, [image])
    return root / label


def _file_beside(a: Annotations, name: str) -> Path | None:
    """The XML or JSON file with the name of the image; None if there is none, as it may be named
    otherwise."""
    suffix = {"object": ".xml", "shape": ".json"}[a.object_kind]
    stem, _ = posixpath.splitext(name)
    candidates = [a.source / f"{stem}{suffix}", a.folder / f"{stem}{suffix}"]
    candidates.append(a.source / f"{posixpath.basename(stem)}{suffix}")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    return None
