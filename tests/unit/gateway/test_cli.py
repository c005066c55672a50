"""The command `multsd-gateway`: its help, and what it says at its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from multsd_gateway import cli
from multsd_gateway.settings import Settings
from tests.unit.gateway.fakes import settings


def test_help_lists_every_setting_with_its_default() -> None:
    text = CliRunner().invoke(cli.app, ["--help"]).output

    for name, field in Settings.model_fields.items():
        assert f"MULTSD_{name.upper()}=" in text
        assert str(field.description).split()[0] in text
    assert "MULTSD_PORT=5000\n" in text
    assert "MULTSD_OPEN_PATHS=/,/healthz,/readyz,/metrics,/docs,/openapi.json\n" in text


def test_the_summary_names_what_was_changed() -> None:
    text = cli.summary(settings(port=5001, triton_url="a:1,b:2", max_steps=60))

    assert text == ("serving on 127.0.0.1:5001 for everybody, painting with Triton at a:1,b:2; max_steps=60")


def test_the_summary_tells_no_secret(tmp_path: Path) -> None:
    secret = tmp_path / "tokens"
    secret.write_text("a-token-of-enough-characters\n")

    text = cli.summary(
        settings(
            token_file=secret, triton_token_file=secret, triton_metrics_url="http://user:password@triton:8002/metrics"
        )
    )

    assert "a-token-of-enough-characters" not in text
    assert "password" not in text
    assert f"the tokens of {secret}" in text
    assert "triton_metrics_url=http://triton:8002/metrics" in text


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"MULTSD_PORT": "0"}, "port"),
        ({"MULTSD_LOG_FORMAT": "xml"}, "log_format"),
        ({"MULTSD_TOKEN_FILE": "/nowhere/tokens"}, "/nowhere/tokens"),
        ({"MULTSD_TRITON_TOKEN_FILE": "/nowhere/token"}, "/nowhere/token"),
        ({"MULTSD_TRITON_ROOT_CERTIFICATES": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({"MULTSD_MAX_EMBEDDED_BYTES": "2000000"}, "max_embedded_bytes"),
    ],
)
def test_a_setting_that_cannot_be_used_ends_the_command_at_its_start(variables: dict[str, str], named: str) -> None:
    result = CliRunner().invoke(cli.app, ["run"], env=variables)

    assert result.exit_code == 2
    assert named in result.output
    assert "Traceback" not in result.output


def test_the_server_cuts_connections_after_the_settings_time_and_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    served: dict[str, Any] = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **options: served.update(options, app=app))

    cli.run_gateway(settings(write_seconds=7, keep_alive_seconds=99, max_body_bytes=10**8))

    assert served["http"].write_seconds == 7
    assert served["http"].drained_bytes == 2 * 10**8
    assert served["timeout_keep_alive"] == 99
    served["http"].on_cut()
    assert b"multsd_gateway_cut_connections_total 1.0" in served["app"].state.metrics.text()
