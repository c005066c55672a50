"""Make what is missing and compose the repository; the part of an export that needs torch."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from multsd_export.artefacts import Artefact, network_artefact, palette_artefact
from multsd_export.checkpoint import Checkpoint
from multsd_export.compose import ORCHESTRATOR, VAE_TILE, Parts, compose, read_contracts
from multsd_export.digests import folder_digests
from multsd_export.folders import replacing_folder
from multsd_export.manifest import FORMAT, MANIFEST_FILE, write_json
from multsd_export.networks import NETWORKS
from multsd_export.parity import RELATIVE_LIMIT
from multsd_export.profiles import Profile

StageProgress = Callable[[str, float], None]  # told the stage and the share of it that is done


def build(
    checkpoint: Checkpoint,
    repository: Path,
    profile: Profile,
    *,
    output: Path,
    work_dir: Path,
    inputs: Mapping[str, Any],
    progress: StageProgress,
) -> None:
    """Export, encode and compose; the manifest is written last and appears together with everything else.

    Raises:
        ExportError: the output is as it was before.
    """
    contracts = read_contracts(repository, {network.name for network in NETWORKS} | {ORCHESTRATOR})
    networks = {
        network.name: network_artefact(
            network, checkpoint, contracts[network.name], work_dir, partial(progress, network.name)
        )
        for network in NETWORKS
    }
    palette = palette_artefact(networks["vae_encoder"], checkpoint, work_dir, partial(progress, "palette"))
    parts = Parts(repository, profile, checkpoint, networks, palette)
    with replacing_folder(output) as target:
        compose(parts, contracts, target)
        write_json(target / MANIFEST_FILE, manifest(parts, contracts["unet"].max_batch_size, target, inputs))
    progress("compose", 1)


def manifest(parts: Parts, unet_max_batch_size: int, target: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's content; digests are those of the files under `target`."""
    checkpoint = parts.checkpoint
    return {
        "format": FORMAT,
        "profile": parts.profile.name,
        "precision": parts.profile.precision,
        "checkpoint": {
            "name": checkpoint.name,
            "revision": checkpoint.revision,
            "digest": checkpoint.digest,
            "family": checkpoint.family,
            "prediction_type": checkpoint.prediction_type,
        },
        "versions": inputs["versions"],
        "limits": {
            "window": checkpoint.window,
            "vae_scale_factor": checkpoint.vae_scale_factor,
            "max_length": checkpoint.max_length,
            "unet_max_batch_size": unet_max_batch_size,
            "vae_tile": VAE_TILE,
        },
        "parity": {"limit": RELATIVE_LIMIT, "networks": _facts(parts.networks)},
        "inputs": dict(inputs),
        "files": folder_digests(target),
    }


def _facts(networks: Mapping[str, Artefact]) -> dict[str, Mapping[str, Any]]:
    return {name: artefact.facts for name, artefact in networks.items()}
