"""Writes the lines of one program to a log file of bounded size, whatever happens to the disk."""

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

__all__ = ["LogFile"]

# Raised: more of a program's past can be read, and more of the disk is used: at most four times this per program.
_MAX_BYTES: Final = 10 * 2**20
_OLDER_FILES: Final = 3


class LogFile(RotatingFileHandler):
    """`NAME.log`, and the files before it as `NAME.log.1` and so on; it opens with the first line.

    A line that cannot be written is lost, and the next one is tried again: a full disk neither ends the reader of a
    program's output, which would block the program, nor silences its log for ever.
    """

    terminator = ""

    def __init__(self, path: Path, max_bytes: int = _MAX_BYTES) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=_OLDER_FILES, encoding="utf-8", delay=True)

    def add(self, line: str) -> None:
        """Append one line, with its end."""
        self.handle(logging.makeLogRecord({"msg": line}))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 logging's name
        """Drop the line, and what is left of the broken stream: the next line opens the file again."""
        del record
        stream, self.stream = self.stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError:
                return

    def remove(self) -> None:
        """Delete the files of an earlier run."""
        self.close()
        path = Path(self.baseFilename)
        for old in path.parent.glob(f"{path.name}*"):
            old.unlink(missing_ok=True)
