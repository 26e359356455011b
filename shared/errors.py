"""Defines every error that colqueue raises on purpose, as one tree.

ColqueueError
├── RequestError                what was asked cannot be done as asked
│   ├── UnauthorizedError       no key given, or none configured
│   ├── ForbiddenError          not a bearer token, or the wrong one
│   ├── InvalidBodyError        the body cannot be read as what it claims to be
│   ├── InvalidInputTypeError   `input_type` is neither "image" nor "text"
│   ├── InvalidTextInputsError  a text input is not a string
│   ├── InvalidJobError         the job's options break the schema
│   │   └── IdempotencyKeyReusedError  the key made a job of something else
│   ├── UnsupportedBodyError    a content type nobody here understands
│   │   └── UnsupportedEncodingError  a content encoding nobody here understands
│   ├── BodyTooSlowError        the body did not come in time
│   ├── TooLargeError           body, number of inputs or one input over a limit
│   ├── JobNotFoundError        unknown, or another key's
│   ├── ModelNotFoundError      no worker serves the model that the request names
│   ├── JobCancelledError       there will be no result
│   └── ResultExpiredError      there was a result
├── InputError                  one input cannot be embedded; the others go on
│   ├── ImageInvalidError       not decodable as an image
│   ├── ImageTooLargeError      more pixels than the limit
│   ├── ImageAspectError        longer than 200 times its width, or wider
│   ├── TextInvalidError        not text the tokenizer can read
│   ├── TextTooLongError        more tokens than the limit
│   ├── DeadlineError           the job's deadline passed first
│   ├── WorkerKilledError       workers died each time they worked on it
│   ├── ModelGoneError          the last worker of the job's model has been gone for too long
│   └── ModelError              the model failed on this input
│       └── DeviceMemoryError   the input alone does not fit the device's memory
├── UnavailableError            try again later
│   ├── StoppingError           this api process is being stopped
│   ├── BusyError               too much is being received at once
│   ├── QueueFullError          too much work waits already
│   ├── RateLimitedError        this key has too much work waiting, or sends it too fast
│   ├── StoreUnavailableError   Redis does not answer
│   │   └── StoreRefusedError   Redis refuses our user or password
│   ├── NewerRecordError        a newer release wrote this record: upgrade this process
│   └── StoreFullError          Redis is out of memory
├── UnreadableRecordError       a record in Redis lacks something, or none of our releases wrote it
├── WaitTimeoutError            the wait ran out; the job goes on
└── CheckpointError             the worker must not start with these weights
"""

from typing import ClassVar

__all__ = [
    "BodyTooSlowError",
    "BusyError",
    "CheckpointError",
    "ColqueueError",
    "DeadlineError",
    "DeviceMemoryError",
    "ForbiddenError",
    "IdempotencyKeyReusedError",
    "ImageAspectError",
    "ImageInvalidError",
    "ImageTooLargeError",
    "InputError",
    "InvalidBodyError",
    "InvalidInputTypeError",
    "InvalidJobError",
    "InvalidTextInputsError",
    "JobCancelledError",
    "JobNotFoundError",
    "ModelError",
    "ModelGoneError",
    "ModelNotFoundError",
    "NewerRecordError",
    "QueueFullError",
    "RateLimitedError",
    "RequestError",
    "ResultExpiredError",
    "StoppingError",
    "StoreFullError",
    "StoreRefusedError",
    "StoreUnavailableError",
    "TextInvalidError",
    "TextTooLongError",
    "TooLargeError",
    "UnauthorizedError",
    "UnavailableError",
    "UnreadableRecordError",
    "UnsupportedBodyError",
    "UnsupportedEncodingError",
    "WaitTimeoutError",
    "WorkerKilledError",
]


class ColqueueError(Exception):
    """Base of all. `code` is public and stable; `index` names the input at fault, if one is."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.index = index


class RequestError(ColqueueError):
    """What was asked cannot be done as asked."""

    code = "invalid_request"


class UnauthorizedError(RequestError):
    """No key was given, or none is configured (then nobody is let in)."""

    code = "unauthorized"


class ForbiddenError(RequestError):
    """The Authorization header holds no bearer token, or a wrong one."""

    code = "forbidden"


class InvalidBodyError(RequestError):
    """The body cannot be read as what it claims to be."""

    code = "invalid_body"


class InvalidInputTypeError(RequestError):
    """`input_type` is neither "image" nor "text"."""

    code = "invalid_input_type"


class InvalidTextInputsError(RequestError):
    """A text input is not a string."""

    code = "invalid_text_inputs"


class InvalidJobError(RequestError):
    """The job's options break the schema."""

    code = "invalid_job"


class IdempotencyKeyReusedError(InvalidJobError):
    """The idempotency key was sent before, with other inputs or options."""

    code = "idempotency_key_reused"


class UnsupportedBodyError(RequestError):
    """A content type nobody here understands."""

    code = "unsupported_media_type"


class UnsupportedEncodingError(UnsupportedBodyError):
    """A content encoding nobody here understands, or too many of them."""

    code = "unsupported_encoding"


class BodyTooSlowError(RequestError):
    """The body did not come in time."""

    code = "body_too_slow"


class TooLargeError(RequestError):
    """The body, the number of inputs or one input is over a limit."""

    code = "too_large"


class JobNotFoundError(RequestError):
    """No such job, or it belongs to another key."""

    code = "job_not_found"


class ModelNotFoundError(RequestError):
    """No worker serves the model that the request names."""

    code = "model_not_found"


class JobCancelledError(RequestError):
    """The job was cancelled: there will be no result."""

    code = "job_cancelled"


class ResultExpiredError(RequestError):
    """The job's result is no longer kept."""

    code = "result_expired"


class InputError(ColqueueError):
    """One input cannot be embedded; the others of its job go on."""

    code = "input_failed"


class ImageInvalidError(InputError):
    """The bytes cannot be decoded as an image."""

    code = "image_invalid"


class ImageTooLargeError(InputError):
    """The image has more pixels than the limit."""

    code = "image_too_large"


class ImageAspectError(InputError):
    """One side is more than 200 times the other."""

    code = "image_aspect_ratio"


class TextInvalidError(InputError):
    """The text is not something the tokenizer can read."""

    code = "text_invalid"


class TextTooLongError(InputError):
    """The text has more tokens than the limit."""

    code = "text_too_long"


class DeadlineError(InputError):
    """The job's deadline passed before this input was embedded."""

    code = "deadline_exceeded"


class WorkerKilledError(InputError):
    """Workers died each time they worked on this input: it is given up."""

    code = "worker_killed"


class ModelGoneError(InputError):
    """The last worker of the job's model has been gone for too long."""

    code = "model_gone"


class ModelError(InputError):
    """The model failed on this input."""

    code = "model_failed"


class DeviceMemoryError(ModelError):
    """The input alone does not fit the device's memory."""

    code = "out_of_device_memory"


class UnavailableError(ColqueueError):
    """Nothing is wrong with the request: try again later, after `retry_after_s` where that is known."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoppingError(UnavailableError):
    """This api process is being stopped while the request waits."""

    code = "stopping"


class BusyError(UnavailableError):
    """This api process is receiving as much as it holds at once."""

    code = "busy"


class QueueFullError(UnavailableError):
    """Too much work waits already."""

    code = "queue_full"


class RateLimitedError(UnavailableError):
    """This key has as much unfinished work as it may have, or submits faster than it may."""

    code = "rate_limited"


class StoreUnavailableError(UnavailableError):
    """Redis does not answer."""

    code = "store_unavailable"


class StoreRefusedError(StoreUnavailableError):
    """Redis refuses our user or password, or does not let that user do what we do."""

    code = "store_refused"


class StoreFullError(UnavailableError):
    """Redis is out of memory."""

    code = "store_full"


class NewerRecordError(UnavailableError):
    """A newer release wrote this record, and this process may misread it: it must be upgraded."""

    code = "newer_record"


class UnreadableRecordError(ColqueueError):
    """A record in Redis lacks something that each of our releases writes, or holds what none of them does."""

    code = "unreadable_record"


class WaitTimeoutError(ColqueueError):
    """The synchronous wait ran out; the job goes on."""

    code = "wait_timeout"


class CheckpointError(ColqueueError):
    """The worker must not start: a weight would be random, or the checkpoint cannot be read."""

    code = "checkpoint_invalid"
