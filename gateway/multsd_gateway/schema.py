"""The request as JSON: field names, types, defaults. Limits that depend on settings are in `limits`."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from multsd_client.errors import FieldNote
from multsd_gateway.errors import InvalidRequestError
from multsd_gateway.wording import clip, found

MAX_ITEMS = 1000
MAX_NOTES = 20
EXACT_FLOAT = 2**53

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?", re.ASCII)


def read_integer(value: object) -> int:
    """A whole number, as a JSON number or a numeric string. Raises ValueError."""
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_FLOAT:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"expected a whole number, got {found(value)}")


def read_number(value: object) -> float:
    """A finite number, as a JSON number or a numeric string. Raises ValueError."""
    if isinstance(value, str):
        readable = _NUMBER.fullmatch(value.strip()) is not None
    else:
        readable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= EXACT_FLOAT
    number = float(value) if readable else math.nan  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {found(value)}")
    return number


def read_text(value: object) -> str:
    """A string that UTF-8 can hold. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {found(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"expected valid Unicode, got half a surrogate pair in {found(value)}") from None
    return value


def read_list(value: object) -> object:
    """A list of a bounded number of items, which are checked afterwards. Raises ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"expected a list of strings, got {found(value)}")
    if len(value) > MAX_ITEMS:
        raise ValueError(f"expected at most {MAX_ITEMS} items, got {len(value)}")
    return value


def _number_schema(kind: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": kind}, {"type": "string", "description": f"the {kind} in digits"}]})


Integer = Annotated[int, BeforeValidator(read_integer), _number_schema("integer")]
Number = Annotated[float, BeforeValidator(read_number), _number_schema("number")]
Text = Annotated[str, BeforeValidator(read_text)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(read_list)]


class MultsdRequest(BaseModel):
    """A picture to paint: a background and any number of regions, each a mask with a prompt."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    bg_prompt: Text = Field(description="Prompt of the background.", examples=["a beach at noon, photo"])
    bg_nprompt: Text = Field(default="", description="What the background should not show.", examples=["blurry, text"])
    fg_prompt: Texts = Field(
        default=(), description="One prompt per mask; none is plain text-to-image.", examples=[["a Husky dog"]]
    )
    fg_nprompt: Texts = Field(
        default=(),
        description="One negative prompt per mask, or one for all masks; left out, bg_nprompt holds for all.",
        examples=[["cartoon, drawing"]],
    )
    masks: Texts = Field(
        default=(),
        description=(
            "One image per region, as base64 or a data: URL: PNG, JPEG, WebP, GIF or BMP, not animated. A pixel is "
            "inside where its brightest colour channel, times its alpha, is at least 128 of 255. An image of another "
            "size is stretched to the picture's."
        ),
    )
    width: Integer = Field(default=512, description="Pixels, any value within the limits.", examples=[512])
    height: Integer = Field(default=512, description="Pixels, any value within the limits.", examples=[512])
    ddim_steps: Integer = Field(default=50, description="Sampling steps, of whatever scheduler.", examples=[35])
    bootstrapping: Integer = Field(
        default=20,
        description="In how many of the first steps each region is painted on plain grounds of its own; 0 for none.",
        examples=[20],
    )
    seed: Integer | None = Field(
        default=None, description="0 to 2^64 - 1. Left out, one is drawn and told in the reply.", examples=[22312]
    )
    guidance_scale: Number | None = Field(
        default=None, description="Classifier-free guidance, 0 to 100; 1 for none. Left out: 7.5.", examples=[7.5]
    )
    scheduler: Text | None = Field(
        default=None,
        description="ddim, euler, euler_a, dpmpp_2m, dpmpp_2m_karras, unipc or lcm. Left out: ddim.",
        examples=["ddim"],
    )
    view_stride: Integer | None = Field(
        default=None,
        description="Latent cells (of 8 pixels) between neighbouring views. Left out: the checkpoint's.",
        examples=[8],
    )
    output_format: Text = Field(default="jpeg", description="jpeg, png or webp.", examples=["jpeg"])


def read_request(data: Mapping[str, Any], *, strict: bool) -> tuple[MultsdRequest, list[FieldNote]]:
    """Check types; null is the same as left out. Returns the request and warnings of unknown fields.

    Raises InvalidRequestError with every fault found; strict makes unknown fields faults.
    """
    names = (name for name in data if name not in MultsdRequest.model_fields)
    unknown = [_unknown(name) for name in islice(names, MAX_NOTES)]
    if strict and unknown:
        raise InvalidRequestError(unknown)
    try:
        request = MultsdRequest.model_validate({name: value for name, value in data.items() if value is not None})
    except ValidationError as error:
        raise InvalidRequestError([_note(fault) for fault in error.errors()[:MAX_NOTES]]) from None
    return request, unknown


def _unknown(name: str) -> FieldNote:
    near = difflib.get_close_matches(name[:64], MultsdRequest.model_fields, n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return FieldNote(clip(name), f"unknown field, not used{hint}")


def _note(fault: Mapping[str, Any]) -> FieldNote:
    name, *path = fault["loc"]
    field = str(name) + "".join(f"[{part}]" for part in path)
    if fault["type"] == "missing":
        return FieldNote(field, "expected a value, got nothing")
    return FieldNote(field, str(fault["ctx"]["error"]))
