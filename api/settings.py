"""Defines the settings of an api process."""

from pathlib import Path

from pydantic import Field, SecretStr

from shared.settings import ENVIRONMENT, ModelSettings

__all__ = ["ApiSettings"]


class ApiSettings(ModelSettings):
    """What one api process does."""

    model_config = ENVIRONMENT

    # One key, or several separated by commas. Without this and `keys_file` every request is answered 401.
    service_api_key: SecretStr = Field(SecretStr(""), validation_alias="SERVICE_API_KEY")
    # A file of named keys, `name:key` a line, beside or in place of those; read again whenever it changes.
    keys_file: Path | None = None
    # The address to listen on; anything but loopback is reachable by others.
    host: str = "127.0.0.1"
    # The port to listen on; browsers refuse 6000.
    port: int = Field(8000, ge=1, le=65535)
    # Raised: `/embeddings` holds its caller for longer before it answers 504.
    sync_timeout_s: float = Field(600, gt=0)
    # `/embeddings` waits so long for room in the queue, for the rate of its key or for Redis, within `sync_timeout_s`,
    # before it answers 429 or 503. Raised: callers that repeat nothing survive longer pauses; their requests stay in
    # memory for longer. 0: it answers at once.
    sync_room_wait_s: float = Field(60, ge=0)
    # Raised: an api that is told to stop waits for longer for its open requests before it answers them 503.
    stop_grace_s: int = Field(20, ge=0)
    # Raised: larger requests are taken, each held in memory several times over while it is read.
    max_body_bytes: int = Field(256 * 2**20, ge=1)
    # Raised: more is received at the same time over all requests before further ones are answered 503. The requests of
    # one key may use at most what those of all other keys leave free: half of it when the key is alone.
    max_bodies_bytes: int = Field(2**30, ge=1)
    # Raised: more of all answers is held in memory at the same time; where it is less than the callers ask for at once,
    # they take turns, piece by piece. One key uses at most what all other keys leave free.
    max_answers_bytes: int = Field(128 * 2**20, ge=1)
    # Raised: a body that stalls, or comes more slowly than 16 KB/s, is waited for longer before it is answered 408.
    body_grace_s: float = Field(30, gt=0)
    # Raised: larger requests are taken, and their results are larger, about 0.4 MB per page in Redis.
    max_inputs: int = Field(256, ge=1, le=10_000)
    # Raised: larger image files and texts are taken; what they unpack to is the worker's limit.
    max_input_bytes: int = Field(32 * 2**20, ge=1)
    # Estimated tokens (779 per page, 1 per byte of text) of the largest job in the interactive lane; costlier jobs
    # go to bulk. The lane holds four times as much unfinished work, one key alone at most half of that.
    # Raised: larger jobs count as interactive, and they delay each other and queries. 0: all jobs go to bulk.
    interactive_max_tokens: int = Field(3200, ge=0)
    # Raised: each lane holds more unfinished work before it answers 429, and Redis more payloads: keep it well below
    # Redis's maxmemory. One key alone comes to half of it.
    queue_max_bytes: int = Field(2 * 2**30, ge=1)
    # Raised: likewise, by inputs.
    queue_max_inputs: int = Field(100_000, ge=1)
    # Raised: one key may have more unfinished inputs in each lane before it is answered 429; 0: no limit of its own.
    key_max_inputs: int = Field(0, ge=0)
    # Raised: one key may submit more often before it is answered 429, a minute's worth at once; 0: no limit.
    key_submissions_per_minute: int = Field(0, ge=0)
    # Raised: one key may have more requests open in each api process, waiting or being answered, before it is answered
    # 429; each takes about 20 KB of memory while it waits.
    key_max_calls: int = Field(512, ge=1)
    # Raised: likewise, of those that wait for a job to change: `GET /jobs/{id}?wait=` and `/jobs/{id}/events`.
    key_max_waits: int = Field(256, ge=1)
