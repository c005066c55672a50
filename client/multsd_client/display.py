"""What the command shows on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from multsd_client import tensors
from multsd_client.errors import InvalidRequestError, MultsdError
from multsd_client.result import GenerationResult


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[tensors.Progress], None]]:
    """Show a bar while the body runs, from the progress that is given to the function."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("waiting", total=None)

        def on_progress(progress: tensors.Progress) -> None:
            bar.update(task, description="painting", completed=progress.step, total=progress.num_inference_steps)

        yield on_progress


def show_result(console: Console, result: GenerationResult) -> None:
    """Warnings, then one line with the seed and the time."""
    for warning in result.warnings:
        console.print(f"[yellow]warning[/] {escape(str(warning))}", soft_wrap=True)
    seconds = result.timings.get("total", 0.0)
    console.print(f"seed {result.seed}, {seconds:.1f} s, {result.unet_rows} UNet rows", soft_wrap=True)


def show_error(console: Console, error: MultsdError) -> None:
    """Each fault of a refused request, or the one message of another error."""
    notes = error.errors if isinstance(error, InvalidRequestError) else ()
    for text in map(str, notes or (error,)):
        console.print(f"[red]error[/] {escape(text)}", soft_wrap=True)
    if error.request_id:
        console.print(f"request {error.request_id}", soft_wrap=True)
