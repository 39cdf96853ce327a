"""Files from the net into a cache: whole or not at all, checked by hash; a broken download
resumes."""

import hashlib
import http.client
import logging
import os
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from redetr.errors import InputError

TIMEOUT_S = 30.0  # for a connection, and for each piece that is read from it
_PIECE = 1 << 18
_PIECE_S = 300.0  # for a piece as a whole


def unusable_proxy() -> InputError:
    """The error for a proxy with a malformed URL, which it does not quote: there may be a password
    in it."""
    text = "the proxy of the environment cannot be used: its URL is malformed, or not of http"
    remedy = "set https_proxy and http_proxy to http://HOST:PORT, or to nothing"
    return InputError(text, remedy=remedy)


def require_usable_proxies() -> None:
    """Raises InputError if the environment names a proxy with a malformed URL."""
    for scheme in ("http", "https"):
        proxy = urllib.request.getproxies().get(scheme)
        if not proxy:
            continue
        address = proxy if "://" in proxy else f"http://{proxy}"
        try:
            parts = urlsplit(address)
            has_path = parts.path not in ("", "/")  # of "http:/host", too
            is_usable = bool(parts.hostname) and parts.port != 0 and not has_path
        except ValueError:
            is_usable = False
        if not is_usable:
            raise unusable_proxy()


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Hides the warnings of huggingface_hub in the block: it prints two lines per failed attempt,
    and an error that says the same follows. HF_HUB_VERBOSITY in the environment wins. Raises
    InputError for a proxy that would be a traceback of its HTTP library."""
    require_usable_proxies()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    if "HF_HUB_VERBOSITY" not in os.environ:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Deadline:
    """A time limit for an answer as a whole: that of a socket begins anew with every byte.

    Add its `handlers` to an opener; reading in the block of `within` is then cut off in time.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._is_over = False

    def handlers(self) -> list[urllib.request.BaseHandler]:
        """Handlers of http and https whose connections this deadline watches."""
        return [_HttpHandler(self), _HttpsHandler(self)]

    def watch(self, connected: socket.socket) -> None:
        """Cuts this connection off when the time is over."""
        self._socket = connected
        if self._is_over:
            self._cut()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Raises TimeoutError if the block takes longer than that."""
        limit = threading.Timer(seconds, self._cut)
        limit.daemon = True
        limit.start()
        text = f"not complete after {seconds:g} s"
        try:
            yield
        except Exception as error:  # a connection that is cut off fails in many ways
            if self._is_over:
                raise TimeoutError(text) from error
            raise
        finally:
            limit.cancel()
        if self._is_over:  # to a reader of headers, a cut is their end
            raise TimeoutError(text)

    def _cut(self) -> None:
        self._is_over = True
        if self._socket:
            with suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)


def web_opener(deadline: Deadline) -> urllib.request.OpenerDirector:
    """Opens addresses of http and https and no others, not even in redirects: no local files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        *deadline.handlers(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def reason_of(error: Exception, address: str) -> str:
    """Why a request for the address failed, in words.

    An error in the form of a URL quotes parts of it, and the URL may be that of a proxy: it is not
    repeated where a password may be among them.
    """
    is_of_form = isinstance(error, ValueError | http.client.InvalidURL)
    may_quote_password = "@" in address or bool(urllib.request.getproxies())
    if is_of_form and may_quote_password:
        return "a part of its URL, or of that of the proxy, is malformed"
    return str(error)


class _HttpConnection(http.client.HTTPConnection):
    """A connection that a deadline watches."""

    def __init__(self, deadline: Deadline, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._deadline = deadline

    def connect(self) -> None:
        super().connect()
        self._deadline.watch(self.sock)


class _HttpsConnection(_HttpConnection, http.client.HTTPSConnection):
    """The same with encryption."""


class _HttpHandler(urllib.request.HTTPHandler):
    def __init__(self, deadline: Deadline):
        super().__init__()
        self._deadline = deadline

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        connection: Any = partial(_HttpConnection, self._deadline)
        return self.do_open(connection, request)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline):
        super().__init__()
        self._deadline = deadline

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        connection: Any = partial(_HttpsConnection, self._deadline)
        return self.do_open(connection, request)


def fetch(url: str, path: Path) -> Path:
    """`path`, downloaded from `url` unless it is there; progress is shown on standard error.

    If a name ends with a hash, such as `resnet50-0676ba61.pth`, the content is checked against it.
    If several processes on a machine need the file, one downloads it and the others wait. An
    interrupted download is kept in `path.part` and continued, at once or by later calls. Raises
    InputError with the path where the user can put the file.
    """
    if path.exists():  # before anything is written: a cache may be read-only
        return require_hash(path, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            part = Path(f"{path}.part")
            try:
                _download(url, part)
            # ValueError: the proxy of the environment has an impossible URL.
            except (OSError, http.client.HTTPException, ValueError) as error:
                text = f"cannot get {url} ({reason_of(error, url)})"
                remedy = f"download it elsewhere and put it at {path}"
                raise InputError(text, remedy=remedy) from error
            require_hash(part, path.name).replace(path)
    return path


def _download(url: str, part: Path) -> None:
    """Fills `part`; continues where the connection broke, for as long as more arrives."""
    while True:
        before = _size(part)
        try:
            total = _receive(url, part, before)
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not before:
                raise
            part.unlink()  # all of it, or more, was there: not of this file
        except (OSError, http.client.HTTPException):
            if _size(part) <= before:
                raise
        else:
            if _size(part) == total:
                return
            if _size(part) <= before:
                raise OSError(f"the connection broke after {_size(part)} of {total} bytes")


def _receive(url: str, part: Path, start: int) -> int:
    """Appends what comes from byte `start` on, or writes all of it where the server cannot skip;
    returns the size of the whole file."""
    request = urllib.request.Request(url)
    if start:
        request.add_header("Range", f"bytes={start}-")
    deadline = Deadline()
    opener = urllib.request.build_opener(*deadline.handlers())
    with deadline.within(TIMEOUT_S):
        opened = opener.open(request, timeout=TIMEOUT_S)
    with opened as answer:
        if answer.status != http.client.PARTIAL_CONTENT:
            start = 0
        if "Content-Length" not in answer.headers:
            raise OSError("the server does not state the length of the file")
        total = start + int(answer.headers["Content-Length"])
        columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
        with (
            part.open("ab" if start else "wb") as file,
            Progress(*columns, console=Console(stderr=True)) as progress,
        ):
            task = progress.add_task(url.rpartition("/")[2], total=total, completed=start)
            while True:
                with deadline.within(_PIECE_S):
                    piece = answer.read(_PIECE)
                if not piece:
                    return total
                file.write(piece)
                progress.advance(task, len(piece))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def require_hash(path: Path, name: str) -> Path:
    """`path`, if its content has the hash that ends `name`. A wrong download is removed; raises
    InputError."""
    expected = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    if expected is None:
        return path
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual.startswith(expected[1]):
        return path
    if path.name == name:
        text = f"damaged (its hash is {actual[:8]}): delete it, and it will be downloaded again"
        raise InputError(text, where=path)
    path.unlink()
    raise InputError(
        f"the download of {name} is damaged (its hash is {actual[:8]}): try again, or put the file "
        "there yourself"
    )
