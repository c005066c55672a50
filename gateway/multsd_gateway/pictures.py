"""Which encoding of the picture a client asked for."""

from __future__ import annotations

from dataclasses import dataclass

from multsd_client.pictures import MEDIA_TYPES

_FORMAT_OF = {media_type: name for name, media_type in MEDIA_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The reply that a client prefers: JSON or a picture, in the named format or else the one the request names."""

    as_picture: bool
    name: str | None = None


def wanted_format(accept: str) -> Wanted:
    """What an Accept header prefers; JSON where it has no preference for a picture."""
    best, best_quality = Wanted(as_picture=False), 0.0
    for entry in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in entry.split(";"))
        choice, quality = _choice(media_type), _quality(parameters)
        if choice is not None and quality > best_quality:
            best, best_quality = choice, quality
    return best


def _choice(media_type: str) -> Wanted | None:
    if media_type in ("application/json", "application/*", "*/*"):
        return Wanted(as_picture=False)
    if media_type == "image/*":
        return Wanted(as_picture=True)
    name = _FORMAT_OF.get(media_type)
    return Wanted(as_picture=True, name=name) if name else None


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0
