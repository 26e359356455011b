"""Connects to Qdrant, checks a collection before the first page is embedded, and says what Qdrant's errors mean."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pydantic import ValidationError
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from colqueue_client.answers import PASSING_STATUSES, UNSURE_STATUSES
from colqueue_client.backfill.store import Store
from colqueue_client.errors import BackfillError, StoreAwayError

__all__ = ["connect", "require_fit", "translate_errors"]

_NO_KEY: Final = frozenset({401, 403})
_NOT_FOUND: Final = 404
_MOST_WORDS: Final = 300
_DISTANCES: Final = frozenset({models.Distance.DOT, models.Distance.COSINE})  # of rows of length 1 they are equal


def connect(where: str, store: Store) -> QdrantClient:
    """Return a client of the server at a URL, or of local mode in a folder. Does not ask a server anything."""
    if not where.startswith(("http://", "https://")):
        try:
            return QdrantClient(path=where)
        except RuntimeError as error:
            raise BackfillError(f"{where} cannot be opened: {error}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a key over http, which may be this machine or a network of one's own
        try:
            timeout_s = max(1, round(store.timeout_s))
            return QdrantClient(url=where, api_key=store.key, timeout=timeout_s, check_compatibility=False)
        except ValueError as error:
            raise BackfillError(f"{where} is no address of a Qdrant server: {error}") from error


def require_fit(info: models.CollectionInfo, name: str, where: str, dim: int, datatype: models.Datatype | None) -> None:
    """Raise BackfillError where a collection that is there already cannot hold these multi-vectors."""
    if reasons := list(_misfits(info.config.params.vectors, dim, datatype)):
        raise BackfillError(
            f"the collection {name} at {where} was not made for these pages: {'; '.join(reasons)}. "
            "Name another by --collection"
        )


def _misfits(vectors: object, dim: int, datatype: models.Datatype | None) -> Iterator[str]:
    if not isinstance(vectors, models.VectorParams):
        yield "its vectors have names, or it has none"
        return
    if vectors.size != dim:
        yield f"its vectors have {vectors.size} values, and not {dim}"
    if vectors.multivector_config is None:
        yield "its points have one vector, and not a multi-vector"
    if vectors.distance not in _DISTANCES:
        yield f"it compares by {vectors.distance.value}, and not by Dot"
    if (vectors.datatype or models.Datatype.FLOAT32) not in {models.Datatype.FLOAT32, datatype}:
        yield f"its values are {vectors.datatype.value if vectors.datatype else ''}"


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Turn Qdrant's errors into StoreAwayError where they may pass, and into BackfillError where they do not."""
    try:
        yield
    except UnexpectedResponse as error:
        raise _refusal(where, error) from error
    except ResourceExhaustedResponse as error:
        raise StoreAwayError(f"Qdrant at {where} takes no more at the moment: {error}") from error
    except json.JSONDecodeError as error:
        raise _not_qdrant(where) from error
    except ResponseHandlingException as error:
        if isinstance(error.source, ValidationError):
            raise _not_qdrant(where) from error
        reason = str(error.source) or type(error.source).__name__
        raise StoreAwayError(f"Qdrant at {where} does not answer: {reason}") from error


def _not_qdrant(where: str) -> StoreAwayError:
    """Return the error of an answer in another form: it may be the page of a proxy, which passes."""
    return StoreAwayError(f"what answers at {where} is not Qdrant", is_unsure=True)


def _refusal(where: str, error: UnexpectedResponse) -> BackfillError:
    status = error.status_code or 0
    if status in _NO_KEY:
        return BackfillError(
            f"Qdrant at {where} refuses the key ({status}): give one that may write (COLQUEUE_STORE_KEY)"
        )
    told = f"Qdrant at {where} answered {status}: {_said(error)}"
    if status in PASSING_STATUSES or status in UNSURE_STATUSES:
        return StoreAwayError(told, is_unsure=status not in PASSING_STATUSES)
    return BackfillError(told + (". Is that the address of Qdrant?" if status == _NOT_FOUND else ""))


def _said(error: UnexpectedResponse) -> str:
    try:
        body = json.loads(error.content)
        said = body["status"]["error"]
    except (ValueError, KeyError, TypeError):
        said = error.reason_phrase
    return str(said)[:_MOST_WORDS]
