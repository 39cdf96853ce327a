"""Archives on a server: read in parts, the same data set as on the disk, or refused in one line."""

import base64
import gzip
import http.server
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_shards import LIMIT, assert_same, batches, refused

from redetr.cli import main
from redetr.data import archives, open_dataset, remote
from redetr.data.formats.writing import convert
from redetr.data.open import absolute_source
from redetr.errors import InputError

BEHIND_A_PROXY = "http://data.invalid"


class Server(http.server.ThreadingHTTPServer):
    """Serves the files of a folder, and parts of them."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.sent: list[tuple[str, int]] = []  # names and bytes
        self.sends_parts = True
        self.compresses = False  # whole files
        self.failures: list[str] = []  # what happens to the next requests for parts
        self.proxy_authorization: str | None = None  # of the last request

    def handle_error(self, request, client_address) -> None:
        """A client that closes its connection between two requests is no error."""
        if not isinstance(sys.exception(), ConnectionResetError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/shards"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
    server: Server

    def do_GET(self) -> None:
        self.server.proxy_authorization = self.headers["Proxy-Authorization"]
        path = self.path.removeprefix(BEHIND_A_PROXY)  # proxies are sent whole addresses
        file = self.server.folder / path.removeprefix("/shards/")
        wanted = self.headers["Range"]
        failure = self.server.failures.pop(0) if wanted and self.server.failures else ""
        if not file.is_file() or failure.isdecimal():
            self.send_response(int(failure or 404))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        version = f'"{hash(content)}"'
        if self.headers["If-None-Match"] == version:
            self.send_response(304)
            self.end_headers()
            return
        part = content
        if wanted and self.server.sends_parts:
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            if first >= len(content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            part = content[first : last + 1]
            self.send_response(206)
            end = first + len(part) - 1
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(content)}")
        else:
            self.send_response(200)
            if self.server.compresses:
                part = gzip.compress(content)
                self.send_header("Content-Encoding", "gzip")
        self.server.sent.append((file.name, len(part)))
        self.send_header("ETag", version)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if failure == "cut":
            part = part[: len(part) // 2]
            self.close_connection = True
        if failure == "drip":
            for byte in part:
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)
        self.wfile.write(part)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def packed(shared_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed") / "shards"
    convert(shared_coco, root, "coco", shard_bytes=LIMIT)
    return root


@pytest.fixture
def server(packed, tmp_path, monkeypatch) -> Iterator[Server]:
    """A server of a copy that a test may change, to a user without a cache."""
    folder = tmp_path / "served"
    shutil.copytree(packed, folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    with Server(folder) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def begin_again() -> None:
    """What a new process does not know."""
    remote.mirror.cache_clear()
    archives._OPENED.clear()
    archives._THREAD = threading.local()


def test_batches_are_those_of_the_folder_bit_for_bit(shared_coco, server):
    """Archives travel in parts: the first byte, then single images, and never a header."""
    of_folder = batches(shared_coco)
    assert_same(batches(server.address), of_folder)
    assert_same(batches(server.address, first_step=4, num_workers=1), of_folder[4:])
    parts = {count for name, count in server.sent if name.endswith(".tar")}
    images = {path.stat().st_size for path in shared_coco.rglob("*.jpg")}
    assert parts <= images | {1}
    assert max(images) < min(path.stat().st_size for path in server.folder.glob("*.tar"))


def test_what_has_not_changed_is_not_sent_again(server):
    open_dataset(server.address, "train")
    begin_again()
    server.sent.clear()
    first = open_dataset(server.address, "train").path(0)  # whose bands are counted
    sent = {name for name, count in server.sent if count > 1}
    assert sent == {"shards.json", first.parent.name}


def test_without_an_index_the_headers_are_read(shared_coco, server):
    file = server.folder / "shards.json"
    names = json.loads(file.read_text())["files"]
    kept = [name for name in names if not name.endswith(".index")]
    assert len(kept) < len(names)
    file.write_text(json.dumps({"files": kept}))
    assert_same(batches(server.address), batches(shared_coco))


def test_check_and_predict_take_an_address(server, capsys, tmp_path):
    main(["check", server.address])
    assert (
        f"ready to train: redetr train redetr_n --data {server.address}" in capsys.readouterr().out
    )
    assert absolute_source(server.address) == server.address
    convert(server.address, tmp_path / "back", "coco")
    assert len(open_dataset(tmp_path / "back", "train")) == 8


def test_a_server_that_sends_no_parts(server):
    server.sends_parts = False
    refused(
        server.address,
        "train-00000.tar",
        "not parts of them (range requests)",
        "download the archives",
    )


def test_passing_failures_are_waited_out(server):
    data = open_dataset(server.address, "train")
    server.failures = ["503", "cut", "429", "cut"]
    assert data.image(1).shape[0] == 3
    assert not server.failures
    server.failures = ["503"] * remote._ATTEMPTS
    archives._THREAD = threading.local()
    with pytest.raises(
        InputError, match=r"train-1\.jpg: no answer from the server in 5 tries .*503"
    ):
        data.image(1)


def test_a_server_that_drips_is_not_waited_for(server, monkeypatch):
    """Each byte comes in time, and the last one never would."""
    monkeypatch.setattr(remote, "_TIMEOUT_S", 0.3)
    data = open_dataset(server.address, "train")
    server.failures = ["drip"]
    assert data.image(1).shape[0] == 3  # by the second request
    server.failures = ["drip"] * remote._ATTEMPTS
    archives._THREAD = threading.local()
    with pytest.raises(InputError, match=r"no answer from the server in 5 tries .* bytes in 0 s"):
        data.image(1)


def test_connections_stay_open(server):
    """Requests in turn need one connection, whatever the size of the part."""
    opened = []
    accept = server.get_request
    server.get_request = lambda: opened.append(accept()) or opened[-1]
    archive = remote.RemoteFile.at(f"{server.address}/train-00000.tar")
    archive.read(0, 100)
    archive.read(512, archive.size)
    archive.read(512, 1024)
    assert len(opened) == 1


def test_what_no_waiting_helps_against(server):
    server.failures = ["403"]
    refused(server.address, ".tar: HTTP 403 Forbidden", "check the address")


def test_an_archive_that_changes_is_not_mixed_with_the_old_one(server):
    data = open_dataset(server.address, "train")
    changed = server.folder / "train-00000.tar"
    changed.write_bytes(changed.read_bytes() + bytes(512))
    with pytest.raises(InputError, match="has changed on the server; start a new run"):
        data.image(1)
    begin_again()
    assert open_dataset(server.address, "train").image(0).shape[0] == 3


def test_an_archive_that_another_process_updates_is_not_mixed_with_the_old_one(server):
    data = open_dataset(server.address, "train")
    data.image(1)
    changed = server.folder / "train-00000.tar"
    changed.write_bytes(changed.read_bytes() + bytes(512))
    remote.mirror.cache_clear()
    remote.mirror(server.address)  # as `redetr check` on the same address does
    with pytest.raises(InputError, match="has changed on the server; start a new run"):
        data.image(1)


def test_an_archive_that_became_shorter_has_changed(server):
    data = open_dataset(server.address, "train")
    for archive in server.folder.glob("train-*.tar"):
        archive.write_bytes(archive.read_bytes()[:512])
    with pytest.raises(InputError, match="has changed on the server; start a new run"):
        data.image(len(data) - 1)


def test_small_files_may_be_compressed(server):
    server.compresses = True
    assert open_dataset(server.address, "train").image(0).shape[0] == 3


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_proxy_with_a_password(scheme, server, monkeypatch):
    begin_again()
    monkeypatch.setattr(remote, "_THREAD", threading.local())
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", f"{scheme}me:p%40ss@127.0.0.1:{server.server_port}")
    data = open_dataset(f"{BEHIND_A_PROXY}/shards", "train")
    assert data.image(0).shape[0] == 3
    expected = base64.b64encode(b"me:p@ss").decode()
    assert server.proxy_authorization == f"Basic {expected}"


@pytest.mark.parametrize(
    "proxy",
    [
        "ftp://127.0.0.1:9",
        "http://me:secret@127.0.0.1:99999",
        "me:secret@127.0.0.1:99999",
        "http://me:secret/@127.0.0.1:9",
        "http://me:secret@a\u2100:9",
    ],
)
def test_a_proxy_that_is_none(proxy, monkeypatch):
    """Errors of URLs quote them, and a proxy's may hold a password."""
    begin_again()
    monkeypatch.setattr(remote, "_THREAD", threading.local())
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(InputError) as caught:
        open_dataset(f"{BEHIND_A_PROXY}/shards", "train")
    said = str(caught.value)
    assert "the proxy of the environment cannot be used" in said
    assert "secret" not in said


def test_the_password_of_an_address_is_not_shown(monkeypatch):
    """urllib3 quotes the address; only the start of its message is shown."""
    begin_again()
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    long_user = "u" * 150
    address = f"http://{long_user}:secret@127.0.0.1:99999/shards"
    with pytest.raises(InputError) as caught:
        open_dataset(address, "train")
    assert "Failed to parse: http://***@127.0.0.1:99999/shards" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (None, ("shards.json", "HTTP 404")),
        (b"<html>", ("shards.json", "not a list of files")),
        (b'{"files": []}', ("not a list of files",)),
        (b'{"files": ["../a.json"]}', ("names '../a.json', which is not a path inside",)),
        (b'{"files": ["/etc/passwd"]}', ("is not a path inside",)),
        (b'{"files": [7]}', ("names 7",)),
        (b'{"files": ["gone.json"]}', ("gone.json", "HTTP 404")),
    ],
)
def test_a_list_that_is_none(server, content, fragments):
    file = server.folder / "shards.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    refused(server.address, *fragments)


def test_the_index_of_another_archive(server):
    index = server.folder / "train-00000.tar.index"
    content = index.read_bytes()
    index.write_bytes(content[:-8] + b"\x7f" * 8)
    refused(server.address, "train-00000.tar.index", "not the index of this archive", "delete it")


@pytest.mark.parametrize("content", [b"\x93NUMPY nothing", b"PK\3\4 as of a zip archive"])
def test_an_index_of_something_else(server, content):
    index = server.folder / "train-00000.tar.index"
    index.write_bytes(content)
    refused(server.address, "train-00000.tar.index", "index of", "delete it")


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    refused("http://127.0.0.1:9/shards", "shards.json: no answer from the server in 5 tries")


def test_only_mirrors_hold_pointers(server, tmp_path):
    """A data set from somewhere else does not choose what is asked for; a damaged mirror says
    so."""
    mirror = remote.mirror(server.address)
    pointer = next(mirror.glob("*.tar"))
    folder = Path(shutil.copytree(mirror, tmp_path / "copied"))
    begin_again()
    num_requests = len(server.sent)
    refused(folder, "not a complete tar archive", pointer.name)
    assert len(server.sent) == num_requests
    content = pointer.read_bytes()
    pointer.write_bytes(content[:-3])
    with pytest.raises(InputError, match="not a complete pointer to an archive on a server"):
        archives.open_archive(pointer)
