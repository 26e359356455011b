"""A worker process with `FakeModel` in it, for tests to start, and Redis lists by which they follow and steer it.

`runs` gets "<lane> <job id>" for each shard that begins, `submitted` every payload that waits for a forward pass, `ran`
every payload of every pass. Each entry of `raise` makes one shard end with that error. While the key `hold` exists,
each bulk shard waits for an entry of `go`. Each entry of `die_taking` kills a worker between its taking a task from the
queue and its recording that it did. A payload "slow:s..." takes s seconds in the model, "gated..." waits there for an
entry of `open`; "abort..." and "kill..." end the process there, as a fault of a native library and as the kernel out of
memory do; "huge..." does not fit the device's memory, "broken..." is what the model fails on.

`DOUBLE_MODEL` and `DOUBLE_MODEL_ID` in the environment say which model it serves; each has rows of its own. With
`DOUBLE_IS_PATIENT` in the environment it waits for Redis before a batch as long as it takes.
"""

import os
import resource
import signal
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import redis
from doubles import SERVED, FakeModel
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

import worker.store
from shared.codecs import Rows
from shared.errors import DeviceMemoryError, ModelError, StoreUnavailableError
from shared.jobs import Lane
from shared.logs import configure_logs
from shared.models import ServedModel
from shared.queue import celery_app
from shared.settings import LogSettings, StoreSettings
from worker.batcher import Batcher, BatcherClosedError
from worker.channel import Reading
from worker.consumer import consume, worker_queues
from worker.deliveries import Deliveries
from worker.heartbeat import Heartbeat
from worker.model.seam import Prepared
from worker.reaper import Reaper
from worker.settings import WorkerSettings
from worker.shard import ShardRunner
from worker.store import Store
from worker.watchdog import Watchdog

ERRORS = {b"away": StoreUnavailableError("away"), b"closed": BatcherClosedError(), b"odd": RuntimeError("odd")}

settings, store_settings = WorkerSettings(), StoreSettings()
served = ServedModel(
    name=os.environ.get("DOUBLE_MODEL", SERVED.name), model_id=os.environ.get("DOUBLE_MODEL_ID", SERVED.model_id)
)
# More patient than the worker, whose faults are what is tested, and by another way if the test says so.
connection = redis.Redis.from_url(
    os.environ.get("NOTES_REDIS_URL", store_settings.redis_dsn),
    socket_timeout=None,
    retry=Retry(ExponentialBackoff(cap=1, base=0.05), 100),
)


def note(name: str, *values: Any) -> None:
    """Append to a list by which a test follows this worker; a full Redis takes no notes."""
    with suppress(redis.OutOfMemoryError):
        connection.rpush(name, *values)


class SteeredRunner(ShardRunner):
    """Notes that a shard begins, then does as the test says."""

    def run(self, job_id: str, indices: list[int], lane: Lane) -> str:
        note("runs", f"{lane} {job_id}")
        if error := connection.lpop("raise"):
            raise ERRORS[error]
        if lane is Lane.BULK and connection.exists("hold"):
            connection.blpop(["go"])
        return super().run(job_id, indices, lane)


class NotingBatcher(Batcher):
    """Notes what waits in it."""

    def submit(self, job_id: str, prepared: Prepared, *more: Any) -> Future[Rows]:
        future = super().submit(job_id, prepared, *more)
        note("submitted", prepared.features)
        return future


record_as_taken = Deliveries.append


def die_or_record_as_taken(self: Deliveries, message: object, delivery_tag: str) -> None:
    """Called by kombu with a message that is in no queue any more and not yet among the unacknowledged."""
    if connection.lpop("die_taking"):
        os.kill(os.getpid(), signal.SIGKILL)
    record_as_taken(self, message, delivery_tag)


def during(payloads: list[bytes]) -> None:
    """Note the batch and take as long as its payloads say."""
    note("ran", *payloads)
    if any(payload.startswith(b"abort") for payload in payloads):
        os.abort()
    if any(payload.startswith(b"kill") for payload in payloads):
        os.kill(os.getpid(), signal.SIGKILL)
    if any(payload.startswith(b"huge") for payload in payloads):
        raise DeviceMemoryError("too large for this device")
    if any(payload.startswith(b"broken") for payload in payloads):
        raise ModelError("the model failed")
    if any(payload.startswith(b"gated") for payload in payloads):
        connection.blpop(["open"])
    time.sleep(max(float(payload.split(b":")[1]) if payload.startswith(b"slow") else 0 for payload in payloads))


def main() -> None:
    """Serve until told to stop."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort on purpose leaves no core file
    configure_logs(LogSettings())
    if "DOUBLE_IS_PATIENT" in os.environ:
        worker.store._IMPATIENCE_S = 60  # noqa: SLF001  # on a busy machine a reply may take longer than a batch may wait
    model, store = FakeModel(during, served), Store(store_settings)
    batcher = NotingBatcher(model.start, max_tokens=settings.batch_tokens or 1, unfinished=store.unfinished)
    threading.Thread(target=batcher.run, daemon=True).start()
    reading = Reading(worker_queues(served.model_id))

    def facts() -> dict[str, str]:
        reason = reading.reason_not_reading()
        state = {"state": "not_reading" if reason else "ready", "reason": reason}
        return state | {"model": served.name, "model_id": served.model_id, "dead_letters": str(Deliveries.buried)}

    heartbeat = Heartbeat(store, settings.alive_file, facts)
    heartbeat.start()
    Watchdog(lambda: batcher.busy_for_s, settings.batch_timeout_s, lambda: heartbeat.stop(leave=True)).start()
    Deliveries.append = die_or_record_as_taken
    app = celery_app(store_settings)
    reaper = Reaper(app, store, store_settings)
    reaper.start()
    try:
        runner = SteeredRunner(store, model, batcher, max_attempts=settings.max_attempts)
        consume(app, runner, store, settings, heartbeat.name, reading)
    finally:
        batcher.close()
        reaper.stop()
        heartbeat.stop(leave=True)


if __name__ == "__main__":
    sys.exit(main())
