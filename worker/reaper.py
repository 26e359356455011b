"""Finds inputs that the broker lost, and jobs whose deadline has passed.

Celery on Redis loses a task when its worker is killed between taking a message and recording that it did. The registry
still has the job, so now and then one worker looks at the jobs where nothing has happened for a while. If no task of
such a job can be in the queue, those of its inputs that are neither done nor in a worker's hands are queued again.
An error of judgement costs a task that finds nothing to do.

A task cannot be in its queue where that is empty or, as tasks are taken in the order they came, where the task next in
turn was queued after the job. A job's tasks all go to one queue, which its record names.
"""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from shared.errors import DeadlineError, UnavailableError
from shared.jobs import Lane
from shared.keep_running import Periodic
from shared.messages import ForeignMessageError, QueuedTask, TakenTask
from shared.queue import publish
from shared.settings import StoreSettings
from worker.store import Store

__all__ = ["Reaper"]

_log = structlog.get_logger(__name__)

_EVERY_S: Final = 5.0
# An api registers a job, then queues its tasks; this much later it has.
_PUBLISHING_S: Final = 30.0


class Reaper:
    """A thread of every worker; of all of them, one at a time does the looking."""

    def __init__(self, app: Celery, store: Store, settings: StoreSettings) -> None:
        self._app = app
        self._store = store
        self._settings = settings
        self._thread = Periodic("reaper", self._take_turn, _EVERY_S)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the look that is under way."""
        self._thread.stop()

    def look(self) -> int:
        """Look once; return how many inputs were queued again or given up."""
        now = self._store.now()
        quiet = self._store.quiet_jobs(self._settings.reap_after_s)
        if not quiet:
            return 0
        held: dict[str, set[int]] = defaultdict(set)
        for kept in self._store.unacknowledged():
            with suppress(ForeignMessageError):  # it becomes a dead letter once its visibility timeout is over
                task = TakenTask.parse(kept).task
                held[task.job_id].update(task.indices)
        oldest = self._oldest()
        return sum(self._end_or_requeue(job_id, held, oldest, now) for job_id in quiet)

    def _take_turn(self) -> None:
        try:
            if self._store.take_reaping(_EVERY_S):
                self.look()
        except (UnavailableError, OperationalError) as error:
            _log.warning("reaper.waits", reason=str(error))

    def _oldest(self) -> dict[str, float]:
        """Return when the task that is next in turn was queued, of each queue that is not empty."""
        oldest = {}
        for queue, message in self._store.next_messages([queue for lane in Lane for queue in lane.queues]).items():
            if message is not None:
                try:
                    oldest[queue] = QueuedTask.parse(message, queue).queued_at
                except ForeignMessageError:
                    oldest[queue] = 0.0  # nothing is known of what waits behind it
        return oldest

    def _end_or_requeue(self, job_id: str, held: dict[str, set[int]], oldest: Mapping[str, float], now: float) -> int:
        found = self._store.open_job(job_id)
        if found is None:
            return 0
        job, deadline_at, queued_before = found
        if deadline_at < now:
            undone = self._store.undone(job)
            failure = DeadlineError("The job's deadline passed before this input was embedded.")
            self._store.save(job_id, dict.fromkeys(undone, failure))
            _log.warning("job.expired", job=job_id, request=job.request_id, inputs=len(undone))
            return len(undone)
        next_in_turn = oldest.get(job.queue)
        if next_in_turn is not None and next_in_turn <= queued_before + _PUBLISHING_S:
            return 0
        lost = [index for index in self._store.undone(job) if index not in held[job_id]]
        if not lost or (queued_at := self._store.requeue(job_id)) is None:
            return 0
        publish(self._app, self._settings, job, lost, queued_at=queued_at)
        reason = "the broker had lost their tasks"
        _log.warning("job.requeued", job=job_id, request=job.request_id, inputs=len(lost), reason=reason)
        return len(lost)
