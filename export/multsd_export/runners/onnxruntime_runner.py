"""Serve one ONNX file with ONNX Runtime in Triton's Python backend.

An export copies this file as `1/model.py` beside `1/model.onnx`, for every network alike: names, types and the
largest batch are read from the model's configuration. The rows of waiting requests whose other dimensions are equal
share a run. A request that fails is answered with its own error.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

# Read when it is loaded. Its wheels for Linux write a device id below HOME and send events to their maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from rows import InvalidInputError, Tensors
from triton_requests import Model, answer, read_model


def session_options(model: Model) -> onnxruntime.SessionOptions:
    """Threads and memory as the model's parameters say."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = model.threads
    options.use_deterministic_compute = True
    # Threads that spin between operators are 15 % faster on an idle machine and two to three times slower on one
    # where anything else runs, such as the other networks, the orchestrator and the gateway.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = not _releases_memory(model)  # a pattern is kept for every shape seen
    options.log_severity_level = 3
    return options


def run_options(model: Model) -> onnxruntime.RunOptions:
    """Give memory back after every run where the parameters ask for it."""
    options = onnxruntime.RunOptions()
    if _releases_memory(model):
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


class TritonPythonModel:
    """Triton's interface."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load `model.onnx`."""
        self.model = read_model(args)
        self.run_options = run_options(self.model)
        self.session = onnxruntime.InferenceSession(
            str(self.model.folder / "model.onnx"), session_options(self.model), providers=["CPUExecutionProvider"]
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order."""
        return answer(requests, self.model, self._run)

    def _run(self, tensors: Tensors) -> Tensors:
        try:
            outputs = self.session.run(self.model.outputs, dict(tensors), self.run_options)
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise InvalidInputError(str(error)) from error
        return dict(zip(self.model.outputs, outputs, strict=True))


def _releases_memory(model: Model) -> bool:
    return model.parameters.get("release_memory") == "true"
