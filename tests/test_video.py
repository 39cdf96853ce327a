"""Videos that are cut off, empty or change their size, models of other channels than three, and
what of a live stream survives a killed process."""

import http.server
import json
import math
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import redetr
from redetr.cli import main
from redetr.data.bands import in_channels
from redetr.detector import detector as detectors
from redetr.detector import sources, streams
from redetr.detector.detections import Detections
from redetr.detector.records import require_no_cut_stream
from redetr.detector.sources import Frame, frames
from redetr.detector.streams import Reconnection
from redetr.detector.video import VideoFrame, VideoWriter, camera_frames, video_frames
from redetr.errors import InputError
from redetr.precision import PrecisionChoice

av = pytest.importorskip("av")

SIZE = (64, 48)
FRAMES = 40
RATE = 10


class Blind:
    """A detector that finds nothing."""

    threshold = 0.5
    has_measured_threshold = True
    precision = PrecisionChoice("fp32")
    class_names = ("ball",)

    def __init__(self, masks: bool = False, channels: int = 3):
        about = {"has_masks": masks, "is_panoptic": False, "weights_from": "nowhere"}
        self.model = SimpleNamespace(channels=channels, **about)

    def optimize(self, **_):
        pass

    def predict(self, images, *_):
        none = torch.zeros(0)
        boxes = none.reshape(0, 4)
        return [
            Detections(none, none.long(), boxes, ("ball",), (1,), tuple(image.shape[1:]))
            for image in images
        ]


@pytest.fixture
def blind(monkeypatch):
    monkeypatch.setattr(detectors, "load", lambda *_, **__: Blind())


def predict(*arguments) -> None:
    main(["predict", "best.pt", *map(str, arguments)])


def lines_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def noise(count: int = FRAMES, size: tuple[int, int] = SIZE) -> Iterator[np.ndarray]:
    """Frames that take about as many bytes each."""
    random = np.random.default_rng(0)
    width, height = size
    for _ in range(count):
        yield random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def film(
    path: Path,
    codec: str = "libx264",
    times_ms: Iterable[int] | None = None,
    sound_s: float = 0.0,
    rate: int = RATE,
    options: dict[str, str] | None = None,
) -> Path:
    """A video of 40 frames, by default in 4 seconds, or with frames at these times; `sound_s` is
    the length of its sound, if it has any."""
    times = range(0, 1000 * FRAMES // rate, 1000 // rate) if times_ms is None else list(times_ms)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=8000) if sound_s else None
        for time_ms, pixels in zip(times, noise(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            if times_ms is None:
                frame.pts, frame.time_base = time_ms * rate // 1000, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            silence = np.zeros((1, int(8000 * sound_s)), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
            frame.sample_rate = 8000
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    """The file with this share of its bytes, as after a download that broke off."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def read(path: Path) -> tuple[list[Frame], Frame]:
    """The frames of a video, and what ends it."""
    *images, end = frames([str(path)], ahead=2)
    return images, end


def whole_frames(path: Path, count: int) -> Path:
    """The file up to the end of this many frames: nothing of it is damaged."""
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: positions[count]])
    return path


def without_media(path: Path) -> Path:
    """An MP4 file whose index is at its front, cut off where the frames begin."""
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])
    return path


# ------------------------------------------------------------------------- videos that are cut off

FASTSTART = {"movflags": "faststart"}
FILMS = {
    "mp4": {"codec": "mjpeg", "options": FASTSTART},
    "mov": {"codec": "mjpeg", "options": FASTSTART},
    "mkv": {"codec": "mjpeg"},
    "avi": {"codec": "mjpeg"},
}


@pytest.mark.parametrize("suffix", FILMS)
@pytest.mark.parametrize("count", [1, 20, 38])
def test_a_video_that_is_cut_off_between_frames(suffix, count, tmp_path):
    """Nothing is left to decode, and nothing is damaged."""
    path = whole_frames(film(tmp_path / f"a.{suffix}", **FILMS[suffix]), count)
    images, end = read(path)
    assert len(images) == count
    assert end.error == f"{path}: ends after {count} of about 40 frames; give a complete file"
    assert not end.is_end


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "libx264"),
        ("mov", "mpeg4"),
        ("mkv", "libx264"),
        ("webm", "libvpx"),
        ("avi", "mpeg4"),
    ],
)
def test_a_video_that_is_cut_off_anywhere(suffix, codec, share, tmp_path):
    """The decoder may report damage, or show what there is of the last frame."""
    options = FASTSTART if suffix in ("mp4", "mov") else {}
    path = cut(film(tmp_path / f"a.{suffix}", codec=codec, options=options), share)
    images, end = read(path)
    assert 0 < len(images) < FRAMES
    begin = f"{path}: ends after {len(images)} of about 40 frames"
    assert end.error.startswith(begin)
    damage = "(: cannot decode the video \\(.+\\))?; give a complete file"
    assert re.fullmatch(damage, end.error.removeprefix(begin))


@pytest.mark.parametrize("sound_s", [3.8, 4.0, 4.3])
def test_sound_does_not_hide_that_a_video_is_cut_off(sound_s, tmp_path):
    _, end = read(cut(film(tmp_path / "a.mkv", sound_s=sound_s)))
    assert re.search(r"ends after \d+ of about 40 frames", end.error)


COMPLETE = {
    "clip.mp4": {},
    "faststart.mp4": {"options": FASTSTART},
    "fragments.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "clip.mov": {},
    "clip.mkv": {},
    "clip.webm": {"codec": "libvpx"},
    "clip.avi": {"codec": "mpeg4"},
    "pictures.avi": {"codec": "mjpeg"},
    "h264.avi": {},
    "clip.mpg": {"codec": "mpeg2video", "rate": 25},
    "sound.mp4": {"sound_s": 4.4},
    "sound.mkv": {"sound_s": 4.4},
    "long-sound.mkv": {"sound_s": 9.0},
    "short-sound.mkv": {"sound_s": 2.0},
    "dark.mp4": {"times_ms": [0, 100, 500, 510, 2000]},
    "dark.mkv": {"times_ms": [0, 100, 500, 510, 2000]},
    "late.mkv": {"times_ms": [1000, 1100, 1500, 1510, 3000]},
}


@pytest.mark.parametrize("name", COMPLETE)
def test_a_complete_video_is_complete(name, tmp_path):
    settings = COMPLETE[name]
    images, end = read(film(tmp_path / name, **settings))
    assert end.is_end and end.error == ""
    assert len(images) == len(settings.get("times_ms", range(FRAMES)))


def test_sound_that_is_longer_is_no_lack_of_frames(tmp_path):
    """Also where the container states no length of the video alone."""
    path = film(tmp_path / "a.mkv", sound_s=4.6)
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIOM"))
    images, end = read(path)
    assert end.is_end and len(images) == FRAMES
    _, end = read(cut(path))
    assert "ends after" in end.error


def test_a_last_frame_that_stays(tmp_path):
    """As in a slide show."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuvj420p"
        for number, pixels in enumerate(noise(5)):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            (packet,) = stream.encode(frame)
            if number == 4:
                packet.duration = 50
            container.mux(packet)
    images, end = read(path)
    assert end.is_end and len(images) == 5


def trimmed(path: Path, kept_ms: int) -> Path:
    """An MP4 file of which an edit list shows only the beginning, as a phone trims it."""
    content = bytearray(path.read_bytes())
    edit = content.index(b"elst")
    count, length = (int.from_bytes(content[edit + at : edit + at + 4]) for at in (8, 12))
    assert count == 1 and length == 1000 * FRAMES // RATE
    content[edit + 12 : edit + 16] = kept_ms.to_bytes(4)
    path.write_bytes(content)
    return path


def test_frames_that_an_edit_list_hides_are_not_missing(tmp_path):
    images, end = read(trimmed(film(tmp_path / "a.mp4"), kept_ms=2050))
    assert len(images) < FRAMES
    assert end.is_end and end.error == ""


def test_the_command_keeps_what_a_cut_video_shows(blind, tmp_path, capsys):
    source = film(tmp_path / "a.mkv")
    content = source.read_bytes()
    other = film(tmp_path / "b.mkv")
    out = tmp_path / "out"
    cut(source)
    with pytest.raises(SystemExit) as ended:
        predict(source, other, "--output", out)
    assert ended.value.code == 1
    *of_frames, end = [line for line in lines_in(out) if line["image"] == str(source)]
    count = len(of_frames)
    error = f"{source}: ends after {count} of about 40 frames; give a complete file"
    assert end == {"image": str(source), "error": error}
    assert f"redetr: {error}" in capsys.readouterr().err
    assert len(list(video_frames(out / "a.mp4"))) == count
    assert lines_in(out)[-1]["frames"] == FRAMES  # of the other video
    source.write_bytes(content)
    predict(source, other, "--output", out, "--resume")
    *of_frames, end = [line for line in lines_in(out) if line["image"] == str(source)]
    assert end["frames"] == len(of_frames) == FRAMES
    assert len(list(video_frames(out / "a.mp4"))) == FRAMES


def test_a_video_without_a_frame_is_an_error(blind, tmp_path, capsys):
    path = without_media(film(tmp_path / "a.mp4", options=FASTSTART))
    whole = film(tmp_path / "b.mp4")
    with pytest.raises(SystemExit) as ended:
        predict(path, whole, "--output", tmp_path / "out")
    assert ended.value.code == 1
    message = f"{path}: no frame of this video can be decoded; give a complete file"
    assert f"redetr: {message}" in capsys.readouterr().err
    first, *others = lines_in(tmp_path / "out")
    assert first == {"image": str(path), "error": message}
    assert others[-1]["frames"] == FRAMES


# ------------------------------------------------------------------------------- over the network


class Server(http.server.BaseHTTPRequestHandler):
    content = b""

    def do_GET(self):
        """The file, or frames of a camera, which then stays silent."""
        if self.path.endswith(".mp4"):
            self.send_response(200)
            self.send_header("Content-Type", "video/mp4")
            self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            self.wfile.write(self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(monkeypatch) -> Iterator[str]:
    streams.is_stream.cache_clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_video_at_an_address_that_is_cut_off(web, tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", options=FASTSTART)
    for content, error in (
        (path.read_bytes(), ""),
        (cut(path).read_bytes(), f"{web}/a.mp4: ends after \\d+ of about 40 frames"),
    ):
        monkeypatch.setattr(Server, "content", content)
        *images, end = frames([f"{web}/a.mp4"], 2, reconnection=Reconnection(0))
        assert images
        assert re.match(error, end.error) and bool(end.error) == bool(error)
    monkeypatch.setattr(Server, "content", without_media(path).read_bytes())
    (end,) = frames([f"{web}/b.mp4"], 2, reconnection=Reconnection(0))
    assert "no frame of this video can be decoded" in end.error


# -------------------------------------------------------------------------------- other channels


def test_a_model_for_one_channel_sees_the_brightness_of_a_video(tmp_path):
    path = film(tmp_path / "a.mp4")
    *grey, end = frames([str(path)], 2, channels=1)
    colour = list(video_frames(path))
    assert len(grey) == len(colour) == end.number
    for frame, original in zip(grey, colour, strict=True):
        assert frame.image.shape == (1, 48, 64) and frame.image.dtype == torch.uint8
        pixels = original.image.permute(1, 2, 0).numpy()
        expected = torch.from_numpy(in_channels(pixels, 1)).permute(2, 0, 1)
        assert torch.equal(frame.image, expected)


def tiny_detector(channels: int) -> redetr.Detector:
    options = {"backbone": (8, 8, 8), "hidden_dim": 16, "nheads": 2, "dec_layers": 1}
    model = redetr.build("redetr_n", 1, **options, channels=channels)
    return redetr.Detector(model, ("cup",), (1,), image_size=64, device="cpu")


def test_the_command_predicts_on_a_video_with_one_channel(tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, "load", lambda *_, **__: tiny_detector(1))
    out = tmp_path / "out"
    predict(film(tmp_path / "a.mp4"), "--output", out, "--threshold", "0", "--device", "cpu")
    *lines, end = lines_in(out)
    assert end["frames"] == len(lines) == FRAMES
    first, *_ = video_frames(out / "a.mp4")
    assert first.image.shape == (3, 48, 64)


def test_a_video_does_not_stop_a_model_for_four_channels(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detectors, "load", lambda *_, **__: tiny_detector(4))
    array = tmp_path / "b.npy"
    np.save(array, np.zeros((48, 64, 4), np.uint8))
    path = film(tmp_path / "a.mp4")
    with pytest.raises(SystemExit) as ended:
        predict(path, array, "--output", tmp_path / "out", "--device", "cpu")
    assert ended.value.code == 1
    error = f"{path}: a video has 3 channels, but the model takes 4; give images of 4 channels"
    assert f"redetr: {error}" in capsys.readouterr().err
    first, second = lines_in(tmp_path / "out")
    assert first == {"image": str(path), "error": error}
    assert second["image"] == str(array) and "detections" in second


def test_a_camera_is_not_opened_for_a_model_that_cannot_use_it():
    (frame,) = frames(["7"], 2, channels=5)
    assert frame.error.startswith("7: a video has 3 channels, but the model takes 5")


# ----------------------------------------------------------------------------------- live streams


def live_frames(*_) -> Iterator[VideoFrame]:
    for number in range(4):
        image = torch.zeros(3, 48, 64, dtype=torch.uint8)
        yield VideoFrame(image, number / 10, 10.0, is_live=True)


def killed_after_frames(record: Path) -> str:
    """Removes the line that ends the video, as if the process had been killed before it."""
    *rows, _ = record.read_text().splitlines(keepends=True)
    record.write_text("".join(rows))
    return record.read_text()


def test_resuming_does_not_delete_a_live_stream_over_http(blind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "stream_frames", live_frames)
    address = "http://camera/live.mjpg"
    predict(address, "--output", tmp_path)
    *lines, end = lines_in(tmp_path)
    assert [line["live"] for line in lines] == [True] * 4
    assert "live" not in end
    record = tmp_path / "predictions.jsonl"
    before = killed_after_frames(record)
    with pytest.raises(SystemExit):
        predict(address, "--output", tmp_path, "--resume")
    said = capsys.readouterr().err
    assert f"holds frames of {address}, which was cut off: a live stream cannot be resumed" in said
    assert record.read_text() == before


def test_a_video_file_at_an_address_is_not_live(blind, tmp_path, monkeypatch):
    def file_frames(*_):
        for frame in live_frames():
            yield frame._replace(is_live=False)

    monkeypatch.setattr(sources, "stream_frames", file_frames)
    address = "http://host/a.mp4"
    predict(address, "--output", tmp_path)
    assert not any("live" in line for line in lines_in(tmp_path))
    killed_after_frames(tmp_path / "predictions.jsonl")
    predict(address, "--output", tmp_path, "--resume")  # it begins again
    assert lines_in(tmp_path)[-1]["frames"] == 4


@pytest.mark.parametrize("name", ["rtsp://camera/a", "3"])
def test_records_of_earlier_versions_protect_cameras(name, tmp_path):
    line = {"image": name, "frame": 0, "time_s": 0.0, "image_size": [4, 4], "detections": []}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match="which was cut off"):
        require_no_cut_stream(tmp_path)


# -------------------------------------------------------------------------- frames of other sizes


def write_sizes(path: Path, sizes: list[tuple[int, int]]) -> Path:
    """A video of red JPEG images, which may change their size within a stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuvj420p"
        container.start_encoding()
        for number, (width, height) in enumerate(sizes):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
            encoder.time_base = Fraction(1, RATE)
            pixels = np.full((height, width, 3), (220, 30, 30), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels).reformat(format="yuvj420p")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            for packet in [*encoder.encode(frame), *encoder.encode()]:
                packet.stream = stream
                container.mux(packet)
    return path


def red_columns_and_rows(image: torch.Tensor) -> tuple[int, int]:
    """How many columns and rows of an image have red pixels."""
    is_red = (image[0] > 120) & (image[2] < 120)
    return int(is_red.any(0).sum()), int(is_red.any(1).sum())


def test_frames_that_change_size_are_scaled_to_the_first(blind, tmp_path, capsys):
    sizes = [(128, 96), (128, 96), (64, 48), (64, 96), (256, 64)]
    path = write_sizes(tmp_path / "a.mkv", sizes)
    out = tmp_path / "out"
    predict(path, "--output", out)
    *lines, end = lines_in(out)
    assert [tuple(line["image_size"]) for line in lines] == [(h, w) for w, h in sizes]
    assert end["frames"] == len(sizes)
    images = [frame.image for frame in video_frames(out / "a.mp4")]
    assert {tuple(image.shape) for image in images} == {(3, 96, 128)}
    shown = [red_columns_and_rows(image) for image in images]
    expected = [(128, 96), (128, 96), (128, 96), (64, 96), (128, 32)]
    for (columns, rows), (width, height) in zip(shown, expected, strict=True):
        assert columns == pytest.approx(width, abs=2) and rows == pytest.approx(height, abs=2)
    bars = images[3][:, :, :28]
    assert bars.max() < 30
    told = [line for line in capsys.readouterr().err.splitlines() if "change" in line]
    assert told == [
        f"{out / 'a.mp4'}: the frames change from 128x96 to 64x48 px: all are scaled to the first "
        "size"
    ]


def test_each_video_reports_its_change_of_size(tmp_path):
    lines: list[str] = []
    with VideoWriter(lines.append) as writer:
        for name in ("a.mp4", "b.mp4"):
            for side in (33, 16, 20):  # an odd side loses a row, which is no change
                writer.add(Image.new("RGB", (side, side)), tmp_path / name, 10.0)
            writer.close()
        for _ in range(3):
            writer.add(Image.new("RGB", (33, 33)), tmp_path / "c.mp4", 10.0)
    assert [line.split(":")[0] for line in lines] == [
        str(tmp_path / "a.mp4"),
        str(tmp_path / "b.mp4"),
    ]


# ------------------------------------------------------------------------------------------ rates


@pytest.mark.parametrize("stated", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_camera_without_a_usable_rate(stated, tmp_path, monkeypatch):
    class Camera:
        def __init__(self, number):
            pass

        def get(self, _):
            return stated

        def read(self):
            return True, np.zeros((48, 64, 3), np.uint8)

        def release(self):
            pass

    fake = type(sys)("cv2")
    fake.VideoCapture, fake.CAP_PROP_FPS = Camera, 5
    monkeypatch.setitem(sys.modules, "cv2", fake)
    taken = list(islice(camera_frames(0), 3))
    assert [frame.rate for frame in taken] == [25.0] * 3
    with VideoWriter() as writer:
        for frame in taken:
            picture = Image.fromarray(frame.image.permute(1, 2, 0).numpy())
            writer.add(picture, tmp_path / "a.mp4", frame.rate, frame.time_s)
    assert len(list(video_frames(tmp_path / "a.mp4"))) == 3


# ---------------------------------------------------------------- what is written for images only


def test_masks_are_refused_for_videos_alone(blind, tmp_path, capsys):
    path = film(tmp_path / "a.mp4")
    with pytest.raises(SystemExit) as ended:
        predict(path, "--save", "png", "masks", "--output", tmp_path / "out")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "--save masks writes a PNG for each image, but all sources are videos" in said
    assert not (tmp_path / "out").exists()


def test_a_note_says_that_frames_have_no_masks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detectors, "load", lambda *_, **__: Blind(masks=True))
    monkeypatch.setattr(Detections, "mask_image", lambda _: Image.new("L", SIZE))
    image = tmp_path / "b.png"
    Image.new("RGB", SIZE).save(image)
    predict(image, film(tmp_path / "a.mp4"), "--save", "masks", "--output", tmp_path / "out")
    said = capsys.readouterr().err
    assert "note: --save masks: PNG files are written for images only; for the frames" in said
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["b.masks.png"]
    predict(image, "--save", "masks", "--output", tmp_path / "images")
    assert "note:" not in capsys.readouterr().err


def test_an_output_folder_may_have_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("12:30").mkdir()
    with VideoWriter() as writer:
        writer.add(Image.new("RGB", (32, 32)), Path("12:30/a.mp4"), 10.0)
    assert len(list(video_frames(tmp_path / "12:30/a.mp4"))) == 1
