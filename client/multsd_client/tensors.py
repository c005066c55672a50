"""The public Triton model `multidiffusion`: its tensors, and this package's types from and to them.

R regions, region 0 is the background. Names, types and what may be left out are those of
`model_repository/multidiffusion/config.pbtxt`. Plain numpy: which Triton client carries the arrays is the caller's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

MODEL = "multidiffusion"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the contract. dims: -1 where any size is allowed."""

    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


INPUTS: Mapping[str, TensorSpec] = {
    "prompt": TensorSpec("BYTES", (-1,)),
    "negative_prompt": TensorSpec("BYTES", (-1,), optional=True),
    "masks": TensorSpec("UINT8", (-1, -1, -1), optional=True),
    "height": TensorSpec("INT32", (1,)),
    "width": TensorSpec("INT32", (1,)),
    "num_inference_steps": TensorSpec("INT32", (1,), optional=True),
    "bootstrapping": TensorSpec("INT32", (1,), optional=True),
    "guidance_scale": TensorSpec("FP32", (1,), optional=True),
    "seed": TensorSpec("UINT64", (1,), optional=True),
    "scheduler": TensorSpec("BYTES", (1,), optional=True),
    "view_stride": TensorSpec("INT32", (1,), optional=True),
    "progress": TensorSpec("BOOL", (1,), optional=True),
    "return_latents": TensorSpec("BOOL", (1,), optional=True),
}

# Sent only to a served model whose metadata lists them.
NEWER_INPUTS: Mapping[str, TensorSpec] = {
    "preview_every": TensorSpec("INT32", (1,), optional=True),
    "deadline_s": TensorSpec("FP32", (1,), optional=True),
}

# Of a deadline there is no warning: whoever asks the model holds it too.
_UNSUPPORTED: Mapping[str, str] = {"preview_every": "not used, the served model makes no previews"}

OUTPUTS: Mapping[str, TensorSpec] = {
    "queue_position": TensorSpec("INT32", (1,)),
    "preview": TensorSpec("UINT8", (-1, -1, 3)),
    "progress_steps": TensorSpec("INT32", (2,)),
    "image": TensorSpec("UINT8", (-1, -1, 3)),
    "warnings": TensorSpec("BYTES", (-1,)),
    "report": TensorSpec("BYTES", (1,)),
    "latents": TensorSpec("FP32", (-1, -1, -1)),
}

_NUMPY: Mapping[str, Any] = {
    "BYTES": np.object_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "FP32": np.float32,
    "BOOL": np.bool_,
}
_INTEGERS = ("INT32", "UINT64")
_MAX_FLOAT32 = float(np.finfo(np.float32).max)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One request in the model's own terms. None: left out, the model's default holds.

    masks: (R - 1, height, width) uint8, non-zero inside; None when there is no region.
    negative_prompts: R values, or one that holds for every region.
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...] = ()
    masks: NDArray[np.uint8] | None = field(default=None, compare=False)
    height: int
    width: int
    num_inference_steps: int | None = None
    bootstrapping: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    scheduler: str | None = None
    view_stride: int | None = None
    preview_every: int | None = None
    deadline_s: float | None = None
    progress: bool = False
    return_latents: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """Steps done, of how many."""

    step: int
    num_inference_steps: int


@dataclass(frozen=True, slots=True)
class Queued:
    """How many requests wait before this one."""

    position: int


@dataclass(frozen=True, slots=True)
class Preview:
    """An estimate of the picture. image: (h, w, 3) uint8 sRGB, one pixel for every latent cell."""

    image: NDArray[np.uint8] = field(repr=False, compare=False)


Update = Queued | Progress | Preview


@dataclass(frozen=True, slots=True)
class Picture:
    """The final response. image: (height, width, 3) uint8 sRGB; warnings: {"field", "message"} in tensor names."""

    image: NDArray[np.uint8] = field(repr=False, compare=False)
    warnings: tuple[Mapping[str, str], ...]
    report: Mapping[str, Any]
    latents: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


def to_tensors(request: ModelRequest) -> dict[str, Array]:
    """The request's input tensors by name; what is left out is absent. BYTES are arrays of `bytes` objects.

    Raises ValueError for what a tensor cannot hold: a number out of its type's range, half a surrogate pair.
    """
    values: Mapping[str, Any] = {
        "prompt": request.prompts,
        "negative_prompt": request.negative_prompts or None,
        "masks": request.masks,
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.num_inference_steps,
        "bootstrapping": request.bootstrapping,
        "guidance_scale": request.guidance_scale,
        "seed": request.seed,
        "scheduler": request.scheduler,
        "view_stride": request.view_stride,
        "preview_every": request.preview_every,
        "deadline_s": request.deadline_s,
        "progress": request.progress or None,
        "return_latents": request.return_latents or None,
    }
    return {name: _array(name, value) for name, value in values.items() if value is not None}


def from_tensors(outputs: Mapping[str, Array]) -> Update | Picture:
    """Read one response by its output tensors. Raises ValueError when it is neither an update nor a final one."""
    if "queue_position" in outputs:
        return Queued(int(outputs["queue_position"].item()))
    if "preview" in outputs:
        return Preview(outputs["preview"])
    if "progress_steps" in outputs:
        step, total = outputs["progress_steps"].tolist()
        return Progress(step, total)
    try:
        return Picture(
            image=outputs["image"],
            warnings=tuple(json.loads(text) for text in outputs["warnings"].tolist()),
            report=json.loads(outputs["report"].item()),
            latents=outputs.get("latents"),
        )
    except KeyError as error:
        raise ValueError(f"response: expected {error.args[0]}, found {sorted(outputs)}") from None


def is_work(update: Update) -> bool:
    """Whether an update tells of work on the picture. A request that only waits has cost nothing, and may move."""
    return not isinstance(update, Queued)


def newer_inputs(request: ModelRequest) -> list[str]:
    """Which of NEWER_INPUTS a request has."""
    return [name for name in NEWER_INPUTS if getattr(request, name) is not None]


def supported(request: ModelRequest, inputs: Collection[str]) -> tuple[ModelRequest, list[dict[str, str]]]:
    """The request without the newer inputs that a model of these inputs does not know, and warnings of that."""
    missing: dict[str, Any] = {name: None for name in newer_inputs(request) if name not in inputs}
    warnings = [{"field": name, "message": _UNSUPPORTED[name]} for name in missing if name in _UNSUPPORTED]
    return (replace(request, **missing) if missing else request), warnings


def spec_of(name: str) -> TensorSpec:
    """The tensor of an input, a newer one too."""
    return INPUTS[name] if name in INPUTS else NEWER_INPUTS[name]


def _array(name: str, value: Any) -> Array:
    spec = spec_of(name)
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value, dtype=_NUMPY[spec.datatype])
    values = value if isinstance(value, tuple) else (value,)
    if spec.datatype == "BYTES":
        values = tuple(text.encode() for text in values)
    if spec.datatype in _INTEGERS:  # NumPy before 2 lets others wrap around, and cuts fractions
        bounds = np.iinfo(_NUMPY[spec.datatype])
        if not all(isinstance(each, SupportsIndex) and bounds.min <= index(each) <= bounds.max for each in values):
            raise ValueError(f"{name}: expected a whole number, {bounds.min} to {bounds.max}, found {value}")
    if spec.datatype == "FP32" and not all(_fits_float32(each) for each in values):
        raise ValueError(f"{name}: expected at most {_MAX_FLOAT32:.6g} in size, found {value}")
    return np.array(values, dtype=_NUMPY[spec.datatype])


def _fits_float32(value: float) -> bool:
    """Not a number and infinity do: what they mean the model says."""
    return (isinstance(value, float) and not math.isfinite(value)) or -_MAX_FLOAT32 <= value <= _MAX_FLOAT32
