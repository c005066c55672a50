"""The painter against a small gRPC server that speaks Triton's protocol, over a real connection."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from multsd_client import triton
from multsd_client.tensors import ModelRequest, Picture, Progress, Update
from multsd_gateway import inference
from multsd_gateway.errors import (
    DeadlineExceededError,
    GatewayError,
    InvalidRequestError,
    ModelFailedError,
    ModelFullError,
    ModelUnavailableError,
)
from multsd_gateway.inference import PLAIN, Access, TritonPainter, error_of
from multsd_gateway.triton import triton_access
from tests.unit.gateway.fakes import settings

REQUEST = ModelRequest(prompts=("a", "b"), masks=np.ones((1, 2, 3), np.uint8), height=2, width=3, seed=2**64 - 1)


def _response(tensors: dict[str, tuple[str, list[int], bytes]]) -> Any:
    response = service_pb2.ModelInferResponse()
    for name, (datatype, shape, raw) in tensors.items():
        response.outputs.add(name=name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(raw)
    return service_pb2.ModelStreamInferResponse(infer_response=response)


def _text(*values: str) -> bytes:
    return b"".join(len(value.encode()).to_bytes(4, "little") + value.encode() for value in values)


PROGRESS = _response({"progress_steps": ("INT32", [2], np.array([1, 2], np.int32).tobytes())})
FINAL = _response(
    {
        "image": ("UINT8", [2, 3, 3], bytes(range(18))),
        "warnings": ("BYTES", [1], _text(json.dumps({"field": "prompt[0]", "message": "cut"}))),
        "report": ("BYTES", [1], _text('{"unet_rows": 3}')),
    }
)
UNKNOWN_MODEL = service_pb2.ModelStreamInferResponse(
    error_message="Request for unknown model: 'multidiffusion' is not found"
)


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers a stream, then ends it after a picture or an error, or with `code`, or else waits for ever."""

    responses: list[Any] = field(default_factory=lambda: [PROGRESS, FINAL])
    code: grpc.StatusCode | None = None
    hangs: bool = False
    ends: bool = True
    ended: bool = False
    loaded: tuple[str, ...] = ()
    requests: list[Any] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    inputs: tuple[str, ...] = ("prompt", "height", "width")
    parameters: dict[str, str] = field(default_factory=dict)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        async for request in requests:
            self.requests.append(request)
            break
        for response in self.responses:
            yield response
        if self.code is not None:
            await context.abort(self.code, "seed: expected a, found b")
        if self.ends and (self.responses[-1] is FINAL or self.responses[-1].error_message):
            self.ended = True
            return
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def ServerLive(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        if self.hangs:
            await asyncio.sleep(3600)
        return service_pb2.ServerLiveResponse(live=True)

    async def ModelReady(self, request: Any, _context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name in self.loaded)

    async def ModelMetadata(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        tensors = [service_pb2.ModelMetadataResponse.TensorMetadata(name=name) for name in self.inputs]
        return service_pb2.ModelMetadataResponse(inputs=tensors)

    async def ModelConfig(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        response = service_pb2.ModelConfigResponse()
        for name, value in self.parameters.items():
            response.config.parameters[name].string_value = value
        return response


@asynccontextmanager
async def _connected(
    triton: FakeTriton,
    *,
    silence_seconds: float = 4.0,
    access: Access = PLAIN,
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[TritonPainter]:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = (
        server.add_insecure_port("127.0.0.1:0")
        if credentials is None
        else server.add_secure_port("127.0.0.1:0", credentials)
    )
    await server.start()
    painter = TritonPainter(f"127.0.0.1:{port}", silence_seconds=silence_seconds, access=access)
    try:
        yield painter
    finally:
        await painter.close()
        await server.stop(grace=0)


async def _paint(painter: TritonPainter, told: list[Update] | None = None) -> Picture:
    async def on_progress(progress: Update) -> None:
        if told is not None:
            told.append(progress)

    return await painter.paint(REQUEST, request_id="job-7", on_progress=None if told is None else on_progress)


def _with(triton: FakeTriton, use: Callable[[TritonPainter], Awaitable[Any]], **options: Any) -> Any:
    async def scenario() -> Any:
        async with _connected(triton, **options) as painter:
            return await asyncio.wait_for(use(painter), timeout=10)

    return asyncio.run(scenario())


def test_a_picture_and_its_progress_come_through_and_triton_ends_the_stream() -> None:
    triton = FakeTriton()
    told: list[Update] = []

    picture = _with(triton, lambda painter: _paint(painter, told))

    assert triton.ended
    assert not triton.cancelled.is_set()
    assert picture.image.ravel().tolist() == list(range(18))
    assert picture.image.shape == (2, 3, 3)
    assert picture.warnings == ({"field": "prompt[0]", "message": "cut"},)
    assert picture.report == {"unet_rows": 3}
    assert told == [Progress(1, 2)]


def test_a_model_is_asked_again_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    triton = FakeTriton(parameters={"max_steps": "50"})

    async def use(painter: TritonPainter) -> list[int]:
        told = []
        for steps in ("50", "60"):
            triton.parameters = {"max_steps": steps}
            told.append((await painter.describe()).number("max_steps", 0))
        monkeypatch.setattr("multsd_gateway.inference._DESCRIBED_SECONDS", 0.0)
        told.append((await painter.describe()).number("max_steps", 0))
        return told

    assert _with(triton, use) == [50, 50, 60]


def test_triton_ends_the_stream_of_an_error_too() -> None:
    """Of streams that are cancelled before it keeps some 0.1 MB each, the more the busier it is."""
    triton = FakeTriton(responses=[service_pb2.ModelStreamInferResponse(error_message="INVALID_ARG: seed: expected a")])
    with pytest.raises(InvalidRequestError, match="seed: expected a"):
        _with(triton, _paint)
    assert triton.ended
    assert not triton.cancelled.is_set()


def test_a_stream_that_does_not_end_is_closed_and_its_picture_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multsd_gateway.inference._END_SECONDS", 0.2)
    triton = FakeTriton(ends=False)

    async def use(painter: TritonPainter) -> Picture:
        picture = await _paint(painter)
        await asyncio.wait_for(triton.cancelled.wait(), timeout=5)
        return picture

    assert _with(triton, use).image.shape == (2, 3, 3)


def test_the_request_carries_id_model_and_tensors() -> None:
    triton = FakeTriton()
    _with(triton, _paint)

    [request] = triton.requests
    assert (request.id, request.model_name) == ("job-7", "multidiffusion")
    assert {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in request.inputs} == {
        "prompt": ("BYTES", [2]),
        "masks": ("UINT8", [1, 2, 3]),
        "height": ("INT32", [1]),
        "width": ("INT32", [1]),
        "seed": ("UINT64", [1]),
    }
    assert request.parameters["name_error_codes"].bool_param
    assert "triton_grpc_error" not in triton.metadata, "Triton would end the stream, and write an error into its log"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidRequestError),
        ("UNAVAILABLE", ModelUnavailableError),
        ("NOT_FOUND", ModelUnavailableError),
        ("RESOURCE_EXHAUSTED", ModelUnavailableError),
        ("CANCELLED", DeadlineExceededError),
        ("DEADLINE_EXCEEDED", DeadlineExceededError),
        ("INTERNAL", ModelFailedError),
        ("UNKNOWN", ModelFailedError),
    ],
)
def test_a_status_of_the_stream_becomes_an_exception(code: str, kind: type[GatewayError]) -> None:
    """Fault 14: every failure was HTTP 400 with the exception's text."""
    with pytest.raises(kind):
        _with(FakeTriton(responses=[], code=grpc.StatusCode[code]), _paint)
    assert type(error_of(code, "x")) is kind


def test_a_connection_that_ends_while_a_request_is_sent_is_a_triton_that_is_away() -> None:
    """gRPC loses the status then; another Triton, or a later try, may do."""
    assert type(error_of("INTERNAL", "Internal error from Core")) is ModelUnavailableError


def test_a_full_queue_tells_when_to_come_again_and_a_hopeless_deadline_what_it_is_short_of() -> None:
    full = error_of("UNAVAILABLE", "expected at most 60000 waiting rows, found 61000: try again in 42 s")
    late = error_of("DEADLINE_EXCEEDED", "deadline_s: expected 80 s at least, found 3")

    assert full.retry_after == 42
    assert str(late) == "the picture cannot be ready in time: expected 80 s at least, found 3"


def test_a_failure_is_told_by_its_first_line_alone() -> None:
    error = error_of("INTERNAL", "vae_decoder: out of memory\n\nAt:\n  /models/vae_decoder/1/model.py(9): execute\n")
    assert str(error) == "vae_decoder: out of memory"
    assert len(str(error_of("INTERNAL", "x" * 5000))) < 400


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("INVALID_ARG: seed: expected a, found b", InvalidRequestError, "seed: expected a, found b"),
        (
            "UNAVAILABLE: expected at most 40 requests, found more",
            ModelUnavailableError,
            "expected at most 40 requests",
        ),
        ("CANCELLED: cancelled by the client", DeadlineExceededError, "cancelled by the client"),
        ("INTERNAL: vae_decoder: out of memory", ModelFailedError, "vae_decoder: out of memory"),
        (
            "UNAVAILABLE: 8 requests are running; try again in 3 s",
            ModelFullError,
            "8 requests are running; try again in 3",
        ),
        ("Exceeds maximum queue size", ModelUnavailableError, "Exceeds maximum queue size"),
        ("something without a code", ModelFailedError, "something without a code"),
    ],
)
def test_an_error_in_the_stream_names_its_code(text: str, kind: type[GatewayError], message: str) -> None:
    with pytest.raises(kind, match=message):
        _with(FakeTriton(responses=[service_pb2.ModelStreamInferResponse(error_message=text)]), _paint)


def test_newer_inputs_are_sent_to_a_model_that_knows_them() -> None:
    triton = FakeTriton(inputs=("prompt", "preview_every", "deadline_s"))
    request = replace(REQUEST, preview_every=5, deadline_s=30.0)

    picture = _with(triton, lambda painter: painter.paint(request, request_id="", on_progress=None))

    assert {"preview_every", "deadline_s"} <= {tensor.name for tensor in triton.requests[0].inputs}
    assert len(picture.warnings) == 1


def test_an_older_model_is_asked_without_them_and_previews_get_a_warning() -> None:
    triton = FakeTriton()
    request = replace(REQUEST, preview_every=5, deadline_s=30.0)

    picture = _with(triton, lambda painter: painter.paint(request, request_id="", on_progress=None))

    assert not {"preview_every", "deadline_s"} & {tensor.name for tensor in triton.requests[0].inputs}
    assert picture.warnings[0] == {
        "field": "preview_every",
        "message": "not used, the served model makes no previews",
    }
    assert len(picture.warnings) == 2


def test_the_model_describes_itself() -> None:
    description = _with(FakeTriton(parameters={"max_pixels": "9"}), lambda painter: painter.describe())

    assert description.inputs == {"prompt", "height", "width"}
    assert description.parameters == {"max_pixels": "9"}


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of this machine's and its key, signed by itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed here")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    return certificate, key


def test_triton_is_spoken_to_over_tls_with_a_token(tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    (tmp_path / "token").write_text("secret\n")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    trusting: dict[str, Any] = {
        "triton_tls": True,
        "triton_root_certificates": certificate,
        "triton_token_file": tmp_path / "token",
    }
    triton = FakeTriton()

    _with(triton, _paint, access=triton_access(settings(**trusting)), credentials=credentials)
    assert triton.metadata["authorization"] == "Bearer secret"

    access = triton_access(settings(**trusting, **{"triton_token_header": "triton-grpc-protocol-key"}))
    _with(triton, _paint, access=access, credentials=credentials)
    assert triton.metadata["triton-grpc-protocol-key"] == "secret"

    for access in (PLAIN, Access(tls=True)):
        with pytest.raises(ModelUnavailableError):
            _with(triton, _paint, access=access, credentials=credentials)


def test_a_token_that_no_header_can_carry_ends_the_start_without_being_told(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\nother")
    with pytest.raises(ValueError, match=r"^triton_token_file: expected printable ASCII .* on one line, found others$"):
        triton_access(settings(triton_token_file=tmp_path / "token"))


@pytest.mark.parametrize("channel", [inference._CHANNEL, triton._CHANNEL], ids=["gateway", "client"])
def test_the_address_of_a_pod_that_has_come_back_is_asked_for_as_often_as_it_is_tried(
    channel: list[tuple[str, int]],
) -> None:
    """By itself gRPC asks twice a minute: a Triton at another address was found after 27 to 30 s, with this after 1."""
    options = dict(channel)
    assert options["grpc.dns_min_time_between_resolutions_ms"] <= options["grpc.max_reconnect_backoff_ms"]


def test_a_model_that_is_not_loaded_is_unavailable() -> None:
    with pytest.raises(ModelUnavailableError, match="unknown model"):
        _with(FakeTriton(responses=[UNKNOWN_MODEL]), _paint)


def test_a_server_that_is_not_there_is_unavailable_at_once() -> None:
    async def use() -> Picture:
        painter = TritonPainter("127.0.0.1:1", silence_seconds=4)
        try:
            return await asyncio.wait_for(_paint(painter), timeout=5)
        finally:
            await painter.close()

    with pytest.raises(ModelUnavailableError):
        asyncio.run(use())


def test_a_server_that_hangs_is_unavailable_after_its_silence() -> None:
    triton = FakeTriton(responses=[PROGRESS], hangs=True)

    with pytest.raises(ModelUnavailableError, match=r"no sign of life for 0\.2 s"):
        _with(triton, _paint, silence_seconds=0.2)


def test_a_slow_server_that_answers_pings_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multsd_gateway.inference._PING_SECONDS", 0.1)

    async def use(painter: TritonPainter) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_paint(painter), timeout=2.0)

    _with(FakeTriton(responses=[PROGRESS]), use, silence_seconds=1.5)


def test_cancelling_the_call_cancels_the_stream() -> None:
    triton = FakeTriton(responses=[PROGRESS])

    async def use(painter: TritonPainter) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_paint(painter), timeout=0.3)
        await asyncio.wait_for(triton.cancelled.wait(), timeout=5)

    _with(triton, use)


def test_missing_names_the_models_that_are_not_ready() -> None:
    async def use(painter: TritonPainter) -> list[str]:
        return await painter.missing(["unet", "vae_decoder"])

    assert _with(FakeTriton(loaded=("unet",)), use) == ["vae_decoder"]


BASE = ("multidiffusion", "text_encoder", "unet", "vae_decoder")


def test_where_no_models_are_named_those_are_asked_for_that_the_model_says_it_needs() -> None:
    triton = FakeTriton(loaded=BASE, parameters={"text_encoders": "text_encoder,text_encoder_2"})

    async def use(painter: TritonPainter) -> None:
        for _ in range(2):
            assert await painter.missing([]) == ["text_encoder_2"]
        triton.loaded = (*BASE, "text_encoder_2")
        assert await painter.missing([]) == []
        triton.loaded = BASE
        assert await painter.missing([]) == ["text_encoder_2"], "also once it was ready"
        assert await painter.missing(BASE) == []

    _with(triton, use)


def test_a_model_that_names_no_text_encoders_has_one() -> None:
    async def use(painter: TritonPainter) -> list[str]:
        return await painter.missing([])

    assert _with(FakeTriton(loaded=BASE), use) == []
    assert _with(FakeTriton(loaded=("multidiffusion", "unet")), use) == ["text_encoder", "vae_decoder"]


@pytest.mark.parametrize("named", [("unet", "vae_decoder"), ()])
def test_every_model_is_missing_without_a_server(named: tuple[str, ...]) -> None:
    async def use() -> list[str]:
        painter = TritonPainter("127.0.0.1:1", silence_seconds=4)
        try:
            return await painter.missing(named)
        finally:
            await painter.close()

    assert asyncio.run(use()) == list(named or BASE)
