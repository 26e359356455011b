"""Converts multi-vectors to the precision that the job asked for; the api widens float16 to float32."""

import numpy as np
from numpy.typing import NDArray

from shared.codecs import Rows, StoredRows
from shared.jobs import OutputDtype

__all__ = ["at_precision"]


def at_precision(rows: Rows, output_dtype: OutputDtype | None) -> StoredRows:
    """Return rows of length 1 as `output_dtype` says; see there for what each is."""
    match output_dtype:
        case OutputDtype.FLOAT16:
            return rows.astype(np.float16)
        case OutputDtype.INT8:
            return _int8(rows)
        case OutputDtype.BINARY:
            # As morphik-core stores them: pgvector's Bit(row > 0).
            return np.packbits(rows > 0, axis=-1)
        case OutputDtype.FLOAT32 | None:
            return rows


def _int8(rows: Rows) -> NDArray[np.int8]:
    """A scale for each row costs nothing to keep, as a row's length is known, and errs a sixth as much as one for all.

    The figure: docs/storage.md.
    """
    wide = rows.astype(np.float32)
    largest = np.abs(wide).max(axis=1, keepdims=True, initial=1e-30)
    rounded: NDArray[np.float32] = np.rint(wide * (127 / largest))
    return rounded.astype(np.int8)
