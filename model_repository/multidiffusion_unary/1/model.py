"""One request, one response: passes a request on to the decoupled `multidiffusion` model and waits for its picture.

Triton's HTTP and unary gRPC infer endpoints refuse decoupled models; this one they accept.
"""

from typing import Any

import triton_python_backend_utils as pb_utils

CODES = {"DEADLINE_EXCEEDED": "CANCELLED"}  # of names that Triton's codes lack


class TritonPythonModel:
    """Forwards tensors as they are: checking them is the callee's."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer in order; concurrency comes from the number of instances."""
        return [forward(request) for request in requests]


def forward(request: Any) -> Any:
    """The final response of `multidiffusion`, or its error with the same code and message."""
    call = pb_utils.InferenceRequest(
        model_name="multidiffusion",
        requested_output_names=list(request.requested_output_names()),
        inputs=request.inputs(),
        request_id=request_id(request),
        parameters={"name_error_codes": True},
    )
    answers = [answer for answer in call.exec(decoupled=True) if answer.has_error() or answer.output_tensors()]
    if answers[-1].has_error():
        return pb_utils.InferenceResponse(error=named_error(answers[-1].error().message()))
    return pb_utils.InferenceResponse(answers[-1].output_tensors())


def request_id(request: Any) -> str:
    """A request's id; "" where it is no UTF-8, which Triton's HTTP endpoint lets through."""
    try:
        return str(request.request_id())
    except UnicodeDecodeError:
        return ""


def named_error(message: str) -> Any:
    """An error from "CODE: message": Triton before 25.01 loses the code of a callee's error on its way here."""
    name, separator, text = message.partition(": ")
    code = getattr(pb_utils.TritonError, CODES.get(name, name), None)
    if not separator or code is None:
        return pb_utils.TritonError(message)
    return pb_utils.TritonError(text, code)
