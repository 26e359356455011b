"""How a route gets the service. Knows where `create_app` put it."""

from typing import Annotated, cast

from fastapi import Depends, Request

from api.service import Service

__all__ = ["TheService"]


async def _service(request: Request) -> Service:
    return cast("Service", request.app.state.service)


TheService = Annotated[Service, Depends(_service)]
