"""Reads what a worker says of itself with every heartbeat."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from shared.errors import NewerRecordError, UnreadableRecordError
from shared.records import log_skipped, require_version

__all__ = ["readable_facts"]


class _Facts(BaseModel):
    """What the api shows or calculates with. Facts beside these are passed on as they are."""

    model_config = ConfigDict(frozen=True)

    state: str
    model: str = ""
    reason: str = ""
    loaded: FiniteFloat = 0
    waiting: FiniteFloat = 0
    batches: FiniteFloat = 0
    inputs: FiniteFloat = 0
    tokens: FiniteFloat = 0
    busy_s: FiniteFloat = 0
    dead_letters: FiniteFloat = 0
    cache_hits: FiniteFloat = 0
    cache_misses: FiniteFloat = 0


def readable_facts(worker: str, record: Mapping[bytes, bytes]) -> dict[str, str] | None:
    """Return a worker's facts by name; None where it has none any more, or none that this release can read."""
    if not record:
        return None
    facts = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in record.items()}
    try:
        require_version(facts, f"the worker {worker}")
        _Facts.model_validate(facts)
    except (NewerRecordError, UnreadableRecordError) as error:
        log_skipped(f"worker {worker}", error.message)
        return None
    except ValidationError as error:
        fields = ", ".join(str(fault["loc"][0]) for fault in error.errors())
        log_skipped(f"worker {worker}", f"missing or odd: {fields}")
        return None
    return {name: value for name, value in facts.items() if name != "version"}
