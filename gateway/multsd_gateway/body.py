"""From the bytes of a request to a JSON object: bounded, lenient where the seed's own example needs it."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn

from multsd_client.errors import FieldNote
from multsd_gateway.errors import BodyTooLargeError, BodyTooSlowError, InvalidRequestError
from multsd_gateway.settings import Settings
from multsd_gateway.uploads import Upload
from multsd_gateway.wording import clip, found

MAX_DEPTH = 16
MAX_CONTAINERS = 10_000  # lists and objects, beside the points of polygons

# A string (also one that never ends), or a bracket. Possessive, so that hostile input costs one pass.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\Z|\\\Z)|[\[\]{}]', re.DOTALL)


async def read_body(
    chunks: AsyncIterator[bytes], upload: Upload, *, headers: Mapping[str, str], limit: int, seconds: float
) -> None:
    """Gather a body of at most `limit` bytes. headers: the request's.

    Raises BodyTooLargeError as soon as the limit is passed, BodyTooSlowError after `seconds`, InvalidRequestError for
    a compressed one, and OverloadedError.
    """
    if (encoding := headers.get("content-encoding", "identity").strip().lower()) not in ("identity", ""):
        refuse(f"expected no Content-Encoding, found {clip(encoding)}")
    declared = headers.get("content-length")
    if declared is not None and declared.isdecimal() and int(declared[:20]) > limit:
        raise BodyTooLargeError(f"body: expected at most {limit} bytes, found {declared[:20]}")
    try:
        async with asyncio.timeout(seconds):
            async for chunk in chunks:
                upload.add(chunk)
                if len(upload) > limit:
                    raise BodyTooLargeError(f"body: expected at most {limit} bytes, found more")
    except TimeoutError:
        raise BodyTooSlowError(f"body: expected within {seconds:g} s, found {len(upload)} bytes by then") from None


def parse_object(body: bytes, max_containers: int = MAX_CONTAINERS) -> dict[str, Any]:
    """Read a JSON object. Raw line breaks inside strings and a byte order mark are allowed.

    Raises InvalidRequestError: not UTF-8, not JSON, not an object, nested too deep, a name twice. NaN and Infinity are
    read, so that they are refused under the name of their field.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(f"expected UTF-8, found byte 0x{body[error.start]:02x} at position {error.start}")
    check_nesting(text, max_containers)
    try:
        value = json.loads(text, strict=False, parse_constant=float, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        refuse(f"expected JSON, found an error at line {error.lineno} column {error.colno}: {error.msg}")
    except ValueError as error:  # an integer of thousands of digits
        refuse(f"expected JSON, found {clip(str(error))}")
    if not isinstance(value, dict):
        refuse(f"expected a JSON object, found {found(value)}")
    return value


def most_containers(settings: Settings) -> int:
    """How many lists and objects a request within the limits may hold: each point of a polygon is a list."""
    return MAX_CONTAINERS + settings.max_regions * settings.max_polygon_points


def check_nesting(text: str, max_containers: int = MAX_CONTAINERS) -> None:
    """Refuse text whose brackets nest deeper, or are more, than any request's. Raises InvalidRequestError."""
    depth = containers = 0
    for token in _TOKEN.finditer(text):
        bracket = token.group()
        if bracket in ("[", "{"):
            depth, containers = depth + 1, containers + 1
        elif bracket in ("]", "}"):
            depth -= 1
        if depth > MAX_DEPTH:
            refuse(f"expected at most {MAX_DEPTH} nested lists and objects, found more")
        if containers > max_containers:
            refuse(f"expected at most {max_containers} lists and objects, found more")


def refuse(message: str) -> NoReturn:
    """Refuse the body as a whole."""
    raise InvalidRequestError([FieldNote("body", message)])


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidRequestError([FieldNote(clip(twice), "expected once, found more than once")])
    return value
