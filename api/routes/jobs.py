"""Serves `/jobs`: submit a job and come back later, by polling, by waiting or by events."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.answers import JSON, model_headers, negotiated
from api.auth import Owner
from api.bodies import submission_of
from api.errors import CALLER_GONE
from api.hang_ups import unless_gone
from api.routes.service import TheService, count_call, count_stream, count_wait
from api.schemas import (
    ACCEPTED,
    EVENTS_RESPONSES,
    JOB_BODY,
    JOBS_RESPONSES,
    RESULT_RESPONSES,
    THIS_JOB_RESPONSES,
    JobList,
)
from shared.codecs import AnswerHead
from shared.errors import InvalidJobError
from shared.jobs import JOB_ID, Job

__all__ = ["router"]

router = APIRouter(prefix="/jobs", tags=["jobs"], responses=JOBS_RESPONSES, dependencies=[Depends(count_call)])

_RETRY_AFTER = {"Retry-After": "1"}
_LONGEST_WAIT_S = 60
# Visible ASCII and spaces: the key becomes part of a name in Redis and may stand in a log.
_IDEMPOTENCY_KEY = "^[ -~]+$"


async def _this_job(job_id: str, owner: Owner, service: TheService) -> Job:
    return await service.store.job(job_id, owner)


ThisJob = Annotated[Job, Depends(_this_job)]
"""The job of the path, or 404 before the route begins."""


@router.post("", status_code=202, openapi_extra=JOB_BODY, responses=ACCEPTED)
async def submit(
    request: Request,
    response: Response,
    owner: Owner,
    service: TheService,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255, pattern=_IDEMPOTENCY_KEY)] = None,
) -> Job:
    """Submit inputs to be embedded; the answer says where to ask for them.

    Repeated with the same `Idempotency-Key`, the first job is answered; with other inputs or options under that key,
    422 with the code `idempotency_key_reused`.
    """
    submission = await submission_of(request, service.limits, with_options=True)
    if submission is None:
        raise InvalidJobError("inputs: a job needs at least one.")
    job = await service.submit(submission, submission.options.lane, owner, idempotency_key)
    response.headers.update(_RETRY_AFTER | {"Location": f"/jobs/{job.id}"})
    return job


@router.get("")
async def list_jobs(
    owner: Owner,
    service: TheService,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    after: Annotated[str | None, Query(pattern=JOB_ID, description="the `next` of the page before")] = None,
) -> JobList:
    """List this key's jobs, newest first."""
    jobs = await service.store.jobs(owner, after=after, limit=limit)
    return JobList(jobs=jobs, next=jobs[-1].id if len(jobs) == limit else None)


@router.get("/{job_id}", responses=THIS_JOB_RESPONSES, response_model=Job, dependencies=[Depends(count_wait)])
async def read(
    request: Request,
    job: ThisJob,
    owner: Owner,
    service: TheService,
    wait: Annotated[float, Query(ge=0, le=_LONGEST_WAIT_S, description="seconds to wait for a change")] = 0,
) -> Job | Response:
    """Return the job; with `wait`, once its status or counts change, or after that many seconds."""
    if job.finished or not wait:
        return job
    changed = await unless_gone(request.receive, service.changed(job, owner, wait))
    return changed or Response(status_code=CALLER_GONE)


@router.get("/{job_id}/result", responses=RESULT_RESPONSES)
async def result(
    request: Request,
    job: ThisJob,
    owner: Owner,
    service: TheService,
    release: Annotated[bool, Query(description="drop the result once it has been sent whole")] = False,  # noqa: FBT002
) -> Response:
    """Return the embeddings of a finished job; 202 while it is not finished.

    With `release=true` the result is dropped once all of it was handed to the connection and the caller was still
    there; after that the answer is 410.
    """
    if not job.finished:
        return JSONResponse(job.model_dump(mode="json"), 202, {**_RETRY_AFTER, "Location": f"/jobs/{job.id}"})
    found = await service.store.result(job)

    async def after(is_whole: bool) -> None:  # noqa: FBT001  # as `Answers.response` calls it
        if release and is_whole:
            await service.store.release(job.id)

    media_type = negotiated(request.headers.get("accept"), JSON)
    head = AnswerHead(job.input_type, job.total, found.failures)
    response = service.answers.response(media_type, head, found, owner, after)
    response.headers.update(model_headers(job))
    return response


@router.get(
    "/{job_id}/events",
    response_class=EventSourceResponse,
    responses=EVENTS_RESPONSES,
    dependencies=[Depends(count_stream)],
)
async def events(job: ThisJob, owner: Owner, service: TheService) -> AsyncIterator[ServerSentEvent]:
    """Stream the job as it changes: `progress` events, then one event named after its terminal state."""
    while not job.finished:
        yield ServerSentEvent(event="progress", data=job)
        job = await service.changed(job, owner)
    yield ServerSentEvent(event=job.status.value, data=job)


@router.delete("/{job_id}", responses=THIS_JOB_RESPONSES)
async def cancel(job: ThisJob, owner: Owner, service: TheService) -> Job:
    """Cancel the job: queued inputs are never embedded, running ones stop at the next batch.

    Of a finished job the result is dropped, which frees its memory; the job then says `"released": true`.
    """
    if not await service.store.cancel(job.id):
        await service.store.release(job.id)
    return await service.store.job(job.id, owner)
