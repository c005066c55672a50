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


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file or directory"),
        (b"{", "Expecting property name"),
        (b"\xff", "invalid start byte"),
        (b"[]", "expected a JSON object"),
        (b"[" * 100_000, "nested too deep"),
    ],
    ids=["missing", "cut", "not UTF-8", "a list", "deep"],
)
def test_a_request_that_cannot_be_read_is_one_line_and_status_1(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    file = tmp_path / "request.json"
    if content is not None:
        file.write_bytes(content)

    result = CliRunner().invoke(app, ["demo", "--request", str(file)])

    assert result.exit_code == 1
    assert result.output.startswith(f"multsd-stack: {file}: ")
    assert told in result.output
    assert "Traceback" not in result.output


def test_a_picture_that_could_not_be_kept_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text("{}")
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "picture.jpg"

    result = CliRunner().invoke(app, ["demo", "--request", str(tmp_path / "request.json"), "--output", str(output)])

    assert result.exit_code == 1
    assert result.output.startswith(f"multsd-stack: {output}: ")
    assert len(result.output.splitlines()) == 1
