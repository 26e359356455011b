"""Reads a file of named keys, one `name:key` per line, and reads it again when it has changed."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

__all__ = ["KeysFile"]

_log = structlog.get_logger(__name__)

_LOOK_EVERY_S: Final = 1.0
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class KeysFile:
    """Blank lines and those that begin with # are skipped; a name may have several keys, so that one can be replaced.

    The file is looked at once a second at most, when somebody asks. One that cannot be read leaves the keys as they
    were and is logged once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owners: Mapping[bytes, str] = {}
        self._seen: object = None
        self._look_at = 0.0

    def owners(self) -> Mapping[bytes, str]:
        """Return each key's owner: its name, with a mark that no other kind of owner has."""
        if (now := time.monotonic()) >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            self._look()
        return self._owners

    def _look(self) -> None:
        try:
            found = self._path.stat()
            seen: object = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen != self._seen:
                self._owners = _parsed(self._path.read_text())
                _log.info("keys.read", names=sorted(set(self._owners.values())), keys=len(self._owners))
        except (OSError, ValueError) as error:
            seen = seen if isinstance(error, ValueError) else type(error)
            if seen != self._seen:
                _log.error("keys.not_read", file=str(self._path), reason=_reason(error), kept=len(self._owners))
        self._seen = seen


def _parsed(text: str) -> Mapping[bytes, str]:
    owners: dict[bytes, str] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        name, _, key = (part.strip() for part in line.partition(":"))
        if not _NAME.fullmatch(name) or not key or len(key.split()) > 1:
            raise ValueError(f"line {number} does not read name:key")
        if owners.setdefault(key.encode(), f"@{name}") != f"@{name}":
            raise ValueError(f"line {number} repeats another name's key")
    return owners


def _reason(error: OSError | ValueError) -> str:
    """Return what is wrong, without a word of what stands in the file."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
