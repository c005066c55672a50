"""What is made from a checkpoint's weights and kept from export to export: ONNX files and the palette.

Each artefact is a folder with a stamp that records what it was made from. It is made again only when that changes.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from multsd_export.checkpoint import Checkpoint
from multsd_export.contract import ModelConfig, check_graph
from multsd_export.digests import file_digest, folder_digests, value_digest
from multsd_export.folders import replacing_folder
from multsd_export.manifest import PACKAGE_FOLDER, files_intact, package_versions, write_json
from multsd_export.networks import Network
from multsd_export.onnx_export import MODEL_FILE, OPSET, export_onnx
from multsd_export.palette import COLOURS, PALETTE_FILE, SEED, write_palette
from multsd_export.parity import measure_parity

STAMP_FILE = "stamp.json"
NETWORK_SOURCES = ("networks.py", "onnx_export.py", "parity.py")
PARITY_SEED = 0

Progress = Callable[[float], None]  # told the share that is done, 0 to 1


@dataclass(frozen=True)
class Artefact:
    """A folder of files, the digest of what it was made from, and what was measured on the way."""

    folder: Path
    key: str
    files: Mapping[str, str]  # name -> sha256
    facts: Mapping[str, Any]


def network_artefact(
    network: Network, checkpoint: Checkpoint, contract: ModelConfig, work_dir: Path, progress: Progress
) -> Artefact:
    """The network's ONNX file, compared with torch and held to its contract; made only where it is not there yet.

    Raises:
        ParityError, ContractError, CheckpointError: nothing is kept of it.
    """
    key = _network_key(network, checkpoint)
    artefact = _kept(work_dir / network.name, key) or _make_network(network, checkpoint, key, work_dir, progress)
    check_graph(artefact.folder / MODEL_FILE, contract)
    progress(1)
    return artefact


def palette_artefact(vae_encoder: Artefact, checkpoint: Checkpoint, work_dir: Path, progress: Progress) -> Artefact:
    """The palette, encoded by the exported VAE encoder; made only where it is not there yet."""
    folder = work_dir / "palette"
    scale = (checkpoint.window, checkpoint.vae_scale_factor, checkpoint.scaling_factor)
    key = value_digest([vae_encoder.key, scale, COLOURS, SEED, _source_digest("palette.py")])
    artefact = _kept(folder, key)
    if artefact is None:
        with replacing_folder(folder) as partial:
            write_palette(vae_encoder.folder / MODEL_FILE, checkpoint, partial / PALETTE_FILE, progress)
            _write_stamp(partial, key, {"colours": COLOURS})
        artefact = _read_stamp(folder)
    progress(1)
    return artefact


def _make_network(network: Network, checkpoint: Checkpoint, key: str, work_dir: Path, progress: Progress) -> Artefact:
    module = network.load(checkpoint)
    batches = list(network.draw(checkpoint, torch.Generator().manual_seed(PARITY_SEED)))
    progress(0.1)
    with replacing_folder(work_dir / network.name) as partial:
        file = export_onnx(network, module, batches[0], partial)
        progress(0.7)
        parity = measure_parity(network, module, file, batches)
        _write_stamp(partial, key, asdict(parity))
    return _read_stamp(work_dir / network.name)


def _network_key(network: Network, checkpoint: Checkpoint) -> str:
    return value_digest(
        {
            "network": network.name,
            "files": checkpoint.component_digests(network.component),
            "shapes": [checkpoint.window, checkpoint.max_length, checkpoint.embedding_dim],
            "sources": [_source_digest(name) for name in NETWORK_SOURCES],
            "opset": OPSET,
            "versions": package_versions(),
        }
    )


def _source_digest(name: str) -> str:
    return file_digest(PACKAGE_FOLDER / name)


def _kept(folder: Path, key: str) -> Artefact | None:
    if not (folder / STAMP_FILE).is_file():
        return None
    artefact = _read_stamp(folder)
    return artefact if artefact.key == key and files_intact(folder, artefact.files) else None


def _read_stamp(folder: Path) -> Artefact:
    stamp = json.loads((folder / STAMP_FILE).read_text(encoding="utf-8"))
    return Artefact(folder, stamp["key"], stamp["files"], stamp["facts"])


def _write_stamp(folder: Path, key: str, facts: Mapping[str, Any]) -> None:
    write_json(folder / STAMP_FILE, {"key": key, "facts": facts, "files": folder_digests(folder)})
