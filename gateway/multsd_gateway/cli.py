"""The command `multsd-gateway`: `run` is the gateway alone, for a Triton that runs elsewhere."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import uvicorn
from pydantic import ValidationError

from multsd_gateway import logs
from multsd_gateway.app import create_app
from multsd_gateway.settings import Settings

GRACE_SECONDS = 10

app = typer.Typer(no_args_is_help=True, add_completion=False, help="HTTP gateway of multsd.")


@app.callback()
def main() -> None:
    """HTTP gateway of multsd. Settings come from the environment, MULTSD_<NAME>."""


@app.command()
def run(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    triton_url: Annotated[str | None, typer.Option(help="host:port of Triton's gRPC endpoint.")] = None,
) -> None:
    """Serve the HTTP API in front of a Triton server that runs already, or will."""
    given: dict[str, Any] = {"host": host, "port": port, "triton_url": triton_url}
    settings = load_settings({name: value for name, value in given.items() if value is not None})
    logs.configure(settings.log_level)
    run_gateway(settings)


def load_settings(given: dict[str, Any]) -> Settings:
    """Settings from the environment under the given values; ends the command where they are invalid."""
    try:
        return Settings(**given)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise typer.BadParameter("; ".join(faults)) from None


def run_gateway(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; requests at work get GRACE_SECONDS to finish."""
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
