"""Images from untrusted clients: limited while they arrive, checked before they are decoded, and
processed one at a time."""

import math
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast

from anyio import CapacityLimiter, fail_after, to_thread
from PIL import Image, UnidentifiedImageError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from torch import Tensor

from redetr.data.bands import has_bands
from redetr.data.images import FORMATS, NO_IMAGE, decoded_bytes, image_size, read_upright
from redetr.errors import InputError
from redetr.models.channels import RGB

MAX_BYTES = 32 * 2**20  # of an uploaded file
MAX_PIXELS = 50_000_000  # of its image; while decoded, each takes 10 bytes, with 16 bits up to 23
_MAX_DECODED = 8 * MAX_PIXELS  # bytes of an image of many bands, or of 64 bits
_TOO_LARGE = f"the image has more than {MAX_PIXELS // 10**6} million pixels: give a smaller one"
_TOO_DEEP = (
    f"the image has more than {_MAX_DECODED // 10**6} MB of pixels: give a smaller one, or fewer "
    "bands or bits"
)
_KINDS = f"{', '.join(FORMATS)} and .npy"  # that models of one channel and of RGB take
_FORM_BYTES = 2**16  # of a form, besides the file
_IN_MEMORY = 2**20  # bytes of an upload; the rest waits on disk, in a file without a name
_MOST_UPLOADS = 64  # that arrive at once: at most 2 GB on disk
_MOST_WAITING = 32  # clients whose image is there, besides the one that is computed on
_UPLOAD_S = 120.0  # for an upload to arrive, so that slow clients do not keep the others out

T = TypeVar("T")


class BusyError(InputError):
    """Too many clients sent requests at once."""


class _Gate:
    """Admits a limited number of clients at once, and refuses the others."""

    def __init__(self, most: int, refusal: str):
        self._most = most
        self._refusal = refusal
        self._inside = 0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Counts a client as long as the context lasts. Raises BusyError if there are too many."""
        if self._inside >= self._most:
            raise BusyError(self._refusal)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


class Turns:
    """Runs one job at a time, in the order of arrival, so that memory holds one image."""

    def __init__(self) -> None:
        self._turn = CapacityLimiter(1)
        self._gate = _Gate(1 + _MOST_WAITING, "too many images are waiting: try again in a moment")

    async def take(self, request: Request, work: Callable[..., T], *arguments: Any) -> T:
        """Runs `work` for a request in a thread, and returns its result.

        Raises BusyError if too many clients wait, and ClientDisconnect if the client has left
        before its turn.
        """
        with self._gate.admit():
            async with self._turn:
                # A page that was closed, or a program that gave up, would keep the others waiting.
                if await request.is_disconnected():
                    raise ClientDisconnect
                return await to_thread.run_sync(work, *arguments)


@dataclass(frozen=True)
class Upload:
    """The contents of a request. The name and the threshold may be missing, and are unchecked."""

    file: BinaryIO
    name: str | None
    threshold: str | None


class Uploads:
    """Receives images, at most `_MOST_UPLOADS` of them at once."""

    def __init__(self) -> None:
        self._gate = _Gate(_MOST_UPLOADS, "too many uploads at once: try again in a moment")

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Upload]:
        """The upload of a request: a form, or the body with the threshold in the query.

        Its file is deleted at the end. Raises BusyError, and HTTPException if the form cannot be
        read or the upload is too large or too slow.
        """
        with self._gate.admit():
            upload = await _arrived(request)
        with upload.file:
            yield upload


async def _arrived(request: Request) -> Upload:
    content_type = request.headers.get("content-type", "").lower()
    read = _read_form if content_type.startswith("multipart/form-data") else _read_body
    try:
        with fail_after(_UPLOAD_S):
            return await read(request)
    except TimeoutError:
        raise HTTPException(
            408, f"the upload took more than {_UPLOAD_S:.0f} seconds: give a smaller file"
        ) from None


async def _read_form(request: Request) -> Upload:
    parser = MultiPartParser(request.headers, _limited(request), max_files=1, max_fields=4)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:  # older Starlette raises the second
        raise HTTPException(400, f"the form cannot be read: {error}") from None
    image = form.get("image")
    if not isinstance(image, UploadFile):
        await form.close()
        raise HTTPException(
            400, "the form has no file named image: send one, as curl -F image=@FILE does"
        )
    threshold = form.get("threshold")
    text = None if threshold is None else str(threshold)
    return Upload(cast(BinaryIO, image.file), image.filename, text)


async def _read_body(request: Request) -> Upload:
    file = cast(BinaryIO, tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115
    try:
        async for piece in _limited(request):
            await to_thread.run_sync(file.write, piece)
        if not file.tell():
            raise HTTPException(
                400, "the request has no body: send an image, as curl --data-binary @FILE does"
            )
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return Upload(file, None, request.query_params.get("threshold"))


async def _limited(request: Request) -> AsyncGenerator[bytes]:
    """The body, chunk by chunk. Raises HTTPException as soon as it is too large."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BYTES + _FORM_BYTES:
            raise HTTPException(
                413, f"the file has more than {MAX_BYTES >> 20} MB: give a smaller one"
            )
        yield piece


def read_image(file: BinaryIO, channels: int = 3) -> Tensor:
    """The image in an uploaded file, upright, uint8 `[channels, H, W]`.

    Raises InputError if it is not an image, is damaged, has another number of bands, or is too
    large by its header, which is checked before decoding.
    """
    if channels != RGB:
        return _read_bands(file, channels)
    try:
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(_TOO_LARGE) from None
    except UnidentifiedImageError:
        if has_bands(file):
            return _read_bands(file, channels)
        raise InputError(f"not an image ({_KINDS} are read): give another file") from None
    except Exception:  # headers can be wrong in more ways than PIL knows
        raise InputError(f"{NO_IMAGE}: give another file") from None
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(_TOO_LARGE)
    return read_upright(file, "this image", channels)


def _read_bands(file: BinaryIO, channels: int) -> Tensor:
    """The image in a file that may be a NumPy array or a TIFF with many bands. If the model takes
    one channel, it may be of any kind."""
    width, height = image_size(file)
    if width * height == 0:
        of_bands, kinds = f" of {channels} bands", ".npy and TIFF"
        if channels in (1, RGB):
            of_bands, kinds = "", _KINDS
        raise InputError(f"not an image{of_bands} ({kinds} are read): give another file")
    if width * height > MAX_PIXELS:
        raise InputError(_TOO_LARGE)
    if decoded_bytes(file, channels) > _MAX_DECODED:
        raise InputError(_TOO_DEEP)
    return read_upright(file, "this image", channels)


def parse_threshold(text: str | None, default: float) -> float:
    """The lowest score that a client asks for, from 0 to 1; `default` if it gives none. Raises
    InputError for anything else."""
    if text is None:
        return default
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= 1:
        raise InputError("threshold is not a number between 0 and 1")
    return threshold
