"""The command `multsd-stack`: Triton and the gateway together on this machine.

Exit codes: 0 done, or `serve` was stopped by a signal; 1 something that is needed is missing, or a process has ended;
130 `demo` was stopped before its picture was there.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.table import Table

from multsd_client import Client, GenerationResult, MultsdError
from multsd_client.display import progress_bar, show_result
from multsd_client.options import reason
from multsd_gateway.cli import load_settings
from multsd_gateway.stack.errors import StackError
from multsd_gateway.stack.settings import StackSettings
from multsd_gateway.stack.supervisor import Stack, StopRequestedError, check_machine, running_stack, stop_signals

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(stderr=True, highlight=False, soft_wrap=True)


@app.command()
def check() -> None:
    """Say what would stop a start on this machine: a missing library, a taken port."""
    try:
        check_machine(StackSettings(), load_settings({}))
    except StackError as error:
        _refuse(error)


@app.command()
def serve() -> None:
    """Run Triton and the gateway until Ctrl-C or SIGTERM. Settings: MULTSD_PORT, MULTSD_TRITON_HTTP_PORT, ..."""
    with _stack(status_when_stopped=0) as stack:
        console.print(f"ready: POST {stack.url}/multsd (Ctrl-C stops both, a second one at once)")
        stack.watch()


@app.command()
def demo(
    request: Annotated[Path, typer.Option(help="JSON of a POST /multsd.")],
    output: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("build/demo.jpg"),
) -> None:
    """Start both, paint one picture, stop both."""
    body = _read_request(request)
    _make_room(output)
    with (
        _stack(status_when_stopped=130) as stack,
        progress_bar(console) as listener,
        Client(stack.url, transport=httpx.HTTPTransport()) as client,
    ):
        result = client.generate(body, on_queued=listener.on_queued, on_progress=listener.on_progress)
    try:
        output.write_bytes(result.image)
    except OSError as error:
        _refuse(f"{output}: {reason(error)}")
    show_result(console, result)
    console.print(_timings(result))
    typer.echo(output)


def _read_request(file: Path) -> dict[str, Any]:
    """The request of a file; ends the command where it holds none."""
    try:
        body = json.loads(file.read_text(encoding="utf-8-sig"), strict=False)
    except (OSError, ValueError) as error:
        _refuse(f"{file}: {reason(error)}")
    except RecursionError:
        _refuse(f"{file}: nested too deep")
    if not isinstance(body, dict):
        _refuse(f"{file}: expected a JSON object")
    return body


def _make_room(output: Path) -> None:
    """The picture's folder; ends the command where there can be none, before anything is started."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _refuse(f"{output}: {reason(error)}")


@contextmanager
def _stack(*, status_when_stopped: int) -> Iterator[Stack]:
    try:
        with stop_signals(), running_stack(StackSettings(), load_settings({}), console.print) as stack:
            yield stack
    except StopRequestedError as stop:
        console.print(f"stopped by {stop}")
        raise typer.Exit(status_when_stopped) from None
    except (StackError, MultsdError) as error:
        _refuse(error)


def _refuse(error: Exception | str) -> NoReturn:
    console.print(f"multsd-stack: {error}", style="red", markup=False)
    raise typer.Exit(1)


def _timings(result: GenerationResult) -> Table:
    table = Table("part", "seconds", "share", title="where the time went")
    total = result.timings["total"]
    for part, seconds in result.timings.items():
        table.add_row(part, f"{seconds:.2f}", f"{seconds / total:.0%}")
    table.caption = f"{result.unet_rows} UNet rows; the published method evaluates {result.unet_rows_reference}"
    return table


if __name__ == "__main__":
    app()
