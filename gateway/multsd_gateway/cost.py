"""What a request costs and what the Tritons can do at once, as far as both are known before a mask is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from multsd_gateway.inference import UNKNOWN, ModelDescription
from multsd_gateway.schema import MultsdRequest

CELL = 8  # pixels per latent cell, of every family of checkpoints

# Of a model that does not tell its own.
_WINDOW = 64  # latent cells
_PAINTED = 8
_WAITING = 32


@dataclass(frozen=True, slots=True)
class Tritons:
    """How many are ready, and of all together: pictures painted at a time, requests that are painted or may wait."""

    count: int
    painted: int
    capacity: int


def tritons(models: Sequence[ModelDescription]) -> Tritons:
    """By what the served models say of themselves; one Triton where none has told."""
    known = models or (UNKNOWN,)
    painted = sum(model.number("max_running", _PAINTED) for model in known)
    waiting = sum(model.number("max_waiting", _WAITING, least=0) for model in known)
    return Tritons(len(known), painted, painted + waiting)


def most_rows(request: MultsdRequest, models: Sequence[ModelDescription]) -> int:
    """An upper bound of the UNet rows that a checked request takes, the highest of all models.

    The model's own, `most_rows` of model_repository/multidiffusion/1/parameters.py: views * regions * 2 * steps.
    """
    return max(_rows(request, model) for model in models or (UNKNOWN,))


def _rows(request: MultsdRequest, model: ModelDescription) -> int:
    window = model.number("window", _WINDOW)
    stride = model.number("view_stride", window // 8) if request.view_stride is None else request.view_stride
    stride = max(min(stride, window), 1)  # a longer one the model refuses
    views = _views(request.height, window, stride) * _views(request.width, window, stride)
    guided = request.guidance_scale is None or request.guidance_scale > 1
    return views * (1 + len(request.fg_prompt)) * (2 if guided else 1) * request.ddim_steps


def _views(side: int, window: int, stride: int) -> int:
    """How many windows cover one side, in pixels: one every `stride` cells, and a last one flush with the edge."""
    last = max(-(-side // CELL), window) - window
    return -(-last // stride) + 1
