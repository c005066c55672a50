"""What can go wrong between a caller and the service.

```
MultsdError
|-- UnauthorizedError      the service wants a token, or another one                            (401)
|-- InvalidRequestError    the request itself is at fault; `errors` names each field          (HTTP 400, 413)
|-- ServiceUnavailableError  nobody answers, or it is full; `retry_after` in seconds    (429, 502, 503, no connection)
|-- DeadlineExceededError  the picture was not ready in time                                  (408, 504, client timeout)
|-- GenerationFailedError  the service met an error of its own; `request_id` finds it in logs (any other status)
`-- ProtocolError          the reply is not what this client understands
```
Local faults before anything is sent (a mask file that cannot be read) stay what they are: `OSError`, `ValueError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldNote:
    """A remark on one field of the request, an error or a warning: the JSON field and a sentence about it."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class MultsdError(Exception):
    """Base of everything this client raises about the service. `request_id` is None when none was told."""

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class UnauthorizedError(MultsdError):
    """The service takes requests only with a token that it knows."""


class InvalidRequestError(MultsdError):
    """The service refused the request; sending it again unchanged will not help."""

    def __init__(self, message: str, *, errors: Sequence[FieldNote] = (), request_id: str | None = None) -> None:
        super().__init__(message, request_id=request_id)
        self.errors = tuple(errors)


class ServiceUnavailableError(MultsdError):
    """Nobody answers or the service is full; worth another try after `retry_after` seconds (None: not told).

    answered: whether work on the picture had been told of, by progress or a preview. A place in a queue is none.
    limited: whether the service has room, but not for more of this caller's so soon (429).
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        request_id: str | None = None,
        answered: bool = False,
        limited: bool = False,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.retry_after = retry_after
        self.answered = answered
        self.limited = limited


class DeadlineExceededError(MultsdError):
    """The picture was not ready within the service's or the client's time limit."""


class GenerationFailedError(MultsdError):
    """The service failed while it worked on a valid request."""


class ProtocolError(MultsdError):
    """The reply is not a reply of this API: another service at that address, or another version."""
