"""Whether the engines of a composed repository are whole and of a machine, and the export that builds them again."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from multsd_export.digests import file_digest
from multsd_export.engines.machine import Machine
from multsd_export.errors import EngineError

PLAN_FILE = "model.plan"
DIGITS = 12  # of a digest, in messages
VERSION = "1"  # Triton's version folder; `compose`, which has its own, needs torch


@dataclass(frozen=True)
class Rebuild:
    """The options of the export that built a repository's engines, as its manifest keeps them."""

    checkpoint: str  # a folder's whole path, or owner/name@commit
    profile: str
    precision: str
    loras: list[str]  # FILE.safetensors:SCALE, with the file's whole path
    repository: str  # the committed contracts
    work_dir: str
    optimization_level: int
    workspace_mib: int | None

    def command(self, output: Path) -> str:
        """The command line that composes the repository anew at `output`."""
        options = {
            "checkpoint": self.checkpoint,
            "output": output,
            "profile": self.profile,
            "precision": self.precision,
            "optimization-level": self.optimization_level,
            "workspace-mib": self.workspace_mib,
            "repository": self.repository,
            "work-dir": self.work_dir,
        }
        words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        words += [word for lora in self.loras for word in ("--lora", lora)]
        return shlex.join(["multsd-export", *words])


def check_engines(
    manifest: Mapping[str, Any], machine: Machine, repository: Path, checkpoint: str | None = None
) -> None:
    """Hold every engine's record to a machine.

    A GPU of another name is another machine, even with the same compute capability: an L40S and an L4 both have 8.9,
    but not the memory and the multiprocessors that kernels are chosen for.

    Args:
        checkpoint: as an export's command line names it; left out, as the one did that built the engines.

    Raises:
        EngineError: naming the first engine of another TensorRT version or GPU, and the command that builds it again.
    """
    for name, record in manifest["engines"].items():
        built = Machine(record["tensorrt"], record["gpu"], record["compute_capability"])
        if built != machine:
            raise EngineError(
                f"{name}: the engine was built with {built}, here is {machine}; "
                f"{_again(manifest, repository, checkpoint)}"
            )


def check_plans(manifest: Mapping[str, Any], repository: Path) -> None:
    """Hold every engine's plan to its digest, not to its size alone: a damaged file may have the right one.

    A GB takes about a second. Triton's start does not wait for it: an export that precedes it reads every file anyway.

    Raises:
        EngineError: naming the first plan that is missing or another, and the command that builds it again.
    """
    again = _again(manifest, repository)
    for name in manifest["engines"]:
        plan = f"{name}/{VERSION}/{PLAN_FILE}"
        file, expected = repository / plan, manifest["files"].get(plan)
        if expected is None:
            raise EngineError(f"{file}: the manifest's files lack it; {again} --force")  # or it is called up to date
        if not file.is_file():
            found = f"expected a file with the digest {expected[:DIGITS]}, found none"
        elif (digest := file_digest(file)) != expected:
            found = f"expected the digest {expected[:DIGITS]}, found {digest[:DIGITS]} ({file.stat().st_size} bytes)"
        else:
            continue
        raise EngineError(f"{file}: {found}; {again}")


def _again(manifest: Mapping[str, Any], repository: Path, checkpoint: str | None = None) -> str:
    rebuild = Rebuild(**{each.name: manifest["rebuild"][each.name] for each in fields(Rebuild)})
    if checkpoint is not None:
        rebuild = replace(rebuild, checkpoint=checkpoint)
    return f"build it again here: {rebuild.command(repository)}"
