"""Hold an ONNX graph to what TensorRT's parser takes: operators, types and restrictions, node by node.

The list is onnx-tensorrt's own, carried as data. A restriction that this module cannot check counts as broken: an
engine is built elsewhere and later, and should not fail there.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from multsd_export.errors import AuditError

OPERATORS_FILE = Path(__file__).parent / "data" / "trt_supported_ops.json"
OPSET_LIMIT = 20  # this project's; TensorRT's own is in the list
TYPE_NAMES = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64",
    ir.DataType.BOOL: "BOOL",
}  # what our networks compute in; all others are refused: double, uint8, strings, and those that need Q/DQ nodes
RESIZE_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
RESIZE_NEAREST = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")

Restriction = Callable[[ir.Node], bool]  # whether the node keeps it


@dataclass(frozen=True)
class Finding:
    """One node that TensorRT would refuse."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"node {self.node} ({self.operator}): {self.reason}"


@dataclass(frozen=True)
class Audit:
    """What a graph consists of, and what TensorRT would refuse of it."""

    opset: int
    operators: Mapping[str, int]  # operator -> how many nodes
    types: tuple[str, ...]  # of every tensor between nodes
    findings: tuple[Finding, ...]


def audit_model(model: ir.Model) -> Audit:
    """Look at every node of a model whose values have types."""
    opset = model.opset_imports.get("", 0)
    nodes = list(model.graph.all_nodes())
    findings = [*_opset_findings(opset), *(finding for node in nodes for finding in _findings(node, opset))]
    for function in model.functions.values():
        findings.append(Finding(function.name, function.domain, "functions of a model's own are not supported"))
    types = {_type_name(value) for node in nodes for value in node.outputs}
    return Audit(
        opset, dict(sorted(Counter(node.op_type for node in nodes).items())), tuple(sorted(types)), tuple(findings)
    )


def check_audit(network: str, audit: Audit) -> None:
    """Raise AuditError, naming the first node and the reason, where TensorRT would refuse the graph."""
    if audit.findings:
        more = f" ({len(audit.findings) - 1} more)" if len(audit.findings) > 1 else ""
        raise AuditError(f"{network}: TensorRT does not take {audit.findings[0]}{more}.")


@cache
def trt_list() -> dict[str, Any]:
    """The list as it is stored."""
    stored: dict[str, Any] = json.loads(OPERATORS_FILE.read_text(encoding="utf-8"))
    return stored


def _opset_findings(opset: int) -> Iterator[Finding]:
    lowest, highest = trt_list()["opset_min"], min(trt_list()["opset_max"], OPSET_LIMIT)
    if not lowest <= opset <= highest:
        yield Finding("graph", "opset", f"opset {opset}, expected {lowest} to {highest}")


def _findings(node: ir.Node, opset: int) -> Iterator[Finding]:
    name, operator = node.name or node.outputs[0].name or "", node.op_type
    entry = trt_list()["ops"].get(operator)
    if node.domain not in ("", "ai.onnx"):
        yield Finding(name, operator, f"the domain {node.domain} is not ONNX's")
    elif entry is None or not entry["supported"]:
        yield Finding(name, operator, "the operator is not supported")
    else:
        for tensor, found in _unsupported_types(node, entry["types"].split(", "), opset):
            yield Finding(name, operator, f"{tensor} has type {found}, supported: {entry['types']}")
        if entry["restrictions"] and not _keeps_restriction(node):
            yield Finding(name, operator, f"restricted: {entry['restrictions']}")


def _unsupported_types(node: ir.Node, supported: list[str], opset: int) -> Iterator[tuple[str, str]]:
    """Tensors of a type that the operator does not take, or that TensorRT has not at all.

    The list gives the types of the data that an operator works on: of the formal parameters that share the first one's
    type. Indices, shapes, conditions and the results of comparisons have types that ONNX fixes.
    """
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    formal_inputs, formal_outputs = list(schema.inputs), list(schema.outputs)
    data_type = (formal_inputs or formal_outputs)[0].type_str
    for values, formals in ((node.inputs, formal_inputs), (node.outputs, formal_outputs)):
        for index, value in enumerate(values):
            if value is None or value.name == "":
                continue
            formal = formals[min(index, len(formals) - 1)]  # the last one may be variadic
            found = _type_name(value)
            is_data = formal.type_str == data_type or node.op_type == "Cast"
            if found not in (supported if is_data else TYPE_NAMES.values()):
                yield value.name or "", found


def _type_name(value: ir.Value) -> str:
    if value.dtype is None:
        return "unknown"
    return TYPE_NAMES.get(value.dtype, value.dtype.name)


def _keeps_restriction(node: ir.Node) -> bool:
    if node.op_type.startswith("Reduce"):
        return _is_constant(node, 1)
    check = RESTRICTIONS.get(node.op_type)
    return check is not None and check(node)


def _is_constant(node: ir.Node, index: int) -> bool:
    """Whether an input is an initializer, a constant, or left out."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return value is None or value.const_value is not None


def _text(node: ir.Node, name: str, default: str) -> str:
    return node.attributes.get_string(name, default) or default


def _one_output(node: ir.Node) -> bool:
    return all(not value.uses() and not value.is_graph_output() for value in node.outputs[1:])


def _no_dilation(node: ir.Node) -> bool:
    return all(dilation == 1 for dilation in node.attributes.get_ints("dilations", ()) or ())


def _plain_resize(node: ir.Node) -> bool:
    return (
        _text(node, "coordinate_transformation_mode", "half_pixel") in RESIZE_COORDINATES
        and _text(node, "mode", "nearest") in ("nearest", "linear")
        and (
            _text(node, "mode", "nearest") != "nearest"
            or _text(node, "nearest_mode", "round_prefer_floor") in RESIZE_NEAREST
        )
        and _text(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
        and not node.attributes.get_int("antialias", 0)
        and "axes" not in node.attributes
    )


def _plain_constant(node: ir.Node) -> bool:
    return not {"sparse_value", "value_string", "value_strings"} & set(node.attributes)


RESTRICTIONS: Mapping[str, Restriction] = {
    "AveragePool": _no_dilation,
    "Constant": _plain_constant,
    "CumSum": lambda node: _is_constant(node, 1),
    "LayerNormalization": _one_output,
    "MaxPool": lambda node: _no_dilation(node) and _one_output(node),
    "OneHot": lambda node: _is_constant(node, 1),
    "Resize": _plain_resize,
    "ScatterND": lambda node: _text(node, "reduction", "none") == "none",
    "Squeeze": lambda node: _is_constant(node, 1),
    "Unsqueeze": lambda node: _is_constant(node, 1),
}
