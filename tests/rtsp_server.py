"""A small RTSP server that sends JPEG images, as the tests of streams need it.

RTSP 1.0 (RFC 2326) with RTP in the same connection, and JPEG as RFC 2435 packs it: one packet an
image, so images have to be small.
"""

import io
import socketserver
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from PIL import Image

_CLOCK = 90_000  # ticks a second, of RTP
_FRAME_S = 0.1
_JPEG = 26  # the payload type
_DESCRIPTION = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
    f"m=video 0 RTP/AVP {_JPEG}\r\na=control:track\r\na=framerate:10\r\n"
)


def jpeg(image: Image.Image) -> bytes:
    with io.BytesIO() as file:
        image.save(file, "JPEG", subsampling=2)  # 4:2:0
        return file.getvalue()


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The marker and the content of each segment of a JPEG file; the scan follows the last."""
    position = 2
    while True:
        marker, length = struct.unpack_from(">xBH", content, position)
        yield marker, content[position + 4 : position + 2 + length]
        position += 2 + length
        if marker == 0xDA:
            yield 0, content[position:-2]
            return


def _payload(image: Image.Image) -> bytes:
    tables = b""
    scan = b""
    for marker, segment in _segments(jpeg(image)):
        if marker == 0xDB:  # quantization tables of 64 bytes, each after its number
            for start in range(0, len(segment), 65):
                tables += segment[start + 1 : start + 65]
        if marker == 0:
            scan = segment
    header = struct.pack(">IBBBB", 0, 1, 255, image.width // 8, image.height // 8)
    return header + struct.pack(">BBH", 0, 0, len(tables)) + tables + scan


def _packet(number: int, image: Image.Image) -> bytes:
    """One image in one RTP packet, in the frame that RTSP puts around it."""
    is_last_of_image = 0x80
    ticks = int(number * _FRAME_S * _CLOCK)
    header = struct.pack(">BBHII", 0x80, is_last_of_image | _JPEG, number & 0xFFFF, ticks, 1)
    packet = header + _payload(image)
    return struct.pack(">cBH", b"$", 0, len(packet)) + packet


class _Session(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with suppress(OSError):  # the client has gone
            while request := self._request():
                self._answer(*request)
                if request[0] == "PLAY":
                    for number, image in enumerate(self.server.images()):
                        self.wfile.write(_packet(number, image))
                    return  # the connection drops

    def _request(self) -> tuple[str, str] | None:
        """The method and the sequence number of the next request."""
        first = self.rfile.readline().decode()
        sequence = ""
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            if name.lower() == "cseq":
                sequence = value.strip()
        return (first.split()[0], sequence) if first else None

    def _answer(self, method: str, sequence: str) -> None:
        lines = ["RTSP/1.0 200 OK", f"CSeq: {sequence}", "Session: 1"]
        body = ""
        if method == "OPTIONS":
            lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
        if method == "DESCRIBE":
            body = _DESCRIPTION
            lines.append("Content-Type: application/sdp")
        if method == "SETUP":
            lines.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        lines.append(f"Content-Length: {len(body)}")
        self.wfile.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    images: Callable[[], Iterable[Image.Image]]


@contextmanager
def rtsp_server(images: Callable[[], Iterable[Image.Image]]) -> Iterator[str]:
    """The address of a stream; each connection shows what `images()` gives, and then drops."""
    with _Server(("127.0.0.1", 0), _Session) as server:
        server.images = images
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"rtsp://127.0.0.1:{server.server_address[1]}/camera"
        server.shutdown()
