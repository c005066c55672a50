"""A network that takes the time a GPU would and computes nothing: a simulation, for the orchestrator's own speed.

Runs inside the real Triton in place of a network's `model.py`. A call takes `fixed_seconds`, and `row_seconds` more for
every row; requests that wait together share a call up to the model's largest batch.
"""

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

CELL = 8  # pixels of a latent cell's side


class TritonPythonModel:
    """Answers with zeros of the right shape."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the time from the model's parameters."""
        config = json.loads(args["model_config"])
        self.name = config["name"]
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.fixed, self.row = float(parameters["fixed_seconds"]), float(parameters["row_seconds"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, after the time of the call; what making them takes is a part of it."""
        began = time.perf_counter()
        inputs = [request.inputs()[0].as_numpy() for request in requests]
        responses = [self._zeros(each.shape) for each in inputs]
        seconds = self.fixed + self.row * sum(len(each) for each in inputs)
        time.sleep(max(0.0, began + seconds - time.perf_counter()))
        return responses

    def _zeros(self, shape: tuple[int, ...]) -> Any:
        rows, _, height, width = shape
        if self.name == "unet":
            return response("out_sample", np.zeros(shape, np.float32))
        return response("sample", np.zeros((rows, 3, height * CELL, width * CELL), np.float32))


def response(name: str, array: Any) -> Any:
    """A response of one output."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array)])
