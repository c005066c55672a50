"""What the orchestrator and Triton add to a GPU's work, without a GPU: tensors of true size, simulated networks.

A checkpoint whose window and texts are those of Stable Diffusion 2 or XL, around networks of a few channels, is served
by a real Triton. The UNet and the VAE are simulated: a call takes the time that a GPU would, computes nothing, and
moves the same bytes. The orchestrator, its calls and Triton are real. Not simulated is what a GPU's runner adds by
itself, such as copies to the GPU, which counts as the network's.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from multsd_export.checkpoint import Checkpoint, read_checkpoint
from multsd_export.profiles import CPU
from tests.benchmarks.console import wide_console
from tests.benchmarks.gpu_cases import Size, Subject
from tests.benchmarks.gpu_run import (
    MODEL,
    ORCHESTRATION_GOAL,
    Bench,
    Progress,
    Row,
    ask,
    brief,
    compose_repository,
    request_alone,
    served,
)
from tests.benchmarks.load_stack import simulated_repository
from tests.integration.conftest import ROOT
from tests.small_checkpoints import STRUCTURES, Structure, small_text_encoder, write_structure

RESULTS = ROOT / "build" / "bench" / "orchestration"
DECODE_SECONDS = 0.03  # of the VAE


@dataclass(frozen=True)
class SimulatedModel:
    """Tensors of a published model's size around small networks."""

    subject: Subject
    structure: Structure
    tflop_per_row: float  # of the published model, as `make bench-gpu` counts


def simulated_models() -> tuple[SimulatedModel, ...]:
    """Stable Diffusion 2 (base) and XL."""
    sd2, sdxl = STRUCTURES["sd2"], STRUCTURES["sdxl"]
    return (
        SimulatedModel(
            Subject("sd2", Size.TRUE, 64),
            replace(
                sd2,
                window=64,
                unet={**sd2.unet, "sample_size": 64, "cross_attention_dim": 1024},
                text_encoders=(small_text_encoder(1024, "gelu", 8),),
            ),
            0.804,
        ),
        SimulatedModel(
            Subject("sdxl", Size.TRUE, 128),
            replace(
                sdxl,
                window=128,
                unet={
                    **sdxl.unet,
                    "sample_size": 128,
                    "cross_attention_dim": 768 + 1280,
                    "projection_class_embeddings_input_dim": 1280 + 6 * sdxl.unet["addition_time_embed_dim"],
                },
                text_encoders=(small_text_encoder(768, "quick_gelu", 768), small_text_encoder(1280, "gelu", 1280)),
            ),
            6.76,
        ),
    )


def main(
    tflops: Annotated[float, typer.Option(min=1, help="Of the simulated GPU, while the UNet is at work.")] = 350,
    call_ms: Annotated[float, typer.Option(min=0, help="Of each UNet call, beside its rows.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Of each request alone; medians count.")] = 3,
) -> None:
    """Run, print the table, write build/bench/orchestration/results.json."""
    torch.set_num_threads(1)
    results: Row = {"tflops": tflops, "call_ms": call_ms, "subjects": {}}
    progress = Progress(wide_console(), RESULTS / "results.json", results)
    for model in simulated_models():
        row_seconds = model.tflop_per_row / tflops
        seconds = {"unet": (call_ms / 1e3, row_seconds), "vae_decoder": (DECODE_SECONDS, 0.0)}
        rows = results["subjects"][model.subject.name] = measure(model, seconds, runs, progress)
        progress.write()
        progress.console.print(table(model, row_seconds, call_ms, rows, runs))
    progress.tell(f"written: {progress.file.relative_to(ROOT)}")


def measure(
    model: SimulatedModel, seconds: Mapping[str, tuple[float, float]], runs: int, progress: Progress
) -> list[Row]:
    """Every request alone.

    Args:
        seconds: of a call and of a row of the simulated networks, by name.
    """
    name, cases = model.subject.name, model.subject.cases()
    folder = RESULTS / name
    with progress.stage(f"{name}: checkpoint and repository"):
        checkpoint = compose(model, folder)
        repository = simulated_repository(folder / "simulated", seconds, source=folder / "repository")
    rows = []
    with served(repository, folder, progress, name) as url:
        bench = Bench(model.subject, checkpoint, repository, url, torch.device("cpu"), int(model.tflop_per_row * 1e12))
        for case in cases:
            ask(url, [brief(case).tensors()])
        for case in cases:
            with progress.stage(f"{name}: {case.title}"):
                row, _ = request_alone(bench, case, runs)
                rows.append(row | {"steps": case.steps})
    return rows


def compose(model: SimulatedModel, folder: Path) -> Checkpoint:
    """The repository of the `cpu` profile below `folder`."""
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    checkpoint = read_checkpoint(write_structure(folder / "checkpoint", model.structure))
    compose_repository(checkpoint, CPU, folder)
    return checkpoint


def table(model: SimulatedModel, row_seconds: float, call_ms: float, rows: list[Row], runs: int) -> Table:
    """A line for each request."""
    title = f"{model.subject.name}: {MODEL} around a simulated UNet, {call_ms:g} ms a call and "
    title += f"{row_seconds * 1e3:.1f} ms a row; medians of {runs}"
    printed = Table("", "rows", "s", "without a network, ms a step", "orchestration", title=title)
    printed.caption = "orchestration: the share of a request's time in which no network works, "
    printed.caption += f"{ORCHESTRATION_GOAL:.0%} is the goal; the VAE is given {DECODE_SECONDS * 1e3:.0f} ms"
    for row in rows:
        share = row["orchestration_share"]
        printed.add_row(
            row["case"],
            str(row["rows"]),
            f"{row['seconds']:.2f}",
            f"{share * row['seconds'] / row['steps'] * 1e3:.1f}",
            f"{share:.1%}",
        )
    return printed
