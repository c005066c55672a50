"""Half precision inside a graph whose inputs and outputs stay float32, with float32 islands.

TensorRT 11 types its networks strongly: what is to run in half precision has to be in half precision in the graph.
"""

from collections.abc import Collection

import onnx_ir as ir

# Sums of squares over many channels leave the range of float16 (65504): torch's autocast computes normalisation in
# float32, and TensorRT warns of it in half precision.
NORMALISATIONS = frozenset({"InstanceNormalization", "GroupNormalization", "LayerNormalization"})
# CLIP as transformers computes it. UNets and VAEs keep softmax in half precision: their queries and keys are scaled
# before the product, as TensorRT asks for its fused attention, which takes one type from end to end.
TEXT_ENCODER_ISLANDS = NORMALISATIONS | {"Softmax"}


def make_islands(model: ir.Model, operators: Collection[str]) -> None:
    """Compute every node of these operators that is in float16 in float32, between casts."""
    for node in list(model.graph):
        if node.op_type in operators and node.outputs[0].dtype == ir.DataType.FLOAT16:
            _make_island(model.graph, node)


def _make_island(graph: ir.Graph, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == ir.DataType.FLOAT16:
            cast = _cast(value, ir.DataType.FLOAT)
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    wide = node.outputs[0]
    narrow = _cast(wide, ir.DataType.FLOAT16)
    wide.replace_all_uses_with(narrow.outputs[0], replace_graph_outputs=True)
    narrow.replace_input_with(0, wide)
    wide.type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_after(node, narrow)


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], attributes={"to": dtype})
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
    return node
