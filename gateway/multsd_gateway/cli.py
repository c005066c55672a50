"""The command `multsd-gateway`: `run` is the gateway alone, for a Triton that runs elsewhere."""

from __future__ import annotations

import gc
import logging
import math
from typing import Annotated, Any

import typer
import uvicorn
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from multsd_gateway import logs
from multsd_gateway.app import create_app
from multsd_gateway.protocol import patient_protocol
from multsd_gateway.settings import PREFIX, Settings

log = logging.getLogger(__name__)


def settings_help() -> str:
    """Every setting: its variable, its default and what it is."""
    lines = [
        f"{PREFIX}{name.upper()}={_default(field.default)}\n    {field.description}"
        for name, field in Settings.model_fields.items()
    ]
    return "\n\n".join(["Settings, from the environment:", *(f"\b\n{line}" for line in lines)])


def _default(value: object) -> str:
    if value is PydanticUndefined or value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(epilog=settings_help())
def main() -> None:
    """HTTP gateway of multsd. Settings come from the environment."""


@app.command()
def run(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    triton_url: Annotated[str | None, typer.Option(help="host:port of Triton's gRPC endpoint, or several.")] = None,
) -> None:
    """Serve the HTTP API in front of a Triton server that runs already, or will."""
    given: dict[str, Any] = {"host": host, "port": port, "triton_url": triton_url}
    settings = load_settings({name: value for name, value in given.items() if value is not None})
    logs.configure(settings.log_level, settings.log_format)
    log.info("%s", summary(settings))
    run_gateway(settings)


def load_settings(given: dict[str, Any]) -> Settings:
    """Settings from the environment under the given values; ends the command where they are invalid."""
    try:
        return Settings(**given)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise typer.BadParameter("; ".join(faults)) from None


def summary(settings: Settings) -> str:
    """Where it listens and paints, who may ask, and every other setting that is not its default.

    Settings hold paths of secrets, never secrets; of a URL the user and password are left out.
    """
    told = {"host", "port", "triton_url", "token_file"}
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    changed = {
        name: _without_password(_default(value))
        for name, value in values.items()
        if name not in told and value != Settings.model_fields[name].default
    }
    access = "everybody" if settings.token_file is None else f"the tokens of {settings.token_file}"
    text = f"serving on {settings.host}:{settings.port} for {access}, painting with Triton at {settings.triton_url}"
    return "; ".join([text, *(f"{name}={value}" for name, value in changed.items())])


def _without_password(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else value


def run_gateway(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; requests at work get the settings' grace to finish."""
    try:
        application = create_app(settings)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    # What is here now stays: a full collection need not look at it, for 20 ms in which nobody is served.
    gc.collect()
    gc.freeze()
    uvicorn.run(
        application,
        host=settings.host,
        port=settings.port,
        http=patient_protocol(
            settings.write_seconds,
            application.state.metrics.cut.inc,
            read_seconds=settings.body_seconds,
            max_body_bytes=settings.max_body_bytes,
        ),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=math.ceil(settings.grace_seconds),
    )
