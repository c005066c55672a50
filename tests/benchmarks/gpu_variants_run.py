"""Every way to run the UNet of the `torch` profile, without Triton: `make bench-gpu-variants`.

The runner is the one that Triton loads, from the same repository, called in this process with tensors that are on the
GPU already. Without a GPU the same at tiny size, which tells nothing of speed. B rows.
"""

import gc
import json
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from multsd_export.checkpoint import Checkpoint
from multsd_export.compose import CONFIG_FILE
from multsd_export.contract import merge_config, parse_config, read_config
from multsd_export.networks import networks_of
from multsd_export.parity import relative_error
from multsd_export.profiles import TORCH_VARIANTS, Device, torch_profile
from multsd_export.verify.networks import network_batches
from tests.benchmarks.gpu_cases import Size, Subject, subjects
from tests.benchmarks.gpu_published import row_flops
from tests.benchmarks.gpu_run import DEFAULT, RESULTS, ROW_COUNTS, Progress, Row, compose, machine_name
from tests.integration.conftest import ROOT
from tests.unit.export.runners import arguments, loaded

EAGER = "eager"
# What takes minutes comes last.
VARIANTS = (EAGER, DEFAULT, *sorted(TORCH_VARIANTS.keys() - {EAGER}, key=lambda name: ("compile" in name, name)))
WARM_UP_CALLS = 3
TIMED_CALLS = 10
WITHOUT_GPU = (EAGER, "channels_last")  # what needs none
Inputs = tuple[torch.Tensor, ...]
Output = npt.NDArray[np.float32]  # (B, 4, h, w)


def main(
    family: Annotated[str, typer.Option(help="sd2 or sdxl.")] = "sd2",
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Of {', '.join(VARIANTS)}; may be repeated. Left out: all, without a GPU those that need none."
        ),
    ] = None,
    size: Annotated[Size | None, typer.Option(help="Left out: true size on a GPU, tiny without one.")] = None,
) -> None:
    """Run, print the table, write build/bench/gpu/variants.json, which keeps what other runs have measured."""
    gpu = torch.cuda.is_available()
    size = size or (Size.TRUE if gpu else Size.TINY)
    chosen = variant or [name for name in VARIANTS if gpu or name in WITHOUT_GPU]
    if unknown := [name for name in chosen if name not in VARIANTS]:
        raise typer.BadParameter(f"expected {', '.join(VARIANTS)}, found {unknown[0]}", param_hint="--variant")
    known = {subject.family: subject for subject in subjects(size)}
    if family not in known:
        raise typer.BadParameter(f"expected {' or '.join(known)}, found {family}", param_hint="--family")
    if not gpu:
        torch.set_num_threads(1)  # tiny networks' threads only wait for each other
    file, name = RESULTS / "variants.json", known[family].name
    results: Row = {"machine": machine_name(), "checkpoint": name, "torch": torch.__version__}
    results["variants"] = measured_before(file, results)
    progress = Progress(Console(), file, results)
    progress.tell(f"{results['machine']}; {name}, torch {torch.__version__}")
    measure(known[family], chosen, torch.device("cuda" if gpu else "cpu"), RESULTS / name, progress)
    progress.console.print(table(results))
    progress.tell(f"written: {progress.file.relative_to(ROOT)}")
    if failed := [name for name in chosen if "error" in results["variants"][name]]:
        raise SystemExit(f"failed: {', '.join(failed)}")


def measured_before(file: Path, facts: Row) -> Row:
    """Variants in the file, where it is of the same machine, checkpoint and torch."""
    before: Row = json.loads(file.read_text()) if file.is_file() else {}
    return dict(before["variants"]) if before.items() >= facts.items() else {}


def measure(subject: Subject, chosen: list[str], device: torch.device, folder: Path, progress: Progress) -> None:
    """Each variant after the other; one that fails is told, and the next one comes."""
    profile = torch_profile(Device.GPU if device.type == "cuda" else Device.CPU)
    with progress.stage(f"{subject.name}: checkpoint and repository"):
        checkpoint = compose(subject, profile, DEFAULT, folder, device)
        inputs, flops = unet_inputs(checkpoint, device), row_flops(checkpoint)
    progress.results["tflop_per_row"] = flops / 1e12
    with loaded(profile.runner) as runner:
        with progress.stage("what eager computes"):
            expected = eager_outputs(runner, folder / "repository", inputs, device)
        for variant in chosen:
            measured: Row = {}
            progress.results["variants"][variant] = measured
            with progress.stage(variant):
                try:
                    measure_variant(runner, folder / "repository", variant, inputs, flops, expected, measured)
                    for line in measured["chosen"]:
                        progress.tell(f"  {line}")
                except Exception as error:  # whatever a compiler raises
                    measured["error"] = f"{type(error).__name__}: {error}"[:2000]
                    progress.tell(f"  {measured['error']}")
            forget()


def unet_inputs(checkpoint: Checkpoint, device: torch.device) -> Inputs:
    """Random rows, as many as the largest count, where the network is."""
    (unet,) = (network for network in networks_of(checkpoint) if network.name == "unet")
    (batch,) = network_batches(unet, checkpoint, max(ROW_COUNTS), tile=0, largest=False)
    return tuple(torch.from_numpy(batch[name]).to(device) for name in unet.inputs)


def load_variant(runner: Any, repository: Path, variant: str, device: torch.device) -> Any:
    """The UNet as Triton would load it."""
    config = read_config(repository / "unet" / CONFIG_FILE)
    if variant != DEFAULT:
        config = merge_config(config, parse_config(TORCH_VARIANTS[variant]["unet"]))
    described = json_format.MessageToDict(config, preserving_proto_field_name=True)
    threads = torch.get_num_threads()
    model = runner.TritonPythonModel()
    kind = {"model_instance_kind": "GPU" if device.type == "cuda" else "CPU"}
    model.initialize({**arguments(repository / "unet", described), **kind})
    torch.set_num_threads(threads)
    return model


def eager_outputs(runner: Any, repository: Path, inputs: Inputs, device: torch.device) -> Mapping[int, Output]:
    """What every variant's results are compared with, by the number of rows."""
    model = load_variant(runner, repository, EAGER, device)
    outputs = {count: call(model, inputs, count).cpu().numpy() for count in ROW_COUNTS}
    del model
    forget()
    return outputs


def call(model: Any, inputs: Inputs, count: int) -> torch.Tensor:
    """The runner's function on the first rows, without its copies to and from the processor."""
    with torch.no_grad():
        result: torch.Tensor = model.forward(*(tensor[:count] for tensor in inputs))
    return result


def measure_variant(
    runner: Any,
    repository: Path,
    variant: str,
    inputs: Inputs,
    flops: int,
    expected: Mapping[int, Output],
    measured: Row,
) -> None:
    """Loading, first calls and the median of the later ones, for each number of rows."""
    device = inputs[0].device
    said = runner.pb_utils.Logger.lines
    said.clear()
    started = time.perf_counter()
    model = load_variant(runner, repository, variant, device)
    measured |= {"load_seconds": time.perf_counter() - started, "chosen": list(said), "rows": []}
    for count in ROW_COUNTS:
        first = [timed(model, inputs, count)[0] for _ in range(WARM_UP_CALLS)]
        calls = [timed(model, inputs, count) for _ in range(TIMED_CALLS)]
        seconds = statistics.median(call_seconds for call_seconds, _ in calls)
        measured["rows"].append(
            {
                "rows": count,
                "first_seconds": first[0],
                "warm_up_seconds": sum(first),
                "seconds": seconds,
                "rows_per_second": count / seconds,
                "tflops": count * flops / seconds / 1e12,
                "apart": relative_error(calls[-1][1], expected[count]),
            }
        )


def timed(model: Any, inputs: Inputs, count: int) -> tuple[float, Output]:
    """Seconds of one call, and what it gives."""
    synchronize(inputs[0].device)
    started = time.perf_counter()
    result = call(model, inputs, count)
    synchronize(inputs[0].device)
    return time.perf_counter() - started, result.cpu().numpy()


def synchronize(device: torch.device) -> None:
    """Wait for what is queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget() -> None:
    """Give back what a variant has compiled and captured."""
    gc.collect()
    with suppress(RuntimeError):  # a failed capture
        torch._dynamo.reset()
        torch.cuda.empty_cache()


def table(results: Row) -> Table:
    """A line for each number of rows."""
    title = f"{results['checkpoint']}: the UNet by itself, {results['tflop_per_row']:.3g} TFLOP a row"
    title += f"; medians of {TIMED_CALLS}"
    columns = ("", "rows", "ms", "rows/s", "TFLOP/s", "first call, s", "apart from eager")
    shown = Table(*columns, title=title)
    for variant, measured in results["variants"].items():
        shown.add_section()
        for row in measured.get("rows", ()):
            shown.add_row(
                variant if row is measured["rows"][0] else "",
                str(row["rows"]),
                f"{row['seconds'] * 1e3:.1f}",
                f"{row['rows_per_second']:.1f}",
                f"{row['tflops']:.3g}",
                f"{row['first_seconds']:.2f}",
                f"{row['apart']:.1e}",
            )
        if "error" in measured:
            shown.add_row(variant, "", "failed")
    return shown
