"""Archives on a server, of which parts are read when they are needed (range requests).

A data set at an address such as `https://host/shards` has a list of its files there,
`shards.json`: `{"files": ["annotations/instances_train.json", "train-00000.tar", ...]}`. Locally it
is a folder in the user's cache, with small files in full and a pointer in place of each archive:
its address, size and version. Whatever reads the archive there asks the server for the part.
"""

import errno
import hashlib
import http.client
import io
import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from filelock import FileLock

from redetr.data.relative_paths import path_inside
from redetr.data.tar_index import read_index, require_index, store_index, stored_index
from redetr.errors import InputError
from redetr.files import first_bytes, write_whole

LIST_FILE = "shards.json"
ARCHIVE = ".tar"
INDEX = ".index"  # behind the name of an archive: its index
_MARK = b"redetr: an archive on a server\n"
_SMALL = 2**16  # bytes that are asked for at least when an archive is listed
_TIMEOUT_S = 30.0  # for a connection, and for each piece that is read from it
_TRIES = 5
_PAUSE_S = 0.5  # before the second try; twice as long before each further one
_AT_ONCE = 16  # requests
_PASSING = (408, 429, 500, 502, 503, 504)  # status codes that may be another one in a moment


def is_address(source: str | Path) -> bool:
    return str(source).startswith(("http://", "https://"))


class _PassingError(Exception):
    """A request failed that may succeed in a moment."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, in the state that it was in when the server was asked."""

    address: str
    size: int  # bytes
    version: str  # the server's ETag, or the time of change; empty if it states neither

    @classmethod
    def at(cls, address: str) -> "RemoteFile":
        """Asks the server. Raises InputError if it does not answer, or does not send parts."""
        size, version, _ = _request(address, 0, 1)
        return cls(address, size, version)

    @classmethod
    def in_pointer(cls, file: str | os.PathLike) -> "RemoteFile | None":
        """The file that a local one points to; None if that is no pointer."""
        content = first_bytes(Path(file), 2**16)
        if not content.startswith(_MARK):
            return None
        return cls(**json.loads(content.removeprefix(_MARK)))

    def pointer(self) -> bytes:
        """What a local file holds in place of this one."""
        return _MARK + json.dumps(asdict(self)).encode()

    def read(self, offset: int, size: int) -> bytes:
        """A part of the file. Raises InputError if it cannot be read, or has changed."""
        if size <= 0:
            return b""
        total, version, content = _request(self.address, offset, size)
        if (total, version) != (self.size, self.version):
            remedy = "start again: a run does not resume on other data"
            raise InputError("has changed on the server", where=self.address, remedy=remedy)
        return content

    def index(self) -> np.ndarray:
        """Where the files in the archive begin, from the header of each: a request for each file of
        more than 64 kB. Raises InputError."""
        with io.BufferedReader(_Whole(self), _SMALL) as file:
            return read_index(file, self.address)


class _Whole(io.RawIOBase):
    """All of a remote file, as a file."""

    def __init__(self, remote: RemoteFile):
        self._remote = remote
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._remote.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "a position before the file")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._remote.size - self._at))
        buffer[:size] = self._remote.read(self._at, size)
        self._at += size
        return size


_of_process = threading.local()


def _connections() -> Any:
    """Connections that stay open from request to request, of this thread and process: a fork must
    not use those of its parent. Raises InputError if urllib3 is not installed."""
    if getattr(_of_process, "number", None) != os.getpid():
        try:
            import urllib3
        except ImportError:
            remedy = "pip install 'redetr[http]'"
            raise InputError("data on a server needs urllib3", remedy=remedy) from None
        _of_process.number = os.getpid()
        _of_process.pools = {}
        for scheme in ("http", "https"):
            proxy = urllib.request.getproxies().get(scheme)
            pool = urllib3.ProxyManager(proxy) if proxy else urllib3.PoolManager()
            _of_process.pools[scheme] = pool
        _of_process.direct = urllib3.PoolManager()
    return _of_process


def _pool_for(address: str) -> Any:
    parts = urlsplit(address)
    connections = _connections()
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return connections.direct
    return connections.pools[parts.scheme]


def _request(address: str, offset: int, size: int) -> tuple[int, str, bytes]:
    """Bytes of a file on a server, with the size of all of it and its version. Raises
    InputError."""
    return _with_patience(address, partial(_part, address, offset, size))


def _with_patience(address: str, attempt: Any) -> Any:
    """What `attempt` returns, tried again while the server or the connection fails for the moment.
    Raises InputError."""
    for number in range(_TRIES):
        try:
            return attempt()
        except _PassingError as error:
            reason = str(error)
        if number < _TRIES - 1:
            time.sleep(_PAUSE_S * 2**number)
    text = f"no answer of the server in {_TRIES} tries ({reason})"
    raise InputError(text, where=address, remedy="try again when it answers")


@contextmanager
def _answer(address: str, headers: dict[str, str]) -> Iterator[Any]:
    """The server's answer, whose content is not read yet. Raises InputError, and `_PassingError`,
    also for what fails in the block."""
    import urllib3

    pool = _pool_for(address)
    try:
        answer = pool.request(
            "GET",
            address,
            headers=headers | {"Accept-Encoding": "identity"},
            preload_content=False,
            retries=urllib3.Retry(total=5, connect=0, read=0, status=0, other=0, redirect=5),
            timeout=urllib3.Timeout(_TIMEOUT_S),
        )
        try:
            if answer.status in _PASSING:
                raise _PassingError(f"HTTP {answer.status}")
            yield answer
        finally:
            is_read = answer.status in (http.client.OK, http.client.PARTIAL_CONTENT)
            if not (is_read and answer.isclosed()):
                answer.close()  # what is left of it is not wanted
            answer.release_conn()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise _PassingError(reason or type(error).__name__) from error


def _part(address: str, offset: int, size: int) -> tuple[int, str, bytes]:
    """`_request`, tried once."""
    headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
    with _answer(address, headers) as answer:
        if answer.status == http.client.OK:
            text = "the server sends whole files only, and no parts (range requests)"
            remedy = "download the archives, and give the folder"
            raise InputError(text, where=address, remedy=remedy)
        if answer.status != http.client.PARTIAL_CONTENT:
            raise _refusal(address, answer.status)
        span, _, total = answer.headers.get("Content-Range", "").partition("/")
        if not span.startswith(f"bytes {offset}-") or not total.isdecimal():
            text = f"the server answers with another part ({answer.headers.get('Content-Range')})"
            raise InputError(text, where=address, remedy="download the archives")
        content = answer.read(size)
    expected = min(size, int(total) - offset)
    if len(content) != expected:
        raise _PassingError(f"{len(content):,} of {expected:,} bytes arrived")
    return int(total), _version(answer), content


def _version(answer: Any) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _refusal(address: str, status: int) -> InputError:
    name = http.client.responses.get(status, "")
    remedy = "check the address, and that it needs no password"
    return InputError(f"HTTP {status} {name}".strip(), where=address, remedy=remedy)


def _whole(address: str, known_version: str) -> tuple[str, bytes | None]:
    """The version of a small file and its content; None if it is the one that is known."""
    headers = {"If-None-Match": known_version} if known_version.startswith(('"', "W/")) else {}
    with _answer(address, headers) as answer:
        if answer.status == http.client.NOT_MODIFIED:
            return known_version, None
        if answer.status != http.client.OK:
            raise _refusal(address, answer.status)
        content = answer.read()
        length = answer.headers.get("Content-Length", "")
        if length.isdecimal() and len(content) != int(length):
            raise _PassingError(f"{len(content):,} of {length} bytes arrived")
    return _version(answer), content


def _fetch(address: str, known_version: str = "") -> tuple[str, bytes | None]:
    """`_whole`, tried again. Raises InputError."""
    return _with_patience(address, partial(_whole, address, known_version))


@cache  # a process asks once: what changes meanwhile is noticed when it is read
def mirror(address: str) -> Path:
    """The local folder of the data set at an address, brought up to date. Files that have not
    changed stay as they are. Raises InputError."""
    address = address.rstrip("/")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.blake2b(address.encode(), digest_size=12).hexdigest()
    name = path_inside(urlsplit(address).path.rpartition("/")[2]) or "data"
    folder = Path(caches) / "redetr" / "remote" / digest / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(".lock")):
        _bring_up_to_date(address, folder)
    return folder


def _bring_up_to_date(address: str, folder: Path) -> None:
    names = _listed(f"{address}/{LIST_FILE}")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        update = partial(_update, address, folder, frozenset(names))
        list(pool.map(update, [name for name in names if not name.endswith(ARCHIVE + INDEX)]))
    for file in sorted(folder.rglob("*")):
        below = file.relative_to(folder).as_posix()
        if file.is_file() and below not in names and not file.name.startswith("."):
            file.unlink(missing_ok=True)  # the server has it no longer


def _listed(address: str) -> list[str]:
    """The files that a list names. Raises InputError."""
    remedy = "redetr convert --shards writes it; put it beside the archives"
    try:
        _, content = _fetch(address)
    except InputError as error:
        raise InputError(error.text, where=address, remedy=error.remedy or remedy) from None
    try:
        names = json.loads(content or b"")["files"]
    except (ValueError, RecursionError, KeyError, TypeError):
        names = None
    if not isinstance(names, list) or not names:
        text = 'no list of files, {"files": ["train-00000.tar", ...]}'
        raise InputError(text, where=address, remedy=remedy)
    for name in names:
        if not isinstance(name, str) or path_inside(name) != name:
            text = f"names {name!r}, which is no path below its folder"
            raise InputError(text, where=address, remedy="correct it")
    return names


def _update(address: str, folder: Path, names: frozenset[str], name: str) -> None:
    """Brings one file of a mirror up to date."""
    location = f"{address}/{quote(name)}"
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if not name.endswith(ARCHIVE):
        version_file = file.with_name(f".{file.name}.version")
        known = first_bytes(version_file, 2**12).decode(errors="replace") if file.exists() else ""
        version, content = _fetch(location, known)
        if content is not None:
            _replace(file, content)
            _replace(version_file, version.encode())
        return
    remote = RemoteFile.at(location)
    _replace(file, remote.pointer())
    state = state_of(file)
    if name + INDEX in names and stored_index(str(file), state) is None:
        _, content = _fetch(location + INDEX)
        store_index(str(file), state, require_index(content or b"", remote.size, location + INDEX))


def _replace(file: Path, content: bytes) -> None:
    """Writes a file, unless it holds that already: its time of change is what others go by."""
    if not file.exists() or file.read_bytes() != content:
        write_whole(file, lambda path: path.write_bytes(content))


def state_of(archive: str | os.PathLike) -> str:
    """What names the state that an archive, or the pointer to one, is in."""
    stat = os.stat(archive)
    return f"{stat.st_size} {stat.st_mtime_ns}"
