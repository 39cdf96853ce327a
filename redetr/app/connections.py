"""Closes idle connections before they keep others out."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_REQUEST_S = 5.0  # for the head of a request to arrive
_MOST_SILENT = 200  # connections without a request; a process may often have 1,024 files open


class PromptProtocol(H11Protocol):
    """HTTP. A connection is closed if the head of a request does not arrive in time, and the oldest
    idle one is closed if there are too many."""

    _silent: dict["PromptProtocol", asyncio.TimerHandle] = {}  # of all connections

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering:
            self._expect_nothing()
        elif self not in self._silent:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if len(self._silent) >= _MOST_SILENT:
            oldest = next(iter(self._silent))
            oldest._close()
        self._silent[self] = asyncio.get_running_loop().call_later(_REQUEST_S, self._close)

    def _expect_nothing(self) -> None:
        limit = self._silent.pop(self, None)
        if limit is not None:
            limit.cancel()

    def _close(self) -> None:
        self._expect_nothing()
        self.transport.close()
