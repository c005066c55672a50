"""Every way to run the UNet of the `torch` profile, without Triton: `make bench-gpu-variants`.

The runner is the one that Triton loads, from the same repository, called with tensors that are on the GPU already, for
each variant in a process of its own: a capture that fails can leave torch, or the GPU, of no use to the next one.
Without a GPU the same at tiny size, which tells nothing of speed. B rows.
"""

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from google.protobuf import json_format
from rich.table import Table

from multsd_export.checkpoint import Checkpoint
from multsd_export.compose import CONFIG_FILE
from multsd_export.contract import merge_config, parse_config, read_config
from multsd_export.networks import networks_of
from multsd_export.parity import relative_error
from multsd_export.profiles import TORCH_VARIANTS, Device, torch_profile
from multsd_export.verify.networks import network_batches
from tests.benchmarks.console import wide_console
from tests.benchmarks.gpu_cases import Size, Subject, subjects
from tests.benchmarks.gpu_published import row_flops
from tests.benchmarks.gpu_run import DEFAULT, RESULTS, ROW_COUNTS, Progress, Row, compose, machine_name
from tests.benchmarks.processes import CallError, call_apart
from tests.integration.conftest import ROOT
from tests.unit.export.runners import arguments, loaded

EAGER = "eager"
# What takes minutes comes last.
VARIANTS = (EAGER, DEFAULT, *sorted(TORCH_VARIANTS.keys() - {EAGER}, key=lambda name: ("compile" in name, name)))
WARM_UP_CALLS = 3
TIMED_CALLS = 10
VARIANT_SECONDS = 900  # at most, or it hangs
WITHOUT_GPU = (EAGER, "channels_last")  # what needs none
Inputs = tuple[torch.Tensor, ...]
Output = npt.NDArray[np.float32]  # (B, 4, h, w)


@dataclass(frozen=True)
class Bench:
    """A UNet, and how it is measured."""

    checkpoint: Checkpoint
    repository: Path
    device: torch.device
    threads: int  # of torch, on a processor
    flops: int  # of a row
    row_counts: tuple[int, ...] = ROW_COUNTS
    timed_calls: int = TIMED_CALLS

    def inputs(self) -> Inputs:
        """Random rows, as many as the largest count, where the network is."""
        (unet,) = (network for network in networks_of(self.checkpoint) if network.name == "unet")
        (batch,) = network_batches(unet, self.checkpoint, max(self.row_counts), tile=0, largest=False)
        return tuple(torch.from_numpy(batch[name]).to(self.device) for name in unet.inputs)


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
    progress = Progress(wide_console(), file, results)
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


def measure(
    subject: Subject,
    chosen: list[str],
    device: torch.device,
    folder: Path,
    progress: Progress,
    *,
    row_counts: tuple[int, ...] = ROW_COUNTS,
    timed_calls: int = TIMED_CALLS,
) -> None:
    """Each variant after the other; one that fails, or whose process ends or hangs, is told, and the next one comes."""
    profile = torch_profile(Device.GPU if device.type == "cuda" else Device.CPU)
    with progress.stage(f"{subject.name}: checkpoint and repository"):
        checkpoint = call_apart(compose, subject, profile, DEFAULT, folder, device)
        flops = row_flops(checkpoint)
    progress.results["tflop_per_row"] = flops / 1e12
    threads = torch.get_num_threads()
    bench = Bench(checkpoint, folder / "repository", device, threads, flops, row_counts, timed_calls)
    with progress.stage("what eager computes"):
        expected = call_apart(eager_outputs, bench, seconds=VARIANT_SECONDS)
    for variant in chosen:
        with progress.stage(variant):
            settings = None if variant == DEFAULT else TORCH_VARIANTS[variant]["unet"]
            try:
                measured = call_apart(measure_variant, bench, settings, expected, seconds=VARIANT_SECONDS)
            except CallError as error:
                measured = {"error": str(error)}
            progress.results["variants"][variant] = measured
            for line in (*measured.get("chosen", ()), *([measured["error"]] if "error" in measured else ())):
                progress.tell(f"  {line}")


def load_variant(runner: Any, bench: Bench, settings: str | None) -> Any:
    """The UNet as Triton would load it. settings: of its configuration, where it is not the profile's own."""
    config = read_config(bench.repository / "unet" / CONFIG_FILE)
    if settings is not None:
        config = merge_config(config, parse_config(settings))
    # Not set when it is loaded: code that is compiled by then would be compiled anew for another number of threads.
    config.parameters["intra_op_threads"].string_value = str(bench.threads)
    described = json_format.MessageToDict(config, preserving_proto_field_name=True)
    model = runner.TritonPythonModel()
    kind = {"model_instance_kind": "GPU" if bench.device.type == "cuda" else "CPU"}
    model.initialize({**arguments(bench.repository / "unet", described), **kind})
    return model


def eager_outputs(bench: Bench) -> Mapping[int, Output]:
    """What every variant's results are compared with, by the number of rows."""
    with loaded(torch_profile().runner) as runner:
        model, inputs = load_variant(runner, bench, TORCH_VARIANTS[EAGER]["unet"]), bench.inputs()
        return {count: call(model, inputs, count).cpu().numpy() for count in bench.row_counts}


def call(model: Any, inputs: Inputs, count: int) -> torch.Tensor:
    """The runner's function on the first rows, without its copies to and from the processor."""
    with torch.no_grad():
        result: torch.Tensor = model.forward(*(tensor[:count] for tensor in inputs))
    return result


def measure_variant(bench: Bench, settings: str | None, expected: Mapping[int, Output]) -> Row:
    """Loading, first calls and the median of the later ones, for each number of rows.

    Where something is raised, "error" beside what was measured before.
    """
    measured: Row = {}
    with loaded(torch_profile().runner) as runner:
        try:
            started = time.perf_counter()
            model = load_variant(runner, bench, settings)
            measured["load_seconds"] = time.perf_counter() - started
            measured |= {"chosen": list(runner.pb_utils.Logger.lines), "rows": []}
            inputs = bench.inputs()
            for count in bench.row_counts:
                measured["rows"].append(measure_rows(bench, model, inputs, count, expected[count]))
        except Exception as error:  # whatever a compiler raises
            measured["error"] = f"{type(error).__name__}: {error}"[:2000]
    return measured


def measure_rows(bench: Bench, model: Any, inputs: Inputs, count: int, expected: Output) -> Row:
    """One number of rows."""
    first = [timed(model, inputs, count)[0] for _ in range(WARM_UP_CALLS)]
    calls = [timed(model, inputs, count) for _ in range(bench.timed_calls)]
    seconds = statistics.median(call_seconds for call_seconds, _ in calls)
    return {
        "rows": count,
        "first_seconds": first[0],
        "warm_up_seconds": sum(first),
        "seconds": seconds,
        "rows_per_second": count / seconds,
        "tflops": count * bench.flops / seconds / 1e12,
        "apart": relative_error(calls[-1][1], expected),
    }


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
