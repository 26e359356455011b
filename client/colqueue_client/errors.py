"""What can go wrong on this side of the wire, one tree. Knows sentences and the server's codes.

ClientError
├── LaunchError             the local stack cannot be started as asked
│   └── ChildExitedError    one of its processes ended by itself
├── ServiceError            the service answered something else than 200
└── UnreachableError        no answer, or none that can be read
"""

__all__ = ["ChildExitedError", "ClientError", "LaunchError", "ServiceError", "UnreachableError"]


class ClientError(Exception):
    """Base of all. `code` is stable; `index` names the input at fault, if one is."""

    code = "client_error"

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.index = index


class LaunchError(ClientError):
    """The local stack cannot be started as asked; the message says what to change."""

    code = "launch_failed"


class ChildExitedError(LaunchError):
    """One of the stack's processes ended by itself."""

    code = "child_exited"


class ServiceError(ClientError):
    """The service answered with `status`, and with the `code`, `message` and `index` of its error body."""

    def __init__(self, status: int, code: str, message: str, *, index: int | None = None) -> None:
        super().__init__(message, index=index)
        self.status = status
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.status} {self.code})"


class UnreachableError(ClientError):
    """The service gave no answer, or one that is not what its contract says."""

    code = "unreachable"
