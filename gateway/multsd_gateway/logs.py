"""Log lines that carry the request's id. Prompts and masks are never logged."""

from __future__ import annotations

import contextvars
import json
import logging
import logging.config
import time

FIELDS = "fields"  # of a log record: what a line of JSON has beside its message

request_id_var: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")


class RequestIdFilter(logging.Filter):
    """Gives every record the id of the request that it was written for, or "-"."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id_var.get()
        return True


class JsonFormatter(logging.Formatter):
    """A JSON object a line: time (UTC), level, request_id, logger, message, and exception where there is one.

    A request's line in the access log has method, path, status, seconds and token (its name, or null) too.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "request_id": getattr(record, "request_id", "-"),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


FORMATTERS = {
    "text": {"format": "%(asctime)s %(levelname)s [%(request_id)s] %(name)s: %(message)s"},
    "json": {"()": JsonFormatter},
}


def configure(level: str, log_format: str = "text") -> None:
    """Send all logs of the process to stderr, a line each. log_format: text or json."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": RequestIdFilter}},
            "formatters": {"line": FORMATTERS[log_format]},
            "handlers": {
                "stderr": {"class": "logging.StreamHandler", "filters": ["request_id"], "formatter": "line"},
            },
            "loggers": {"httpx": {"level": "WARNING"}},  # else a line for each of Prometheus's visits
            "root": {"level": level, "handlers": ["stderr"]},
        }
    )
