"""What the routes do with a submission: submit it and wait for it. Knows no HTTP, no Redis and no Celery."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from api.announcements import Announcements
from api.queue import Queue
from api.settings import ApiSettings
from api.store import Store
from api.submission import Limits, Submission
from shared.errors import UnavailableError
from shared.jobs import InputType, Job, JobStatus, Lane

__all__ = ["Service"]


@dataclass(frozen=True, slots=True)
class Service:
    """The api's doings, without HTTP."""

    settings: ApiSettings
    store: Store
    queue: Queue
    announcements: Announcements

    @property
    def limits(self) -> Limits:
        """What one submission may hold."""
        return Limits(self.settings.max_inputs, self.settings.max_input_bytes)

    def sync_lane(self, submission: Submission) -> Lane:
        """Return where a caller who waits queues up: texts and few pages first, many pages with the bulk."""
        few = len(submission.payloads) <= self.settings.interactive_max_pages
        return Lane.INTERACTIVE if few or submission.input_type is InputType.TEXT else Lane.BULK

    async def submit(self, submission: Submission, lane: Lane, owner: str, idempotency_key: str | None = None) -> Job:
        """Register the job and queue its work.

        With an idempotency key seen before, that job is returned. Should it never have started, its tasks are queued
        again, for the api that took it may have died before it queued them; a task queued twice does no harm.
        """
        job_id = await self.store.create(submission, lane, owner, idempotency_key)
        job = await self.store.job(job_id, owner)
        if job.status is JobStatus.QUEUED:
            try:
                await self.queue.publish(job)
            except UnavailableError:
                if idempotency_key is None:  # with a key, the caller's next try finds this job again
                    await self.store.cancel(job_id)
                raise
        return job

    async def finished(self, job: Job, owner: str) -> Job:
        """Return the job once it is finished, or as it is when a synchronous caller has waited long enough."""
        return await self._wait(job.id, owner, lambda now: now.finished, self.settings.sync_timeout_s)

    async def changed(self, job: Job, owner: str, timeout_s: float = inf) -> Job:
        """Return the job once its status or counts differ from `job`'s, or as it is when the time is up."""
        return await self._wait(job.id, owner, lambda now: now != job, timeout_s)

    async def _wait(self, job_id: str, owner: str, until: Callable[[Job], bool], timeout_s: float) -> Job:
        return await self.announcements.wait(job_id, lambda: self.store.job(job_id, owner), until, timeout_s)
