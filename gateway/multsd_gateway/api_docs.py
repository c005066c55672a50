"""GET /docs: Swagger UI over /openapi.json, all of it from this origin.

Its files come from the package fastapi-offline, as they are in the npm package swagger-ui-dist (Apache-2.0). The page
to paint on keeps its token on this origin: no script from elsewhere may run here, and none is inline.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from fastapi import FastAPI

from multsd_gateway.painting_page import PageFile, page_file

DOCS = "/docs"

# Swagger UI draws its arrows as data: images.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def read_docs() -> dict[str, PageFile]:
    """Every file by the path that it is served under."""
    own, gateway = files("multsd_gateway") / "api_docs_page", files("multsd_gateway")
    swagger_ui = files("fastapi_offline") / "static"
    found = {
        DOCS: own / "index.html",
        f"{DOCS}/start.js": own / "start.js",
        f"{DOCS}/icon.svg": gateway / "page" / "icon.svg",
        f"{DOCS}/swagger-ui-bundle.js": swagger_ui / "swagger-ui-bundle.js",
        f"{DOCS}/swagger-ui.css": swagger_ui / "swagger-ui.css",
    }
    return {path: page_file(file.name, file.read_bytes(), policy=POLICY) for path, file in found.items()}


def add_docs(app: FastAPI, docs: Mapping[str, PageFile]) -> None:
    """Serve them, beside the schema and not in it."""
    for path, file in docs.items():
        app.add_api_route(path, file.reply, methods=["GET"], response_model=None, include_in_schema=False)
