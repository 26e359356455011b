"""Says what an unwanted answer means: the service refuses, another server answers, or the cause passes.

Proxies, login pages and other servers answer in their own ways; only the service's own errors are JSON of its form.
"""

from http import HTTPStatus
from typing import Any, Final

from colqueue_client.errors import ClientError, NotColqueueError, ServiceError, UnreachableError
from colqueue_client.wire import Reply, json_of

__all__ = ["PASSING_STATUSES", "UNSURE_STATUSES", "is_away", "is_unsure", "not_colqueue", "refusal"]

_REDIRECTS: Final = range(300, 400)
_LOGINS: Final = frozenset({401, 403, 407})
_TOO_LARGE: Final = 413
PASSING_STATUSES: Final = frozenset({429, 502, 503, 504})
"""Statuses that say nothing about the request, and pass. A proxy sends 502 and 504 when the server is away."""
UNSURE_STATUSES: Final = frozenset({302, 303, 307, 408, 425, *range(500, 600)}) - PASSING_STATUSES
"""Statuses that may pass, and may as well be there for good, such as an error inside, or a proxy's redirect."""


def refusal(reply: Reply) -> ClientError:
    """Return the error that an answer with a status other than the one hoped for is."""
    said = _said(reply)
    if said is not None:
        index = said.get("index")
        code, message = str(said.get("code", "unknown")), str(said.get("error") or said.get("reason"))
        return ServiceError(reply.status, code, message, index=index if isinstance(index, int) else None)
    told = _told(reply)
    if reply.status in _REDIRECTS:
        target = reply.headers.get("location", "an address that it does not name")
        return NotColqueueError(
            f"{told}, which redirects to {target}. Is that a login page, or the right address of the service?"
        )
    if reply.status in _LOGINS:
        return ServiceError(
            reply.status, "unknown", f"{told}. A proxy or another server there wants a login of its own"
        )
    if reply.status == _TOO_LARGE:
        return ServiceError(reply.status, "too_large", f"{told}. A proxy takes only smaller requests")
    if not _is_success(reply) and (is_away(reply) or is_unsure(reply)):
        return UnreachableError(f"{told}. A proxy is there, and the service behind it does not answer")
    return not_colqueue(reply)


def not_colqueue(reply: Reply, reason: str = "") -> NotColqueueError:
    """Return the error of an answer that colqueue would not give."""
    because = f" ({reason})" if reason else ""
    return NotColqueueError(f"{_told(reply)}: that is not colqueue{because}. Check the URL, and any proxy in between")


def is_away(reply: Reply) -> bool:
    """Return whether the service is away or full, which passes however long it takes."""
    return reply.status in PASSING_STATUSES


def is_unsure(reply: Reply) -> bool:
    """Return whether the answer may pass, as a proxy's maintenance page does, and may as well be there for good."""
    return reply.status in UNSURE_STATUSES or _is_success(reply)


def _is_success(reply: Reply) -> bool:
    return HTTPStatus.OK <= reply.status < HTTPStatus.MULTIPLE_CHOICES


def _said(reply: Reply) -> dict[str, Any] | None:
    """Return the service's own error body, if the answer has one."""
    try:
        body = json_of(reply)
    except UnreachableError:
        return None
    is_ours = isinstance(body, dict) and ({"error", "code"} <= body.keys() or {"status", "reason"} <= body.keys())
    return body if is_ours else None


def _told(reply: Reply) -> str:
    phrase = next((f" {status.phrase}" for status in HTTPStatus if status == reply.status), "")
    kind = reply.headers.get("content-type", "").partition(";")[0]
    page = "an HTML page" if "html" in kind or reply.content.lstrip()[:1] == b"<" else kind or "no content type"
    return f"{reply.url or 'the server'} answered {reply.status}{phrase} with {page}"
