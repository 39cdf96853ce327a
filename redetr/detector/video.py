"""Frames of videos and cameras, and annotated videos.

Files are read and written with PyAV. It is half the size of OpenCV, writes H.264, which browsers
play, and reports what is wrong with a damaged file. Its wheels cannot open cameras, so OpenCV is
needed for these.
"""

import os
import struct
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
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


class VideoFrame(NamedTuple):
    """A frame of a video or camera."""

    image: Tensor  # uint8 [3, H, W], as players show it
    time_s: float  # when players show it; with most telephones the distances differ
    rate: float  # frames per second of the whole video, the mean
    is_live: bool = False  # of a camera or stream without an end


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
            rate = rate_of(stream)
            start_s = (container.start_time or 0) / av.time_base
            for number, frame in enumerate(container.decode(stream)):
                time_s = number / rate if frame.time is None else frame.time - start_s
                yield VideoFrame(upright_image(frame), time_s, rate)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot decode the video ({reason}); give another file") from None


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


def rate_of(stream: Any) -> float:
    """The mean frames per second of a video."""
    return float(stream.average_rate or _CAMERA_RATE)


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
    try:
        import cv2
    except ImportError:
        raise InputError('reading cameras needs OpenCV: pip install "redetr[camera]"') from None
    camera = cv2.VideoCapture(number)
    try:
        rate = camera.get(cv2.CAP_PROP_FPS) or _CAMERA_RATE
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
    manager, it completes the last file, or deletes it after an exception.
    """

    def __init__(self) -> None:
        self._container: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()

    def add(self, image: Image.Image, path: Path, rate: float, time_s: float | None = None) -> None:
        """Appends an RGB image to the video at `path`; the first one opens it and sets its size.

        It is shown at `time_s`, by default 1 / `rate` after the one before.
        """
        if self._container is None:
            self._path, self._unfinished = path, path.with_name(f"{UNFINISHED}{path.name}")
            self._container = pyav().open(str(self._unfinished), "w", format="mp4")
            self._stream = self._container.add_stream(
                "libx264", rate=Fraction(rate).limit_denominator(1001)
            )
            # H.264 needs even sides, so the last row or column of an odd side is left out.
            self._stream.width, self._stream.height = (max(2, side // 2 * 2) for side in image.size)
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, _TICKS)
            self._next_pts, self._last_pts = 0, -1
        fitted = image.crop((0, 0, self._stream.width, self._stream.height))
        frame = pyav().VideoFrame.from_ndarray(np.asarray(fitted))
        frame.time_base = Fraction(1, _TICKS)
        frame.pts = self._next_pts
        if time_s is not None:
            frame.pts = max(round(_TICKS * time_s), self._last_pts + 1)
        self._last_pts = frame.pts
        self._next_pts = frame.pts + round(_TICKS / rate)
        self._container.mux(self._stream.encode(frame))

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
        raise InputError('reading videos needs PyAV: pip install "redetr[video]"') from None
    return av
