"""Defines the settings that several parts read; those of one part are defined in its `settings.py`."""

from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["ENVIRONMENT", "LogSettings", "ModelSettings", "StoreSettings", "TokenSettings"]

ENVIRONMENT = SettingsConfigDict(
    frozen=True,
    env_prefix="COLQUEUE_",
    env_file=".env",
    env_ignore_empty=True,
    extra="ignore",
    populate_by_name=True,
    hide_input_in_errors=True,  # keys and passwords are among them
)
"""Environment variables first, then `.env` in the current folder; an empty value counts as unset."""


class LogSettings(BaseSettings):
    """How a process logs."""

    model_config = ENVIRONMENT

    # DEBUG shows more, WARNING less.
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    # `text` for people, `json` for machines; `auto`: text on a terminal, else one JSON object a line.
    log_format: Literal["auto", "text", "json"] = "auto"


class ModelSettings(BaseSettings):
    """Which model the service prefers: workers load it, and the api takes it where a request names none."""

    model_config = ENVIRONMENT

    # A hub id, a folder, or `tiny`: a checkpoint with random weights of our own making, to try the plumbing.
    model: str = "tsystems/colqwen2.5-3b-multilingual-v1.0"


class TokenSettings(BaseSettings):
    """What decides how many tokens an input has. The worker applies these and the api estimates with them."""

    model_config = ENVIRONMENT

    # Raised: more detail a page, and as many more rows to compute and store; the model was trained at 768.
    max_visual_tokens: int = Field(768, ge=4)
    # Raised: longer texts are embedded in place of refused, and one may fill a batch and the device's memory.
    max_text_tokens: int = Field(8192, ge=16)
    # Set before a query's text. Unset: what the installed colpali-engine does.
    query_prefix: str | None = None


class StoreSettings(BaseSettings):
    """Where Redis is, how long it keeps things, and how work lies in its queues."""

    model_config = ENVIRONMENT

    # Redis: broker and store in one. May hold a password, hence secret.
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    # Raised: a finished job's result can be fetched for longer and fills Redis for longer.
    result_ttl_s: int = Field(3600, ge=1)
    # Raised: a job may wait and run for longer before it is given up, and its payloads stay for longer.
    job_ttl_s: int = Field(86_400, ge=1)
    # Raised: a finished job's record (not its result) stays listed for longer, and says 410 rather than 404.
    record_ttl_s: int = Field(86_400, ge=1)
    # Raised: a worker that died or hangs keeps its work for longer before another gets it; keep it well above a Redis
    # restart (about 11 s of reconnecting).
    visibility_timeout_s: int = Field(60, ge=3)

    # Raised: work that the broker lost is queued again later; it is looked for only where nothing has happened so long.
    reap_after_s: int = Field(15, ge=1)
    # Raised: jobs wait for longer for a worker of their model after its last worker has gone, before they fail with
    # `model_gone`. While no worker of any model runs, no job fails for this.
    model_gone_s: int = Field(3600, ge=1)
    # Estimated tokens (779 per page, 1 per byte of text) of the inputs in one task; a costlier input is a task of
    # its own. Raised: fewer tasks per job; each repeats more after a crash, and a job spreads over fewer workers.
    task_tokens: int = Field(3200, ge=1)

    @field_validator("redis_url")
    @classmethod
    def _names_redis(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(("redis://", "rediss://")):
            raise ValueError("must begin with redis:// or rediss://")
        return url

    @property
    def redis_dsn(self) -> str:
        """The URL as drivers need it."""
        return self.redis_url.get_secret_value()
