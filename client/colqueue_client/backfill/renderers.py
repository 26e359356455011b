"""Starts render processes, sends them tasks, and returns their answers or says that a process died."""

import asyncio
import signal
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import msgpack

from colqueue_client.launch.tether import tether

__all__ = ["LENGTH", "RenderDiedError", "Renderers"]

LENGTH: Final = struct.Struct("<I")
"""Stands before each message to and from a render process."""

_PAGE_TIMEOUT_S: Final = 120
# A process that closed its pipes ends by itself within this time, and its exit status says why.
_EXIT_S: Final = 2.0


class RenderDiedError(Exception):
    """The process that had this task crashed, or took too long."""


class Renderers:
    """`count` render processes, started when first needed and again when one died. For one event loop."""

    def __init__(self, count: int, *, module: str = "colqueue_client.backfill.render") -> None:
        command = tether([sys.executable, "-m", module, str(_PAGE_TIMEOUT_S)])
        self._all = [_Renderer(command) for _ in range(count)]
        self._free: asyncio.LifoQueue[_Renderer] = asyncio.LifoQueue()
        for renderer in self._all:
            self._free.put_nowait(renderer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(renderer.end() for renderer in self._all))

    async def ask(self, task: dict[str, Any]) -> Any:
        """Return the answer to `task`, as soon as a process is free; RenderDiedError where it did not survive it."""
        renderer = await self._free.get()
        try:
            return await renderer.ask(task)
        finally:
            self._free.put_nowait(renderer)


class _Renderer:
    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, task: dict[str, Any]) -> Any:
        if self._process is None:
            pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
            # A session of its own: a Ctrl-C in the terminal must not look like a crash of the page being rendered.
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe, stderr=nowhere, start_new_session=True
            )
        source, target = self._process.stdout, self._process.stdin
        assert source is not None  # noqa: S101 - for mypy: both are pipes
        assert target is not None  # noqa: S101 - likewise
        packed = msgpack.packb(task)
        try:
            target.write(LENGTH.pack(len(packed)) + packed)
            await target.drain()
            (length,) = LENGTH.unpack(await source.readexactly(LENGTH.size))
            return msgpack.unpackb(await source.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise RenderDiedError(_cause(await self.end(exit_s=_EXIT_S))) from None
        except asyncio.CancelledError:
            await self.end()  # it is writing an answer that nobody will read
            raise

    async def end(self, *, exit_s: float = 0) -> int:
        """End the process, if there is one, and return its status. It is killed if it has not ended after `exit_s`."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None  # noqa: S101 - for mypy: both are pipes
        assert process.stdout is not None  # noqa: S101 - likewise
        process.stdin.close()
        if exit_s:
            with suppress(TimeoutError):
                return await asyncio.wait_for(process.wait(), exit_s)
        with suppress(ProcessLookupError):
            process.kill()
        # `wait` returns only once the pipes are closed, and a pipe that is full is closed only once it has been read.
        await process.stdout.read()
        return await process.wait()


def _cause(status: int) -> str:
    if status == -signal.SIGALRM:
        return f"it took longer than {_PAGE_TIMEOUT_S} s to render"
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    return f"the process that rendered it ended with {name}"
