"""One network from torch to an ONNX file.

The graph is plain ONNX (no operators of one runtime). ONNX Runtime and TensorRT read the same file, but for a network
that normalises whole pictures: `stage_normalisations`.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import rewriter

from multsd_export.audit import OPSET_LIMIT, Audit, audit_model
from multsd_export.errors import ExportError
from multsd_export.networks import Inputs, Network
from multsd_export.precision import make_islands
from multsd_export.profiles import Precision, Served

OPSET = OPSET_LIMIT
MODEL_FILE = "model.onnx"
DATA_FILE = f"{MODEL_FILE}.data"
EXTERNAL_BYTES = 2**30  # weights above this go to DATA_FILE; a protobuf message ends at twice of it


class Form(StrEnum):
    """How a graph writes its group norms down."""

    PLAIN = "plain"  # InstanceNormalization, for which TensorRT has a kernel
    STAGED = "staged"  # means in two stages, for ONNX Runtime: `stage_normalisations`


def form_of(network: Network, served: Served) -> Form:
    """The form that a profile serves a network in."""
    return Form.STAGED if network.whole_pictures and served is Served.ONNX else Form.PLAIN


def export_onnx(network: Network, module: torch.nn.Module, example: Inputs, folder: Path, form: Form) -> Audit:
    """Write `folder/model.onnx` (with `model.onnx.data` beside it where the weights are large), check it, audit it.

    Args:
        example: inputs with at least two rows; their dynamic axes become symbolic, every other axis static.
    """
    with torch.no_grad(), _quiet_exporter(), quick_rewriter():
        program = torch.onnx.export(
            module,
            example,
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            dynamic_shapes=dynamic_shapes(network),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"{network.name}: the exporter returned nothing.")
    make_means_row_independent(program.model)
    if network.precision is Precision.FP16:
        make_islands(program.model, network.islands, attention_scores=network.upcast_attention)
    if form is Form.STAGED:
        stage_normalisations(program.model)
    ClearMetadataAndDocStringPass()(program.model)  # stack traces, with the paths of this machine
    save(program.model, folder)
    return audit_model(program.model)


def save(model: ir.Model, folder: Path, external_bytes: int = EXTERNAL_BYTES) -> None:
    """Write the model, its weights in a file of their own where they take more than `external_bytes`; check it."""
    file = folder / MODEL_FILE
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, file, external_data=DATA_FILE if weights > external_bytes else None)
    onnx.checker.check_model(str(file), full_check=True)


def dynamic_shapes(network: Network) -> tuple[dict[int, Any], ...]:
    """The dynamic axes of every input; an axis is named where its name first appears, since names have to be unique."""
    named: set[str] = set()
    shapes = []
    for axes in network.inputs.values():
        shapes.append({axis: torch.export.Dim.DYNAMIC if name in named else name for axis, name in axes.items()})
        named.update(axes.values())
    return tuple(shapes)


def make_means_row_independent(model: ir.Model) -> None:
    """Write every mean over the tokens as a product with a row of 1 / L.

    ONNX Runtime's ReduceMean over the middle axis of (B, L, D) sums in another order when B is 1, which would make a
    picture depend on its neighbours in the last bits. Its MatMul computes every row alike.
    """
    for node in list(model.graph):
        length = _mean_length(node)
        if length is not None:
            _replace_mean(model.graph, node, length)


def _mean_length(node: ir.Node) -> int | None:
    """L where the node is a mean over the middle axis of (B, L, D) that keeps the axis, otherwise None."""
    if node.op_type != "ReduceMean" or len(node.inputs) != 2:
        return None
    source, axes = node.inputs
    keeps = node.attributes.get_int("keepdims", 1)
    if source is None or axes is None or axes.const_value is None or source.shape is None:
        return None
    if axes.const_value.numpy().tolist() != [1] or not keeps or len(source.shape) != 3:
        return None
    length = source.shape[1]
    return length if isinstance(length, int) else None


def _replace_mean(graph: ir.Graph, node: ir.Node, length: int) -> None:
    dtype = node.outputs[0].dtype or ir.DataType.FLOAT
    array = np.full((1, length), 1 / length, dtype=dtype.numpy())
    weights = _constant(graph, f"{node.outputs[0].name}_weights", array)
    product = ir.node("MatMul", [weights, node.inputs[0]])
    product.outputs[0].shape, product.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)


def stage_normalisations(model: ir.Model) -> None:
    """Write every group norm's mean and variance as means over each line and then over the lines.

    ONNX Runtime's InstanceNormalization adds up a group's values one after the other in float32. A group of a picture
    of 512 x 512 pixels has millions, and what is lost shows: 4e-3 of the largest value, growing with the picture.
    """
    for node in list(model.graph):
        if node.op_type == "InstanceNormalization":
            _stage_normalisation(model.graph, node)


def write_staged(file: Path, folder: Path) -> Path:
    """Write a plain graph once more in the form that ONNX Runtime computes right; returns the new file."""
    model = ir.load(file)
    stage_normalisations(model)
    save(model, folder)
    return folder / MODEL_FILE


def _stage_normalisation(graph: ir.Graph, node: ir.Node) -> None:
    """Replace an InstanceNormalization of (B, G, values) that the exporter made of a group norm.

    Another one is left as it is; the comparison with torch tells whether that is good enough.
    """
    values, dtype = node.inputs[0], node.outputs[0].dtype
    reshape = _grouping(node)
    lines = _lines(reshape) if reshape else None
    if values is None or dtype is None or reshape is None or lines is None:
        return
    prefix = node.outputs[0].name
    reshape.replace_input_with(1, _constant(graph, f"{prefix}_lines", np.array(lines)))
    along, across = (_constant(graph, f"{prefix}_axis_{axis}", np.array([axis])) for axis in (3, 2))
    epsilon = np.array(node.attributes.get_float("epsilon", 1e-5), dtype=dtype.numpy())
    nodes: list[ir.Node] = []

    def add(operator: str, *inputs: ir.Value) -> ir.Value:
        attributes = {"keepdims": 1} if operator == "ReduceMean" else {}
        nodes.append(ir.node(operator, inputs, attributes=attributes))
        nodes[-1].outputs[0].type = ir.TensorType(dtype)
        return nodes[-1].outputs[0]

    def mean(of: ir.Value) -> ir.Value:
        return add("ReduceMean", add("ReduceMean", of, along), across)

    centred = add("Sub", values, mean(values))
    variance = mean(add("Mul", centred, centred))
    deviation = add("Sqrt", add("Add", variance, _constant(graph, f"{prefix}_epsilon", epsilon)))
    normalised = add("Div", centred, deviation)
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, [normalised])
    narrowed = [use.outputs[0] for use in normalised.consumers() if use.op_type == "Cast"]
    for value in (reshape.outputs[0], values, normalised, *narrowed):
        value.shape = None  # it has four dimensions now


def _grouping(node: ir.Node) -> ir.Node | None:
    """The Reshape of (B, C, ...) to (B, G, values) before an InstanceNormalization without scale and bias."""
    values, scale, bias = (_before_cast(value) for value in node.inputs)
    reshape = values.producer() if values is not None else None
    plain = _all_equal(scale, 1) and _all_equal(bias, 0)
    if values is None or reshape is None or not plain or reshape.op_type != "Reshape" or len(values.uses()) != 1:
        return None
    return reshape


def _before_cast(value: ir.Value | None) -> ir.Value | None:
    """What an island in half precision reads."""
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value


def _all_equal(value: ir.Value | None, number: float) -> bool:
    return value is not None and value.const_value is not None and bool((value.const_value.numpy() == number).all())


def _lines(reshape: ir.Node) -> list[int] | None:
    """The shape (B, G, lines, values of a line) in place of (B, G, values), for pictures and for attention's tokens."""
    source, target = reshape.inputs
    if source is None or source.shape is None or target is None or target.const_value is None:
        return None
    batch, groups, *rest = target.const_value.numpy().tolist()
    channels = source.shape[1]
    if batch != 0 or rest != [-1] or not isinstance(channels, int):
        return None
    by_rank = {4: [0, groups, -1, 0], 3: [0, groups, channels // groups, -1]}  # 0: as long as the source's
    return by_rank.get(len(source.shape))


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about its own insides: a deprecated call, and operators of absent libraries."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def quick_rewriter() -> Iterator[None]:
    """Leave out the optimiser's rules of more than one result, which list all nodes of a graph anew for every node.

    The one that there is makes a Split of two Slices, which the exporter does not write for these networks.
    """
    rules = rewriter._DEFAULT_REWRITE_RULES
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in rules if rule._target_pattern.has_single_output_node)
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = rules
