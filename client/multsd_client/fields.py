"""Between the JSON's field names and the model's tensor names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from multsd_client.errors import FieldNote

_FOREGROUND = {"prompt": "fg_prompt", "negative_prompt": "fg_nprompt"}
_BACKGROUND = {"prompt": "bg_prompt", "negative_prompt": "bg_nprompt"}
_RENAMED = {"num_inference_steps": "ddim_steps"}

_FIELD = re.compile(r"([a-z_]+)(?:\[(\d{1,4})\])?")
_MESSAGE = re.compile(rf"({_FIELD.pattern}): (.+)", re.DOTALL)


def json_field(tensor: str) -> str:
    """The JSON's name for a tensor or one of its items: "prompt[2]" is "fg_prompt[1]"."""
    match = _FIELD.fullmatch(tensor)
    if match is None:
        return tensor
    name, index = match[1], match[2]
    if name in _BACKGROUND and index is not None:
        return _BACKGROUND[name] if int(index) == 0 else f"{_FOREGROUND[name]}[{int(index) - 1}]"
    name = _FOREGROUND.get(name, _RENAMED.get(name, name))
    return name if index is None else f"{name}[{index}]"


def note_of_message(message: str) -> FieldNote:
    """The field and sentence of a model's "field: expected ..., found ..."."""
    match = _MESSAGE.fullmatch(message)
    return FieldNote(json_field(match[1]), match[4]) if match else FieldNote("body", message)


def note_of_warning(warning: Mapping[str, str]) -> FieldNote:
    return FieldNote(json_field(warning["field"]), warning["message"])


def json_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Effective parameters under the names with which a request would ask for them."""
    return {_RENAMED.get(name, name): value for name, value in parameters.items()}
