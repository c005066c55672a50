"""The manifest: what a composed repository was made from, what it holds and what it can do."""

import json
import reprlib
from collections.abc import Mapping
from enum import EnumType
from importlib.metadata import version
from pathlib import Path
from typing import Any

from multsd_export.checkpoint import Checkpoint
from multsd_export.digests import file_digest, folder_digests, value_digest
from multsd_export.errors import RepositoryError
from multsd_export.profiles import Device, Precision, Profile, ProfileName

MANIFEST_FILE = "manifest.json"
FORMAT = 4  # of the manifest; 2 has engines, 3 the device, 4 the export that builds engines again
PACKAGES = ("diffusers", "onnx", "onnxruntime", "onnxscript", "peft", "tokenizers", "torch", "transformers")
FIELDS = {"format", "profile", "precision", "checkpoint", "versions", "inputs", "files"}  # in every format
MISSING = object()
EACH = "*"  # every name
READ: Mapping[str, Any] = {  # of format 4, what is read: a type, a choice, a list's items or an object's fields
    "profile": ProfileName,
    "device": Device,
    "precision": Precision,
    "checkpoint": {"digest": str},
    "limits": {"unet_max_batch_size": int, "vae_tile": int},
    "networks": {EACH: {"parameters": int}},
    "engines": {EACH: {"tensorrt": str, "gpu": str, "compute_capability": str}},
    "parity": {},
    "files": {EACH: str},
}
REBUILD: Mapping[str, Any] = {  # where there are engines; the fields of `engines.record.Rebuild`
    "checkpoint": str,
    "profile": ProfileName,
    "precision": Precision,
    "loras": [str],
    "repository": str,
    "work_dir": str,
    "optimization_level": int,
    "workspace_mib": int | None,
}
WORDS = {str: "text", int: "a whole number", int | None: "a whole number or null"}
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
    """The manifest of a composed repository, or None where there is none that an export wrote.

    Raises:
        RepositoryError: it is damaged.
    """
    try:
        manifest = _read_json(output)
    except (FileNotFoundError, NotADirectoryError):
        return None
    ours = isinstance(manifest, dict) and manifest.keys() >= FIELDS and isinstance(manifest["files"], dict)
    return manifest if ours else None


def composed_manifest(output: Path) -> dict[str, Any]:
    """The manifest of a composed repository.

    Raises:
        RepositoryError: there is none, or one that is damaged or of another format; a field that is read is missing or
            of another type.
    """
    file = output / MANIFEST_FILE
    try:
        manifest = _read_json(output)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RepositoryError(f"{output}: expected a composed repository with {MANIFEST_FILE}, found none.") from error
    try:
        if not isinstance(manifest, dict):
            raise _fault("", "an object", manifest)
        if manifest.get("format") != FORMAT:
            raise _fault("format", str(FORMAT), manifest.get("format", MISSING))
        for name, form in READ.items():
            _check(name, manifest.get(name, MISSING), form)
        networks, engines = list(manifest["networks"]), list(manifest["engines"])
        if not networks:
            raise _fault("networks", "at least one", {})
        if manifest["profile"] == ProfileName.TENSORRT and set(engines) != set(networks):
            raise _fault("engines", f"those of {', '.join(networks)}", engines)
        if engines:
            _check("rebuild", manifest.get("rebuild", MISSING), REBUILD)
    except RepositoryError as error:
        raise RepositoryError(f"{file}: {error}; compose it again with --force.") from None
    return manifest


def _read_json(output: Path) -> Any:
    """What the manifest's file holds. Raises RepositoryError where that is no JSON, and OSError."""
    file = output / MANIFEST_FILE
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RepositoryError(
            f"{file} is damaged, no JSON ({error}); remove {output} if an export made it, and compose it again."
        ) from error


def _check(field: str, value: object, form: Any) -> None:
    """Hold a value to its form, as in `READ`. Raises RepositoryError."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            raise _fault(field, "an object", value)
        for name in value if EACH in form else form:
            _check(f"{field}.{name}", value.get(name, MISSING), form[EACH] if EACH in form else form[name])
    elif isinstance(form, list):
        if not isinstance(value, list):
            raise _fault(field, "a list", value)
        for index, each in enumerate(value):
            _check(f"{field}[{index}]", each, form[0])
    elif isinstance(form, EnumType):
        if value not in list(form):
            raise _fault(field, ", ".join(form), value)
    elif not isinstance(value, form):
        raise _fault(field, WORDS[form], value)


def _fault(field: str, expected: str, found: object) -> RepositoryError:
    where = f"{field}: " if field else ""
    return RepositoryError(f"{where}expected {expected}, found {'none' if found is MISSING else reprlib.repr(found)}")


def files_intact(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether every file is there with its digest."""
    return all((folder / name).is_file() and file_digest(folder / name) == digest for name, digest in files.items())
