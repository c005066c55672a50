"""What comes back: the picture, and everything needed to paint it again."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from multsd_client.errors import FieldNote, ProtocolError


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished picture.

    image: an encoded image file of type media_type. parameters: every value that was used, in the JSON's names.
    timings: seconds by part. unet_rows: rows the UNet worked on; unet_rows_reference: what the published method needs.
    """

    image: bytes = field(repr=False)
    media_type: str
    seed: int
    warnings: tuple[FieldNote, ...]
    parameters: Mapping[str, Any]
    timings: Mapping[str, float]
    unet_rows: int
    unet_rows_reference: int
    checkpoint: Mapping[str, str]
    request_id: str | None

    @classmethod
    def from_json(cls, reply: Mapping[str, Any]) -> GenerationResult:
        """Read a reply of POST /multsd. Raises ProtocolError."""
        try:
            return cls(
                image=base64.b64decode(reply["image"], validate=True),
                media_type=str(reply["media_type"]),
                seed=whole(reply["seed"]),
                warnings=tuple(FieldNote(note["field"], note["message"]) for note in reply["warnings"]),
                parameters=dict(reply["parameters"]),
                timings={name: float(seconds) for name, seconds in dict(reply["timings"]).items()},
                unet_rows=whole(reply["unet_rows"]),
                unet_rows_reference=whole(reply["unet_rows_reference"]),
                checkpoint=dict(reply["checkpoint"]),
                request_id=reply["request_id"],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ProtocolError(f"reply: expected a picture of the multsd API, found {error!r}") from error


def whole(value: object) -> int:
    """A number of a reply that callers count or calculate with. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"expected a whole number, found {value!r}")
