"""Extends uvicorn's HTTP/1.1 protocol: closes connections whose caller stops sending a head or reading an answer."""

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["ImpatientProtocol"]

_HEAD_S: Final = 15.0
# How long a caller may leave a full send buffer (64 KB) as it is.
_STALL_S: Final = 30.0


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose request line and headers do not arrive in time; h11 bounds their size (16 KB).

    Aborts a connection whose caller reads nothing of its answer for `_STALL_S`: it would hold its part of the answer,
    and the room for it, without end.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Expect a head from now on."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Expect the rest of a head that has begun, nothing of one that is through."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._forget_head()
        self._forget_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for the caller to read."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Wait no longer: the caller has read."""
        self._forget_stall()
        super().resume_writing()

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_S, self.transport.close)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _forget_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
