"""`--region MASK PROMPT [NEGATIVE]`: an option of two or three values, which command-line parsers do not know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from multsd_client.request import Box, Region

OPTION = "--region"
BOX = "box:"


class RegionCommand(TyperCommand):
    """A command that takes what follows each --region, up to the next option, as that region's values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, gather(args))


def gather(args: Sequence[str]) -> list[str]:
    """Replace the values after each --region by one value, their JSON list. After `--` nothing is touched."""
    gathered: list[str] = []
    rest = list(args)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*gathered, argument, *rest]
        gathered.append(argument)
        if argument == OPTION:
            values: list[str] = []
            while rest and len(values) < 3 and not rest[0].startswith("-"):
                values.append(rest.pop(0))
            gathered.append(json.dumps(values))
    return gathered


def read_regions(options: Sequence[str]) -> tuple[Region, ...]:
    """The regions of gathered options. Raises typer.BadParameter."""
    return tuple(_region(json.loads(option)) for option in options)


def _region(values: list[str]) -> Region:
    if len(values) not in (2, 3):
        raise typer.BadParameter(f"expected MASK PROMPT [NEGATIVE], got {values}", param_hint=OPTION)
    mask, prompt, *negative = values
    try:
        source = Box.parse(mask.removeprefix(BOX)) if mask.startswith(BOX) else Path(mask).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{mask}: {error.strerror}", param_hint=OPTION) from None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=OPTION) from None
    return Region(source, prompt, *negative)
