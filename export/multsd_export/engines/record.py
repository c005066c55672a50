"""Whether the engines of a composed repository belong to a machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multsd_export.engines.machine import Machine
from multsd_export.errors import EngineError


def check_engines(manifest: Mapping[str, Any], machine: Machine, repository: Path, checkpoint: str) -> None:
    """Hold every engine's record to a machine.

    Args:
        checkpoint: as an export's command line names it.

    Raises:
        EngineError: naming the first engine of another TensorRT version or compute capability, and the command that
            builds it again.
    """
    for name, record in manifest["engines"].items():
        for field, found in (("tensorrt", machine.tensorrt), ("compute_capability", machine.compute_capability)):
            if record[field] != found:
                raise EngineError(
                    f"{name}: the engine was built for {field} {record[field]} ({record['gpu']}), this machine has "
                    f"{found} ({machine.gpu}); build it again here: "
                    f"{rebuild_command(manifest, repository, checkpoint)}"
                )


def rebuild_command(manifest: Mapping[str, Any], repository: Path, checkpoint: str) -> str:
    """The export that composes the repository anew; engines of another machine are built again."""
    return f"multsd-export --checkpoint {checkpoint} --output {repository} --profile {manifest['profile']}"


def checkpoint_argument(manifest: Mapping[str, Any]) -> str:
    """The checkpoint as an export would name it, as far as the manifest knows: a folder's path it does not."""
    facts = manifest["checkpoint"]
    return f"{facts['name']}@{facts['revision']}" if facts["revision"] else str(facts["name"])
