"""Serve one ONNX file with ONNX Runtime in Triton's Python backend.

An export copies this file as `1/model.py` beside `1/model.onnx`, for every network alike: names, types and the
largest batch are read from the model's configuration. The rows of waiting requests whose other dimensions are equal
share a run. A request that fails is answered with its own error.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]  # name -> (rows, ...)
Run = Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class Slot:
    """The rows of one request."""

    request: int
    tensors: Tensors
    rows: int


class InvalidInputError(ValueError):
    """What a caller sent does not fit the network."""


def plan_runs(slots: Sequence[Slot], max_rows: int) -> list[list[Slot]]:
    """Group slots, in order, into runs of equal row shapes and at most `max_rows` rows.

    A request is never split: Triton admits none above the model's largest batch.
    """
    runs: list[list[Slot]] = []
    open_runs: dict[tuple[Any, ...], list[Slot]] = {}
    for slot in slots:
        key = tuple((name, array.shape[1:]) for name, array in sorted(slot.tensors.items()))
        run = open_runs.get(key)
        if run is None or sum(other.rows for other in run) + slot.rows > max_rows:
            run = open_runs[key] = []
            runs.append(run)
        run.append(slot)
    return runs


def run_slots(run: Run, slots: Sequence[Slot]) -> dict[int, Tensors | Exception]:
    """Run slots of equal row shapes together; results or errors by request.

    Where the joint run fails every request runs alone, so that one cannot fail its neighbours.
    """
    try:
        outputs = run(join_rows(slots))
    except Exception as error:
        if len(slots) == 1:
            return {slots[0].request: error}
        return {request: result for slot in slots for request, result in run_slots(run, [slot]).items()}
    return split_rows(outputs, slots)


def join_rows(slots: Sequence[Slot]) -> Tensors:
    """The rows of every slot, one after the other."""
    if len(slots) == 1:
        return slots[0].tensors
    return {name: np.concatenate([slot.tensors[name] for slot in slots]) for name in slots[0].tensors}


def split_rows(outputs: Tensors, slots: Sequence[Slot]) -> dict[int, Tensors | Exception]:
    """Undo `join_rows` on a run's outputs."""
    ends = np.cumsum([slot.rows for slot in slots])
    return {
        slot.request: {name: array[end - slot.rows : end] for name, array in outputs.items()}
        for slot, end in zip(slots, ends, strict=True)
    }


def make_slot(request: int, tensors: Tensors) -> Slot:
    """Check that every input has as many rows as the others.

    Raises:
        InvalidInputError: it has not.
    """
    rows = {name: len(array) for name, array in tensors.items()}
    if len(set(rows.values())) != 1:
        raise InvalidInputError(f"expected as many rows in every input, found {rows}")
    return Slot(request, tensors, next(iter(rows.values())))


def session_options(parameters: Mapping[str, str]) -> onnxruntime.SessionOptions:
    """Threads and memory as the model's parameters say."""
    options = onnxruntime.SessionOptions()
    threads = int(parameters.get("intra_op_threads", "0"))
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.use_deterministic_compute = True
    # Threads that spin between operators are 15 % faster on an idle machine and two to three times slower on one
    # where anything else runs, such as the other networks, the orchestrator and the gateway.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = parameters.get("release_memory") != "true"  # a pattern is kept for every shape seen
    options.log_severity_level = 3
    return options


def run_options(parameters: Mapping[str, str]) -> onnxruntime.RunOptions:
    """Give memory back after every run where the parameters ask for it."""
    options = onnxruntime.RunOptions()
    if parameters.get("release_memory") == "true":
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


class TritonPythonModel:
    """Triton's interface."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load `model.onnx`."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.max_rows = config["max_batch_size"]
        self.run_options = run_options(parameters)
        self.session = onnxruntime.InferenceSession(
            str(file), session_options(parameters), providers=["CPUExecutionProvider"]
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order."""
        results: dict[int, Tensors | Exception] = {}
        slots: list[Slot] = []
        for index, request in enumerate(requests):
            try:
                slots.append(make_slot(index, self._read(request)))
            except InvalidInputError as error:
                results[index] = error
        for run in plan_runs(slots, self.max_rows):
            results.update(run_slots(self._run, run))
        return [_response(results[index]) for index in range(len(requests))]

    def _read(self, request: Any) -> Tensors:
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}

    def _run(self, tensors: Tensors) -> Tensors:
        try:
            outputs = self.session.run(self.outputs, dict(tensors), self.run_options)
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise InvalidInputError(str(error)) from error
        return dict(zip(self.outputs, outputs, strict=True))


def _response(result: Tensors | Exception) -> Any:
    if isinstance(result, Exception):
        code = pb_utils.TritonError.INVALID_ARG if isinstance(result, InvalidInputError) else None
        error = pb_utils.TritonError(str(result), code) if code else pb_utils.TritonError(str(result))
        return pb_utils.InferenceResponse(error=error)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in result.items()])
