"""Writes lines from several sources to one terminal."""

import os
import threading
from typing import Final, TextIO

__all__ = ["Console"]

_COLOURS: Final = (36, 32, 33, 35, 34)  # ANSI cyan, green, yellow, magenta, blue
_NAME_WIDTH: Final = 8


class Console:
    """Writes whole lines behind the name of their source, in colour on a terminal only. Safe from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._coloured = stream.isatty() and not os.environ.get("NO_COLOR")
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}

    def say(self, text: str, *, name: str = "colqueue") -> None:
        """Write the lines of `text`, with no other source's lines between them."""
        prefix = self._prefix(name)
        self._write("".join(f"{prefix} {line}".rstrip() + "\n" for line in text.split("\n")))

    def show(self, text: str) -> None:
        """Write `text` with nothing before its lines, so that they can be copied."""
        self._write(f"\n{text}\n")

    def _write(self, block: str) -> None:
        with self._lock:
            try:
                self._stream.write(block)
                self._stream.flush()
            except BrokenPipeError:
                # The reader left (`colqueue up | head`): serving goes on in silence, the log files have every line.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            except OSError:  # a full disk, where this goes to a file: these lines are lost, the next are tried again
                return

    def _prefix(self, name: str) -> str:
        column = f"{name:<{_NAME_WIDTH}} |"
        if not self._coloured:
            return column
        colour = _COLOURS[self._seen.setdefault(name, len(self._seen)) % len(_COLOURS)]
        return f"\033[{colour}m{column}\033[0m"
