"""The URL of a service, which may hold a name and a password: those are sent, and never told."""

from __future__ import annotations

import re

import httpx

_USER_INFO = re.compile(r"(?s)^(.*?//)?.*@")  # up to the last "@", as passwords come that should have been quoted


def service_url(url: str) -> httpx.URL:
    """Raises ValueError for what is not the URL of an HTTP service."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        why = "" if "@" in url else f": {error}"  # which may quote a piece of a password
        raise ValueError(f"url: expected http://host:port, found {shown(url)!r}{why}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"url: expected http://host:port, found {shown(url)!r}")
    return parsed


def shown(url: httpx.URL | str) -> str:
    """A URL as messages may tell it, without name and password."""
    return _USER_INFO.sub(lambda match: match[1] or "", str(url))
