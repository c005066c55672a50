"""The runner of ONNX files answers every request with its own rows or its own error."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from multsd_export.profiles import CPU

from .runners import Array, FakeTritonError, arguments, loaded


@pytest.fixture(scope="module")
def runner() -> Iterator[Any]:
    with loaded(CPU.runner) as module:
        yield module


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
        "input": [{"name": "x", "dims": [3]}, {"name": "t", "dims": [1], "reshape": {"shape": []}}],
        "output": [{"name": "y"}],
        "parameters": {"intra_op_threads": {"string_value": "1"}, "release_memory": {"string_value": "true"}},
    }
    served = runner.TritonPythonModel()
    served.initialize(arguments(tmp_path, config))
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


def test_threads_come_from_the_parameters(model: Any) -> None:
    assert model.model.threads == 1
    assert replace(model.model, parameters={"intra_op_threads": "3"}).threads == 3
    assert replace(model.model, parameters={}).threads >= 1


def test_the_shape_of_a_row_is_what_the_network_gets(model: Any) -> None:
    assert dict(zip(model.model.inputs, model.model.shapes, strict=True)) == {"x": (3,), "t": ()}
