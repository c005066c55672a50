"""How well pictures obey their masks and prompts: `make bench-quality` paints, scores and writes what was found.

A published, seeded list of requests is painted with the service's own method and exported networks, with
bootstrapping off, short and long, with fixed backgrounds, and as plain text-to-image; a rule looks at the pictures.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from checkpoint_files import load_checkpoint
from demo_checkpoint.pictures import Pixels
from tests.benchmarks.console import wide_console
from tests.benchmarks.quality_metrics import score_picture
from tests.benchmarks.quality_oracle import filled_picture, oracle_picture
from tests.benchmarks.quality_painting import VARIANTS, OnnxNetworks, Painter
from tests.benchmarks.quality_report import PAINTED, TITLES, report, tables
from tests.benchmarks.quality_requests import COUNT, Request, make_requests
from tests.benchmarks.quality_sheet import contact_sheet
from tests.benchmarks.quality_summary import FILLED, ORACLE, Result

SHEET_ROWS = 8
SHOWN = {**PAINTED, ORACLE: TITLES[ORACLE]}  # on the sheet


@dataclass(frozen=True)
class Painted:
    """A request's figures, and its pictures where the contact sheet shows them."""

    result: Result
    pictures: dict[str, Pixels]


def main(
    requests: Annotated[int, typer.Option(min=1, help="How many of the list, from its beginning.")] = COUNT,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of each picture.")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="Requests painted at a time.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each network.")] = 2,
    repository: Annotated[Path, typer.Option(exists=True, file_okay=False, help="A composed model repository.")] = Path(
        "build/model_repository"
    ),
    output: Annotated[Path, typer.Option(help="Folder of quality.json and quality.png.")] = Path("build/bench"),
) -> None:
    """Measure how well pictures obey their masks and prompts."""
    torch.set_num_threads(threads)
    console, started = wide_console(), time.perf_counter()
    checkpoint = load_checkpoint(repository / "multidiffusion" / "1" / "checkpoint")
    painter = Painter(checkpoint, OnnxNetworks(repository, threads), num_inference_steps=steps)
    painted = paint_all(make_requests(requests), painter, jobs=jobs, console=console)
    manifest = json.loads((repository / "manifest.json").read_text())
    figures = report([each.result for each in painted], manifest=manifest, num_inference_steps=steps)
    figures["wall_seconds"] = time.perf_counter() - started
    for table in tables(figures):
        console.print(table)
    write(output, json.dumps(figures, indent=1) + "\n", painted)
    console.print(f"{figures['wall_seconds'] / 60:.1f} min; wrote {output / 'quality.json'}, {output / 'quality.png'}")


def paint_all(requests: Sequence[Request], painter: Painter, *, jobs: int, console: Console) -> list[Painted]:
    """Every request in every variant, with a progress bar; in the order of the list."""
    # From the first to the last, so that all sizes are among them.
    shown = {requests[i * (len(requests) - 1) // (SHEET_ROWS - 1)].index for i in range(SHEET_ROWS)}
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task("pictures", total=len(requests) * len(VARIANTS))
        futures = [
            pool.submit(paint_request, each, painter, keep=each.index in shown, done=lambda: progress.advance(task))
            for each in requests
        ]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def paint_request(request: Request, painter: Painter, *, keep: bool, done: Callable[[], None]) -> Painted:
    """One request in every variant and by the oracle, and what each shows."""
    pictures, seconds, rows = {ORACLE: oracle_picture(request)}, {}, {}
    for variant in VARIANTS:
        started = time.perf_counter()
        pictures[variant.name], rows[variant.name] = painter.paint(request, variant)
        seconds[variant.name] = round(time.perf_counter() - started, 3)
        done()
    scored = {**pictures, FILLED: filled_picture(request)}
    scores = {name: score_picture(pixels, pictures[ORACLE], request) for name, pixels in scored.items()}
    return Painted(Result(request, scores, seconds, rows), pictures if keep else {})


def write(folder: Path, figures: str, painted: Sequence[Painted]) -> None:
    """quality.json, and the pictures that were kept as quality.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.json").write_text(figures)
    shown = [each for each in painted if each.pictures]
    sheet = contact_sheet([each.result.request for each in shown], [each.pictures for each in shown], SHOWN)
    sheet.save(folder / "quality.png", optimize=True)
