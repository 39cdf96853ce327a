"""Which images a run was trained on, so that it can be repeated and is not resumed on others."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redetr.data.dataset import DetectionDataset
from redetr.data.formats.folder import FolderDataset
from redetr.data.headers import read_headers
from redetr.distributed import Dist
from redetr.errors import InputError


def inventory(data: DetectionDataset, dist: Dist) -> dict[str, Any]:
    """Which images a data set has, with the hash of each, so that a run can be repeated.
    Communicates: each rank reads its share of the files, so none waits for another longer than for
    a share."""
    contents: list[tuple[str, str]] = []
    if isinstance(data, FolderDataset):
        all_names = [os.fsdecode(name) for name in data.annotations.names]
        names = all_names[dist.rank :: dist.world_size]
        headers = read_headers(data.annotations.folder, names, content=True)
        for name, header in zip(names, headers, strict=True):
            contents.append((name, header.content))
    contents = sorted(dist.gather(contents))
    return {
        "name": data.name,
        "count": len(data),
        "classes": list(data.class_names),
        "images": dict(contents),
    }


def require_unchanged(file: Path, inventories: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises InputError if `file`, the inventories of the run that resumes, has other images or
    another content of one."""
    if not file.exists():
        return
    before = json.loads(file.read_text())
    for split, current in inventories.items():
        images_before = set(before[split]["images"].items())
        images_now = set(current["images"].items())
        changed = images_before ^ images_now
        if changed:
            name, _ = min(changed)
            raise InputError(
                f"{name} of {split} is not what it was when the run began",
                where=file,
                remedy="put the data back, or give another --output",
            )
