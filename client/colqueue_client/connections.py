"""Which service a client talks to, with which key, and over which connections."""

import os
from typing import Any, Final, Generic, TypeVar

import httpx2

from colqueue_client.calls import NoReply, Retry
from colqueue_client.errors import UnreachableError

__all__ = ["DEFAULT_URL", "Connections"]

H = TypeVar("H", bound=httpx2.Client | httpx2.AsyncClient)

DEFAULT_URL: Final = "http://127.0.0.1:8000"

# The service answers a synchronous request after 600 s at the latest, unless told otherwise: let its answer come first.
_TIMEOUT: Final = httpx2.Timeout(630, connect=10)


class Connections(Generic[H]):
    """What both clients have in common.

    A process that was forked opens connections of its own. Those it inherited are its parent's: two processes on one
    connection would read each other's answers. They stay open here, as closing them could end TLS for the parent.
    """

    _open: type[H]

    def __init__(self, url: str | None, key: str | None, retry: Retry | None, **options: Any) -> None:
        where = _parse_url(url or os.environ.get("COLQUEUE_URL") or DEFAULT_URL)
        self.url = str(where.copy_with(username=None, password=None)).rstrip("/")
        # The service's own variable may hold several: any of them will do.
        key = key or os.environ.get("SERVICE_API_KEY", "").split(",")[0].strip()
        if not (key.isascii() and key.isprintable()):
            raise UnreachableError("the key has characters that cannot be sent: is it another file's content?")
        self.retry = retry or Retry()
        self.options: dict[str, Any] = {
            "base_url": where,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": _TIMEOUT,
            **options,
        }
        self._inherited: list[H] = []
        self._opened: tuple[int, H] = (os.getpid(), self._open(**self.options))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    @property
    def _http(self) -> H:
        """The connections of this process."""
        pid, http = self._opened
        if pid != os.getpid():
            self._inherited.append(http)
            # Two threads that find this at once open a pool each; the second pool serves from then on.
            http = self._open(**self.options)
            self._opened = (os.getpid(), http)
        return http

    def _no_reply(self, error: Exception) -> NoReply:
        return NoReply(f"{self.url}: {error or type(error).__name__}")


def _parse_url(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UnreachableError(f"{url!r} is not a URL: {error}") from error
    if parsed.scheme not in {"http", "https"}:
        raise UnreachableError(f"{url!r} does not begin with http:// or https://")
    if not parsed.host:
        raise UnreachableError(f"{url!r} names no host")
    return parsed
