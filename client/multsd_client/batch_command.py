"""The command `multsd batch`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from multsd_client import batch
from multsd_client.client import AsyncClient
from multsd_client.display import plain
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

EXIT_SOME_FAILED = 1
RESULTS = "results.jsonl"


def batch_command(
    requests: Annotated[str, typer.Argument(metavar="FILE|-", help="One JSON of the API a line.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pictures.")] = Path("pictures"),
    results: Annotated[Path | None, typer.Option(help=f"JSON lines of results. [default: OUTPUT/{RESULTS}]")] = None,
    at_once: Annotated[int, typer.Option("--at-once", "-n", min=1, help="Requests at a time.")] = 4,
    again: Annotated[bool, typer.Option("--again", help="Paint what an earlier run has painted over again.")] = False,
    url: Url = DEFAULT_URL,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    retries: Retries = 8,
    token_file: TokenFile = None,
) -> None:
    """Paint a picture for every line.

    A second run paints the requests that are new, changed or failed before. A request is told by its content, not by
    its line: lines may move. One that stands there twice is painted twice. A picture's name comes from its request;
    pictures of requests that are no longer in FILE stay, and are found again once they are back.

    Prints the path of the results: each says line, file and seed, in the order they ended; of two for the same line the
    later one holds. Exit code 1 if any failed.
    """
    jobs = _read(requests)
    try:
        output.mkdir(parents=True, exist_ok=True)
        path = results or output / RESULTS
        done = {} if again else batch.finished(path, output)
        left = [job for job in jobs if job.key not in done]
        _append(path, batch.moved(jobs, done))
        client = AsyncClient(url, token=read_token(token_file), timeout=timeout, retries=retries)
        failed = _run(client, left, at_once=at_once, folder=output, results=path, before=len(jobs) - len(left))
    except OSError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_SOME_FAILED) from None
    except ValueError as error:  # what a URL cannot say, and the environment
        raise typer.BadParameter(str(error)) from None
    typer.echo(str(path))
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _read(source: str) -> list[batch.Job]:
    try:
        text = read_text(source)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{source}: {reason(error)}", param_hint="FILE") from None
    return batch.read_jobs(text.split("\n"))  # splitlines() also cuts at what JSON's strings may hold


def _append(results: Path, new: list[dict[str, Any]]) -> None:
    """Add lines, on a line of their own also where a crash has cut the last one."""
    whole = not results.exists() or results.read_bytes()[-1:] in (b"", b"\n")
    with results.open("a", encoding="utf-8") as file:
        file.write("" if whole else "\n")
        file.writelines(json.dumps(result) + "\n" for result in new)


def _run(client: AsyncClient, jobs: list[batch.Job], *, at_once: int, folder: Path, results: Path, before: int) -> int:
    """Paint; returns how many failed. before: how many an earlier run has painted."""
    console = Console(stderr=True, soft_wrap=True)
    columns = (TextColumn("painting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    failed = 0
    with (
        results.open("a", encoding="utf-8") as file,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("painting", total=before + len(jobs), completed=before)

        def on_result(result: Mapping[str, Any]) -> None:
            nonlocal failed
            file.write(json.dumps(result) + "\n")
            file.flush()
            bar.advance(task)
            if "error" in result:
                failed += 1
                console.print(f"line {result['line']}: {plain(result['error'])}", markup=False)

        async def paint() -> None:
            async with client:
                await batch.run(client, jobs, at_once=at_once, folder=folder, on_result=on_result)

        asyncio.run(paint())
    console.print(f"{len(jobs) - failed} painted, {failed} failed, {before} before")
    return failed
