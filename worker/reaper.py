"""Finds inputs that the broker lost, and jobs whose deadline has passed.

Celery on Redis loses a task when its worker is killed between taking a message and recording that it did. The registry
still has the job, so now and then one worker looks at the jobs where nothing has happened for a while. If no task of
such a job can be in the queue, those of its inputs that are neither done nor in a worker's hands are queued again.
If it is wrong about that, the second task finds nothing to do.

A task cannot be in its queue where that is empty or, as tasks are taken in the order they came, where the task next in
turn was queued after the job. A job's tasks all go to one queue, which its record names.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import Final

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from shared.errors import (
    DeadlineError,
    InputError,
    ModelGoneError,
    NewerRecordError,
    UnavailableError,
    UnreadableRecordError,
)
from shared.keep_running import Periodic
from shared.messages import ForeignMessageError, QueuedTask, TakenTask
from shared.models import ServedModel
from shared.queue import publish
from shared.records import log_skipped
from shared.settings import StoreSettings
from worker.store import QUIET_JOBS, QuietJob, Store

__all__ = ["Reaper"]

_log = structlog.get_logger(__name__)

_EVERY_S: Final = 5.0
# An api registers a job, then queues its tasks; this much later it has.
_PUBLISHING_S: Final = 30.0


class Reaper:
    """A thread in every worker. Only one worker at a time looks."""

    def __init__(self, app: Celery, store: Store, settings: StoreSettings) -> None:
        self._app = app
        self._store = store
        self._settings = settings
        self._looked_until = -inf
        self._thread = Periodic("reaper", self._take_turn, _EVERY_S)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the look that is under way."""
        self._thread.stop()

    def look(self) -> int:
        """Look once; return how many inputs were queued again or given up.

        Every job is looked at in its turn, however many wait: a look goes on where the one before has ended.
        """
        self._store.sweep_expired_results()
        now = self._store.now()
        given_up = sum(self._unless_odd(self._end_late, job_id) for job_id in self._store.late_jobs(now))
        quiet = self._store.quiet_jobs(self._looked_until, now - self._settings.reap_after_s)
        self._looked_until = quiet[-1].heard_at if len(quiet) == QUIET_JOBS else -inf
        # Releases before 0.2 keep no list of deadlines.
        given_up += sum(self._unless_odd(self._end_late, job.id) for job in quiet if job.deadline_at < now)
        gone = self._gone_models(quiet)
        given_up += sum(self._unless_odd(self._end_without_model, job.id) for job in quiet if job.model in gone)
        for model in gone:
            self._store.drop_queues(model)
        if not quiet:
            return given_up
        held: dict[str, set[int]] = defaultdict(set)
        for kept in self._store.unacknowledged():
            with suppress(ForeignMessageError):  # it becomes a dead letter once its visibility timeout is over
                task = TakenTask.parse(kept).task
                held[task.job_id].update(task.indices)
        oldest = self._oldest(sorted({job.queue for job in quiet}))
        lost = [job.id for job in quiet if not _may_wait(job, oldest)]
        return given_up + sum(self._unless_odd(lambda job_id: self._requeue(job_id, held[job_id]), job) for job in lost)

    def _unless_odd(self, look_at: Callable[[str], int], job_id: str) -> int:
        """Return what came of looking at a job; nothing, with a log line, where this release cannot read it."""
        try:
            return look_at(job_id)
        except (NewerRecordError, UnreadableRecordError) as error:
            log_skipped(f"job {job_id}", error.message)
            return 0

    def _take_turn(self) -> None:
        try:
            if self._store.take_reaping(_EVERY_S):
                self.look()
        except (UnavailableError, OperationalError) as error:
            _log.warning("reaper.waits", reason=str(error))

    def _oldest(self, queues: Sequence[str]) -> dict[str, float]:
        """Return when the task that is next in turn was queued, of each of these queues that is not empty."""
        oldest = {}
        for queue, message in self._store.next_messages(queues).items():
            if message is not None:
                try:
                    oldest[queue] = QueuedTask.parse(message, queue).queued_at
                except ForeignMessageError:
                    oldest[queue] = 0.0  # nothing is known of what waits behind it
        return oldest

    def _gone_models(self, quiet: Sequence[QuietJob]) -> set[ServedModel]:
        """Return the models that have had no worker for too long, of those with work: these jobs, or tasks in a queue.

        Nobody else would take the tasks of jobs that were cancelled or have ended.
        """
        models = self._store.models_with_tasks() | {job.model for job in quiet if job.model.model_id}
        return {model for model in models if self._store.model_gone_for_s(model) > self._settings.model_gone_s}

    def _end_late(self, job_id: str) -> int:
        return self._end(job_id, DeadlineError("The job's deadline passed before this input was embedded."))

    def _end_without_model(self, job_id: str) -> int:
        return self._end(job_id, ModelGoneError("The model of this job has had no worker for too long."))

    def _end(self, job_id: str, failure: InputError) -> int:
        """Fail what is not done of a job."""
        job = self._store.open_job(job_id)
        if job is None:
            return 0
        undone = self._store.undone(job)
        self._store.save(job_id, dict.fromkeys(undone, failure))
        _log.warning("job.given_up", job=job_id, request=job.request_id, inputs=len(undone), code=failure.code)
        return len(undone)

    def _requeue(self, job_id: str, held: set[int]) -> int:
        """Queue again what is neither done nor in a worker's hands."""
        job = self._store.open_job(job_id)
        if job is None:
            return 0
        lost = [index for index in self._store.undone(job) if index not in held]
        if not lost or (queued_at := self._store.requeue(job_id)) is None:
            return 0
        publish(self._app, self._settings, job, lost, queued_at=queued_at)
        reason = "the broker had lost their tasks"
        _log.warning("job.requeued", job=job_id, request=job.request_id, inputs=len(lost), reason=reason)
        return len(lost)


def _may_wait(job: QuietJob, oldest: Mapping[str, float]) -> bool:
    """Return whether a task of this job may still be in its queue."""
    next_in_turn = oldest.get(job.queue)
    return next_in_turn is not None and next_in_turn <= job.queued_at + _PUBLISHING_S
