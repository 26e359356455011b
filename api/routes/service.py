"""Dependencies of the routes: the service, and the bounds on what one key keeps open at once."""

from collections.abc import AsyncIterator
from typing import Annotated, cast

from fastapi import Depends, Request

from api.auth import Owner
from api.service import Service

__all__ = ["TheService", "count_call", "count_stream", "count_wait"]


async def _service(request: Request) -> Service:
    return cast("Service", request.app.state.service)


TheService = Annotated[Service, Depends(_service)]


async def count_call(owner: Owner, service: TheService) -> AsyncIterator[None]:
    """Count the request among those of its key until it is answered to its end; 429 where the key has too many."""
    with service.calls.one_more(owner):
        yield


async def count_stream(owner: Owner, service: TheService) -> AsyncIterator[None]:
    """Count an event stream likewise."""
    with service.waits.one_more(owner):
        yield


async def count_wait(request: Request, owner: Owner, service: TheService) -> AsyncIterator[None]:
    """Count a long-poll likewise, together with the event streams."""
    if "wait" not in request.query_params:
        yield
    else:
        with service.waits.one_more(owner):
            yield
