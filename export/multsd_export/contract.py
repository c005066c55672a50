"""Tensor contracts: `config.pbtxt` files as protobuf messages, and whether a network keeps one."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from multsd_export.errors import ContractError, RepositoryError
from multsd_export.families import FAMILY_TENSORS

DATA_TYPES: Mapping[int, int] = {
    onnx.TensorProto.FLOAT: model_config_pb2.TYPE_FP32,
    onnx.TensorProto.FLOAT16: model_config_pb2.TYPE_FP16,
    onnx.TensorProto.INT32: model_config_pb2.TYPE_INT32,
    onnx.TensorProto.INT64: model_config_pb2.TYPE_INT64,
}
ModelConfig = Any  # inference.ModelConfig; the generated module has no types
# "inputs" and "outputs" of a network: name, Triton's data_type, and dims with -1 for what is dynamic
Tensors = Mapping[str, Sequence[Mapping[str, Any]]]
ANY = -1  # a dimension that may differ from call to call
HEADER = "# Composed by multsd-export from the committed contract and a profile's settings; edit those, not this.\n"


def read_config(file: Path) -> ModelConfig:
    """A committed contract.

    Raises:
        RepositoryError: the file is not a Triton model configuration, or its name is not its folder's.
    """
    try:
        config = parse_config(file.read_text(encoding="utf-8"))
    except text_format.ParseError as error:
        raise RepositoryError(f"{file}: not a model configuration: {error}.") from error
    if config.name != file.parent.name:
        raise RepositoryError(f"{file}: the name is {config.name!r}, expected {file.parent.name!r}, its folder's.")
    return config


def parse_config(text: str) -> ModelConfig:
    """A model configuration from protobuf's text format."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def merge_config(contract: ModelConfig, settings: ModelConfig) -> ModelConfig:
    """A new message: the contract, then the settings merged in (single fields replaced, lists appended)."""
    merged = model_config_pb2.ModelConfig()
    merged.CopyFrom(contract)
    merged.MergeFrom(settings)
    return merged


def write_config(config: ModelConfig, file: Path) -> None:
    """Write the message as text."""
    file.write_text(HEADER + text_format.MessageToString(config), encoding="utf-8")


def family_contract(contract: ModelConfig, inputs: Collection[str], outputs: Collection[str]) -> ModelConfig:
    """A copy of a network's contract without the tensors that only other families have.

    Args:
        inputs, outputs: the names that the network has.
    """
    optional = FAMILY_TENSORS.get(contract.name, ())
    trimmed = merge_config(contract, model_config_pb2.ModelConfig())
    for tensors, names in ((trimmed.input, inputs), (trimmed.output, outputs)):
        for index in reversed(range(len(tensors))):
            if tensors[index].name in optional and tensors[index].name not in names:
                del tensors[index]
    return trimmed


def graph_tensors(file: Path) -> Tensors:
    """An ONNX file's inputs and outputs."""
    graph = onnx.load(str(file), load_external_data=False).graph
    return {"inputs": [_tensor(value) for value in graph.input], "outputs": [_tensor(value) for value in graph.output]}


def _tensor(value: Any) -> dict[str, Any]:
    tensor_type = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else ANY for dim in tensor_type.shape.dim]
    return {"name": value.name, "data_type": _type_name(tensor_type.elem_type), "dims": dims}


def _type_name(element: int) -> str:
    """Triton's name of an ONNX element type; ONNX's own where no network of ours may have it."""
    if element in DATA_TYPES:
        return str(model_config_pb2.DataType.Name(DATA_TYPES[element]))
    return str(onnx.TensorProto.DataType.Name(element))


def check_tensors(tensors: Tensors, contract: ModelConfig) -> None:
    """Hold a network's inputs and outputs to a contract.

    Raises:
        ContractError: a tensor is missing or too many, or its type or a dimension differs.
    """
    for kind, declared in (("input", contract.input), ("output", contract.output)):
        actual = {tensor["name"]: tensor for tensor in tensors[f"{kind}s"]}
        names = sorted(tensor.name for tensor in declared)
        if names != sorted(actual):
            raise ContractError(f"{contract.name}: {kind}s are {sorted(actual)}, config.pbtxt says {names}.")
        for tensor in declared:
            where = f"{contract.name}: {kind} {tensor.name}"
            _check_tensor(where, tensor, actual[tensor.name], batched=contract.max_batch_size > 0)


def _check_tensor(where: str, declared: Any, actual: Mapping[str, Any], *, batched: bool) -> None:
    expected = model_config_pb2.DataType.Name(declared.data_type)
    if actual["data_type"] != expected:
        raise ContractError(f"{where} has type {actual['data_type']}, config.pbtxt says {expected}.")
    _check_dims(where, _full_dims(declared, batched), actual["dims"])
    if batched and actual["dims"][0] != ANY:
        raise ContractError(f"{where} has a fixed batch of {actual['dims'][0]}; the first dimension has to be dynamic.")


def _check_dims(where: str, declared: Sequence[int], actual: Sequence[int]) -> None:
    fits = len(declared) == len(actual) and all(
        want in (ANY, have) for want, have in zip(declared, actual, strict=True)
    )
    if not fits:
        raise ContractError(f"{where} has dims {list(actual)}, config.pbtxt says {list(declared)} (-1: any).")


def _full_dims(tensor: Any, batched: bool) -> list[int]:
    """What the network sees: the reshaped dims, after the batch where there is one."""
    dims = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
    return [ANY, *dims] if batched else dims
