"""TCP ports on this machine. Knows sockets; knows nothing of who will listen."""

import socket

from colqueue_client.errors import LaunchError

__all__ = ["free_port", "require_free"]


def free_port() -> int:
    """Return a loopback port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
