"""What is let through to Gradio: the calls that the page makes, about files that were uploaded.

Gradio (6.31), mounted in another application, otherwise copies and serves any local file that a call names, and
fetches any public address for a client.
"""

import json
from collections.abc import Collection, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_GRADIO = "/gradio_api/"
_CALL, _UPLOAD, _FILE = f"{_GRADIO}queue/join", f"{_GRADIO}upload", f"{_GRADIO}file="
_READ = tuple(f"{_GRADIO}{name}" for name in ("queue/data", "heartbeat/", "upload_progress", "startup-events"))
_MOST_CALL_BYTES = 2**20
_MOST_KEPT_BYTES = 2**30  # of uploads, until Gradio deletes them
_HEADERS = [
    (b"content-security-policy", b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Guard:
    """Around the whole application, whose uploads lie in the folder `uploads`. Has browsers refuse whatever would come
    from, or go to, another place than this server.

    It answers under the names in `hosts` only, if they are given: so no other site can reach a server that only this
    machine is meant to reach, by a name of its own that leads here."""

    def __init__(self, app: ASGIApp, uploads: Path, hosts: Collection[str] | None):
        self._app, self._uploads, self._hosts = app, uploads.resolve(), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, await self._checked(Request(scope, receive)), send_guarded)
        except HTTPException as error:  # of `_checked`: the application answers its own
            await JSONResponse({"error": error.detail}, error.status_code)(scope, receive, send_guarded)
        except ClientDisconnect:
            pass  # nobody waits for an answer

    async def _checked(self, request: Request) -> Receive:
        """What the application receives the request by. Raises HTTPException if it is not let through."""
        path = request.url.path
        if self._hosts and request.url.hostname not in self._hosts:
            raise HTTPException(400, f"this server is called {' or '.join(self._hosts)}: use that name")
        if path.startswith("/api/"):
            return request.receive
        if request.method == "POST" and path == _CALL:
            return await self._checked_call(request)
        if request.method == "POST" and path == _UPLOAD:
            if sum(file.stat().st_size for file in self._uploads.rglob("*") if file.is_file()) > _MOST_KEPT_BYTES:
                raise HTTPException(503, "too much was uploaded within the last hour: try again later")
        elif request.method not in ("GET", "HEAD") or (path.startswith(_GRADIO) and not self._is_readable(path)):
            raise HTTPException(404, "there is nothing here")
        return request.receive

    async def _checked_call(self, request: Request) -> Receive:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > _MOST_CALL_BYTES:
                raise HTTPException(413, "the call is too long")
        try:
            named = list(_paths_in(json.loads(body)))
        except (ValueError, RecursionError):
            raise HTTPException(400, "the call is not JSON") from None
        if not all(self._was_uploaded(path) for path in named):
            raise HTTPException(400, "the call names a file that was not uploaded")
        whole: Message = {"type": "http.request", "body": bytes(body), "more_body": False}
        parts = iter([whole])

        async def receive() -> Message:
            return next(parts, None) or await request.receive()

        return receive

    def _is_readable(self, path: str) -> bool:
        return path.startswith(_READ) or (path.startswith(_FILE) and self._was_uploaded(path.removeprefix(_FILE)))

    def _was_uploaded(self, path: Any) -> bool:
        try:
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self._uploads)
        except (TypeError, ValueError, OSError):  # a number; a zero byte; too long
            return False


def _paths_in(value: Any) -> Iterator[Any]:
    """What is called "path" at any depth: so Gradio names files."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _paths_in(each)
