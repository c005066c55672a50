"""What this deployment accepts and paints with: the settings, and what the served model says of itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from multsd_gateway import limits
from multsd_gateway.inference import ModelDescription
from multsd_gateway.schema import MultsdRequest
from multsd_gateway.settings import Settings

# Of a model that does not tell its own.
SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "lcm")

_OWN = (
    "min_side",
    "max_side",
    "max_polygon_points",
    "max_body_bytes",
    "max_image_pixels",
    "body_seconds",
    "request_seconds",
    "write_seconds",
    "max_running",
    "max_waiting",
)


def capabilities(
    settings: Settings,
    model: ModelDescription,
    *,
    models: Sequence[ModelDescription] = (),
    samplers: Collection[str] | None = None,
    last_checkpoint: Mapping[str, Any],
) -> dict[str, Any]:
    """The reply of GET /limits; what the model does not tell is None. last_checkpoint: the last picture's, or empty.

    models, samplers: see limit_faults, for what is told is what is held; where there are none the model's own.
    """
    parameters, models = model.parameters, models or (model,)
    held = limits.narrowed(settings, models)
    numbers: dict[str, Any] = {name: getattr(held, name) for name in (*_OWN, *limits.SHARED)}
    rows = settings.max_waiting_rows
    numbers["max_waiting_rows"] = min(rows, limits.highest(models, "max_waiting_rows", rows))
    schedulers = list(samplers or model.samplers or SAMPLERS)
    return {
        "limits": {
            **numbers,
            "max_seed": limits.MAX_SEED,
            "max_guidance_scale": limits.MAX_GUIDANCE,
            "max_bootstrapping": limits.MAX_BOOTSTRAPPING,
        },
        "output_formats": list(limits.FORMATS),
        "schedulers": schedulers,
        "defaults": {"output_format": MultsdRequest.model_fields["output_format"].default}
        | limits.defaults(held)
        | {"guidance_scale": 7.5, "scheduler": schedulers[0], "view_stride": model.number("view_stride", None)},
        "checkpoint": {
            name: parameters.get(f"checkpoint_{name}", last_checkpoint.get(name))
            for name in ("name", "digest", "family")
        },
        "window": model.number("window", None),
        "optional_inputs": sorted(model.inputs & {"preview_every", "deadline_s"}),
        "embeds_parameters": settings.embed_parameters,
    }
