"""The command `multsd`. On stdout: the picture's path, or with `-o -` the picture; progress and remarks go to stderr.

Exit codes: 0 done; 1 the picture could not be written, or some of a batch failed; 2 bad arguments, a refused request or
a missing token; 3 the service is not there or full; 4 too late; 5 the service failed, or its reply was not understood;
130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from multsd_client import replay as records
from multsd_client.arguments import RegionCommand, read_regions
from multsd_client.batch_command import batch_command
from multsd_client.client import Client
from multsd_client.display import limits_lines, plain, progress_bar, show_error, show_result
from multsd_client.errors import (
    DeadlineExceededError,
    GenerationFailedError,
    InvalidRequestError,
    MultsdError,
    ProtocolError,
    ServiceUnavailableError,
    UnauthorizedError,
)
from multsd_client.options import (
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    Retries,
    Timeout,
    TokenFile,
    Url,
    read_text,
    read_token,
    reason,
)
from multsd_client.request import GenerationRequest
from multsd_client.result import GenerationResult
from multsd_client.urls import shown

EXIT_CODES: Mapping[type[MultsdError], int] = {
    UnauthorizedError: 2,
    InvalidRequestError: 2,
    ServiceUnavailableError: 3,
    DeadlineExceededError: 4,
    GenerationFailedError: 5,
    ProtocolError: 5,
}
EXIT_NOT_WRITTEN = 1
EXIT_NOT_READY = EXIT_CODES[ServiceUnavailableError]

FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}
STDOUT = Path("-")
DEFAULT_SIDE = 512

# Plain help: rich would take what stands in square brackets for its markup, and show nothing of it.
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def main() -> None:
    """Paint pictures from a background prompt and any number of regions, each with a prompt of its own."""


@app.command(cls=RegionCommand)
def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="BACKGROUND", help="Prompt of the background.")] = None,
    negative: Annotated[
        str | None, typer.Option(help="What the picture should not show; regions may say otherwise.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MASK PROMPT [NEGATIVE]",
            help="A region, any number of times. MASK: an image file, white inside, or box:x0,y0,x1,y1 in pixels. "
            "The background's prompt comes before the first region.",
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(help="Pixels. [default: 512]")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels. [default: 512]")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    bootstrapping: Annotated[int | None, typer.Option(help="First steps that see each region on its own.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, dpmpp_2m, ...")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed paints the same picture.")] = None,
    request: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="The API's JSON from a file or stdin; options given here win over it."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help=".jpg, .png or .webp; - for stdout, as the request says.")
    ] = Path("multsd.jpg"),
    quality: Annotated[int | None, typer.Option(help="Of JPEG and WebP, 1 to 100.")] = None,
    preview_every: Annotated[
        int | None, typer.Option(help="Show a preview in the terminal every so many steps.")
    ] = None,
    deadline: Annotated[float | None, typer.Option(help="Seconds after which the picture is of no use.")] = None,
    url: Url = DEFAULT_URL,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    retries: Retries = 0,
    token_file: TokenFile = None,
) -> None:
    """Paint one picture and print the path of the file it is in.

    \b
    multsd generate "a beach at noon" --region box:128,128,384,384 "a husky dog" --seed 7 -o husky.jpg
    """
    options = {
        "bg_nprompt": negative,
        "width": width,
        "height": height,
        "ddim_steps": steps,
        "bootstrapping": bootstrapping,
        "guidance_scale": guidance,
        "scheduler": scheduler,
        "seed": seed,
        "output_format": _format(output),
        "quality": quality,
        "preview_every": preview_every,
        "deadline_s": deadline,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if request is None:
        body = _described(prompt, region or [], given)
    else:
        body = {**_read_json(request, prompt, region or []), **given}
    service = {"timeout": timeout, "retries": retries, "token": read_token(token_file)}
    _write(_ask(url, body, service), output)


@app.command()
def replay(
    picture: Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP that the service has painted.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=".jpg, .png or .webp; - for stdout. [default: replay.*, as the picture]"),
    ] = None,
    url: Url = DEFAULT_URL,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    retries: Retries = 0,
    token_file: TokenFile = None,
) -> None:
    """Paint a picture again from the parameters that it carries, and print the path of the file it is in."""
    try:
        body, checkpoint = records.read(picture.read_bytes())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{picture}: {reason(error)}", param_hint="PICTURE") from None
    target = output or Path(f"replay{picture.suffix}")
    if (output_format := _format(target)) is not None:
        body["output_format"] = output_format
    service = {"timeout": timeout, "retries": retries, "token": read_token(token_file)}
    result = _ask(url, body, service)
    if result.checkpoint.get("digest") != checkpoint.get("digest"):
        typer.echo("the service paints with another checkpoint than the picture's: expect another picture", err=True)
    _write(result, target)


@app.command()
def health(
    url: Url = DEFAULT_URL,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 5.0,
    token_file: TokenFile = None,
) -> None:
    """Print whether the service would take a request now, and what it paints with; exit code 3 if not."""
    try:
        with Client(url, timeout=timeout, token=read_token(token_file)) as client:
            if (fault := client.why_not_ready()) is not None:
                typer.echo(f"{shown(url)}: {plain(fault)}")
                raise typer.Exit(EXIT_NOT_READY)
            lines = limits_lines(client.limits())
    except MultsdError as error:
        show_error(Console(stderr=True), error)
        raise typer.Exit(EXIT_CODES[type(error)]) from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo("\n".join([f"{shown(url)}: ready", *lines]))


app.command("batch")(batch_command)


def _described(prompt: str | None, regions: list[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a picture described on the command line."""
    if prompt is None:
        raise typer.BadParameter("expected a background prompt or --request", param_hint="BACKGROUND")
    size = {"width": given.get("width", DEFAULT_SIDE), "height": given.get("height", DEFAULT_SIDE)}
    typed = GenerationRequest(
        prompt=prompt, negative_prompt=given.get("bg_nprompt", ""), regions=read_regions(regions), **size
    )
    try:
        return {**typed.to_json(), **given}
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--region") from None


def _read_json(source: str, prompt: str | None, regions: list[str]) -> dict[str, Any]:
    if prompt is not None or regions:
        raise typer.BadParameter("expected either a request or a prompt with regions", param_hint="--request")
    try:
        body = json.loads(read_text(source), strict=False)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{source}: {reason(error)}", param_hint="--request") from None
    except RecursionError:
        raise typer.BadParameter(f"{source}: nested too deep", param_hint="--request") from None
    if not isinstance(body, dict):
        raise typer.BadParameter(f"{source}: expected a JSON object", param_hint="--request")
    return body


def _format(output: Path) -> str | None:
    """The format that a file's name asks for; None for stdout, whose format is the request's."""
    if output == STDOUT:
        if sys.stdout.isatty():
            raise typer.BadParameter("expected stdout to be a file or a pipe, found a terminal", param_hint="--output")
        return None
    try:
        return FORMATS[output.suffix.lower()]
    except KeyError:
        raise typer.BadParameter(f"expected {', '.join(FORMATS)}, found {output.name}", param_hint="--output") from None


def _ask(url: str, body: Mapping[str, Any], service: Mapping[str, Any]) -> GenerationResult:
    """Paint, with the bar and the remarks; service: how to talk to it, as Client's arguments."""
    console = Console(stderr=True)
    try:
        with Client(url, **service) as client, progress_bar(console) as listener:
            result = client.generate(
                body,
                on_queued=listener.on_queued,
                on_progress=listener.on_progress,
                on_preview=listener.on_preview,
            )
    except MultsdError as error:
        show_error(console, error)
        raise typer.Exit(EXIT_CODES[type(error)]) from None
    except ValueError as error:  # what JSON, a URL or a header cannot say, and the environment
        raise typer.BadParameter(str(error)) from None
    show_result(console, result)
    return result


def _write(result: GenerationResult, output: Path) -> None:
    if output == STDOUT:
        typer.echo(result.image, nl=False)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(result.image)
    except OSError as error:
        typer.echo(f"{output}: {error.strerror}", err=True)
        raise typer.Exit(EXIT_NOT_WRITTEN) from None
    typer.echo(str(output))
