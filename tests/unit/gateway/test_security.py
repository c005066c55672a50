"""Who may ask, how often, from which page, and what browsers are told."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from multsd_gateway.app import create_app
from multsd_gateway.settings import Settings
from tests.unit.gateway.fakes import FakePainter, ask, seed_request, settings

TOKEN = "a-token-of-enough-characters"  # noqa: S105 - of this test only
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ORIGIN = {"Origin": "https://example.org"}


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"shop:{TOKEN}\n")
    return path


def _app(tokens: Path, **changes: object) -> FastAPI:
    return create_app(settings(token_file=tokens, **changes), FakePainter())


@pytest.mark.parametrize(("method", "path"), [("POST", "/multsd"), ("POST", "/multsd/stream"), ("GET", "/limits")])
def test_without_a_token_nothing_is_done(tokens: Path, method: str, path: str) -> None:
    painter = FakePainter()
    app = create_app(settings(token_file=tokens), painter)

    for headers in ({}, {"Authorization": "Bearer another-token-of-enough"}):
        reply = ask(app, method, path, json=seed_request(), headers=headers)
        assert reply.status_code == 401
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert set(reply.json()) == {"message", "request_id"}
    assert painter.requests == []
    assert ask(app, method, path, json=seed_request(), headers=BEARER).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"])
def test_probes_and_documentation_need_no_token_unless_the_settings_say_so(tokens: Path, path: str) -> None:
    assert ask(_app(tokens, triton_metrics_url=""), "GET", path).status_code == 200
    assert ask(_app(tokens, open_paths=()), "GET", path).status_code == 401


def test_paths_that_do_not_exist_are_not_told_without_a_token(tokens: Path) -> None:
    assert ask(_app(tokens), "GET", "/nowhere").status_code == 401
    assert ask(_app(tokens), "GET", "/nowhere", headers=BEARER).status_code == 404


def test_a_token_that_asks_too_often_is_told_when_to_come_back(tokens: Path) -> None:
    app = _app(tokens, rate_per_minute=2, rate_burst=2)

    replies = [ask(app, "POST", "/multsd", json=seed_request(), headers=BEARER) for _ in range(3)]

    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert 1 <= int(replies[2].headers["Retry-After"]) <= 30
    assert ask(app, "GET", "/limits", headers=BEARER).status_code == 200


def test_no_token_is_logged(tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        ask(_app(tokens), "POST", "/multsd", json=seed_request(), headers=BEARER)
        ask(_app(tokens), "POST", "/multsd", json=seed_request(), headers={"Authorization": f"Bearer {TOKEN}x"})

    assert "POST /multsd 401" in caplog.text
    assert TOKEN not in caplog.text


def test_openapi_wants_a_token_where_the_server_does(tokens: Path) -> None:
    document = ask(_app(tokens), "GET", "/openapi.json").json()

    [(name, scheme)] = document["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    guarded = {
        path for path, each in document["paths"].items() for operation in each.values() if "security" in operation
    }
    assert guarded == {"/multsd", "/multsd/stream", "/limits"}
    assert document["paths"]["/multsd"]["post"]["security"] == [{name: []}]
    assert "securitySchemes" not in create_app(settings(), FakePainter()).openapi()["components"]


def test_a_body_that_is_refused_counts_for_the_rate_as_the_help_says(tokens: Path) -> None:
    app = _app(tokens, rate_per_minute=2, rate_burst=1)

    assert [ask(app, "POST", "/multsd", content="{", headers=BEARER).status_code for _ in range(2)] == [400, 429]
    told = Settings.model_fields["rate_per_minute"].description or ""
    assert "each gateway process" in told
    assert "bodies count" in told


def test_pages_of_the_settings_origins_may_call_and_others_not(tokens: Path) -> None:
    app = _app(tokens, cors_origins=("https://example.org",))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}

    allowed = ask(app, "OPTIONS", "/multsd", headers=ORIGIN | asked)
    refused = ask(app, "OPTIONS", "/multsd", headers={"Origin": "https://evil.example"} | asked)
    reply = ask(app, "POST", "/multsd", json=seed_request(), headers=ORIGIN)

    assert (allowed.status_code, allowed.headers["Access-Control-Allow-Origin"]) == (200, "https://example.org")
    assert {"GET", "HEAD", "POST"} <= set(allowed.headers["Access-Control-Allow-Methods"].split(", "))
    assert "Access-Control-Allow-Origin" not in refused.headers
    assert (reply.status_code, reply.headers["Access-Control-Allow-Origin"]) == (401, "https://example.org")


@pytest.mark.parametrize(("path", "accept"), [("/multsd", "image/png"), ("/multsd/stream", "*/*")])
def test_a_page_may_read_what_a_reply_tells_in_headers_of_its_own(path: str, accept: str) -> None:
    app = create_app(settings(cors_origins=("https://example.org",)), FakePainter())
    plain = ask(app, "GET", "/healthz", headers=ORIGIN)

    reply = ask(app, "POST", path, json=seed_request(sede=1), headers=ORIGIN | {"Accept": accept})

    own = reply.headers.keys() - plain.headers.keys() - {"x-accel-buffering"}  # which is for proxies
    assert own
    assert own <= set(reply.headers["Access-Control-Expose-Headers"].lower().split(", "))


def test_a_page_may_read_that_something_unforeseen_went_wrong(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(settings(cors_origins=("https://example.org",)), FakePainter(error=RuntimeError("secret")))

    with caplog.at_level(logging.INFO):
        reply = ask(app, "POST", "/multsd", json=seed_request(), headers=ORIGIN | {"X-Request-Id": "mine"})

    assert (reply.status_code, reply.json()["request_id"], reply.headers["X-Request-Id"]) == (500, "mine", "mine")
    assert reply.headers["Access-Control-Allow-Origin"] == "https://example.org"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == ["internal error"]
    assert "POST /multsd 500" in caplog.text


def test_without_origins_no_page_may_call() -> None:
    reply = ask(create_app(settings(), FakePainter()), "POST", "/multsd", json=seed_request(), headers=ORIGIN)

    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(("method", "path"), [("POST", "/multsd"), ("GET", "/nowhere"), ("GET", "/healthz")])
def test_no_reply_can_be_taken_for_a_page(method: str, path: str) -> None:
    reply = ask(create_app(settings(), FakePainter()), method, path, json=seed_request())

    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert reply.headers["Cache-Control"] == "no-store"
    assert "server" not in reply.headers


def test_the_apis_page_runs_only_what_this_origin_serves(tokens: Path) -> None:
    app = _app(tokens)
    reply = ask(app, "GET", "/docs")

    policy = dict(part.split(" ", 1) for part in reply.headers["Content-Security-Policy"].split("; "))
    assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == ("'none'", "'self'", "'self'")
    assert not {word for sources in policy.values() for word in sources.split()} - {"'none'", "'self'", "data:"}
    assert reply.headers["X-Frame-Options"] == "DENY"
    needed = re.findall(r'(?:src|href)="([^"]*)"', reply.text)
    assert len(needed) == 4
    for address in needed:
        assert ask(app, "GET", f"/{address}").status_code == 200
    assert re.findall(r"<script[^>]*>([^<]+)", reply.text) == []
    assert ask(app, "GET", "/redoc", headers=BEARER).status_code == 404
