"""The unary model passes on what `multidiffusion` answers: its picture, or its error with the same code and message."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tests.unit.repository.orchestrator import FILE, Code, FakeTriton, Response, Tensor, TritonError, import_file

UNARY = FILE.parents[2] / "multidiffusion_unary" / "1" / "model.py"

Forward = Callable[..., Any]  # list[Answer], request_id -> Response


class Answer(Response):
    """As pb_utils.InferenceResponse, of a call."""

    def output_tensors(self) -> list[Tensor]:
        return list(self.tensors.values())


class Request:
    """A request for a picture."""

    def requested_output_names(self) -> list[str]:
        return ["image"]

    def inputs(self) -> list[Tensor]:
        return []

    def __init__(self, request_id: bytes = b"test") -> None:
        self._id = request_id

    def request_id(self) -> str:
        return self._id.decode()


@pytest.fixture
def forward() -> Iterator[Forward]:
    """What the unary model answers where the callee answers so."""
    triton = FakeTriton()
    answers: list[Answer] = []

    class InferenceRequest:
        def __init__(self, **_: Any) -> None:
            pass

        def exec(self, *, decoupled: bool) -> list[Answer]:
            assert decoupled
            return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "InferenceRequest", InferenceRequest)
        patch.setattr(triton, "InferenceResponse", Answer)
        patch.setitem(sys.modules, "triton_python_backend_utils", triton)
        module = import_file(UNARY)

        def ask(given: list[Answer], request_id: bytes = b"test") -> Any:
            answers[:] = given
            (response,) = module.TritonPythonModel().execute([Request(request_id)])
            return response

        yield ask


@pytest.mark.parametrize(
    ("told", "code", "message"),
    [
        ("INVALID_ARG: height: expected 64", Code.INVALID_ARG, "height: expected 64"),
        ("UNAVAILABLE: unet: no answer for 60 s", Code.UNAVAILABLE, "unet: no answer for 60 s"),
        ("CANCELLED: cancelled by the client", Code.CANCELLED, "cancelled by the client"),
        ("DEADLINE_EXCEEDED: deadline_s: not done", Code.CANCELLED, "deadline_s: not done"),
        ("Stub process is not healthy.", Code.INTERNAL, "Stub process is not healthy."),
        ("unet: out of memory", Code.INTERNAL, "unet: out of memory"),
    ],
)
def test_an_error_keeps_its_code_and_message(forward: Forward, told: str, code: Code, message: str) -> None:
    error = forward([Answer(error=TritonError(told))]).error()
    assert error.code() == code
    assert error.message() == message


def test_a_picture_is_passed_on_and_empty_responses_are_not(forward: Forward) -> None:
    image = Tensor("image", np.zeros((64, 64, 3), np.uint8))
    response = forward([Answer([image]), Answer()])
    assert not response.has_error()
    assert response.output_tensors() == [image]


def test_a_request_whose_id_is_no_utf8_is_passed_on_without(forward: Forward) -> None:
    image = Tensor("image", np.zeros((64, 64, 3), np.uint8))
    assert not forward([Answer([image])], request_id=b"\xff").has_error()


def test_a_client_can_bound_its_wait_for_an_instance() -> None:
    """`deadline_s` begins only after it. Triton heeds a request's `timeout` below the default, which is 0 by itself."""
    config = text_format.Parse((UNARY.parents[1] / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    policy = config.dynamic_batching.default_queue_policy
    assert policy.allow_timeout_override
    assert policy.default_timeout_microseconds > 1e6 * 33 * 60  # a minute for each that may wait before it
