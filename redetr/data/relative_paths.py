"""Paths below a folder or in an archive, as files of strangers state them."""

import os
import posixpath
import re
from typing import Any


def path_inside(name: Any) -> str:
    """The relative path with forward slashes and no detours; empty if it is none or leads
    elsewhere."""
    if not isinstance(name, str) or not name or "\0" in name:
        return ""
    forward = name.replace("\\", "/")
    path = posixpath.normpath(forward)
    if path in (".", "..") or path.startswith("../") or is_absolute(path):
        return ""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair: no file can have that name
        return ""
    return path


def is_absolute(path: str) -> bool:
    """Whether it begins at the root, or at a drive of Windows."""
    return path.startswith("/") or re.match("[A-Za-z]:", path) is not None
