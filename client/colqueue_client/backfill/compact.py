"""Merge the small Parquet files of a backfill into larger ones, and drop what no document has any more."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from colqueue_client.backfill.layout import hold, holds_manifest, manifest_path, prepare
from colqueue_client.backfill.manifest import Manifest
from colqueue_client.backfill.output import PARQUET
from colqueue_client.backfill.parquet import ParquetShards
from colqueue_client.errors import BackfillError

__all__ = ["Compacted", "compact"]

# A shard that is nearly full is not worth writing again.
_FULL: Final = 0.8


@dataclass(frozen=True, slots=True)
class Compacted:
    """The Parquet files of a folder before and after."""

    files_before: int
    files: int
    bytes_before: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"files before: {self.files_before} of {self.bytes_before / 2**20:.1f} MiB, "
            f"files now: {self.files} of {self.bytes / 2**20:.1f} MiB"
        )


def compact(folder: Path, shard_bytes: int, say: Callable[[str], object]) -> Compacted:
    """Merge neighbouring shards until one has about `shard_bytes`, and return what came of it.

    Killed at any moment and called again, or followed by a backfill, it goes on where it was: a merged shard is noted
    in one transaction with the shards that it replaces, and those are removed afterwards.

    Raises:
        BackfillError: the folder holds no backfill into Parquet, or another process writes to it.
    """
    if not folder.is_dir():
        raise BackfillError(f"{folder}: no such folder")
    if not holds_manifest(folder):  # before anything is written: it is somebody else's folder
        raise BackfillError(f"{folder} holds no backfill")
    with hold(folder):
        prepare(folder)
        with closing(Manifest(manifest_path(folder), new_run=False)) as manifest:
            if manifest.fact("format") != PARQUET:
                raise BackfillError(f"{folder} holds no Parquet files: there is nothing to merge")
            output = ParquetShards(folder, manifest.fact("model") or "", shard_bytes)
            _tidy(manifest, output)
            before = output.sizes()
            output.use_columns(manifest.columns())
            _drop_leaving(manifest, output)
            for names in _groups(output.sizes(), shard_bytes):
                say(f"Merging {len(names)} files.")
                _merge(manifest, output, names)
            manifest.shrink()
            after = output.sizes()
    return Compacted(len(before), len(after), sum(before.values()), sum(after.values()))


def _tidy(manifest: Manifest, output: ParquetShards) -> None:
    unwanted = manifest.spool.unwanted_files()
    missing = output.tidy(manifest.spool.files(), unwanted)
    manifest.spool.record_removed(missing | unwanted)


def _drop_leaving(manifest: Manifest, output: ParquetShards) -> None:
    """Finish what a killed run had begun: the removal of documents that changed, moved or are gone."""
    while documents := manifest.departures.next_leaving():
        output.forget(documents)
        manifest.departures.end_removal(documents)


def _merge(manifest: Manifest, output: ParquetShards, names: list[str]) -> None:
    into = output.new_name("")
    manifest.spool.begin_file(into)
    output.merge(names, into)
    manifest.spool.record_merged(names, into)
    output.remove(names)
    manifest.spool.record_removed(names)


def _groups(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Yield neighbours that fit into one shard together, where there are two or more of them."""
    group: list[str] = []
    for name, size in sizes.items():
        if size > _FULL * most:
            continue
        if group and sum(sizes[one] for one in group) + size > most:
            if len(group) > 1:
                yield group
            group = []
        group.append(name)
    if len(group) > 1:
        yield group
