"""One network from torch to an ONNX file.

The graph is plain ONNX (no operators of one runtime), so that ONNX Runtime and TensorRT read the same file.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from multsd_export.audit import OPSET_LIMIT, Audit, audit_model
from multsd_export.errors import ExportError
from multsd_export.networks import Inputs, Network
from multsd_export.precision import make_islands
from multsd_export.profiles import Precision

OPSET = OPSET_LIMIT
MODEL_FILE = "model.onnx"
DATA_FILE = f"{MODEL_FILE}.data"
EXTERNAL_BYTES = 2**30  # weights above this go to DATA_FILE; a protobuf message ends at twice of it


def export_onnx(network: Network, module: torch.nn.Module, example: Inputs, folder: Path) -> Audit:
    """Write `folder/model.onnx` (with `model.onnx.data` beside it where the weights are large), check it, audit it.

    Args:
        example: inputs with at least two rows; their dynamic axes become symbolic, every other axis static.
    """
    with torch.no_grad(), _quiet_exporter():
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
    name = f"{node.outputs[0].name}_weights"
    dtype = node.outputs[0].dtype or ir.DataType.FLOAT
    tensor = ir.tensor(np.full((1, length), 1 / length, dtype=dtype.numpy()), name=name)
    weights = ir.Value(name=name, shape=ir.Shape((1, length)), type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(weights)
    product = ir.node("MatMul", [weights, node.inputs[0]])
    product.outputs[0].shape, product.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)


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
