"""What can go wrong on this side of the wire. Knows sentences; the server's own errors stand in `shared.errors`.

shared.errors.ColqueueError
├── LaunchError             the local stack cannot be started as asked
│   └── ChildExitedError    one of its processes ended by itself
├── ServiceError            the service answered something else than 200
└── UnreachableError        no answer, or none that can be read
"""

from shared.errors import ColqueueError

__all__ = ["ChildExitedError", "LaunchError", "ServiceError", "UnreachableError"]


class LaunchError(ColqueueError):
    """The local stack cannot be started as asked; the message says what to change."""

    code = "launch_failed"


class ChildExitedError(LaunchError):
    """One of the stack's processes ended by itself."""

    code = "child_exited"


class ServiceError(ColqueueError):
    """The service answered with `status`, and with the `code`, `message` and `index` of its error body."""

    def __init__(self, status: int, code: str, message: str, *, index: int | None = None) -> None:
        super().__init__(message, index=index)
        self.status = status
        self.code = code  # type: ignore[misc]  # a class's constant elsewhere in the tree; here the server chose it

    def __str__(self) -> str:
        return f"{self.message} ({self.status} {self.code})"


class UnreachableError(ColqueueError):
    """The service gave no answer, or one that is not what its contract says."""

    code = "unreachable"
