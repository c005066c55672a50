"""What the command shows on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.style import Style
from rich.text import Text

from multsd_client import tensors
from multsd_client.errors import InvalidRequestError, MultsdError, ProtocolError
from multsd_client.listening import Listener
from multsd_client.result import GenerationResult


@contextmanager
def progress_bar(console: Console) -> Iterator[Listener]:
    """Show what the listener hears while the body runs: the place in the queue, a bar, and previews under it.

    Nothing is shown where nobody looks; a terminal without colours shows no previews.
    """
    if not console.is_terminal:
        yield Listener()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console)
    task = bar.add_task("waiting", total=None)

    def on_queued(queued: tensors.Queued) -> None:
        bar.update(task, description=f"waiting, {queued.position} before this one" if queued.position else "next")

    def on_progress(progress: tensors.Progress) -> None:
        bar.update(task, description="painting", completed=progress.step, total=progress.num_inference_steps)

    with Live(bar, console=console, transient=True) as live:

        def on_preview(preview: tensors.Preview) -> None:
            live.update(Group(bar, in_blocks(preview.image, width=console.width)))

        shows_previews = console.color_system is not None
        yield Listener(on_queued=on_queued, on_progress=on_progress, on_preview=on_preview if shows_previews else None)


def in_blocks(image: NDArray[np.uint8], *, width: int) -> Text:
    """A small picture (h, w, 3) in characters, each the upper and the lower half of two pixels; no wider than width."""
    every = -(-image.shape[1] // width)
    pixels = image[::every, ::every]
    pixels = np.concatenate([pixels, pixels[-1:]]) if len(pixels) % 2 else pixels
    rows = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        styles = [
            Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
            for above, below in zip(upper, lower, strict=True)
        ]
        rows.append(Text.assemble(*(("\u2580", style) for style in styles)))
    return Text("\n").join(rows)


def plain(text: object) -> str:
    """What a service says, as a terminal may show it: what would move its cursor or change its title is spelt out."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in str(text))


def show_result(console: Console, result: GenerationResult) -> None:
    """Warnings, then one line with the seed and the time."""
    for warning in result.warnings:
        console.print(f"[yellow]warning[/] {escape(plain(warning))}", soft_wrap=True)
    seconds = result.timings.get("total", 0.0)
    console.print(f"seed {result.seed}, {seconds:.1f} s, {result.unet_rows} UNet rows", soft_wrap=True)


def limits_lines(told: Mapping[str, Any]) -> list[str]:
    """What GET /limits told, a line for each thing; what it did not tell is left out. Raises ProtocolError."""
    most = {"pixels": "max_pixels", "regions": "max_regions", "steps": "max_steps"}
    try:
        checkpoint, limits = told.get("checkpoint") or {}, told.get("limits") or {}
        lines = {
            "checkpoint": ", ".join(
                str(checkpoint[key]) for key in ("name", "family", "digest") if checkpoint.get(key)
            ),
            "samplers": ", ".join(told.get("schedulers") or ()),
            "at most": ", ".join(f"{limits[name]:.0f} {unit}" for unit, name in most.items() if name in limits),
        }
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"limits: expected those of the multsd API, found {error!r}") from None
    return [f"{name}: {plain(text)}" for name, text in lines.items() if text]


def show_error(console: Console, error: MultsdError) -> None:
    """Each fault of a refused request, or the one message of another error."""
    notes = error.errors if isinstance(error, InvalidRequestError) else ()
    for text in map(plain, notes or (error,)):
        console.print(f"[red]error[/] {escape(text)}", soft_wrap=True)
    if error.request_id:
        console.print(f"request {escape(plain(error.request_id))}", soft_wrap=True)
