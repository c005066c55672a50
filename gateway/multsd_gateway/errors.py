"""What can go wrong in the gateway, and the one table that turns it into HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from multsd_client.errors import FieldNote

# What refused a request: the bound of requests, of UNet rows that wait, of time, of bytes of all bodies; or the model.
Reason = Literal["requests", "rows", "time", "bytes", "model"]


class GatewayError(Exception):
    """Base of what a caller may be told about. retry_after: whole seconds, where they are known better than below."""

    def __init__(self, message: str = "", *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InvalidRequestError(GatewayError):
    """The request is at fault; `errors` says field by field what was expected and what was found."""

    def __init__(self, errors: Sequence[FieldNote]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(map(str, self.errors[:3])) or "invalid request")


class UnauthorizedError(GatewayError):
    """No token, or one that is not known."""


class RateLimitedError(GatewayError):
    """A token asked for more than its share."""


class BodyTooLargeError(GatewayError):
    """More bytes than the limit, told by Content-Length or found while they arrive."""


class BodyTooSlowError(GatewayError):
    """The body did not arrive in time."""


class OverloadedError(GatewayError):
    """As many requests are at work and waiting as the settings allow. reason: by which of the bounds."""

    def __init__(self, message: str = "", *, reason: Reason = "requests", retry_after: int | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason: Reason = reason


class ModelUnavailableError(GatewayError):
    """Triton cannot be reached, went away, lacks the model, or is full."""


class ModelFullError(ModelUnavailableError):
    """The model takes no more; the message is its own, and says when it will."""


class DeadlineExceededError(GatewayError):
    """The picture was not ready within the time limit."""


class ExpiredError(DeadlineExceededError):
    """The time limit passed here, by the gateway's own clock, and not in the model."""


class ClientGoneError(GatewayError):
    """The client closed the connection before its reply."""


class ModelFailedError(GatewayError):
    """The model failed on a request that was valid; the message is the model's own, fit for the caller."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How an exception is told. message: None where the exception's own text is fit for the caller."""

    status: int
    message: str | None = None
    retry_after: int | None = None


ANSWERS: Mapping[type[GatewayError], Answer] = {
    InvalidRequestError: Answer(400),
    UnauthorizedError: Answer(401),
    BodyTooSlowError: Answer(408),
    BodyTooLargeError: Answer(413),
    RateLimitedError: Answer(429, retry_after=1),
    ClientGoneError: Answer(499),
    ModelFailedError: Answer(500),
    OverloadedError: Answer(503, retry_after=5),
    ModelUnavailableError: Answer(503, "the model server is away or full, try again later", retry_after=2),
    ModelFullError: Answer(503, retry_after=2),
    DeadlineExceededError: Answer(504),
    ExpiredError: Answer(504),
}

INTERNAL = Answer(500, "internal error")


def answer_for(error: Exception) -> Answer:
    """The table's row for an exception; what is not in it is an internal error."""
    if not isinstance(error, GatewayError):
        return INTERNAL
    answer = ANSWERS.get(type(error), INTERNAL)
    return replace(answer, retry_after=error.retry_after) if error.retry_after is not None else answer


def error_body(error: Exception, *, request_id: str) -> dict[str, Any]:
    """The JSON that tells the error: message, errors per field where there are any, request_id."""
    message = answer_for(error).message or str(error)
    body: dict[str, Any] = {"message": message, "request_id": request_id}
    if isinstance(error, InvalidRequestError):
        body["errors"] = [{"field": note.field, "message": note.message} for note in error.errors]
    return body
