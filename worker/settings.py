"""Defines the settings of a worker process."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from shared.settings import ModelSettings, TokenSettings
from worker.model.options import DType, Engine

__all__ = ["WorkerSettings"]


class WorkerSettings(ModelSettings, TokenSettings):
    """What one worker process does."""

    # Where `tiny` is built; the hub's own cache is HF_HOME.
    cache_dir: Path = Path("var/models")
    # For gated or private checkpoints.
    huggingface_token: SecretStr | None = Field(None, validation_alias="HUGGINGFACE_TOKEN")
    # `auto` takes CUDA, then MPS, then the CPU.
    device: str = "auto"
    # `auto`: bfloat16 on CUDA sm80 and later, float16 on older CUDA, float32 elsewhere.
    dtype: DType = "auto"
    # `fast`: our own forward pass; `stock`: colpali-engine's; `auto`: fast, unless it differs from stock at start-up.
    engine: Engine = "auto"
    # true: what lies between the matrix products becomes one kernel a step: fewer passes over memory, for a minute more
    # at start-up. Needs a compiler. Not measured on a GPU yet; on a CPU it gains nothing.
    compile: bool = False
    # Raised: larger pictures are decoded in place of refused, at 3 bytes a pixel of memory a thread.
    max_image_pixels: int = Field(75_000_000, ge=1)
    # Raised: fewer, larger forward passes: better on a GPU until it is full, and a query waits longer behind one.
    # 0: measured at the first start on this machine with this model, and remembered in `cache_dir`.
    batch_tokens: int = Field(0, ge=0)
    # Raised: an idle model keeps the device's memory for longer, and fewer callers wait for it to be loaded again.
    # 0: for ever.
    idle_unload_s: float = Field(0, ge=0)
    # Raised: more tasks are loaded and prepared ahead, at a few MB a page; it must exceed `bulk_tasks`.
    threads: int = Field(24, ge=2)
    # Raised: more bulk work in hand, so the GPU never waits, but fewer threads stay free for the interactive lane.
    bulk_tasks: int = Field(12, ge=1)
    # Raised: an input that kills the worker does so more often before it is given up; one that only happened to be
    # there is given up less often. After its first time an input runs alone.
    max_attempts: int = Field(4, ge=2)
    # Raised: a model that hangs is found later. It must exceed the longest batch: a page of the real model takes
    # minutes on a CPU.
    batch_timeout_s: float = Field(600, gt=0)
    # Raised: more results are kept by content, in Redis's memory beside the work; an input asked for again in the same
    # way costs no forward pass. 0: none are kept.
    cache_bytes: int = Field(0, ge=0)
    # Raised: what was not asked for again is kept for longer.
    cache_ttl_s: int = Field(604_800, ge=1)
    # true: Celery's remote control may also shut this worker down, stop its queues, change its limits and revoke its
    # tasks, for whoever can publish to Redis, Flower's users above all. false: it may only look.
    remote_control: bool = False
    # Touched while the worker is alive, for `python -m worker.alive`.
    alive_file: Path = Path("var/worker.alive")

    @model_validator(mode="after")
    def _leaves_threads_for_queries(self) -> Self:
        if self.bulk_tasks >= self.threads:
            raise ValueError("bulk_tasks must be below threads, or no thread is left for the interactive lane")
        return self
