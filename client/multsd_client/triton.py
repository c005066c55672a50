"""A client straight against Triton's gRPC endpoint, without the gateway; needs `tritonclient[grpc]`."""

from __future__ import annotations

import math
import queue
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import InferenceServerException

from multsd_client import pictures, tensors, triton_errors
from multsd_client.encoding import Output, encode
from multsd_client.errors import (
    DeadlineExceededError,
    GenerationFailedError,
    InvalidRequestError,
    MultsdError,
    ProtocolError,
    ServiceUnavailableError,
)
from multsd_client.fields import json_parameters, note_of_message, note_of_warning
from multsd_client.headers import metadata
from multsd_client.listening import Listener, OnPreview, OnProgress, OnQueued
from multsd_client.request import GenerationRequest
from multsd_client.result import GenerationResult
from multsd_client.retries import Attempts
from multsd_client.shapes import MAX_PIXELS, Mask
from multsd_client.tensors import ModelRequest, Picture
from multsd_client.triton_errors import Meaning

# The model then begins its errors with the code's name. Without it a stream's errors are texts without a code; with
# Triton's own header `triton_grpc_error` it ends the stream itself, and writes an error of its own into its log.
NAMED_CODES: Mapping[str, Any] = {"name_error_codes": True}

CALLBACK_S = 5.0
END_S = 2.0  # after its last answer, in which Triton ends a stream

_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Meanwhile every attempt fails at once; gRPC's own go up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A pod that comes back has another address: by itself gRPC would ask for it twice a minute.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
]


def infer_inputs(request: ModelRequest) -> list[InferInput]:
    """A request's tensors as Triton's clients send them."""
    return [infer_input(name, array) for name, array in tensors.to_tensors(request).items()]


def infer_input(name: str, array: tensors.Array) -> InferInput:
    """One tensor as Triton's clients send it."""
    tensor = InferInput(name, list(array.shape), tensors.spec_of(name).datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def outputs(result: InferResult) -> Mapping[str, np.ndarray[Any, Any]]:
    """A response's tensors by name."""
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def model_request(request: GenerationRequest, *, progress: bool) -> ModelRequest:
    """A request in the model's terms.

    Raises ValueError, which names the mask: a box outside of the canvas, bytes that are no image or one too large to
    decode, more pixels than a message holds.
    """
    return ModelRequest(
        prompts=(request.prompt, *(region.prompt for region in request.regions)),
        negative_prompts=(request.negative_prompt, *map(request.negative_of, request.regions)),
        masks=_masks(request),
        height=request.height,
        width=request.width,
        num_inference_steps=request.num_inference_steps,
        bootstrapping=request.bootstrapping,
        guidance_scale=request.guidance_scale,
        seed=request.seed,
        scheduler=request.scheduler,
        view_stride=request.view_stride,
        preview_every=request.preview_every if progress else None,
        deadline_s=request.deadline_s,
        progress=progress,
    )


def _masks(request: GenerationRequest) -> Mask | None:
    """The masks of a request, (R - 1, height, width) uint8 of 0 and 1, None for no region. Raises ValueError."""
    size = (len(request.regions), request.height, request.width)
    if math.prod(size) > MAX_PIXELS:  # before any of them is drawn
        raise ValueError(f"masks: expected at most {MAX_PIXELS} pixels in all, found {' x '.join(map(str, size))}")
    masks = []
    for number, region in enumerate(request.regions):
        try:
            masks.append(region.mask_array(request.width, request.height))
        except ValueError as error:
            raise ValueError(f"masks[{number}]: {error}") from None
    return np.stack(masks) if masks else None


class TritonClient:
    """Blocking client of the served model `multidiffusion`; a context manager. One request at a time.

    url: host:port. timeout: seconds without a sign of life from the model. retries: how often a request is tried again
    while the service is not there or full, until work on it is told of (where no callback listens, nothing is told
    before the picture); its deadline_s holds for all attempts together.
    embed: whether pictures carry their prompts, masks and parameters, for `multsd replay`. tls: whether to encrypt,
    with the system's authorities or those of the PEM file root_certificates. headers: gRPC metadata, such as an
    authorization. Raises ValueError for headers that gRPC cannot carry.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 600.0,
        retries: int = 0,
        embed: bool = True,
        tls: bool = False,
        root_certificates: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._url = url
        self._timeout = timeout
        self._retries = retries
        self._embed = embed
        self._headers = metadata(headers or {})
        self._client = InferenceServerClient(url, ssl=tls, root_certificates=root_certificates, channel_args=_CHANNEL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def ready(self) -> bool:
        """Whether the model would take a request now. Raises ServiceUnavailableError when nobody answers in time."""
        try:
            return bool(self._client.is_model_ready(tensors.MODEL, headers=self._headers, client_timeout=self._timeout))
        except InferenceServerException as error:
            told = _error_of(error, self._url)
            raise ServiceUnavailableError(str(told)) if isinstance(told, DeadlineExceededError) else told from None

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_queued: OnQueued | None = None,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
        request_id: str | None = None,
    ) -> GenerationResult:
        """Paint one picture; a JPEG unless the request says otherwise. The callbacks are those of a Listener.

        Raises MultsdError; ValueError as `model_request` does, for what a tensor cannot hold, and for an output_format
        that is none.
        """
        listener = Listener(on_queued=on_queued, on_progress=on_progress, on_preview=on_preview)
        output = _output(request, embed=self._embed)
        asked = model_request(request, progress=listener.hears)
        request_id = request_id or uuid.uuid4().hex
        attempts = Attempts(self._retries, asked.deadline_s)
        while True:
            try:
                return _result(asked, self._attempt(asked, listener, request_id, attempts.end), output, request_id)
            except MultsdError as error:
                if (seconds := attempts.pause(error)) is None:
                    raise
            time.sleep(seconds)

    def _attempt(self, request: ModelRequest, listener: Listener, request_id: str, end: float) -> Picture:
        """Paint once. end: the deadline on the monotonic clock, seconds."""
        if end < math.inf:
            left = end - time.monotonic()
            if left <= 0:
                raise DeadlineExceededError(f"{self._url}: no reply in time", request_id=request_id)
            request = replace(request, deadline_s=left)
        request, warnings = self._supported(request, request_id, end)
        picture = self._paint(request, listener, request_id, end)
        return replace(picture, warnings=(*warnings, *picture.warnings))

    def _supported(
        self, request: ModelRequest, request_id: str, end: float
    ) -> tuple[ModelRequest, list[dict[str, str]]]:
        """The request without what the served model does not know, and warnings of that."""
        if not tensors.newer_inputs(request):
            return request, []
        try:
            metadata = self._client.get_model_metadata(
                tensors.MODEL, headers=self._headers, client_timeout=self._patience(end)
            )
        except InferenceServerException as error:
            raise _error_of(error, self._url, request_id=request_id) from None
        return tensors.supported(request, {tensor.name for tensor in metadata.inputs})

    def _patience(self, end: float) -> float:
        """Seconds until the model has been silent for too long."""
        return max(min(self._timeout, end - time.monotonic()), 0.0)

    def _paint(self, request: ModelRequest, listener: Listener, request_id: str, end: float) -> Picture:
        answers: queue.SimpleQueue[tuple[InferResult | None, InferenceServerException | None]] = queue.SimpleQueue()
        inputs, answered, whole = infer_inputs(request), False, False
        self._client.start_stream(callback=lambda result, error: answers.put((result, error)), headers=self._headers)
        try:
            try:
                self._client.async_stream_infer(
                    tensors.MODEL, inputs, request_id=request_id, parameters=dict(NAMED_CODES)
                )
            except InferenceServerException as ended:  # already; why, the callback was told
                _, reason = answers.get(timeout=CALLBACK_S)
                raise _error_of(reason or ended, self._url, request_id=request_id) from None
            while True:
                result, error = answers.get(timeout=self._patience(end))
                if result is None:
                    whole = True
                    raise _error_of(error, self._url, request_id=request_id, answered=answered)
                update = tensors.from_tensors(outputs(result))
                if isinstance(update, Picture):
                    whole = True
                    return update
                answered = answered or tensors.is_work(update)
                listener.tell(update)
        except queue.Empty:
            raise DeadlineExceededError(f"{self._url}: no reply in time", request_id=request_id) from None
        except ValueError as error:
            raise ProtocolError(str(error), request_id=request_id) from error
        finally:
            self._stop(whole=whole)

    def _stop(self, *, whole: bool) -> None:
        """End the stream. whole: it has given its last answer.

        Then Triton ends it, unless it hangs. Of a stream that is cancelled just then it keeps some 0.1 MB and the
        model, so that its own stop takes all of --exit-timeout-secs.
        """
        if not whole:
            self._client.stop_stream(cancel_requests=True)
            return
        cancel = threading.Timer(END_S, self._client.stop_stream, kwargs={"cancel_requests": True})
        cancel.start()
        try:
            self._client.stop_stream()
        finally:
            cancel.cancel()
            cancel.join()  # no later stream is cancelled
            self._client.stop_stream(cancel_requests=True)  # what an interrupt has left


def _output(request: GenerationRequest, *, embed: bool) -> Output:
    """How the picture is to be encoded. Raises ValueError for a format that is none."""
    output_format = request.output_format or "jpeg"
    if output_format not in pictures.MEDIA_TYPES:
        raise ValueError(f"output_format: expected {', '.join(pictures.MEDIA_TYPES)}, found {output_format!r}")
    return Output(output_format=output_format, quality=request.quality, embed=embed)


def _result(asked: ModelRequest, picture: Picture, output: Output, request_id: str) -> GenerationResult:
    image, notes = encode(asked, picture, output)
    report = picture.report
    return GenerationResult(
        image=image,
        media_type=pictures.MEDIA_TYPES[output.output_format],
        seed=report["parameters"]["seed"],
        warnings=(*map(note_of_warning, picture.warnings), *notes),
        parameters=json_parameters(report["parameters"]),
        timings=report["seconds"],
        unet_rows=report["unet_rows"],
        unet_rows_reference=report["unet_rows_reference"],
        checkpoint=report["checkpoint"],
        request_id=request_id,
    )


def _error_of(
    error: InferenceServerException | None, url: str, *, request_id: str | None = None, answered: bool = False
) -> MultsdError:
    """The exception for an error of the stream: the model's own, or the connection's. answered: see the exception."""
    if error is None:
        return ProtocolError(f"{url}: expected a response, found none", request_id=request_id)
    status, text = str(error.status() or "").removeprefix("StatusCode."), error.message() or ""
    told = triton_errors.of_status(status, text) if status else triton_errors.of_text(text)
    message = told.message
    match told.meaning:
        case Meaning.INVALID:
            return InvalidRequestError(message, errors=[note_of_message(message)], request_id=request_id)
        case Meaning.NOT_NOW:
            return ServiceUnavailableError(
                f"{url}: {message}", retry_after=told.retry_after, request_id=request_id, answered=answered
            )
        case Meaning.LATE:
            return DeadlineExceededError(f"{url}: {message}", request_id=request_id)
        case Meaning.FAILED:
            return GenerationFailedError(message, request_id=request_id)
