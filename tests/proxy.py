"""A TCP proxy that can go silent: it stops forwarding and closes nothing, as a router does that lost its state."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

__all__ = ["SilentProxy"]


class SilentProxy:
    """Forwards what comes to `port` to another port of this machine: `with SilentProxy(to_port) as proxy`.

    `freeze` makes all connections silent for ever, open ones and new ones; after `thaw` new ones work, the others stay
    as they are.
    """

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._alive = threading.Event()
        self._alive.set()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for each in [self._server, *self._sockets]:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def freeze(self) -> None:
        """Forward nothing any more."""
        self._alive.clear()

    def thaw(self) -> None:
        """Forward what comes over new connections; those that were open stay silent."""
        self._alive = threading.Event()
        self._alive.set()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._server.accept()
            except OSError:  # closed
                return
            target = socket.create_connection(("127.0.0.1", self._to_port))
            alive = self._alive
            with self._lock:
                self._sockets += [caller, target]
            for source, sink in ((caller, target), (target, caller)):
                threading.Thread(target=self._forward, args=(source, sink, alive), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket, alive: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                if not alive.is_set():
                    return  # without a word to either side
                sink.sendall(data)
            if alive.is_set():
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            return
