"""The gateway held to its own OpenAPI by generated requests: no server error, and every reply as described.

MULTSD_SCHEMA_EXAMPLES is the number of cases of each operation against the stand-in model; GETs without parameters have
one each. 1000 makes 2000 cases of the two POSTs together.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, CheckContext, Response
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi import checks

from multsd_gateway.app import create_app
from multsd_gateway.settings import Settings
from tests.stand_in.triton import running_gateway, running_stand_in

EXAMPLES = int(os.environ.get("MULTSD_SCHEMA_EXAMPLES", "40"))
REAL_EXAMPLES = 25  # of each POST: 50 together


def no_server_error(_context: CheckContext, response: Response, case: Case[Any]) -> None:
    """No 5xx, but the 504 of a deadline that the request itself has set."""
    own_deadline = isinstance(case.body, dict) and case.body.get("deadline_s") is not None
    assert response.status_code < 500 or (response.status_code == 504 and own_deadline), response.text


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

# Beside the random cases there are some 380 of each POST at the edges of its schema: too many for real pictures.
NO_EDGES = schemathesis.Config.from_dict({"phases": {"coverage": {"enabled": False}}})

DOCUMENT = create_app(Settings(**SMALL)).openapi()
schema = schemathesis.openapi.from_dict(DOCUMENT)
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


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_to_a_stand_in_get_replies_as_described(case: Case[Any], stand_in_url: str) -> None:
    case.call_and_validate(base_url=stand_in_url, checks=CHECKS, timeout=60)


@real_schema.include(method="POST").parametrize()
@settings(max_examples=REAL_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_to_the_real_stack_get_replies_as_described(case: Case[Any], real_url: str) -> None:
    case.call_and_validate(base_url=real_url, checks=CHECKS, timeout=120)
