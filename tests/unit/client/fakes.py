"""A service made of canned replies."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np

from multsd_client import pictures

RESULT: dict[str, Any] = {
    "image": base64.b64encode(b"picture").decode(),
    "media_type": "image/jpeg",
    "seed": 7,
    "warnings": [{"field": "masks[0]", "message": "empty"}],
    "parameters": {"ddim_steps": 2},
    "timings": {"total": 1.5},
    "unet_rows": 125,
    "unet_rows_reference": 140,
    "checkpoint": {"name": "demo"},
    "request_id": "r1",
}

PREVIEW = (
    "preview",
    {"image": base64.b64encode(pictures.encode(np.zeros((1, 1, 3), np.uint8), "png")).decode()},
)
STEPS = [("progress", {"step": step, "num_inference_steps": 2}) for step in (1, 2)]


def events(*items: tuple[str, dict[str, Any]]) -> httpx.Response:
    text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in items)
    return httpx.Response(200, text=text, headers={"Content-Type": "text/event-stream"})


def painted() -> httpx.Response:
    return events(*STEPS, ("result", RESULT))


def refusal(status: int, **headers: str) -> httpx.Response:
    body = {"message": "no", "request_id": "r1", "errors": [{"field": "width", "message": "expected 64, found 1"}]}
    return httpx.Response(status, json=body, headers=headers)


def service(reply: Callable[[httpx.Request], httpx.Response]) -> httpx.MockTransport:
    return httpx.MockTransport(reply)
