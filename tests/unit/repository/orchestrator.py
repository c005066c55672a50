"""The real adapter, `model.py`, on a Triton of a few lines: networks are functions, and tests tell when they answer."""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import pipeline
from tests.unit.repository.tiny import EMBEDDING, make_checkpoint

FILE = Path(pipeline.__file__).with_name("model.py")
CONTRACT = FILE.parents[1] / "config.pbtxt"
OUTPUTS = ("queue_position", "progress_steps", "preview", "image", "warnings", "report")
CELL = 8  # pixels

Array = npt.NDArray[Any]
Network = Callable[[Mapping[str, Array]], Awaitable[Array]]


class Code(Enum):
    """As Triton's."""

    INTERNAL = 1
    INVALID_ARG = 3
    UNAVAILABLE = 4
    CANCELLED = 6


class TritonError(Exception):
    """As pb_utils', whose codes are its own attributes; a network raises it where it answers with an error."""

    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = Code

    def __init__(self, message: str, code: Code = Code.INTERNAL) -> None:
        super().__init__(message)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> Code:
        return self._code


@dataclasses.dataclass
class Tensor:
    name: str
    array: Array

    def as_numpy(self) -> Array:
        return self.array


class Response:
    """As pb_utils.InferenceResponse."""

    def __init__(self, tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self._error = error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Sender:
    """A client: what it was sent, and whether it is still there."""

    def __init__(self) -> None:
        self.responses: list[Response] = []
        self.final: Response | None = None
        self.cancelled = False
        self.deaf = False  # progress cannot be sent

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: Response, flags: int = 0) -> None:
        if flags:
            self.final = response
        elif self.deaf:
            raise RuntimeError("the stream is gone")
        else:
            self.responses.append(response)


class Request:
    """A picture of 64 x 64 pixels in four steps of two rows, unless told otherwise."""

    def __init__(self, *, outputs: Sequence[str] = OUTPUTS, **fields: Any) -> None:
        self.sender = Sender()
        self.outputs = outputs
        sizes = {"height": 64, "width": 64, "seed": 1, "num_inference_steps": 4, "bootstrapping": 0}
        given = {name: np.array([value]) for name, value in {**sizes, **fields}.items()}
        self.arrays: dict[str, Array] = {"prompt": np.array([b"the moon"], dtype=object), **given}

    def get_response_sender(self) -> Sender:
        return self.sender

    def requested_output_names(self) -> Sequence[str]:
        return self.outputs

    def request_id(self) -> str:
        return "test"

    def parameters(self) -> str:
        return json.dumps({"name_error_codes": True})

    def told(self, name: str) -> list[list[int]]:
        """The values of an output in the progress responses."""
        return [each.tensors[name].array.tolist() for each in self.sender.responses if name in each.tensors]

    @property
    def answer(self) -> str:
        """The final response: `picture`, or its error."""
        assert self.sender.final is not None, "no answer"
        error = self.sender.final.error()
        return "picture" if error is None else error.message()


class Metric:
    """As Triton's, of any kind."""

    def __init__(self) -> None:
        self.value = 0.0

    def increment(self, amount: float) -> None:
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value

    def observe(self, value: float) -> None:
        self.value += value


class FakeTriton(ModuleType):
    """As triton_python_backend_utils; `networks` answer calls."""

    PreferredMemory = staticmethod(lambda memory: memory)
    TRITONSERVER_MEMORY_CPU = 0
    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

    def __init__(self) -> None:
        super().__init__("triton_python_backend_utils")
        self.networks: dict[str, Network] = {"unet": unet, "text_encoder": text_encoder, "vae_decoder": vae_decoder}
        self.metrics: dict[str, Metric] = {}
        self.log: list[str] = []  # errors
        triton = self

        class InferenceRequest:
            def __init__(self, *, model_name: str, requested_output_names: list[str], inputs: list[Tensor], **_: Any):
                self.model, self.outputs = model_name, requested_output_names
                self.inputs = {tensor.name: tensor.array for tensor in inputs}

            async def async_exec(self) -> Response:
                try:
                    answer = await triton.networks[self.model](self.inputs)
                except TritonError as error:
                    return Response(error=error)
                return Response([Tensor(name, answer) for name in self.outputs])

        class MetricFamily:
            COUNTER = GAUGE = HISTOGRAM = 0

            def __init__(self, *, name: str, **_: Any) -> None:
                self.name = name

            def Metric(self, *, labels: dict[str, str], **_: Any) -> Metric:  # noqa: N802 - Triton's
                return triton.metrics.setdefault(",".join([self.name, *labels.values()]), Metric())

        class Logger:
            log_error = staticmethod(lambda line: triton.log.append(line))

        self.Tensor, self.TritonError, self.InferenceResponse = Tensor, TritonError, Response
        self.InferenceRequest, self.MetricFamily, self.Logger = InferenceRequest, MetricFamily, Logger

    @staticmethod
    def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
        return Tensor(name, request.arrays[name]) if name in request.arrays else None

    @staticmethod
    def get_output_tensor_by_name(response: Response, name: str) -> Tensor:
        return response.tensors[name]


async def unet(inputs: Mapping[str, Array]) -> Array:
    predictions: Array = inputs["sample"] * np.float32(0.2)
    return predictions


async def text_encoder(inputs: Mapping[str, Array]) -> Array:
    return np.repeat(inputs["input_ids"][..., None].astype(np.float32), EMBEDDING, axis=-1)


async def vae_decoder(inputs: Mapping[str, Array]) -> Array:
    pixels: Array = inputs["latent_sample"][:, :3].repeat(CELL, 2).repeat(CELL, 3)
    return pixels


def contract() -> Any:
    """The committed configuration of the model."""
    return text_format.Parse(CONTRACT.read_text(), model_config_pb2.ModelConfig())


def import_file(file: Path) -> ModuleType:
    """A model's file as Triton imports it: by its path, and anew each time."""
    spec = importlib.util.spec_from_file_location(f"{file.parents[1].name}_model", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def serving(**parameters: object) -> Iterator[tuple[Any, Any, FakeTriton]]:
    """A served model, its module, and the Triton below it; parameters: of the configuration that differ."""
    triton = FakeTriton()
    config = contract()
    for name, value in parameters.items():
        config.parameters[name].string_value = str(value)
    told = {
        "parameters": {name: {"string_value": each.string_value} for name, each in config.parameters.items()},
        "input": [{"name": tensor.name} for tensor in config.input],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", triton)
        module = import_file(FILE)
        patch.setattr(module, "load_checkpoint", lambda _: make_checkpoint(unet_max_batch_size=16))
        model = module.TritonPythonModel()
        model.initialize({"model_config": json.dumps(told), "model_repository": "/nowhere", "model_version": "1"})
        yield model, module, triton
