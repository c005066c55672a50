"""The page to paint on: its files, read once at start, and how browsers may keep and run them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from multsd_gateway import documentation

PAGE = "/"
FOLDER = "/page/"
INDEX = "index.html"

MEDIA_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Scripts and styles are files of this origin, none are inline; pictures are made from replies, as blobs. No text can
# become markup or code: the page makes every element itself.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is served. policy: the Content-Security-Policy, of HTML."""

    content: bytes = field(repr=False)
    media_type: str
    etag: str
    policy: str

    async def reply(self, request: Request) -> Response:
        """The file, or 304 where the browser has it already: it asks each time, so that no two versions mix."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        if self.media_type.startswith("text/html"):
            headers["Content-Security-Policy"] = self.policy
        if self.etag in _etags(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def read_page() -> dict[str, PageFile]:
    """Every file of the page by the path that it is served under, the page itself first."""
    found = dict(_walk(files("multsd_gateway") / "page", PurePosixPath()))
    found = {INDEX: found.pop(INDEX), **found}
    return {
        PAGE if name == INDEX else FOLDER + name: page_file(name, content, policy=POLICY)
        for name, content in found.items()
    }


def add_page(app: FastAPI, page: Mapping[str, PageFile]) -> None:
    """Serve the page's files, each under its own path."""
    for path, file in page.items():
        described = documentation.PAGE if path == PAGE else {"include_in_schema": False}
        app.add_api_route(path, file.reply, methods=["GET"], response_model=None, **described)


def open_paths(configured: tuple[str, ...], *pages: Mapping[str, PageFile]) -> tuple[str, ...]:
    """Paths that need no token: a page's own files are open where the page, the first of them, is."""
    return (*configured, *(path for page in pages if next(iter(page)) in configured for path in page))


def _walk(folder: Traversable, name: PurePosixPath) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            found += _walk(entry, name / entry.name)
        elif PurePosixPath(entry.name).suffix in MEDIA_TYPES:
            found.append((str(name / entry.name), entry.read_bytes()))
    return found


def page_file(name: str, content: bytes, *, policy: str) -> PageFile:
    """The file as it is served; its name's ending tells the media type."""
    digest = hashlib.sha256(content).hexdigest()
    return PageFile(content, MEDIA_TYPES[PurePosixPath(name).suffix], f'"{digest[:32]}"', policy)


def _etags(header: str) -> set[str]:
    """The validators of an If-None-Match; a proxy may have made them weak ones."""
    return {item.strip().removeprefix("W/") for item in header.split(",")}
