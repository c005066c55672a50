"""The Triton adapter of the `multidiffusion` model: decode the request, run the pipeline, encode the response.

The only module that knows Triton. The networks are called through BLS.
"""

import asyncio
import json
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor

from admission import Admission, Pace, Place
from background import Background
from batching import UNetBatcher, pad, zeros
from checkpoint import TextEncoder
from checkpoint_files import load_checkpoint
from embedding_cache import EmbeddingCache
from errors import (
    CancelledRequestError,
    DeadlineError,
    InvalidRequestError,
    NetworkError,
    NotFiniteError,
    OverloadedError,
    SilentNetworkError,
)
from failure_watch import FailureWatch
from metrics import Metrics
from network_calls import NetworkCalls
from parameters import Limits, Parameters, most_rows, parse_parameters
from pipeline import Observer, Picture, check, check_finite, paint
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

PROGRESS = frozenset({"queue_position", "progress_steps", "preview"})  # outputs of responses before the final one
CANCELLED_EVERY = 0.25  # seconds between looks whether the client has gone, each a message to Triton and back
ASIDE_SECONDS = 0.003  # until Triton is told what was counted: less than most calls of a UNet take
MOST_CALLS = 32  # of a text encoder or the VAE at a time
SPARE_CALLS = 8  # of the UNet, beside those that are made at a time: so many may be left behind without an answer
# Triton's words for a call that was in its own queue for too long, where a configuration bounds that: a network that is
# stuck. Not by the code, UNAVAILABLE, which Triton before 25.01 loses on its way here.
QUEUE_TIMEOUT = "Request timeout expired"


class TritonPythonModel:
    """One process paints for all requests; each is a task of its own on one event loop."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the checkpoint's files from this model's own directory and the limits from its configuration."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"] / "checkpoint"
        self.checkpoint = load_checkpoint(folder)
        self.limits = Limits(*(int(config["parameters"][name]["string_value"]) for name in Limits._fields))
        self.embeddings = EmbeddingCache(int(config["parameters"]["embedding_cache_bytes"]["string_value"]))
        unet_calls = int(config["parameters"]["unet_calls"]["string_value"])
        unet_calls_ahead = int(config["parameters"]["unet_calls_ahead"]["string_value"])
        self.deterministic = flag(config, "deterministic")
        self.calls = Calls(
            float(config["parameters"]["network_seconds"]["string_value"]),
            {
                "unet": unet_calls + unet_calls_ahead + SPARE_CALLS,
                "vae_decoder": MOST_CALLS,
                # One by one where each call has to have a fixed size, else Triton's batcher joins them.
                **{each.model: 1 if self.deterministic else MOST_CALLS for each in self.checkpoint.text_encoders},
            },
        )
        self.failures = FailureWatch(
            seconds=float(config["parameters"]["failing_seconds"]["string_value"]), give_up=end_process
        )
        self.background = Background(on_error=log_error)
        self.aside = Aside()
        self.metrics = Metrics(make_family, self.aside.call)
        self.counted = {"hits": 0, "misses": 0}
        self.pace = Pace(places=self.checkpoint.unet_max_batch_size, calls=unet_calls)
        self.admission = Admission(
            running=self.limits.max_running,
            waiting=self.limits.max_waiting,
            waiting_rows=self.limits.max_waiting_rows,
            pace=self.pace,
            look_every=CANCELLED_EVERY,
            on_change=self._show_load,
        )
        self.batcher = UNetBatcher(
            self._call_unet,
            max_batch_size=self.checkpoint.unet_max_batch_size,
            calls=unet_calls,
            ahead=unet_calls_ahead,
            on_silence=self.admission.end_waiting,  # let in by lots, each would wait as long again
        )
        self.fields = [tensor["name"] for tensor in config["input"]]
        torch.set_num_threads(1)  # the arithmetic here is small; the cores belong to the networks
        make_scheduler(DEFAULT_SAMPLER, self.checkpoint.scheduler_config, 1)  # now, not in the first request

    def finalize(self) -> None:
        """Let go of the metrics while Triton still hears of it: later it crashes this process."""
        self.background.close()
        self.aside.close()
        del self.metrics

    def _show_load(self) -> None:
        self.metrics.show(
            {
                "multsd_running_requests": self.admission.running,
                "multsd_waiting_requests": self.admission.waiting,
                "multsd_waiting_rows": self.admission.waiting_rows,
                "multsd_tasks": len(asyncio.all_tasks()),
            }
        )

    def execute(self, requests: list[Any]) -> None:
        """Have every request answered. Triton makes the next call meanwhile."""
        self.background.begin(self.answer(requests))

    async def answer(self, requests: list[Any]) -> None:
        """Answer every request."""
        self.calls.open(asyncio.get_running_loop(), others=self.limits.max_running)
        await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request: Any) -> None:
        sender = request.get_response_sender()
        try:
            response = await self._admit(request, sender)
        except Exception as error:  # the one place where errors become codes
            self._count_failure(error)
            response = pb_utils.InferenceResponse(error=to_triton_error(error, request))
        await self.aside.done()  # whoever has the answer finds it counted
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _admit(self, request: Any, sender: Any) -> Any:
        arrived = time.monotonic()
        parameters = self._read(request)
        wanted = final_outputs(request, parameters)
        rows = most_rows(parameters, window=self.checkpoint.window, cell=self.checkpoint.vae_scale_factor)
        deadline = parameters.deadline_s
        progress = Progress(request, sender, wanted=parameters.progress, arrived=arrived, deadline=deadline)
        async with (
            within(deadline, arrived=arrived),
            self.admission.place(rows, progress.queued, progress.look) as place,
        ):
            progress.check()  # it may have waited long
            picture = await self._paint(beside_tensors(request.request_id), parameters, progress, place, arrived)
            return picture_response(picture, wanted)

    def _read(self, request: Any) -> Parameters:
        """Check all that can be told without work: nothing faulty waits. Raises InvalidRequestError."""
        parameters = parse_parameters(
            {field: input_array(request, field) for field in self.fields},
            limits=self.limits,
            window=self.checkpoint.window,
            view_stride=self.checkpoint.view_stride,
        )
        check(parameters, self.checkpoint)
        return parameters

    async def _paint(
        self, request_id: str, parameters: Parameters, progress: "Progress", place: Place, arrived: float
    ) -> Picture:
        steps, rows_of_reference = parameters.num_inference_steps, 0

        def planned(rows: int, reference: int) -> None:
            nonlocal rows_of_reference
            rows_of_reference, place.rows_left = reference, rows
            progress.check(at_least=self.pace.least_seconds(rows))

        def before_step(step: int) -> None:
            if step:
                self.metrics.count("multsd_unet_rows_reference_total", rows_of_reference // steps)
            if step == 1:
                self.metrics.observe("multsd_first_step_seconds", time.monotonic() - arrived)
            progress.check()
            if step:
                progress.step(step, steps)

        picture = await paint(
            parameters,
            checkpoint=self.checkpoint,
            networks=BlsNetworks(request_id, self, place),
            observer=Observer(before_step=before_step, preview=progress.preview, planned=planned),
        )
        progress.look()  # nobody was asked while it was decoded
        self.metrics.observe("multsd_picture_seconds", time.monotonic() - arrived)
        return picture

    def _count_failure(self, error: Exception) -> None:
        for kind, name in FAILURES.items():
            if isinstance(error, kind):
                self.metrics.count(name)

    async def complete_step(self, denoising: Denoising) -> None:
        """The canvas's rows share calls with those of other requests."""
        started = time.monotonic()
        await self.batcher.complete_step(denoising)
        self.metrics.observe("multsd_step_seconds", time.monotonic() - started)

    async def _call_unet(self, rows: UNetRows) -> Tensor:
        sent = pad(rows, self.checkpoint.unet_max_batch_size) if self.deterministic else rows
        started = time.monotonic()
        try:
            prediction = await self._ask_unet(sent)
        except SilentNetworkError:
            raise
        except NetworkError:
            nothing = zeros(sent, len(sent) if self.deterministic else 1)
            self.failures.failed(lambda: self._ask_unet(nothing))
            raise
        self.failures.answered()
        padded = len(sent) - len(rows)
        self.pace.answered(len(rows), sent=started, padded=padded)
        self.metrics.count_call(len(rows), padded=padded)
        return prediction[: len(rows)]

    async def _ask_unet(self, rows: UNetRows) -> Tensor:
        inputs = {
            "sample": rows.sample,
            "timestep": rows.timestep[:, None],
            "encoder_hidden_states": rows.encoder_hidden_states,
            "text_embeds": rows.text_embeds,
            "time_ids": rows.time_ids,
        }
        taken = {name: tensor.numpy() for name, tensor in inputs.items() if tensor is not None}
        return (await self.calls.call("unet", ["out_sample"], taken))["out_sample"]

    async def encode(
        self, encoder: TextEncoder, input_ids: npt.NDArray[np.int32], request_id: str
    ) -> Mapping[str, Tensor]:
        """One call per text that is not cached."""

        async def call(ids: npt.NDArray[np.int32]) -> Mapping[str, Tensor]:
            outputs = await self.calls.call(encoder.model, encoder.outputs, {"input_ids": ids}, request_id)
            for name, output in outputs.items():
                check_finite(output, encoder.model, f"in {name}")  # before it is kept for others
            return outputs

        try:
            return await self.embeddings.encode(encoder.model, input_ids, call)
        finally:
            self._count_cache()

    def _count_cache(self) -> None:
        for name, count in (("hits", self.embeddings.hits), ("misses", self.embeddings.misses)):
            self.metrics.count(f"multsd_embedding_cache_{name}_total", count - self.counted[name])
            self.counted[name] = count


class BlsNetworks:
    """The networks as one request sees them; calls carry its id into the server's log, shared ones none."""

    def __init__(self, request_id: str, model: TritonPythonModel, place: Place) -> None:
        self._request_id = request_id
        self._model = model
        self._place = place

    async def encode(self, encoder: TextEncoder, input_ids: npt.NDArray[np.int32]) -> Mapping[str, Tensor]:
        """Ask one text encoder."""
        return await self._model.encode(encoder, input_ids, self._request_id)

    async def complete_step(self, denoising: Denoising) -> None:
        """Ask the UNet."""
        await self._model.complete_step(denoising)
        self._place.rows_left = denoising.total_rows - denoising.rows

    async def vae_decoder(self, latents: Tensor) -> Tensor:
        """Decode one canvas."""
        inputs = {"latent_sample": latents.numpy()}
        return (await self._model.calls.call("vae_decoder", ["sample"], inputs, self._request_id))["sample"]


class Aside:
    """Calls of Triton that nobody waits for, in order, in a thread of their own: each is a message there and back.

    They are made a moment later and all together, which is while the UNet is at work: between two of its calls the
    thread would hold up the loop, which then waits for the interpreter's lock.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._calls: list[tuple[Callable[[float], object], float]] = []
        self._timer: asyncio.TimerHandle | None = None

    def call(self, function: Callable[[float], object], value: float) -> None:
        """Have it called soon; an error is logged."""
        self._calls.append((function, value))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ASIDE_SECONDS, self._begin)

    async def done(self) -> None:
        """Wait until everything was called."""
        await asyncio.shield(asyncio.wrap_future(self._begin()))  # who stops waiting takes nothing back

    def close(self) -> None:
        """End the thread, after what it was given."""
        self._thread.shutdown()

    def _begin(self) -> "Future[None]":
        if self._timer is not None:
            self._timer.cancel()
        calls, self._calls, self._timer = self._calls, [], None
        return self._thread.submit(self._make, calls)

    @staticmethod
    def _make(calls: Sequence[tuple[Callable[[float], object], float]]) -> None:
        for function, value in calls:
            try:
                function(value)
            except Exception as error:  # a metric fails no request
                log_error(error, "metrics")


class Calls:
    """Calls of the networks, through BLS. Each holds a thread of the event loop until it is answered."""

    def __init__(self, seconds: float, most: Mapping[str, int]) -> None:
        """seconds: without an answer, after which a network counts as hung; 0: for ever. most: at a time, of each."""
        self._seconds = seconds
        self._networks = {model: NetworkCalls(most=most[model], seconds=seconds or None) for model in most}
        self._threads = sum(most.values())
        self._open = False

    def open(self, loop: asyncio.AbstractEventLoop, *, others: int) -> None:
        """Have a thread for every call: by itself a loop has a handful, so that no network waits for another's.

        others: threads that are used beside them.
        """
        if not self._open:
            loop.set_default_executor(ThreadPoolExecutor(self._threads + others))
            self._open = True

    async def call(
        self, model: str, outputs: Sequence[str], inputs: Mapping[str, npt.NDArray[Any]], request_id: str = ""
    ) -> dict[str, Tensor]:
        """Outputs of a model on this server. Raises NetworkError."""
        try:
            return await self._networks[model].call(lambda: call_model(model, outputs, inputs, request_id))
        except TimeoutError:
            raise silence(model, self._seconds) from None


def end_process(error: NetworkError) -> None:
    """End this process: no picture can be painted any more, while Triton calls itself ready.

    Of a process that has ended the probes know, and have Triton begin anew; a gateway gives its requests to others.
    """
    sys.stderr.write(f"multidiffusion: every call of the UNet fails, the process ends: {error}\n")
    sys.stderr.flush()
    os._exit(1)  # what is raised Triton would answer, and go on


def log_error(error: BaseException, what: str = "answering") -> None:
    """Into the server's log."""
    pb_utils.Logger.log_error(f"{what}: {type(error).__name__}: {error}")


def silence(model: str, seconds: float, reason: str = "") -> SilentNetworkError:
    """The error of a network that hangs. The gateway knows it by its words."""
    message = f"no answer for {round(seconds, 2):g} s" + (f": {reason}" if reason else "")
    return SilentNetworkError(model, pb_utils.TritonError.UNAVAILABLE, message)


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
    started = time.monotonic()
    response = await request.async_exec()
    if response.has_error():
        message = response.error().message()
        if QUEUE_TIMEOUT in message:
            raise silence(model, time.monotonic() - started, message)
        raise NetworkError(model, response.error().code(), message)
    arrays = {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in outputs}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}  # their memory is the response's


def make_family(name: str, description: str, kind: str) -> Any:
    """A family among Triton's own metrics."""
    return pb_utils.MetricFamily(name=name, description=description, kind=getattr(pb_utils.MetricFamily, kind))


def flag(config: Mapping[str, Any], name: str) -> bool:
    """A parameter of the model's configuration that is true or false. Raises ValueError."""
    text = config["parameters"][name]["string_value"]
    if text not in ("true", "false"):
        raise ValueError(f"{name}: expected true or false, found {text!r}")
    return bool(text == "true")


@asynccontextmanager
async def within(deadline: float, *, arrived: float) -> AsyncIterator[None]:
    """Stop the body so many seconds after a time of the monotonic clock, also while a network is silent.

    Raises DeadlineError.
    """
    seconds = None if math.isinf(deadline) else arrived + deadline - time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise expired(deadline) from None


def expired(deadline: float) -> DeadlineError:
    """The error of a request that was not done in time."""
    return DeadlineError(f"not done, none of its {deadline:g} s are left")


def input_array(request: Any, field: str) -> npt.NDArray[Any] | None:
    """An input as an array, None where it was left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, field)
    return None if tensor is None else tensor.as_numpy()


def beside_tensors(read: Callable[[], str]) -> str:
    """A request's id or parameters; "" where they are no UTF-8, which Triton's HTTP endpoint lets through."""
    try:
        return read()
    except UnicodeDecodeError:
        return ""


class Progress:
    """What a request's caller is told before the end, and whether there is still anybody to tell."""

    def __init__(self, request: Any, sender: Any, *, wanted: bool, arrived: float, deadline: float) -> None:
        """wanted: whether the caller asked for progress. arrived: by the monotonic clock; deadline: seconds since."""
        self._sender = sender
        self._outputs = frozenset(request.requested_output_names()) if wanted else frozenset()
        self._deadline = deadline
        self._ends = arrived + deadline
        self._looked = -math.inf

    def look(self) -> None:
        """Raises CancelledRequestError when the client has gone."""
        self._looked = time.monotonic()
        if self._sender.is_cancelled():
            raise CancelledRequestError("cancelled by the client")

    def check(self, at_least: float = 0.0) -> None:
        """Look, unless that was a moment ago. Raises DeadlineError, too, where fewer seconds are left."""
        now = time.monotonic()
        left = self._ends - now
        if left <= 0:  # first: a client that knows its deadline leaves when it is over
            raise expired(self._deadline)
        if now >= self._looked + CANCELLED_EVERY:
            self.look()
        if left < at_least:
            raise DeadlineError(f"at least {at_least:.1f} s more are needed, {left:.1f} s are left")

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


def final_outputs(request: Any, parameters: Parameters) -> frozenset[str]:
    """What a request wants of the final response. Raises InvalidRequestError where it asks for nothing of a picture.

    Who names no outputs asks for all of them, so that the latents have to be asked for by a field of their own.
    """
    wanted = frozenset(request.requested_output_names()) - PROGRESS
    if wanted == {"latents"} and not parameters.return_latents:
        raise InvalidRequestError("return_latents", "expected true where latents alone are asked for, found false")
    return wanted if parameters.return_latents else wanted - {"latents"}


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
    """The code and message that a caller gets; a fault of ours is logged, and told in short where nobody foresaw it."""
    code, message = pb_utils.TritonError.INTERNAL, str(error)
    name = "DEADLINE_EXCEEDED" if isinstance(error, DeadlineError) else None  # a name that Triton's codes lack
    if isinstance(error, NetworkError):
        code = error.code
    elif type(error) in CODES:
        code = getattr(pb_utils.TritonError, CODES[type(error)])
    else:
        request_id = beside_tensors(request.request_id) or "-"
        log_error(error, f"request {request_id}")
        if not isinstance(error, NotFiniteError):
            message = f"internal error ({type(error).__name__})"
    if json.loads(beside_tensors(request.parameters) or "{}").get("name_error_codes"):
        message = f"{name or code.name}: {message}"
    return pb_utils.TritonError(message, code)
