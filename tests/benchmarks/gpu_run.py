"""The `torch` profile on a real Triton beside the published method in torch, eager, in one run: `make bench-gpu`.

On a GPU at the size of Stable Diffusion 2 and XL, in half precision; without one the same at tiny size, in full, which
shows that everything works and nothing about speed. Weights are random: they take as long as others.
"""

import asyncio
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from tritonclient.grpc.aio import InferenceServerClient

from checkpoint_files import load_checkpoint
from multsd_export.artefacts import Effort
from multsd_export.build import build
from multsd_export.checkpoint import Checkpoint, read_checkpoint
from multsd_export.compose import VARIANTS_FOLDER
from multsd_export.manifest import export_inputs
from multsd_export.networks import networks_of
from multsd_export.profiles import TORCH_VARIANTS, Device, Profile, torch_profile
from multsd_export.verify.networks import network_batches, slice_rows
from multsd_export.verify.picture import LATENT_LIMITS
from multsd_export.verify.server import Server
from multsd_gateway.stack.supervisor import running_stack
from pipeline import prepare
from tests.benchmarks.gpu_cases import Size, Subject, subjects
from tests.benchmarks.gpu_published import eager_networks, row_flops
from tests.benchmarks.published import Networks, paint_published
from tests.benchmarks.request_cases import Case
from tests.integration.conftest import ROOT, stack_settings

RESULTS = ROOT / "build" / "bench" / "gpu"
MODEL = "multidiffusion"
ORCHESTRATION_GOAL = 0.05  # share of a request's time
TFLOPS_GOAL = 350  # at 16 rows
AT_ONCE = 8
ROW_COUNTS = (1, 2, 4, 8, 16)
TIMED_CALLS = 10
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """One checkpoint, served and loaded."""

    subject: Subject
    checkpoint: Checkpoint
    repository: Path
    url: str  # of the gRPC endpoint
    device: torch.device
    flops: int  # of a UNet row

    @property
    def names(self) -> list[str]:
        """Of the networks."""
        return [network.name for network in networks_of(self.checkpoint)]


def main(
    size: Annotated[Size | None, typer.Option(help="Left out: true size on a GPU, tiny without one.")] = None,
    variant: Annotated[
        str, typer.Option(help=f"How networks run: eager, or one of {', '.join(TORCH_VARIANTS)}; the last need a GPU.")
    ] = "eager",
    runs: Annotated[int, typer.Option(min=1, help="Of each request alone; medians count.")] = 3,
) -> None:
    """Run, print the tables, write build/bench/gpu/VARIANT.json."""
    gpu = torch.cuda.is_available()
    profile = torch_profile(Device.GPU if gpu else Device.CPU)
    if variant != "eager" and variant not in profile.variants:
        expected = f"expected eager or, on a GPU, one of {', '.join(TORCH_VARIANTS)}"
        raise typer.BadParameter(expected, param_hint="--variant")
    size = size or (Size.TRUE if gpu else Size.TINY)
    if not gpu:
        torch.set_num_threads(1)  # tiny networks' threads only wait for each other
    device = torch.device("cuda" if gpu else "cpu")
    machine = torch.cuda.get_device_name() if gpu else "no GPU: nothing here tells of speed"
    console = Console()
    console.print(f"{machine}; {size} size, {variant}, torch {torch.__version__}", highlight=False)
    results: Row = {"machine": machine, "size": size, "variant": variant, "torch": torch.__version__, "subjects": {}}
    for subject in subjects(size):
        measured = measure(subject, profile, variant, device, runs)
        results["subjects"][subject.name] = measured
        for table in tables(subject, measured, runs):
            console.print(table)
    file = RESULTS / f"{variant}.json"
    file.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"written: {file.relative_to(ROOT)}")


def measure(subject: Subject, profile: Profile, variant: str, device: torch.device, runs: int) -> Row:
    """Serve a checkpoint and ask everything of it, then paint the same by the published method."""
    folder = RESULTS / subject.name
    checkpoint = compose(subject, profile, variant, folder)
    settings = stack_settings(folder, folder / "repository")
    with running_stack(*settings, report=lambda _: None):
        url = f"127.0.0.1:{settings[0].triton_grpc_port}"
        bench = Bench(subject, checkpoint, folder / "repository", url, device, row_flops(checkpoint))
        ask(url, [subject.cases()[0].tensors()])  # warms up
        alone = [request_alone(bench, case, runs) for case in subject.cases()]
        together = [requests_together(bench, case) for case in subject.cases()]
        rows = unet_rows(bench)
    networks = eager_networks(checkpoint, device)
    published_loop(bench, networks, replace(subject.cases()[0], steps=2, bootstrapping=1))  # warms up
    loops = [published_loop(bench, networks, case) for case in subject.cases()]
    cases = [
        {**own, **beside, **loop, "ratio": loop["seconds_published"] / own["seconds"]}
        for own, beside, loop in zip(alone, together, loops, strict=True)
    ]
    for case in cases:
        case["latents_apart"] = latents_apart(np.array(case.pop("latents")), np.array(case.pop("latents_published")))
        limit = LATENT_LIMITS[profile.precision]
        if case["latents_apart"] > limit:
            raise SystemExit(f"{case['case']}: both pictures are {case['latents_apart']:.2g} apart, limit {limit:g}")
    return {"tflop_per_row": bench.flops / 1e12, "cases": cases, "unet": rows}


def compose(subject: Subject, profile: Profile, variant: str, folder: Path) -> Checkpoint:
    """A repository below `folder`; where it is not the plain one, a variant's configurations take their place."""
    if not (folder / "checkpoint").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        subject.write_checkpoint(folder / "partial")
        (folder / "partial").rename(folder / "checkpoint")
    checkpoint = read_checkpoint(folder / "checkpoint")
    sources = ROOT / "model_repository"
    build(
        checkpoint,
        sources,
        profile,
        profile.precision,
        output=folder / "repository",
        work_dir=folder / "work",
        inputs={**export_inputs(checkpoint, sources, profile, profile.precision), "benchmark": True},
        progress=lambda _stage, _share: None,
        effort=Effort(colours=2),  # a preview is fitted to them; which they are does not matter
    )
    for file in (folder / "repository").glob(f"*/{VARIANTS_FOLDER}/{variant}.pbtxt"):
        shutil.copyfile(file, file.parents[1] / "config.pbtxt")
    return checkpoint


def ask(url: str, requests: Sequence[list[Any]]) -> list[Any]:
    """The final responses to requests that are sent at the same time."""

    async def one(client: InferenceServerClient, inputs: list[Any]) -> Any:
        async def sent() -> Any:
            yield {"model_name": MODEL, "inputs": inputs}

        call = client.stream_infer(sent())
        async for result, error in call:
            if error is not None:
                raise error
            call.cancel()
            return result
        raise RuntimeError("the stream ended without a response")

    async def all_of_them() -> list[Any]:
        options = [("grpc.max_receive_message_length", -1)]
        async with InferenceServerClient(url, channel_args=options) as client:
            return await asyncio.gather(*(one(client, inputs) for inputs in requests))

    return asyncio.run(all_of_them())


def network_seconds(bench: Bench) -> float:
    """Seconds that the networks have worked since the server started, by Triton's own statistics."""
    server = Server(bench.url)
    return sum(server.compute_time(name)[1] for name in bench.names)


def request_alone(bench: Bench, case: Case, runs: int) -> Row:
    """One request at a time."""
    seconds, shares = [], []
    for _ in range(runs):
        before, started = network_seconds(bench), time.perf_counter()
        (final,) = ask(bench.url, [case.tensors()])
        seconds.append(time.perf_counter() - started)
        shares.append(1 - (network_seconds(bench) - before) / seconds[-1])
    rows = json.loads(final.as_numpy("report")[0])["unet_rows"]
    median = statistics.median(seconds)
    return {
        "case": case.title,
        "goal": case.goal,
        "rows": rows,
        "seconds": median,
        "rows_per_second": rows / median,
        "tflops": rows * bench.flops / median / 1e12,
        "orchestration_share": statistics.median(shares),
        "latents": final.as_numpy("latents")[None].tolist(),
    }


def requests_together(bench: Bench, case: Case) -> Row:
    """AT_ONCE requests at a time, of different seeds: different pictures of equal cost."""
    requests = [seeded(case.tensors(), seed) for seed in range(AT_ONCE)]
    started = time.perf_counter()
    finals = ask(bench.url, requests)
    seconds = time.perf_counter() - started
    rows = sum(json.loads(final.as_numpy("report")[0])["unet_rows"] for final in finals)
    return {
        "seconds_together": seconds,
        "rows_per_second_together": rows / seconds,
        "tflops_together": rows * bench.flops / seconds / 1e12,
    }


def seeded(inputs: list[Any], seed: int) -> list[Any]:
    """The request with another seed."""
    for tensor in inputs:
        if tensor.name() == "seed":
            tensor.set_data_from_numpy(np.array([seed], np.uint64))
    return inputs


def unet_rows(bench: Bench) -> list[Row]:
    """The UNet by itself, called directly: what Triton counts as its own time."""
    (unet,) = (network for network in networks_of(bench.checkpoint) if network.name == "unet")
    (full,) = network_batches(unet, bench.checkpoint, max(ROW_COUNTS), tile=0, largest=False)
    server = Server(bench.url)
    measured = []
    for count in ROW_COUNTS:
        inputs = dict(slice_rows(full, 0, count))
        inputs["timestep"] = inputs["timestep"][:, None]
        server.infer("unet", inputs, unet.outputs)  # warms up
        before = server.compute_time("unet")[1]
        for _ in range(TIMED_CALLS):
            server.infer("unet", inputs, unet.outputs)
        seconds = (server.compute_time("unet")[1] - before) / TIMED_CALLS
        tflops = count * bench.flops / seconds / 1e12
        measured.append({"rows": count, "seconds": seconds, "rows_per_second": count / seconds, "tflops": tflops})
    return measured


def published_loop(bench: Bench, networks: Networks, case: Case) -> Row:
    """The same request by the published method."""
    checkpoint = load_checkpoint(bench.repository / MODEL / "1" / "checkpoint")
    job = prepare(case.parameters(checkpoint.view_stride), checkpoint)
    painted = paint_published(job, checkpoint, networks)
    return {
        "rows_published": painted.rows,
        "seconds_published": painted.seconds["total"],
        "latents_published": painted.latents.tolist(),
    }


def latents_apart(ours: Any, theirs: Any) -> float:
    """Largest difference over largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def tables(subject: Subject, measured: Row, runs: int) -> list[Table]:
    """The requests, then the UNet by itself."""
    title = f"{subject.name}: {measured['tflop_per_row']:.3g} TFLOP a row; medians of {runs}, published once"
    requests = Table("", "rows", "s", "rows/s", "TFLOP/s", f"{AT_ONCE} at once: rows/s", "TFLOP/s", title=title)
    for case in measured["cases"]:
        requests.add_section()
        requests.add_row(
            case["case"],
            str(case["rows"]),
            f"{case['seconds']:.2f}",
            f"{case['rows_per_second']:.1f}",
            f"{case['tflops']:.3g}",
            f"{case['rows_per_second_together']:.1f}",
            f"{case['tflops_together']:.3g}",
        )
        ratio = f"{case['ratio']:.2f} times ours (goal {case['goal']})"
        requests.add_row("published, eager", str(case["rows_published"]), f"{case['seconds_published']:.2f}", ratio)
        share = f"orchestration {case['orchestration_share']:.1%} (goal {ORCHESTRATION_GOAL:.0%})"
        requests.add_row(f"latents {case['latents_apart']:.1e} apart", "", "", share)
    unet = Table("rows", "ms", "rows/s", "TFLOP/s", title="the UNet by itself")
    unet.caption = f"goal at 16 rows: {TFLOPS_GOAL} TFLOP/s"
    for row in measured["unet"]:
        unet.add_row(
            str(row["rows"]), f"{row['seconds'] * 1e3:.1f}", f"{row['rows_per_second']:.1f}", f"{row['tflops']:.3g}"
        )
    return [requests, unet]
