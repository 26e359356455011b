"""`POST /embeddings` and `/npz/embeddings`: submit, wait, answer in one request, as the old service did."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.answers import JSON, NPZ, embeddings_response
from api.auth import Owner
from api.bodies import submission_of
from api.errors import CALLER_GONE, as_raised, error_response
from api.routes.service import TheService
from api.schemas import EMBEDDINGS_BODY, EMBEDDINGS_RESPONSES
from api.service import Service
from shared.codecs import Answer
from shared.errors import WaitTimeoutError
from shared.jobs import Job, Lane

__all__ = ["router"]

router = APIRouter(tags=["embeddings"], responses=EMBEDDINGS_RESPONSES)


@router.post("/embeddings", openapi_extra=EMBEDDINGS_BODY)
async def embeddings(request: Request, owner: Owner, service: TheService) -> Response:
    """Embed page images or queries and wait for the result."""
    return await _embed(request, owner, service, default=JSON)


@router.post("/npz/embeddings", openapi_extra=EMBEDDINGS_BODY)
async def npz_embeddings(request: Request, owner: Owner, service: TheService) -> Response:
    """Embed, and answer as npz to callers that ask for nothing in particular: today's morphik-core."""
    return await _embed(request, owner, service, default=NPZ)


async def _embed(request: Request, owner: str, service: Service, *, default: str) -> Response:
    accept = request.headers.get("accept")
    submission = await submission_of(request, service.limits, with_options=False)
    if submission is None:
        return await embeddings_response(accept, Answer("", []), default=default)
    job = await service.submit(submission, Lane.INTERACTIVE, owner)
    # While the caller waits, its inputs are in the store and no longer here.
    del submission
    request.state.body.let_go()
    finished = await _finished_unless_gone(request, service, job, owner)
    if finished is None:
        return Response(status_code=CALLER_GONE)
    if not finished.finished:
        location = f"/jobs/{job.id}"
        waited = f"Not ready after {service.settings.sync_timeout_s:g} s. The job goes on: see {location}"
        return error_response(WaitTimeoutError(waited), {"Location": location})
    result = await service.store.result(finished)
    await service.store.forget(finished, owner)
    if result.failures:
        first = result.failures[0]
        raise as_raised(first.code, first.message, first.index)
    return await embeddings_response(accept, Answer(job.input_type, result.embeddings), default=default)


async def _finished_unless_gone(request: Request, service: Service, job: Job, owner: str) -> Job | None:
    """Wait for the job to finish; if the caller hangs up first, cancel it and return None."""
    waiting = asyncio.ensure_future(service.finished(job, owner))
    hanging_up = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({waiting, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        await service.store.cancel(job.id)
        return None
    finally:
        waiting.cancel()
        hanging_up.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
