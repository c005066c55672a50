"""What the inside of the application tells the middlewares around it of one request, in its ASGI scope's state."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

_KEY = "multsd_outcome"


@dataclass(slots=True)
class Outcome:
    """How a request ended, where its head does not tell.

    status: of a stream, whose head is sent long before its end; None: the head's own holds.
    token: the name of the token that it came with, for logs.
    """

    status: int | None = None
    token: str | None = None


def outcome_of(scope: Scope) -> Outcome:
    """The request's outcome; one object for all that hold its scope."""
    told: Outcome = scope.setdefault("state", {}).setdefault(_KEY, Outcome())
    return told
