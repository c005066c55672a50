"""GET /limits: the settings, lowered by what the served model says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from multsd_gateway import documentation
from multsd_gateway.app import create_app
from multsd_gateway.balancing import BalancedPainter, Endpoint
from multsd_gateway.capabilities import SAMPLERS
from multsd_gateway.errors import ModelUnavailableError
from multsd_gateway.inference import ModelDescription
from tests.unit.gateway.fakes import FakePainter, ask, seed_request, settings

ROOT = Path(__file__).parents[3]


def test_the_lower_of_setting_and_model_holds() -> None:
    parameters = {"max_pixels": "1000000", "max_steps": "1000", "max_regions": "9", "max_prompt_bytes": "odd"}
    painter = FakePainter(
        description=ModelDescription(frozenset({"prompt", "deadline_s"}), parameters | {"window": "64"})
    )

    told = ask(create_app(settings(max_steps=150), painter), "GET", "/limits").json()

    documentation.LimitsReply.model_validate(told)
    limits = told["limits"]
    assert (limits["max_pixels"], limits["max_steps"]) == (1_000_000, 150)
    assert limits["max_regions"] == 8, "the model counts the background too"
    assert limits["max_prompt_bytes"] == 10_000
    assert (told["window"], told["optional_inputs"]) == (64, ["deadline_s"])


@pytest.mark.parametrize(("told", "number"), [("64", 64), ("0", None), ("-8", None), ("odd", None), ("", None)])
def test_a_number_is_the_models_or_not_known(told: str, number: int | None) -> None:
    painter = FakePainter(description=ModelDescription(frozenset(), {"window": told, "view_stride": told}))

    reply = ask(create_app(settings(), painter), "GET", "/limits").json()

    assert (reply["window"], reply["defaults"]["view_stride"]) == (number, number)


def test_the_checkpoint_is_the_models_own_or_the_last_pictures_or_unknown() -> None:
    app = create_app(settings(), FakePainter())

    assert ask(app, "GET", "/limits").json()["checkpoint"] == {"name": None, "digest": None, "family": None}
    ask(app, "POST", "/multsd", json=seed_request())
    assert ask(app, "GET", "/limits").json()["checkpoint"] == {"name": "fake", "digest": "sha256:00", "family": None}
    told = {"checkpoint_name": "sd", "checkpoint_digest": "sha256:1", "checkpoint_family": "sd1"}
    app = create_app(settings(), FakePainter(description=ModelDescription(frozenset(), told)))
    assert ask(app, "GET", "/limits").json()["checkpoint"] == {"name": "sd", "digest": "sha256:1", "family": "sd1"}


def test_the_samplers_are_those_that_the_model_names_or_else_all_that_are_known() -> None:
    def told(**parameters: str) -> list[str]:
        description = ModelDescription(frozenset(), parameters)
        reply = ask(create_app(settings(), FakePainter(description=description)), "GET", "/limits").json()
        assert reply["defaults"]["scheduler"] == reply["schedulers"][0]
        return list(reply["schedulers"])

    assert told(samplers="unipc, ddim") == ["unipc", "ddim"]
    assert told() == list(SAMPLERS)


def test_the_samplers_that_are_known_are_those_of_the_models_configuration() -> None:
    config = (ROOT / "model_repository" / "multidiffusion" / "config.pbtxt").read_text()
    assert f'key: "samplers" value {{ string_value: "{",".join(SAMPLERS)}" }}' in config


def test_of_several_models_the_highest_limits_are_told_each_time_alike() -> None:
    """As while one release is replaced by another: what is told is what POST /multsd holds requests to."""
    old = {"max_steps": "50", "max_prompt_bytes": "1000", "samplers": "ddim,euler", "window": "64"}
    new = {"max_steps": "150", "max_prompt_bytes": "9000", "samplers": "ddim,lcm", "window": "128"}
    fakes = [FakePainter(description=ModelDescription(frozenset(), told)) for told in (old, new)]
    endpoints = [Endpoint(str(number), fake) for number, fake in enumerate(fakes)]
    balanced = BalancedPainter(endpoints, models=["multidiffusion"], probe_seconds=60.0)

    async def scenario() -> list[dict[str, Any]]:
        transport = httpx.ASGITransport(create_app(settings(), balanced))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            replies = []
            for _ in range(4):
                replies.append((await client.get("/limits")).json())
                assert (await client.post("/multsd", json=seed_request(ddim_steps=150))).status_code == 200
                fakes[0].error = ModelUnavailableError("away")  # the other one tells
            await balanced.close()
        return replies

    first, *others = asyncio.run(scenario())
    assert (first["limits"]["max_steps"], first["limits"]["max_prompt_bytes"]) == (150, 9000)
    assert first["schedulers"] == ["ddim", "euler", "lcm"]
    assert [reply["limits"] for reply in others] == [first["limits"]] * 3
    assert [reply["schedulers"] for reply in others] == [first["schedulers"]] * 3
    assert [reply["window"] for reply in (first, *others)] == [64, 128, 128, 128]


def test_without_a_model_there_are_no_limits_to_tell() -> None:
    app = create_app(settings(), FakePainter(error=ModelUnavailableError("away")))

    assert ask(app, "GET", "/limits").status_code == 503


def test_a_limit_that_is_told_is_the_one_that_holds() -> None:
    app = create_app(settings(), FakePainter())
    most = ask(app, "GET", "/limits").json()["limits"]["max_prompt_bytes"]

    assert ask(app, "POST", "/multsd", json=seed_request(bg_prompt="x" * most)).status_code == 200
    assert ask(app, "POST", "/multsd", json=seed_request(bg_prompt="x" * (most + 1))).status_code == 400
