"""Tokens and other values of headers: what cannot be sent is refused, and no message tells a secret."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from multsd_client import AsyncClient, Client, InvalidRequestError, batch_command, cli
from multsd_client.triton import TritonClient
from tests.unit.client.fakes import painted, service

SECRET = "s3cret-of-somebody"  # noqa: S105 - nobody's
CARRIED = [SECRET, f"{SECRET}\n", f" \t{SECRET}\r\n"]
NOT_CARRIED = [f"{SECRET}\nX", f"{SECRET}\0", f"{SECRET}é", f"{SECRET}\x7f", f"{SECRET}\ud800"]


def _sent(client: Callable[..., Client | AsyncClient], **options: Any) -> httpx.Headers:
    """The headers of a request."""
    seen: list[httpx.Headers] = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return painted()

    request_id = options.pop("request_id", None)
    connected = client("http://service", transport=service(reply), **options)
    if isinstance(connected, Client):
        connected.generate({}, request_id=request_id)
    else:
        asyncio.run(connected.generate({}, request_id=request_id))
    return seen[0]


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("token", CARRIED)
def test_white_space_around_a_token_is_no_part_of_it(client: Callable[..., Client], token: str) -> None:
    assert _sent(client, token=token)["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("token", ["", "\n"])
def test_an_empty_token_is_none(client: Callable[..., Client], token: str) -> None:
    with pytest.raises(ValueError, match=r"^token: expected printable ASCII characters on one line, found none$"):
        client("http://service", token=token)


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("token", NOT_CARRIED)
def test_a_token_that_no_header_carries_is_refused_unseen(client: Callable[..., Client], token: str) -> None:
    with pytest.raises(ValueError, match=r"^token: expected printable ASCII characters on one line, found others$"):
        client("http://service", token=token)


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_request_id_that_no_header_carries_is_refused(client: Callable[..., Client]) -> None:
    assert _sent(client, request_id="job 7")["X-Request-Id"] == "job 7"
    with pytest.raises(ValueError, match="request_id: expected printable ASCII characters"):
        _sent(client, request_id="job\n7")


def test_what_httpx_says_of_a_header_is_not_told_nor_tried_again() -> None:
    sent = []

    def reply(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        raise httpx.LocalProtocolError(f"Illegal header value b'Bearer {SECRET}\\n'")

    with Client("http://service", retries=3, transport=service(reply)) as client:
        for ask in (lambda: client.generate({}), client.limits, client.ready):
            with pytest.raises(InvalidRequestError, match="expected a request that HTTP can carry") as caught:
                ask()
            assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert len(sent) == 3


def test_a_client_of_triton_sends_headers_that_grpc_can_carry() -> None:
    with TritonClient("127.0.0.1:1", headers={"Authorization": f"Bearer {SECRET}\n"}) as client:
        assert client._headers == {"authorization": f"Bearer {SECRET}"}
    for value in ("", *NOT_CARRIED):
        with pytest.raises(ValueError, match=r"^headers\['Authorization'\]: expected printable ASCII \w+") as caught:
            TritonClient("127.0.0.1:1", headers={"Authorization": value})
        assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match=r"headers: expected names of letters, digits, .* found 'a name'"):
        TritonClient("127.0.0.1:1", headers={"a name": SECRET})


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str | None]:
    """The Authorization of each request that the command sends."""
    sent: list[str | None] = []

    def reply(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("Authorization"))
        return painted()

    monkeypatch.chdir(tmp_path)
    Path("requests.jsonl").write_text("{}\n")
    for module, kind in ((cli, Client), (batch_command, AsyncClient)):

        def connect(url: str, kind: Any = kind, **options: Any) -> Any:
            return kind(url, transport=service(reply), **options)

        monkeypatch.setattr(module, kind.__name__, connect)
    return sent


COMMANDS = [["generate", "a"], ["batch", "requests.jsonl", "--again"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("token", CARRIED)
def test_a_token_is_stripped_wherever_it_comes_from(sent: list[str | None], command: list[str], token: str) -> None:
    Path("token").write_text(token)

    from_variable = CliRunner().invoke(cli.app, command, env={"MULTSD_TOKEN": token})
    from_file = CliRunner().invoke(cli.app, [*command, "--token-file", "token"])

    assert (from_variable.exit_code, from_file.exit_code) == (0, 0)
    assert sent == [f"Bearer {SECRET}"] * 2


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("token", [f"{SECRET}\nX", f"{SECRET}é", f"{SECRET}\x7f"])
def test_a_token_that_no_header_carries_is_told_by_where_it_comes_from(
    sent: list[str | None], command: list[str], token: str
) -> None:
    Path("token").write_text(token)
    Path("empty").write_text("\n")

    for options, variable, source in (
        ([], token, "MULTSD_TOKEN"),
        ([], "\n", "MULTSD_TOKEN"),
        (["--token-file", "token"], None, "--token-file"),
        (["--token-file", "empty"], None, "--token-file"),
    ):
        result = CliRunner().invoke(cli.app, [*command, *options], env={"MULTSD_TOKEN": variable})
        assert result.exit_code == 2
        assert f"Invalid value for {source}: " in result.stderr
        assert SECRET not in result.output
    assert sent == []
    assert all(SECRET not in path.read_text() for path in Path("pictures").glob("*"))
