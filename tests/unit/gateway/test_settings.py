"""Settings come from the environment, frozen, and bad ones are told."""

from __future__ import annotations

import re
from pathlib import Path

import pydantic
import pytest
import typer

from multsd_gateway.cli import load_settings
from multsd_gateway.settings import Settings


def test_the_gateway_listens_on_loopback_unless_told_otherwise() -> None:
    assert (Settings().host, Settings().port) == ("127.0.0.1", 5000)


def test_the_environment_sets_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTSD_PORT", "5001")
    monkeypatch.setenv("MULTSD_MAX_STEPS", "60")

    assert (load_settings({}).port, load_settings({"port": 5002}).port) == (5001, 5002)
    assert load_settings({}).max_steps == 60


def test_settings_cannot_change() -> None:
    with pytest.raises(pydantic.ValidationError):
        setattr(Settings(), "port", 1)  # noqa: B010


def test_a_bad_setting_is_named() -> None:
    with pytest.raises(typer.BadParameter, match="port: "):
        load_settings({"port": 0})


@pytest.mark.parametrize("text", ["", " ,", "http://a:8001", "a:8001, https://b:8001"])
def test_what_names_no_triton_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"triton_url: .*expected host:port"):
        load_settings({"triton_url": text})


def test_a_triton_that_is_named_twice_is_one() -> None:
    assert Settings(triton_url="a:8001, b:8001,a:8001,").triton_urls == ("a:8001", "b:8001")


def test_by_default_as_many_requests_go_through_as_one_triton_takes_so_that_its_rows_decide() -> None:
    config = (Path(__file__).parents[3] / "model_repository" / "multidiffusion" / "config.pbtxt").read_text()
    told = dict(re.findall(r'key: "(max_\w+)" value { string_value: "(\d+)" }', config))

    assert Settings().max_running > int(told["max_running"]) + int(told["max_waiting"])
    assert Settings().max_waiting_rows == int(told["max_waiting_rows"])
