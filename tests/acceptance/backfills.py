"""Backfills as people run them, and what must be true of what they leave. Knows commands, and readers not of ours."""

import json
import subprocess
import sys

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
from documents import DPI
from stack import KEY, clean_environment

from colqueue_client import load
from colqueue_client.backfill.layout import failures_path

__all__ = ["assert_is_what_the_model_says", "backfill", "colqueue", "command", "failures_in", "written"]

# float16 of values up to 1, and what batching changes in float32.
TOLERANCE = 1e-3


def command(stack, *arguments):
    environment = clean_environment(COLQUEUE_URL=stack.url, SERVICE_API_KEY=KEY, NO_COLOR="1")
    return [sys.executable, "-m", "colqueue_client.cli", *map(str, arguments)], environment


def colqueue(stack, *arguments):
    """Run a command to its end and return it."""
    line, environment = command(stack, *arguments)
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=False)


def backfill(stack, documents, out, *more):
    """Run a backfill to its end and return its exit code and its summary."""
    done = colqueue(stack, "backfill", documents.folder, "--out", out, "--dpi", DPI, "--json", *more)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def written(out):
    """Every row of the output, by two readers that know nothing of us and by our own, which must agree."""
    columns = "document, page, embedding, rows, id, width, height"
    rows = duckdb.read_parquet(f"{out}/pages/*.parquet").select(columns).fetchall()
    found = {(document, page): np.array(embedding, np.float16) for document, page, embedding, *_ in rows}
    assert len(rows) == len(found), "a page is there twice"
    frame = pl.read_parquet(out / "pages")
    assert frame.schema["embedding"] == pl.List(pl.Array(pl.Float16, 128))
    assert set(frame.select("document", "page").rows()) == found.keys()
    assert pq.read_table(out, columns=["document"]).num_rows == len(found), "as pandas reads a folder"
    assert len({page_id for *_, page_id, _, _ in rows}) == len(rows)
    assert all(width > 0 and height > 0 for *_, width, height in rows)
    for page in load(out):
        np.testing.assert_array_equal(page.embedding, found[page.document, page.page])
    assert len(load(out)) == len(found)
    assert all(len(embedding) == count for _, _, embedding, count, *_ in rows)
    return found


def assert_is_what_the_model_says(found, documents, model):
    assert found.keys() == documents.pages
    for page, image in documents.images():
        (expected,) = model.embed([model.prepare_page(image)])
        assert found[page].shape == expected.shape
        np.testing.assert_allclose(found[page].astype(np.float32), expected, rtol=0, atol=TOLERANCE, err_msg=str(page))


def failures_in(out):
    lines = failures_path(out).read_text().splitlines()
    return {(entry["document"], entry["page"]): entry["code"] for entry in map(json.loads, lines)}
