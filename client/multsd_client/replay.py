"""The record of a picture: everything that is needed to paint it again, as it travels inside the picture's file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from multsd_client import pictures
from multsd_client.fields import json_parameters
from multsd_client.pictures import TextTooLongError
from multsd_client.shapes import RunLengths
from multsd_client.tensors import ModelRequest, Picture

VERSION = 1
MAX_RUNS = pictures.MAX_TEXT // 2  # a digit and a comma each

_NOT_ASKED_FOR = ("regions",)  # follows from the prompts


def record(request: ModelRequest, picture: Picture, *, output_format: str, quality: int | None) -> dict[str, Any]:
    """A picture's record: `request` is the body of POST /multsd that paints it again, masks as run lengths.

    Raises TextTooLongError where the masks have more runs than any file could hold.
    """
    background, *foreground = request.prompts
    negative, *negatives = request.negative_prompts or ("",)
    masks = () if request.masks is None else request.masks
    runs = sum(int(np.count_nonzero(np.diff(mask.ravel()))) + 1 for mask in masks)
    if runs > MAX_RUNS:
        raise TextTooLongError(f"expected at most {MAX_RUNS} runs of mask pixels, found {runs}")
    parameters = json_parameters(picture.report["parameters"])
    body: dict[str, Any] = {
        "bg_prompt": background,
        "bg_nprompt": negative,
        "fg_prompt": foreground,
        "fg_nprompt": negatives or [negative] * len(foreground),
        "masks": [RunLengths.from_mask(mask).to_json() for mask in masks],
        **{name: value for name, value in parameters.items() if name not in _NOT_ASKED_FOR},
        "output_format": output_format,
    }
    if quality is not None:
        body["quality"] = quality
    return {"multsd": VERSION, "request": body, "checkpoint": picture.report["checkpoint"]}


def to_text(record: Mapping[str, Any]) -> str:
    """The record as ASCII."""
    return json.dumps(record, separators=(",", ":"))


def read(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The request and the checkpoint of a picture file. Raises ValueError where it holds none."""
    text = pictures.read_text(data)
    if text is None:
        raise ValueError("picture: expected the parameters of a multsd picture in it, found none")
    try:
        found = json.loads(text)
        version, request, checkpoint = found["multsd"], dict(found["request"]), dict(found["checkpoint"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("picture: expected the parameters of a multsd picture in it, found something else") from None
    if version != VERSION:
        raise ValueError(f"picture: expected parameters of version {VERSION}, found {version!r}")
    return request, checkpoint
