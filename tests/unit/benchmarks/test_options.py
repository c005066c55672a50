"""Options of the benchmarks: what could measure nothing is refused before a stack is started."""

import pytest
import typer
from typer.testing import CliRunner

from tests.benchmarks import load_run, request_run

APP = typer.Typer()
APP.command("request")(request_run.main)
APP.add_typer(load_run.app, name="load")


def never(*_: object, **__: object) -> None:
    raise AssertionError("a stack is started")


@pytest.mark.parametrize(
    ("command", "least"),
    [
        ("load soak --requests 9", "10"),
        ("load cpu --requests 0", "1"),
        ("load cpu --equal 0", "1"),
        ("load gpu --requests 23", "24"),
        ("load gpu --call-ms 0", "0.1"),
        ("load gpu --row-ms -1", "0"),
        ("load overload --seconds 0", "1"),
        ("load overload --waiting-rows 0", "1"),
        ("load deterministic --requests 0", "1"),
        ("request --runs 0", "1"),
    ],
)
def test_too_few_of_anything_are_refused(command: str, least: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_run, "Report", never)
    monkeypatch.setattr(request_run, "running_stack", never)
    result = CliRunner().invoke(APP, command.split())
    assert result.exit_code == 2
    told = " ".join(result.output.replace("│", "").split())
    option = command.split()[-2]
    assert f"Invalid value for '{option}': Input should be greater than or equal to {least} " in told
