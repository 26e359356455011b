"""Keep the rows of one output folder to one checkpoint of the model."""

from pathlib import Path

from colqueue_client.backfill.manifest import Manifest
from colqueue_client.errors import BackfillError, ServiceError
from colqueue_client.wire import JobResult

__all__ = ["Checkpoint"]

_FACT = "model_id"
_NOT_SERVED = "model_not_found"


class Checkpoint:
    """The checkpoint that the folder's rows come from: the manifest keeps its id from the first result on.

    Every later job names that id, so a rolling change of the model does not touch a run while workers of the checkpoint
    live. A service that does not say which checkpoint answered (0.1.0) is taken at its word.
    """

    def __init__(self, manifest: Manifest, folder: Path, model: str) -> None:
        self._manifest = manifest
        self._folder = folder
        self._model = model
        if not manifest.has_embeddings():
            manifest.set_fact(_FACT, "")

    @property
    def model_id(self) -> str | None:
        """The id that jobs must name; None until the first result."""
        return self._manifest.fact(_FACT) or None

    def accept_result(self, result: JobResult) -> bool:
        """Return whether the result may be kept. The first result decides which checkpoint the folder belongs to.

        Raises `BackfillError` where another model answered than the one that the run began with.
        """
        if not result.model_id:
            return True
        if result.model not in {None, self._model}:
            raise BackfillError(
                f"the service now answers with the model {result.model}, and the pages in {self._folder} are of "
                f"{self._model}. Give another folder, or start a worker of {self._model} and run the command again."
            )
        if self.model_id is None:
            self._manifest.set_fact(_FACT, result.model_id)
        return result.model_id == self.model_id

    def explain(self, error: ServiceError) -> ServiceError | BackfillError:
        """Return the error to raise where the service refused a job: what to do, where it has lost the checkpoint."""
        if error.code != _NOT_SERVED or self.model_id is None:
            return error
        return BackfillError(
            f"the pages in {self._folder} are of the checkpoint {self.model_id} of the model {self._model}, which no "
            "worker serves any more. One folder holds one checkpoint: give another folder for the model that is served "
            "now, or start a worker of that checkpoint and run the command again."
        )
