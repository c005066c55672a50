"""Where a checkpoint comes from: a folder, or a hub repository at a pinned revision.

The network is used for a hub repository alone, and only as long as its snapshot is not on this machine.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multsd_export.errors import CheckpointError
from multsd_export.json_files import write_json

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>.*))?")
REVISION = re.compile(r"[0-9a-f]{40}")
SNAPSHOT = re.compile(rf"models--(?P<repository>[\w.-]+)/snapshots/(?P<revision>{REVISION.pattern})")
COMPONENTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")
# A repository's root often holds the same weights once more, in one file: components alone are fetched.
PATTERNS = (
    "model_index.json",
    *(f"{component}/*.{suffix}" for component in COMPONENTS for suffix in ("json", "safetensors", "txt")),
)


@dataclass(frozen=True)
class Source:
    """A checkpoint folder and where it was taken from."""

    path: Path
    name: str
    revision: str | None
    licence: str | None


def resolve_source(text: str, records: Path) -> Source:
    """The folder that `text` names, or a snapshot of the hub repository `owner/name@revision`.

    Args:
        records: folder in which is kept what a later export needs to know of fetched repositories, without the network.

    Raises:
        CheckpointError: there is no such folder, the revision is not pinned, or the hub does not give the files.
    """
    path = Path(text)
    hub = HUB_ID.fullmatch(text)
    if path.exists() or hub is None:
        return folder_source(path)
    repository, revision = hub["repository"], hub["revision"]
    if revision is None:
        raise CheckpointError(
            f"{text} does not exist; name a checkpoint folder in diffusers layout, or a hub repository as "
            "owner/name@revision with its commit of 40 hexadecimal digits."
        )
    if not REVISION.fullmatch(revision):
        raise CheckpointError(
            f"{repository}: the revision is {revision!r}, expected a commit of 40 hexadecimal digits."
        )
    return _hub_source(repository, revision, records)


def folder_source(path: Path) -> Source:
    """A folder; a hub snapshot that already lies at `models--owner--name/snapshots/<commit>` tells its origin."""
    resolved = path.resolve()
    snapshot = SNAPSHOT.fullmatch("/".join(resolved.parts[-3:]))
    if snapshot:
        return Source(path, snapshot["repository"].replace("--", "/"), snapshot["revision"], None)
    return Source(path, resolved.name, None, None)


@dataclass(frozen=True)
class _Record:
    """What a later export has to know of a fetched repository, so that it needs no network."""

    licence: str | None
    left_out: list[str]  # files that PATTERNS has and that were not fetched


def _hub_source(repository: str, revision: str, records: Path) -> Source:
    file = records / f"{repository.replace('/', '--')}@{revision}.json"
    record = _read_record(file)
    path = _kept_snapshot(repository, revision, record) if record else None
    if record is None or path is None:
        record, path = _fetch(repository, revision)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(record))
    return Source(path, repository, revision, record.licence)


def _read_record(file: Path) -> _Record | None:
    """What is known of a repository; None where there is no record, or a damaged one."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return _Record(kept["licence"], kept["left_out"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _kept_snapshot(repository: str, revision: str, record: _Record) -> Path | None:
    """The folder of a repository's files, None where one is missing.

    The hub's client keeps a list of all that the repository has, and holds the folder to what is asked for of it: to be
    the same as what `_fetch` asked for.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(PATTERNS),
            ignore_patterns=record.left_out,
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return None
    return Path(folder)


def _fetch(repository: str, revision: str) -> tuple[_Record, Path]:
    """The licence that the repository's card names, and the folder of its files."""
    from httpx2 import HTTPError  # the client that huggingface_hub uses
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        info = model_info(repository, revision=revision)
        record = _Record(_licence(info), unneeded([file.rfilename for file in info.siblings or ()]))
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(PATTERNS), ignore_patterns=record.left_out
        )
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{repository}@{revision}: the hub does not give it: {reason}") from error
    return record, Path(folder)


def unneeded(names: Sequence[str]) -> list[str]:
    """Weights in another variant than the plain one, where a component has the plain ones too."""
    plain = {
        Path(name).parent for name in names if re.fullmatch(r"[\w-]+\.safetensors(\.index\.json)?", Path(name).name)
    }
    variants = [name for name in names if re.search(r"\.\w+(-\d+-of-\d+)?\.safetensors$|\.index\.\w+\.json$", name)]
    return [name for name in variants if Path(name).parent in plain]


def _licence(info: Any) -> str | None:
    card = info.card_data
    licence = card.get("license_name") or card.get("license") if card else None
    return str(licence) if licence else None
