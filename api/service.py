"""Submits what callers send and waits for jobs to finish or change, without HTTP."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import structlog
from celery import Celery
from fastapi.concurrency import run_in_threadpool

from api.announcements import Announcements
from api.answers import Answers
from api.outgoing import OpenCalls
from api.request_ids import current_request_id
from api.settings import ApiSettings
from api.store import Store
from api.submission import Limits, Submission
from shared.errors import UnavailableError
from shared.jobs import Job, JobStatus, Lane
from shared.queue import publish
from shared.settings import StoreSettings

__all__ = ["Service"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """The api's doings, without HTTP."""

    settings: ApiSettings
    store_settings: StoreSettings
    store: Store
    queue: Celery
    announcements: Announcements
    answers: Answers
    calls: OpenCalls
    waits: OpenCalls

    @property
    def limits(self) -> Limits:
        """What one submission may hold."""
        return Limits(self.settings.max_inputs, self.settings.max_input_bytes)

    async def submit(self, submission: Submission, lane: Lane, owner: str, idempotency_key: str | None = None) -> Job:
        """Register the job and queue its work.

        With an idempotency key seen before, that job is returned. Should it never have started, its tasks are queued
        again, for the api that took it may have died before it queued them; a task queued twice does no harm.
        """
        job = await self.store.create(submission, lane, owner, idempotency_key, current_request_id())
        if job.status is JobStatus.QUEUED:
            try:
                costs = self.store.costs(submission) if len(submission.payloads) == job.total else None
                await run_in_threadpool(publish, self.queue, self.store_settings, job, range(job.total), costs)
            except UnavailableError:
                if idempotency_key is None:  # with a key, the caller's next try finds this job again
                    await self.store.cancel(job.id)
                raise
            _log.info("job.queued", job=job.id, input_type=job.input_type.value, inputs=job.total, lane=job.lane.value)
        return job

    async def finished(self, job: Job, owner: str) -> Job:
        """Return the job once it is finished, or as it is when a synchronous caller has waited long enough."""
        return await self._wait(job, owner, lambda now: now.finished, self.settings.sync_timeout_s)

    async def changed(self, job: Job, owner: str, timeout_s: float = inf) -> Job:
        """Return the job once its status or counts differ from `job`'s, or as it is when the time is up."""
        return await self._wait(job, owner, lambda now: now != job, timeout_s)

    async def _wait(self, job: Job, owner: str, until: Callable[[Job], bool], timeout_s: float) -> Job:
        return await self.announcements.wait(job, lambda: self.store.job(job.id, owner), until, timeout_s)
