"""The manifest: what a composed repository was made from, what it holds and what it can do."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from multsd_export.checkpoint import Checkpoint
from multsd_export.digests import file_digest, folder_digests, value_digest
from multsd_export.errors import RepositoryError
from multsd_export.profiles import Precision, Profile

MANIFEST_FILE = "manifest.json"
FORMAT = 4  # of the manifest; 2 has engines, 3 the device, 4 the export that builds engines again
PACKAGES = ("diffusers", "onnx", "onnxruntime", "onnxscript", "peft", "tokenizers", "torch", "transformers")
FIELDS = {"format", "profile", "precision", "checkpoint", "versions", "inputs", "files"}  # in every format
LATER_FIELDS = ("device", "limits", "parity", "networks", "engines")  # of those of format 4, what is read
PACKAGE_FOLDER = Path(__file__).parent


def export_inputs(checkpoint: Checkpoint, repository: Path, profile: Profile, precision: Precision) -> dict[str, Any]:
    """Everything that an export depends on; equal inputs make an equal repository."""
    return {
        "format": FORMAT,
        "profile": profile.name,
        "device": profile.device,
        "precision": precision,
        "checkpoint": checkpoint.digest,
        "checkpoint_name": checkpoint.name,
        "checkpoint_revision": checkpoint.revision,
        "repository": value_digest(folder_digests(repository)),
        "exporter": value_digest(folder_digests(PACKAGE_FOLDER)),
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what a network computes, read without importing them."""
    return {name: version(name) for name in PACKAGES}


def is_current(output: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether the folder is whole and was made from these inputs."""
    manifest = read_manifest(output)
    return manifest is not None and manifest.get("inputs") == inputs and files_intact(output, manifest["files"])


def read_manifest(output: Path) -> dict[str, Any] | None:
    """The manifest of a composed repository, or None where there is none that an export wrote."""
    try:
        manifest = json.loads((output / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    ours = isinstance(manifest, dict) and manifest.keys() >= FIELDS and isinstance(manifest["files"], dict)
    return manifest if ours else None


def composed_manifest(output: Path) -> dict[str, Any]:
    """The manifest of a composed repository.

    Raises:
        RepositoryError: there is none, or one of another format, or it lacks something.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise RepositoryError(f"{output}: expected a composed repository with {MANIFEST_FILE}, found none.")
    if manifest.get("format") != FORMAT:
        found = manifest.get("format")
        raise RepositoryError(f"{output}: the manifest's format is {found}, expected {FORMAT}; compose it again.")
    missing = [name for name in LATER_FIELDS if not isinstance(manifest.get(name), str | dict)]
    if missing:
        raise RepositoryError(f"{output}: the manifest has no {', '.join(missing)}; compose it again.")
    return manifest


def files_intact(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether every file is there with its digest."""
    return all((folder / name).is_file() and file_digest(folder / name) == digest for name, digest in files.items())
