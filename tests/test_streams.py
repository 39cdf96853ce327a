"""Video from the net: RTSP, MJPEG and files over HTTP, streams that drop and come back."""

import http.server
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rtsp_server import jpeg, rtsp_server

from redetr.cli import main
from redetr.detector import detector as detectors
from redetr.detector import streams
from redetr.detector.detections import Detections
from redetr.detector.sources import Frame, frames
from redetr.detector.streams import Reconnection
from redetr.detector.video import VideoWriter, video_frames
from redetr.precision import PrecisionChoice
from redetr.signals import deferred_ctrl_c

RED, BLUE = (220, 30, 30), (30, 30, 220)
SIZE = (64, 48)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(streams, "_FIRST_WAIT_S", 0.01)
    streams.is_stream.cache_clear()


def is_red(image: torch.Tensor) -> bool:
    red, _, blue = image.float().mean((1, 2)).tolist()
    return red > blue


def read(address: str, attempts: int = 1) -> tuple[list[Frame], list[str]]:
    """The frames of a stream, until it does not come back, and the lines that were said."""
    lines: list[str] = []
    return list(frames([address], 2, reconnection=Reconnection(attempts, lines.append))), lines


def test_an_rtsp_stream_that_drops_and_comes_back():
    """Two connections show images; the third one, none."""
    shown = iter([[Image.new("RGB", SIZE, RED)] * 6, [Image.new("RGB", SIZE, BLUE)] * 6])
    with rtsp_server(lambda: next(shown, [])) as address:
        *images, end = read(address)[0]
    assert [is_red(frame.image) for frame in images] == [True] * 6 + [False] * 6
    assert images[0].image.shape == (3, 48, 64)
    assert [frame.number for frame in images] == list(range(12))
    times = [frame.time_s for frame in images]
    assert times == sorted(times)
    assert end.error.startswith(f"{address}: the stream dropped (")
    assert end.error.endswith("and did not come back in 1 attempt")


def test_a_line_when_a_stream_drops_and_when_it_is_back():
    shown = iter([[Image.new("RGB", SIZE, RED)] * 6, [], [Image.new("RGB", SIZE, BLUE)] * 6])
    with rtsp_server(lambda: next(shown, [])) as address:
        images, lines = read(address, attempts=2)
    assert len(images) == 13
    dropped, back, dropped_again = lines
    assert dropped.startswith(f"{address}: the stream dropped (") and dropped == dropped_again
    assert back == f"{address}: the stream is back"


def test_a_stream_that_is_not_to_be_opened_again():
    shown = iter([[Image.new("RGB", SIZE, RED)] * 6])
    with rtsp_server(lambda: next(shown, [])) as address:
        (*images, end), lines = read(address, attempts=0)
    assert len(images) == 6 and lines == []
    assert end.error.startswith(f"{address}: the stream dropped (")
    assert end.error.endswith(")")


def test_the_password_of_a_camera_is_not_shown():
    shown = iter([[Image.new("RGB", SIZE, RED)] * 6, []])
    with rtsp_server(lambda: next(shown, [])) as address:
        with_password = address.replace("://", "://me:secret@")
        images, (dropped,) = read(with_password)
    hidden = address.replace("://", "://***@")
    assert dropped.startswith(f"{hidden}: the stream dropped (")
    assert images[-1].error.startswith(f"{hidden}: the stream dropped (")
    assert images[0].source == with_password


class Watcher:
    """A detector that finds nothing, and presses Ctrl-C once it has seen enough of the second
    connection."""

    threshold = 0.5
    has_measured_threshold = True
    precision = PrecisionChoice("fp32")
    class_names = ("ball",)
    model = SimpleNamespace(has_masks=False, channels=3, weights_from="nowhere")
    blue = 0

    def optimize(self, **_):
        pass

    def predict(self, images, *_):
        self.blue += sum(not is_red(image) for image in images)
        if self.blue >= 20:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        none = torch.zeros(0)
        empty = Detections(none, none.long(), none.reshape(0, 4), ("ball",), (1,), SIZE[::-1])
        return [empty for _ in images]


def test_ctrl_c_ends_a_stream_with_whole_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(detectors, "load", lambda *_, **__: Watcher())
    connections = iter([RED])

    def images() -> Iterator[Image.Image]:
        """Six red images; after the drop, blue ones without end."""
        color = next(connections, BLUE)
        image = Image.new("RGB", SIZE, color)
        if color == RED:
            return iter([image] * 6)
        return iter(lambda: image, None)

    with rtsp_server(images) as address:
        main(["predict", "best.pt", address, "--output", str(tmp_path)])
    said = capsys.readouterr()
    assert "the stream dropped" in said.err and "the stream is back" in said.err
    assert "processed 1 of 1 sources" in said.out
    text = (tmp_path / "predictions.jsonl").read_text()
    *lines, end = [json.loads(line) for line in text.splitlines()]
    assert end["frames"] == len(lines)
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == len(lines)
    written = list(video_frames(tmp_path / "camera.mp4"))
    assert len(written) == len(lines)
    reds = [is_red(frame.image) for frame in written]
    assert reds == [True] * 6 + [False] * (len(lines) - 6) and len(lines) > 8
    for frame, line in zip(written, lines, strict=True):  # shown when it came
        assert frame.time_s == pytest.approx(line["time_s"] - lines[0]["time_s"], abs=0.05)


def test_ctrl_c_while_a_frame_is_written_waits_for_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, "load", lambda *_, **__: Watcher())
    add = VideoWriter.add
    calls = []

    def interrupted(*arguments) -> None:
        calls.append(arguments)
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # a signal that is not deferred interrupts this
        add(*arguments)

    monkeypatch.setattr(VideoWriter, "add", interrupted)
    image = Image.new("RGB", SIZE, RED)
    with rtsp_server(lambda: iter(lambda: image, None)) as address:
        main(["predict", "best.pt", address, "--output", str(tmp_path)])
    text = (tmp_path / "predictions.jsonl").read_text()
    *lines, end = [json.loads(line) for line in text.splitlines()]
    assert end["frames"] == len(lines) == 10
    assert len(list(video_frames(tmp_path / "camera.mp4"))) == 10


# ------------------------------------------------------------------------------------------- http


class Server(http.server.BaseHTTPRequestHandler):
    clip = b""
    requests = 0

    def do_GET(self):
        if self.path == "/gone.mp4":
            return self.answer("text/plain", b"", 404)
        if self.path == "/list.mp4":
            return self.answer("video/mp4", b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n")
        if self.path.startswith("/clip"):
            return self.answer("video/mp4", self.clip)
        if self.path == "/image":
            return self.answer("image/jpeg", jpeg(Image.new("RGB", SIZE, RED)))
        return self.send_pictures()

    def send_pictures(self) -> None:
        """As a camera does; the third request gets others, and the next ones get none."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        type(self).requests += 1
        color = RED if self.requests <= 2 else BLUE  # the first request asks for the type
        content = jpeg(Image.new("RGB", SIZE, color))
        for _ in range(5 if self.requests <= 3 else 0):
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
            self.wfile.write(head.encode() + content + b"\r\n")

    def answer(self, kind: str, body: bytes, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("web") / "clip.mp4"
    writer = VideoWriter()
    for _ in range(5):
        writer.add(Image.new("RGB", SIZE, RED), path, 10.0)
    writer.close()
    Server.clip = path.read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_pictures_of_a_camera_over_http(web, monkeypatch):
    monkeypatch.setattr(Server, "requests", 0)
    *images, end = read(f"{web}/video")[0]
    assert [is_red(frame.image) for frame in images] == [True] * 5 + [False] * 5
    assert all(frame.position["live"] for frame in images)
    assert "did not come back in 1 attempt" in end.error


@pytest.mark.parametrize("path", ["/clip.mp4", "/clip"])
def test_a_video_file_at_an_address_ends(web, path):
    *images, end = read(web + path)[0]
    assert [frame.time_s for frame in images] == pytest.approx([i / 10 for i in range(5)])
    assert all(is_red(frame.image) for frame in images)
    assert end.is_end and end.number == 5
    assert not any("live" in frame.position for frame in images)


def test_an_image_without_a_suffix_stays_one(web):
    (image,) = read(f"{web}/image")[0]
    assert image.number is None and is_red(image.image)


@pytest.mark.parametrize("address", ["{web}/gone.mp4", "{web}/list.mp4", "rtsp://127.0.0.1:9/a"])
def test_what_is_no_video_is_one_line(web, address):
    address = address.format(web=web)
    (frame,) = read(address)[0]
    assert frame.error.startswith(f"{address}: cannot be read as video (")
    assert "\n" not in frame.error


def test_a_signal_while_ctrl_c_is_being_deferred_leaves_the_handlers(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    install = signal.signal

    def interrupted(number, handler):
        if number == signal.SIGTERM:
            raise KeyboardInterrupt
        return install(number, handler)

    with monkeypatch.context() as patched:
        patched.setattr(signal, "signal", interrupted)
        with pytest.raises(KeyboardInterrupt), deferred_ctrl_c():
            pass
    assert signal.getsignal(signal.SIGINT) == before
