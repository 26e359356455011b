"""Lines of progress for whoever waits, on standard error. Knows nothing of what is measured."""

import sys
import time

__all__ = ["say"]

_STARTED = time.monotonic()


def say(text: str) -> None:
    """Write one line with the time since the start."""
    sys.stderr.write(f"[{time.monotonic() - _STARTED:6.0f} s] {text}\n")
    sys.stderr.flush()
