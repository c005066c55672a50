"""The `multsd-export` command: without a command it exports; `verify` and `check-engines` look at what was exported.

Exit codes: 0 done or up to date; 1 refused, with one sentence that says why, or verification failed; 2 wrong usage;
130 interrupted.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from multsd_export.checkpoint import read_checkpoint
from multsd_export.engines.machine import this_machine
from multsd_export.engines.record import check_engines, check_plans
from multsd_export.engines.settings import EngineSettings
from multsd_export.errors import EngineError, ExportError, printable
from multsd_export.json_files import write_json
from multsd_export.lora import read_lora
from multsd_export.manifest import composed_manifest, read_manifest
from multsd_export.pipeline import Options, export
from multsd_export.profiles import CUDA_GRAPHS, PROFILES, Device, Precision, ProfileName, torch_profile
from multsd_export.sources import resolve_source

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)

Loras = Annotated[
    list[str] | None, typer.Option("--lora", help="FILE.safetensors[:SCALE], fused into the weights; may be repeated.")
]
WorkDir = Annotated[Path, typer.Option(help="Keeps ONNX files, engines and weights for the next export.")]
Composed = Annotated[Path, typer.Argument(metavar="REPOSITORY", help="A composed repository.")]
TAKEN_BY = {  # options that one profile alone takes notice of
    "--device": ProfileName.TORCH,
    "--optimization-level": ProfileName.TENSORRT,
    "--workspace-mib": ProfileName.TENSORRT,
}
TABLE_WIDTH = 120  # in a log, whose 80 columns would cut names
CHECKPOINT = "Checkpoint folder in diffusers layout, or a hub repository owner/name@commit."


class ProgressBars:
    """One bar for each stage of an export."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, share: float) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=1)
        self.bars.update(self.tasks[stage], completed=share)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    checkpoint: Annotated[str | None, typer.Option(help=f"{CHECKPOINT} Required for an export.")] = None,
    output: Annotated[Path, typer.Option(help="The composed repository.")] = Path("build/model_repository"),
    profile: Annotated[ProfileName, typer.Option(help="What the networks run in.")] = ProfileName.CPU,
    repository: Annotated[Path, typer.Option(help="The committed contracts and code.")] = Path("model_repository"),
    work_dir: WorkDir = Path("build/onnx"),
    lora: Loras = None,
    precision: Annotated[Precision | None, typer.Option(help="Of the networks; left out, the profile's.")] = None,
    device: Annotated[Device | None, typer.Option(help="What the torch profile runs on; left out, gpu.")] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=5,
            help="Of engines: 0 builds fastest, 5 searches longest for fast kernels; left out, "
            f"{EngineSettings.optimization_level}.",
        ),
    ] = None,
    workspace_mib: Annotated[
        int | None, typer.Option(min=1, help="The most GPU memory that an engine's kernel may use beside its tensors.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compose again even when nothing changed.")] = False,
) -> None:
    """Export a checkpoint and compose a model repository that Triton can load."""
    if context.invoked_subcommand:
        _check_none_given(context, context.invoked_subcommand)
        return
    if checkpoint is None:
        raise typer.BadParameter("an export needs a checkpoint", param_hint="--checkpoint")
    _check_taken(
        profile, {"--device": device, "--optimization-level": optimization_level, "--workspace-mib": workspace_mib}
    )
    started = time.monotonic()
    with _refusals():
        source = resolve_source(checkpoint, work_dir / "sources")
        _stay_offline()
        loras = tuple(read_lora(text) for text in lora or ())
        chosen = torch_profile(device or Device.GPU) if profile is ProfileName.TORCH else PROFILES[profile]
        level = EngineSettings.optimization_level if optimization_level is None else optimization_level
        engines = EngineSettings(level, workspace_mib)
        hub = None if Path(checkpoint).exists() else checkpoint
        options = Options(
            source.path, output, repository, work_dir, chosen, force, precision, source, loras, engines, hub
        )
        with _bars() as bars:
            changed = export(options, ProgressBars(bars))
    state = "written" if changed else "up to date"
    console.print(f"{output}: {state} ({time.monotonic() - started:.1f} s)", highlight=False, soft_wrap=True)
    manifest = read_manifest(output)
    if changed and manifest is not None:
        _print_parity(manifest)


@app.command("check-engines")
def check(repository: Composed) -> None:
    """Refuse a repository with an engine of another TensorRT version or kind of GPU, or without an engine's whole plan.

    Every plan is read, about a second for a GB.
    """
    with _refusals():
        manifest = composed_manifest(repository)
        if not manifest["engines"]:
            raise EngineError(f"{repository}: the profile is {manifest['profile']}, which has no engines.")
        machine = this_machine()
        check_engines(manifest, machine, repository)
        check_plans(manifest, repository)
    console.print(
        f"{repository}: {len(manifest['engines'])} engines belong to this machine (TensorRT {machine.tensorrt}, "
        f"{machine.gpu}, compute capability {machine.compute_capability})",
        highlight=False,
        soft_wrap=True,
    )


@app.command("verify")
def verify_repository(
    repository: Composed,
    checkpoint: Annotated[str, typer.Option(help=f"{CHECKPOINT} What the repository was made from.")],
    url: Annotated[str, typer.Option(help="host:port of the gRPC endpoint of the Triton that serves it.")] = (
        "localhost:8001"
    ),
    graphs_url: Annotated[
        str | None,
        typer.Option(help=f"Of another Triton that serves it with --model-config-name={CUDA_GRAPHS}, to compare."),
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="Of the picture that is compared.")] = 10,
    report: Annotated[Path | None, typer.Option(help="Where the report goes as JSON.")] = None,
    lora: Loras = None,
    device: Annotated[
        Device | None, typer.Option(help="What torch computes on; left out, a GPU that has room beside Triton.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Of a call to Triton, seconds; a picture is one.")] = 1800,
    work_dir: WorkDir = Path("build/onnx"),
) -> None:
    """Hold a served repository to torch, network by network and in one picture; run it where the server is idle."""
    with _refusals():
        source = resolve_source(checkpoint, work_dir / "sources")
        _stay_offline()
        if report:
            report.parent.mkdir(parents=True, exist_ok=True)  # now, not after everything was compared
        read = read_checkpoint(source.path, source, tuple(read_lora(text) for text in lora or ()))
        from multsd_export.verify.run import Verification, begin, verify  # torch takes seconds to import

        session = begin(Verification(repository, read, url, steps, timeout, graphs_url, device))
        try:
            with _bars() as bars:
                verify(session, ProgressBars(bars))
        finally:  # whatever ended it, what was found until then is told
            if report:
                write_json(report, session.report.as_json())
            shown = Console()
            for table in session.report.tables():
                (shown if shown.is_terminal else Console(width=TABLE_WIDTH)).print(table)
            typer.echo(session.report.verdict())
    if not session.report.passed:
        raise typer.Exit(1)


def _check_none_given(context: typer.Context, command: str) -> None:
    """Refuse an export's option before a command, which would pass over it in silence.

    The exporter's image always gives `--repository`.
    """
    for option in context.command.params:
        source = context.get_parameter_source(str(option.name))
        if source is not None and source.name == "COMMANDLINE" and option.name != "repository":
            raise typer.BadParameter(
                f"only an export takes it here; options of {command} follow its name", param_hint=option.opts[0]
            )


def _check_taken(profile: ProfileName, given: Mapping[str, object]) -> None:
    """Refuse an option that the profile would pass over in silence. `given`: by name; None where it is left out."""
    for option, value in given.items():
        if value is not None and profile is not TAKEN_BY[option]:
            raise typer.BadParameter(
                f"only the {TAKEN_BY[option]} profile takes it, found --profile {profile}", param_hint=option
            )


@contextmanager
def _refusals() -> Iterator[None]:
    """Every refusal is one sentence and exit code 1."""
    try:
        yield
    except (ExportError, OSError) as error:
        text = printable(f"multsd-export: {error}")
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _stay_offline() -> None:
    """Read by transformers and diffusers when they are imported."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def _bars() -> Progress:
    return Progress(TextColumn("{task.description:<14}"), BarColumn(), TimeElapsedColumn(), console=console)


def _print_parity(manifest: Mapping[str, Any]) -> None:
    for name, facts in manifest["parity"]["networks"].items():
        if facts is None:
            console.print(f"  {name}: torch itself", highlight=False)
            continue
        dependent = "; a row's last bits depend on its batch" if facts["rows_independent"] is False else ""
        console.print(f"  {name}: {facts['relative_error']:.1e} from torch{dependent}", highlight=False)
