"""The client straight to Triton, against a small gRPC server that speaks Triton's protocol."""

from __future__ import annotations

import io
import json
import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from multsd_client import replay, triton
from multsd_client.errors import (
    DeadlineExceededError,
    FieldNote,
    GenerationFailedError,
    InvalidRequestError,
    MultsdError,
    ServiceUnavailableError,
)
from multsd_client.request import GenerationRequest, Region
from multsd_client.result import GenerationResult
from multsd_client.shapes import Box, Polygon, RunLengths
from multsd_client.tensors import Progress, Queued
from multsd_client.triton import TritonClient

FULL = "UNAVAILABLE: 8 requests are running and 32 waiting; try again in 0 s"
REQUEST = GenerationRequest(prompt="a beach", width=2, height=3, seed=7)
KNOWN = ("prompt", "preview_every", "deadline_s")


def _response(tensors: dict[str, tuple[str, list[int], bytes]]) -> Any:
    response = service_pb2.ModelInferResponse()
    for name, (datatype, shape, raw) in tensors.items():
        response.outputs.add(name=name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(raw)
    return service_pb2.ModelStreamInferResponse(infer_response=response)


def _text(value: str) -> bytes:
    return len(value.encode()).to_bytes(4, "little") + value.encode()


QUEUED = _response({"queue_position": ("INT32", [1], np.array([3], np.int32).tobytes())})
PROGRESS = _response({"progress_steps": ("INT32", [2], np.array([1, 2], np.int32).tobytes())})
PREVIEW = _response({"preview": ("UINT8", [1, 1, 3], bytes(3))})
REPORT = {
    "parameters": {"seed": 7, "num_inference_steps": 2},
    "seconds": {"total": 1.5},
    "unet_rows": 3,
    "unet_rows_reference": 4,
    "checkpoint": {"name": "fake"},
}
PICTURE = _response(
    {
        "image": ("UINT8", [3, 2, 3], bytes(range(18))),
        "warnings": ("BYTES", [1], _text(json.dumps({"field": "prompt[0]", "message": "cut"}))),
        "report": ("BYTES", [1], _text(json.dumps(REPORT))),
    }
)
CUT = FieldNote("bg_prompt", "cut")  # the warning of every picture here


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers each stream with the next of `streams`: responses, a text for an error, a status, None to be silent.

    ready: what it says of the model; None to be silent.
    """

    streams: Sequence[Sequence[Any]] = ((PICTURE,),)
    inputs: Sequence[str] = KNOWN
    ready: bool | None = True
    requests: list[Any] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)  # whether a stream was still open when all of it was said
    over: threading.Event = field(default_factory=threading.Event)

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.requests.append(next(requests))
        for each in self.streams[len(self.requests) - 1]:
            if each is None:
                self.over.wait()
            elif isinstance(each, str):
                yield service_pb2.ModelStreamInferResponse(error_message=each)
            elif isinstance(each, grpc.StatusCode):
                context.abort(each, "seed: expected a, found b")
            else:
                yield each
        with suppress(grpc.RpcError):  # of a client that cancels
            list(requests)  # until the client has sent all that it wants to
        self.whole.append(context.is_active())

    def ModelReady(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        if self.ready is None:
            self.over.wait(30)
        return service_pb2.ModelReadyResponse(ready=bool(self.ready))

    def ModelMetadata(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        tensors = [service_pb2.ModelMetadataResponse.TensorMetadata(name=name) for name in self.inputs]
        return service_pb2.ModelMetadataResponse(inputs=tensors)


@dataclass
class Clock:
    """In the place of the client's module `time`: pauses are noted and take no time, but the clock tells them."""

    pauses: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def monotonic(self) -> float:
        return time.monotonic() + math.fsum(self.pauses)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(triton, "time", clock)
    return clock


@contextmanager
def _serving(fake: FakeTriton) -> Iterator[str]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            fake.over.set()
            server.stop(grace=0).wait()


def _generate(
    fake: FakeTriton, request: GenerationRequest = REQUEST, *, told: list[Any] | None = None, **options: Any
) -> GenerationResult:
    listeners = {} if told is None else {"on_queued": told.append, "on_progress": told.append}
    with _serving(fake) as url, TritonClient(url, **{"timeout": 10.0, **options}) as client:
        return client.generate(request, request_id="job-7", **listeners)


def _input(request: Any, name: str) -> bytes | None:
    """An input's bytes, None where it was not sent."""
    names = [tensor.name for tensor in request.inputs]
    return bytes(request.raw_input_contents[names.index(name)]) if name in names else None


def _deadline(request: Any) -> float:
    data = _input(request, "deadline_s")
    assert data is not None
    return float(np.frombuffer(data, np.float32)[0])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("INVALID_ARG: seed: expected a, found b", InvalidRequestError),
        ("RESOURCE_EXHAUSTED: full", ServiceUnavailableError),
        ("Exceeds maximum queue size", ServiceUnavailableError),
        ("Request for model 'multidiffusion' is not ready", ServiceUnavailableError),
        ("Request for unknown model: 'multidiffusion' is not found", ServiceUnavailableError),
        ("Stub process 'multidiffusion_0_0' is not healthy.", ServiceUnavailableError),
        ("CANCELLED: deadline_s: expected 80 s at least, found 3", DeadlineExceededError),
        ("INTERNAL: vae_decoder: out of memory", GenerationFailedError),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
        (grpc.StatusCode.UNAVAILABLE, ServiceUnavailableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ServiceUnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceededError),
        (grpc.StatusCode.INTERNAL, GenerationFailedError),
    ],
)
def test_an_error_of_the_stream_becomes_the_exception_that_it_means(error: Any, kind: type[MultsdError]) -> None:
    with pytest.raises(kind) as caught:
        _generate(FakeTriton([[error]]))
    assert caught.value.request_id == "job-7"


@pytest.mark.parametrize("last", [PICTURE, "INVALID_ARG: seed: expected a, found b"])
def test_a_stream_that_has_given_its_last_answer_is_left_to_end(last: Any) -> None:
    """Triton cannot let go of one that is cancelled just then, and its own stop waits for that."""
    fake = FakeTriton([[PROGRESS, last]])
    with suppress(InvalidRequestError):
        _generate(fake)
    assert fake.whole == [True]


@pytest.mark.parametrize("last", [PICTURE, "INVALID_ARG: seed: expected a, found b"])
def test_a_triton_that_hangs_after_its_last_answer_keeps_nobody(monkeypatch: pytest.MonkeyPatch, last: Any) -> None:
    monkeypatch.setattr(triton, "END_S", 0.1)
    fake = FakeTriton([[last, None], [PICTURE]])
    with _serving(fake) as url, TritonClient(url, timeout=10.0) as client:
        with suppress(InvalidRequestError):
            client.generate(REQUEST)
        monkeypatch.setattr(triton, "END_S", 60.0)
        assert client.generate(REQUEST).seed == 7
    assert fake.whole.count(True) == 1, "of the second request alone"


def test_a_client_that_was_interrupted_while_a_stream_ended_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTriton([[PICTURE, None], [PICTURE]])
    with _serving(fake) as url, TritonClient(url, timeout=10.0) as client:
        stop, interrupts = client._client.stop_stream, [KeyboardInterrupt()]

        def stop_stream(*, cancel_requests: bool = False) -> None:
            if interrupts:
                raise interrupts.pop()
            stop(cancel_requests)

        monkeypatch.setattr(client._client, "stop_stream", stop_stream)
        with pytest.raises(KeyboardInterrupt):
            client.generate(REQUEST)
        assert client.generate(REQUEST).seed == 7


def test_a_stream_that_is_silent_is_cancelled() -> None:
    fake = FakeTriton([[PROGRESS, None]])
    with pytest.raises(DeadlineExceededError):
        _generate(fake, timeout=0.2)
    assert True not in fake.whole


@pytest.mark.parametrize("ready", [True, False])
def test_the_model_is_ready_where_triton_says_so(ready: bool) -> None:
    with _serving(FakeTriton(ready=ready)) as url, TritonClient(url, timeout=10.0) as client:
        assert client.ready() is ready


def test_a_triton_that_hangs_is_waited_for_no_longer_than_the_timeout() -> None:
    with _serving(FakeTriton(ready=None)) as url, TritonClient(url, timeout=0.2) as client:
        started = time.monotonic()
        with pytest.raises(ServiceUnavailableError, match=re.escape(url)):
            client.ready()
        assert time.monotonic() - started < 5


def test_without_a_triton_nobody_is_ready() -> None:
    with TritonClient("127.0.0.1:1", timeout=10.0) as client, pytest.raises(ServiceUnavailableError):
        client.ready()


def test_a_refusal_names_its_field() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _generate(FakeTriton([["INVALID_ARG: num_inference_steps: expected 1, found 0"]]))
    assert caught.value.errors == (FieldNote("ddim_steps", "expected 1, found 0"),)


def test_a_full_model_says_when_to_come_again() -> None:
    with pytest.raises(ServiceUnavailableError, match="32 waiting; try again in 42 s") as caught:
        _generate(FakeTriton([[FULL.replace("in 0 s", "in 42 s")]]))
    assert caught.value.retry_after == 42
    assert not caught.value.answered


def test_a_full_model_is_asked_again_when_it_says_until_it_paints(clock: Clock) -> None:
    fake = FakeTriton([[FULL.replace("in 0 s", "in 7 s")], ["Exceeds maximum queue size"], [PICTURE]])

    result = _generate(fake, retries=2)

    assert result.seed == 7
    assert [request.id for request in fake.requests] == ["job-7"] * 3
    assert clock.pauses == [7, 2]  # the second was not told how long


def test_after_the_last_retry_the_error_is_raised() -> None:
    fake = FakeTriton([[FULL], [FULL], [PICTURE]])
    with pytest.raises(ServiceUnavailableError):
        _generate(fake, retries=1)
    assert len(fake.requests) == 2


def test_without_retries_a_request_is_sent_once(clock: Clock) -> None:
    fake = FakeTriton([[FULL], [PICTURE]])
    with pytest.raises(ServiceUnavailableError):
        _generate(fake)
    assert (len(fake.requests), clock.pauses) == (1, [])


@pytest.mark.parametrize("update", [PROGRESS, PREVIEW])
@pytest.mark.parametrize("error", [FULL, grpc.StatusCode.UNAVAILABLE])
def test_what_was_worked_on_is_not_asked_again(update: Any, error: Any) -> None:
    fake, told = FakeTriton([[QUEUED, update, error], [PICTURE]]), list[Any]()
    with pytest.raises(ServiceUnavailableError) as caught:
        _generate(fake, told=told, retries=5)
    assert caught.value.answered
    assert (len(fake.requests), told) == (1, [Queued(3), *([Progress(1, 2)] if update is PROGRESS else [])])


@pytest.mark.parametrize("error", [FULL, grpc.StatusCode.UNAVAILABLE])
def test_what_has_only_waited_is_asked_again(error: Any) -> None:
    fake, told = FakeTriton([[QUEUED, error], [QUEUED, PROGRESS, PICTURE]]), list[Any]()

    assert _generate(fake, told=told, retries=1).seed == 7
    assert told == [Queued(3), Queued(3), Progress(1, 2)]


@pytest.mark.parametrize("error", ["INVALID_ARG: a: b", "CANCELLED: late", "INTERNAL: broken"])
def test_what_was_refused_or_failed_is_not_asked_again(error: str) -> None:
    fake = FakeTriton([[error], [PICTURE]])
    with pytest.raises(MultsdError):
        _generate(fake, retries=5)
    assert len(fake.requests) == 1


@pytest.mark.parametrize("deadline_s", [None, 30.0])  # with one, the model's inputs are asked for first
def test_where_nobody_is_the_pause_doubles(deadline_s: float | None, clock: Clock) -> None:
    request = GenerationRequest(prompt="a", deadline_s=deadline_s)
    with TritonClient("127.0.0.1:1", retries=3) as client, pytest.raises(ServiceUnavailableError):
        client.generate(request)
    assert clock.pauses == [1, 2, 4]


def test_another_attempt_is_told_what_is_left_of_the_deadline() -> None:
    fake = FakeTriton([[FULL.replace("in 0 s", "in 50 s")], [PICTURE]])

    _generate(fake, GenerationRequest(prompt="a", width=2, height=3, deadline_s=100), retries=1)

    first, second = map(_deadline, fake.requests)
    assert 80 < first <= 100
    assert 30 < second <= first - 50


def test_no_attempt_is_waited_for_past_the_deadline(clock: Clock) -> None:
    fake = FakeTriton([[FULL.replace("in 0 s", "in 50 s")], [PICTURE]])
    with pytest.raises(ServiceUnavailableError, match="try again in 50 s"):
        _generate(fake, GenerationRequest(prompt="a", deadline_s=20), retries=5)
    assert (len(fake.requests), clock.pauses) == (1, [])


@pytest.mark.parametrize("inputs", [KNOWN, ("prompt",)])
def test_a_deadline_is_kept_whether_or_not_the_model_knows_it(inputs: Sequence[str]) -> None:
    fake = FakeTriton([[PROGRESS, None], [PICTURE]], inputs=inputs)
    with pytest.raises(DeadlineExceededError, match="no reply in time"):
        _generate(fake, GenerationRequest(prompt="a", deadline_s=1.0), timeout=600.0, retries=5)
    [request] = fake.requests
    assert (_input(request, "deadline_s") is not None) is ("deadline_s" in inputs)


def test_a_deadline_of_no_time_is_the_models_to_refuse() -> None:
    fake = FakeTriton([["INVALID_ARG: deadline_s: expected more, found 0"]])
    with pytest.raises(InvalidRequestError, match="expected more"):
        _generate(fake, GenerationRequest(prompt="a", deadline_s=0.0))
    assert _deadline(fake.requests[0]) == 0


def test_previews_that_the_model_does_not_make_get_a_warning() -> None:
    request = GenerationRequest(prompt="a", width=2, height=3, preview_every=5)
    older, newer = FakeTriton(inputs=("prompt",)), FakeTriton()

    assert _generate(older, request, told=[]).warnings == (
        FieldNote("preview_every", "not used, the served model makes no previews"),
        CUT,
    )
    assert _input(older.requests[0], "preview_every") is None
    assert _generate(newer, request, told=[]).warnings == (CUT,)
    assert _input(newer.requests[0], "preview_every") == np.array([5], np.int32).tobytes()


def test_a_png_has_no_quality_and_says_so() -> None:
    request = GenerationRequest(prompt="a", width=2, height=3, output_format="png", quality=50)
    expected = (CUT, FieldNote("quality", "not used, PNG keeps every pixel as it is"))
    assert _generate(FakeTriton(), request).warnings == expected


def test_a_picture_carries_its_parameters_unless_told_not_to() -> None:
    carrying, plain = _generate(FakeTriton()), _generate(FakeTriton(), embed=False)

    assert replay.read(carrying.image)[0]["bg_prompt"] == "a beach"
    assert carrying.warnings == plain.warnings == (CUT,)
    assert plain.media_type == "image/jpeg"
    with pytest.raises(ValueError, match="found none"):
        replay.read(plain.image)


def test_parameters_that_do_not_fit_are_told_of() -> None:
    noise = np.random.default_rng(0).integers(0, 2, (512, 512), np.uint8)
    regions = (Region(RunLengths.from_mask(noise), "sand"),)
    request = GenerationRequest(prompt="a", width=512, height=512, regions=regions)

    result = _generate(FakeTriton(), request)

    assert [note.field for note in result.warnings] == ["bg_prompt", "output_format"]
    assert "the picture does not carry its parameters: expected at most 65533 bytes" in result.warnings[1].message
    with pytest.raises(ValueError, match="found none"):
        replay.read(result.image)
    assert _generate(FakeTriton(), request, embed=False).warnings == (CUT,)


@pytest.mark.parametrize(
    "mask", [Box(0, 0, 4, 4), Polygon(((0, 0), (4, 0), (0, 4))), RunLengths((1, 2), (1, 1)), b"no image"]
)
def test_masks_too_large_for_a_message_are_refused_before_any_is_drawn(mask: Any) -> None:
    fake, regions = FakeTriton(), (Region(mask, "sand"),) * 2
    with pytest.raises(ValueError, match="masks: expected at most 2147483647 pixels in all, found 2 x 40000 x 30000"):
        _generate(fake, GenerationRequest(prompt="a", width=30_000, height=40_000, regions=regions))
    assert fake.requests == []


def test_run_lengths_of_too_large_a_mask_are_refused() -> None:
    fake, regions = FakeTriton(), (Region(RunLengths((10**7, 10**7), (10**14,)), "sand"),)
    with pytest.raises(
        ValueError, match=r"^masks\[0\]: size: expected at most 2147483647 pixels, found 10000000 x 10000000"
    ):
        _generate(fake, GenerationRequest(prompt="a", width=2, height=3, regions=regions))
    assert fake.requests == []


def _png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def _broken_chunk(png: bytes) -> bytes:
    return png.replace(b"IDAT", b"\xf4\xfe\xcfc")  # for which Pillow raises SyntaxError


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"no image", "expected a PNG, .* image, found something else: "),
        (_broken_chunk(_png(8, 8)), "expected a PNG, .* image, found something else: "),
        (_png(20_000, 10_000)[:64], "expected an image small enough to decode, found a larger one: .*200000000 pixels"),
    ],
    ids=["no image", "a broken one", "the header of a large one"],
)
def test_an_image_that_cannot_be_a_mask_is_refused_by_its_number(data: bytes, expected: str) -> None:
    fake, regions = FakeTriton(), (Region(_png(2, 3), "sand"), Region(data, "sea"))
    with pytest.raises(ValueError, match=rf"^masks\[1\]: {expected}"):
        _generate(fake, GenerationRequest(prompt="a", width=2, height=3, regions=regions))
    assert fake.requests == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"seed": 1.9}, "seed: expected a whole number, 0 to 18446744073709551615, found 1.9"),
        ({"guidance_scale": 1e300}, r"guidance_scale: expected at most 3.40282e\+38 in size, found 1e\+300"),
        ({"guidance_scale": 10**40}, r"guidance_scale: expected at most 3.40282e\+38 in size, found 10+$"),
        ({"seed": -1}, "seed: expected a whole number, 0 to 18446744073709551615, found -1"),
        ({"seed": 2**64}, "seed: expected a whole number, 0 to 18446744073709551615, found 18446744073709551616"),
        ({"width": 2**40}, "width: expected a whole number, -2147483648 to 2147483647, found 1099511627776"),
        ({"prompt": "\ud800"}, "surrogates not allowed"),
    ],
    ids=str,
)
def test_what_a_tensor_cannot_hold_is_refused_before_it_is_sent(wrong: dict[str, Any], told: str) -> None:
    fake = FakeTriton()
    with pytest.raises(ValueError, match=told):
        _generate(fake, GenerationRequest(**{"prompt": "a", **wrong}))
    assert fake.requests == []


def test_a_format_that_is_none_is_refused_before_anything_is_painted() -> None:
    fake = FakeTriton()
    with pytest.raises(ValueError, match="output_format: expected jpeg, png, webp, found 'gif'"):
        _generate(fake, GenerationRequest(prompt="a", output_format="gif"))
    assert fake.requests == []
