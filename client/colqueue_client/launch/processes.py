"""Starts named processes, shows what they print, and ends them all. Knows signals; knows nothing of what they do."""

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from colqueue_client.errors import ChildExitedError
from colqueue_client.launch.console import Console
from colqueue_client.launch.tether import tethered

__all__ = ["Children"]

T = TypeVar("T")

_POLL_S: Final = 0.1
_LAST_LINES: Final = 20
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class _Child:
    name: str
    process: subprocess.Popen[str]
    log: Path
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))


class Children:
    """The processes of one launcher: `with Children(...) as children`, in the main thread.

    Each child has a session of its own, so a terminal's Ctrl-C reaches the launcher alone, and dies with the launcher
    however that ends (Linux). SIGINT, SIGTERM and SIGHUP are noted and surface as KeyboardInterrupt from `wait` and
    `during`. Leaving the block ends the children, last started first; signals that come meanwhile change nothing.
    """

    def __init__(self, console: Console, log_dir: Path, *, grace_s: float = 10) -> None:
        self._console = console
        self._log_dir = log_dir
        self._grace_s = grace_s
        self._children: list[tuple[_Child, threading.Thread]] = []
        self._asked_to_stop = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        for number in _STOP_SIGNALS:
            # nohup ignores SIGHUP on purpose; a shell that ignores SIGINT for its background jobs does not mean us.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._note_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._children:
            self._end(*self._children.pop())
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> int:
        """Start `command` with exactly `env` and return its process id. What it prints also goes to NAME.log."""
        process = subprocess.Popen(  # noqa: S603  # our own command lines, no shell
            tethered(command),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        child = _Child(name, process, self._log_dir / f"{name}.log")
        reader = threading.Thread(target=self._read, args=(child,), name=f"read-{name}", daemon=True)
        self._children.append((child, reader))
        reader.start()
        return process.pid

    def wait(self, seconds: float) -> None:
        """Return after so long.

        Raises:
            KeyboardInterrupt: the launcher was asked to stop.
            ChildExitedError: a child ended by itself.
        """
        deadline = time.monotonic() + seconds
        self._check()
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_S))
            self._check()

    def during(self, work: Callable[[], T]) -> T:
        """Return `work()`, run in another thread; raise as `wait` does, and leave it, when that comes first.

        `work` must end by itself once the children are gone: the interpreter waits for it.
        """
        executor = ThreadPoolExecutor(1)
        future = executor.submit(work)
        executor.shutdown(wait=False)
        while not future.done():
            self.wait(_POLL_S)
        return future.result()

    def _check(self) -> None:
        if self._asked_to_stop:
            raise KeyboardInterrupt
        for child, reader in self._children:
            status = child.process.poll()
            if status is not None:
                reader.join(timeout=1)  # its last lines; bounded, since a process it left behind may hold the pipe
                raise ChildExitedError(_obituary(child, status))

    def _note_signal(self, _number: int, _frame: object) -> None:
        self._asked_to_stop = True

    def _read(self, child: _Child) -> None:
        assert child.process.stdout is not None  # noqa: S101  # for mypy: we asked for a pipe
        with child.process.stdout as lines, child.log.open("w", encoding="utf-8", buffering=1) as log:
            for line in lines:
                log.write(line)
                if text := line.rstrip():
                    child.last_lines.append(text)
                    self._console.say(text, name=child.name)

    def _end(self, child: _Child, reader: threading.Thread) -> None:
        if child.process.poll() is None:
            _signal_group(child, signal.SIGTERM)
            try:
                child.process.wait(self._grace_s)
            except subprocess.TimeoutExpired:
                self._console.say(f"{child.name} is still there {self._grace_s:g} s after SIGTERM: killing it")
        _signal_group(child, signal.SIGKILL)  # what is left of its session, itself included
        child.process.wait()
        reader.join(timeout=1)


def _signal_group(child: _Child, number: signal.Signals) -> None:
    try:
        os.killpg(child.process.pid, number)
    except (ProcessLookupError, PermissionError):  # nobody left; macOS says "permission" where only a zombie is
        return


def _obituary(child: _Child, status: int) -> str:
    cause = f"ended with exit status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
    lines = "".join(f"\n    {line}" for line in child.last_lines) or "\n    (it printed nothing)"
    return f"{child.name} {cause}. Its last lines (all of them: {child.log}):{lines}"
