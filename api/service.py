"""Submits what callers send and waits for jobs to finish or change, without HTTP."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf

import structlog
from celery import Celery
from fastapi.concurrency import run_in_threadpool

from api.announcements import Announcements
from api.answers import Answers
from api.models import Models
from api.outgoing import OpenCalls
from api.patience import Patience
from api.request_ids import current_request_id
from api.settings import ApiSettings
from api.store import Store, new_job_id
from api.submission import Limits, Submission
from shared.errors import UnavailableError
from shared.jobs import Job, Lane
from shared.queue import publish
from shared.settings import StoreSettings

__all__ = ["Service"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """Submits jobs and waits for them, for all routes."""

    settings: ApiSettings
    store_settings: StoreSettings
    store: Store
    queue: Celery
    announcements: Announcements
    models: Models
    answers: Answers
    patience: Patience
    calls: OpenCalls
    waits: OpenCalls

    @property
    def limits(self) -> Limits:
        """What one submission may hold."""
        return Limits(self.settings.max_inputs, self.settings.max_input_bytes)

    async def submit_patiently(
        self, submission: Submission, owner: str, wait_s: float, gone: asyncio.Future[None]
    ) -> Job | None:
        """Submit for a caller who waits, and wait for room in the queue or for Redis; None where the caller is gone."""
        job_id, job = new_job_id(), None
        try:
            job = await self.patience.until_passed(
                lambda: self.submit(submission, Lane.INTERACTIVE, owner, job_id=job_id), wait_s=wait_s, gone=gone
            )
        finally:
            if job is None:
                with suppress(UnavailableError):  # where Redis is away, the reaper and the time to live do the rest
                    await self.store.withdraw(job_id, owner)
        return job

    async def submit(
        self,
        submission: Submission,
        lane: Lane,
        owner: str,
        idempotency_key: str | None = None,
        job_id: str | None = None,
    ) -> Job:
        """Register the job and queue its work.

        With an idempotency key seen before, that job is returned and nothing is queued. Should its tasks never have
        been queued, because the api that took it died or did not reach the queue, a worker's reaper queues them. A
        caller that made the `job_id` and repeats it queues its tasks again: a task queued twice does no harm.
        """
        own_id = job_id or new_job_id()
        submission = replace(submission, model=await self.models.choose(submission.asked_model))
        job = await self.store.create(submission, lane, owner, idempotency_key, current_request_id(), job_id=own_id)
        if job.id == own_id and not job.finished:
            try:
                costs = self.store.costs(submission)
                await run_in_threadpool(publish, self.queue, self.store_settings, job, range(job.total), costs)
            except UnavailableError:
                if idempotency_key is None and job_id is None:  # with either, the next try finds this job again
                    await self.store.cancel(job.id)
                raise
            _log.info("job.queued", job=job.id, input_type=job.input_type.value, inputs=job.total, lane=job.lane.value)
        return job

    async def finished(self, job: Job, owner: str, timeout_s: float) -> Job:
        """Return the job once it is finished, or as it is after `timeout_s`."""
        return await self._wait(job, owner, lambda now: now.finished, timeout_s)

    async def changed(self, job: Job, owner: str, timeout_s: float = inf) -> Job:
        """Return the job once its status or counts differ from `job`'s, or as it is when the time is up."""
        return await self._wait(job, owner, lambda now: now != job, timeout_s)

    async def _wait(self, job: Job, owner: str, until: Callable[[Job], bool], timeout_s: float) -> Job:
        return await self.announcements.wait(job, lambda: self.store.job(job.id, owner), until, timeout_s)
