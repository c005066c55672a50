"""Readers of what lies under docker/: Dockerfiles, compose files, and commands in them."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml  # type: ignore[import-untyped]

from multsd_export.cli import app as export_app
from multsd_gateway.cli import app as gateway_app
from multsd_gateway.settings import PREFIX, Settings

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETTINGS = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
COMMANDS = {"multsd-export": export_app, "multsd-gateway": gateway_app}
NEWER_FLAGS = {"--grpc-max-response-pool-size"}  # than the development wheel's Triton


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, continuation lines joined, comments dropped."""

    name: str
    value: str

    def words(self) -> list[str]:
        """An exec form's words, else the value's."""
        return json.loads(self.value) if self.value.startswith("[") else self.value.split()


@cache
def stages(dockerfile: Path) -> tuple[tuple[Instruction, ...], ...]:
    """The instructions of every stage, its FROM first."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    instructions = [Instruction(*line.split(None, 1)) for line in text.splitlines() if line.strip()]
    starts = [number for number, each in enumerate(instructions) if each.name == "FROM"]
    return tuple(
        tuple(instructions[start:end]) for start, end in zip(starts, [*starts[1:], len(instructions)], strict=True)
    )


def last(stage: tuple[Instruction, ...], name: str) -> Instruction | None:
    """The instruction that holds in the end."""
    found = [each for each in stage if each.name == name]
    return found[-1] if found else None


def arguments(dockerfile: Path) -> dict[str, str]:
    """Build arguments with their defaults."""
    found = re.findall(r"^ARG (\w+)=(\S+)$", dockerfile.read_text(), flags=re.MULTILINE)
    return dict(reversed(found))  # the first of a name is the global one


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


def program(name: str) -> str | None:
    """Where a program lies: beside this Python, or on PATH."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def is_triton_flag(word: str, triton_help: str) -> bool:
    """Whether Triton's help lists the flag, with a value or without as it is written here."""
    flag, equals, _ = word.partition("=")
    return flag in NEWER_FLAGS or f"\n  {flag}{' <' if equals else chr(10)}" in triton_help


def check_command(name: str, words: list[str]) -> None:
    """Parse a command line as the project's command does, without running it. Raises what the parser raises."""
    command: Any = typer.main.get_command(COMMANDS[name])
    context = command.make_context(name, list(words))
    if hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        if not rest and command.invoke_without_command:
            return
        sub_name, sub, sub_words = command.resolve_command(context, rest)
        sub.make_context(sub_name, sub_words, parent=context)


def most_shared_memory(requests: int) -> int:
    """The most shared memory, in bytes, that Triton needs for so many requests.

    The masks of each, and a picture of the largest size and a decoded canvas in float32 for each that is painted.
    """
    config = (ROOT / "model_repository" / "multidiffusion" / "config.pbtxt").read_text()
    (painted,) = re.findall(r'"max_running" value \{ string_value: "(\d+)"', config)
    return requests * Settings().max_mask_pixels + int(painted) * Settings().max_pixels * (3 + 3 * 4)
