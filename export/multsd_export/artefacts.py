"""What is made from a checkpoint's weights and kept from export to export: ONNX files and the palette.

Each artefact is a folder with a stamp that records what it was made from. It is made again only when that changes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from multsd_export.audit import check_audit
from multsd_export.checkpoint import Checkpoint
from multsd_export.contract import ModelConfig, check_tensors, graph_tensors
from multsd_export.digests import file_digest, folder_digests, value_digest
from multsd_export.folders import replacing_folder
from multsd_export.json_files import write_json
from multsd_export.manifest import PACKAGE_FOLDER, files_intact, package_versions
from multsd_export.networks import DTYPES, Network
from multsd_export.onnx_export import MODEL_FILE, OPSET, Form, export_onnx, form_of, write_staged
from multsd_export.palette import COLOURS, PALETTE_FILE, SEED, Encode, release_memory, write_palette
from multsd_export.parity import measure_parity
from multsd_export.profiles import Precision, Served

STAMP_FILE = "stamp.json"
NETWORK_SOURCES = (
    "artefacts.py",
    "audit.py",
    "contract.py",
    "data/trt_supported_ops.json",
    "lora_file.py",
    "lora_fusion.py",
    "modules.py",
    "networks.py",
    "onnx_export.py",
    "parity.py",
    "precision.py",
)
PARITY_SEED = 0

Progress = Callable[[float], None]  # told the share that is done, 0 to 1


@dataclass(frozen=True)
class Artefact:
    """A folder of files, the digest of what it was made from, and what was measured on the way."""

    folder: Path
    key: str
    files: Mapping[str, str]  # name -> sha256
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much is computed to prove an export; less than everything is for rehearsals with random weights."""

    batches: int = 3  # compared with torch; 0: none
    colours: int = COLOURS  # of the palette


FULL_EFFORT = Effort()


def network_artefact(
    network: Network,
    checkpoint: Checkpoint,
    contract: ModelConfig,
    work_dir: Path,
    progress: Progress,
    effort: Effort = FULL_EFFORT,
    served: Served = Served.ONNX,
) -> Artefact:
    """The network's ONNX file, compared with torch, audited, held to its contract; made only where it is not there yet.

    Args:
        served: what the profile makes of it.

    Raises:
        ParityError, ContractError, CheckpointError: nothing is kept of it.
        AuditError: TensorRT would not take the graph, and the graph is in half precision, which is made for it.
    """
    form = form_of(network, served)
    key = network_key(network, checkpoint, NETWORK_SOURCES, opset=OPSET, batches=effort.batches, form=form)
    folder = work_dir / artefact_folder(network)
    artefact = kept(folder, key) or _make_network(network, key, folder, progress, effort, form)
    check_tensors(artefact.facts["tensors"], contract)
    progress(1)
    return artefact


def palette_artefact(
    vae_encoder: Artefact,
    encode: Callable[[], Encode],
    checkpoint: Checkpoint,
    work_dir: Path,
    progress: Progress,
    colours: int = COLOURS,
) -> Artefact:
    """The palette; made only where it is not there yet.

    Args:
        vae_encoder: what the profile makes of the encoder.
        encode: loads it, or the checkpoint's own.
    """
    folder = work_dir / vae_encoder.folder.name.replace("vae_encoder", "palette")
    scale = (checkpoint.window, checkpoint.vae_scale_factor, checkpoint.scaling_factor)
    key = value_digest([vae_encoder.key, scale, colours, SEED, _source_digest("palette.py")])
    artefact = kept(folder, key)
    if artefact is None:
        with replacing_folder(folder) as partial:
            write_palette(encode(), checkpoint, partial / PALETTE_FILE, progress, colours)
            write_stamp(partial, key, {"colours": colours})
        release_memory()
        artefact = read_stamp(folder)
    progress(1)
    return artefact


def _make_network(network: Network, key: str, folder: Path, progress: Progress, effort: Effort, form: Form) -> Artefact:
    module = network.load(DTYPES[network.precision])
    parameters = sum(parameter.numel() for parameter in module.parameters())
    batches = list(network.draw(torch.Generator().manual_seed(PARITY_SEED)))
    progress(0.1)
    with replacing_folder(folder) as partial:
        audit = export_onnx(network, module, batches[0], partial, form)
        progress(0.7)
        if network.precision is Precision.FP16:
            check_audit(network.name, audit)
        parity = None
        if effort.batches:
            compared = islice(batches, effort.batches)
            with _compared_file(network, partial / MODEL_FILE, form) as file:
                parity = asdict(measure_parity(network, module.float(), file, compared))
        facts = {
            "parameters": parameters,
            "precision": network.precision,
            "parity": parity,
            "audit": asdict(audit),
            "tensors": graph_tensors(partial / MODEL_FILE),
        }
        write_stamp(partial, key, facts)
    return read_stamp(folder)


@contextmanager
def _compared_file(network: Network, file: Path, form: Form) -> Iterator[Path]:
    """The graph as ONNX Runtime computes it right; one that is made for TensorRT is compared in that form too."""
    if not network.whole_pictures or form is Form.STAGED:
        yield file
        return
    with TemporaryDirectory() as folder:
        yield write_staged(file, Path(folder))


def artefact_folder(network: Network) -> str:
    """The name of a network's folder: one for each precision."""
    return network.name if network.precision is Precision.FP32 else f"{network.name}-{network.precision}"


def network_key(network: Network, checkpoint: Checkpoint, sources: Iterable[str], **more: object) -> str:
    """The digest of everything that a network's artefact depends on.

    Args:
        sources: files of this package that decide what it is.
    """
    return value_digest(
        {
            "network": network.name,
            "precision": network.precision,
            "files": checkpoint.component_digests(network.component),
            "loras": checkpoint.lora_records() if network.takes_lora else [],
            "shapes": [
                checkpoint.window,
                checkpoint.embedding_dim,
                [facts.max_length for facts in checkpoint.text_encoders],
            ],
            "family": checkpoint.family,
            "sources": [_source_digest(name) for name in sources],
            "versions": package_versions(),
            **more,
        }
    )


def _source_digest(name: str) -> str:
    return file_digest(PACKAGE_FOLDER / name)


def kept(folder: Path, key: str) -> Artefact | None:
    """The artefact of a folder, None where it is not whole or was made from something else."""
    try:
        artefact = read_stamp(folder)
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # none, or a damaged one: a machine may go down
        return None
    return artefact if artefact.key == key and files_intact(folder, artefact.files) else None


def read_stamp(folder: Path) -> Artefact:
    """The artefact of a folder that has its stamp."""
    stamp = json.loads((folder / STAMP_FILE).read_text(encoding="utf-8"))
    return Artefact(folder, stamp["key"], stamp["files"], stamp["facts"])


def write_stamp(folder: Path, key: str, facts: Mapping[str, Any]) -> None:
    """Record what a folder's files were made from, and their digests."""
    write_json(folder / STAMP_FILE, {"key": key, "facts": facts, "files": folder_digests(folder)})
