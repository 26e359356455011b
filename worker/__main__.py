"""`python -m worker`: puts the parts of one worker process together and runs it."""

import sys
import threading
import time
from math import inf

import structlog

from shared.errors import CheckpointError
from shared.logs import configure_logs
from shared.queue import celery_app
from shared.settings import LogSettings, StoreSettings
from worker.batcher import Batcher
from worker.cache import ContentCache
from worker.channel import Reading
from worker.consumer import consume, worker_queues
from worker.deliveries import Deliveries
from worker.heartbeat import Heartbeat
from worker.model.calibrate import calibrated_batch_tokens
from worker.model.colqwen import ColQwen, load
from worker.model.identity import Identity
from worker.model.options import ModelOptions
from worker.reaper import Reaper
from worker.settings import WorkerSettings
from worker.shard import ShardRunner
from worker.store import Store
from worker.watchdog import Watchdog

__all__ = ["main"]

_log = structlog.get_logger("worker")


class Status:
    """What the heartbeat tells the world: `loading`, then `ready`; `not_reading` or `failed` with the reason."""

    def __init__(self, model_name: str) -> None:
        self.model: ColQwen | None = None
        self.model_id = ""
        self.batcher: Batcher | None = None
        self.cache: ContentCache | None = None
        self.reading: Reading | None = None
        self.doing = "the model is loading"
        self.failure = ""
        self._model_name = model_name
        self._started_at = time.monotonic()

    def facts(self) -> dict[str, str]:
        """Return the facts of this moment."""
        facts = {"model": self._model_name, "model_id": self.model_id, "reason": self.failure or self.doing}
        facts["up_s"] = f"{time.monotonic() - self._started_at:.0f}"
        facts["state"] = "failed" if self.failure else "ready" if self.batcher else "loading"
        if self.batcher and self.reading and (idle := self.reading.reason_not_reading()):
            facts |= {"state": "not_reading", "reason": idle}
        facts["dead_letters"] = str(Deliveries.buried)
        if self.model is not None:
            facts |= {"device": str(self.model.device), "dtype": str(self.model.dtype), "engine": self.model.engine}
            facts["loaded"] = str(int(self.model.loaded))
        if self.batcher is not None:
            counts = self.batcher.counts
            facts |= {"waiting": str(self.batcher.waiting), "batches": str(counts.batches)}
            facts |= {"inputs": str(counts.inputs), "tokens": str(counts.tokens), "busy_s": f"{counts.busy_s:.3f}"}
        if self.cache is not None:
            facts |= {"cache_hits": str(self.cache.hits), "cache_misses": str(self.cache.misses)}
        return facts


def main() -> int:
    """Load the model, then serve until told to stop. Returns 1 where the checkpoint must not be served."""
    settings, store_settings = WorkerSettings(), StoreSettings()
    configure_logs(LogSettings())
    store = Store(store_settings)
    status = Status(settings.model)
    heartbeat = Heartbeat(store, settings.alive_file, status.facts)
    heartbeat.start()
    try:
        model = _ready_model(settings, status)
        identity = model.identity()
        status.model_id = identity.model_id
        reading = status.reading = Reading(worker_queues(identity.model_id))
        cache = status.cache = _cache(settings, store_settings, identity)
        batcher = status.batcher = Batcher(
            model.start,
            max_tokens=_batch_tokens(settings, status, model),
            unfinished=store.unfinished,
            idle_s=settings.idle_unload_s or inf,
            on_idle=model.unload,
        )
        watchdog = Watchdog(lambda: batcher.busy_for_s, settings.batch_timeout_s, lambda: heartbeat.stop(leave=True))
        watchdog.start()
        threading.Thread(target=watchdog.guard, args=(batcher.run,), name="model", daemon=True).start()
        app = celery_app(store_settings)
        reaper = Reaper(app, store, store_settings)
        reaper.start()
        runner = ShardRunner(store, model, batcher, max_attempts=settings.max_attempts, cache=cache)
        try:
            consume(app, runner, store, settings, heartbeat.name, reading)
        finally:
            batcher.close()
            reaper.stop()
    except CheckpointError as error:
        status.failure = error.message
        _log.error("model.refused", model=settings.model, reason=error.message)
        return 1
    finally:
        heartbeat.stop(leave=not status.failure)
    return 0


def _ready_model(settings: WorkerSettings, status: Status) -> ColQwen:
    started = time.monotonic()
    _log.info("model.loading", model=settings.model)
    status.doing = "the model is loading"
    model = status.model = load(_options(settings))
    status.doing = "the model is warming up"
    model.warm_up()
    _log.info("model.ready", model=settings.model, device=str(model.device), s=round(time.monotonic() - started, 1))
    return model


def _cache(settings: WorkerSettings, store_settings: StoreSettings, identity: Identity) -> ContentCache | None:
    if not settings.cache_bytes:
        return None
    key = identity.results_key
    return ContentCache(store_settings, key, max_bytes=settings.cache_bytes, ttl_s=settings.cache_ttl_s)


def _batch_tokens(settings: WorkerSettings, status: Status, model: ColQwen) -> int:
    status.doing = "the best size of a batch is being measured"
    tokens = settings.batch_tokens or calibrated_batch_tokens(model, settings.cache_dir)
    status.doing = ""
    return tokens


def _options(settings: WorkerSettings) -> ModelOptions:
    token = settings.huggingface_token
    return ModelOptions(
        name=settings.model,
        cache_dir=settings.cache_dir,
        device=settings.device,
        dtype=settings.dtype,
        engine=settings.engine,
        compile=settings.compile,
        max_visual_tokens=settings.max_visual_tokens,
        max_text_tokens=settings.max_text_tokens,
        max_image_pixels=settings.max_image_pixels,
        query_prefix=settings.query_prefix,
        hub_token=token.get_secret_value() if token else None,
    )


if __name__ == "__main__":
    sys.exit(main())
