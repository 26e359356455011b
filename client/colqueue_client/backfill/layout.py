"""Lock the folder of a backfill, refuse a folder that is not one, and move an older layout into the present one."""

import fcntl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from colqueue_client.backfill.database import Database
from colqueue_client.backfill.files import flush_to_disk
from colqueue_client.errors import BackfillError

__all__ = ["NPZ", "SEEN", "SHARDS", "failures_path", "hold", "holds_manifest", "manifest_path", "old_shards", "prepare"]

SHARDS: Final = "pages"
"""The folder of the Parquet files."""
SEEN: Final = "[!._]*.parquet"
"""Matches the Parquet files that readers of a folder read."""
NPZ: Final = "documents"
"""The folder of the npz files."""
# Readers of Parquet (pandas, pyarrow, Spark, Dask) leave out what begins with `_` or `.`: they can read DIR itself.
_RECORDS: Final = "_backfill"


def manifest_path(folder: Path) -> Path:
    """Return where the manifest is."""
    return folder / _RECORDS / "manifest.sqlite"


def failures_path(folder: Path) -> Path:
    """Return where the failed pages are listed."""
    return folder / _RECORDS / "failures.jsonl"


def old_shards(folder: Path) -> list[Path]:
    """Return the shards in a folder of the layout before `SHARDS`."""
    return sorted(folder.glob("part-*.parquet"))


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; BackfillError where another one has it."""
    with (folder / ".lock").open("a") as lock:  # never emptied: it may be somebody's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BackfillError(f"another backfill is writing to {folder}") from error
        yield


def prepare(folder: Path) -> None:
    """Make a held folder ready for its manifest: move an older layout, refuse embeddings without a manifest.

    Killed at any moment and called again, it goes on: the manifest of an older layout moves last.
    """
    manifest, before = manifest_path(folder), _older_manifest_path(folder)
    if not _is_empty(before):
        if not _is_empty(manifest):
            raise BackfillError(f"{folder} has two manifests, {before} and {manifest}: move one of them away")
        _move_older_layout(folder, before, manifest)
    if _is_empty(manifest) and (found := _embeddings_in(folder)) is not None:
        raise BackfillError(
            f"{found} is here, and the manifest that says what is in it is not ({manifest}). Nothing was changed. "
            "Put the manifest back, give another --out, or delete these embeddings yourself to begin anew"
        )
    manifest.parent.mkdir(exist_ok=True)


def holds_manifest(folder: Path) -> bool:
    """Return whether a backfill has written to the folder, in this layout or the older one."""
    return any(not _is_empty(path) for path in (manifest_path(folder), _older_manifest_path(folder)))


def _older_manifest_path(folder: Path) -> Path:
    return folder / "manifest.sqlite"


def _is_empty(path: Path) -> bool:
    return not path.exists() or not path.stat().st_size


def _embeddings_in(folder: Path) -> Path | None:
    for found in (*old_shards(folder), *(folder / SHARDS).glob(SEEN), *(folder / NPZ).rglob("[!.]*.npz")):
        return found
    for store in ("lancedb", "qdrant"):
        for found in (folder / store).glob("*"):
            return found
    return None


def _move_older_layout(folder: Path, before: Path, manifest: Path) -> None:
    with closing(Database(before)) as database:  # of this version from now on: an older client refuses it
        held = {name for (name,) in database.execute("SELECT name FROM files").fetchall()}
        shards = [shard for shard in old_shards(folder) if shard.name in held or _note_finished(database, shard)]
        _note_unfinished_npz(database, folder / NPZ)
        (folder / SHARDS).mkdir(exist_ok=True)
        for shard in shards:
            if (target := folder / SHARDS / shard.name).exists():
                raise BackfillError(f"{shard} and {target} are both there: move one of them away")
            shard.rename(target)
        if (failures := folder / "failures.jsonl").exists():
            manifest.parent.mkdir(exist_ok=True)
            failures.rename(failures_path(folder))
        database.execute("PRAGMA journal_mode = DELETE")  # one file, so that one rename moves it
    flush_to_disk(folder / SHARDS)
    manifest.parent.mkdir(exist_ok=True)
    before.rename(manifest)
    flush_to_disk(manifest.parent)
    flush_to_disk(folder)


def _note_finished(database: Database, shard: Path) -> bool:
    """Note a shard that the previous version finished and was killed before it noted it; say whether it is one.

    It is one where each of its pages is in the manifest, of the same content, and waits to be written.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415 - an extra

    table = pq.read_table(shard)
    if not {"document", "page", "sha256"} <= set(table.column_names):
        return False
    query = (
        "SELECT documents.id FROM documents JOIN spool ON document = documents.id "
        "WHERE name = ? AND page = ? AND sha256 = ?"
    )
    rows = zip(*(table.column(name).to_pylist() for name in ("document", "page", "sha256")), strict=True)
    keys = [(database.one(query, name, page, sha256), page) for name, page, sha256 in rows]
    if not keys or any(document is None for document, _ in keys):
        return False
    with database.transaction():
        database.execute("INSERT INTO files VALUES (?, 'held')", (shard.name,))
        database.executemany(
            "UPDATE pages SET state = 'written', file = ? WHERE document = ? AND page = ?",
            ((shard.name, *key) for key in keys),
        )
        database.executemany("DELETE FROM spool WHERE document = ? AND page = ?", keys)
    return True


def _note_unfinished_npz(database: Database, folder: Path) -> None:
    """Note the files of documents that the previous version wrote and was killed before it noted them."""
    query = (
        "SELECT DISTINCT name, sha256 FROM documents JOIN spool ON document = id "
        "WHERE name NOT IN (SELECT name FROM files)"
    )
    for name, sha256 in database.execute(query).fetchall():
        if (path := folder / f"{name}.npz").is_file():
            with np.load(path, allow_pickle=False) as archive:
                is_ours = "sha256" in archive and str(archive["sha256"]) == sha256
            if is_ours:
                database.execute("INSERT INTO files VALUES (?, 'writing')", (name,))
