"""Make what is missing and compose the repository; the part of an export that needs torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from multsd_export.artefacts import FULL_EFFORT, Artefact, Effort, Progress, network_artefact, palette_artefact
from multsd_export.checkpoint import Checkpoint
from multsd_export.compose import ORCHESTRATOR, VAE_TILE, Parts, compose, read_contracts
from multsd_export.contract import ModelConfig, family_contract
from multsd_export.digests import folder_digests
from multsd_export.engines.artefact import engine_artefact
from multsd_export.engines.machine import Machine
from multsd_export.engines.record import Rebuild
from multsd_export.engines.settings import EngineSettings
from multsd_export.engines.shapes import ShapeRange, Sides, shape_ranges
from multsd_export.families import FAMILY_MODELS
from multsd_export.folders import replacing_folder
from multsd_export.json_files import write_json
from multsd_export.manifest import FORMAT, MANIFEST_FILE
from multsd_export.networks import Network, networks_of
from multsd_export.onnx_export import MODEL_FILE
from multsd_export.palette import onnx_encoder, torch_encoder
from multsd_export.parity import RELATIVE_LIMITS
from multsd_export.profiles import Precision, Profile, Served
from multsd_export.torch_weights import weights_artefact

StageProgress = Callable[[str, float], None]  # told the stage and the share of it that is done


@dataclass(frozen=True)
class EnginePlan:
    """Where and how engines are built."""

    machine: Machine
    settings: EngineSettings
    rebuild: Rebuild  # goes into the manifest


def build(
    checkpoint: Checkpoint,
    repository: Path,
    profile: Profile,
    precision: Precision,
    *,
    output: Path,
    work_dir: Path,
    inputs: Mapping[str, Any],
    progress: StageProgress,
    effort: Effort = FULL_EFFORT,
    engine_plan: EnginePlan | None = None,
) -> None:
    """Export, encode and compose; the manifest is written last and appears together with everything else.

    Args:
        engine_plan: of a profile that runs engines.

    Raises:
        ExportError: the output is as it was before.
    """
    networks = networks_of(checkpoint, precision)
    contracts = read_family_contracts(repository, networks)
    artefacts = {
        network.name: _artefact(
            network, checkpoint, contracts[network.name], profile, work_dir, partial(progress, network.name), effort
        )
        for network in networks
    }
    palette = _palette(networks, artefacts, checkpoint, profile, work_dir, partial(progress, "palette"), effort)
    ranges = {}
    if profile.served is not Served.ONNX:
        ranges = {
            network.name: input_ranges(network, artefacts[network.name], checkpoint, contracts[network.name])
            for network in networks
        }
    engines = {}
    if engine_plan:
        engines = {
            name: engine_artefact(
                artefacts[name], own, engine_plan.settings, engine_plan.machine, partial(progress, f"{name} engine")
            )
            for name, own in ranges.items()
        }
    parts = Parts(repository, profile, checkpoint, artefacts, palette, engines, ranges)
    with replacing_folder(output) as target:
        compose(parts, contracts, target)
        content = manifest(parts, contracts["unet"].max_batch_size, target, inputs)
        if engine_plan:
            content["rebuild"] = asdict(engine_plan.rebuild)
        write_json(target / MANIFEST_FILE, content)
    progress("compose", 1)


def _artefact(
    network: Network,
    checkpoint: Checkpoint,
    contract: ModelConfig,
    profile: Profile,
    work_dir: Path,
    progress: Progress,
    effort: Effort,
) -> Artefact:
    """What a profile makes of a network; engines are made of its ONNX file afterwards."""
    if profile.served is Served.WEIGHTS:
        return weights_artefact(network, checkpoint, contract, work_dir, progress)
    return network_artefact(network, checkpoint, contract, work_dir, progress, effort, profile.served)


def _palette(
    networks: Sequence[Network],
    artefacts: Mapping[str, Artefact],
    checkpoint: Checkpoint,
    profile: Profile,
    work_dir: Path,
    progress: Progress,
    effort: Effort,
) -> Artefact:
    artefact = artefacts["vae_encoder"]
    (network,) = (each for each in networks if each.name == "vae_encoder")
    encode = partial(torch_encoder, network)
    if profile.served is Served.ONNX:
        encode = partial(onnx_encoder, artefact.folder / MODEL_FILE)
    return palette_artefact(artefact, encode, checkpoint, work_dir, progress, effort.colours)


def input_ranges(
    network: Network, artefact: Artefact, checkpoint: Checkpoint, contract: ModelConfig
) -> dict[str, ShapeRange]:
    """Every shape of the network's inputs that the orchestrator asks for."""
    sides = Sides(window=checkpoint.window, tile=VAE_TILE, cell=checkpoint.vae_scale_factor)
    inputs = artefact.facts["tensors"]["inputs"]
    return shape_ranges(network, inputs, max_batch_size=contract.max_batch_size, sides=sides)


def read_family_contracts(repository: Path, networks: Sequence[Network]) -> dict[str, ModelConfig]:
    """The committed contracts without the models and tensors that these networks' family does not have.

    Raises:
        RepositoryError: a network's contract or the orchestrator's is missing or cannot be read.
    """
    contracts = read_contracts(repository, {network.name for network in networks} | {ORCHESTRATOR})
    for name in set(FAMILY_MODELS) - {network.name for network in networks}:
        contracts.pop(name, None)
    for network in networks:
        contracts[network.name] = family_contract(contracts[network.name], network.inputs, network.outputs)
    return contracts


def manifest(parts: Parts, unet_max_batch_size: int, target: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's content; digests are those of the files under `target`."""
    checkpoint = parts.checkpoint
    return {
        "format": FORMAT,
        "profile": parts.profile.name,
        "device": parts.profile.device,
        "precision": inputs["precision"],
        "checkpoint": {
            "name": checkpoint.name,
            "revision": checkpoint.revision,
            "digest": checkpoint.digest,
            "family": checkpoint.family,
            "prediction_type": checkpoint.prediction_type,
            "licence": checkpoint.source.licence,
            "loras": checkpoint.lora_records(),
        },
        "versions": inputs["versions"],
        "limits": {
            "window": checkpoint.window,
            "vae_scale_factor": checkpoint.vae_scale_factor,
            "max_length": checkpoint.text_encoders[0].max_length,
            "unet_max_batch_size": unet_max_batch_size,
            "vae_tile": VAE_TILE,
        },
        "parity": {"limits": RELATIVE_LIMITS, "networks": _facts(parts.networks, "parity")},
        "audit": _facts(parts.networks, "audit"),
        "networks": {
            name: {
                "precision": artefact.facts["precision"],
                "parameters": artefact.facts["parameters"],
                **artefact.facts["tensors"],
            }
            for name, artefact in parts.networks.items()
        },
        "engines": {name: dict(artefact.facts) for name, artefact in parts.engines.items()},
        "inputs": dict(inputs),
        "files": folder_digests(target),
    }


def _facts(networks: Mapping[str, Artefact], key: str) -> dict[str, Any]:
    return {name: artefact.facts[key] for name, artefact in networks.items()}
