"""Determines how much memory the control groups of Linux leave to this process: those of a
container, of systemd or of a batch system, in both versions."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_NO_LIMIT = 2**60  # version 1 writes a number near 2^63 for none


class _Files(NamedTuple):
    """The names of the files of a group in a version, and of the part of its memory that caches
    files and was not used recently, which the kernel can reclaim."""

    limits: tuple[str, ...]
    used: str
    reclaimable: str


_V1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")


def group_memory(root: Path = Path("/")) -> float:
    """The bytes that the limits on this process leave; infinite without a limit.

    A limit also applies to all groups inside a group, so all groups count, from that of the process
    up to the outermost. `root` is the root of the file system.
    """
    remaining = math.inf
    for folder, files in _groups(root):
        remaining = min(remaining, _remaining_in(folder, files))
    return remaining


def _groups(root: Path) -> Iterator[tuple[Path, _Files]]:
    """The folders of the groups of this process, innermost first."""
    process_groups = (root / "proc/self/cgroup").read_text().splitlines()
    for mount in (root / "proc/self/mountinfo").read_text().splitlines():
        options, _, kind = mount.partition(" - ")
        _, _, _, shown, mounted_at, *_ = options.split(" ")
        # The name in the middle may hold a space, as a drive of Windows in WSL.
        file_system, _, controllers = kind.split(" ", maxsplit=2)
        is_v2 = file_system == "cgroup2"
        if not is_v2 and (file_system != "cgroup" or "memory" not in controllers.split(",")):
            continue
        for group in process_groups:
            _, group_controllers, path = group.split(":", maxsplit=2)
            controller = "" if is_v2 else "memory"
            if controller in group_controllers.split(","):
                outermost = root / mounted_at.lstrip("/")
                for folder in _upwards(outermost, shown, path):
                    yield folder, _V2 if is_v2 else _V1


def _upwards(outermost: Path, shown: str, path: str) -> Iterator[Path]:
    """The folders from the group at `path` up to `outermost`, where the group `shown` is mounted: a
    container sees a part of the tree only."""
    inside = path.removeprefix(shown.rstrip("/")).strip("/")
    is_visible = path.startswith(shown) and ".." not in path
    folder = outermost / inside if is_visible else outermost
    while folder != outermost:
        yield folder
        folder = folder.parent
    yield outermost


def _remaining_in(folder: Path, files: _Files) -> float:
    """The bytes that the limit of one group leaves."""
    limit = math.inf
    for name in files.limits:
        file = folder / name
        text = file.read_text().strip() if file.exists() else "max"
        if text != "max" and int(text) < _NO_LIMIT:
            limit = min(limit, int(text))
    if limit == math.inf:
        return limit
    used = int((folder / files.used).read_text())
    for line in (folder / "memory.stat").read_text().splitlines():
        name, _, count = line.partition(" ")
        if name == files.reclaimable:
            used -= int(count)
    return limit - used
