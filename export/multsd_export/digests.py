"""SHA-256 digests of files and of folders, as hexadecimal text."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def file_digest(path: Path) -> str:
    """Digest of one file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_files(folder: Path) -> list[Path]:
    """Every file below a folder in a fixed order, leaving out Python's caches and hidden files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if not _ignored(path.relative_to(folder))]


def folder_digests(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, by its path relative to the folder."""
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in folder_files(folder)}


def value_digest(value: Mapping[str, Any] | Iterable[Any]) -> str:
    """Digest of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _ignored(relative: Path) -> bool:
    return any(part == "__pycache__" or part.startswith(".") for part in relative.parts)
