"""Bearer tokens: who may ask. Read once at start; a change of the file needs a restart.

The file has `[NAME:]TOKEN` a line; empty lines and those that begin with # are passed over. A name stands for its token
in logs; several tokens may share one, so that a new one can be handed out before the old one's line goes. They share
its rate too. What is kept in memory are SHA-256 digests.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

from multsd_gateway.errors import UnauthorizedError

MIN_TOKEN = 16  # characters; a shorter one can be guessed

_LINE = re.compile(r"(?:(?P<name>[\w.-]{1,64}):)?(?P<token>[A-Za-z0-9._~+/-]+=*)", re.ASCII)
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*) *", re.ASCII | re.IGNORECASE)


class Tokens:
    """Digests of the known tokens, each with its name. tokens: (name, token); a name may have several."""

    def __init__(self, tokens: Iterable[tuple[str, str]]) -> None:
        self._digests = [(name, _digest(token)) for name, token in tokens]

    def __len__(self) -> int:
        return len(self._digests)

    def owner(self, authorization: str | None) -> str:
        """The name of the token in an Authorization header. Raises UnauthorizedError.

        Each digest is compared, in constant time: how long it takes tells nothing of any.
        """
        match = _BEARER.fullmatch(authorization or "")
        if match is None:
            raise UnauthorizedError("expected a bearer token in the Authorization header, found none")
        offered = _digest(match[1])
        owners = [name for name, digest in self._digests if hmac.compare_digest(digest, offered)]
        if not owners:
            raise UnauthorizedError("expected a known bearer token, found another")
        return owners[0]


def read_tokens(path: Path) -> Tokens:
    """The tokens of a file. Raises ValueError, which names a line and never what it holds, and OSError."""
    tokens: list[tuple[str, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None or len(match["token"]) < MIN_TOKEN:
            raise ValueError(f"{path}, line {number}: expected [NAME:]TOKEN of at least {MIN_TOKEN} characters")
        tokens.append((match["name"] or f"line-{number}", match["token"]))
    if not tokens:
        raise ValueError(f"{path}: expected at least one token, found none")
    return Tokens(tokens)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
