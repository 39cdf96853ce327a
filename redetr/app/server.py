"""The application that uvicorn runs: the page at `/`, and the endpoint below `/api`."""

import socket
from collections.abc import Callable, Collection
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from redetr.app.answers import JSONAnswer
from redetr.app.api import Api
from redetr.app.guard import Guard
from redetr.app.page import Page
from redetr.app.uploads import BusyError, Turns, Uploads
from redetr.data import DetectionDataset
from redetr.detector.detector import Detector
from redetr.errors import InputError, RedetrError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def web_app(
    detector: Detector,
    dataset: DetectionDataset | None,
    title: str,
    host: str,
    allowed: Collection[str] = (),
) -> Guard:
    """The guarded application for a detector with this `title`. It is served at the address `host`,
    and under the `allowed` host names.

    `dataset` has the images whose loss the page explains; by default, those that the detector was
    trained on.
    """
    uploads = Uploads()
    turns = Turns()
    page = Page(detector, dataset, title, uploads, turns)
    api = Api(detector, uploads, turns)
    app = Starlette(
        routes=[*page.routes(), *api.routes()],
        exception_handlers=_ERROR_ANSWERS,
    )
    if host in _LOOPBACK:
        return Guard(app, hosts=(*_LOOPBACK, *allowed), any_address=False)
    of_machine = (socket.gethostname().lower(), "localhost")
    names = () if is_any_address(host) else (host.lower(),)
    hosts = dict.fromkeys((*allowed, *names, *of_machine))
    return Guard(app, hosts=tuple(hosts), any_address=True)


def is_any_address(host: str) -> bool:
    """Whether an address stands for all addresses of this machine."""
    return host in ("", "0.0.0.0", "::")


def _refused(request: Request, error: HTTPException) -> JSONAnswer:
    return JSONAnswer({"error": error.detail}, error.status_code, error.headers)


def _wrong_input(request: Request, error: InputError) -> JSONAnswer:
    status = 503 if isinstance(error, BusyError) else 400
    return JSONAnswer({"error": str(error)}, status)


def _known_failure(request: Request, error: RedetrError) -> JSONAnswer:
    return JSONAnswer({"error": str(error)}, 500)


def _nobody_waits(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)


def _failed(request: Request, error: Exception) -> JSONAnswer:
    return JSONAnswer({"error": "unexpected error: see the server's log"}, 500)


# Every invalid request is answered with {"error": "..."}, in one line.
_ERROR_ANSWERS: dict[Any, Callable[..., Response]] = {
    HTTPException: _refused,
    InputError: _wrong_input,
    RedetrError: _known_failure,
    ClientDisconnect: _nobody_waits,
    Exception: _failed,
}
