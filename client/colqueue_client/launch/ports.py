"""Finds free TCP ports on this machine and checks that a port can be listened on."""

import contextlib
import secrets
import socket
from typing import Final

from colqueue_client.errors import LaunchError

__all__ = ["free_port", "require_free"]


# Below the ports that Linux (from 32768) and macOS (from 49152) give to outgoing connections.
_PORTS: Final = range(10_000, 32_000)
_TRIES: Final = 100


def free_port() -> int:
    """Return a loopback port that nobody listened on a moment ago, and that no outgoing connection is given.

    Else a server that stops for a moment may not get its port back: a client that tries to reach it again can be given
    that very port, and is then connected to itself.

    Raises:
        LaunchError: none of many ports was free.
    """
    for port in secrets.SystemRandom().sample(_PORTS, _TRIES):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise LaunchError(f"none of {_TRIES} ports between {_PORTS.start} and {_PORTS.stop} is free on 127.0.0.1")


def require_free(host: str, port: int, *, variable: str) -> None:
    """Raise LaunchError unless `host:port` can be listened on; `variable` is the setting that moves it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: connections of an earlier run that linger in TIME_WAIT do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise LaunchError(
            f"cannot listen on {host} port {port}: {error.strerror}. Set {variable} to another port."
        ) from error
