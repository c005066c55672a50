"""The exported graphs: plain ONNX, the opset that TensorRT reads, and rows that do not depend on their batch."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from multsd_export.checkpoint import read_checkpoint
from multsd_export.networks import networks_of
from multsd_export.onnx_export import DATA_FILE, dynamic_shapes, make_means_row_independent, save
from multsd_export.parity import open_session

from .conftest import WINDOW, Exported

NAMES = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]


def onnx_file(exported: Exported, name: str) -> Path:
    return exported.options.work_dir / name / "model.onnx"


@pytest.mark.parametrize("name", NAMES)
def test_graphs_are_plain_onnx_without_traces_of_this_machine(exported: Exported, name: str) -> None:
    model = onnx.load(onnx_file(exported, name))
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b"site-packages" not in model.SerializeToString()


def test_only_batch_and_picture_size_are_dynamic(exported: Exported) -> None:
    dims = {
        name: [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.input]
        for name in NAMES
        for graph in [onnx.load(onnx_file(exported, name)).graph]
    }
    assert dims == {
        "text_encoder": [["batch", 77]],
        "unet": [["batch", 4, WINDOW, WINDOW], ["batch"], ["batch", 77, 16]],
        "vae_decoder": [["batch", 4, "height", "width"]],
        "vae_encoder": [["batch", 3, "height", "width"]],
    }


def test_unet_rows_have_the_same_bits_at_every_batch_from_1_to_16(exported: Exported) -> None:
    session = open_session(onnx_file(exported, "unet"))
    random = np.random.default_rng(0)
    feed = {
        "sample": random.standard_normal((16, 4, WINDOW, WINDOW), dtype=np.float32),
        "timestep": random.uniform(0, 999, 16).astype(np.float32),
        "encoder_hidden_states": random.standard_normal((16, 77, 16), dtype=np.float32),
    }
    (together,) = session.run(None, feed)
    for rows in range(1, 16):
        (some,) = session.run(None, {name: array[:rows] for name, array in feed.items()})
        np.testing.assert_array_equal(some, together[:rows])


def test_large_weights_lie_in_a_file_of_their_own(exported: Exported, tmp_path: Path) -> None:
    model = ir.load(onnx_file(exported, "text_encoder"))
    save(model, tmp_path, external_bytes=1000)
    assert (tmp_path / "model.onnx").stat().st_size < (tmp_path / DATA_FILE).stat().st_size
    ids = np.arange(77, dtype=np.int32).reshape(1, 77)
    outputs = [
        open_session(file).run(None, {"input_ids": ids})[0]
        for file in (onnx_file(exported, "text_encoder"), tmp_path / "model.onnx")
    ]
    np.testing.assert_array_equal(*outputs)


def test_small_weights_lie_in_the_graphs_file(exported: Exported, tmp_path: Path) -> None:
    save(ir.load(onnx_file(exported, "text_encoder")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def mean_model(axis: int) -> ir.Model:
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 7, 3])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [axis])
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)
    return ir.from_proto(helper.make_model(helper.make_graph([node], "graph", [source], [result], [axes])))


def test_a_mean_over_tokens_becomes_a_product_of_the_same_value(tmp_path: Path) -> None:
    model = mean_model(axis=1)
    make_means_row_independent(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]
    ir.save(model, tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((5, 7, 3), dtype=np.float32)
    (y,) = open_session(tmp_path / "model.onnx").run(None, {"x": x})
    np.testing.assert_allclose(y, x.mean(axis=1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_a_mean_over_another_axis_is_left_alone() -> None:
    model = mean_model(axis=2)
    make_means_row_independent(model)
    assert [node.op_type for node in model.graph] == ["ReduceMean"]


def test_a_shared_axis_is_named_once(checkpoint_folder: Path) -> None:
    unet = next(network for network in networks_of(read_checkpoint(checkpoint_folder)) if network.name == "unet")
    names = [axis for axes in dynamic_shapes(unet) for axis in axes.values() if isinstance(axis, str)]
    assert names == ["batch"]
