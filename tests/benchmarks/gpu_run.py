"""The `torch` profile on a real Triton beside the published method in torch, eager, in one run: `make bench-gpu`.

On a GPU at the size of Stable Diffusion 2 and XL, in half precision; without one the same at tiny size, in full, which
shows that everything works and nothing about speed. Weights are random: they take as long as others.
"""

import asyncio
import json
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
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
from multsd_export.manifest import export_inputs, is_current
from multsd_export.networks import networks_of
from multsd_export.profiles import TORCH_VARIANTS, Device, Profile, torch_profile
from multsd_export.verify.networks import network_batches, slice_rows
from multsd_export.verify.picture import LATENT_LIMITS
from multsd_export.verify.server import Server
from multsd_gateway.stack.supervisor import stopped_at_the_end
from multsd_gateway.stack.triton import start_triton
from multsd_gateway.stack.waiting import wait_until_ready
from pipeline import prepare
from tests.benchmarks.console import wide_console
from tests.benchmarks.gpu_cases import Size, Subject, subjects
from tests.benchmarks.gpu_published import eager_networks, row_flops
from tests.benchmarks.processes import Apart
from tests.benchmarks.published import Networks, paint_published
from tests.benchmarks.request_cases import Case
from tests.integration.conftest import ROOT, stack_settings

RESULTS = ROOT / "build" / "bench" / "gpu"
MODEL = "multidiffusion"
DEFAULT = "default"  # the profile's own way to run
ORCHESTRATION_GOAL = 0.05  # share of a request's time
TFLOPS_GOAL = 350  # at 16 rows
AT_ONCE = 8
SHARE_AT_ONCE = 5  # a rate does not need every step: requests at once have this part of them
CHOSEN = re.compile(r"\w+: (\S.* numbers of rows,|eager, without CUDA graphs:)[^\"]*")
LOAD_SECONDS = 600  # of Triton at most: runners measure how they run
STOP_SECONDS = 2  # until Triton, which unloads models for ten, is killed
ROW_COUNTS = (1, 2, 4, 8, 16)
WARM_UP_CALLS = 2  # the second of which may count as timed
TIMED_CALLS = 5
CALL_SECONDS = 300.0  # of the UNet alone, at most
Row = dict[str, Any]
Latents = npt.NDArray[np.float32]  # (1, 4, h, w)


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


@dataclass(frozen=True)
class Progress:
    """Tells what goes on, and writes what has been measured whenever a stage ends."""

    console: Console
    file: Path
    results: Row

    def tell(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def write(self) -> None:
        """All results so far."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.results, indent=2) + "\n")

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Tell when it begins and how many seconds it took."""
        self.tell(f"{title} ...")
        started = time.perf_counter()
        try:
            yield
        finally:
            self.tell(f"{title}: {time.perf_counter() - started:.1f} s")
            self.write()


def main(
    size: Annotated[Size | None, typer.Option(help="Left out: true size on a GPU, tiny without one.")] = None,
    variant: Annotated[
        str, typer.Option(help=f"How networks run: the profile's {DEFAULT} or, on a GPU, {', '.join(TORCH_VARIANTS)}.")
    ] = DEFAULT,
    runs: Annotated[int, typer.Option(min=1, help="Of each request alone; medians count.")] = 3,
) -> None:
    """Run, print the tables, write build/bench/gpu/VARIANT.json."""
    gpu = torch.cuda.is_available()
    profile = torch_profile(Device.GPU if gpu else Device.CPU)
    if variant != DEFAULT and variant not in profile.variants:
        expected = f"expected {DEFAULT} or, on a GPU, one of {', '.join(TORCH_VARIANTS)}"
        raise typer.BadParameter(expected, param_hint="--variant")
    size = size or (Size.TRUE if gpu else Size.TINY)
    if not gpu:
        torch.set_num_threads(1)  # tiny networks' threads only wait for each other
    device = torch.device("cuda" if gpu else "cpu")
    machine = machine_name()
    results: Row = {"machine": machine, "size": size, "variant": variant, "torch": torch.__version__, "subjects": {}}
    progress = Progress(wide_console(), RESULTS / f"{variant}.json", results)
    progress.tell(f"{machine}; {size} size, {variant}, torch {torch.__version__}")
    chosen = subjects(size)
    with progress.stage("checkpoints and repositories"):
        checkpoints = compose_all(chosen, profile, variant, device)
    for subject, checkpoint in zip(chosen, checkpoints, strict=True):
        measured: Row = results["subjects"].setdefault(subject.name, {})
        measure(subject, checkpoint, profile, device, runs, measured, progress)
        for table in tables(subject, measured, runs):
            progress.console.print(table)
    progress.tell(f"written: {progress.file.relative_to(ROOT)}")
    if apart := too_far_apart(results):
        raise SystemExit(f"latents are too far apart: {', '.join(apart)}")


def machine_name() -> str:
    """The GPU's."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: nothing here tells of speed"


def measure(
    subject: Subject,
    checkpoint: Checkpoint,
    profile: Profile,
    device: torch.device,
    runs: int,
    measured: Row,
    progress: Progress,
) -> None:
    """Serve a checkpoint and ask everything of it, then paint the same by the published method.

    Args:
        measured: gets the results one by one.
    """
    folder, name, cases = RESULTS / subject.name, subject.name, subject.cases()
    with progress.stage(f"{name}: operations of a row"):
        bench = Bench(subject, checkpoint, folder / "repository", "", device, row_flops(checkpoint))
    measured |= {"tflop_per_row": bench.flops / 1e12, "cases": [], "unet": []}
    rows: list[Row] = measured["cases"]
    ours: list[Latents] = []
    with served(folder / "repository", folder, progress, name) as url:
        bench = replace(bench, url=url)
        measured["chosen"] = chosen_ways(folder / "triton.log")
        for line in measured["chosen"]:
            progress.tell(f"  {line}")
        with progress.stage(f"{name}: warm-up"):
            for case in cases:
                ask(url, [brief(case).tensors()])
        for case in cases:
            with progress.stage(f"{name}: {case.title}, alone"):
                row, latents = request_alone(bench, case, runs)
                rows.append(row)
                ours.append(latents)
            progress.tell(f"  {row['rows']} rows, {row['seconds']:.2f} s, {row['tflops']:.3g} TFLOP/s")
        with progress.stage(f"{name}: the UNet by itself"):
            measured["unet"] = unet_rows(bench)
        for case, row in zip(cases, rows, strict=True):
            with progress.stage(f"{name}: {case.title}, {AT_ONCE} at once"):
                row |= requests_together(bench, case)
            progress.tell(f"  {row['tflops_together']:.3g} TFLOP/s")
    with progress.stage(f"{name}: published networks"):
        networks = eager_networks(checkpoint, device)
        for case in cases:
            published_loop(bench, networks, brief(case))  # warms up
    for case, row, latents in zip(cases, rows, ours, strict=True):
        with progress.stage(f"{name}: {case.title}, published"):
            loop, theirs = published_loop(bench, networks, case)
            row |= loop
            row["ratio"] = row["seconds_published"] / row["seconds"]
            row["latents_apart"] = latents_apart(latents, theirs)
            row["latents_limit"] = LATENT_LIMITS[profile.precision]
        progress.tell(f"  {row['rows_published']} rows, {row['ratio']:.2f} times ours")


def chosen_ways(log: Path) -> list[str]:
    """What the runners have said of how they run, in Triton's log: empty where a variant says it for them."""
    lines = (CHOSEN.search(line) for line in log.read_text(errors="replace").splitlines())
    return [found[0] for found in lines if found]


def brief(case: Case) -> Case:
    """Two steps of a request."""
    return replace(case, steps=2, bootstrapping=1)


@contextmanager
def served(repository: Path, folder: Path, progress: Progress, name: str) -> Iterator[str]:
    """Triton alone, its log in a folder; gives host:port of the gRPC endpoint."""
    settings, _ = stack_settings(folder, repository)
    ports = settings.triton_ports
    child = start_triton(repository, ports=ports, backends=settings.backends, log=folder / "triton.log")
    with stopped_at_the_end(child, STOP_SECONDS, report=progress.tell):
        with progress.stage(f"{name}: Triton loads"):
            wait_until_ready(child, f"http://127.0.0.1:{ports.http}/v2/health/ready", seconds=LOAD_SECONDS)
        yield f"127.0.0.1:{ports.grpc}"


def too_far_apart(results: Row) -> list[str]:
    """The requests whose two pictures differ by more than half precision explains."""
    return [
        f"{name}, {row['case']} ({row['latents_apart']:.2g}, limit {row['latents_limit']:g})"
        for name, measured in results["subjects"].items()
        for row in measured["cases"]
        if not row["latents_apart"] <= row["latents_limit"]  # nor is "not a number" near
    ]


def compose_all(subjects: Sequence[Subject], profile: Profile, variant: str, device: torch.device) -> list[Checkpoint]:
    """All at the same time, in processes that are gone before anything is measured, by a runner or by us."""
    with ExitStack() as running:
        calls = [
            running.enter_context(Apart(compose, subject, profile, variant, RESULTS / subject.name, device))
            for subject in subjects
        ]
        return [call.result() for call in calls]


def compose(subject: Subject, profile: Profile, variant: str, folder: Path, device: torch.device) -> Checkpoint:
    """A repository below `folder`; the configurations of a variant, if it is not the default, take their place.

    Args:
        device: draws a new checkpoint's weights.
    """
    if not (folder / "checkpoint").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        subject.write_checkpoint(folder / "partial", device)
        (folder / "partial").rename(folder / "checkpoint")
    checkpoint = read_checkpoint(folder / "checkpoint")
    compose_repository(checkpoint, profile, folder)
    for file in (folder / "repository").glob(f"*/{VARIANTS_FOLDER}/{variant}.pbtxt"):
        shutil.copyfile(file, file.parents[1] / "config.pbtxt")
    return checkpoint


def compose_repository(checkpoint: Checkpoint, profile: Profile, folder: Path) -> None:
    """Compose `folder`/repository, unless it is there."""
    sources = ROOT / "model_repository"
    inputs = {**export_inputs(checkpoint, sources, profile, profile.precision), "benchmark": True}
    if not is_current(folder / "repository", inputs):
        build(
            checkpoint,
            sources,
            profile,
            profile.precision,
            output=folder / "repository",
            work_dir=folder / "work",
            inputs=inputs,
            progress=lambda _stage, _share: None,
            effort=Effort(colours=2),  # a preview is fitted to them; which they are does not matter
        )


def ask(url: str, requests: Sequence[list[Any]]) -> list[Any]:
    """The final responses to requests that are sent at the same time."""

    async def one(client: InferenceServerClient, inputs: list[Any]) -> Any:
        async def sent() -> Any:
            yield {"model_name": MODEL, "inputs": inputs}

        final = None
        async for result, error in client.stream_infer(sent()):  # to its end: else Triton may not let go of the model
            if error is not None:
                raise error
            final = result
        if final is None:
            raise RuntimeError("the stream ended without a response")
        return final

    async def all_of_them() -> list[Any]:
        options = [("grpc.max_receive_message_length", -1)]
        async with InferenceServerClient(url, channel_args=options) as client:
            return await asyncio.gather(*(one(client, inputs) for inputs in requests))

    return asyncio.run(all_of_them())


def network_seconds(bench: Bench) -> float:
    """Seconds that the networks have worked since the server started, by Triton's own statistics.

    Triton counts a call after it has answered it. A request's last call is followed by the making of its picture, which
    gives Triton time for that; what is counted later still is taken for the next request's.
    """
    server = Server(bench.url, CALL_SECONDS)
    return sum(server.compute_time(name)[1] for name in bench.names)


def request_alone(bench: Bench, case: Case, runs: int) -> tuple[Row, Latents]:
    """One request at a time, and its final latents."""
    seconds, shares = [], []
    for _ in range(runs):
        before, started = network_seconds(bench), time.perf_counter()
        (final,) = ask(bench.url, [case.tensors()])
        seconds.append(time.perf_counter() - started)
        shares.append(1 - (network_seconds(bench) - before) / seconds[-1])
    rows = json.loads(final.as_numpy("report")[0])["unet_rows"]
    median = statistics.median(seconds)
    measured = {
        "case": case.title,
        "goal": case.goal,
        "rows": rows,
        "seconds": median,
        "rows_per_second": rows / median,
        "tflops": rows * bench.flops / median / 1e12,
        "orchestration_share": statistics.median(shares),
    }
    return measured, final.as_numpy("latents")[None]


def requests_together(bench: Bench, case: Case) -> Row:
    """AT_ONCE requests at a time with a part of the steps, of different seeds: different pictures of equal cost."""
    case = replace(
        case, steps=max(case.steps // SHARE_AT_ONCE, 1), bootstrapping=max(case.bootstrapping // SHARE_AT_ONCE, 1)
    )
    requests = [seeded(case.tensors(), seed) for seed in range(AT_ONCE)]
    started = time.perf_counter()
    finals = ask(bench.url, requests)
    seconds = time.perf_counter() - started
    rows = sum(json.loads(final.as_numpy("report")[0])["unet_rows"] for final in finals)
    return {
        "steps_together": case.steps,
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
    server = Server(bench.url, CALL_SECONDS)
    measured = []
    for count in ROW_COUNTS:
        inputs = dict(slice_rows(full, 0, count))
        inputs["timestep"] = inputs["timestep"][:, None]
        for _ in range(WARM_UP_CALLS):
            server.infer("unet", inputs, unet.outputs)
        before = server.compute_time("unet")
        for _ in range(TIMED_CALLS):
            server.infer("unet", inputs, unet.outputs)
        seconds = seconds_a_call(before, server.compute_time("unet"))
        tflops = count * bench.flops / seconds / 1e12
        measured.append({"rows": count, "seconds": seconds, "rows_per_second": count / seconds, "tflops": tflops})
    return measured


def seconds_a_call(before: tuple[int, float], after: tuple[int, float]) -> float:
    """Of the calls that Triton has counted in between: it answers first, so the last one before may be among them."""
    return (after[1] - before[1]) / (after[0] - before[0])


def published_loop(bench: Bench, networks: Networks, case: Case) -> tuple[Row, Latents]:
    """The same request by the published method, and its final latents."""
    checkpoint = load_checkpoint(bench.repository / MODEL / "1" / "checkpoint")
    job = prepare(case.parameters(checkpoint.view_stride), checkpoint)
    painted = paint_published(job, checkpoint, networks)
    seconds = painted.seconds
    measured = {
        "rows_published": painted.rows,
        "seconds_published": seconds["total"],
        "background_share": seconds["backgrounds"] / seconds["total"],
        "text_share": seconds["texts"] / seconds["total"],
    }
    return measured, painted.latents.numpy()


def latents_apart(ours: Latents, theirs: Latents) -> float:
    """Largest difference over largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def tables(subject: Subject, measured: Row, runs: int) -> list[Table]:
    """The requests, then the UNet by itself."""
    title = f"{subject.name}: {measured['tflop_per_row']:.3g} TFLOP a row; medians of {runs}, published once"
    title += f"\n{AT_ONCE} at once with 1/{SHARE_AT_ONCE} of the steps"
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
        parts = f"{case['background_share']:.0%} backgrounds, {case['text_share']:.0%} texts"
        requests.add_row(
            f"published, eager ({parts})", str(case["rows_published"]), f"{case['seconds_published']:.2f}", ratio
        )
        share = f"orchestration {case['orchestration_share']:.1%} (goal {ORCHESTRATION_GOAL:.0%})"
        near = case["latents_apart"] <= case["latents_limit"]
        apart = f"latents {case['latents_apart']:.1e} apart{'' if near else ', too far'}"
        requests.add_row(apart, "", "", share)
    unet = Table("rows", "ms", "rows/s", "TFLOP/s", title="the UNet by itself")
    unet.caption = f"goal at 16 rows: {TFLOPS_GOAL} TFLOP/s"
    for row in measured["unet"]:
        unet.add_row(
            str(row["rows"]), f"{row['seconds'] * 1e3:.1f}", f"{row['rows_per_second']:.1f}", f"{row['tflops']:.3g}"
        )
    return [requests, unet]
