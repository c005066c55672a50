"""A network's weights as the `torch` profile serves them: one folder that the libraries read back.

LoRAs are fused and the precision is applied before, so a served model needs nothing but its own folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tritonclient.grpc import model_config_pb2

from multsd_export.artefacts import (
    PARITY_SEED,
    Artefact,
    Progress,
    artefact_folder,
    kept,
    network_key,
    read_stamp,
    write_stamp,
)
from multsd_export.checkpoint import Checkpoint
from multsd_export.contract import ANY, ModelConfig, Tensors, check_tensors
from multsd_export.folders import replacing_folder
from multsd_export.networks import DTYPES, Inputs, Network

WEIGHTS_FOLDER = "weights"
SOURCES = ("lora_file.py", "lora_fusion.py", "modules.py", "networks.py", "torch_weights.py")
DATA_TYPES = {torch.float32: model_config_pb2.TYPE_FP32, torch.int32: model_config_pb2.TYPE_INT32}


def weights_artefact(
    network: Network, checkpoint: Checkpoint, contract: ModelConfig, work_dir: Path, progress: Progress
) -> Artefact:
    """The network's weights, held to its contract; made only where they are not there yet.

    Raises:
        ContractError, CheckpointError: nothing is kept of it.
    """
    key = network_key(network, checkpoint, SOURCES)
    folder = work_dir / f"{artefact_folder(network)}-weights"
    artefact = kept(folder, key) or _write_weights(network, key, folder, progress)
    check_tensors(artefact.facts["tensors"], contract)
    progress(1)
    return artefact


def _write_weights(network: Network, key: str, folder: Path, progress: Progress) -> Artefact:
    wrapper = network.load(DTYPES[network.precision])
    progress(0.3)
    with replacing_folder(folder) as partial:
        wrapper.model.save_pretrained(partial / WEIGHTS_FOLDER)
        progress(0.8)
        facts = {
            "parameters": sum(parameter.numel() for parameter in wrapper.parameters()),
            "precision": network.precision,
            "parity": None,  # nothing is converted; `multsd-export verify` compares precision and machine
            "audit": None,
            "tensors": module_tensors(network, wrapper),
            "runner": {"module": network.wrapper.__name__, "precision": network.precision},
        }
        write_stamp(partial, key, facts)
    return read_stamp(folder)


def module_tensors(network: Network, module: torch.nn.Module) -> Tensors:
    """Names, types and dims of what goes in and out, found by asking for shapes alone with inputs of several sizes.

    The module is left without its weights.
    """
    module = module.to("meta")
    drawn = list(network.draw(torch.Generator().manual_seed(PARITY_SEED)))
    return {
        "inputs": _described(tuple(network.inputs), drawn),
        "outputs": _described(network.outputs, [_outputs(module, inputs) for inputs in drawn]),
    }


def _outputs(module: torch.nn.Module, inputs: Inputs) -> Inputs:
    with torch.no_grad():
        result = module(*(tensor.to("meta") for tensor in inputs))
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def _described(names: Sequence[str], drawn: Sequence[Inputs]) -> list[dict[str, Any]]:
    """Each tensor, with -1 for a dim that is not the same in all that was drawn."""
    described = []
    for name, *tensors in zip(names, *drawn, strict=True):
        sizes = [set(dims) for dims in zip(*(tensor.shape for tensor in tensors), strict=True)]
        described.append(
            {
                "name": name,
                "data_type": model_config_pb2.DataType.Name(DATA_TYPES[tensors[0].dtype]),
                "dims": [ANY if len(found) > 1 else found.pop() for found in sizes],
            }
        )
    return described
