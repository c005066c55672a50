"""Both clients against canned replies: every outcome, twice."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from multsd_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    FieldNote,
    GenerationFailedError,
    GenerationRequest,
    GenerationResult,
    InvalidRequestError,
    MultsdError,
    Progress,
    ProtocolError,
    ServiceUnavailableError,
    UnauthorizedError,
)
from tests.unit.client.fakes import RESULT, STEPS, events, painted, refusal, service

Reply = Callable[[httpx.Request], httpx.Response]
Generate = Callable[..., GenerationResult]

URL = "http://service"
REQUEST = GenerationRequest(prompt="a beach")


def _blocking(reply: Reply, request: Any = REQUEST, **options: Any) -> GenerationResult:
    with Client(URL, transport=service(reply)) as client:
        return client.generate(request, **options)


def _awaited(reply: Reply, request: Any = REQUEST, **options: Any) -> GenerationResult:
    async def once() -> GenerationResult:
        async with AsyncClient(URL, transport=service(reply)) as client:
            return await client.generate(request, **options)

    return asyncio.run(once())


@pytest.fixture(params=[_blocking, _awaited])
def generate(request: pytest.FixtureRequest) -> Generate:
    chosen: Generate = request.param
    return chosen


def test_a_result_and_its_progress(generate: Generate) -> None:
    told: list[Progress] = []

    result = generate(lambda _request: painted(), on_progress=told.append)

    assert result.image == b"picture"
    assert (result.media_type, result.seed, result.unet_rows, result.request_id) == ("image/jpeg", 7, 125, "r1")
    assert result.warnings == (FieldNote("masks[0]", "empty"),)
    assert told == [Progress(1, 2), Progress(2, 2)]


def test_the_request_goes_to_the_stream_with_its_id(generate: Generate) -> None:
    seen: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return painted()

    generate(reply, request_id="job-7")
    generate(reply, {"bg_prompt": "as it is"})

    assert [request.url.path for request in seen] == ["/multsd/stream"] * 2
    assert seen[0].headers["X-Request-Id"] == "job-7"
    assert json.loads(seen[0].content) == REQUEST.to_json()
    assert json.loads(seen[1].content) == {"bg_prompt": "as it is"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (413, InvalidRequestError),
        (408, DeadlineExceededError),
        (504, DeadlineExceededError),
        (429, ServiceUnavailableError),
        (502, ServiceUnavailableError),
        (503, ServiceUnavailableError),
        (500, GenerationFailedError),
    ],
)
def test_a_status_becomes_an_exception_in_a_reply_and_in_an_event(
    generate: Generate, status: int, kind: type[MultsdError]
) -> None:
    in_event = events(*STEPS, ("error", {"status": status, "message": "no", "request_id": "r1"}))
    for reply in (refusal(status), in_event):
        with pytest.raises(kind) as caught:
            generate(lambda _request, reply=reply: reply)
        assert (str(caught.value), caught.value.request_id) == ("no", "r1")


def test_a_refusal_names_its_fields(generate: Generate) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        generate(lambda _request: refusal(400))

    assert caught.value.errors == (FieldNote("width", "expected 64, found 1"),)


def test_an_unavailable_service_says_when_to_try_again(generate: Generate) -> None:
    with pytest.raises(ServiceUnavailableError) as caught:
        generate(lambda _request: refusal(503, **{"Retry-After": "5"}))

    assert caught.value.retry_after == 5


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ConnectError("refused"), ServiceUnavailableError),
        (httpx.ConnectTimeout("slow"), ServiceUnavailableError),
        (httpx.RemoteProtocolError("cut"), ServiceUnavailableError),
        (httpx.ReadTimeout("slow"), DeadlineExceededError),
    ],
)
def test_a_connection_that_fails_becomes_an_exception(
    generate: Generate, failure: Exception, kind: type[MultsdError]
) -> None:
    def reply(_request: httpx.Request) -> httpx.Response:
        raise failure

    with pytest.raises(kind):
        generate(reply)


@pytest.mark.parametrize(
    "reply",
    [
        lambda: httpx.Response(200, text="<html>hello</html>"),
        lambda: httpx.Response(404, text="<html>nothing here</html>"),
        lambda: httpx.Response(500, json=["internal error"]),
        lambda: httpx.Response(200, text="event: result\ndata: {}"),
        lambda: events(("result", {"image": "!"})),
        lambda: events(("result", {**RESULT, "image": "!"})),
        lambda: events(("result", {**RESULT, "warnings": [1]})),
        lambda: events(("progress", {})),
        lambda: events(("result", {**RESULT, "timings": None})),
        lambda: events(("result", {**RESULT, "timings": {"total": "soon"}})),
        lambda: events(("result", {**RESULT, "checkpoint": "demo"})),
        lambda: events(("result", {**RESULT, "parameters": 7})),
        lambda: httpx.Response(200, text="event: result\ndata: {\n\n"),
        lambda: httpx.Response(200, text=f"event: result\ndata: {'[' * 100_000}\n\n"),
        lambda: httpx.Response(500, text="[" * 100_000),
    ],
    ids=range(15),
)
def test_another_service_at_the_address_is_a_protocol_error(
    generate: Generate, reply: Callable[[], httpx.Response]
) -> None:
    with pytest.raises(ProtocolError):
        generate(lambda _request: reply())


@pytest.mark.parametrize("status", [200, 400])
def test_a_reply_that_could_unpack_to_anything_is_not_read(generate: Generate, status: int) -> None:
    asked: list[str] = []
    bomb = gzip.compress(b"data: " + bytes(50_000_000))

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["Accept-Encoding"])
        headers = {"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}
        return httpx.Response(status, stream=httpx.ByteStream(bomb), headers=headers)

    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="expected a reply without Content-Encoding, found 'gzip'"):
            generate(reply)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert asked == ["identity"]
    assert peak < 10_000_000


@pytest.mark.parametrize("page", ["<html>502</html>", '["bad gateway"]', '{"status": 502}', "[" * 100_000, ""])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, ServiceUnavailableError),
        (502, ServiceUnavailableError),
        (503, ServiceUnavailableError),
        (504, DeadlineExceededError),
    ],
)
def test_a_page_of_a_proxy_before_the_service_means_what_its_status_does(
    generate: Generate, status: int, kind: type[MultsdError], page: str
) -> None:
    with pytest.raises(kind, match=f"found HTTP {status}$") as caught:
        generate(lambda _request: httpx.Response(status, text=page, headers={"Retry-After": "5"}))
    if isinstance(caught.value, ServiceUnavailableError):
        assert (caught.value.retry_after, caught.value.limited) == (5, status == 429)


@pytest.mark.parametrize("errors", [None, "width", [1], [["width"]], {"field": "width"}])
def test_a_refusal_whose_fields_cannot_be_read_is_one_without(generate: Generate, errors: Any) -> None:
    told = {"status": 400, "message": "no", "errors": errors}
    for reply in (httpx.Response(400, json=told), events(("error", told))):
        with pytest.raises(InvalidRequestError, match=r"^no$") as caught:
            generate(lambda _request, reply=reply: reply)
        assert caught.value.errors == ()


@pytest.mark.parametrize("retry_after", ["soon", -1, None, [1]])
def test_a_time_that_cannot_be_waited_for_is_none(generate: Generate, retry_after: Any) -> None:
    with pytest.raises(ServiceUnavailableError) as caught:
        generate(lambda _request: events(("error", {"status": 503, "message": "full", "retry_after": retry_after})))
    assert caught.value.retry_after is None


def test_comments_and_unknown_events_are_passed_over(generate: Generate) -> None:
    text = ": heartbeat\n\nevent: later\ndata: {}\n\n" + painted().text

    assert generate(lambda _request: httpx.Response(200, text=text)).seed == 7


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False)])
def test_ready_is_what_readyz_says(status: int, ready: bool) -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/readyz"
        return httpx.Response(status, json={})

    async def awaited() -> bool:
        async with AsyncClient(URL, transport=service(reply)) as client:
            return await client.ready()

    with Client(URL, transport=service(reply)) as client:
        assert client.ready() is ready
    assert asyncio.run(awaited()) is ready


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (401, '{"message": "expected a bearer token"}', UnauthorizedError),
        (404, "<html>", ProtocolError),
        (301, "", ProtocolError),
    ],
)
def test_a_reply_that_tells_nothing_of_readiness_is_an_error(status: int, text: str, error: type[Exception]) -> None:
    def reply(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text=text)

    async def awaited() -> bool:
        async with AsyncClient(URL, transport=service(reply)) as client:
            return await client.ready()

    with Client(URL, transport=service(reply)) as client, pytest.raises(error):
        client.ready()
    with pytest.raises(error):
        asyncio.run(awaited())
