"""Half precision inside a graph whose inputs and outputs stay float32, with float32 islands.

TensorRT 11 types its networks strongly: what is to run in half precision has to be in half precision in the graph.
"""

from collections.abc import Collection, Iterator

import onnx_ir as ir

# Sums of squares over many channels leave the range of float16 (65504): torch's autocast computes normalisation in
# float32, and TensorRT warns of it in half precision.
NORMALISATIONS = frozenset({"InstanceNormalization", "GroupNormalization", "LayerNormalization"})
# CLIP as transformers computes it. UNets and VAEs keep softmax in half precision: their queries and keys are scaled
# before the product, as TensorRT asks for its fused attention, which takes one type from end to end. Not so a UNet
# whose config says `upcast_attention` (Stable Diffusion 2.1): its scores are too large for half precision.
TEXT_ENCODER_ISLANDS = NORMALISATIONS | {"Softmax"}


def make_islands(model: ir.Model, operators: Collection[str], *, attention_scores: bool = False) -> None:
    """Compute every node of these operators that is in float16 in float32, between casts.

    Args:
        attention_scores: also every softmax and the product of queries and keys that it is of, with nothing rounded
            between them.
    """
    scores = set(_attention_scores(model.graph)) if attention_scores else set()
    for node in list(model.graph):
        if (node.op_type in operators or node in scores) and node.outputs[0].dtype == ir.DataType.FLOAT16:
            _make_island(model.graph, node)
    for node in scores:
        _join_islands(model.graph, node)


def _attention_scores(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        source = node.inputs[0].producer() if node.op_type == "Softmax" and node.inputs[0] else None
        if source is not None and source.op_type == "MatMul":
            yield from (node, source)


def _join_islands(graph: ir.Graph, node: ir.Node) -> None:
    """Read another island's float32 where it is cast to float16 and back between the two."""
    for index, value in enumerate(node.inputs):
        widen = _cast_before(value)
        narrow = _cast_before(widen.inputs[0]) if widen else None
        if widen and narrow and narrow.inputs[0] and narrow.inputs[0].dtype == ir.DataType.FLOAT:
            node.replace_input_with(index, narrow.inputs[0])
            for cast in (widen, narrow):
                if not cast.outputs[0].uses() and not cast.outputs[0].is_graph_output():
                    graph.remove(cast, safe=True)


def _cast_before(value: ir.Value | None) -> ir.Node | None:
    source = value.producer() if value is not None else None
    return source if source is not None and source.op_type == "Cast" else None


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
