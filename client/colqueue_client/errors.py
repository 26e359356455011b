"""The errors that the client raises, as one tree. All can be pickled, so that they leave a process pool.

ClientError
├── LaunchError             the local stack cannot be started as asked
│   └── ChildExitedError    one of its processes ended by itself
├── ServiceError            the service refused; `status`, `code` and `index` are its own
├── InputFailedError        a job is done, and one of its inputs failed
├── UnreachableError        no answer, or none that can be read
│   └── NotColqueueError    the answer is another server's: a proxy's, a login page's
├── UnfinishedError         the job was not finished in the time given
├── OutputError             what a command prints cannot be written
└── BackfillError           a backfill cannot go on, or a folder is not what a backfill left
    └── StoreAwayError      the store of a backfill does not answer
"""

import re
from typing import Any, Self, TypeVar

__all__ = [
    "BackfillError",
    "ChildExitedError",
    "ClientError",
    "InputFailedError",
    "LaunchError",
    "NotColqueueError",
    "OutputError",
    "ServiceError",
    "StoreAwayError",
    "UnfinishedError",
    "UnreachableError",
]

E = TypeVar("E", bound="ClientError")


def _remake(cls: type[E], args: tuple[Any, ...]) -> E:
    """Return an error without its fields; `__init__` would want them."""
    return cls.__new__(cls, *args)


class ClientError(Exception):
    """Base of all. `code` is stable; `index` names the input at fault, if one is."""

    code = "client_error"

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the fields; Python would call the class with the message alone."""
        return _remake, (type(self), self.args), self.__dict__

    def at(self, index: int) -> Self:
        """Return this error for the input at `index`, also where the message names the input.

        The service counts from the first input of a request, and a call may be several requests.
        """
        moved = _remake(type(self), self.args)
        moved.__dict__.update(self.__dict__)
        moved.index = index
        if self.index is not None:
            moved.message = re.sub(rf"\b([Ii]nput) {self.index}\b", rf"\1 {index}", self.message, count=1)
            moved.args = (moved.message,)
        return moved


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
        named = self.index is None or re.search(rf"\binput {self.index}\b", self.message, re.IGNORECASE)
        where = "" if named else f", input {self.index}"
        return f"{self.message} ({self.status} {self.code}{where})"


class InputFailedError(ClientError):
    """The input at `index` of a finished job has no embedding; `code` is the service's."""

    def __init__(self, code: str, message: str, *, index: int) -> None:
        super().__init__(message, index=index)
        self.code = code

    def __str__(self) -> str:
        return f"input {self.index}: {self.message} ({self.code})"


class UnreachableError(ClientError):
    """The service gave no answer, or one that is not what its contract says."""

    code = "unreachable"


class NotColqueueError(UnreachableError):
    """What answers at the URL is not colqueue; the message says what it answered."""

    code = "not_colqueue"


class UnfinishedError(ClientError):
    """The job was not finished in the time given. It goes on."""

    code = "unfinished"


class BackfillError(ClientError):
    """A backfill cannot go on, or a folder is not what a backfill left; the message says what to do."""

    code = "backfill_failed"


class StoreAwayError(BackfillError):
    """A store gave no answer, or one that says nothing about the call: the same call may succeed later.

    `is_unsure` where the cause may as well be there for good.
    """

    code = "store_away"

    def __init__(self, message: str, *, index: int | None = None, is_unsure: bool = False) -> None:
        super().__init__(message, index=index)
        self.is_unsure = is_unsure


class OutputError(ClientError):
    """What a command prints cannot be written, to a disk that is full for example."""

    code = "output_failed"
