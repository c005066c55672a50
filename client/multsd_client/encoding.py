"""From a picture to its file, with what is to be told about that."""

from __future__ import annotations

from dataclasses import dataclass

from multsd_client import pictures, replay
from multsd_client.errors import FieldNote
from multsd_client.pictures import TextTooLongError
from multsd_client.tensors import ModelRequest, Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """How a picture becomes a file. embed: whether it carries its parameters, of at most max_embedded_bytes."""

    output_format: str
    quality: int | None = None
    embed: bool = True
    max_embedded_bytes: int = pictures.MAX_TEXT


def encode(asked: ModelRequest, picture: Picture, output: Output) -> tuple[bytes, list[FieldNote]]:
    """The picture's file, and warnings."""
    warnings = []
    if output.quality is not None and output.output_format == "png":
        warnings.append(FieldNote("quality", "not used, PNG keeps every pixel as it is"))
    if output.embed:
        try:
            return _encode(picture, output, text=_record(asked, picture, output)), warnings
        except TextTooLongError as error:
            message = f"the picture does not carry its parameters: {error}"
            warnings.append(FieldNote("output_format", message))
    return _encode(picture, output, text=None), warnings


def _record(asked: ModelRequest, picture: Picture, output: Output) -> str:
    record = replay.record(asked, picture, output_format=output.output_format, quality=output.quality)
    text = replay.to_text(record)
    if len(text) > output.max_embedded_bytes:
        raise TextTooLongError(f"expected at most {output.max_embedded_bytes} bytes, found {len(text)}")
    return text


def _encode(picture: Picture, output: Output, *, text: str | None) -> bytes:
    return pictures.encode(picture.image, output.output_format, quality=output.quality, text=text)
