"""Connects to LanceDB, checks a table before the first page is embedded, and says what LanceDB's errors mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import lancedb
import pyarrow as pa
from lancedb.remote import ClientConfig, TimeoutConfig
from lancedb.remote.errors import LanceDBClientError

from colqueue_client.answers import PASSING_STATUSES, UNSURE_STATUSES
from colqueue_client.backfill.store import Store
from colqueue_client.errors import BackfillError, StoreAwayError

__all__ = ["connect", "require_dtype", "require_fit", "translate_errors"]

_DTYPES: Final = frozenset({"float32", "float16"})
_CLOUD: Final = "db://"
_NO_KEY: Final = frozenset({401, 403})


def connect(where: str, store: Store) -> Any:
    """Return the database in a folder, in an object store, or at LanceDB Cloud."""
    options: dict[str, Any] = {}
    if where.startswith(_CLOUD):
        timeout = TimeoutConfig(timeout=timedelta(seconds=store.timeout_s))
        options = {"api_key": store.key, "client_config": ClientConfig(timeout_config=timeout)}
    elif "://" in where:
        options = {"storage_options": {"timeout": f"{store.timeout_s:g}s"}}
    with translate_errors(where):
        try:
            return lancedb.connect(where, **options)
        except ValueError as error:
            raise BackfillError(f"{where} is no address of LanceDB: {error}") from error
        except FileExistsError as error:
            raise BackfillError(f"{where} is a file, and LanceDB needs a folder") from error


def require_dtype(dtype: str) -> None:
    """Raise BackfillError where LanceDB cannot compare multi-vectors of this dtype."""
    if dtype not in _DTYPES:
        raise BackfillError(f"LanceDB has no MaxSim over {dtype}: use --output-dtype float16 or float32")


def require_fit(table: pa.Schema, wanted: pa.Schema, name: str, where: str) -> None:
    """Raise BackfillError where a table that is there already lacks a column of `wanted`, or has another type of it."""
    reasons = [
        f"its column {field.name} is {table.field(field.name).type}, and not {field.type}"
        if field.name in table.names
        else f"it has no column {field.name}"
        for field in wanted
        if field.name not in table.names or table.field(field.name).type != field.type
    ]
    if reasons:
        raise BackfillError(
            f"the table {name} at {where} was not made for these pages: {'; '.join(reasons)}. "
            "Name another by --collection"
        )


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Turn LanceDB's errors into StoreAwayError where they may pass, and into BackfillError where they do not."""
    try:
        yield
    except LanceDBClientError as error:
        raise _refusal(where, error) from error
    except RuntimeError as error:
        told = f"LanceDB at {where}: {_first_words(error)}"
        if "://" in where:  # an object store, after tries of LanceDB's own
            raise StoreAwayError(told, is_unsure=True) from error
        raise BackfillError(told) from error


def _refusal(where: str, error: LanceDBClientError) -> BackfillError:
    status = error.status_code
    if status in _NO_KEY:
        return BackfillError(f"LanceDB at {where} refuses the key ({status}): give --store-key or COLQUEUE_STORE_KEY")
    told = f"LanceDB at {where}: {_first_words(error)}"
    if status is None or status in PASSING_STATUSES or status in UNSURE_STATUSES:
        return StoreAwayError(told, is_unsure=status is not None and status not in PASSING_STATUSES)
    return BackfillError(told)


def _first_words(error: Exception) -> str:
    """Return the message without the place in LanceDB's own source, which it ends with."""
    return str(error).partition("\n")[0].partition(", /")[0]
