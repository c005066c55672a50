from pathlib import Path

import pytest
from typer.testing import CliRunner

from multsd_gateway.stack.cli import app


@pytest.mark.parametrize("command", [["serve"], ["demo", "--request", "request.json"]])
def test_missing_prerequisite_is_one_line_and_status_1(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "request.json").write_text("{}")
    command = [str(tmp_path / word) if word.endswith(".json") else word for word in command]
    result = CliRunner().invoke(app, command, env={"MULTSD_REPOSITORY": str(tmp_path / "none")})
    assert result.exit_code == 1
    assert "make export" in result.output
    assert "Traceback" not in result.output
