"""URLs that hold a name and a password: both are sent, and no message tells them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from multsd_client import Client, MultsdError, cli
from multsd_client.urls import shown
from tests.unit.client.fakes import painted, service

URL = "http://me:s3cret@service"


def _raise(error: Exception) -> httpx.Response:
    raise error


def test_name_and_password_are_sent() -> None:
    seen: list[str] = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return painted()

    with Client(URL, transport=service(reply)) as client:
        client.generate({})
    assert seen == ["Basic " + base64.b64encode(b"me:s3cret").decode()]


@pytest.mark.parametrize(
    "reply",
    [
        lambda: httpx.Response(404, text="another service"),
        lambda: _raise(httpx.ConnectError("refused")),
        lambda: _raise(httpx.ReadTimeout("slow")),
        lambda: _raise(httpx.LocalProtocolError("Illegal header value b'Basic czNjcmV0'")),
    ],
    ids=range(4),
)
def test_errors_name_the_service_alone(reply: Callable[[], httpx.Response]) -> None:
    with Client(URL, transport=service(lambda _request: reply())) as client:
        for ask in (lambda: client.generate({}), client.limits):
            with pytest.raises(MultsdError, match=r"^http://service[:/]"):
                ask()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://host:1/path", "http://host:1/path"),
        ("https://me:s3cret@host", "https://host"),
        ("https://me:s3/c@r#t@host", "https://host"),
        ("me:s3cret@host", "host"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_name_and_password(url: str, told: str) -> None:
    assert shown(url) == told


@pytest.mark.parametrize(
    "url", ["ftp://me:s3cret@host", "http://me:s3cret@host:port", "http://me:s3/cret@host", "s3@x"]
)
def test_a_url_that_is_none_is_refused_without_them(url: str) -> None:
    with pytest.raises(ValueError, match="url: expected http://host:port, found '") as caught:
        Client(url)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 503])
def test_the_command_shows_the_url_without_them(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    def connect(url: str, **options: Any) -> Client:
        return Client(url, transport=service(lambda _request: httpx.Response(status, json={})), **options)

    monkeypatch.setattr(cli, "Client", connect)
    result = CliRunner().invoke(cli.app, ["health", "--url", URL])
    assert result.stdout.startswith("http://service: ")
