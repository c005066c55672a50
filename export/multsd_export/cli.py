"""The `multsd-export` command.

Exit codes: 0 done or up to date; 1 the export was refused, with one sentence that says why; 2 wrong usage; 130
interrupted.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from multsd_export.errors import ExportError
from multsd_export.lora import read_lora
from multsd_export.manifest import read_manifest
from multsd_export.pipeline import Options, export
from multsd_export.profiles import PROFILES, Precision, ProfileName
from multsd_export.sources import resolve_source

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class ProgressBars:
    """One bar for each stage of an export."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, share: float) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=1)
        self.bars.update(self.tasks[stage], completed=share)


@app.command()
def main(
    checkpoint: Annotated[
        str, typer.Option(help="Checkpoint folder in diffusers layout, or a hub repository owner/name@commit.")
    ],
    output: Annotated[Path, typer.Option(help="The composed repository.")] = Path("build/model_repository"),
    profile: Annotated[ProfileName, typer.Option(help="What the networks run in.")] = ProfileName.CPU,
    repository: Annotated[Path, typer.Option(help="The committed contracts and code.")] = Path("model_repository"),
    work_dir: Annotated[Path, typer.Option(help="Keeps ONNX files for the next export.")] = Path("build/onnx"),
    lora: Annotated[
        list[str] | None, typer.Option(help="FILE.safetensors[:SCALE], fused into the weights; may be repeated.")
    ] = None,
    precision: Annotated[Precision | None, typer.Option(help="Of the graphs; left out, the profile's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Compose again even when nothing changed.")] = False,
) -> None:
    """Export a checkpoint and compose a model repository that Triton can load."""
    console = Console(stderr=True)
    started = time.monotonic()
    try:
        source = resolve_source(checkpoint, work_dir / "sources")
        # Read by transformers and diffusers when they are imported.
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        loras = tuple(read_lora(text) for text in lora or ())
        options = Options(source.path, output, repository, work_dir, PROFILES[profile], force, precision, source, loras)
        with _bars(console) as bars:
            changed = export(options, ProgressBars(bars))
    except (ExportError, OSError) as error:
        console.print(f"multsd-export: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    state = "written" if changed else "up to date"
    console.print(f"{output}: {state} ({time.monotonic() - started:.1f} s)", highlight=False, soft_wrap=True)
    manifest = read_manifest(output)
    if changed and manifest is not None:
        _print_parity(console, manifest)


def _bars(console: Console) -> Progress:
    return Progress(TextColumn("{task.description:<14}"), BarColumn(), TimeElapsedColumn(), console=console)


def _print_parity(console: Console, manifest: Mapping[str, Any]) -> None:
    for name, facts in manifest["parity"]["networks"].items():
        dependent = "; a row's last bits depend on its batch" if facts["rows_independent"] is False else ""
        console.print(f"  {name}: {facts['relative_error']:.1e} from torch{dependent}", highlight=False)
