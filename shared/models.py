"""Decide which of the known models answers a job."""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from shared.errors import ModelNotFoundError, NewerRecordError, UnreadableRecordError
from shared.records import log_skipped, require_version

__all__ = ["SILENT_AFTER_S", "KnownModel", "ServedModel", "choose_model", "readable_models"]

SILENT_AFTER_S = 10.0
"""A worker beats every 2 s; longer silence means that it is gone or cannot reach Redis."""


_RECORD: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_SHOWN = 200


class ServedModel(BaseModel):
    """The model that one worker serves."""

    model_config = ConfigDict(frozen=True)

    name: str
    """What operators and callers know the model by: a hub id, a folder, `tiny`."""
    model_id: str
    """What `worker.model.identity` computes: two checkpoints of one name differ in it."""


class KnownModel(ServedModel):
    """A model that a ready worker has announced. Times are Unix seconds by Redis's clock."""

    first_ready_at: float
    """When a worker of this model was ready for the first time."""
    last_ready_at: float
    """When a ready worker of this model last gave a sign of life."""
    has_left: bool = False
    """True once a worker of this model has stopped, until another one of it gives a sign of life."""

    def lives(self, now: float) -> bool:
        """Return whether a worker serves this model."""
        return not self.has_left and now - self.last_ready_at <= SILENT_AFTER_S


def readable_models(told: Iterable[bytes]) -> list[KnownModel]:
    """Return the models that these records describe. What cannot be read, or a newer release wrote, is left out."""
    models = []
    for record in told:
        try:
            fields = _RECORD.validate_json(record)
            require_version(fields, f"the model {fields.get('name')}")
            models.append(KnownModel.model_validate(fields))
        except NewerRecordError as error:
            log_skipped(error.message, "newer")
        except (UnreadableRecordError, ValidationError) as error:
            log_skipped(record.decode(errors="backslashreplace")[:_SHOWN], type(error).__name__)
    return models


def choose_model(
    known: Sequence[KnownModel], *, asked: str | None, preferred: str, gone_after_s: float, now: float
) -> KnownModel | None:
    """Return the model that a new job is bound to; None where no worker has ever been ready.

    `asked` is what the request names: a name or a model id. Otherwise `preferred` decides, the name in the service's
    own settings, where a worker serves it. Of several that fit, the living ones go before the others, and among the
    living the newest: so a rolling change moves new jobs to the new checkpoint at once, and a change back moves them
    back as soon as the workers of the newer one are gone.

    A named model without a worker is accepted for `gone_after_s`, and while no worker of any model runs.

    Raises:
        ModelNotFoundError: no worker serves the model that the request names.
    """
    all_gone = not any(model.lives(now) for model in known)
    served = [model for model in known if all_gone or model.lives(now) or now - model.last_ready_at <= gone_after_s]
    fitting = [model for model in served if asked in (model.name, model.model_id)]
    if asked is not None and not fitting:
        names = ", ".join(sorted({model.name for model in served})) or "none"
        raise ModelNotFoundError(f"No worker serves the model {asked!r}. Served models: {names}.")
    if asked is None:
        fitting = list(known)

    def rank(model: KnownModel) -> tuple[bool, bool, float]:
        lives = model.lives(now)
        return lives, model.name == preferred, model.first_ready_at if lives else model.last_ready_at

    return max(fitting, key=rank, default=None)
