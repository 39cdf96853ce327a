"""Checks of each request before it is answered, and headers that restrict the browser."""

from collections.abc import Collection, MutableMapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from redetr.app.answers import JSONAnswer
from redetr.wording import alternatives

_READING = ("GET", "HEAD")
# The page loads from this server only, and runs no script inside its HTML.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; frame-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
# An explanation contains its script, style and images. Its frame cannot reach the page around it.
FRAME_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'self'; "
    "sandbox allow-scripts"
)
_HEADERS = {
    "content-security-policy": _PAGE_POLICY,
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",  # answers show uploads
}


class Guard:
    """Wraps the whole application, and refuses requests that other web sites send through a
    visitor's browser.

    Requests are answered only if they name one of `hosts` as the host, or any IP address with
    `any_address`. Otherwise, another site could point its own host name at this server, behind a
    firewall or on this machine, and read from it through the browser of a visitor (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], any_address: bool):
        self._app = app
        self._hosts = hosts
        self._any_address = any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["method"], Headers(scope=scope))
        answer = self._app if refusal is None else refusal
        await answer(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> JSONAnswer | None:
        if not self._is_server_name(hostname(headers.get("host", ""))):
            names = alternatives(self._hosts)
            text = f"this server is reached as {names}: use one of these names, or restart it with"
            return JSONAnswer({"error": f"{text} --allow-host NAME"}, 400)
        if method not in _READING and _is_cross_site(headers):
            return JSONAnswer(
                {"error": "another web site sent this request: open this server's own page"}, 403
            )
        return None

    def _is_server_name(self, name: str) -> bool:
        """Whether the server may be addressed by this host name."""
        if name in self._hosts:
            return True
        return self._any_address and _is_ip_address(name)


def _is_ip_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def hostname(host: str) -> str:
    """The name in a Host header, without its port; empty if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets that do not match
        return ""


def _is_cross_site(headers: Headers) -> bool:
    """Whether a browser sent the request on behalf of another site. Programs send no such
    headers."""
    site = headers.get("sec-fetch-site")
    if site is not None:  # also right behind a proxy that changes the host
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return False
    return origin.partition("://")[2].lower() != headers.get("host", "").lower()
