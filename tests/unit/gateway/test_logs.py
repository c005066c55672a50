"""Log lines as JSON."""

from __future__ import annotations

import json
import logging
import sys

from multsd_gateway.logs import JsonFormatter, RequestIdFilter, request_id_var


def _record(message: str, *arguments: object, failed: bool = False) -> logging.LogRecord:
    return logging.LogRecord(
        "multsd", logging.WARNING, "file.py", 1, message, arguments, sys.exc_info() if failed else None
    )


def test_a_json_line_is_one_object_with_the_requests_id() -> None:
    token = request_id_var.set("job-7")
    try:
        record = _record("refused: %s", 'a "field"\nforged')
        RequestIdFilter().filter(record)
        line = JsonFormatter().format(record)
    finally:
        request_id_var.reset(token)

    assert "\n" not in line
    told = json.loads(line)
    assert told.pop("time").startswith("20")
    assert told == {
        "level": "WARNING",
        "request_id": "job-7",
        "logger": "multsd",
        "message": 'refused: a "field"\nforged',
    }


def test_an_exception_stays_on_the_line() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        line = JsonFormatter().format(_record("internal error", failed=True))

    assert "\n" not in line
    assert "KeyError: 'x'" in json.loads(line)["exception"]
