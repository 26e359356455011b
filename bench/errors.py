"""What ends a benchmark. Knows sentences only."""

from shared.errors import ColqueueError

__all__ = ["BenchError"]


class BenchError(ColqueueError):
    """A contestant could not be installed, started or believed; the message says why."""

    code = "bench_failed"
