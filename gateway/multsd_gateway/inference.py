"""Painting: the one interface to the model, and its implementation over Triton's gRPC stream."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any, Protocol

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import InferResult
from tritonclient.grpc.aio import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from multsd_client import tensors
from multsd_client.tensors import ModelRequest, Picture, Progress
from multsd_gateway.errors import (
    DeadlineExceededError,
    GatewayError,
    InvalidRequestError,
    ModelFailedError,
    ModelUnavailableError,
)
from multsd_gateway.fields import note_of_message
from multsd_gateway.wording import failure

log = logging.getLogger(__name__)

OnProgress = Callable[[Progress], Awaitable[None]]

# Errors end the stream with a gRPC status; without this header they are text without a code.
_STREAM_HEADERS = {"triton_grpc_error": "true"}

# What Triton says, still without a code, of a model that is not (or no longer) loaded.
_NOT_LOADED = ("unknown model", "is not ready", "no available versions", "unloaded")

# What Triton says of a Python model whose process has ended; it starts none again, and still calls the model ready.
_DEAD = re.compile(r"Stub process '(\w+?)(?:_\d+)+' is not healthy")

_PING_SECONDS = 1.0

_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # Also the bound of one attempt to connect.
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class Painter(Protocol):
    """Whatever runs the `multidiffusion` model."""

    async def paint(self, request: ModelRequest, *, request_id: str, on_progress: OnProgress | None) -> Picture:
        """Run one request to its end. Cancelling the call cancels the work. Raises GatewayError."""

    async def missing(self, models: Sequence[str]) -> list[str]:
        """Which of the models are not ready; all of them when the server is not."""

    async def close(self) -> None:
        """Give back what it holds."""


def error_of(code: str, message: str) -> GatewayError:
    """The gateway's exception for a status of Triton, by its gRPC name."""
    if code == "INVALID_ARGUMENT":
        return InvalidRequestError([note_of_message(message)])
    if code in ("UNAVAILABLE", "NOT_FOUND", "RESOURCE_EXHAUSTED") or _DEAD.search(message):
        return ModelUnavailableError(message)
    if code in ("CANCELLED", "DEADLINE_EXCEEDED"):
        return DeadlineExceededError(f"the model gave up: {message}")
    return ModelFailedError(failure(message))


class TritonPainter:
    """Painter over one gRPC channel, which connects again by itself."""

    def __init__(self, url: str, *, silence_seconds: float) -> None:
        self._url = url
        self._silence = silence_seconds
        self._suspects: set[str] = set()  # models that Triton calls ready and whose process was found dead

    @cached_property
    def _client(self) -> InferenceServerClient:
        # A channel belongs to the event loop that runs when it is made: not before the first request.
        return InferenceServerClient(self._url, channel_args=_CHANNEL)

    async def paint(self, request: ModelRequest, *, request_id: str, on_progress: OnProgress | None) -> Picture:
        call = self._client.stream_infer(_requests(request, request_id), headers=_STREAM_HEADERS)
        try:
            async with self._while_alive():
                return await _last(call, on_progress)
        except grpc.RpcError as error:
            message = error.details() or ""
            self._suspects.update(_DEAD.findall(message))
            raise error_of(error.code().name, message) from error
        finally:
            call.cancel()

    async def missing(self, models: Sequence[str]) -> list[str]:
        ready = await asyncio.gather(*(self._ready(model) for model in models))
        return [model for model, is_ready in zip(models, ready, strict=True) if not is_ready]

    async def close(self) -> None:
        await self._client.close()

    async def _ready(self, model: str) -> bool:
        try:
            ready = bool(await self._client.is_model_ready(model))
            return ready and (model not in self._suspects or await self._answers(model))
        except InferenceServerException:
            return False

    async def _answers(self, model: str) -> bool:
        """Whether a suspect's process is there after all, since Triton was started anew: it refuses empty tensors."""
        metadata = await self._client.get_model_metadata(model)
        inputs = [_smallest_input(tensor) for tensor in metadata.inputs]
        call = self._client.stream_infer(_once({"model_name": model, "inputs": inputs}))
        try:
            async for _, error in call:
                if error is not None and _DEAD.search(str(error)):
                    return False
                break
        except grpc.RpcError:
            return False
        finally:
            call.cancel()
        self._suspects.discard(model)
        return True

    @asynccontextmanager
    async def _while_alive(self) -> AsyncIterator[None]:
        """Run the body as long as Triton answers pings. Raises ModelUnavailableError.

        A server that is killed closes its connections; one that hangs, or whose machine is gone, does not.
        """
        try:
            async with asyncio.timeout(self._silence) as patience:
                pings = asyncio.create_task(self._ping(patience))
                try:
                    yield
                finally:
                    pings.cancel()
        except TimeoutError:
            raise ModelUnavailableError(f"no sign of life for {self._silence:g} s") from None

    async def _ping(self, patience: asyncio.Timeout) -> None:
        while True:
            try:
                await self._client.is_server_live(client_timeout=self._silence)
                if not patience.expired():
                    patience.reschedule(asyncio.get_running_loop().time() + self._silence)
            except InferenceServerException as error:
                log.debug("ping failed: %s", error)
            await asyncio.sleep(_PING_SECONDS)


def _requests(request: ModelRequest, request_id: str) -> AsyncIterator[dict[str, Any]]:
    inputs = [_infer_input(name, array) for name, array in tensors.to_tensors(request).items()]
    return _once({"model_name": tensors.MODEL, "inputs": inputs, "request_id": request_id})


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


def _infer_input(name: str, array: tensors.Array) -> InferInput:
    tensor = InferInput(name, list(array.shape), tensors.INPUTS[name].datatype)
    tensor.set_data_from_numpy(array)
    return tensor


async def _last(
    call: AsyncIterator[tuple[InferResult | None, InferenceServerException | None]], on_progress: OnProgress | None
) -> Picture:
    """Follow a stream to its picture."""
    async for result, error in call:
        if result is None:
            message = str(error)
            raise error_of("NOT_FOUND" if any(text in message for text in _NOT_LOADED) else "UNKNOWN", message)
        update = tensors.from_tensors(_outputs(result))
        if isinstance(update, Picture):
            return update
        if on_progress is not None:
            await on_progress(update)
    raise ModelFailedError("the stream ended without a picture")


def _outputs(result: InferResult) -> Mapping[str, np.ndarray[Any, Any]]:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
