"""Log lines as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from multsd_gateway.app import create_app
from multsd_gateway.errors import DeadlineExceededError
from multsd_gateway.logs import JsonFormatter, RequestIdFilter, request_id_var
from tests.unit.gateway.fakes import FakePainter, ask, seed_request, settings

TOKEN = "a-token-of-enough-characters"  # noqa: S105 - of this test only


def _record(message: str, *arguments: object, failed: bool = False) -> logging.LogRecord:
    return logging.LogRecord(
        "multsd", logging.WARNING, "file.py", 1, message, arguments, sys.exc_info() if failed else None
    )


def test_a_json_line_is_one_object_with_the_requests_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    token = request_id_var.set("job-7")
    try:
        record = _record("refused: %s", 'a "field"\nforged')
        RequestIdFilter().filter(record)
        line = JsonFormatter().format(record)
    finally:
        request_id_var.reset(token)
        monkeypatch.undo()
        time.tzset()

    assert "\n" not in line
    told = json.loads(line)
    said = datetime.fromisoformat(told.pop("time"))
    assert said.utcoffset() == timedelta(0)
    assert abs(said.timestamp() - record.created) < 0.01
    assert told == {
        "level": "WARNING",
        "request_id": "job-7",
        "logger": "multsd",
        "message": 'refused: a "field"\nforged',
    }


def test_the_access_log_has_fields_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tokens").write_text(f"shop:{TOKEN}\n")
    painter = FakePainter(error=DeadlineExceededError("late"))
    app = create_app(settings(token_file=tmp_path / "tokens"), painter)
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Request-Id": "job-7"}

    with caplog.at_level(logging.INFO, logger="multsd_gateway.middleware"):
        ask(app, "POST", "/multsd/stream", json=seed_request(), headers=headers)
        ask(app, "GET", "/limits", headers={"X-Request-Id": "job-8"})

    painted, refused = (json.loads(JsonFormatter().format(each)) for each in caplog.records if each.name.endswith("re"))
    seconds = painted.pop("seconds")
    assert 0 < seconds < 60
    assert {**painted, "time": 0, "request_id": 0} == {
        "time": 0,
        "level": "INFO",
        "request_id": 0,
        "logger": "multsd_gateway.middleware",
        "message": f"POST /multsd/stream 504 {seconds * 1000:.0f} ms, token shop",
        "method": "POST",
        "path": "/multsd/stream",
        "status": 504,
        "token": "shop",
    }
    assert (refused["path"], refused["status"], refused["token"]) == ("/limits", 401, None)


def test_an_exception_stays_on_the_line() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        line = JsonFormatter().format(_record("internal error", failed=True))

    assert "\n" not in line
    assert "KeyError: 'x'" in json.loads(line)["exception"]
