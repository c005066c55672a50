"""Islands of float32 in a graph of half precision."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from multsd_export.parity import open_session
from multsd_export.precision import NORMALISATIONS, make_islands

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def normalising_model(element: int) -> ir.Model:
    """x (2, 3, 8) -> InstanceNormalization -> y."""
    x = helper.make_tensor_value_info("x", element, [2, 3, 8])
    y = helper.make_tensor_value_info("y", element, [2, 3, 8])
    scale = helper.make_tensor("scale", element, [3], np.ones(3))
    bias = helper.make_tensor("bias", element, [3], np.zeros(3))
    node = helper.make_node("InstanceNormalization", ["x", "scale", "bias"], ["y"], name="norm", epsilon=1e-5)
    graph = helper.make_graph([node], "graph", [x], [y], [scale, bias])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_a_normalisation_in_half_precision_is_wrapped_in_casts() -> None:
    model = normalising_model(HALF)
    make_islands(model, NORMALISATIONS)
    assert sorted(operators(model)) == ["Cast"] * 4 + ["InstanceNormalization"]
    (norm,) = (node for node in model.graph if node.op_type == "InstanceNormalization")
    tensors = [value for value in (*norm.inputs, *norm.outputs) if value is not None]
    assert {value.dtype for value in tensors} == {ir.DataType.FLOAT}
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT16


def test_what_overflows_in_half_precision_is_right_in_an_island(tmp_path: Path) -> None:
    """Squares of these values are far above float16's largest, 65504; the result is that of numpy in float64."""
    model = normalising_model(HALF)
    make_islands(model, NORMALISATIONS)
    ir.save(model, tmp_path / "model.onnx")
    x = (np.random.default_rng(0).standard_normal((2, 3, 8)) * 10000).astype(np.float16)
    (y,) = open_session(tmp_path / "model.onnx").run(None, {"x": x})
    wide: Any = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=2e-3, atol=2e-3)
    assert y.dtype == np.float16


def test_a_graph_in_full_precision_is_left_alone() -> None:
    model = normalising_model(FLOAT)
    make_islands(model, NORMALISATIONS)
    assert operators(model) == ["InstanceNormalization"]


def test_other_operators_are_left_alone() -> None:
    model = normalising_model(HALF)
    make_islands(model, {"Softmax"})
    assert operators(model) == ["InstanceNormalization"]


def attending_model(element: int) -> ir.Model:
    """q (2, 4, 8), k (2, 8, 4) -> softmax(q k) -> y (2, 4, 4)."""
    q = helper.make_tensor_value_info("q", element, [2, 4, 8])
    k = helper.make_tensor_value_info("k", element, [2, 8, 4])
    y = helper.make_tensor_value_info("y", element, [2, 4, 4])
    scores = helper.make_tensor_value_info("scores", element, [2, 4, 4])
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["y"], axis=-1),
    ]
    graph = helper.make_graph(nodes, "graph", [q, k], [y], value_info=[scores])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def test_scores_beyond_half_precision_are_right_where_attention_is_upcast(tmp_path: Path) -> None:
    """Products of these queries and keys are far above 65504; the result is that of numpy in float64."""
    model = attending_model(HALF)
    make_islands(model, NORMALISATIONS, attention_scores=True)
    assert sorted(operators(model)) == ["Cast"] * 3 + ["MatMul", "Softmax"], "none between product and softmax"
    ir.save(model, tmp_path / "model.onnx")
    generator = np.random.default_rng(0)
    q = (generator.standard_normal((2, 4, 8)) * 300).astype(np.float16)
    k = (generator.standard_normal((2, 8, 4)) * 300).astype(np.float16)
    (y,) = open_session(tmp_path / "model.onnx").run(None, {"q": q, "k": k})
    scores: Any = q.astype(np.float64) @ k.astype(np.float64)
    assert np.abs(scores).max() > 65504
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(y, weights / weights.sum(-1, keepdims=True), atol=1e-3)
    assert y.dtype == np.float16


def test_attention_that_is_not_upcast_is_left_alone() -> None:
    model = attending_model(HALF)
    make_islands(model, NORMALISATIONS)
    assert operators(model) == ["MatMul", "Softmax"]
