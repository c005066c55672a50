"""The exported graphs: plain ONNX, the opset that TensorRT reads, and rows that do not depend on their batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from onnxscript import rewriter

from multsd_export.checkpoint import read_checkpoint
from multsd_export.modules import Wrapper
from multsd_export.networks import DTYPES, Network, networks_of
from multsd_export.onnx_export import (
    DATA_FILE,
    Form,
    dynamic_shapes,
    export_onnx,
    form_of,
    make_means_row_independent,
    quick_rewriter,
    save,
    write_staged,
)
from multsd_export.parity import measure_parity, open_session
from multsd_export.profiles import Precision, Served

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


@pytest.mark.parametrize("name", NAMES)
def test_the_optimisers_rules_that_are_left_out_find_nothing(exported: Exported, name: str) -> None:
    rules = rewriter._DEFAULT_REWRITE_RULES
    with quick_rewriter():
        left_out = [rule for rule in rules if rule not in rewriter._DEFAULT_REWRITE_RULES]
    assert 0 < len(left_out) < len(rules)
    assert rewriter._DEFAULT_REWRITE_RULES is rules
    assert rewriter.RewriteRuleSet(left_out).apply_to_model(ir.load(onnx_file(exported, name))) == 0


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


class Normalising(Wrapper):
    """A picture's group norm, and attention's over its tokens, as a VAE has them."""

    def __init__(self) -> None:
        super().__init__(None)
        self.norm, self.dtype = torch.nn.GroupNorm(2, 4), torch.float32

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        picture = self.norm(sample.to(self.norm.weight.dtype))
        tokens: torch.Tensor = self.norm(picture.flatten(2))
        return tokens.view(picture.shape).float()


def normalising(checkpoint_folder: Path, precision: Precision) -> Network:
    decoder = next(
        each for each in networks_of(read_checkpoint(checkpoint_folder), precision) if each.name == "vae_decoder"
    )
    return replace(decoder, wrapper=Normalising, load=lambda dtype: Normalising().to(dtype).eval())


@pytest.mark.parametrize("precision", list(Precision))
def test_group_norms_of_whole_pictures_are_torchs_in_onnx_runtime(
    checkpoint_folder: Path, tmp_path: Path, precision: Precision
) -> None:
    """The values are far from zero, where float32 loses most; the sides are odd and others than the export's."""
    network = normalising(checkpoint_folder, precision)
    module = network.load(DTYPES[precision])
    generator = torch.Generator().manual_seed(0)
    export_onnx(network, module, (torch.randn(2, 4, 8, 16, generator=generator),), tmp_path, Form.STAGED)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert "InstanceNormalization" not in operators
    assert operators.count("ReduceMean") == 8
    pictures = [(torch.randn(1, 4, *sides, generator=generator) + 8,) for sides in ((1023, 767), (9, 23))]
    found = measure_parity(network, module.float(), tmp_path / "model.onnx", pictures)
    assert found.relative_error < {Precision.FP32: 1e-5, Precision.FP16: 5e-3}[precision]


def test_tensorrt_is_given_the_operator_that_it_has_a_kernel_for(checkpoint_folder: Path, tmp_path: Path) -> None:
    network = normalising(checkpoint_folder, Precision.FP32)
    plain, staged = tmp_path / "plain", tmp_path / "staged"
    plain.mkdir()
    staged.mkdir()
    sample = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    export_onnx(network, network.load(torch.float32), (sample,), plain, form_of(network, Served.ENGINE))
    operators = [node.op_type for node in onnx.load(plain / "model.onnx").graph.node]
    assert operators.count("InstanceNormalization") == 2
    write_staged(plain / "model.onnx", staged)
    answers = [
        open_session(file).run(None, {"latent_sample": sample.numpy()})[0]
        for file in (plain / "model.onnx", staged / "model.onnx")
    ]
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4, atol=1e-5)


def test_only_what_onnx_runtime_serves_of_whole_pictures_is_staged(checkpoint_folder: Path) -> None:
    forms = {
        (network.name, served): form_of(network, served)
        for network in networks_of(read_checkpoint(checkpoint_folder))
        for served in (Served.ONNX, Served.ENGINE)
    }
    staged = {key for key, form in forms.items() if form is Form.STAGED}
    assert staged == {("vae_decoder", Served.ONNX), ("vae_encoder", Served.ONNX)}


def test_a_shared_axis_is_named_once(checkpoint_folder: Path) -> None:
    unet = next(network for network in networks_of(read_checkpoint(checkpoint_folder)) if network.name == "unet")
    names = [axis for axes in dynamic_shapes(unet) for axis in axes.values() if isinstance(axis, str)]
    assert names == ["batch"]
