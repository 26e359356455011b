"""A worker process with `FakeModel` in it, for tests to start, and Redis lists by which they follow and steer it.

`runs` gets "<lane> <job id>" for each shard that begins, `ran` every payload of every forward pass. Each entry of
`raise` makes one shard end with that error. While the key `hold` exists, each bulk shard waits for an entry of `go`. A
payload "slow:s..." takes s seconds in the model, "gated..." waits there for an entry of `open`; "abort..." and
"kill..." end the process there, as a fault of a native library and as the kernel out of memory do.
"""

import os
import resource
import signal
import sys
import threading
import time

import redis
from doubles import FakeModel

from shared.errors import StoreUnavailableError
from shared.jobs import Lane
from shared.queue import celery_app
from shared.settings import StoreSettings
from worker.batcher import Batcher, BatcherClosedError
from worker.consumer import consume
from worker.reaper import Reaper
from worker.settings import WorkerSettings
from worker.shard import ShardRunner
from worker.store import Store

ERRORS = {b"away": StoreUnavailableError("away"), b"closed": BatcherClosedError(), b"odd": RuntimeError("odd")}

settings, store_settings = WorkerSettings(), StoreSettings()
connection = redis.Redis.from_url(store_settings.redis_dsn, socket_timeout=None)


class SteeredRunner(ShardRunner):
    """Notes that a shard begins, then does as the test says."""

    def run(self, job_id: str, indices: list[int], lane: Lane) -> str:
        connection.rpush("runs", f"{lane} {job_id}")
        if error := connection.lpop("raise"):
            raise ERRORS[error]
        if lane is Lane.BULK and connection.exists("hold"):
            connection.blpop(["go"])
        return super().run(job_id, indices, lane)


def during(payloads: list[bytes]) -> None:
    """Note the batch and take as long as its payloads say."""
    connection.rpush("ran", *payloads)
    if any(payload.startswith(b"abort") for payload in payloads):
        os.abort()
    if any(payload.startswith(b"kill") for payload in payloads):
        os.kill(os.getpid(), signal.SIGKILL)
    if any(payload.startswith(b"gated") for payload in payloads):
        connection.blpop(["open"])
    time.sleep(max(float(payload.split(b":")[1]) if payload.startswith(b"slow") else 0 for payload in payloads))


def main() -> None:
    """Serve until told to stop."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort on purpose leaves no core file
    model, store = FakeModel(during), Store(store_settings)
    batcher = Batcher(model.start, max_tokens=settings.batch_tokens or 1, unfinished=store.unfinished)
    threading.Thread(target=batcher.run, daemon=True).start()
    app = celery_app(store_settings)
    reaper = Reaper(app, store, store_settings)
    reaper.start()
    try:
        runner = SteeredRunner(store, model, batcher, max_attempts=settings.max_attempts)
        consume(app, runner, store, settings, f"double-{os.getpid()}")
    finally:
        batcher.close()
        reaper.stop()


if __name__ == "__main__":
    sys.exit(main())
