"""Options that several commands share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from multsd_client.headers import header_value

TOKEN_VARIABLE = "MULTSD_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE = "--token-file"  # noqa: S105 - the name of an option

DEFAULT_URL = "http://127.0.0.1:5000"
DEFAULT_TIMEOUT_S = 600.0

Url = Annotated[str, typer.Option(envvar="MULTSD_URL", help="The service.")]
Timeout = Annotated[float, typer.Option(help="Seconds without a sign of life before giving up.")]
Retries = Annotated[
    int,
    typer.Option(
        min=0,
        help="How often to try again while the service is not there or full; heeds Retry-After. From 1 on, waits until "
        "the token's rate allows, too.",
    ),
]
TokenFile = Annotated[
    Path | None, typer.Option(help=f"File with the bearer token. [default: the variable {TOKEN_VARIABLE}]")
]


def read_token(file: Path | None) -> str | None:
    """The bearer token; never an option's value, which other users of the machine could see. Raises BadParameter."""
    if file is None:
        text = os.environ.get(TOKEN_VARIABLE)
        return _token(text, TOKEN_VARIABLE, TOKEN_VARIABLE) if text else None
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, ValueError):
        raise typer.BadParameter(f"{file}: expected a file with a token", param_hint=TOKEN_FILE) from None
    return _token(text, str(file), TOKEN_FILE)


def _token(text: str, source: str, hint: str) -> str:
    try:
        return header_value(text, source)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from None


def read_text(source: str) -> str:
    """The UTF-8 of a file, or of stdin where that is "-"; a byte order mark is left out. Raises OSError, ValueError.

    Bytes: as text, each lone carriage return would end a line, and stdin would be read in the locale's encoding.
    """
    content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    return content.decode("utf-8-sig")


def reason(error: Exception) -> str:
    """Why a file could not be read, without its name, which is told beside it."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
