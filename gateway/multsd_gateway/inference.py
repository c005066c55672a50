"""Painting: the one interface to the model, and its implementation over Triton's gRPC stream."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import InferResult
from tritonclient.grpc.aio import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from multsd_client import tensors, triton_errors
from multsd_client.fields import note_of_message
from multsd_client.tensors import ModelRequest, Picture, Update
from multsd_client.triton import NAMED_CODES, infer_inputs, outputs
from multsd_client.triton_errors import DEAD, Meaning, TritonError
from multsd_gateway.errors import (
    DeadlineExceededError,
    GatewayError,
    InvalidRequestError,
    ModelFailedError,
    ModelFullError,
    ModelUnavailableError,
)
from multsd_gateway.wording import failure

log = logging.getLogger(__name__)

N = TypeVar("N", int, None)
OnProgress = Callable[[Update], Awaitable[None]]

# What `multidiffusion` says of a network that hangs, by its own clock or, where a configuration bounds the network's
# queue, by Triton's. Triton calls it ready all the while.
_SILENT = re.compile(r"(\w+): (?:no answer for [\d.]+ s|(?:\[request id: [^\]]*\] )?Request timeout expired)")

_END_SECONDS = 2.0  # after its picture, in which Triton ends a stream
_PING_SECONDS = 1.0
_DESCRIBED_SECONDS = 30.0  # after which the model is asked again what it is: another may be served at the same address
_PROBE_SECONDS = 3.0  # between two probes of the model
_SUSPECT_SECONDS = 1.0  # that a model under suspicion has to refuse a request
_HUNG_SECONDS = 10.0  # that any other has

_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # Also the bound of one attempt to connect.
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A pod that comes back has another address: by itself gRPC would ask for it twice a minute.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
]


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The served model's inputs, and its configuration's parameters."""

    inputs: frozenset[str]
    parameters: Mapping[str, str]

    @property
    def samplers(self) -> tuple[str, ...]:
        """The samplers that it names, its default first; none where it does not tell."""
        return self._names("samplers")

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The models that encode its prompts; the one that all checkpoints have where it does not tell."""
        return self._names("text_encoders") or ("text_encoder",)

    def _names(self, parameter: str) -> tuple[str, ...]:
        return tuple(name for part in self.parameters.get(parameter, "").split(",") if (name := part.strip()))

    def number(self, name: str, default: N, *, least: int = 1) -> int | N:
        """One of its parameters that is a whole number, the default where it does not tell one that is large enough."""
        text = self.parameters.get(name, "")
        return int(text) if text.isdecimal() and int(text) >= least else default


UNKNOWN = ModelDescription(frozenset(), {})  # of a model that has told nothing


def needed(models: Sequence[ModelDescription]) -> tuple[str, ...]:
    """The models that a picture takes, by what the served `multidiffusion` of each Triton says of itself, if it has."""
    known = models or (UNKNOWN,)
    encoders = dict.fromkeys(name for each in known for name in each.text_encoders)
    return (tensors.MODEL, *encoders, "unet", "vae_decoder")


@dataclass(frozen=True, slots=True)
class Access:
    """How Triton is spoken to. Paths of PEM files; headers: gRPC metadata, such as a token."""

    tls: bool = False
    root_certificates: str | None = None
    certificate: str | None = None
    private_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


PLAIN = Access()


class Painter(Protocol):
    """Whatever runs the `multidiffusion` model."""

    async def paint(self, request: ModelRequest, *, request_id: str, on_progress: OnProgress | None) -> Picture:
        """Run one request to its end. Cancelling the call cancels the work. Raises GatewayError."""

    async def missing(self, models: Sequence[str]) -> list[str]:
        """Which of the models are not ready; all of them when the server is not. models: none for those needed."""

    async def describe(self) -> ModelDescription:
        """What the served model says of itself. Raises ModelUnavailableError."""

    def samplers(self) -> tuple[str, ...] | None:
        """Those that the served model is known to have, without asking it; None where it has not told."""

    def descriptions(self) -> tuple[ModelDescription, ...]:
        """What the served model of each Triton that is ready has said of itself, without asking it.

        UNKNOWN for one that has not told; nothing where none is ready.
        """

    async def close(self) -> None:
        """Give back what it holds."""


def error_of(code: str, message: str) -> GatewayError:
    """The gateway's exception for a status of Triton, by its gRPC name."""
    return _error(triton_errors.of_status(code, message))


def _error(told: TritonError) -> GatewayError:
    message = told.message
    match told.meaning:
        case Meaning.INVALID:
            return InvalidRequestError([note_of_message(message)])
        case Meaning.NOT_NOW if told.retry_after is not None:
            return ModelFullError(failure(message), retry_after=told.retry_after)
        case Meaning.NOT_NOW:
            return ModelUnavailableError(message)
        case Meaning.LATE:
            late = message.removeprefix("deadline_s: ")
            return DeadlineExceededError(f"the picture cannot be ready in time: {late}")
        case Meaning.FAILED:
            return ModelFailedError(failure(message))


class TritonPainter:
    """Painter over one gRPC channel, which connects again by itself."""

    def __init__(self, url: str, *, silence_seconds: float, access: Access = PLAIN) -> None:
        self._url = url
        self._silence = silence_seconds
        self._access = access
        self._headers = dict(access.headers)
        self._description: ModelDescription | None = None
        self._probe: asyncio.Task[bool] | None = None  # the last one; one at a time serves all who want to know
        self._probed = -math.inf  # when it was begun, by the event loop's clock
        self._described = 0.0  # when, by the event loop's clock
        self._suspects: set[str] = set()  # models that Triton calls ready and whose process was found dead or silent

    @cached_property
    def _client(self) -> InferenceServerClient:
        # A channel belongs to the event loop that runs when it is made: not before the first request.
        return InferenceServerClient(
            self._url,
            ssl=self._access.tls,
            root_certificates=self._access.root_certificates,
            private_key=self._access.private_key,
            certificate_chain=self._access.certificate,
            channel_args=_CHANNEL,
        )

    async def paint(self, request: ModelRequest, *, request_id: str, on_progress: OnProgress | None) -> Picture:
        request, warnings = await self._supported(request)
        call = self._client.stream_infer(_requests(request, request_id), headers=self._headers)
        try:
            async with self._while_alive():
                picture = await _last(call, on_progress)
            await _ended(call)
        except grpc.RpcError as error:
            message = error.details() or ""
            self._suspect(message)
            raise error_of(error.code().name, message) from error
        except GatewayError as error:
            self._suspect(str(error))
            raise
        finally:
            call.cancel()
        return replace(picture, warnings=(*warnings, *picture.warnings))

    async def missing(self, models: Sequence[str]) -> list[str]:
        known = self._description is not None
        missing = await self._not_ready(models or needed(self.descriptions()))
        if not (models or missing or known):
            with suppress(GatewayError):
                missing = await self._not_ready(needed([await self.describe()]))
        if missing:
            self._description = None  # another model may be served next
        return missing

    async def _not_ready(self, models: Sequence[str]) -> list[str]:
        ready = await asyncio.gather(*(self._ready(model) for model in models))
        return [model for model, is_ready in zip(models, ready, strict=True) if not is_ready]

    async def describe(self) -> ModelDescription:
        now = asyncio.get_running_loop().time()
        if self._description is None or now >= self._described + _DESCRIBED_SECONDS:
            try:
                self._description, self._described = await self._ask(), now
            except InferenceServerException as error:
                if self._description is None:
                    raise ModelUnavailableError(f"no description of the model: {error.message()}") from error
        return self._description

    def samplers(self) -> tuple[str, ...] | None:
        return (self._description.samplers or None) if self._description is not None else None

    def descriptions(self) -> tuple[ModelDescription, ...]:
        return () if self._description is None else (self._description,)

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        await self._client.close()

    async def _ask(self) -> ModelDescription:
        wait = self._silence
        metadata, config = await asyncio.gather(
            self._client.get_model_metadata(tensors.MODEL, headers=self._headers, client_timeout=wait),
            self._client.get_model_config(tensors.MODEL, headers=self._headers, client_timeout=wait),
        )
        parameters = {name: value.string_value for name, value in config.config.parameters.items()}
        return ModelDescription(frozenset(tensor.name for tensor in metadata.inputs), parameters)

    async def _supported(self, request: ModelRequest) -> tuple[ModelRequest, list[dict[str, str]]]:
        """The request without what the served model does not know, and a warning of that."""
        inputs = (await self.describe()).inputs if tensors.newer_inputs(request) else frozenset()
        return tensors.supported(request, inputs)

    async def _ready(self, model: str) -> bool:
        try:
            if not await self._client.is_model_ready(model, headers=self._headers):
                return False
            if model in self._suspects:
                return await self._alive(model, _SUSPECT_SECONDS)
        except (InferenceServerException, grpc.RpcError):
            return False
        if model == tensors.MODEL:
            self._probe_now_and_then()
        return True

    def _probe_now_and_then(self) -> None:
        """Begin to probe the model where nobody has for a while: whoever asks next is told what was found.

        It has as long as under a request, and nobody waits for it. Networks are not probed: Python ones would fail on
        the smallest tensors, which an alert counts, and for the others Triton itself refuses them.
        """
        if asyncio.get_running_loop().time() >= self._probed + _PROBE_SECONDS:
            self._probing()

    def _probing(self) -> asyncio.Task[bool]:
        """The probe of the model that is under way, or a new one."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._lives())
            self._probed = asyncio.get_running_loop().time()
        return self._probe

    async def _lives(self) -> bool:
        """Whether the model's process is neither dead nor silent; of a Triton that is away nothing is known."""
        try:
            return await self._alive(tensors.MODEL, _HUNG_SECONDS)
        except (InferenceServerException, grpc.RpcError) as error:
            log.debug("probe failed: %s", error)
            return True

    def _suspect(self, message: str) -> None:
        self._suspects.update(DEAD.findall(message), _SILENT.findall(message))

    async def _alive(self, model: str, seconds: float) -> bool:
        """Whether a model's process refuses tensors that are too small, within so many seconds.

        Of a model whose process has just died Triton may not even tell the metadata.
        """
        call = None
        try:
            async with asyncio.timeout(seconds):
                metadata = await self._client.get_model_metadata(model, headers=self._headers)
                inputs = [_smallest_input(tensor) for tensor in metadata.inputs]
                call = self._client.stream_infer(_once({"model_name": model, "inputs": inputs}), headers=self._headers)
                alive = await _answers(call)
            if alive:
                self._suspects.discard(model)
                await _ended(call)
                return True
        except TimeoutError:
            log.warning("%s: %s says nothing for %g s", self._url, model, seconds)
        finally:
            if call is not None:
                call.cancel()
        self._suspects.add(model)
        return False

    @asynccontextmanager
    async def _while_alive(self) -> AsyncIterator[None]:
        """Run the body as long as Triton answers pings and the model lives. Raises ModelUnavailableError.

        A server that is killed closes its connections; one that hangs, or whose machine is gone, does not. Nor does
        Triton end the streams of a Python model whose process has died.
        """
        try:
            async with asyncio.timeout(self._silence) as patience:
                watching = [asyncio.create_task(watch(patience)) for watch in (self._ping, self._watch)]
                try:
                    yield
                finally:
                    for task in watching:
                        task.cancel()
        except TimeoutError:
            dead = tensors.MODEL in self._suspects
            silent = f"from {tensors.MODEL}" if dead else f"for {self._silence:g} s"
            raise ModelUnavailableError(f"no sign of life {silent}") from None

    async def _ping(self, patience: asyncio.Timeout) -> None:
        while True:
            await asyncio.sleep(_PING_SECONDS)
            try:
                await self._client.is_server_live(headers=self._headers, client_timeout=self._silence)
                now = asyncio.get_running_loop().time()
                if not patience.expired() and (patience.when() or now) > now:  # not where the other watch has ended it
                    patience.reschedule(now + self._silence)
            except InferenceServerException as error:
                log.debug("ping failed: %s", error)

    async def _watch(self, patience: asyncio.Timeout) -> None:
        """Let patience end once the model's process is dead or hangs; one probe at a time serves all requests."""
        while True:
            await asyncio.sleep(_PROBE_SECONDS)
            alive = await asyncio.shield(self._probing())
            if not alive and not patience.expired():
                patience.reschedule(asyncio.get_running_loop().time())
                return


def _requests(request: ModelRequest, request_id: str) -> AsyncIterator[dict[str, Any]]:
    return _once(
        {
            "model_name": tensors.MODEL,
            "inputs": infer_inputs(request),
            "request_id": request_id,
            "parameters": dict(NAMED_CODES),
        }
    )


async def _once(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield request


def _smallest_input(metadata: Any) -> InferInput:
    """Zeros, or empty texts, of 1 in each dimension that is left open."""
    shape = [max(int(side), 1) for side in metadata.shape]
    array = (
        np.full(shape, b"", object)
        if metadata.datatype == "BYTES"
        else np.zeros(shape, triton_to_np_dtype(metadata.datatype))
    )
    tensor = InferInput(metadata.name, shape, metadata.datatype)
    tensor.set_data_from_numpy(array)
    return tensor


async def _last(
    call: AsyncIterator[tuple[InferResult | None, InferenceServerException | None]], on_progress: OnProgress | None
) -> Picture:
    """Follow a stream to its picture."""
    async for result, error in call:
        if result is None:
            await _ended(call)
            raise _error(triton_errors.of_text(str(error)))
        update = tensors.from_tensors(outputs(result))
        if isinstance(update, Picture):
            return update
        if on_progress is not None:
            await on_progress(update)
    raise ModelFailedError("the stream ended without a picture")


async def _answers(call: AsyncIterator[tuple[InferResult | None, InferenceServerException | None]]) -> bool:
    """Whether a stream says anything but that the model's process is dead."""
    async for _, error in call:
        return error is None or not DEAD.search(str(error))
    return False


async def _ended(call: AsyncIterator[Any]) -> None:
    """Let Triton end a stream that has given its last answer: of one that is cancelled before, it keeps some 0.1 MB."""
    try:
        async with asyncio.timeout(_END_SECONDS):
            async for _ in call:
                pass
    except (TimeoutError, grpc.RpcError) as error:
        log.warning("a stream did not end after its last answer: %s", type(error).__name__)
