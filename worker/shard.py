"""Runs one task: loads the payloads of its inputs, prepares them, has the batcher embed them, and saves the rows."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress

import structlog

from shared.codecs import Rows, StoredRows
from shared.errors import DeadlineError, InputError, UnavailableError, WorkerKilledError
from shared.jobs import InputType, Lane
from worker.batcher import Batcher, BatcherClosedError
from worker.cache import ContentCache
from worker.gate import Gate
from worker.model.seam import Model, Prepared
from worker.precision import at_precision
from worker.store import Shard, Store

__all__ = ["ShardRunner"]

_log = structlog.get_logger(__name__)


class ShardRunner:
    """Runs shards, each on the thread that calls. Inputs fail alone, and a repeated shard does no harm.

    An input that was begun before and is not done may have killed a worker: it runs with nothing else in this process,
    and after `max_attempts` it is given up.
    """

    def __init__(
        self, store: Store, model: Model, batcher: Batcher, *, max_attempts: int, cache: ContentCache | None = None
    ) -> None:
        self._store = store
        self._model = model
        self._batcher = batcher
        self._max_attempts = max_attempts
        self._cache = cache
        self._gate = Gate()

    @property
    def model_id(self) -> str:
        """The model whose jobs this worker takes."""
        return self._model.served.model_id

    def run(self, job_id: str, indices: list[int], lane: Lane) -> str:
        """Embed these inputs of a job and return what became of them, for Flower.

        Raises `UnavailableError` where the store stayed away and `BatcherClosedError` where the worker is stopping:
        then the task must go back to its queue. Raises `OtherModelError` where another model answers the job.
        """
        shard = self._store.begin(job_id, indices, self._model.served)
        if shard is None:
            return "nothing to do: the job is finished or gone"
        suspects = [index for index in shard.payloads if shard.attempts[index]]
        others = [index for index in shard.payloads if not shard.attempts[index]]
        with self._gate.together():
            told = [self._embed(shard, others, lane)] if others else []
        told += [self._embed_alone(job_id, index, lane) for index in suspects]
        return "; ".join(told) or "nothing to do: done before"

    def stop(self) -> None:
        """Let the running batch end and the waiting inputs go back to their queues. Safe in a signal handler."""
        self._batcher.close()

    def _embed_alone(self, job_id: str, index: int, lane: Lane) -> str:
        with self._gate.alone():
            # Looked at again: it may have been in other hands of this worker, and be done by now.
            shard = self._store.begin(job_id, [index], self._model.served)
            if shard is None or index not in shard.payloads:
                return "nothing to do: done before"
            if (deaths := shard.attempts[index]) >= self._max_attempts:
                failure = WorkerKilledError(f"Workers died {deaths} times while they worked on this input.")
                return self._keep(shard, {index: failure})
            if shard.attempts[index]:  # else the look above has counted it
                self._store.count_attempt(job_id, index)
            return self._embed(shard, [index], lane)

    def _embed(self, shard: Shard, indices: Sequence[int], lane: Lane) -> str:
        outcomes: dict[int, StoredRows | InputError] = {**self._known(shard, indices)}
        futures: dict[int, Future[Rows]] = {}
        for index, prepared in self._prepared(shard, [index for index in indices if index not in outcomes]):
            if isinstance(prepared, InputError):
                outcomes[index] = prepared
            else:
                futures[index] = self._batcher.submit(shard.job_id, prepared, lane, shard.deadline_at)
        stopping: BatcherClosedError | None = None
        for index, future in futures.items():
            try:
                outcomes[index] = self._as_asked(shard, future.result())
            except InputError as error:
                outcomes[index] = error
            except BatcherClosedError as error:
                stopping = error
            except CancelledError:
                return "dropped: the job was finished or cancelled meanwhile"
        try:
            told = self._keep(shard, outcomes)
        except UnavailableError:
            self._hand_back(shard.job_id, indices)
            raise
        if self._cache is not None:
            embedded = {index: outcomes[index] for index in futures if index in outcomes}
            self._cache.keep(shard, {i: rows for i, rows in embedded.items() if not isinstance(rows, InputError)})
        if stopping is not None:
            self._hand_back(shard.job_id, [index for index in indices if index not in outcomes])
            raise stopping
        return told

    def _known(self, shard: Shard, indices: Sequence[int]) -> dict[int, StoredRows]:
        late = shard.deadline_at < time.monotonic()
        return {} if self._cache is None or late else self._cache.find(shard, indices)

    def _hand_back(self, job_id: str, indices: Sequence[int]) -> None:
        """Note that no worker died of these inputs; where the store is away, the worst is that they run alone next."""
        with suppress(UnavailableError):
            for index in indices:
                self._store.count_attempt(job_id, index, by=-1)

    def _keep(self, shard: Shard, outcomes: dict[int, StoredRows | InputError]) -> str:
        counted = self._store.save(shard.job_id, outcomes)
        failures = {index: outcome for index, outcome in outcomes.items() if isinstance(outcome, InputError)}
        for index, failure in failures.items():
            _log.warning("input.failed", job=shard.job_id, index=index, code=failure.code, reason=failure.message)
        _log.info("shard.done", job=shard.job_id, inputs=len(outcomes), failed=len(failures), counted=counted)
        return f"{len(outcomes) - len(failures)} embedded, {len(failures)} failed, {counted} counted"

    def _prepared(self, shard: Shard, indices: Sequence[int]) -> Iterator[tuple[int, Prepared | InputError]]:
        """Prepare the inputs one after the other, so that the first reaches the model while the others are prepared."""
        for index in indices:
            try:
                yield index, self._prepare(shard, shard.payloads[index])
            except InputError as error:
                yield index, error
            except Exception:  # noqa: BLE001 a decoder may raise anything on a hostile file: the others shall not suffer
                _log.exception("input.unprepared", job=shard.job_id, index=index)
                yield index, InputError("An unexpected error stopped this input from being prepared.")

    def _prepare(self, shard: Shard, payload: bytes | None) -> Prepared:
        if payload is None or shard.deadline_at < time.monotonic():
            raise DeadlineError("The job's deadline passed before this input was embedded.")
        if shard.input_type is InputType.IMAGE:
            return self._model.prepare_page(payload)
        return self._model.prepare_query(payload.decode())

    def _as_asked(self, shard: Shard, rows: Rows) -> StoredRows:
        """Keep no more than the caller wants, so that Redis carries less. Here and not on the model's thread."""
        if shard.pool_factor > 1:
            rows = self._model.pool(rows, shard.pool_factor)
        return at_precision(rows, shard.output_dtype)
