"""A missed goal of the load benchmark fails its command, after everything was printed and written."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks.load_report import Report


def reported(folder: Path) -> tuple[Report, io.StringIO]:
    printed = io.StringIO()
    return Report("part", folder, Console(file=printed, width=120)), printed


def test_goals_that_are_met_leave_the_command_in_peace(tmp_path: Path) -> None:
    report, printed = reported(tmp_path)
    with report:
        report.at_most("seconds", 1.0, 1.0)
        report.at_least("rows", 13, 12.8, "{:.1f}")
        report.keep(rows=[13])
    assert "at least 12.8" in printed.getvalue()
    written = json.loads((tmp_path / "part.json").read_text())
    assert written["rows"] == [13]
    assert [goal["met"] for goal in written["goals"]] == [True, True]


@pytest.mark.parametrize("figure", [1.1, float("nan")])
def test_a_missed_goal_fails_the_command_after_all_was_printed(figure: float, tmp_path: Path) -> None:
    report, printed = reported(tmp_path)

    def measure() -> None:
        with report:
            report.at_most("seconds", figure, 1.0)
            report.show("a line")

    with pytest.raises(SystemExit, match="part: goals missed: seconds"):
        measure()
    assert "a line" in printed.getvalue()
    assert "MISSED" in printed.getvalue()
    assert json.loads((tmp_path / "part.json").read_text())["goals"][0]["met"] is False


def test_what_was_measured_before_an_error_is_printed_and_the_error_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, printed = reported(tmp_path)

    def measure() -> None:
        with report:
            report.show("a line")
            report.at_most("seconds", 2.0, 1.0)
            raise RuntimeError("Triton has ended")

    with pytest.raises(RuntimeError, match="Triton has ended"):
        measure()
    assert "a line" in printed.getvalue()
    assert "goals missed: seconds" in capsys.readouterr().err
