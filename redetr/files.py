"""Files written whole or not at all."""

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Container, Iterator
from io import BufferedReader
from pathlib import Path, PurePath
from typing import Any

from redetr.errors import InputError

UNFINISHED = ".unfinished-"
RUN_FILES = ("run.lock", "config.json", "metrics.jsonl")  # by which `holds_run` knows
# Of files that are sources of data or weights; no name on a hub has them.
_ENDINGS = (".pt", ".pth", ".safetensors", ".json", ".yaml", ".yml")
# Two characters at least: one is a drive of Windows.
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")


def user_path(text: str | os.PathLike) -> Path:
    """The path that a user gave, with `~` for the home folder; unchanged if no user has it."""
    return Path(os.path.expanduser(text))


def scheme_of(source: str | os.PathLike) -> str:
    """The scheme of a URL, such as `https`; empty for a path."""
    match = _SCHEME.match(os.fspath(source))
    return match[1].lower() if match else ""


def require_no_url(source: str | os.PathLike, remedy: str) -> None:
    """Raises InputError for a URL, which the caller does not read; `remedy` is for the schemes
    other than `file`."""
    scheme = scheme_of(source)
    if not scheme or os.path.exists(source):
        return
    if scheme == "file":
        remedy = "give the path without file://"
    raise InputError(f"{scheme} URLs are not supported", where=source, remedy=remedy)


def without_folders(source: str) -> str:
    """What may be published of a source of data or weights: the last part of a path, and of `hf:`
    before a folder. Other names, such as those on a hub, are returned unchanged."""
    prefix = "hf:" if source.startswith("hf:") else ""
    name = source.removeprefix(prefix)
    is_path = name.startswith((".", "/", "~")) or name.endswith(_ENDINGS) or Path(name).exists()
    is_on_hub = name.count("/") == 1 or bool(prefix)
    if is_on_hub and not is_path:
        return source
    return prefix + PurePath(name).name


def require_folder(folder: Path) -> None:
    """Raises InputError if files cannot be written to `folder`, which need not exist yet: for
    commands that write their results after minutes of work."""
    present = folder.absolute()
    while not os.path.lexists(present):
        present = present.parent
    if not present.is_dir():
        problem = "is not a folder"
        remedy = "give another folder"
    elif not os.access(present, os.W_OK | os.X_OK):
        problem = "is a folder that you may not write to"
        remedy = "change its permissions, or give another folder"
    else:
        return
    if present != folder.absolute():
        problem = f"cannot be made, because {present} {problem}"
    raise InputError(problem, where=folder, remedy=remedy)


def open_file(path: str | os.PathLike) -> BufferedReader:
    """The file at `path`, opened for reading. Raises OSError if it cannot be opened or is not a
    regular file, because reading a pipe or a device may block or never end."""
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - closed by the caller
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "a pipe or a device, not a file", os.fspath(path))


def first_bytes(path: Path, size: int) -> bytes:
    """How the file at `path` begins; empty if it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read(size)
    except OSError:
        return b""


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file that holds one per line. Lines that are cut off, damaged or
    written by another program are skipped. Raises OSError if the file cannot be read."""
    with open_file(path) as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):  # RecursionError: nested too deeply
                continue
            if isinstance(entry, dict):
                yield entry


def _open_at_once(path: str, flags: int) -> int:
    """Opens a pipe, too, without waiting for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


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
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk: else they may be the old ones after a power failure."""
    if os.name == "nt":  # where folders cannot be opened
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of disks that cannot
            raise
    finally:
        os.close(opened)


def cache_folder(name: str) -> Path:
    """The folder `name` of redetr in the user's cache: `~/.cache`, or XDG_CACHE_HOME."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "redetr" / name


def hashed_name(identity: bytes) -> str:
    """A file name of 24 characters for `identity`, which may be too long or too odd for one."""
    return hashlib.blake2b(identity, digest_size=12).hexdigest()


def holds_run(names: Container[str]) -> bool:
    """Whether a folder with files of these names is that of a run, which is not data wherever it
    is."""
    lock, config, metrics = RUN_FILES
    return lock in names or (config in names and metrics in names)


def remove_unfinished(folder: Path, names: Container[str]) -> None:
    """Deletes the temporary files of the files `names` in `folder`, which a killed process left.

    No other process may be writing these files: the caller holds a lock of the folder. Temporary
    files of other names stay, because another command may be writing them, and so do folders.
    """
    for path in folder.glob(f"{UNFINISHED}*"):
        name = path.name.removeprefix(UNFINISHED)
        is_ours = name in names or _without_random_part(name) in names
        if is_ours and path.is_file():
            path.unlink(missing_ok=True)


def _without_random_part(name: str) -> str:
    """The name of the file that `write_whole` was about to write under a temporary name, which is
    given without its prefix."""
    path = PurePath(name)
    stem, _, _ = path.stem.rpartition("-")
    return stem + path.suffix


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON."""
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text))
