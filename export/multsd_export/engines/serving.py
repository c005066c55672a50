"""A network's configuration as its engine is served: the dimensions it was built for, and what warms it up."""

from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.grpc import model_config_pb2

from multsd_export.contract import ANY, ModelConfig, merge_config
from multsd_export.engines.shapes import ShapeRange

Tensors = Mapping[str, Sequence[Mapping[str, Any]]]  # "inputs", "outputs" -> name and dims of each


def engine_config(config: ModelConfig, tensors: Tensors, ranges: Mapping[str, ShapeRange]) -> ModelConfig:
    """A copy with every static dimension of the graph in place of "any", and warm-ups at both ends of the batches.

    Triton holds the configuration to the engine when it loads it, and refuses a size outside before it is queued.

    Args:
        tensors: of the ONNX graph.
        ranges: what the engine is built for.
    """
    served = merge_config(config, model_config_pb2.ModelConfig())
    for declared, graph in ((served.input, tensors["inputs"]), (served.output, tensors["outputs"])):
        dims = {tensor["name"]: tensor["dims"][1:] for tensor in graph}  # without the batch
        for tensor in declared:
            if not tensor.HasField("reshape"):
                tensor.dims[:] = [
                    graph_dim if dim == ANY else dim
                    for dim, graph_dim in zip(tensor.dims, dims[tensor.name], strict=True)
                ]
    for batch_size in sorted({1, served.max_batch_size}):
        served.model_warmup.append(_warmup(served, ranges, batch_size))
    return served


def _warmup(config: ModelConfig, ranges: Mapping[str, ShapeRange], batch_size: int) -> Any:
    """A request of zeros: the first call loads kernels, which takes seconds that no request should wait."""
    warmup = model_config_pb2.ModelWarmup(name=f"batch of {batch_size}", batch_size=batch_size)
    for tensor in config.input:
        dims = tensor.dims if tensor.HasField("reshape") else ranges[tensor.name].opt[1:]
        warmup.inputs[tensor.name].CopyFrom(
            model_config_pb2.ModelWarmup.Input(data_type=tensor.data_type, dims=dims, zero_data=True)
        )
    return warmup
