"""`--region MASK PROMPT [NEGATIVE]`: an option of two or three values, which command-line parsers do not know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from multsd_client.request import Region
from multsd_client.shapes import Box

OPTION = "--region"
BOX = "box:"
LEAST_VALUES, MOST_VALUES = 2, 3


class RegionCommand(TyperCommand):
    """A command that takes what follows each --region, up to the next option, as that region's values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, gather(args))


def gather(args: Sequence[str]) -> list[str]:
    """Replace the values after each --region by one value, their JSON list. After `--` nothing is touched.

    Raises typer.BadParameter for a region without a prompt.
    """
    gathered: list[str] = []
    rest = list(args)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*gathered, argument, *rest]
        name, equals, value = argument.partition("=")
        if name != OPTION:
            gathered.append(argument)
            continue
        values = [value] if equals else []
        while rest and len(values) < MOST_VALUES and not is_option(rest[0]):
            values.append(rest.pop(0))
        if len(values) < LEAST_VALUES:
            raise typer.BadParameter(
                f"expected MASK PROMPT [NEGATIVE], found {values or 'nothing'}; a prompt of one word that begins with "
                "a dash needs a space before it",
                param_hint=OPTION,
            )
        gathered += [OPTION, json.dumps(values)]
    return gathered


def is_option(argument: str) -> bool:
    """Whether an argument ends a region: it begins with "-", and its first word is all of it, or ends with "="."""
    name, _, _ = argument.partition("=")
    return name.startswith("-") and len(name.split()) == 1


def read_regions(options: Sequence[str]) -> tuple[Region, ...]:
    """The regions of gathered options. Raises typer.BadParameter."""
    return tuple(_region(json.loads(option)) for option in options)


def _region(values: list[str]) -> Region:
    mask, prompt, *negative = values
    try:
        source = Box.parse(mask.removeprefix(BOX)) if mask.startswith(BOX) else Path(mask).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{mask}: {error.strerror}", param_hint=OPTION) from None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=OPTION) from None
    return Region(source, prompt, *negative)
