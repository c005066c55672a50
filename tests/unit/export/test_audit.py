"""What TensorRT would not take is named: node, operator and reason."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from onnx import NodeProto, TensorProto, helper

from multsd_export.artefacts import Effort, network_artefact
from multsd_export.audit import audit_model, check_audit, trt_list
from multsd_export.checkpoint import read_checkpoint
from multsd_export.contract import parse_config
from multsd_export.errors import AuditError
from multsd_export.modules import Wrapper
from multsd_export.networks import Inputs, Network
from multsd_export.precision import NORMALISATIONS
from multsd_export.profiles import Precision

FLOAT, HALF, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE


def model(nodes: list[NodeProto], element: int = FLOAT, opset: int = 20, result: int | None = None) -> ir.Model:
    """x (2, 4, 8, 8) and the constants axes and axis go in, y comes out."""
    x = helper.make_tensor_value_info("x", element, [2, 4, 8, 8])
    axes_in = helper.make_tensor_value_info("axes_in", TensorProto.INT64, [1])
    y = helper.make_tensor_value_info("y", result or element, None)
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("scales", FLOAT, [4], [1.0, 1.0, 2.0, 2.0]),
    ]
    graph = helper.make_graph(nodes, "graph", [x, axes_in], [y], constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def node(operator: str, inputs: list[str], **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, ["y"], name="culprit", **attributes)


@pytest.mark.parametrize(
    ("audited", "reason"),
    [
        (model([node("Det", ["x"])]), "node culprit (Det): the operator is not supported"),
        (model([node("FancyOperator", ["x"])]), "node culprit (FancyOperator): the operator is not supported"),
        (
            model([node("Gelu", ["x"], domain="com.microsoft")]),
            "node culprit (Gelu): the domain com.microsoft is not ONNX's",
        ),
        (
            model([node("Add", ["x", "x"])], DOUBLE),
            "node culprit (Add): x has type DOUBLE, supported: FP32, FP16, BF16, INT32, INT64",
        ),
        (model([node("MatMul", ["x", "x"])], TensorProto.INT32), "x has type INT32, supported: FP32, FP16, BF16"),
        (model([node("Cast", ["x"], to=TensorProto.INT8)], result=TensorProto.INT8), "y has type INT8"),
        (
            model([node("ReduceMean", ["x", "axes_in"])]),
            "node culprit (ReduceMean): restricted: axes must be an initializer",
        ),
        (model([node("Unsqueeze", ["x", "axes_in"])]), "restricted: axes must be resolvable to a constant"),
        (model([node("Resize", ["x", "", "scales"], mode="cubic")]), "node culprit (Resize): restricted: coordinate"),
        (model([node("Resize", ["x", "", "scales"], mode="linear", antialias=1)]), "(Resize): restricted"),
        (model([node("Identity", ["x"])], opset=21), "opset 21, expected 9 to 20"),
    ],
)
def test_a_node_that_tensorrt_does_not_take_is_named_with_the_reason(audited: ir.Model, reason: str) -> None:
    with pytest.raises(AuditError) as error:
        check_audit("net", audit_model(audited))
    assert str(error.value).startswith("net: TensorRT does not take ")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "audited",
    [
        model([node("ReduceMean", ["x", "axes"])]),
        model([node("ReduceMean", ["x", "axes"])], HALF),
        model([node("Unsqueeze", ["x", "axes"])]),
        model([node("Resize", ["x", "", "scales"], mode="nearest", coordinate_transformation_mode="asymmetric")]),
        model([node("Shape", ["x"])], result=TensorProto.INT64),
        model([node("Greater", ["x", "x"])], result=TensorProto.BOOL),
        model([node("Gather", ["x", "axes_in"])], HALF),
    ],
)
def test_what_tensorrt_takes_passes(audited: ir.Model) -> None:
    assert audit_model(audited).findings == ()


def test_every_restriction_without_a_check_counts_as_broken() -> None:
    attention = helper.make_node("DeformConv", ["x", "x", "x"], ["y"], name="culprit")
    (finding,) = audit_model(model([attention])).findings
    assert finding.reason.startswith("restricted: input must have 1D or 2D spatial dimensions")


def test_a_second_output_of_layer_normalisation_is_refused_only_where_it_is_used() -> None:
    def normalisation(result: str) -> ir.Model:
        named = helper.make_node("LayerNormalization", ["x", "scales"], ["z", "mean"], name="culprit")
        return model([named, helper.make_node("Identity", [result], ["y"])])

    assert [finding.operator for finding in audit_model(normalisation("mean")).findings if finding.node == "culprit"]
    assert not any("restricted" in finding.reason for finding in audit_model(normalisation("z")).findings)


def test_the_list_is_onnx_tensorrts_with_its_source() -> None:
    stored = trt_list()
    assert stored["onnx_tensorrt_version"].startswith("11.")
    assert "onnx-tensorrt" in stored["source"]
    assert len(stored["ops"]) > 150


class Determinant(Wrapper):
    """x: (B, 3, 3) -> y: (B), by an operator that TensorRT does not have."""

    def __init__(self) -> None:
        super().__init__(None)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        determinant: torch.Tensor = torch.linalg.det(x * self.scale)
        return determinant


def draw(generator: torch.Generator) -> Iterator[Inputs]:
    yield (torch.randn(2, 3, 3, generator=generator),)


DETERMINANT = Network(
    name="net",
    component="net",
    inputs={"x": {0: "batch"}},
    outputs=("y",),
    wrapper=Determinant,
    load=lambda _dtype: Determinant().eval(),
    draw=draw,
    batched=False,
    takes_lora=False,
    precision=Precision.FP32,
    islands=NORMALISATIONS,
)
CONTRACT = parse_config("""
    name: "net" max_batch_size: 4
    input { name: "x" data_type: TYPE_FP32 dims: [ 3, 3 ] }
    output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }
""")


def test_an_export_for_tensorrt_fails_and_keeps_nothing(checkpoint_folder: Path, tmp_path: Path) -> None:
    network = replace(DETERMINANT, precision=Precision.FP16)
    with pytest.raises(AuditError, match=r"^net: TensorRT does not take node \S+ \(Det\): .* not supported\.$"):
        network_artefact(network, read_checkpoint(checkpoint_folder), CONTRACT, tmp_path, lambda _share: None)
    assert list(tmp_path.iterdir()) == []


def test_an_export_for_the_cpu_keeps_the_findings(checkpoint_folder: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(checkpoint_folder)
    artefact = network_artefact(DETERMINANT, checkpoint, CONTRACT, tmp_path, lambda _share: None, Effort(batches=0))
    assert [finding["operator"] for finding in artefact.facts["audit"]["findings"]] == ["Det"]
