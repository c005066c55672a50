"""What HTTP headers and gRPC metadata can carry. No message tells a value: it may be a secret."""

from __future__ import annotations

import re
from collections.abc import Mapping

_VALUE = re.compile(r"[\x20-\x7e]+")
_NAME = re.compile(r"[0-9a-z_.-]+")  # gRPC's; HTTP allows more


def header_value(text: str, field: str) -> str:
    """A text without the white space around it. Raises ValueError, naming the field, for what no header can carry."""
    value = text.strip()
    if _VALUE.fullmatch(value) is None:
        found = "others" if value else "none"
        raise ValueError(f"{field}: expected printable ASCII characters on one line, found {found}")
    return value


def authorization(token: str | None) -> dict[str, str]:
    """The header of a bearer token. Raises ValueError."""
    return {} if token is None else {"Authorization": f"Bearer {header_value(token, 'token')}"}


def metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers as gRPC sends them, with names in lower case. Raises ValueError."""
    for name in headers:
        if _NAME.fullmatch(name.lower()) is None:
            raise ValueError(f"headers: expected names of letters, digits, '-', '_' and '.', found {name!r}")
    return {name.lower(): header_value(value, f"headers[{name!r}]") for name, value in headers.items()}
