"""Uploads and calls that are damaged, lie or attack are refused in one line; the server goes on."""

import io
import json
import pickle
import random
import re
import struct
import subprocess
import threading
import zipfile
import zlib
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import SHUT_WR, create_connection
from urllib.parse import quote

import anyio
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from starlette.requests import Request

import redetr
from redetr.app import uploads
from redetr.app.server import web_app
from redetr.app.uploads import MAX_BYTES, MAX_PIXELS
from redetr.commands.app import App
from redetr.detector.detections import Detections
from redetr.detector.images import as_image
from redetr.errors import InputError
from tests.app_server import (
    answer_within,
    ask_within,
    peak_memory,
    sending,
    serving,
    silence,
    write_checkpoint,
)
from tests.test_explain import small_detector

MOST_MEMORY = 300 * 2**20  # more than before the attacks


@pytest.fixture(scope="module")
def server(tmp_path_factory, shared_coco):
    """All tests ask it; at the end it must answer what it answered at first."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("run") / "best.safetensors", shared_coco)
    with serving(checkpoint, "--data", shared_coco) as running:
        expected = redetr.load(checkpoint, device="cpu").predict(picture(), 0.3).to_dict()
        answer = 200, {"image": None, **expected}
        assert running.predict(encoded("PNG"), 0.3) == answer
        before = peak_memory(running)
        yield running
        assert running.predict(encoded("PNG"), 0.3) == answer
        assert peak_memory(running) - before < MOST_MEMORY


def picture(width=60, height=40):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(form, image=None, **options):
    with io.BytesIO() as file:
        (image or picture()).save(file, form, **options)
        return file.getvalue()


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width, height, content=b"", before=b""):
    """A PNG that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", content)
        + chunk(b"IEND", b"")
    )


def zipped(count):
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(count))
        return file.getvalue()


def changed(content, place, value):
    return content[:place] + value + content[place + len(value) :]


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


NOISE = random.Random(0).randbytes
PNG, JPEG, GIF, TIFF, WEBP, BMP = (
    encoded(form) for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")
)
TEXT_BOMB = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**24)))
PROFILE_BOMB = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2**26)))
FILES = {
    "empty": b"",
    "one byte": b"\0",
    "zeros": bytes(5000),
    "noise": NOISE(5000),
    "text": b"Dear model, what is this?",
    "html": b"<html><script>alert(1)</script></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'>"
    b"<script>alert(1)</script></svg>",
    "svg with an entity": b"<!DOCTYPE s [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>"
    b"<svg><text>&x;</text></svg>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/ps) (w) file\n",
    "pdf": b"%PDF-1.4\n1 0 obj << /Type /Catalog >> endobj\ntrailer << /Root 1 0 R >>",
    "pickle": pickle.dumps(Touch("touched")),
    "pickle like a checkpoint": zipped(10) + pickle.dumps(Touch("touched")),
    "numpy": b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"
    + bytes(64),
    "zip bomb": zipped(2**26),
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + NOISE(100),
    "program": b"\x7fELF" + NOISE(500),
    "wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(50),
    "video": b"\0\0\0\x18ftypmp42" + NOISE(500),
    "icon": b"\0\0\x01\0\x01\0" + NOISE(500),
    "photoshop": b"8BPS\0\x01" + bytes(500),
    "fits": b"SIMPLE  =                    T".ljust(2880),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "png signature": PNG[:8],
    "png cut in the header": PNG[:20],
    "png cut in the middle": PNG[: len(PNG) // 2],
    "png with a wrong checksum": changed(PNG, 29, b"\0\0\0\0"),
    "png without pixels": png(60, 40),
    "png of no size": png(0, 0),
    "png bomb": png(50_000, 50_000, zlib.compress(bytes(2**24))),
    "png just too large": png(MAX_PIXELS // 1000, 1001, zlib.compress(bytes(100))),
    "png of the largest size": png(2**31 - 1, 2**31 - 1),
    "png with a text bomb": png(60, 40, b"", TEXT_BOMB * 9),
    "png with a profile bomb": png(60, 40, b"", PROFILE_BOMB),
    "png with noise for pixels": png(60, 40, NOISE(500)),
    "jpeg signature": b"\xff\xd8\xff",
    "jpeg cut in the header": JPEG[:100],
    "jpeg cut in the middle": JPEG[: len(JPEG) // 2],
    "jpeg that claims to be large": changed(JPEG, JPEG.index(b"\xff\xc0") + 5, b"\xff\xff\xff\xff"),
    "jpeg of no size": changed(JPEG, JPEG.index(b"\xff\xc0") + 5, b"\0\0\0\0"),
    "gif cut": GIF[:40],
    "gif that claims to be large": changed(GIF, 6, b"\xff\xff\xff\xff"),
    "tiff cut": TIFF[:60],
    "tiff whose directory is itself": b"II*\0\x08\0\0\0"
    + struct.pack("<HHHIII", 1, 256, 4, 1, 9, 8),
    "tiff with a far directory": b"II*\0" + struct.pack("<I", 2**32 - 1),
    "tiff of 2^31 entries": b"II*\0\x08\0\0\0\xff\xff" + bytes(60),
    "webp cut": WEBP[:30],
    "bmp that claims to be large": changed(BMP, 18, struct.pack("<ii", 2**30, 2**30)),
    "bmp of negative size": changed(BMP, 18, struct.pack("<ii", -60, -40)),
    "ppm that claims to be large": b"P6 99999 99999 255\n",
    "ppm with a long number": b"P6 " + b"9" * 5000 + b" 1 255\n",
    "jpeg 2000 cut": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "float pixels": encoded("TIFF", Image.fromarray(np.full((4, 4), np.nan, np.float32))),
    "too many bytes": bytes(MAX_BYTES + 2**17),
}


def refused(status, text):
    """Whether it is a 4xx and one plain line."""
    error = json.loads(text)["error"]
    return (
        400 <= status < 500
        and len(error.splitlines()) == 1
        and 10 < len(error) < 300
        and "Traceback" not in text
    )


def form(content, name="image", file='filename="a.png"', more=b""):
    head = f'--limit\r\nContent-Disposition: form-data; name="{name}"; {file}\r\n\r\n'
    return head.encode() + content + b"\r\n" + more + b"--limit--\r\n"


def field(name, value):
    return (
        f'--limit\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        + value
        + b"\r\n"
    )


KIND = "multipart/form-data; boundary=limit"
FORM = {"Content-Type": KIND}
ADDRESSES = ("/api/predict", "/look", "/explain")  # that take an image


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file(name, server):
    for status, text in (
        server.ask("POST", "/api/predict", FILES[name]),
        server.ask("POST", "/api/predict", form(FILES[name]), FORM),
        server.ask("POST", "/look", form(FILES[name]), FORM),
        server.ask("POST", "/explain", form(FILES[name]), FORM),
    ):
        assert refused(status, text), (status, text)
        assert (status == 413) == (name == "too many bytes")
    assert not list(server.folder.rglob("touched"))
    assert not Path("touched").exists()


def test_pixels_are_counted_before_they_are_decoded(server):
    _, answer = server.predict(FILES["png just too large"])
    assert answer == {"error": "the image has more than 50 million pixels: give a smaller one"}


@pytest.mark.parametrize(
    "file",
    [
        'filename="../../../etc/passwd"',
        'filename="/etc/shadow"',
        "filename*=UTF-8''..%2f..%2fx",
        'filename=""',
        'filename="a\\nb.png"',
        'filename="' + "x" * 3000 + '"',
        'filename="<script>.png"',
        'filename="a.svg"',
        'filename="CON"',
        'filename="a.png%00.exe"',
    ],
)
def test_names_of_files_are_never_used(file, server):
    """The picture is looked at, whatever its name; no file has it."""
    before = {path for path in server.folder.rglob("*") if path.is_file()}
    for address in ("/api/predict", "/look", "/explain"):
        status, text = server.ask("POST", address, form(PNG, file=file), FORM)
        assert status == 200 or refused(status, text)
    assert {path for path in server.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", KIND),
        (b"nonsense", KIND),
        (form(PNG), "multipart/form-data"),
        (form(PNG), "multipart/form-data; boundary=" + "x" * 2000),
        (form(PNG)[:100], KIND),
        (form(PNG, name="picture"), KIND),
        (form(b"text", file="x=1"), KIND),
        (form(PNG, more=form(PNG)[:-11]), KIND),
        (form(PNG, more=field("threshold", b"half")), KIND),
        (form(PNG, more=field("threshold", b"1" * 2**21)), KIND),
        (form(PNG, more=field("x", b"1") * 1000), KIND),
        (b"--limit\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", KIND),
    ],
    ids=range(12),
)
def test_a_form_that_is_wrong(body, kind, server):
    for address in ("/api/predict", "/explain"):
        status, text = server.ask("POST", address, body, {"Content-Type": kind})
        assert refused(status, text), (status, text)


@pytest.mark.parametrize(
    "threshold", ["", "half", "nan", "inf", "-1", "1.01", "1e400", "0x1", "[]", "%00", "9" * 5000]
)
def test_a_threshold_that_is_none(threshold, server):
    assert server.predict(PNG, threshold) == (
        400,
        {"error": "threshold is not a number between 0 and 1"},
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/predict", 405),
        ("DELETE", "/api/predict", 405),
        ("GET", "/api/", 404),
        ("GET", "/api/x/../y", 404),
        ("POST", "/api/health", 405),
        ("POST", "/", 405),
        ("PUT", "/config", 404),
        ("GET", "/look", 405),
        ("GET", "/judge", 405),
        ("TRACE", "/", 405),
    ],
)
def test_another_address(method, path, status, server):
    found, text = server.ask(method, path)
    assert (found, list(json.loads(text))) == (status, ["error"])


def raw(server, request):
    """What is answered to bytes that may be no HTTP."""
    with create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        with suppress(OSError):  # it may be closed already
            connection.shutdown(SHUT_WR)
        parts = []
        while part := connection.recv(2**16):
            parts.append(part)
        return b"".join(parts)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2**18 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET\r\n\r\n",
    ],
    ids=["a huge header", "TLS", "a negative length", "no HTTP"],
)
def test_what_is_no_http(request_, server):
    try:
        answer = raw(server, request_)
    except ConnectionError:  # it need not read all of it
        return
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"Traceback" not in answer


def test_a_client_that_leaves(server):
    """It promises more than it sends."""
    head = b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    with create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head + PNG[:500])
    assert server.ask("GET", "/api/health")[0] == 200


def test_a_body_without_end_is_not_kept(server):
    """Refused while it is being sent; what still comes is dropped: the fixture sees memory."""
    head = b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"100000\r\n" + bytes(2**20) + b"\r\n"
    with create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head)
        for _ in range(MAX_BYTES // 2**20 + 1):
            connection.sendall(piece)
        assert connection.recv(15).startswith(b"HTTP/1.1 413 ")
        for _ in range(300):
            connection.sendall(piece)


def test_many_at_once(server):
    """All are answered; memory is looked at by the fixture."""
    image = encoded("JPEG", picture(2000, 1500), quality=50)
    answers = []

    def ask():
        answers.append(server.ask("POST", "/api/predict", image)[0])

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 12


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_image_of_a_client_that_left_is_not_looked_at(address):
    """It leaves after its upload, before its turn: others wait for theirs."""
    app = web_app(small_detector("redetr_n"), None, title="", host="127.0.0.1")
    assert ask_within(app, "POST", address, FORM, sending(form(PNG))) != (400, "")
    assert ask_within(app, "POST", address, FORM, sending(form(PNG), leaves=True)) == (400, "")


def test_others_are_answered_while_masks_are_compressed(monkeypatch):
    compressing, answered = threading.Event(), threading.Event()
    to_dict = Detections.to_dict

    def slow(detections):
        compressing.set()
        assert answered.wait(timeout=10)
        return to_dict(detections)

    monkeypatch.setattr(Detections, "to_dict", slow)
    app = web_app(small_detector("redetr_n"), None, title="", host="127.0.0.1")
    statuses = {}

    async def first():
        status, _ = await answer_within(app, "POST", "/api/predict", receive=sending(PNG))
        statuses["predict"] = status

    async def other():
        await anyio.to_thread.run_sync(compressing.wait)
        status, _ = await answer_within(app, "GET", "/api/health")
        statuses["health"] = status
        answered.set()

    async def both():
        async with anyio.create_task_group() as group:
            group.start_soon(first)
            group.start_soon(other)

    anyio.run(both)
    assert statuses == {"predict": 200, "health": 200}


@pytest.mark.parametrize("address", ["/api/predict", "/look"])
def test_a_model_that_has_diverged_says_so(address):
    detector = small_detector("redetr_n")
    with torch.no_grad():
        detector.model.class_embed[-1].bias.fill_(torch.nan)
    app = web_app(detector, None, title="", host="127.0.0.1")
    status, text = ask_within(app, "POST", address, receive=sending(PNG))
    expected = {"error": "a score or box is not finite: the model has diverged"}
    assert (status, json.loads(text)) == (500, expected)


def is_closed(connection):
    """Waits for the end of a connection: it is reset if the server had not read all of it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.long
def test_connections_without_a_request(server):
    """They are closed: the oldest where they are many, and each after a while. Others are
    answered."""
    with ExitStack() as stack:
        half_open = []
        for _ in range(300):
            connection = create_connection(("127.0.0.1", server.port), timeout=60)
            stack.enter_context(connection)
            connection.sendall(b"GET / HT")
            half_open.append(connection)
        assert server.ask("GET", "/api/health")[0] == 200
        assert is_closed(half_open[0])
        assert is_closed(half_open[-1])


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "[", "[::1", "x@y:z"]
)
def test_another_name_of_this_machine(host, server):
    status, text = server.ask("GET", "/api/health", headers={"host": host})
    assert (status, json.loads(text)) == (
        400,
        {
            "error": "this server is reached as 127.0.0.1, localhost or ::1: use one of these "
            "names, or restart it with --allow-host NAME"
        },
    )


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("192.168.1.7:7860", 200),  # any address: a name is what another site can point here
        ("[fe80::1]:7860", 200),
        ("localhost:7860", 200),
        ("MyMachine:7860", 200),
        ("detr.example", 200),
        ("evil.example", 400),
        ("192.168.1.7.evil.example", 400),
        ("detr.example.evil.example:7860", 400),
        ("", 400),
    ],
)
def test_a_name_that_another_site_points_here(host, status, monkeypatch):
    """DNS rebinding, of a server that the network reaches."""
    monkeypatch.setattr("socket.gethostname", lambda: "mymachine")
    app = web_app(small_detector("redetr_n"), None, "", "0.0.0.0", ["detr.example"])
    found, text = ask_within(app, "GET", "/api/health", {"host": host})
    assert found == status
    if status == 400:
        names = "detr.example, mymachine or localhost"
        assert json.loads(text)["error"].startswith(f"this server is reached as {names}: use one")


@pytest.mark.parametrize("name", ["", "http://a.example", "a.example:80", "a b/c"])
def test_a_name_to_allow_that_is_none(name):
    with pytest.raises(InputError, match="without http:// and without a port"):
        App("run", allow_host=(name,))._allowed_names()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # a program
        ({"Origin": "http://127.0.0.1:7860", "Host": "127.0.0.1:7860"}, 200),
        (
            {"Origin": "https://detr.example", "Sec-Fetch-Site": "same-origin"},
            200,
        ),  # behind a proxy
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1", "Host": "127.0.0.1:7860"}, 403),
        ({"Origin": "http://[", "Host": "127.0.0.1:7860"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
    ids=range(9),
)
def test_what_another_site_sends(headers, status, server):
    """A visitor's browser may send a form of any site here; it says from which site."""
    for address in ("/api/predict", "/look", "/judge"):
        found, text = server.ask("POST", address, PNG, headers)
        assert found == status, (address, text)
    assert status == 200 or json.loads(text) == {
        "error": "another web site sent this request: open this server's own page"
    }


@pytest.fixture(scope="module")
def elsewhere():
    """The address of a server that nothing may ask."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_port}/a.png"
        other.shutdown()
    assert asked == []


def test_files_that_are_named_are_not_read(server, elsewhere):
    """Neither files of this machine nor other addresses."""
    paths = (
        str(server.checkpoint),
        "/etc/passwd",
        "../../etc/passwd",
        elsewhere,
        "file:///etc/passwd",
        "a\0b",
    )
    for path in paths:
        for address in ADDRESSES:
            for body in (form(path.encode()), field("image", path.encode()) + b"--limit--\r\n"):
                status, text = server.ask("POST", address, body, FORM)
                assert refused(status, text), (address, text)
            call = json.dumps({"image": path, "path": path}).encode()
            status, text = server.ask("POST", address, call, {"Content-Type": "application/json"})
            assert refused(status, text), (address, text)
        status, text = server.ask("POST", f"/judge?image_id={quote(path)}")
        assert refused(status, text)
        assert "has no image with this id" in text


@pytest.mark.parametrize(
    "query",
    [
        "world_size=0",
        "world_size=9",
        "world_size=1e9",
        "world_size=",
        "step=-1",
        "step=2",
        "step=\u0661",
        "image_id=" + "9" * 5000,
        "image_id=%00",
        "image_id=100&world_size=nan",
    ],
    ids=range(10),
)
def test_a_judgement_that_is_none(query, server):
    status, text = server.ask("POST", f"/judge?{quote(query, '=&%')}")
    assert refused(status, text), text


def test_files_are_not_served(server):
    """Not those of the package beside the page either."""
    names = (
        "page.html",
        "frame.html",
        "page.py",
        "server.py",
        "app.js/../page.py",
        "%2e%2e/api.py",
        "/etc/passwd",
        "../../../etc/passwd",
        str(server.checkpoint),
        "static/../../etc/passwd",
        "docs",
        "redoc",
        "openapi.json",
        "favicon.ico",
        ".env",
    )
    for name in names:
        assert server.ask("GET", f"/{name}")[0] == 404, name


@pytest.mark.parametrize("address", ADDRESSES)
def test_uploads_are_not_kept(address, server):
    """Not even large ones, which wait on disk."""
    before = {path for path in server.folder.rglob("*") if path.is_file()}
    image = encoded("BMP", picture(800, 700))
    assert len(image) > 1.5 * 2**20
    assert server.ask("POST", address, form(image), FORM)[0] == 200
    assert {path for path in server.folder.rglob("*") if path.is_file()} == before


def test_an_upload_is_never_run(server):
    """What is answered to an image is data, which no browser may take for a page with rights."""
    for arguments, policy in (
        ([], "script-src 'self';"),
        (["frame"], "sandbox allow-scripts"),
        (["look", "-F", f"image=@{server.checkpoint}"], "script-src 'self';"),
    ):
        address, *more = arguments or [""]
        done = subprocess.run(
            ["curl", "-s", "-i", server.url + address, *more],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        head = done.stdout.partition("\r\n\r\n")[0].lower()
        (allowed,) = re.findall(r"content-security-policy: (.*)", head)
        assert policy in allowed
        assert "default-src 'none'" in allowed
        assert ("unsafe-inline" in allowed) == (address == "frame")
        assert "x-content-type-options: nosniff" in head
        assert ("content-type: application/json" in head) == (address == "look")


def test_names_with_markup_are_text():
    detector = small_detector("redetr_n")
    detector.class_names = ("<script>alert(1)</script>", "<b>", "&")
    app = web_app(detector, None, title="<i>a</i>.pt", host="127.0.0.1")
    status, text = ask_within(app, "GET", "/")
    assert status == 200
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, &lt;b&gt;, &amp;" in text
    assert "<i>a" not in text
    assert text.count("<script") == 1


def test_the_title_need_not_be_utf_8():
    app = web_app(small_detector("redetr_n"), None, title="caf\udce9.pt", host="127.0.0.1")
    status, text = ask_within(app, "GET", "/")
    assert status == 200
    assert "caf\\udce9.pt" in text


@pytest.mark.parametrize("headers", [{}, FORM], ids=["body", "form"])
def test_a_client_that_is_too_slow(headers, monkeypatch):
    monkeypatch.setattr(uploads, "_UPLOAD_S", 0.05)
    app = web_app(small_detector("redetr_n"), None, title="", host="127.0.0.1")
    status, text = ask_within(app, "POST", "/api/predict", headers, silence)
    assert status == 408
    assert refused(status, text)


def test_slow_clients_are_counted(monkeypatch):
    """The one too many is sent away, and they make room when they are gone."""
    monkeypatch.setattr(uploads, "_MOST_UPLOADS", 2)
    desk = uploads.Uploads()

    async def main():
        errors = []

        async def client():
            try:
                async with desk.receive(
                    Request({"type": "http", "headers": [], "query_string": b""}, silence)
                ):
                    pass
            except uploads.BusyError as error:
                errors.append(str(error))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(client)
            await anyio.wait_all_tasks_blocked()
            assert errors == ["too many uploads at once: try again in a moment"]
            group.cancel_scope.cancel()
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(client)
            await anyio.wait_all_tasks_blocked()
            assert len(errors) == 1
            group.cancel_scope.cancel()

    anyio.run(main)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (1, r"not an image \(JPEG, PNG, .* and \.npy are read\): give another file"),
        (3, r"not an image \(JPEG, PNG, .* are read\): give another file"),
        (5, r"not an image of 5 bands \(\.npy and TIFF are read\): give another file"),
    ],
)
def test_the_error_names_what_a_model_of_these_channels_reads(channels, message):
    with pytest.raises(InputError, match=message):
        uploads.read_image(io.BytesIO(b"text"), channels)


def test_a_model_of_rgb_reads_arrays(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    np.save(file, pixels)
    file.seek(0)
    image = uploads.read_image(file, 3)
    assert image.permute(1, 2, 0).numpy().tolist() == pixels.tolist()


def test_a_tiff_whose_planes_are_apart_is_read_as_predict_reads_it(tmp_path):
    planes = np.random.default_rng(0).integers(0, 65536, (3, 6, 5), dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    with open(path, "rb") as file:
        image = uploads.read_image(file, 3)
    assert torch.equal(image, as_image(path))
