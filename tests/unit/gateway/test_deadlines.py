"""The time that a request gives itself, by its field deadline_s and by the header X-Request-Timeout."""

from __future__ import annotations

from typing import Any

import pytest

from multsd_gateway.app import create_app
from multsd_gateway.limits import TIMEOUT
from tests.unit.gateway.fakes import FakePainter, ask, seed_request, settings


def _ask(header: str | None, field: float | None = None, path: str = "/multsd", **changes: Any) -> tuple[Any, Any]:
    """The reply, and the request as the model was asked; None where it was not."""
    painter = FakePainter()
    headers = {} if header is None else {TIMEOUT: header}
    body = seed_request(**({} if field is None else {"deadline_s": field}), **changes)
    reply = ask(create_app(settings(), painter), "POST", path, json=body, headers=headers)
    return reply, painter.requests[0] if painter.requests else None


@pytest.mark.parametrize(
    ("header", "field", "seconds"),
    [
        ("30", None, 30),
        (" 2.5 ", None, 2.5),
        ("30", 20, 20),
        ("20", 30, 20),
        (None, 20, 20),
        (None, None, 300),
        ("300", None, 300),
    ],
)
@pytest.mark.parametrize("path", ["/multsd", "/multsd/stream"])
def test_the_smaller_of_header_and_field_is_the_requests_time(
    header: str | None, field: float | None, seconds: float, path: str
) -> None:
    reply, asked = _ask(header, field, path)

    assert reply.status_code == 200
    assert seconds - 2 < asked.deadline_s <= seconds, "what is left of it goes to the model"


def test_a_request_is_over_when_the_headers_time_is() -> None:
    app = create_app(settings(), FakePainter(forever=True))

    reply = ask(app, "POST", "/multsd", json=seed_request(), headers={TIMEOUT: "0.1"})

    assert reply.status_code == 504
    assert reply.json()["message"] == "expected a picture within 0.1 s, it was not ready"


@pytest.mark.parametrize(
    ("header", "found"),
    [("0", '"0"'), ("301", '"301"'), ("soon", '"soon"'), ("nan", '"nan"'), ("-1", '"-1"'), ("", '""'), ("5s", '"5s"')],
)
def test_a_header_that_is_no_time_is_a_fault_with_its_name(header: str, found: str) -> None:
    reply, asked = _ask(header, width=1)

    assert (reply.status_code, asked) == (400, None)
    assert reply.json()["errors"] == [
        {"field": "width", "message": "expected 64 to 8192, found 1"},
        {"field": "X-Request-Timeout", "message": f"expected seconds from 0.1 to 300, found {found}"},
    ]


def test_the_header_is_in_the_document_of_both_paths() -> None:
    document = ask(create_app(settings(request_seconds=60), FakePainter()), "GET", "/openapi.json").json()

    for path in ("/multsd", "/multsd/stream"):
        (header,) = (each for each in document["paths"][path]["post"]["parameters"] if each["in"] == "header")
        assert header["name"] == TIMEOUT
        assert header["schema"] == {"type": "number", "minimum": 0.1, "maximum": 60}


def test_a_page_from_elsewhere_may_send_the_header() -> None:
    app = create_app(settings(cors_origins=("https://example.org",)), FakePainter())
    asked = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": TIMEOUT,
    }

    assert ask(app, "OPTIONS", "/multsd", headers=asked).status_code == 200
