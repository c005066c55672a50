"""A running Triton, called over gRPC."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from multsd_export.contract import ModelConfig
from multsd_export.errors import ServerError
from multsd_export.serving import replays_cuda_graphs

Array = npt.NDArray[Any]


class Server:
    """One client of a Triton server."""

    def __init__(self, url: str) -> None:
        """url: host:port of the gRPC endpoint."""
        self.url = url
        self._client = grpcclient.InferenceServerClient(url)

    def require(self, models: Sequence[str]) -> None:
        """Raises ServerError where the server cannot be reached or has not loaded a model."""
        for model in models:
            try:
                ready = self._client.is_model_ready(model)
            except InferenceServerException as error:
                raise ServerError(
                    f"no Triton answers at {self.url} ({_reason(error)}); name another: --url."
                ) from error
            if not ready:
                raise ServerError(f"{model} is not ready at {self.url}; see the log of Triton.")

    def infer(self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """One request.

        Raises:
            ServerError: with the server's own words.
        """
        tensors = []
        for name, array in inputs.items():
            tensor = grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensors.append(tensor.set_data_from_numpy(np.ascontiguousarray(array)))
        wanted = [grpcclient.InferRequestedOutput(name) for name in outputs]
        try:
            result = self._client.infer(model, tensors, outputs=wanted)
        except InferenceServerException as error:
            raise ServerError(f"{model}: the server answers {_reason(error)}") from error
        return {name: result.as_numpy(name) for name in outputs}

    def parameter(self, model: str, key: str) -> str:
        """A parameter of a model's configuration, "" where there is none."""
        return str(self._config(model).parameters[key].string_value)

    def replays_cuda_graphs(self, model: str) -> bool:
        """As the server has loaded it, whatever its file says."""
        return replays_cuda_graphs(self._config(model))

    def _config(self, model: str) -> ModelConfig:
        return self._client.get_model_config(model).config

    def compute_time(self, model: str) -> tuple[int, float]:
        """How many requests the model has computed, and the seconds that took all together."""
        (statistics,) = self._client.get_inference_statistics(model).model_stats
        compute = statistics.inference_stats.compute_infer
        return compute.count, compute.ns / 1e9


def _reason(error: InferenceServerException) -> str:
    return " ".join(f"{error.status() or ''} {error.message()}".split())[:300]
