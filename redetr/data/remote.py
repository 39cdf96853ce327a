"""Reads archives on a server part by part, when the parts are needed (range requests).

A data set at a URL such as `https://host/shards` has a list of its files there, `shards.json`:
`{"files": ["annotations/instances_train.json", "train-00000.tar", ...]}`. Its mirror is a folder in
the user's cache with a full copy of each small file, and a pointer instead of each archive: its
address, size and version. Code that reads an archive in the mirror asks the server.
"""

import errno
import http.client
import io
import json
import math
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from filelock import FileLock

from redetr.data.relative_paths import path_inside
from redetr.data.tar_index import read_index, require_index, store_index, stored_index
from redetr.download import reason_of, unusable_proxy
from redetr.errors import InputError, without_password
from redetr.files import cache_folder, first_bytes, hashed_name, scheme_of, write_whole

LIST_FILE = "shards.json"
ARCHIVE = ".tar"
INDEX = ".index"  # suffix of the index of an archive, after the archive's name
_MARK = b"redetr: an archive on a server\n"  # the start of a pointer
_LARGEST_POINTER = 2**16  # bytes
_LARGEST_VERSION = 2**12  # bytes
_BUFFER = 2**16  # bytes of one request while the headers in an archive are read
_TIMEOUT_S = 30.0  # for a connection, and for each chunk that is read from it
_SLOWEST = 10_000  # bytes per second, after the first `_TIMEOUT_S`
_ATTEMPTS = 5
_PAUSE_S = 0.5  # before the second attempt; twice as long before each further one
_CONCURRENT_REQUESTS = 16
_TEMPORARY = (408, 429, 500, 502, 503, 504)  # status codes of failures that may pass

_Reply = TypeVar("_Reply")


def is_address(source: str | Path) -> bool:
    """Whether a data set is given by an http or https URL."""
    return scheme_of(source) in ("http", "https")


class _TemporaryError(Exception):
    """A request failed, but may succeed in a moment."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, in the version that the server had when it was asked."""

    address: str
    size: int  # bytes
    version: str  # the server's ETag, or the time of change; empty if it states neither

    @classmethod
    def at(cls, address: str) -> "RemoteFile":
        """Requests the size and version of a file from the server. Raises InputError if it does not
        respond, or supports only whole files."""
        size, version, _ = _request_part(address, 0, 1)
        return cls(address, size, version)

    @classmethod
    def in_pointer(cls, file: str | os.PathLike) -> "RemoteFile | None":
        """The file to which a pointer in a mirror points; None if the local file is not a pointer.

        Pointers in other folders are ignored, because an untrusted data set must not choose a
        server. Raises InputError if the pointer is damaged.
        """
        path = Path(file)
        if not path.is_relative_to(_mirrors()):
            return None
        content = first_bytes(path, _LARGEST_POINTER)
        if not content.startswith(_MARK):
            return None
        try:
            fields = json.loads(content.removeprefix(_MARK))
            return cls(**fields)
        except (ValueError, TypeError):
            text = "is not a complete pointer to an archive on a server"
            remedy = "delete it and start again"
            raise InputError(text, where=path, remedy=remedy) from None

    def pointer(self) -> bytes:
        """The content of a local file that points to this one."""
        fields = json.dumps(asdict(self))
        return _MARK + fields.encode()

    def read(self, offset: int, size: int) -> bytes:
        """A part of the file. Raises InputError if it cannot be read, or if the file has
        changed."""
        if size <= 0:
            return b""
        total, version, content = _request_part(self.address, offset, size)
        if (total, version) != (self.size, self.version):
            raise self.changed()
        return content

    def changed(self) -> InputError:
        """The error for a file that the server no longer has in this version."""
        return _changed(self.address)

    def index(self) -> np.ndarray:
        """The index of this archive from its headers, as from `read_index`. Takes one request for
        each file of more than 64 kB in the archive. Raises InputError if it cannot be read."""
        with io.BufferedReader(_RemoteStream(self), _BUFFER) as file:
            return read_index(file, self.address)


class _RemoteStream(io.RawIOBase):
    """A remote file as a readable stream."""

    def __init__(self, remote: RemoteFile):
        self._remote = remote
        self._position = 0  # in bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._remote.size}
        position = starts[whence] + offset
        if position < 0:
            raise OSError(errno.EINVAL, "a position before the file")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        remaining = max(0, self._remote.size - self._position)
        size = min(len(buffer), remaining)
        buffer[:size] = self._remote.read(self._position, size)
        self._position += size
        return size


_THREAD = threading.local()


def _connections() -> Any:
    """The connections of this thread, which stay open between requests.

    They also belong to this process, because a forked process must not use those of its parent.
    Raises InputError if urllib3 is not installed.
    """
    if getattr(_THREAD, "process_id", None) != os.getpid():
        try:
            import urllib3
        except ImportError:
            remedy = 'pip install "redetr[http]"'
            raise InputError("reading data from a server needs urllib3", remedy=remedy) from None
        _THREAD.process_id = os.getpid()
        _THREAD.direct = urllib3.PoolManager()
        _THREAD.pools = {}
        proxies = urllib.request.getproxies()
        for scheme in ("http", "https"):
            pool = _THREAD.direct
            if proxies.get(scheme):
                pool = _proxy_pool(proxies[scheme])
            _THREAD.pools[scheme] = pool
    return _THREAD


def _proxy_pool(proxy: str) -> Any:
    """Connections through a proxy, as the environment names it: `http://user:password@host:port`,
    of which only the host is required. Raises InputError if it is none."""
    import urllib3

    address = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(address)
        headers = None
        if parts.username is not None:  # which urllib3 does not take from the address
            user, password = unquote(parts.username), unquote(parts.password or "")
            headers = urllib3.make_headers(proxy_basic_auth=f"{user}:{password}")
        return urllib3.ProxyManager(address, proxy_headers=headers)
    except (ValueError, urllib3.exceptions.HTTPError):  # which quotes the password
        raise unusable_proxy() from None


def _pool_for(address: str) -> Any:
    parts = urlsplit(address)
    connections = _connections()
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return connections.direct
    return connections.pools[parts.scheme]


def _with_retries(address: str, request: Callable[[], _Reply]) -> _Reply:
    """Returns the result of `request`, which is called up to `_ATTEMPTS` times, if its failures are
    temporary. Raises InputError if all attempts fail."""
    for attempt in range(_ATTEMPTS):
        try:
            return request()
        except _TemporaryError as error:
            reason = str(error)
        if attempt < _ATTEMPTS - 1:
            time.sleep(_PAUSE_S * 2**attempt)
    text = f"no answer from the server in {_ATTEMPTS} tries ({reason})"
    raise InputError(text, where=address, remedy="try again later")


@contextmanager
def _opened(address: str, headers: dict[str, str]) -> Iterator[Any]:
    """A context with the server's response, whose content was not read yet.

    Raises InputError or `_TemporaryError`, also for failures while the content is read.
    """
    import urllib3

    pool = _pool_for(address)
    try:
        response = pool.request(
            "GET",
            address,
            headers=headers | {"Accept-Encoding": "identity"},
            preload_content=False,
            retries=urllib3.Retry(total=5, connect=0, read=0, status=0, other=0, redirect=5),
            timeout=urllib3.Timeout(_TIMEOUT_S),
        )
        try:
            if response.status in _TEMPORARY:
                raise _TemporaryError(f"HTTP {response.status}")
            yield response
        finally:
            has_content = response.status in (http.client.OK, http.client.PARTIAL_CONTENT)
            if not has_content or not response.isclosed():
                response.close()  # otherwise, the rest would have to be read first
            response.release_conn()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        words = without_password(str(error)).split()  # before a URL in it is cut off
        reason = " ".join(words)[:160]
        raise _TemporaryError(reason or type(error).__name__) from error


def _request_part(address: str, offset: int, size: int) -> tuple[int, str, bytes]:
    """The size of a file on a server, its version, and `size` bytes of it from `offset` on. Raises
    InputError if it cannot be read."""
    return _with_retries(address, partial(_try_part, address, offset, size))


def _try_part(address: str, offset: int, size: int) -> tuple[int, str, bytes]:
    """The result of `_request_part`, with a single request."""
    last = offset + size - 1
    with _opened(address, {"Range": f"bytes={offset}-{last}"}) as response:
        if response.status == http.client.OK:
            text = "the server sends only whole files, not parts of them (range requests)"
            remedy = "download the archives and give their folder"
            raise InputError(text, where=address, remedy=remedy)
        if response.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and offset > 0:
            raise _changed(address)  # it is shorter than it was
        if response.status != http.client.PARTIAL_CONTENT:
            raise _status_error(address, response.status)
        content_range = response.headers.get("Content-Range", "")
        span, _, total_text = content_range.partition("/")
        if not span.startswith(f"bytes {offset}-") or not total_text.isdecimal():
            text = f"the server sent another part ({content_range or 'no Content-Range'})"
            raise InputError(text, where=address, remedy="download the archives")
        content = _content(response, size)
    total = int(total_text)
    expected = min(size, total - offset)
    if len(content) != expected:
        raise _TemporaryError(f"{len(content):,} of {expected:,} bytes arrived")
    return total, _version(response), content


def _content(response: Any, size: float = math.inf) -> bytes:
    """The content, at most `size` bytes. Raises `_TemporaryError` if the server sends it too
    slowly."""
    started = time.monotonic()
    content = bytearray()
    while len(content) < size:
        chunk = response.read1(min(_BUFFER, size - len(content)))
        if not chunk:
            break
        content += chunk
        taken = time.monotonic() - started
        if taken > _TIMEOUT_S + len(content) / _SLOWEST:
            raise _TemporaryError(f"{len(content):,} bytes in {taken:.0f} s")
    return bytes(content)


def _version(response: Any) -> str:
    headers = response.headers
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _changed(address: str) -> InputError:
    remedy = "start a new run: runs do not resume on changed data"
    return InputError("has changed on the server", where=address, remedy=remedy)


def _status_error(address: str, status: int) -> InputError:
    name = http.client.responses.get(status, "")
    text = f"HTTP {status} {name}".strip()
    return InputError(
        text, where=address, remedy="check the address, and that it does not require a password"
    )


def _request_file(address: str, known_version: str = "") -> tuple[str, bytes | None]:
    """The version and the content of a small file; no content if it has the known version. Raises
    InputError if it cannot be read."""
    return _with_retries(address, partial(_try_file, address, known_version))


def _try_file(address: str, known_version: str) -> tuple[str, bytes | None]:
    """The result of `_request_file`, with a single request."""
    headers = {}
    if known_version.startswith(('"', "W/")):  # an ETag, not a time
        headers["If-None-Match"] = known_version
    with _opened(address, headers) as response:
        if response.status == http.client.NOT_MODIFIED:
            return known_version, None
        if response.status != http.client.OK:
            raise _status_error(address, response.status)
        content = _content(response)
        length = response.headers.get("Content-Length", "")
        is_compressed = "Content-Encoding" in response.headers  # the length is that of fewer bytes
        if length.isdecimal() and not is_compressed and len(content) != int(length):
            raise _TemporaryError(f"{len(content):,} of {length} bytes arrived")
    return _version(response), content


def _mirrors() -> Path:
    """The folder in the user's cache with a mirror of each data set on a server."""
    return Path(os.path.abspath(cache_folder("remote")))


@cache  # one update per process: reading a file that has changed since then raises InputError
def mirror(address: str) -> Path:
    """The local folder of the data set at a URL, which is updated. Files that have not changed are
    kept. Raises InputError if the server cannot be read."""
    try:
        parts = urlsplit(address.rstrip("/"))
    except ValueError as error:
        text = f"is not an address ({reason_of(error, address)})"
        raise InputError(text, where=address) from None
    if not parts.hostname:
        text = "is an address without a server"
        raise InputError(text, where=address, remedy="write https://HOST/FOLDER")
    address = address.rstrip("/")
    _, _, last_part = parts.path.rpartition("/")
    name = path_inside(last_part) or "data"
    folder = _mirrors() / hashed_name(address.encode()) / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(".lock")):
        _update_mirror(address, folder)
    return folder


def _update_mirror(address: str, folder: Path) -> None:
    names = _read_list(f"{address}/{LIST_FILE}")
    update = partial(_update_file, address, folder, frozenset(names))
    mirrored = [name for name in names if not name.endswith(ARCHIVE + INDEX)]
    with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
        updates = pool.map(update, mirrored)
        list(updates)  # raises the first error
    for file in sorted(folder.rglob("*")):
        if file.name.startswith(".") or not file.is_file():
            continue
        name = file.relative_to(folder).as_posix()
        if name not in names:  # the server has deleted it
            file.unlink(missing_ok=True)


def _read_list(address: str) -> list[str]:
    """The names in the list of files at a URL. Raises InputError if it cannot be read."""
    remedy = "redetr convert --shards writes it; put it beside the archives"
    try:
        _, content = _request_file(address)
    except InputError as error:
        raise InputError(error.text, where=address, remedy=error.remedy or remedy) from None
    try:
        names = json.loads(content or b"")["files"]
    except (ValueError, RecursionError, KeyError, TypeError):
        names = None
    if not isinstance(names, list) or not names:
        text = 'not a list of files, {"files": ["train-00000.tar", ...]}'
        raise InputError(text, where=address, remedy=remedy)
    for name in names:
        if not isinstance(name, str) or path_inside(name) != name:
            text = f"names {name!r}, which is not a path inside its folder"
            raise InputError(text, where=address, remedy="correct it")
    return names


def _update_file(address: str, folder: Path, names: frozenset[str], name: str) -> None:
    """Updates the file `name` of a mirror; `names` are all files on the server."""
    file_address = f"{address}/{quote(name)}"
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(ARCHIVE):
        _update_pointer(file_address, file, has_index=name + INDEX in names)
    else:
        _update_copy(file_address, file)


def _update_pointer(address: str, file: Path, has_index: bool) -> None:
    """Points `file` to the archive at a URL, and stores its index if the server has it."""
    remote = RemoteFile.at(address)
    _replace(file, remote.pointer())
    state = state_of(file)
    if has_index and stored_index(str(file), state) is None:
        index_address = address + INDEX
        _, content = _request_file(index_address)
        rows = require_index(content or b"", remote.size, index_address)
        store_index(str(file), state, rows)


def _update_copy(address: str, file: Path) -> None:
    """Copies a small file, unless `file` is its current version."""
    version_file = file.with_name(f".{file.name}.version")
    known_version = ""
    if file.exists():
        known_version = first_bytes(version_file, _LARGEST_VERSION).decode(errors="replace")
    version, content = _request_file(address, known_version)
    if content is not None:
        _replace(file, content)
        _replace(version_file, version.encode())


def _replace(file: Path, content: bytes) -> None:
    """Writes a file unless it already has this content, because caches depend on its time of
    change."""
    if not file.exists() or file.read_bytes() != content:
        write_whole(file, lambda path: path.write_bytes(content))


def state_of(archive: str | os.PathLike) -> str:
    """A text that changes whenever the archive, or the pointer to it, changes, even if its time of
    change is set to the earlier one."""
    stat = os.stat(archive)
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
