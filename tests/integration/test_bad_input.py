"""The table of bad inputs against the real stack, which goes on serving."""

import json
import socket
from typing import Any

import httpx
import pytest

from tests.integration.requests_and_pictures import mask_png, request_body
from tests.unit.gateway.test_bad_input import FIELDS


@pytest.mark.parametrize("path", ["/multsd", "/multsd/stream"])
def test_every_bad_input_is_refused_and_the_next_request_is_served(gateway: httpx.Client, path: str) -> None:
    for body, field, message in FIELDS.values():
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = gateway.post(path, content=content)
        assert response.status_code == 400, response.text
        assert any(
            note["field"] == field and note["message"].startswith(message) for note in response.json()["errors"]
        ), response.text
    assert gateway.post("/multsd", json=request_body()).status_code == 200


def test_body_that_never_ends_is_refused_while_it_streams(gateway: httpx.Client) -> None:
    megabyte = b"%x\r\n%s\r\n" % (1_000_000, b" " * 1_000_000)
    with socket.create_connection((gateway.base_url.host, gateway.base_url.port or 80), timeout=60) as connection:
        connection.sendall(b"POST /multsd HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(21):
            connection.sendall(megabyte)
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")  # though the body has not ended
    assert gateway.post("/multsd", json=request_body()).status_code == 200


def test_body_of_50_megabytes_is_refused_by_its_declared_length(gateway: httpx.Client) -> None:
    with socket.create_connection((gateway.base_url.host, gateway.base_url.port or 80), timeout=60) as connection:
        connection.sendall(b"POST /multsd HTTP/1.1\r\nHost: gateway\r\nContent-Length: 50000000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")  # before any of it was sent


LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"scheduler": "lcm", "ddim_steps": 51}, "expected 1 to 50 for scheduler lcm, found 51"),
    ({"scheduler": "plms"}, "expected one of ddim, euler"),
    ({"view_stride": 65}, "expected 1 to 64, found 65"),
]


@pytest.mark.parametrize(("change", "message"), LIMITS, ids=lambda value: str(value)[:20])
def test_what_only_the_model_knows_is_refused_under_the_jsons_names(
    gateway: httpx.Client, change: dict[str, Any], message: str
) -> None:
    response = gateway.post("/multsd", json=request_body() | change)
    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert error["field"] in change
    assert error["message"].startswith(message)


WARNINGS: list[tuple[dict[str, Any], str, str]] = [
    ({"bg_prompt": "red " * 90}, "bg_prompt", "cut at 77 tokens; left out:"),
    ({"fg_prompt": ["(a red circle:1.4)"]}, "fg_prompt[0]", "weights such as 'a red circle:1.4'"),
    ({"bootstrapping": 4}, "bootstrapping", "all 4 steps are bootstrapped"),
    ({"guidance": 3}, "guidance", "guidance_scale"),
    ({"masks": [request_body(64, 64)["masks"][0]], "width": 512, "height": 300}, "masks[0]", "proportions"),
]


@pytest.mark.parametrize(("change", "field", "message"), WARNINGS, ids=lambda value: str(value)[:20])
def test_what_is_not_done_as_asked_is_a_warning(
    gateway: httpx.Client, change: dict[str, Any], field: str, message: str
) -> None:
    response = gateway.post("/multsd", json=request_body() | change)
    assert response.status_code == 200, response.text
    warnings = [warning for warning in response.json()["warnings"] if warning["field"] == field]
    assert any(message in warning["message"] for warning in warnings), response.json()["warnings"]


def test_empty_mask_is_a_warning(gateway: httpx.Client) -> None:
    body = request_body() | {"masks": [mask_png(512, 512)]}
    warnings = gateway.post("/multsd", json=body).json()["warnings"]
    assert [warning["field"] for warning in warnings] == ["masks[0]"]
    assert "empty" in warnings[0]["message"]


def test_request_id_is_the_callers_own(gateway: httpx.Client) -> None:
    response = gateway.post("/multsd", json=request_body(), headers={"X-Request-Id": "order-66"})
    assert response.headers["X-Request-Id"] == "order-66"
    assert response.json()["request_id"] == "order-66"
