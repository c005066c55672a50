"""Runners loaded as Triton loads them: from a folder with their siblings beside them, and without Triton."""

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from multsd_export.profiles import Runner

Array = npt.NDArray[np.float32]


class FakeTritonError:
    """What pb_utils.TritonError keeps of a failure."""

    INTERNAL = 1
    INVALID_ARG = 3

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self.message, self.code = message, code


@dataclass
class FakeTensor:
    name: str
    array: Array

    def as_numpy(self) -> Array:
        return self.array


@dataclass
class FakeResponse:
    output_tensors: list[FakeTensor] = field(default_factory=list)
    error: FakeTritonError | None = None


class FakeLogger:
    """Keeps what is logged."""

    lines: ClassVar[list[str]] = []

    @classmethod
    def log_info(cls, line: str) -> None:
        cls.lines.append(line)


class FakePbUtils(ModuleType):
    """A request is its tensors by name."""

    TritonError = FakeTritonError
    Tensor = FakeTensor
    InferenceResponse = FakeResponse
    Logger = FakeLogger

    @staticmethod
    def get_input_tensor_by_name(request: Mapping[str, Array], name: str) -> FakeTensor:
        return FakeTensor(name, request[name])


@contextmanager
def loaded(runner: Runner | None) -> Iterator[Any]:
    """The runner's module; it and its siblings are forgotten afterwards."""
    assert runner is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", FakePbUtils("triton_python_backend_utils"))
        for file in (*runner.siblings, runner.model):
            spec = importlib.util.spec_from_file_location(file.stem, file)
            assert spec
            assert spec.loader
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, file.stem, module)
            spec.loader.exec_module(module)
        yield module


def arguments(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Of `initialize`, for version 1 of a model below `folder`, on a processor."""
    return {
        "model_name": folder.name,
        "model_config": json.dumps(config),
        "model_repository": str(folder),
        "model_version": "1",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }
