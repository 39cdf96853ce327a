"""Checks relative paths in files from elsewhere."""

import os
import posixpath
import re
from typing import Any


def path_inside(name: Any) -> str:
    """`name` as a path below a folder or in an archive, with forward slashes, and without `.` and
    `..`. Empty if `name` is not such a path, or if it leads out of the folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        return ""
    path = posixpath.normpath(name.replace("\\", "/"))
    leads_out = path == ".." or path.startswith("../") or is_absolute(path)
    if path == "." or leads_out:
        return ""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair: no file can have that name
        return ""
    return path


def is_absolute(path: str) -> bool:
    """Whether a path begins at the root, or at a drive of Windows."""
    return path.startswith("/") or re.match("[A-Za-z]:", path) is not None
