"""The Triton adapter of the `multidiffusion` model: decode the request, run the pipeline, encode the response.

The only module that knows Triton. The networks are called through BLS.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor

from admission import Admission, Pace
from batching import UNetBatcher
from checkpoint import TextEncoder, load_checkpoint
from embedding_cache import EmbeddingCache
from errors import CancelledRequestError, DeadlineError, InvalidRequestError, NetworkError, OverloadedError
from parameters import Limits, most_rows, parse_deadline, parse_parameters, parse_progress
from pipeline import Observer, Picture, paint
from sampling import Denoising, UNetRows
from schedulers import DEFAULT_SAMPLER, make_scheduler

# By name: Triton adds its part to pb_utils only after this module is imported.
CODES = {
    InvalidRequestError: "INVALID_ARG",
    OverloadedError: "UNAVAILABLE",
    CancelledRequestError: "CANCELLED",
    DeadlineError: "CANCELLED",
}
FAILURES = {
    OverloadedError: "multsd_requests_rejected_total",
    CancelledRequestError: "multsd_requests_cancelled_total",
    DeadlineError: "multsd_requests_expired_total",
}

COUNTERS = {
    "multsd_unet_rows_total": "UNet rows evaluated for pictures that were finished",
    "multsd_unet_rows_reference_total": "UNet rows that the published method takes for the same pictures",
    "multsd_embedding_cache_hits_total": "Texts whose embedding was cached",
    "multsd_embedding_cache_misses_total": "Texts that had to be encoded",
    "multsd_requests_rejected_total": "Requests that were refused because too much waited",
    "multsd_requests_cancelled_total": "Requests whose client went away",
    "multsd_requests_expired_total": "Requests whose deadline passed or could not be met",
}
GAUGES = {
    "multsd_running_requests": "Requests that are painted",
    "multsd_waiting_requests": "Requests that wait for a place",
    "multsd_waiting_rows": "UNet rows, by an upper bound, of the requests that wait",
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
        counter, gauge = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.GAUGE
        self.families = {name: make_family(name, COUNTERS | LABELLED, counter) for name in COUNTERS | LABELLED}
        self.families |= {name: make_family(name, GAUGES, gauge) for name in GAUGES}
        self.counters = {name: self.families[name].Metric(labels={}) for name in COUNTERS}
        self.gauges = {name: self.families[name].Metric(labels={}) for name in GAUGES}
        self.unet_calls: dict[int, Any] = {}  # counters by rows
        self.pace = Pace()
        self.admission = Admission(
            running=self.limits.max_running,
            waiting=self.limits.max_waiting,
            waiting_rows=self.limits.max_waiting_rows,
            pace=self.pace,
            on_change=self._show_load,
        )
        self.fields = [tensor["name"] for tensor in config["input"]]
        torch.set_num_threads(1)  # the arithmetic here is small; the cores belong to the networks
        make_scheduler(DEFAULT_SAMPLER, self.checkpoint.scheduler_config, 1)  # now, not in the first request

    def _show_load(self) -> None:
        self.gauges["multsd_running_requests"].set(self.admission.running)
        self.gauges["multsd_waiting_requests"].set(self.admission.waiting)
        self.gauges["multsd_waiting_rows"].set(self.admission.waiting_rows)

    async def execute(self, requests: list[Any]) -> None:
        """Answer every request. Triton starts the next call while this one awaits."""
        await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request: Any) -> None:
        sender = request.get_response_sender()
        try:
            response = await self._admit(request, sender)
        except Exception as error:  # the one place where errors become codes
            self._count_failure(error)
            response = pb_utils.InferenceResponse(error=to_triton_error(error, request))
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _admit(self, request: Any, sender: Any) -> Any:
        arrived = time.monotonic()
        arrays = {field: input_array(request, field) for field in self.fields}
        rows = most_rows(
            {field: array for field, array in arrays.items() if field != "masks"},
            limits=self.limits,
            window=self.checkpoint.window,
            view_stride=self.checkpoint.view_stride,
            cell=self.checkpoint.vae_scale_factor,
        )
        deadline = parse_deadline(arrays)
        progress = Progress(request, sender, wanted=parse_progress(arrays), ends=arrived + deadline)
        async with self.admission.place(rows, progress.queued, None if math.isinf(deadline) else deadline):
            progress.check()  # it may have waited long
            return await self._paint(request, arrays, progress)

    async def _paint(self, request: Any, arrays: Mapping[str, npt.NDArray[Any] | None], progress: "Progress") -> Any:
        parameters = parse_parameters(
            arrays, limits=self.limits, window=self.checkpoint.window, view_stride=self.checkpoint.view_stride
        )

        def before_step(step: int) -> None:
            progress.check()
            if step:
                progress.step(step, parameters.num_inference_steps)

        observer = Observer(
            before_step=before_step,
            preview=progress.preview,
            planned=lambda rows: progress.check(at_least=self.pace.seconds(rows)),
        )
        networks = BlsNetworks(request.request_id(), self.embeddings, self.batcher)
        picture = await paint(parameters, checkpoint=self.checkpoint, networks=networks, observer=observer)
        self._count(picture)
        wanted = frozenset(request.requested_output_names())
        return picture_response(picture, wanted if parameters.return_latents else wanted - {"latents"})

    def _count_failure(self, error: Exception) -> None:
        for kind, name in FAILURES.items():
            if isinstance(error, kind):
                self.counters[name].increment(1)

    async def _call_unet(self, rows: UNetRows) -> Tensor:
        self._unet_calls(len(rows)).increment(1)
        inputs = {
            "sample": rows.sample,
            "timestep": rows.timestep[:, None],
            "encoder_hidden_states": rows.encoder_hidden_states,
            "text_embeds": rows.text_embeds,
            "time_ids": rows.time_ids,
        }
        taken = {name: tensor.numpy() for name, tensor in inputs.items() if tensor is not None}
        started = time.monotonic()
        prediction = (await call_model("unet", ["out_sample"], taken))["out_sample"]
        self.pace.saw(len(rows), time.monotonic() - started)
        return prediction

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

    async def encode(self, encoder: TextEncoder, input_ids: npt.NDArray[np.int32]) -> Mapping[str, Tensor]:
        """One call per text that is not cached: Triton's batcher joins them, also with other requests'."""

        async def call(ids: npt.NDArray[np.int32]) -> Mapping[str, Tensor]:
            return await call_model(encoder.model, encoder.outputs, {"input_ids": ids}, self._request_id)

        return await self._embeddings.encode(encoder.model, input_ids, call)

    async def complete_step(self, denoising: Denoising) -> None:
        """The canvas's rows share calls with those of other requests."""
        await self._batcher.complete_step(denoising)

    async def vae_decoder(self, latents: Tensor) -> Tensor:
        """Decode one canvas."""
        inputs = {"latent_sample": latents.numpy()}
        return (await call_model("vae_decoder", ["sample"], inputs, self._request_id))["sample"]


async def call_model(
    model: str, outputs: Sequence[str], inputs: Mapping[str, npt.NDArray[Any]], request_id: str = ""
) -> dict[str, Tensor]:
    """Outputs of a model on this server. Raises NetworkError."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=list(outputs),
        inputs=[pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()],
        request_id=request_id,
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
    )
    response = await request.async_exec()
    if response.has_error():
        raise NetworkError(model, response.error().code(), response.error().message())
    arrays = {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in outputs}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}  # their memory is the response's


def make_family(name: str, descriptions: Mapping[str, str], kind: Any) -> Any:
    """A family of counters or gauges among Triton's own metrics; it has to outlive them."""
    return pb_utils.MetricFamily(name=name, description=descriptions[name], kind=kind)


def input_array(request: Any, field: str) -> npt.NDArray[Any] | None:
    """An input as an array, None where it was left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, field)
    return None if tensor is None else tensor.as_numpy()


class Progress:
    """What a request's caller is told before the end, and whether there is still anybody to tell."""

    def __init__(self, request: Any, sender: Any, *, wanted: bool, ends: float) -> None:
        """wanted: whether the caller asked for progress. ends: when its time is over, by the monotonic clock."""
        self._sender = sender
        self._outputs = frozenset(request.requested_output_names()) if wanted else frozenset()
        self._ends = ends

    def check(self, at_least: float = 0.0) -> None:
        """Raises CancelledRequestError when the client has gone, DeadlineError where fewer seconds are left."""
        if self._sender.is_cancelled():
            raise CancelledRequestError("cancelled by the client")
        left = self._ends - time.monotonic()
        if left < at_least:
            needed = f"at least {at_least:.1f} s more are needed" if at_least else "not done"
            raise DeadlineError(f"{needed}, {max(left, 0):.1f} s are left")

    def queued(self, position: int) -> None:
        """So many requests wait before this one."""
        self._send("queue_position", np.array([position], dtype=np.int32))

    def step(self, step: int, num_inference_steps: int) -> None:
        """So many steps are done, of how many."""
        self._send("progress_steps", np.array([step, num_inference_steps], dtype=np.int32))

    def preview(self, image: npt.NDArray[np.uint8]) -> None:
        """A rough picture, (h, w, 3)."""
        self._send("preview", np.ascontiguousarray(image))

    def _send(self, name: str, array: npt.NDArray[Any]) -> None:
        if name in self._outputs:
            self._sender.send(pb_utils.InferenceResponse([pb_utils.Tensor(name, array)]))


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
    name = "DEADLINE_EXCEEDED" if isinstance(error, DeadlineError) else None  # a name that Triton's codes lack
    if isinstance(error, NetworkError):
        code = error.code
    elif type(error) in CODES:
        code = getattr(pb_utils.TritonError, CODES[type(error)])
    else:
        pb_utils.Logger.log_error(f"request {request.request_id() or '-'}: {type(error).__name__}: {error}")
        message = f"internal error ({type(error).__name__})"
    if json.loads(request.parameters() or "{}").get("name_error_codes"):
        message = f"{name or code.name}: {message}"
    return pb_utils.TritonError(message, code)
