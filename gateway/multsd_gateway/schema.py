"""The request as JSON: field names, types, defaults. Limits are in `limits`, descriptions in `request_schema`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator, ValidationError

from multsd_client.errors import FieldNote
from multsd_gateway.readers import MaskSource, read_integer, read_list, read_mask, read_number, read_text
from multsd_gateway.wording import clip

MAX_NOTES = 20

Integer = Annotated[int, BeforeValidator(read_integer)]
Number = Annotated[float, BeforeValidator(read_number)]
Text = Annotated[str, BeforeValidator(read_text)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(read_list)]
Masks = Annotated[tuple[Annotated[MaskSource, PlainValidator(read_mask)], ...], BeforeValidator(read_list)]


class MultsdRequest(BaseModel):
    """A picture to paint: a background and any number of regions, each a mask with a prompt."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    bg_prompt: Text
    bg_nprompt: Text = ""
    fg_prompt: Texts = ()
    fg_nprompt: Texts = ()
    masks: Masks = ()
    width: Integer = 512
    height: Integer = 512
    ddim_steps: Integer = 50
    bootstrapping: Integer = 20
    seed: Integer | None = None
    guidance_scale: Number | None = None
    scheduler: Text | None = None
    view_stride: Integer | None = None
    output_format: Text = "jpeg"
    quality: Integer | None = None
    preview_every: Integer | None = None
    deadline_s: Number | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a body says. request: of the fields that could be read; unread: those that could not, with their faults."""

    request: MultsdRequest
    warnings: tuple[FieldNote, ...]
    faults: tuple[FieldNote, ...] = ()
    unread: frozenset[str] = frozenset()


def read_request(data: Mapping[str, Any], *, strict: bool) -> Reading:
    """Check types; null is the same as left out. Unknown fields are warnings, or faults where strict."""
    names = (name for name in data if name not in MultsdRequest.model_fields)
    unknown = tuple(_unknown(name) for name in islice(names, MAX_NOTES))
    warnings, faults = ((), unknown) if strict else (unknown, ())
    given = {name: value for name, value in data.items() if value is not None}
    try:
        return Reading(MultsdRequest.model_validate(given), warnings, faults)
    except ValidationError as error:
        found = error.errors()
    unread = frozenset(str(fault["loc"][0]) for fault in found)
    # What could be read is still held to its limits: a caller hears of every fault at once.
    readable = {name: value for name, value in given.items() if name not in unread}
    request = MultsdRequest.model_validate({"bg_prompt": "", **readable})
    return Reading(request, warnings, (*faults, *map(_note, found[:MAX_NOTES])), unread)


def _unknown(name: str) -> FieldNote:
    near = difflib.get_close_matches(name[:64], MultsdRequest.model_fields, n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return FieldNote(clip(name), f"unknown field, not used{hint}")


def _note(fault: Mapping[str, Any]) -> FieldNote:
    name, *path = fault["loc"]
    field = str(name) + "".join(f"[{part}]" for part in path)
    if fault["type"] == "missing":
        return FieldNote(field, "expected a value, found nothing")
    return FieldNote(field, str(fault["ctx"]["error"]))
