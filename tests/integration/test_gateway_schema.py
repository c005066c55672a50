"""The gateway held to its own OpenAPI by generated requests: no server error, and every reply as described.

Against the stand-in model the two POSTs get 2000 cases together: 650 random ones each, beside some 350 at the edges of
the schema. MULTSD_SCHEMA_EXAMPLES is the number of random ones. GETs without parameters have one case each.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from requests import PreparedRequest
from schemathesis import Case, CheckContext, Response
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi import checks

from multsd_client.protocol import EventReader
from multsd_gateway.app import create_app
from multsd_gateway.settings import Settings
from tests.stand_in.triton import running_gateway, running_stand_in

EXAMPLES = int(os.environ.get("MULTSD_SCHEMA_EXAMPLES", "650"))
REAL_EXAMPLES = 25  # of each POST: 50 together


def no_server_error(_context: CheckContext, response: Response, case: Case[Any]) -> None:
    """No 5xx, of a reply or of an event of a stream, but the 504 of a deadline that the request itself has set."""
    in_body = isinstance(case.body, dict) and case.body.get("deadline_s") is not None
    own_deadline = in_body or any(name.lower() == "x-request-timeout" for name in case.headers or {})
    for status in (response.status_code, *_failures_in(response)):
        assert status < 500 or (status == 504 and own_deadline), response.text


def _failures_in(response: Response) -> Iterator[int]:
    """The status of each error event, where the reply is a stream of events."""
    if not response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        return
    reader = EventReader()
    for line in response.text.split("\n"):
        event = reader.feed(line)
        if event is not None and event.name == "error":
            yield event.data["status"]


seen: Counter[tuple[str, int, bool]] = Counter()  # path, status, whether there were masks: of the stand-in's cases


def counted(_context: CheckContext, response: Response, case: Case[Any]) -> None:
    """Take note of a case, for `test_the_generated_requests_were_many_and_some_were_painted`."""
    masked = isinstance(case.body, dict) and bool(case.body.get("masks"))
    seen[case.path, next(iter(_failures_in(response)), response.status_code), masked] += 1


CHECKS: list[CheckFunction] = [
    no_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
# Small pictures of few steps: what is tested is the gateway.
SMALL: dict[str, Any] = {"max_pixels": 512 * 512, "max_side": 1024, "max_steps": 1}
VARIABLES = {f"MULTSD_{name.upper()}": str(value) for name, value in SMALL.items()}

# Without the cases at the edges of the schema: too many for real pictures.
NO_EDGES = schemathesis.Config.from_dict({"phases": {"coverage": {"enabled": False}}})

DOCUMENT = create_app(Settings(**SMALL)).openapi()
schema = schemathesis.openapi.from_dict(DOCUMENT)
GETS = [path for path, operations in DOCUMENT["paths"].items() if "get" in operations]
real_schema = schemathesis.openapi.from_dict(DOCUMENT, config=NO_EDGES)


@pytest.fixture(scope="module")
def stand_in_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway in front of the stand-in model."""
    folder = tmp_path_factory.mktemp("stand_in")
    with running_stand_in(folder, seconds=0.02) as triton, running_gateway(folder, triton.grpc, VARIABLES) as (_, url):
        yield url


@pytest.fixture(scope="module")
def real_url(triton_grpc: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway in front of the real models."""
    with running_gateway(tmp_path_factory.mktemp("real"), triton_grpc, VARIABLES) as (_, url):
        yield url


@pytest.mark.parametrize(("status", "seen"), [(500, True), (504, True), (400, False)])
def test_an_error_inside_a_stream_is_seen(status: int, seen: bool) -> None:
    text = f'event: progress\ndata: {{"step": 1}}\n\nevent: error\ndata: {{"status": {status}}}\n\n'
    headers = {"content-type": ["text/event-stream; charset=utf-8"]}
    response = Response(200, headers, text.encode(), request=PreparedRequest(), elapsed=0.0, verify=False)
    case = schema["/multsd/stream"]["POST"].Case(body={"bg_prompt": "a"}, media_type="application/json")

    with pytest.raises(AssertionError) if seen else nullcontext():
        no_server_error(CheckContext.__new__(CheckContext), response, case)


def generated(part: Any, path: str, examples: int) -> Callable[[Any], Any]:
    """Have a test called with requests of one POST. Those of several would be tests with one name, taken for one."""
    limits = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    return lambda test: part.include(method="POST", path=path).parametrize()(limits(test))


@generated(schema, "/multsd", EXAMPLES)
def test_generated_requests_to_a_stand_in_get_replies_as_described(case: Case[Any], stand_in_url: str) -> None:
    case.call_and_validate(base_url=stand_in_url, checks=[counted, *CHECKS], timeout=60)


@generated(schema, "/multsd/stream", EXAMPLES)
def test_generated_requests_to_a_stand_in_get_streams_as_described(case: Case[Any], stand_in_url: str) -> None:
    case.call_and_validate(base_url=stand_in_url, checks=[counted, *CHECKS], timeout=60)


@pytest.mark.parametrize("path", GETS)
def test_what_has_no_parameters_is_answered_as_described(path: str, stand_in_url: str) -> None:
    schema[path]["GET"].Case().call_and_validate(base_url=stand_in_url, checks=CHECKS, timeout=60)


@pytest.mark.parametrize("path", GETS)
def test_head_is_answered_as_get_without_the_body(path: str, stand_in_url: str) -> None:
    get, head = (httpx.request(method, f"{stand_in_url}{path}") for method in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


@pytest.mark.parametrize("path", GETS)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"])
def test_a_method_that_a_path_does_not_have_is_refused(path: str, method: str, stand_in_url: str) -> None:
    reply = httpx.request(method, f"{stand_in_url}{path}")
    assert (reply.status_code, set(reply.headers["Allow"].split(", "))) == (405, {"GET", "HEAD"})
    assert set(reply.json()) == {"message", "request_id"}


def test_the_generated_requests_were_many_and_some_were_painted() -> None:
    if not seen:
        pytest.skip("the generated requests were not chosen")
    for path in ("/multsd", "/multsd/stream"):
        cases = {(status, masked): count for (where, status, masked), count in seen.items() if where == path}
        total = sum(cases.values())
        assert total >= EXAMPLES
        assert cases[200, True] + cases[200, False] >= total / 10
        assert cases[200, True] > 0
        assert sum(count for (status, _), count in cases.items() if status == 400) >= total / 10
    if EXAMPLES >= 650:
        assert sum(seen.values()) >= 2000


@generated(real_schema, "/multsd", REAL_EXAMPLES)
def test_generated_requests_to_the_real_stack_get_replies_as_described(case: Case[Any], real_url: str) -> None:
    case.call_and_validate(base_url=real_url, checks=CHECKS, timeout=120)


@generated(real_schema, "/multsd/stream", REAL_EXAMPLES)
def test_generated_requests_to_the_real_stack_get_streams_as_described(case: Case[Any], real_url: str) -> None:
    case.call_and_validate(base_url=real_url, checks=CHECKS, timeout=120)
