"""A client straight against Triton's gRPC endpoint, without the gateway; needs `tritonclient[grpc]`."""

from __future__ import annotations

import queue
import re
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import InferenceServerException

from multsd_client import pictures, replay, tensors
from multsd_client.errors import (
    DeadlineExceededError,
    GenerationFailedError,
    InvalidRequestError,
    MultsdError,
    ProtocolError,
    ServiceUnavailableError,
)
from multsd_client.fields import json_parameters, note_of_message, note_of_warning
from multsd_client.protocol import OnProgress
from multsd_client.request import GenerationRequest
from multsd_client.result import GenerationResult
from multsd_client.tensors import ModelRequest, Picture, Progress

# The model then begins its errors with the code's name. Without it a stream's errors are texts without a code; with
# Triton's own header `triton_grpc_error` it ends the stream itself, and writes an error of its own into its log.
NAMED_CODES: Mapping[str, Any] = {"name_error_codes": True}

_CODE = re.compile(r"([A-Z_]{3,40}): (.*)", re.DOTALL)

CALLBACK_S = 5.0

_MAX_MESSAGE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def split_code(message: str) -> tuple[str, str]:
    """The code's name and the text of a model's error; "UNKNOWN" where it names none."""
    match = _CODE.fullmatch(message)
    return (match[1], match[2]) if match else ("UNKNOWN", message)


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
    """A request in the model's terms. Raises ValueError: a box outside of the canvas, bytes that are no image."""
    masks = [region.mask_array(request.width, request.height) for region in request.regions]
    return ModelRequest(
        prompts=(request.prompt, *(region.prompt for region in request.regions)),
        negative_prompts=(request.negative_prompt, *map(request.negative_of, request.regions)),
        masks=np.stack(masks) if masks else None,
        height=request.height,
        width=request.width,
        num_inference_steps=request.num_inference_steps,
        bootstrapping=request.bootstrapping,
        guidance_scale=request.guidance_scale,
        seed=request.seed,
        scheduler=request.scheduler,
        view_stride=request.view_stride,
        progress=progress,
    )


class TritonClient:
    """Blocking client of the served model `multidiffusion`; a context manager. One request at a time.

    url: host:port. timeout: seconds without a sign of life from the model. tls: whether to encrypt, with the system's
    authorities or those of the PEM file root_certificates. headers: gRPC metadata, such as an authorization.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 600.0,
        tls: bool = False,
        root_certificates: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._url = url
        self._timeout = timeout
        self._headers = dict(headers or {})
        self._client = InferenceServerClient(
            url, ssl=tls, root_certificates=root_certificates, channel_args=_MAX_MESSAGE
        )

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
        """Whether the model would take a request now. Raises ServiceUnavailableError when nobody answers."""
        try:
            return bool(self._client.is_model_ready(tensors.MODEL, headers=self._headers))
        except InferenceServerException as error:
            raise _error_of(error, self._url) from None

    def generate(
        self, request: GenerationRequest, *, on_progress: OnProgress | None = None, request_id: str | None = None
    ) -> GenerationResult:
        """Paint one picture; a JPEG unless the request says otherwise. preview_every and deadline_s are not sent.

        Raises MultsdError, and ValueError as `model_request` does.
        """
        asked = model_request(request, progress=on_progress is not None)
        request_id = request_id or uuid.uuid4().hex
        return _result(asked, self._paint(asked, on_progress, request_id), request, request_id)

    def _paint(self, request: ModelRequest, on_progress: OnProgress | None, request_id: str) -> Picture:
        answers: queue.SimpleQueue[tuple[InferResult | None, InferenceServerException | None]] = queue.SimpleQueue()
        self._client.start_stream(callback=lambda result, error: answers.put((result, error)), headers=self._headers)
        try:
            try:
                self._client.async_stream_infer(
                    tensors.MODEL, infer_inputs(request), request_id=request_id, parameters=dict(NAMED_CODES)
                )
            except InferenceServerException as ended:  # already; why, the callback was told
                _, reason = answers.get(timeout=CALLBACK_S)
                raise _error_of(reason or ended, self._url) from None
            while True:
                result, error = answers.get(timeout=self._timeout)
                if result is None:
                    raise _error_of(error, self._url)
                update = tensors.from_tensors(outputs(result))
                if isinstance(update, Picture):
                    return update
                if on_progress is not None and isinstance(update, Progress):
                    on_progress(update)
        except queue.Empty:
            raise DeadlineExceededError(f"{self._url}: no reply in time", request_id=request_id) from None
        except ValueError as error:
            raise ProtocolError(str(error), request_id=request_id) from error
        finally:
            self._client.stop_stream(cancel_requests=True)


def _result(asked: ModelRequest, picture: Picture, request: GenerationRequest, request_id: str) -> GenerationResult:
    output_format = request.output_format or "jpeg"
    if output_format not in pictures.MEDIA_TYPES:
        raise ValueError(f"output_format: expected {', '.join(pictures.MEDIA_TYPES)}, found {output_format!r}")
    try:
        text = replay.to_text(replay.record(asked, picture, output_format=output_format, quality=request.quality))
        image = pictures.encode(picture.image, output_format, quality=request.quality, text=text)
    except pictures.TextTooLongError:
        image = pictures.encode(picture.image, output_format, quality=request.quality)
    report = picture.report
    return GenerationResult(
        image=image,
        media_type=pictures.MEDIA_TYPES[output_format],
        seed=report["parameters"]["seed"],
        warnings=tuple(map(note_of_warning, picture.warnings)),
        parameters=json_parameters(report["parameters"]),
        timings=report["seconds"],
        unet_rows=report["unet_rows"],
        unet_rows_reference=report["unet_rows_reference"],
        checkpoint=report["checkpoint"],
        request_id=request_id,
    )


def _error_of(error: InferenceServerException | None, url: str) -> MultsdError:
    """The exception for an error of the stream: the model's own, or the connection's."""
    if error is None:
        return ProtocolError(f"{url}: expected a response, found none")
    status = str(error.status() or "").removeprefix("StatusCode.")
    code, message = (status, error.message()) if status else split_code(error.message())
    if code in ("INVALID_ARG", "INVALID_ARGUMENT"):
        return InvalidRequestError(message, errors=[note_of_message(message)])
    if code in ("UNAVAILABLE", "NOT_FOUND") or "unknown model" in message:
        return ServiceUnavailableError(f"{url}: {message}")
    if code in ("CANCELLED", "DEADLINE_EXCEEDED"):
        return DeadlineExceededError(f"{url}: {message}")
    return GenerationFailedError(message)
