"""What this deployment accepts and paints with: the settings, and what the served model says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multsd_gateway import limits
from multsd_gateway.inference import ModelDescription
from multsd_gateway.schema import MultsdRequest
from multsd_gateway.settings import Settings

# Of a model that does not tell its own.
SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "lcm")

# A setting, and the model's parameter that may be lower.
_SHARED = {
    "max_pixels": "max_pixels",
    "max_mask_pixels": "max_mask_pixels",
    "max_steps": "max_steps",
    "max_prompt_bytes": "max_prompt_bytes",
    "max_waiting_rows": "max_waiting_rows",
}
_OWN = (
    "min_side",
    "max_side",
    "max_regions",
    "max_polygon_points",
    "max_body_bytes",
    "max_image_pixels",
    "body_seconds",
    "request_seconds",
    "write_seconds",
    "max_running",
    "max_waiting",
)
_DEFAULTS = ("bootstrapping", "output_format")


def capabilities(settings: Settings, model: ModelDescription, *, last_checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The reply of GET /limits; what the model does not tell is None. last_checkpoint: the last picture's, or empty."""
    parameters = model.parameters
    numbers: dict[str, Any] = {name: getattr(settings, name) for name in _OWN}
    for name, parameter in _SHARED.items():
        numbers[name] = _lower(getattr(settings, name), model, parameter)
    numbers["max_regions"] = _lower(settings.max_regions, model, "max_regions", less=1)
    samplers = list(model.samplers or SAMPLERS)
    return {
        "limits": {
            **numbers,
            "max_seed": limits.MAX_SEED,
            "max_guidance_scale": limits.MAX_GUIDANCE,
            "max_bootstrapping": limits.MAX_BOOTSTRAPPING,
        },
        "output_formats": list(limits.FORMATS),
        "schedulers": samplers,
        "defaults": {name: MultsdRequest.model_fields[name].default for name in _DEFAULTS}
        | limits.defaults(settings)
        | {"guidance_scale": 7.5, "scheduler": samplers[0], "view_stride": model.number("view_stride", None)},
        "checkpoint": {
            name: parameters.get(f"checkpoint_{name}", last_checkpoint.get(name))
            for name in ("name", "digest", "family")
        },
        "window": model.number("window", None),
        "optional_inputs": sorted(model.inputs & {"preview_every", "deadline_s"}),
        "embeds_parameters": settings.embed_parameters,
    }


def _lower(setting: int, model: ModelDescription, parameter: str, *, less: int = 0) -> int:
    """The lower of a setting and the model's own limit; less: what the model counts on top, such as the background."""
    return min(setting, model.number(parameter, setting + less, least=less) - less)
