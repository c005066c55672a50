"""The painting page: which files it has, how they are served, and that nothing in them reaches out or is inline."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

import pytest
from fastapi import FastAPI

from multsd_export.checkpoint import read_checkpoint
from multsd_gateway.app import create_app
from multsd_gateway.limits import FORMATS
from multsd_gateway.painting_page import FOLDER, PAGE, read_page
from tests.unit.gateway.fakes import FakePainter, ask, settings

PAGE_FOLDER = Path(__file__).parents[3] / "gateway" / "multsd_gateway" / "page"
CHECKPOINT = Path(__file__).parents[3] / "export" / "demo_checkpoint" / "checkpoint"
FILES = read_page()
HTML = FILES[PAGE].content.decode()
SCRIPTS = {path: file.content.decode() for path, file in FILES.items() if path.endswith(".js")}
MAX_BYTES = 290_000  # of the first load; the rest of 300 KB is for heads and limits


class Tags(HTMLParser):
    """Every tag of a page, with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


TAGS = Tags(HTML).found


def app(**changes: object) -> FastAPI:
    return create_app(settings(**changes), FakePainter())


def test_the_page_is_html_with_a_strict_policy() -> None:
    reply = ask(app(), "GET", "/")

    assert reply.status_code == 200
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(rule.split(" ", 1) for rule in reply.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in reply.headers["Content-Security-Policy"]
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", sorted(FILES))
def test_every_file_is_served_and_asked_for_again_without_being_sent_again(path: str) -> None:
    served = app()
    first = ask(served, "GET", path)

    assert (first.status_code, first.content) == (200, FILES[path].content)
    assert first.headers["Cache-Control"] == "no-cache"
    for etag in (first.headers["ETag"], f"W/{first.headers['ETag']}", f'"other", {first.headers["ETag"]}'):
        again = ask(served, "GET", path, headers={"If-None-Match": etag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == first.headers["ETag"]
    assert ask(served, "GET", path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_nothing_but_the_pages_files_is_served_beside_it() -> None:
    for path in (
        "/page/",
        "/page/index.html",
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/core",
        "/page/nothing.js",
    ):
        assert ask(app(), "GET", path).status_code == 404, path


def test_every_file_of_the_folder_is_part_of_the_page() -> None:
    there = {path.relative_to(PAGE_FOLDER).as_posix() for path in PAGE_FOLDER.rglob("*") if path.is_file()}
    served = {path.removeprefix(FOLDER) for path in FILES if path != PAGE} | {"index.html"}
    assert there == served


def test_the_page_needs_no_token_where_it_is_open_and_one_where_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a-token-of-enough-characters\n")
    open_app = app(token_file=tmp_path / "tokens")
    closed = app(token_file=tmp_path / "tokens", open_paths=("/healthz",))
    for path in FILES:
        assert ask(open_app, "GET", path).status_code == 200, path
        assert ask(closed, "GET", path).status_code == 401, path
    assert ask(open_app, "GET", "/page/nothing.js").status_code == 401
    assert ask(open_app, "GET", "/limits").status_code == 401


def test_nothing_is_inline() -> None:
    for tag, attributes in TAGS:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert tag != "style"
        if tag == "script":
            assert attributes == {"type": "module", "src": "page/main.js"}


def test_no_file_names_another_origin() -> None:
    for path, file in FILES.items():
        text = file.content.decode().replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"https?://|[\"'(]//", text) == [], path


def test_no_module_makes_markup_or_code_of_text() -> None:
    for path, text in SCRIPTS.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )


def test_every_import_is_a_file_of_the_page() -> None:
    used = {f"{FOLDER}main.js"}
    for path, text in SCRIPTS.items():
        for name in re.findall(r'^import [^"]*"([^"]+)";$', text, re.MULTILINE):
            target = normal(PurePosixPath(path).parent / name)
            assert target in SCRIPTS, f"{path} imports {name}"
            used.add(target)
    assert used == set(SCRIPTS), "each module is used"


def normal(path: PurePosixPath) -> str:
    """A path without `..` and `.`."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return str(PurePosixPath(*parts))


def test_the_first_load_is_small() -> None:
    assert sum(len(file.content) for file in FILES.values()) <= MAX_BYTES


def test_the_demo_presets_are_offered_for_the_checkpoint_that_is_shipped() -> None:
    digest = read_checkpoint(CHECKPOINT).digest
    named = re.search(r'DEMO_CHECKPOINT = "(.*)"', SCRIPTS[f"{FOLDER}core/presets.js"])
    assert named is not None
    assert named[1] == digest, f"page/core/presets.js: expected the shipped checkpoint's digest {digest}"


def test_the_page_knows_the_formats_that_the_gateway_writes() -> None:
    named = re.search(r"FORMATS = (\[.*\]);", SCRIPTS[f"{FOLDER}core/document.js"])
    assert named is not None
    assert json.loads(named[1]) == list(FORMATS)


def test_the_page_is_documented() -> None:
    document = app().openapi()
    assert "text/html" in document["paths"]["/"]["get"]["responses"]["200"]["content"]
    assert not [path for path in document["paths"] if path.startswith(FOLDER)]
