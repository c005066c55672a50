"""The Triton adapter of the `multidiffusion` model: decode the request, run the pipeline, encode the response.

The only module that knows Triton. The networks are called through BLS.
"""

import asyncio
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor

from admission import Admission
from batching import UNetBatcher
from checkpoint import load_checkpoint
from embedding_cache import EmbeddingCache
from errors import CancelledRequestError, InvalidRequestError, NetworkError, OverloadedError
from parameters import Limits, parse_parameters
from pipeline import Picture, paint
from sampling import Denoising, UNetRows
from schedulers import DEFAULT_SAMPLER, make_scheduler

# By name: Triton adds its part to pb_utils only after this module is imported.
CODES = {
    InvalidRequestError: "INVALID_ARG",
    OverloadedError: "UNAVAILABLE",
    CancelledRequestError: "CANCELLED",
}

COUNTERS = {
    "multsd_unet_rows_total": "UNet rows evaluated for pictures that were finished",
    "multsd_unet_rows_reference_total": "UNet rows that the published method takes for the same pictures",
    "multsd_embedding_cache_hits_total": "Texts whose embedding was cached",
    "multsd_embedding_cache_misses_total": "Texts that had to be encoded",
}
LABELLED = {"multsd_unet_calls_total": "UNet calls, by the rows that shared one"}


class TritonPythonModel:
    """One process paints for all requests; each is a task of its own on the backend's event loop."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the checkpoint's files from this model's own directory and the limits from its configuration."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"] / "checkpoint"
        self.checkpoint = load_checkpoint(folder)
        self.limits = Limits(*(int(config["parameters"][name]["string_value"]) for name in Limits._fields))
        self.embeddings = EmbeddingCache(int(config["parameters"]["embedding_cache_bytes"]["string_value"]))
        self.batcher = UNetBatcher(
            self._call_unet,
            max_batch_size=self.checkpoint.unet_max_batch_size,
            calls=int(config["parameters"]["unet_calls"]["string_value"]),
        )
        self.families = {name: make_family(name, description) for name, description in (COUNTERS | LABELLED).items()}
        self.counters = {name: self.families[name].Metric(labels={}) for name in COUNTERS}
        self.unet_calls: dict[int, Any] = {}  # counters by rows
        self.admission = Admission(running=self.limits.max_running, waiting=self.limits.max_waiting)
        self.fields = [tensor["name"] for tensor in config["input"]]
        torch.set_num_threads(1)  # the arithmetic here is small; the cores belong to the networks
        make_scheduler(DEFAULT_SAMPLER, self.checkpoint.scheduler_config, 1)  # now, not in the first request

    async def execute(self, requests: list[Any]) -> None:
        """Answer every request. Triton starts the next call while this one awaits."""
        await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request: Any) -> None:
        sender = request.get_response_sender()
        try:
            async with self.admission:
                check_cancelled(sender)  # it may have waited long
                response = await self._paint(request, sender)
        except Exception as error:  # the one place where errors become codes
            response = pb_utils.InferenceResponse(error=to_triton_error(error, request))
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _paint(self, request: Any, sender: Any) -> Any:
        parameters = parse_parameters(
            {field: input_array(request, field) for field in self.fields},
            limits=self.limits,
            window=self.checkpoint.window,
            view_stride=self.checkpoint.view_stride,
        )

        wanted = frozenset(request.requested_output_names())

        def before_step(step: int) -> None:
            check_cancelled(sender)
            if parameters.progress and step and "progress_steps" in wanted:
                sender.send(progress_response(step, parameters.num_inference_steps))

        networks = BlsNetworks(request.request_id(), self.embeddings, self.batcher)
        picture = await paint(parameters, checkpoint=self.checkpoint, networks=networks, before_step=before_step)
        self._count(picture)
        return picture_response(picture, wanted if parameters.return_latents else wanted - {"latents"})

    async def _call_unet(self, rows: UNetRows) -> Tensor:
        self._unet_calls(len(rows)).increment(1)
        return await call_model(
            "unet",
            "out_sample",
            sample=rows.sample.numpy(),
            timestep=rows.timestep[:, None].numpy(),
            encoder_hidden_states=rows.encoder_hidden_states.numpy(),
        )

    def _unet_calls(self, rows: int) -> Any:
        if rows not in self.unet_calls:
            self.unet_calls[rows] = self.families["multsd_unet_calls_total"].Metric(labels={"rows": str(rows)})
        return self.unet_calls[rows]

    def _count(self, picture: Picture) -> None:
        """Rows of finished pictures, so that the two counters compare; the cache's own counts."""
        self.counters["multsd_unet_rows_total"].increment(picture.report["unet_rows"])
        self.counters["multsd_unet_rows_reference_total"].increment(picture.report["unet_rows_reference"])
        for name, count in (("hits", self.embeddings.hits), ("misses", self.embeddings.misses)):
            counter = self.counters[f"multsd_embedding_cache_{name}_total"]
            counter.increment(count - counter.value())


class BlsNetworks:
    """The networks as Triton models; calls carry the request's id into the server's log, shared ones none."""

    def __init__(self, request_id: str, embeddings: EmbeddingCache, batcher: UNetBatcher) -> None:
        self._request_id = request_id
        self._embeddings = embeddings
        self._batcher = batcher

    async def text_encoder(self, input_ids: npt.NDArray[np.int32]) -> Tensor:
        """One call per text that is not cached: Triton's batcher joins them, also with other requests'."""
        return await self._embeddings.encode(input_ids, self._encode_text)

    async def _encode_text(self, input_ids: npt.NDArray[np.int32]) -> Tensor:
        return await call_model("text_encoder", "last_hidden_state", self._request_id, input_ids=input_ids)

    async def complete_step(self, denoising: Denoising) -> None:
        """The canvas's rows share calls with those of other requests."""
        await self._batcher.complete_step(denoising)

    async def vae_decoder(self, latents: Tensor) -> Tensor:
        """Decode one canvas."""
        return await call_model("vae_decoder", "sample", self._request_id, latent_sample=latents.numpy())


async def call_model(model: str, output: str, request_id: str = "", **inputs: npt.NDArray[Any]) -> Tensor:
    """One output of a model on this server. Raises NetworkError."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=[output],
        inputs=[pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()],
        request_id=request_id,
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
    )
    response = await request.async_exec()
    if response.has_error():
        raise NetworkError(model, response.error().code(), response.error().message())
    array = pb_utils.get_output_tensor_by_name(response, output).as_numpy()
    return torch.from_numpy(array.copy())  # the response's memory goes with the response


def make_family(name: str, description: str) -> Any:
    """A family of counters among Triton's own metrics; it has to outlive them."""
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)


def input_array(request: Any, field: str) -> npt.NDArray[Any] | None:
    """An input as an array, None where it was left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, field)
    return None if tensor is None else tensor.as_numpy()


def check_cancelled(sender: Any) -> None:
    """Raises CancelledRequestError when the client has gone."""
    if sender.is_cancelled():
        raise CancelledRequestError("cancelled by the client")


def progress_response(step: int, num_inference_steps: int) -> Any:
    """One of the responses before the final one."""
    steps = np.array([step, num_inference_steps], dtype=np.int32)
    return pb_utils.InferenceResponse([pb_utils.Tensor("progress_steps", steps)])


def picture_response(picture: Picture, wanted: Collection[str]) -> Any:
    """The final response, with the wanted outputs only: Triton kills this process when it has to drop a large one."""
    outputs: dict[str, Callable[[], npt.NDArray[Any]]] = {
        "image": lambda: picture.image,
        "warnings": lambda: json_array(picture.warnings),
        "report": lambda: json_array([picture.report]),
        "latents": picture.latents.numpy,
    }
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, array()) for name, array in outputs.items() if name in wanted]
    )


def json_array(values: list[dict[str, Any]]) -> npt.NDArray[np.object_]:
    """JSON texts as a BYTES tensor: (n)."""
    return np.array([json.dumps(value).encode() for value in values], dtype=np.object_)


def to_triton_error(error: Exception, request: Any) -> Any:
    """The code and message that a caller gets; what nobody foresaw is logged and told in short."""
    code, message = pb_utils.TritonError.INTERNAL, str(error)
    if isinstance(error, NetworkError):
        code = error.code
    elif type(error) in CODES:
        code = getattr(pb_utils.TritonError, CODES[type(error)])
    else:
        pb_utils.Logger.log_error(f"request {request.request_id() or '-'}: {type(error).__name__}: {error}")
        message = f"internal error ({type(error).__name__})"
    if json.loads(request.parameters() or "{}").get("name_error_codes"):
        message = f"{code.name}: {message}"
    return pb_utils.TritonError(message, code)
