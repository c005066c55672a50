"""How a value that was found is shown in a message: its kind, and never more than a few characters of it."""

from __future__ import annotations

import json

SHOWN = 40
SHOWN_OF_A_FAILURE = 300


def found(value: object) -> str:
    """A short, printable description of a JSON value."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return clip(json.dumps(value))


def clip(text: str, shown: int = SHOWN) -> str:
    """At most `shown` characters, each printable, so that it may stand in a log line."""
    text = "".join(character if character.isprintable() else "?" for character in text[: shown + 1])
    return text if len(text) <= shown else f"{text[:shown]}..."


def failure(message: str) -> str:
    """What a caller is told of a model's failure: its first line; a traceback follows on later ones."""
    return clip(message.partition("\n")[0], SHOWN_OF_A_FAILURE) or "the model failed without a message"


def _text(value: str) -> str:
    shown = json.dumps(clip(value), ensure_ascii=False)
    return shown if len(value) <= SHOWN else f"{shown} ({len(value)} characters)"
