"""Contracts are merged as messages, and a graph that breaks one is refused by name."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from multsd_export.contract import (
    check_tensors,
    family_contract,
    graph_tensors,
    merge_config,
    parse_config,
    read_config,
    write_config,
)
from multsd_export.errors import ContractError, RepositoryError

CONTRACT = """
    name: "net" max_batch_size: 4
    input { name: "x" data_type: TYPE_FP32 dims: [ 4, -1 ] }
    input { name: "t" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }
    output { name: "y" data_type: TYPE_FP32 dims: [ 4, -1 ] }
"""
Tensor = tuple[str, int, list[str | int]]
X: Tensor = ("x", TensorProto.FLOAT, ["batch", 4, 8])
T: Tensor = ("t", TensorProto.FLOAT, ["batch"])
Y: Tensor = ("y", TensorProto.FLOAT, ["batch", 4, "width"])


def write_graph(file: Path, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    named, found = ([helper.make_tensor_value_info(*tensor) for tensor in tensors] for tensors in (inputs, outputs))
    onnx.save(helper.make_model(helper.make_graph([], "graph", named, found)), file)


def test_a_graph_that_keeps_the_contract_passes(tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx", [X, T], [Y])
    check_tensors(graph_tensors(tmp_path / "model.onnx"), parse_config(CONTRACT))


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([("sample", *X[1:]), T], [Y], r"net: inputs are \['sample', 't'\], config.pbtxt says \['t', 'x'\]"),
        ([X], [Y], r"net: inputs are \['x'\]"),
        ([X, T], [Y, ("z", *Y[1:])], r"net: outputs are \['y', 'z'\]"),
        ([("x", TensorProto.FLOAT16, X[2]), T], [Y], "input x has type TYPE_FP16, config.pbtxt says TYPE_FP32"),
        ([("x", TensorProto.DOUBLE, X[2]), T], [Y], "input x has type DOUBLE, config.pbtxt says TYPE_FP32"),
        ([("x", X[1], ["batch", 3, 8]), T], [Y], r"input x has dims \[-1, 3, 8\], config.pbtxt says \[-1, 4, -1\]"),
        ([("x", X[1], ["batch", 4]), T], [Y], r"input x has dims \[-1, 4\]"),
        ([X, ("t", T[1], ["batch", 1])], [Y], r"input t has dims \[-1, 1\], config.pbtxt says \[-1\]"),
        ([X, ("t", T[1], [1])], [Y], "input t has a fixed batch of 1"),
        ([X, T], [("y", Y[1], ["batch", "channels", 8])], r"output y has dims \[-1, -1, 8\]"),
    ],
)
def test_a_graph_that_breaks_the_contract_is_refused_by_name(
    tmp_path: Path, inputs: list[Tensor], outputs: list[Tensor], message: str
) -> None:
    write_graph(tmp_path / "model.onnx", inputs, outputs)
    with pytest.raises(ContractError, match=message):
        check_tensors(graph_tensors(tmp_path / "model.onnx"), parse_config(CONTRACT))


def test_settings_are_merged_as_messages_and_the_contract_is_left_alone() -> None:
    contract = parse_config(CONTRACT + 'backend: "onnxruntime" parameters { key: "a" value { string_value: "1" } }')
    settings = parse_config("""
        backend: "python" instance_group { kind: KIND_CPU count: 2 }
        parameters { key: "b" value { string_value: "2" } }
    """)
    merged = merge_config(contract, settings)
    assert merged.backend == "python"
    assert {key: value.string_value for key, value in merged.parameters.items()} == {"a": "1", "b": "2"}
    assert [group.count for group in merged.instance_group] == [2]
    assert list(merged.input) == list(contract.input)
    assert contract.backend == "onnxruntime"


def test_a_written_config_reads_back_as_the_same_message(tmp_path: Path) -> None:
    file = tmp_path / "net" / "config.pbtxt"
    file.parent.mkdir()
    write_config(parse_config(CONTRACT), file)
    assert read_config(file) == parse_config(CONTRACT)


@pytest.mark.parametrize(
    ("text", "message"), [("name: 3 {", "not a model configuration"), ('name: "other"', "expected 'net'")]
)
def test_a_broken_or_misnamed_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "net" / "config.pbtxt"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(RepositoryError, match=message):
        read_config(file)


UNET = """
    name: "unet" max_batch_size: 4
    input { name: "sample" data_type: TYPE_FP32 dims: [ 4 ] }
    input { name: "text_embeds" data_type: TYPE_FP32 dims: [ -1 ] }
    input { name: "time_ids" data_type: TYPE_FP32 dims: [ 6 ] }
    output { name: "out_sample" data_type: TYPE_FP32 dims: [ 4 ] }
"""


def names(tensors: Any) -> list[str]:
    return [tensor.name for tensor in tensors]


def test_tensors_of_other_families_are_left_out_of_a_copy() -> None:
    contract = parse_config(UNET)
    trimmed = family_contract(contract, ["sample"], ["out_sample"])
    assert (names(trimmed.input), names(trimmed.output)) == (["sample"], ["out_sample"])
    assert contract == parse_config(UNET)


def test_tensors_that_the_network_has_stay() -> None:
    contract = parse_config(UNET)
    assert family_contract(contract, ["sample", "text_embeds", "time_ids"], ["out_sample"]) == contract


def test_tensors_that_every_family_has_are_never_left_out() -> None:
    trimmed = family_contract(parse_config(UNET), ["latents"], ["noise_pred"])
    assert (names(trimmed.input), names(trimmed.output)) == (["sample"], ["out_sample"])
