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
    as they are. Otherwise the end of a connection, and a target that refuses it, reach the caller as they would without
    the proxy.
    """

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._alive = threading.Event()
        self._alive.set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = {self._server}

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(*self._sockets)

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
            threading.Thread(target=self._serve, args=(caller, self._alive), daemon=True).start()

    def _serve(self, caller: socket.socket, alive: threading.Event) -> None:
        with self._lock:
            self._sockets.add(caller)
        try:
            target = socket.create_connection(("127.0.0.1", self._to_port))
        except OSError:
            self._close(caller)
            return
        with self._lock:
            self._sockets.add(target)
        answers = threading.Thread(target=self._forward, args=(target, caller, alive), daemon=True)
        answers.start()
        self._forward(caller, target, alive)
        answers.join()
        if alive.is_set():
            self._close(caller, target)

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket, alive: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not alive.is_set():
                    return  # without a word to either side
                sink.sendall(data)
        if alive.is_set():
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def _close(self, *sockets: socket.socket) -> None:
        with self._lock:
            for each in sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            self._sockets -= set(sockets)
