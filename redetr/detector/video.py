"""Frames of videos and cameras, and annotated videos.

Files are read and written with PyAV. It is half the size of OpenCV, writes H.264, which browsers
play, and reports what is wrong with a damaged file. Its wheels cannot open cameras, so OpenCV is
needed for these.
"""

import math
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from redetr.errors import InputError
from redetr.files import UNFINISHED

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")

# Containers that hold their frames themselves. A disguised playlist would make PyAV open other
# files and URLs.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo"
_TICKS = 90_000  # a second, of the times in a video; what all usual rates divide
_LARGEST_PIXELS = 8192 * 8192
_CAMERA_RATE = 25.0  # frames per second of the video, where the camera does not say

# Containers whose header states the length, and by how many frames a complete video may be shorter.
# FFmpeg estimates the length of other containers from the part that is there.
_TOLERANCE_FRAMES = {"mov": 0.5, "matroska": 1.5, "avi": 1.5}
# The same where the length may be that of sound, which often ends later: in seconds, and as a share
# of the length.
_SOUND_TOLERANCE_S = 1.0
_SOUND_TOLERANCE = 0.05


def say_nothing(text: str) -> None:
    pass


class StatedLength(NamedTuple):
    """How long a video is, as its container states."""

    frames: int  # 0 = not stated
    end_s: float  # when its last frame ends, on the clock of `VideoFrame.time_s`
    tolerance_s: float  # by which a complete video may end earlier

    def shortfall(self, frames: int, end_s: float) -> str:
        """Says that a video ends too early, after this many frames, at `end_s`; empty if it does
        not.

        Containers also count frames that an edit list hides, so the time must be too short as well.
        """
        if 0 < self.frames <= frames or end_s >= self.end_s - self.tolerance_s:
            return ""
        if end_s <= 0:  # the times of a damaged video mean nothing
            return ""
        expected = self.frames or round(frames * self.end_s / end_s)
        return f"ends after {frames:,} of about {expected:,} frames"


class VideoFrame(NamedTuple):
    """A frame of a video or camera."""

    image: Tensor  # uint8 [3, H, W], as players show it
    time_s: float  # when players show it; with most telephones the distances differ
    rate: float  # frames per second of the whole video, the mean
    is_live: bool = False  # of a camera or stream without an end
    duration_s: float = 0.0  # how long players show it; 0 = not stated
    length: StatedLength | None = None  # of the whole video; None if the container states none

    @property
    def end_s(self) -> float:
        """When players end showing it."""
        return self.time_s + (self.duration_s or 1 / self.rate)


def video_frames(path: Path) -> Iterator[VideoFrame]:
    """Each frame of a video file, upright, with its time.

    Raises InputError if the file cannot be decoded, which may happen after some frames.
    """
    av = pyav()
    if not path.is_file():
        raise InputError(f"{path}: no such video file")
    try:
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        with av.open(f"file:{path}", options=options) as container:
            stream = video_stream(container, str(path))
            yield from timed_frames(container, stream, container.decode(stream))
    except (av.FFmpegError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        text = f"cannot decode the video ({reason})"
        raise InputError(text, where=path, remedy="give another file") from None


def video_stream(container: Any, name: str) -> Any:
    """The first video stream of a container that PyAV has opened.

    Raises InputError if there is none, or if its frames are too large for memory.
    """
    if not container.streams.video:
        raise InputError(f"{name}: no video in this file")
    stream = container.streams.video[0]
    if stream.width * stream.height > _LARGEST_PIXELS:
        raise InputError(f"{name}: frames of {stream.width}x{stream.height} px are too large")
    return stream


def timed_frames(container: Any, stream: Any, decoded: Iterable[Any]) -> Iterator[VideoFrame]:
    """The decoded frames of a stream of an opened container, upright, with their times."""
    rate = _usable_rate(float(stream.average_rate or 0))
    length = _stated_length(container, stream, rate)
    start_s = (container.start_time or 0) / pyav().time_base
    for number, frame in enumerate(decoded):
        time_s = number / rate if frame.time is None else frame.time - start_s
        duration_s = _duration_of(frame)
        yield VideoFrame(upright_image(frame), time_s, rate, False, duration_s, length)


def _usable_rate(rate: float) -> float:
    """A rate that a container or camera states, or the default if it is none: drivers return 0, -1
    or NaN where they know no rate."""
    return rate if math.isfinite(rate) and rate > 0 else _CAMERA_RATE


def _duration_of(frame: Any) -> float:
    """How many seconds players show a decoded frame; 0 if that is not stated."""
    ticks = getattr(frame, "duration", 0)  # not in all versions of PyAV
    return float(ticks * frame.time_base) if ticks and frame.time_base else 0.0


def _stated_length(container: Any, stream: Any, rate: float) -> StatedLength | None:
    """The length that the opened container states for a video stream; None if it states none."""
    kind = container.format.name.split(",")[0]
    if kind not in _TOLERANCE_FRAMES:
        return None
    tagged_s = _tagged_end(stream)
    end_s = _stated_end(container, stream, tagged_s)
    if kind == "avi":  # FFmpeg shortens its duration to the part that is there
        end_s = stream.frames / rate
    if end_s <= 0:
        return None
    tolerance_s = _TOLERANCE_FRAMES[kind] / rate
    is_of_video = stream.frames or tagged_s or len(container.streams) == 1
    if not is_of_video:
        tolerance_s = max(tolerance_s, _SOUND_TOLERANCE_S, _SOUND_TOLERANCE * end_s)
    return StatedLength(stream.frames, end_s, tolerance_s)


def _stated_end(container: Any, stream: Any, tagged_s: float) -> float:
    """The earliest end that the container states for a stream, on the clock of
    `VideoFrame.time_s`; 0 if it states none."""
    start_s = (container.start_time or 0) / pyav().time_base
    ends_s = []
    if container.duration:
        ends_s.append(container.duration / pyav().time_base)
    if stream.duration:
        ticks = (stream.start_time or 0) + stream.duration
        ends_s.append(float(ticks * stream.time_base) - start_s)
    if tagged_s:
        ends_s.append(tagged_s - start_s)
    return min(ends_s, default=0.0)


def _tagged_end(stream: Any) -> float:
    """When a stream of a Matroska file ends, in seconds, by its tag DURATION, such as
    00:01:02.5; 0 if it has none. The container itself states only the end of its longest stream."""
    for key, value in stream.metadata.items():
        if key.split("-")[0] != "DURATION":  # some programs append a language
            continue
        hours, _, rest = value.partition(":")
        minutes, _, seconds = rest.partition(":")
        try:
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        except ValueError:
            return 0.0
    return 0.0


def upright_image(frame: Any) -> Tensor:
    """A frame of PyAV as uint8 `[3, H, W]`, upright as players show it."""
    pixels = _turned(frame.to_ndarray(format="rgb24"), _display_matrix(frame))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """How players turn a decoded frame: `(a, b, c, d)` moves the pixel at (x, y) to (a x + c y, b x
    + d y)."""
    for side_data in frame.side_data:
        if side_data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side_data))
            return a, b, c, d
    return 1, 0, 0, 1


def _turned(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Pixels `[H, W, 3]` rotated by the multiple of 90 degrees that is nearest to a display matrix,
    and mirrored if it says so."""
    a, b, c, d = matrix
    x_from, y_from = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels = pixels.transpose(1, 0, 2)
        x_from, y_from = c, b
    if x_from < 0:
        pixels = pixels[:, ::-1]
    if y_from < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def camera_frames(number: int) -> Iterator[VideoFrame]:
    """The frames of a camera of this machine, without end.

    Raises InputError if it gives none.
    """
    cv2 = opencv()
    camera = cv2.VideoCapture(number)
    try:
        rate = _usable_rate(camera.get(cv2.CAP_PROP_FPS))
        started = time.monotonic()
        while True:
            is_read, bgr = camera.read()
            if not is_read:
                raise InputError(
                    f"camera {number}: gives no images: check that it is connected and that no "
                    "other program uses it"
                )
            rgb = bgr[:, :, ::-1].copy()
            image = torch.from_numpy(rgb).permute(2, 0, 1)
            yield VideoFrame(image, time.monotonic() - started, rate, is_live=True)
    finally:
        camera.release()


class VideoWriter:
    """Writes MP4 files (H.264) one after another, frame by frame.

    Each frame is shown at its time. A file gets its final name when it is complete. As a context
    manager, it completes the last file, or deletes it after an exception. `say` takes a line when
    the images of a video change their size.
    """

    def __init__(self, say: Callable[[str], None] = say_nothing) -> None:
        self._say = say
        self._container: Any = None
        self._next_pts = 0
        self._last_pts = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()

    def add(self, image: Image.Image, path: Path, rate: float, time_s: float | None = None) -> None:
        """Appends an RGB image to the video at `path`; the first one opens it and sets its size.

        Images of another size are scaled to it; bars keep their shape. The image is shown at
        `time_s`, by default 1 / `rate` after the one before.
        """
        if self._container is None:
            self._open(image.size, path, rate)
        fitted = self._fitted(image)
        frame = pyav().VideoFrame.from_ndarray(np.asarray(fitted))
        frame.time_base = Fraction(1, _TICKS)
        frame.pts = self._next_pts
        if time_s is not None:
            frame.pts = max(round(_TICKS * time_s), self._last_pts + 1)
        self._last_pts = frame.pts
        self._next_pts = frame.pts + round(_TICKS / rate)
        self._container.mux(self._stream.encode(frame))

    def _open(self, size: tuple[int, int], path: Path, rate: float) -> None:
        """Begins a video for images of this width and height."""
        self._path = path
        self._unfinished = path.with_name(f"{UNFINISHED}{path.name}")
        # Otherwise, FFmpeg would take what is before a colon in the path for a protocol.
        self._container = pyav().open(f"file:{self._unfinished}", "w", format="mp4")
        self._stream = self._container.add_stream(
            "libx264", rate=Fraction(rate).limit_denominator(1001)
        )
        # H.264 needs even sides, so the last row or column of an odd side is left out.
        width, height = size
        self._stream.width = max(2, width // 2 * 2)
        self._stream.height = max(2, height // 2 * 2)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._next_pts = 0
        self._last_pts = -1
        self._image_size = size
        self._has_changed = False

    def _fitted(self, image: Image.Image) -> Image.Image:
        """The image in the size of the video."""
        size = (self._stream.width, self._stream.height)
        if image.size == self._image_size:
            return image.crop((0, 0, *size))
        if not self._has_changed:
            self._has_changed = True
            width, height = self._image_size
            self._say(
                f"{self._path}: the frames change from {width}x{height} to "
                f"{image.width}x{image.height} px: all are scaled to the first size"
            )
        return ImageOps.pad(image, size)

    def close(self) -> None:
        """Completes the current video, if there is one, and gives it its name."""
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None
            os.replace(self._unfinished, self._path)

    def _discard(self) -> None:
        """Deletes the current video, if there is one."""
        if self._container is not None:
            try:
                self._container.close()
            finally:
                self._container = None
                self._unfinished.unlink(missing_ok=True)


def pyav() -> Any:
    """PyAV. Raises InputError if it is not installed."""
    try:
        import av
    except ImportError:
        raise InputError('videos need PyAV: pip install "redetr[video]"') from None
    return av


def opencv() -> Any:
    """OpenCV. Raises InputError if it is not installed."""
    try:
        import cv2
    except ImportError:
        raise InputError('cameras need OpenCV: pip install "redetr[camera]"') from None
    return cv2
