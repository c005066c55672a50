"""The runner joins rows of waiting requests, gives each request its own rows or its own error."""

import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from multsd_export.profiles import CPU

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


class FakePbUtils(ModuleType):
    """A request is its tensors by name."""

    TritonError = FakeTritonError
    Tensor = FakeTensor
    InferenceResponse = FakeResponse

    @staticmethod
    def get_input_tensor_by_name(request: Mapping[str, Array], name: str) -> FakeTensor:
        return FakeTensor(name, request[name])


@pytest.fixture(scope="module")
def runner() -> Any:
    """The file as Triton would load it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", FakePbUtils("triton_python_backend_utils"))
        spec = importlib.util.spec_from_file_location("onnxruntime_runner", CPU.runner)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "onnxruntime_runner", module)
        spec.loader.exec_module(module)
        yield module


def slot(runner: Any, request: int, rows: int, width: int = 3) -> Any:
    """Rows that hold the request's number."""
    return runner.make_slot(request, {"x": np.full((rows, width), request, np.float32)})


def requests_of(runs: list[list[Any]]) -> list[list[int]]:
    return [[slot.request for slot in run] for run in runs]


def test_requests_share_runs_up_to_the_largest_batch(runner: Any) -> None:
    slots = [slot(runner, request, rows) for request, rows in enumerate([4, 8, 4, 1])]
    assert requests_of(runner.plan_runs(slots, 16)) == [[0, 1, 2], [3]]


def test_only_rows_of_one_shape_share_a_run(runner: Any) -> None:
    slots = [slot(runner, request, 1, width) for request, width in enumerate([3, 5, 3, 5])]
    assert requests_of(runner.plan_runs(slots, 16)) == [[0, 2], [1, 3]]


def test_splitting_undoes_joining(runner: Any) -> None:
    slots = [slot(runner, request, rows) for request, rows in enumerate([2, 1, 3])]
    joined = runner.join_rows(slots)
    assert joined["x"][:, 0].tolist() == [0, 0, 1, 2, 2, 2]
    for request, tensors in runner.split_rows(joined, slots).items():
        np.testing.assert_array_equal(tensors["x"], slots[request].tensors["x"])


def test_a_joint_run_that_fails_is_repeated_alone_and_only_the_cause_fails(runner: Any) -> None:
    def fails_on_1(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        if (tensors["x"] == 1).any():
            raise RuntimeError("one")
        return {"y": tensors["x"] * 2}

    results = runner.run_slots(fails_on_1, [slot(runner, request, 2) for request in range(3)])
    assert str(results[1]) == "one"
    assert [results[request]["y"].tolist() for request in (0, 2)] == [[[0] * 3] * 2, [[4] * 3] * 2]


def test_inputs_of_different_row_counts_are_refused(runner: Any) -> None:
    with pytest.raises(runner.InvalidInputError, match=r"as many rows in every input, found \{'x': 2, 't': 1\}"):
        runner.make_slot(0, {"x": np.zeros((2, 3)), "t": np.zeros(1)})


@pytest.fixture
def model(runner: Any, tmp_path: Path) -> Any:
    """A served network of fixed width: y = x + t, t one number a row."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    t = helper.make_tensor_value_info("t", TensorProto.FLOAT, ["batch"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [helper.make_node("Unsqueeze", ["t", "axes"], ["column"]), helper.make_node("Add", ["x", "column"], ["y"])]
    graph = helper.make_graph(nodes, "graph", [x, t], [y], [axes])
    (tmp_path / "1").mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "1" / "model.onnx",
    )
    config = {
        "max_batch_size": 4,
        "input": [{"name": "x"}, {"name": "t"}],
        "output": [{"name": "y"}],
        "parameters": {"intra_op_threads": {"string_value": "1"}, "release_memory": {"string_value": "true"}},
    }
    served = runner.TritonPythonModel()
    arguments = {"model_config": json.dumps(config), "model_repository": str(tmp_path), "model_version": "1"}
    served.initialize(arguments)
    return served


def request(rows: int, value: float, width: int = 3) -> dict[str, Array]:
    return {"x": np.zeros((rows, width), np.float32), "t": np.full(rows, value, np.float32)}


def test_every_request_gets_its_own_rows_in_order(model: Any) -> None:
    responses = model.execute([request(1, 5), request(2, 7), request(3, 9)])
    outputs = [response.output_tensors[0] for response in responses]
    assert [tensor.name for tensor in outputs] == ["y"] * 3
    assert [tensor.array[:, 0].tolist() for tensor in outputs] == [[5], [7, 7], [9, 9, 9]]


def test_a_bad_shape_is_the_callers_fault_and_nobody_elses_trouble(model: Any) -> None:
    responses = model.execute([request(1, 5), request(1, 6, width=4), {**request(2, 7), "t": np.zeros(1, np.float32)}])
    assert responses[0].error is None
    assert [response.error.code for response in responses[1:]] == [FakeTritonError.INVALID_ARG] * 2


def test_threads_come_from_the_parameters(runner: Any) -> None:
    assert runner.session_options({"intra_op_threads": "3"}).intra_op_num_threads == 3
    assert runner.session_options({}).intra_op_num_threads >= 1
