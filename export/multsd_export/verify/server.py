"""A running Triton, called over gRPC."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from multsd_export.contract import ModelConfig
from multsd_export.errors import NoAnswerError, ServerError
from multsd_export.serving import may_replay_cuda_graphs, replays_cuda_graphs

Array = npt.NDArray[Any]
Result = TypeVar("Result")
DEADLINE_EXCEEDED = "StatusCode.DEADLINE_EXCEEDED"


class Server:
    """One client of a Triton server.

    What is asked raises ServerError, with the server's own words, or NoAnswerError.
    """

    def __init__(self, url: str, timeout: float) -> None:
        """
        Args:
            url: host:port of the gRPC endpoint.
            timeout: of a call, seconds.
        """
        self.url = url
        self.timeout = timeout
        self._client = grpcclient.InferenceServerClient(url)

    def require(self, models: Sequence[str]) -> None:
        """Raises ServerError where the server cannot be reached or has not loaded a model."""
        for model in models:
            try:
                ready = self._client.is_model_ready(model, client_timeout=self.timeout)
            except InferenceServerException as error:
                raise ServerError(
                    f"no Triton answers at {self.url} ({_reason(error)}); name another: --url."
                ) from error
            if not ready:
                raise ServerError(f"{model} is not ready at {self.url}; see the log of Triton.")

    def infer(self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """One request."""
        tensors = []
        for name, array in inputs.items():
            tensor = grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensors.append(tensor.set_data_from_numpy(np.ascontiguousarray(array)))
        wanted = [grpcclient.InferRequestedOutput(name) for name in outputs]
        result = self._ask(
            model, lambda: self._client.infer(model, tensors, outputs=wanted, client_timeout=self.timeout)
        )
        return {name: result.as_numpy(name) for name in outputs}

    def parameter(self, model: str, key: str) -> str:
        """A parameter of a model's configuration, "" where there is none."""
        return str(self._config(model).parameters[key].string_value)

    def replays_cuda_graphs(self, model: str) -> bool:
        """As the server has loaded it, whatever its file says."""
        return replays_cuda_graphs(self._config(model))

    def may_replay_cuda_graphs(self, model: str) -> bool:
        """The same, or where that is faster: nobody but the server's log knows."""
        return may_replay_cuda_graphs(self._config(model))

    def compute_time(self, model: str) -> tuple[int, float]:
        """How many requests the model has computed, and the seconds that took all together."""
        answer = self._ask(
            f"{model}: statistics",
            lambda: self._client.get_inference_statistics(model, client_timeout=self.timeout),
        )
        (statistics,) = answer.model_stats
        compute = statistics.inference_stats.compute_infer
        return compute.count, compute.ns / 1e9

    def _config(self, model: str) -> ModelConfig:
        answer = self._ask(
            f"{model}: configuration", lambda: self._client.get_model_config(model, client_timeout=self.timeout)
        )
        return answer.config

    def _ask(self, subject: str, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except InferenceServerException as error:
            if error.status() == DEADLINE_EXCEEDED:
                raise NoAnswerError(
                    f"{subject}: no answer from {self.url} within {self.timeout:g} s; --timeout gives it more."
                ) from error
            raise ServerError(f"{subject}: the server answers {_reason(error)}") from error


def _reason(error: InferenceServerException) -> str:
    return " ".join(f"{error.status() or ''} {error.message()}".split())[:300]
