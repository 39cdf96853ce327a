"""What the web page and its HTTP endpoint share: uploads that are limited and checked, a model that looks at one image
at a time. And the endpoint: images in, JSON out."""

import math
import tempfile
from collections.abc import AsyncGenerator, Callable
from typing import Any, BinaryIO, TypeVar, cast

from anyio import CapacityLimiter, to_thread
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from torch import Tensor

from redetr.data.images import FORMATS, upright
from redetr.detector.detector import Detector
from redetr.errors import InputError

MAX_BYTES = 32 * 2**20  # of an uploaded file
MAX_PIXELS = 50_000_000  # of its image; decoded, it may take ten bytes for each
THRESHOLD = 0.5  # unless another is asked for
_FORM_BYTES = 2**16  # what a form may hold besides the file
_IN_MEMORY = 2**20  # of an upload; the rest waits on disk
_MOST_WAITING = 32  # clients; one more is sent away

T = TypeVar("T")


class BusyError(InputError):
    """Too many clients are waiting."""


class Turns:
    """Lets work be done one piece at a time, in the order in which it came: memory holds one image and one model."""

    def __init__(self) -> None:
        self._one = CapacityLimiter(1)
        self._clients = 0  # one at work, the others waiting

    async def take(self, work: Callable[..., T], *arguments: Any) -> T:
        """What `work` returns, which runs in a thread. Raises BusyError."""
        if self._clients > _MOST_WAITING:
            raise BusyError("too many images are waiting: try again in a moment")
        self._clients += 1
        try:
            return await to_thread.run_sync(work, *arguments, limiter=self._one)
        finally:
            self._clients -= 1


def read_upload(file: BinaryIO) -> Tensor:
    """The image in a file from a stranger, upright, uint8 `[3, H, W]`.

    Raises InputError for what is no image, damaged, or has too many pixels, which its header tells before anything is
    decoded.
    """
    too_large = f"the image has more than {MAX_PIXELS // 10**6} million pixels: give a smaller one"
    try:
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(too_large) from None
    except Exception:  # headers can be wrong in more ways than PIL knows
        raise InputError("not an image (JPEG, PNG, WebP, BMP, GIF and TIFF are read): give another file") from None
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(too_large)
        return upright(image)


def endpoint(detector: Detector, turns: Turns) -> Starlette:
    """`POST /predict` and `GET /health`; every answer is JSON, that to a wrong request `{"error": "..."}`."""

    async def predict(request: Request) -> JSONResponse:
        file, name, wanted = await _upload(request)
        with file:
            threshold = _threshold(wanted)
            found = await turns.take(lambda: detector.predict(read_upload(file), threshold))
        return JSONResponse({"image": name, **found.to_dict()})

    async def health(request: Request) -> JSONResponse:
        classes = [{"label": name, "category_id": id_} for id_, name in detector.classes]
        return JSONResponse({"status": "ok", "classes": classes})

    routes = [Route("/predict", predict, methods=["POST"]), Route("/health", health)]
    handlers: dict[Any, Any] = {HTTPException: _refused, InputError: _refused, Exception: _failed}
    return Starlette(routes=routes, exception_handlers=handlers)


def _refused(request: Request, error: HTTPException | InputError) -> JSONResponse:
    if isinstance(error, InputError):
        return JSONResponse({"error": str(error)}, 503 if isinstance(error, BusyError) else 400)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _failed(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "this should not have happened: the server's log tells more"}, 500)


async def _upload(request: Request) -> tuple[BinaryIO, str | None, str]:
    """The file of a request, its name and the threshold, as they were sent: in a form, or as the body and the query."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await _body(request), None, request.query_params.get("threshold", str(THRESHOLD))
    try:
        form = await MultiPartParser(request.headers, _limited(request), max_files=1, max_fields=4).parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read: {error.message}") from None
    image = form.get("image")
    if not isinstance(image, UploadFile):
        await form.close()
        raise HTTPException(400, "the form has no file called image: send one, as curl -F image=@FILE does")
    return cast(BinaryIO, image.file), image.filename, str(form.get("threshold", THRESHOLD))


async def _body(request: Request) -> BinaryIO:
    file = cast(BinaryIO, tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115
    async for piece in _limited(request):
        await to_thread.run_sync(file.write, piece)
    if not file.tell():
        raise HTTPException(400, "the request has no body: send an image, as curl --data-binary @FILE does")
    file.seek(0)
    return file


async def _limited(request: Request) -> AsyncGenerator[bytes]:
    """The body as it arrives, until it is too large."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BYTES + _FORM_BYTES:
            raise HTTPException(413, f"the file has more than {MAX_BYTES >> 20} MB: give a smaller one")
        yield piece


def _threshold(text: str) -> float:
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= 1:
        raise InputError("threshold is not a number between 0 and 1")
    return threshold
