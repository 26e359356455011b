"""Configures structured logs, the same in every process."""

import logging
import re
import sys
from collections.abc import Iterable
from typing import Final

import structlog

from shared.settings import LogSettings

__all__ = ["configure_logs"]

# What could move a terminal's cursor, begin a line that nobody logged, or turn the direction of the text.
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_LONGEST: Final = 1000


def configure_logs(settings: LogSettings, filters: Iterable[logging.Filter] = ()) -> None:
    """Send structlog and the standard library's loggers through `filters` and one renderer to stderr.

    Control characters are escaped, for values may come from callers. Tracebacks never show local variables: they hold
    keys and payloads.
    """
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.StackInfoRenderer(),
    ]
    terminal = sys.stderr.isatty()
    text = settings.log_format == "text" or (settings.log_format == "auto" and terminal)
    render: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback)
        if text
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _make_harmless,
                render,
            ],
        )
    )
    for each in filters:
        handler.addFilter(each)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)


def _make_harmless(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape control characters and cut what is too long; renderers show values that are no text by their `repr`."""
    for name, value in event.items():
        if not isinstance(value, str):
            continue
        if name in {"exception", "stack"}:
            # Only what is logged begins at the margin.
            event[name] = "\n  ".join(map(_escape, value.split("\n")))
        else:
            event[name] = _escape(value[:_LONGEST])
            if len(value) > _LONGEST:
                event[name] += f"... ({len(value)} characters)"
    return event


def _escape(text: str) -> str:
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
