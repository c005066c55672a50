"""What an error of Triton or of its model `multidiffusion` means, by its code and text, for whoever talks to Triton."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

# What Triton says of a Python model whose process has ended; it starts none again, and still calls the model ready.
DEAD = re.compile(r"Stub process '(\w+?)(?:_\d+)+' is not healthy")

# What gRPC tells as INTERNAL, in place of the server's status, where a connection ends while a request is being sent.
LOST = "Internal error from Core"

# What Triton itself says of a model that is not (or no longer) loaded, of a server that loads or stops, and of a queue
# that is full or has stood still for longer than its configuration allows. Of `multidiffusion` it says so without a
# code, of a network with one that tells nothing; the other codes are the model's own, and what follows them may quote
# the request.
_NOT_NOW = (
    *("unknown model", "not ready", "not at ready state", "no available versions", "unloaded"),
    *("Server is stopping", "Server exiting"),
    *("maximum queue size", "Request timeout expired"),
)
_TELLS_NOTHING = ("INTERNAL", "UNKNOWN")

# The model knows how long those that wait will take.
_RETRY = re.compile(r"try again in (\d{1,6}) s")

_CODE = re.compile(r"([A-Z_]{3,40}): (.*)", re.DOTALL)


class Meaning(Enum):
    """What follows from an error."""

    INVALID = auto()  # the request is at fault
    NOT_NOW = auto()  # Triton is away or full, or lacks the model; another try may do
    LATE = auto()  # cancelled, or past its deadline
    FAILED = auto()  # the model met an error of its own


@dataclass(frozen=True, slots=True)
class TritonError:
    """An error that has been read. message: without its code; retry_after: seconds, of NOT_NOW, where they are told."""

    meaning: Meaning
    message: str
    retry_after: int | None = None


def of_status(code: str, message: str) -> TritonError:
    """An error with a gRPC status, by the status's name."""
    if code in ("INVALID_ARGUMENT", "INVALID_ARG"):
        return TritonError(Meaning.INVALID, message)
    if code in ("UNAVAILABLE", "NOT_FOUND", "RESOURCE_EXHAUSTED") or message == LOST or DEAD.search(message):
        waiting = _RETRY.search(message)
        return TritonError(Meaning.NOT_NOW, message, retry_after=int(waiting[1]) if waiting else None)
    if code in ("CANCELLED", "DEADLINE_EXCEEDED"):
        return TritonError(Meaning.LATE, message)
    return TritonError(Meaning.FAILED, message)


def of_text(text: str) -> TritonError:
    """An error within a stream, a text alone: the model's begin with a code's name, Triton's own do not."""
    match = _CODE.fullmatch(text)
    code, message = (match[1], match[2]) if match else ("UNKNOWN", text)
    if code in _TELLS_NOTHING and any(part in message for part in _NOT_NOW):
        code = "NOT_FOUND"
    return of_status(code, message)
