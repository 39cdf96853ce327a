"""Downloads from a local server: whole, broken off, damaged, refused, and of several at once."""

import contextlib
import hashlib
import http.server
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import redetr
from redetr import download
from redetr.data.formats.hub import hub_splits
from redetr.download import fetch, require_usable_proxies
from redetr.errors import InputError

CONTENT = np.random.default_rng(0).bytes(1_000_000)
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT under every name; counts what it was asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.cut: int | None = None  # bytes after which every answer breaks off
        self.resumes, self.stalls, self.tells_length, self.status = True, False, True, 200
        self.drips = ""  # what comes byte by byte and has no end
        self.released = threading.Event()  # on which answers that stall wait

    def url(self, name: str = NAME) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers["Range"]
        server.ranges.append(wanted)
        start = (
            int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.resumes else 0
        )
        status = server.status if not start else 206 if start < len(CONTENT) else 416
        self.send_response(status)
        if server.tells_length:
            self.send_header("Content-Length", str(len(CONTENT[start:])))
        if server.drips != "headers":
            self.end_headers()
        self.flush_headers()
        if server.stalls:
            server.released.wait(60)
        elif server.drips:
            with contextlib.suppress(OSError):  # the client has given up
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.02)
        elif status < 400:
            with contextlib.suppress(OSError):
                self.wfile.write(CONTENT[start:][: server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(
            target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        yield running
        running.released.set()
        running.shutdown()
        running.shutdown()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / NAME


def names_in(folder):
    return {file.name for file in folder.iterdir()} - {f"{NAME}.lock"}


def test_a_file_arrives_with_its_progress_shown(server, path, capsys):
    assert fetch(server.url(), path) == path
    assert path.read_bytes() == CONTENT
    assert names_in(path.parent) == {NAME}
    said = capsys.readouterr()
    assert NAME in said.err
    assert "100%" in said.err
    assert said.out == ""


def test_a_file_that_is_there_is_kept(path):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert fetch("http://127.0.0.1:9/nobody", path) == path
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=rf"{NAME}: damaged \(its hash is .*delete it"):
        fetch("http://127.0.0.1:9/nobody", path)


def test_what_breaks_off_is_continued(server, path):
    server.cut = 300_000
    fetch(server.url(), path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_later_call_continues_what_an_earlier_one_began(server, path):
    path.parent.mkdir()
    path.with_name(f"{NAME}.part").write_bytes(CONTENT[:123_456])
    fetch(server.url(), path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == ["bytes=123456-"]


def test_a_server_that_cannot_continue(server, path):
    """It sends all from the start: what was there is replaced; if that never gets further, it is
    said."""
    server.resumes = False
    path.parent.mkdir()
    path.with_name(f"{NAME}.part").write_bytes(b"other" * 1000)
    fetch(server.url(), path)
    assert path.read_bytes() == CONTENT
    path.unlink()
    server.cut = 300_000
    with pytest.raises(
        InputError,
        match=f"broke after 300000 of 1000000 bytes.*download it elsewhere and put it at {path}",
    ):
        fetch(server.url(), path)
    assert names_in(path.parent) == {f"{NAME}.part"}  # the next call may find a better server


def test_a_beginning_that_is_longer_than_the_file(server, path):
    path.parent.mkdir()
    path.with_name(f"{NAME}.part").write_bytes(bytes(len(CONTENT) + 5))
    fetch(server.url(), path)
    assert path.read_bytes() == CONTENT


def test_an_answer_of_unknown_length_is_refused(server, path):
    """It could not be told from one that broke off."""
    server.tells_length = False
    with pytest.raises(InputError, match="does not state the length of the file"):
        fetch(server.url(), path)


def test_a_wrong_hash_is_refused(server, path):
    path = path.with_name("net-00000000.pth")
    with pytest.raises(InputError, match=r"net-00000000\.pth is damaged \(its hash is"):
        fetch(server.url(path.name), path)
    assert not {file for file in path.parent.iterdir() if file.suffix != ".lock"}


def test_a_name_without_hash_is_not_checked(server, path):
    path = path.with_name("net.pth")
    assert fetch(server.url(path.name), path).read_bytes() == CONTENT


def test_failures_say_where_the_file_belongs(server, path, monkeypatch):
    server.status = 404
    with pytest.raises(InputError, match=f"404.*download it elsewhere and put it at {path}"):
        fetch(server.url(), path)
    monkeypatch.setattr(download, "TIMEOUT_S", 0.1)
    server.status, server.stalls = 200, True
    with pytest.raises(InputError, match=f"timed out.*download it elsewhere and put it at {path}"):
        fetch(server.url(), path)
    with pytest.raises(InputError, match=f"download it elsewhere and put it at {path}"):
        fetch(f"http://127.0.0.1:9/{NAME}", path)  # nobody listens there


@pytest.mark.parametrize("proxy", ["http:/me:secret@host", "http://me:pass@host:secret"])
def test_the_password_of_a_proxy_is_not_shown(path, monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(InputError) as caught:
        fetch("http://data.invalid/net.pt", path)
    said = str(caught.value)
    assert said.startswith("cannot get http://data.invalid/net.pt (a part of its URL, or of that ")
    assert said.endswith(f"put it at {path}")
    assert "secret" not in said


@pytest.mark.parametrize(
    "proxy", ["http:/me:secret@host", "http://me:pass@host:secret", "me:secret@host:99999"]
)
@pytest.mark.parametrize("ask", [lambda: redetr.load("me/secret-cups"), lambda: hub_splits("hf:a")])
def test_a_malformed_proxy_is_said_before_the_hub_is_asked(ask, proxy, monkeypatch):
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(InputError) as caught:
        ask()
    said = str(caught.value)
    assert said.startswith("the proxy of the environment cannot be used")
    assert "secret" not in said


@pytest.mark.parametrize("proxy", ["", "http://host:8080", "host:8080", "http://me:a%40b@host"])
def test_a_proxy_that_can_be_used(proxy, monkeypatch):
    monkeypatch.setenv("https_proxy", proxy)
    require_usable_proxies()


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_server_that_sends_byte_by_byte(server, path, monkeypatch, part):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3 if part == "headers" else 5)
    monkeypatch.setattr(download, "_PIECE_S", 0.3)
    server.drips = part
    with pytest.raises(
        InputError, match=r"not complete after 0\.3 s.*download it elsewhere and put it at"
    ):
        fetch(server.url(), path)


def test_one_of_many_downloads(server, path):
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: fetch(server.url(), path), range(4))) == {path}
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None]
