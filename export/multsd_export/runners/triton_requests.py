"""What Triton's Python backend hands to a network and takes back.

An export copies this file beside a runner, as `1/triton_requests.py` of every network.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from rows import InvalidInputError, Run, Tensors, run_requests


@dataclass(frozen=True)
class Model:
    """A model as its configuration describes it."""

    name: str
    folder: Path  # of its version
    inputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]  # of a row of each input, as the network gets it; -1: any
    outputs: tuple[str, ...]
    max_rows: int  # of a run
    parameters: Mapping[str, str]
    gpu: int | None  # the instance's, None on the CPU

    @property
    def threads(self) -> int:
        """`intra_op_threads`, or as many as the process may use cores."""
        return int(self.parameters.get("intra_op_threads", "0")) or len(os.sched_getaffinity(0))


def read_model(args: Mapping[str, str]) -> Model:
    """From the arguments of `initialize`."""
    config = json.loads(args["model_config"])
    return Model(
        name=args["model_name"],
        folder=Path(args["model_repository"]) / args["model_version"],
        inputs=tuple(tensor["name"] for tensor in config["input"]),
        shapes=tuple(_row_shape(tensor) for tensor in config["input"]),
        outputs=tuple(tensor["name"] for tensor in config["output"]),
        max_rows=config["max_batch_size"],
        parameters={key: value["string_value"] for key, value in config.get("parameters", {}).items()},
        gpu=int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None,
    )


def _row_shape(tensor: Mapping[str, Any]) -> tuple[int, ...]:
    dims = tensor["reshape"].get("shape", ()) if "reshape" in tensor else tensor["dims"]
    return tuple(int(dim) for dim in dims)


def answer(requests: Sequence[Any], model: Model, run: Run) -> list[Any]:
    """One response for each request, in order; one that fails is answered with its own error."""
    return [
        _response(result) for result in run_requests([_read(each, model) for each in requests], run, model.max_rows)
    ]


def _read(request: Any, model: Model) -> Tensors:
    return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in model.inputs}


def _response(result: Tensors | Exception) -> Any:
    if isinstance(result, Exception):
        code = pb_utils.TritonError.INVALID_ARG if isinstance(result, InvalidInputError) else None
        error = pb_utils.TritonError(str(result), code) if code else pb_utils.TritonError(str(result))
        return pb_utils.InferenceResponse(error=error)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in result.items()])
