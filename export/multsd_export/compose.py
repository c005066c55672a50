"""Compose a model repository: committed contracts and code, a profile's settings and runner, and artefacts.

Every model's folder is complete in itself, since object-store repositories are copied one model at a time.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multsd_export.artefacts import Artefact
from multsd_export.checkpoint import Checkpoint, TextEncoderFacts
from multsd_export.contract import ModelConfig, merge_config, parse_config, read_config, write_config
from multsd_export.engines.shapes import ShapeRange
from multsd_export.errors import RepositoryError
from multsd_export.json_files import write_json
from multsd_export.palette import PALETTE_FILE
from multsd_export.profiles import Profile
from multsd_export.serving import name_graphs, served_config

CONFIG_FILE = "config.pbtxt"
VARIANTS_FOLDER = "configs"  # of a model; Triton looks here for what --model-config-name names
VERSION = "1"  # Triton's version folder
ORCHESTRATOR = "multidiffusion"
CHECKPOINT_FOLDER = "checkpoint"
VAE_TILE = 128  # latent cells, 1024 pixels: the longest side decoded at once, for the VAE's memory grows with it


@dataclass(frozen=True)
class Parts:
    """What a composition puts together."""

    repository: Path  # the committed sources
    profile: Profile
    checkpoint: Checkpoint
    networks: Mapping[str, Artefact]  # ONNX files or weights
    palette: Artefact
    engines: Mapping[str, Artefact] = field(default_factory=dict)  # served instead, where the profile runs engines
    ranges: Mapping[str, Mapping[str, ShapeRange]] = field(default_factory=dict)  # of networks on a GPU: their inputs


def read_contracts(repository: Path, required: set[str]) -> dict[str, ModelConfig]:
    """The committed contract of every model.

    Raises:
        RepositoryError: one of the required models is missing, or a contract cannot be read.
    """
    files = sorted(repository.glob(f"*/{CONFIG_FILE}"))
    missing = sorted(required - {file.parent.name for file in files})
    if missing:
        raise RepositoryError(f"{repository}: {', '.join(missing)} missing; expected a folder with {CONFIG_FILE} each.")
    return {file.parent.name: read_config(file) for file in files}


def compose(parts: Parts, contracts: Mapping[str, ModelConfig], target: Path) -> None:
    """Write every model into an empty folder."""
    configs = {
        name: merge_config(contract, parse_config(parts.profile.settings(name))) for name, contract in contracts.items()
    }
    _describe(configs[ORCHESTRATOR], parts.checkpoint)
    for name, artefact in parts.networks.items():
        for key, value in artefact.facts.get("runner", {}).items():
            configs[name].parameters[key].string_value = value
    for name, ranges in parts.ranges.items():
        configs[name] = served_config(configs[name], parts.networks[name].facts["tensors"], ranges)
    for name, config in configs.items():
        _write_model(parts, config, target / name)
    checkpoint_folder = target / ORCHESTRATOR / VERSION / CHECKPOINT_FOLDER
    _write_checkpoint(parts, configs["unet"].max_batch_size, checkpoint_folder)


def _describe(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Tell clients, who see a model's configuration but not its files, what it paints with."""
    facts = {
        "checkpoint_name": checkpoint.name,
        "checkpoint_digest": checkpoint.digest,
        "checkpoint_family": checkpoint.family,
        "window": checkpoint.window,
        "view_stride": view_stride(checkpoint),
        "text_encoders": ",".join(facts.model for facts in checkpoint.text_encoders),
    }
    for name, value in facts.items():
        config.parameters[name].string_value = str(value)


def view_stride(checkpoint: Checkpoint) -> int:
    """The paper's 8 latent cells for a window of 64, in proportion for others."""
    return checkpoint.window // 8


def _write_model(parts: Parts, config: ModelConfig, target: Path) -> None:
    version = target / VERSION
    version.mkdir(parents=True)
    write_config(config, target / CONFIG_FILE)
    for variant, models in parts.profile.variants.items():
        if config.name in models:
            file = target / VARIANTS_FOLDER / f"{variant}.pbtxt"
            file.parent.mkdir(exist_ok=True)
            varied = merge_config(config, parse_config(models[config.name]))
            name_graphs(varied)
            write_config(varied, file)
    source = parts.repository / config.name / VERSION
    if source.is_dir():
        shutil.copytree(source, version, ignore=shutil.ignore_patterns("__pycache__", ".*"), dirs_exist_ok=True)
    if config.name in parts.networks:
        _copy_artefact(parts.engines.get(config.name, parts.networks[config.name]), version)
        if parts.profile.runner:
            shutil.copyfile(parts.profile.runner.model, version / "model.py")
            for sibling in parts.profile.runner.siblings:
                shutil.copyfile(sibling, version / sibling.name)


def _copy_artefact(artefact: Artefact, target: Path) -> None:
    for name in artefact.files:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(artefact.folder / name, target / name)


def _write_checkpoint(parts: Parts, unet_max_batch_size: int, target: Path) -> None:
    """What the orchestrator needs to know of the checkpoint, as files beside its code."""
    target.mkdir()
    for facts in parts.checkpoint.text_encoders:
        (target / _tokenizer_file(facts)).write_text(facts.converted.text, encoding="utf-8")
    shutil.copyfile(parts.checkpoint.path / "scheduler" / "scheduler_config.json", target / "scheduler_config.json")
    shutil.copyfile(parts.palette.folder / PALETTE_FILE, target / PALETTE_FILE)
    write_json(target / "settings.json", checkpoint_settings(parts.checkpoint, unet_max_batch_size))


def checkpoint_settings(checkpoint: Checkpoint, unet_max_batch_size: int) -> dict[str, Any]:
    """The checkpoint's numbers, as the orchestrator reads them."""
    return {
        "name": checkpoint.name,
        "digest": checkpoint.digest,
        "family": checkpoint.family,
        "prediction_type": checkpoint.prediction_type,
        "window": checkpoint.window,
        "view_stride": view_stride(checkpoint),
        "latent_channels": checkpoint.latent_channels,
        "vae_scale_factor": checkpoint.vae_scale_factor,
        "scaling_factor": checkpoint.scaling_factor,
        "max_length": checkpoint.text_encoders[0].max_length,
        "pad_token_id": checkpoint.text_encoders[0].converted.pad_token_id,
        "embedding_dim": checkpoint.embedding_dim,
        "text_encoders": [
            {
                "model": facts.model,
                "tokenizer": _tokenizer_file(facts),
                "pad_token_id": facts.converted.pad_token_id,
                "max_length": facts.max_length,
                "outputs": list(facts.outputs),
            }
            for facts in checkpoint.text_encoders
        ],
        "pooled_dim": checkpoint.pooled_dim,
        "time_ids": checkpoint.time_ids,
        "force_zeros_for_empty_prompt": checkpoint.force_zeros_for_empty_prompt,
        "unet_max_batch_size": unet_max_batch_size,
        "vae_tile": VAE_TILE,
    }


def _tokenizer_file(facts: TextEncoderFacts) -> str:
    return f"{facts.tokenizer}.json"
