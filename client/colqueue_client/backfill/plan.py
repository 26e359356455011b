"""Define the options of a backfill and the summary of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from colqueue_client.backfill.records import Counts
from colqueue_client.backfill.store import Store
from colqueue_client.printable import printable

__all__ = ["Plan", "Summary"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A backfill. Of these, a folder keeps format, dpi, dtype and pool_factor for good: its pages must be alike."""

    sources: Sequence[str]
    out: Path
    format: str = "parquet"
    """One of `output.FORMATS`."""
    store: Store = field(default_factory=Store)
    """Of LanceDB or Qdrant."""
    dpi: int = 150
    """Of rendered PDF pages; what morphik-core sends."""
    passwords: Sequence[str] = field(default=(), repr=False)
    """Tried on encrypted PDFs. They are never written anywhere."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """`max_bytes` and `max_pixels` of one image, where they are not the service's defaults (`pages.Limits`)."""
    output_dtype: str = "float16"
    pool_factor: int | None = None
    retry_failed: bool = False
    prune: bool = False
    """Let the pages of documents that are gone leave the output."""
    moved: bool = False
    """The sources have moved: files of the same relative name are the same documents."""
    limit: int | None = None
    """Embed at most so many pages in this run."""
    processes: int = 2
    """Raised: pages are rendered faster, on so many cores."""
    job_pages: int = 16
    """Raised: fewer, larger requests, and more to repeat after a kill."""
    jobs_in_flight: int = 8
    """Raised: more work waits at the service, which keeps more workers busy. It refuses what is too much for it."""
    shard_bytes: int = 256 * 2**20
    """Raised: fewer, larger Parquet files; that much more is in `manifest.sqlite` until a shard is full."""

    def fixed_options(self) -> dict[str, str]:
        """Return what must not change between two runs into one folder."""
        kept = {name: str(getattr(self, name)) for name in ("format", "dpi", "output_dtype", "pool_factor")}
        return kept | {"store": self.store.name}


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of the pages. `found = embedded + failed + skipped + left`, and nothing is left of a whole run."""

    counts: Counts
    seconds: float
    new: int
    """Pages embedded by this run."""
    gone: int
    """Documents of earlier runs that are no longer there; their pages stay in the output."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Files of other types, by suffix."""
    failures: Sequence[Mapping[str, str | int | None]] = ()
    """The first of them; `failures.jsonl` has all."""
    unreachable: int = 0
    """Documents of earlier runs that are missing and perhaps not gone; their pages stay in the output."""
    unreachable_because: str = ""
    """The reason for one of them."""
    renamed: int = 0
    """Documents whose content was in the output under another name."""
    pruned: int = 0
    """Documents whose pages have left the output, because they are gone."""

    @property
    def pages_per_s(self) -> float:
        """Of this run."""
        return self.new / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        counts = asdict(self.counts)
        return {"found": self.counts.found, **counts} | {
            "embedded_now": self.new,
            "gone_documents": self.gone,
            "unreachable_documents": self.unreachable,
            "renamed_documents": self.renamed,
            "pruned_documents": self.pruned,
            "skipped_by_suffix": dict(self.skipped),
            "seconds": round(self.seconds, 3),
            "pages_per_s": round(self.pages_per_s, 3),
            "failures": [dict(failure) for failure in self.failures],
        }

    def __str__(self) -> str:
        counts = self.counts
        lines = [
            f"{counts.found} pages found = {counts.embedded} embedded + {counts.failed} failed + {counts.skipped} "
            f"skipped" + (f" + {counts.left} left" if counts.left else ""),
            f"{self.new} of them embedded in this run, in {self.seconds:.1f} s ({self.pages_per_s:.2f} pages/s)",
        ]
        if counts.unopened:
            lines.append(f"documents not opened yet: {counts.unopened}; their pages are not counted above")
        if self.skipped:
            lines.append(
                "skipped: "
                + ", ".join(f"{count} x {printable(suffix)}" for suffix, count in sorted(self.skipped.items()))
            )
        if self.renamed:
            lines.append(f"renamed documents: {self.renamed}; their pages are not embedded again")
        if self.pruned:
            lines.append(f"gone documents of earlier runs: {self.pruned}; their pages were removed from the output")
        if self.gone:
            lines.append(f"gone documents of earlier runs: {self.gone}; their pages stay (--prune removes them)")
        if self.unreachable:
            lines.append(
                f"documents of earlier runs that cannot be reached: {self.unreachable}; their pages stay. "
                f"{printable(self.unreachable_because)}"
            )
        for failure in self.failures:
            where = failure["document"] if failure["page"] is None else f"{failure['document']} page {failure['page']}"
            lines.append(printable(f"failed: {where}: {failure['message']} ({failure['code']})"))
        if (more := counts.failed - len(self.failures)) > 0:
            lines.append(f"failed: {more} more, see _backfill/failures.jsonl")
        return "\n".join(lines)
