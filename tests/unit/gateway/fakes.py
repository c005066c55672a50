"""A painter without a model, images and requests to feed it, and a way to ask the application."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

from multsd_client.tensors import ModelRequest, Picture, Progress, Update
from multsd_gateway.app import create_app
from multsd_gateway.inference import ModelDescription, OnProgress, needed
from multsd_gateway.settings import Settings


def report(request: ModelRequest) -> dict[str, Any]:
    return {
        "parameters": {
            "height": request.height,
            "width": request.width,
            "num_inference_steps": request.num_inference_steps,
            "bootstrapping": request.bootstrapping,
            "guidance_scale": 7.5 if request.guidance_scale is None else request.guidance_scale,
            "seed": request.seed,
            "scheduler": request.scheduler or "ddim",
            "view_stride": request.view_stride or 8,
            "regions": len(request.prompts) - 1,
        },
        "unet_rows": 125,
        "unet_rows_reference": 140,
        "seconds": {"total": 1.5, "unet": 1.0},
        "checkpoint": {"name": "fake", "digest": "sha256:00"},
    }


@dataclass
class FakePainter:
    """Paints grey. error: raised instead; forever: never ends; not_ready: models that are missing."""

    error: Exception | None = None
    forever: bool = False
    not_ready: list[str] = field(default_factory=list)
    warnings: tuple[dict[str, str], ...] = ()
    requests: list[ModelRequest] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    updates: tuple[Update, ...] = (Progress(1, 2), Progress(2, 2))
    description: ModelDescription = field(default_factory=lambda: ModelDescription(frozenset(), {}))

    async def paint(self, request: ModelRequest, *, request_id: str, on_progress: OnProgress | None) -> Picture:
        self.requests.append(request)
        self.request_ids.append(request_id)
        self.started.set()
        if on_progress is not None:
            for update in self.updates:
                await on_progress(update)
        try:
            await asyncio.sleep(3600 if self.forever else 0)
        except asyncio.CancelledError:
            self.cancelled.append(request_id)
            raise
        if self.error is not None:
            raise self.error
        return Picture(np.full((request.height, request.width, 3), 128, np.uint8), self.warnings, report(request))

    async def missing(self, models: Sequence[str]) -> list[str]:
        if self.forever:
            await asyncio.sleep(3600)
        return [model for model in models or needed(self.descriptions()) if model in self.not_ready]

    async def describe(self) -> ModelDescription:
        if self.error is not None:
            raise self.error
        return self.description

    def samplers(self) -> tuple[str, ...] | None:
        return self.description.samplers or None

    def descriptions(self) -> tuple[ModelDescription, ...]:
        return (self.description,)

    async def close(self) -> None:
        self.closed = True


def settings(**changes: Any) -> Settings:
    return Settings(**changes)


def image_base64(image: Image.Image, image_format: str = "PNG", **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def mask_base64(width: int = 64, height: int = 64) -> str:
    """A mask whose left half is inside."""
    image = Image.new("L", (width, height))
    image.paste(255, (0, 0, width // 2, height))
    return image_base64(image)


def seed_request(**changes: Any) -> dict[str, Any]:
    """A valid request with one region, 64 x 64 pixels, in the seed's style of numeric strings."""
    return {
        "bg_prompt": "a beach",
        "bg_nprompt": "blurry",
        "fg_prompt": ["a Husky dog"],
        "fg_nprompt": ["cartoon"],
        "width": "64",
        "height": "64",
        "ddim_steps": "35",
        "bootstrapping": "20",
        "seed": "22312",
        "masks": [mask_base64()],
    } | changes


def ask(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    """One request to the application, without a server."""

    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path, **options)

    return asyncio.run(once())


def post(body: Any, *, path: str = "/multsd", painter: FakePainter | None = None, **changes: Any) -> httpx.Response:
    """POST a body (JSON, or bytes as they are) to a new application with the settings' changes."""
    app = create_app(settings(**changes), painter or FakePainter())
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask(app, "POST", path, content=content)
