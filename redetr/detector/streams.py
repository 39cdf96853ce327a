"""Reads video from the network with PyAV: RTSP and MJPEG streams of cameras, and video files at
URLs.

A live stream that drops is opened again.
"""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request

from redetr.data.images import IMAGE_SUFFIXES
from redetr.detector.video import (
    CONTAINERS,
    VIDEO_SUFFIXES,
    VideoFrame,
    pyav,
    say_nothing,
    timed_frames,
    video_stream,
)
from redetr.download import Deadline, reason_of, web_opener
from redetr.errors import InputError, without_password
from redetr.files import scheme_of
from redetr.wording import counted

TIMEOUT_S = 10.0  # for a connection, and for each frame
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0  # between two attempts
_DAMAGED_PACKETS = 100  # in a row: a stream that begins between two key frames has a few
_MOVING_TYPES = ("video/", "multipart/x-mixed-replace")
_MOVING_SUFFIXES = (*VIDEO_SUFFIXES, ".mjpg", ".mjpeg", ".ts")
# A stream from the network may refer to other network addresses only.
_RTSP = {
    "rtsp_transport": "tcp",  # passes firewalls, and loses nothing
    "format_whitelist": "rtsp",
    "protocol_whitelist": "rtp,tcp,tls,udp",
}
_HTTP = {
    "format_whitelist": f"{CONTAINERS},mpjpeg",
    "protocol_whitelist": "http,https,httpproxy,tcp,tls",
    "reconnect": "1",  # continues in the middle of a file
    "reconnect_delay_max": "8",  # s
}


@dataclass(frozen=True)
class Reconnection:
    """How to reconnect when a live stream drops."""

    attempts: int = 10  # in a row, without an image
    say: Callable[[str], None] = say_nothing  # takes a line when a stream drops, and is back


def is_address(source: str) -> bool:
    return scheme_of(source) in ("http", "https")


def is_rtsp(source: str) -> bool:
    return scheme_of(source) in ("rtsp", "rtsps")


def require_address(source: str) -> None:
    """Raises InputError for a URL that cannot be split into its parts."""
    try:
        urlsplit(source)
    except ValueError as error:  # brackets that hold no IPv6 address
        text = f"is not a URL ({reason_of(error, source)})"
        raise InputError(text, where=source, remedy="check the address") from None


@cache
def is_stream(source: str) -> bool:
    """Whether the source is video from the network.

    If a URL (http or https) has neither the suffix of an image nor that of a video, the server is
    asked for its media type.
    """
    if not is_address(source):
        return is_rtsp(source)
    path = urlsplit(source).path.lower()
    if path.endswith(_MOVING_SUFFIXES):
        return True
    return not path.endswith(IMAGE_SUFFIXES) and _type_of(source).startswith(_MOVING_TYPES)


def _type_of(address: str) -> str:
    """The media type at a URL. Empty if there is no answer, which the reader reports later."""
    deadline = Deadline()
    try:
        with (
            deadline.within(TIMEOUT_S),
            web_opener(deadline).open(Request(address), timeout=TIMEOUT_S) as answer,
        ):
            return answer.headers.get_content_type()
    except (OSError, http.client.HTTPException, ValueError):  # ValueError: no such port
        return ""


def stream_frames(
    address: str, reconnection: Reconnection, is_over: threading.Event
) -> Iterator[VideoFrame]:
    """The frames of video from the network; a live stream does not end.

    Frames of a file have the times that the file states. Frames of a live stream have the time of
    their arrival, which includes the time without a connection. A live stream that drops is opened
    again after 1, 2, 4, ... seconds, until another thread sets `is_over`. Raises InputError if
    there is no video at the URL, a file ends too early, or a stream does not come back.
    """
    av = pyav()
    shown = without_password(address)
    started = time.monotonic()
    has_begun = False
    failures = 0
    while True:
        reason = "it ended"
        try:
            with _opened(av, address) as container:
                stream = video_stream(container, address)
                is_live = not container.duration and container.size <= 0
                decoded = _decoded(av, container, stream)
                for frame in timed_frames(container, stream, decoded):
                    if failures:
                        reconnection.say(f"{shown}: the stream is back")
                        failures = 0
                    has_begun = True
                    if is_live:
                        arrival_s = time.monotonic() - started
                        frame = frame._replace(time_s=arrival_s, is_live=True, length=None)
                    yield frame
            if not is_live:
                return
        except (av.FFmpegError, ValueError, MemoryError) as error:
            reason = without_password(getattr(error, "strerror", None) or str(error))
            if not has_begun or not is_live:
                text = f"cannot be read as video ({reason})"
                remedy = "check the address and the connection"
                raise InputError(text, where=address, remedy=remedy) from None
        dropped = f"the stream dropped ({reason})"
        if failures == reconnection.attempts:
            if failures:
                dropped += f" and did not come back in {counted(failures, 'attempt')}"
            raise InputError(dropped, where=address)
        if failures == 0:
            reconnection.say(f"{shown}: {dropped}; trying to open it again")
        if is_over.wait(min(_FIRST_WAIT_S * 2**failures, _LONGEST_WAIT_S)):
            return
        failures += 1


def _opened(av: Any, address: str) -> Any:
    options = _RTSP if is_rtsp(address) else _HTTP
    return av.open(address, options=options, timeout=TIMEOUT_S)


def _decoded(av: Any, container: Any, stream: Any) -> Iterator[Any]:
    """The frames of PyAV. Damaged packets are skipped."""
    damaged = 0
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except av.InvalidDataError:
            damaged += 1
            if damaged > _DAMAGED_PACKETS:
                raise
            continue
        for frame in decoded:
            damaged = 0
            yield frame
