"""A network's configuration as a GPU serves it: its own dimensions instead of "any", its best batch, its warm-ups."""

from collections.abc import Mapping
from typing import Any

from tritonclient.grpc import model_config_pb2

from multsd_export.contract import ANY, ModelConfig, Tensors, merge_config
from multsd_export.engines.shapes import ShapeRange


def served_config(config: ModelConfig, tensors: Tensors, ranges: Mapping[str, ShapeRange]) -> ModelConfig:
    """A copy with every static dimension of the network in place of "any", and warm-ups at both ends of the batches.

    Where requests are batched the largest batch is preferred: `shape_ranges` has kernels chosen for it.

    Triton holds the configuration to an engine when it loads it, and refuses a size outside before it is queued.

    Args:
        tensors: of the network.
        ranges: of its inputs; what an engine is built for.
    """
    served = merge_config(config, model_config_pb2.ModelConfig())
    for declared, actual in ((served.input, tensors["inputs"]), (served.output, tensors["outputs"])):
        dims = {tensor["name"]: tensor["dims"][1:] for tensor in actual}  # without the batch
        for tensor in declared:
            if not tensor.HasField("reshape"):
                tensor.dims[:] = [
                    own if dim == ANY else dim for dim, own in zip(tensor.dims, dims[tensor.name], strict=True)
                ]
    if served.HasField("dynamic_batching") and served.max_batch_size > 1:
        served.dynamic_batching.preferred_batch_size[:] = [served.max_batch_size]  # Triton refuses a larger one
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


def name_graphs(config: ModelConfig) -> None:
    """Have a CUDA graph for every batch size where an engine is to be replayed.

    Left to itself Triton's TensorRT backend captures those of 1, the preferred and the largest batch, and runs the
    others without a word.
    """
    if config.optimization.cuda.graphs:
        for batch_size in range(1, config.max_batch_size + 1):
            config.optimization.cuda.graph_spec.add(batch_size=batch_size)


def replays_cuda_graphs(config: ModelConfig) -> bool:
    """Whether a served network's kernels are to be replayed from CUDA graphs, whatever is faster.

    Triton loads an engine whose capture fails all the same, and only its log tells.
    """
    return bool(config.optimization.cuda.graphs) or _execution(config) == "cuda-graphs"


def may_replay_cuda_graphs(config: ModelConfig) -> bool:
    """Whether they are, or would be where that was measured to be faster."""
    return replays_cuda_graphs(config) or _execution(config) == "autotune"


def _execution(config: ModelConfig) -> str:
    """How the `torch` profile's runner calls a network; "" for others."""
    return str(config.parameters["execution"].string_value) if "execution" in config.parameters else ""
