"""Which images a run was trained on, so that it can be repeated and is not resumed on others."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redetr.data.dataset import DetectionDataset
from redetr.data.forms.folder import FolderDataset
from redetr.data.headers import read_headers
from redetr.distributed import Dist
from redetr.errors import InputError


def inventory(data: DetectionDataset, dist: Dist) -> dict[str, Any]:
    """Which images a data set has, with the hash of each, so that a run can be repeated.
    Communicates: each rank reads its share of the files, so none waits for another longer than for
    a share."""
    images: list[tuple[str, str]] = []
    if isinstance(data, FolderDataset):
        names = [os.fsdecode(name) for name in data.annotations.names][dist.rank :: dist.world_size]
        headers = read_headers(data.annotations.folder, names, content=True)
        images = [(name, header.content) for name, header in zip(names, headers, strict=True)]
    return {
        "name": data.name,
        "count": len(data),
        "classes": list(data.class_names),
        "images": dict(sorted(dist.gather(images))),
    }


def require_unchanged(file: Path, inventories: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises InputError if `file`, the inventories of a run that goes on, has other images or other
    content of one."""
    before = json.loads(file.read_text()) if file.exists() else inventories
    for split in inventories:
        odd = set(before[split]["images"].items()) ^ set(inventories[split]["images"].items())
        if odd:
            raise InputError(
                f"{file}: {min(odd)[0]} of {split} is not what it was when the run began; put the "
                "data back, or give another --output"
            )
