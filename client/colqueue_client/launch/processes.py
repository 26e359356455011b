"""Starts named processes, shows and keeps what they print, and ends them all."""

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
from colqueue_client.launch.log_file import LogFile
from colqueue_client.launch.tether import tether

__all__ = ["Children"]

T = TypeVar("T")

_POLL_S: Final = 0.1
_LAST_LINES: Final = 20
# Two inputs of one job that kill the worker do so seven times in a row before they are given up.
_QUICK_DEATHS: Final = 10
_QUICK_S: Final = 60
_LONGEST_PAUSE_S: Final = 10.0
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class _Child:
    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: LogFile
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    quick_deaths: int = 0
    process: subprocess.Popen[str] = field(init=False)
    reader: threading.Thread = field(init=False)
    started_at: float = field(init=False)
    again_at: float | None = None


class Children:
    """The processes of one launcher: `with Children(...) as children`, in the main thread.

    Each child has a session of its own, so a terminal's Ctrl-C reaches the launcher alone, and dies with the launcher
    however that ends (Linux). SIGINT, SIGTERM and SIGHUP are noted and surface as KeyboardInterrupt from `wait` and
    `during`. Leaving the block ends the children, last started first; signals that come meanwhile change nothing.
    """

    def __init__(self, console: Console, log_dir: Path, *, grace_s: float = 10, first_pause_s: float = 1) -> None:
        self._console = console
        self._log_dir = log_dir
        self._grace_s = grace_s
        self._first_pause_s = first_pause_s
        self._children: list[_Child] = []
        self._kept: set[str] = set()
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
            self._end(self._children.pop())
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> int:
        """Start `command` with exactly `env` and return its process id. What it prints also goes to NAME.log."""
        child = _Child(name, command, env, LogFile(self._log_dir / f"{name}.log"))
        child.log.remove()
        self._launch(child)
        self._children.append(child)
        return child.process.pid

    def keep(self, *names: str) -> None:
        """From now on start these again when they end, after a pause that grows while they end soon after.

        One that does so too often in a row ends `wait` and `during` like any other.
        """
        self._kept.update(names)

    def wait(self, seconds: float) -> None:
        """Return after so long.

        Raises:
            KeyboardInterrupt: the launcher was asked to stop.
            ChildExitedError: a child ended by itself, and is not kept or cannot be.
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
        for child in self._children:
            if child.again_at is not None:
                if time.monotonic() >= child.again_at:
                    self._launch(child)
            elif (status := child.process.poll()) is not None:
                self._bury(child, status)

    def _launch(self, child: _Child) -> None:
        child.process = subprocess.Popen(  # noqa: S603  # our own command lines, no shell
            tether(child.command),
            env=child.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        child.started_at, child.again_at = time.monotonic(), None
        child.last_lines.clear()
        child.reader = threading.Thread(target=self._read, args=(child,), name=f"read-{child.name}", daemon=True)
        child.reader.start()

    def _bury(self, child: _Child, status: int) -> None:
        """Arrange for a dead child to be started again, or raise what it died of."""
        _signal_group(child, signal.SIGKILL)  # what it has left behind
        child.reader.join(timeout=1)  # its last lines; bounded, since what left its session may hold the pipe
        lived_s = time.monotonic() - child.started_at
        child.quick_deaths = child.quick_deaths + 1 if lived_s < _QUICK_S else 1
        if child.name not in self._kept:
            raise ChildExitedError(_obituary(child, status))
        if child.quick_deaths >= _QUICK_DEATHS:
            again = f"It ended {child.quick_deaths} times in a row, each within {_QUICK_S} s of its start."
            raise ChildExitedError(f"{_obituary(child, status)}\n{again}")
        pause_s = min(self._first_pause_s * 2 ** (child.quick_deaths - 1), _LONGEST_PAUSE_S)
        child.again_at = time.monotonic() + pause_s
        self._console.say(f"{child.name} {_cause(status)}. Starting it again in {pause_s:g} s ...")

    def _note_signal(self, _number: int, _frame: object) -> None:
        self._asked_to_stop = True

    def _read(self, child: _Child) -> None:
        assert child.process.stdout is not None  # noqa: S101  # for mypy: we asked for a pipe
        with child.process.stdout as lines:
            for line in lines:
                child.log.add(line)
                if text := line.rstrip():
                    child.last_lines.append(text)
                    self._console.say(text, name=child.name)

    def _end(self, child: _Child) -> None:
        if child.process.poll() is None:
            _signal_group(child, signal.SIGTERM)
            try:
                child.process.wait(self._grace_s)
            except subprocess.TimeoutExpired:
                self._console.say(f"{child.name} is still there {self._grace_s:g} s after SIGTERM: killing it")
        _signal_group(child, signal.SIGKILL)  # what is left of its session, itself included
        child.process.wait()
        child.reader.join(timeout=1)
        child.log.close()


def _signal_group(child: _Child, number: signal.Signals) -> None:
    try:
        os.killpg(child.process.pid, number)
    except (ProcessLookupError, PermissionError):  # nobody left; macOS says "permission" where only a zombie is
        return


def _obituary(child: _Child, status: int) -> str:
    lines = "".join(f"\n    {line}" for line in child.last_lines) or "\n    (it printed nothing)"
    return f"{child.name} {_cause(status)}. Its last lines (all of them: {child.log.baseFilename}):{lines}"


def _cause(status: int) -> str:
    return f"ended with exit status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
