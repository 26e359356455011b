"""Serves `POST /embeddings` and `/npz/embeddings`: submits, waits and answers in one request."""

import asyncio
from functools import partial

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.answers import JSON, NPZ, model_headers, negotiated
from api.auth import Owner
from api.bodies import submission_of
from api.errors import CALLER_GONE, as_raised, error_response
from api.hang_ups import unless_gone, watching
from api.routes.service import TheService, count_call
from api.schemas import EMBEDDINGS_BODY, EMBEDDINGS_RESPONSES
from api.service import Service
from shared.codecs import AnswerHead
from shared.errors import WaitTimeoutError

__all__ = ["router"]

router = APIRouter(tags=["embeddings"], responses=EMBEDDINGS_RESPONSES, dependencies=[Depends(count_call)])


@router.post("/embeddings", openapi_extra=EMBEDDINGS_BODY)
async def embeddings(request: Request, owner: Owner, service: TheService) -> Response:
    """Embed page images or queries and wait for the result."""
    return await _embed(request, owner, service, default=JSON)


@router.post("/npz/embeddings", openapi_extra=EMBEDDINGS_BODY)
async def npz_embeddings(request: Request, owner: Owner, service: TheService) -> Response:
    """Embed, and answer as npz to callers that ask for nothing in particular: today's morphik-core."""
    return await _embed(request, owner, service, default=NPZ)


async def _embed(request: Request, owner: str, service: Service, *, default: str) -> Response:
    media_type = negotiated(request.headers.get("accept"), default)
    submission = await submission_of(request, service.limits, with_options=False)
    if submission is None:
        return service.answers.empty(media_type)
    clock = asyncio.get_running_loop().time
    ends_at, room_wait_s = clock() + service.settings.sync_timeout_s, service.settings.sync_room_wait_s
    async with watching(request.receive) as gone:
        job = await service.submit_patiently(submission, owner, min(room_wait_s, ends_at - clock()), gone)
    # While the caller waits, its inputs are in the store and no longer here.
    del submission
    request.state.body.let_go()
    if job is None:
        return Response(status_code=CALLER_GONE)
    finished = await unless_gone(request.receive, service.finished(job, owner, ends_at - clock()))
    if finished is None:
        await service.store.withdraw(job.id, owner)
        return Response(status_code=CALLER_GONE)
    if not finished.finished:
        location = f"/jobs/{job.id}"
        waited = f"Not ready after {service.settings.sync_timeout_s:g} s. The job goes on: see {location}"
        return error_response(WaitTimeoutError(waited), {"Location": location})
    async with watching(request.receive) as gone:
        read, wait_s = partial(service.store.result, finished), min(room_wait_s, ends_at - clock())
        result = await service.patience.until_passed(read, wait_s=wait_s, gone=gone)
    if result is None:
        await service.store.forget(finished, owner)
        return Response(status_code=CALLER_GONE)
    if result.failures:
        await service.store.forget(finished, owner)
        first = result.failures[0]
        raise as_raised(first.code, first.message, first.index)

    async def forget(_: bool) -> None:  # noqa: FBT001  # whether the answer is whole; nobody can ask for it again
        await service.store.forget(finished, owner)

    head = AnswerHead(job.input_type, job.total)
    response = service.answers.response(media_type, head, result, owner, after=forget)
    response.headers.update(model_headers(finished))
    return response
