"""Files written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished-"


def write_whole(path: Path, write: Callable[[Path], Any], previous: Path | None = None) -> None:
    """Calls `write` with a temporary name beside `path` (same ending), flushes to disk, and
    renames.

    Whatever happens in between, `path` is the old file or the new one, never half of it. With
    `previous`, the old file is kept under that name, and for an instant has only that name.
    """
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f"{UNFINISHED}{path.stem}-", suffix=path.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Deletes what `write_whole` left in `folder` when its process was killed."""
    for path in folder.glob(f"{UNFINISHED}*"):
        path.unlink()


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON."""
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text))
