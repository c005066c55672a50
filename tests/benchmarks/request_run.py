"""Time requests through the whole stack, and beside them the published method as a plain loop, in one run.

The loop runs once in torch and once on the ONNX Runtime sessions of the cpu profile, with as many threads. That it is
the published method and paints the same picture is seen in its latents, which are compared with the stack's.
"""

import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import torch
import tritonclient.grpc as grpcclient
import typer
from rich.table import Table

from checkpoint_files import load_checkpoint
from multsd_gateway.stack.supervisor import running_stack
from pipeline import prepare
from tests.benchmarks.console import wide_console
from tests.benchmarks.published import Painted, onnx_networks, paint_published, torch_networks
from tests.benchmarks.request_cases import CASES, Case
from tests.integration.conftest import REPOSITORY, ROOT, stack_settings
from tests.integration.test_triton_clients import stream

RESULTS = ROOT / "build" / "bench"
NETWORKS = ("text_encoder", "unet", "vae_decoder")
SAME_PICTURE = 1e-4  # relative; both sides are float32 and sum in another order
Row = dict[str, Any]


@dataclass(frozen=True)
class Services:
    """Where the stack under test is reached."""

    http: httpx.Client
    grpc: str


def main(
    runs: Annotated[
        int, typer.Option(min=1, help="Times of the stack and of the loop on its sessions; medians count.")
    ] = 3,
    checkpoint: Annotated[Path, typer.Option(help="What the repository was exported from.")] = ROOT
    / "export/demo_checkpoint/checkpoint",
) -> None:
    """Run, print the tables, write build/bench/request.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    settings = stack_settings(RESULTS)
    console = wide_console()
    with (
        running_stack(*settings, report=lambda _: None) as stack,
        httpx.Client(base_url=stack.url, timeout=600, transport=httpx.HTTPTransport()) as http,
    ):
        services = Services(http, f"127.0.0.1:{settings[0].triton_grpc_port}")
        _ask(services, CASES[0])  # warms up
        parts = _parts(services, CASES[0], runs)
        rows = [_compare(services, case, checkpoint, runs, threads) for case in CASES]
    console.print(_parts_table(parts, runs))
    console.print(_comparison_table(rows, runs))
    (RESULTS / "request.json").write_text(json.dumps({"parts": parts, "cases": rows}, indent=2) + "\n")
    console.print(f"written: {(RESULTS / 'request.json').relative_to(ROOT)}")


def _ask(services: Services, case: Case) -> float:
    """Seconds of one request through the whole stack."""
    started = time.perf_counter()
    services.http.post("/multsd", json=case.body()).raise_for_status()
    return time.perf_counter() - started


def _network_seconds(url: str) -> dict[str, float]:
    """Seconds that each network has worked since the server started, by Triton's own statistics.

    Triton counts a call after it has answered it. A request's last call is followed by the making of its picture, which
    gives Triton time for that; what is counted later still is taken for the next request's.
    """
    with grpcclient.InferenceServerClient(url) as client:
        stats = {name: client.get_inference_statistics(name).model_stats[0].inference_stats for name in NETWORKS}
    return {
        name: (each.compute_input.ns + each.compute_infer.ns + each.compute_output.ns) / 1e9
        for name, each in stats.items()
    }


def _parts(services: Services, case: Case, runs: int) -> Row:
    """Where the time of a request goes; the orchestration is all that is not spent in a network."""
    measured = []
    for _ in range(runs):
        before, started = _network_seconds(services.grpc), time.perf_counter()
        (final,) = stream(services.grpc, case.tensors())
        total = time.perf_counter() - started
        seconds = {name: after - before[name] for name, after in _network_seconds(services.grpc).items()}
        measured.append(seconds | {"orchestration": total - sum(seconds.values()), "total": total})
    report = json.loads(final.as_numpy("report")[0])
    medians = {part: statistics.median(each[part] for each in measured) for part in measured[0]}
    share = statistics.median(each["orchestration"] / each["total"] for each in measured)
    row_seconds = medians["unet"] / report["unet_rows"]
    return {"case": case.title, "seconds": medians, "orchestration_share": share, "unet_row_seconds": row_seconds}


def _compare(services: Services, case: Case, checkpoint_folder: Path, runs: int, threads: int) -> Row:
    """One case on the stack, on the loop in torch, and on the loop on our sessions, in turn."""
    checkpoint = load_checkpoint(REPOSITORY / "multidiffusion" / "1" / "checkpoint")
    onnx, eager = onnx_networks(REPOSITORY, threads), torch_networks(checkpoint_folder)
    (final,) = stream(services.grpc, case.tensors())
    latents = torch.from_numpy(final.as_numpy("latents").copy())[None]
    report = json.loads(final.as_numpy("report")[0])

    def published(networks: Any) -> Painted:
        painted = paint_published(prepare(case.parameters(checkpoint.view_stride), checkpoint), checkpoint, networks)
        difference = float((painted.latents - latents).abs().max() / latents.abs().max())
        if difference > SAME_PICTURE:
            raise SystemExit(f"{case.title}: the published loop's latents differ by {difference:.1e}")
        return painted

    ours, loops = [], []
    for _ in range(runs):
        ours.append(_ask(services, case))
        loops.append(published(onnx))
    ratios = [each.seconds["total"] / own for each, own in zip(loops, ours, strict=True)]
    in_torch = published(eager)
    seconds = statistics.median(ours)
    loop = statistics.median(each.seconds["total"] for each in loops)
    encodes = statistics.median(each.seconds["vae_encoder"] / each.seconds["total"] for each in loops)
    return {
        "case": case.title,
        "goal": case.goal,
        "rows": report["unet_rows"],
        "rows_published": loops[0].rows,
        "seconds": seconds,
        "seconds_published": loop,
        "seconds_published_torch": in_torch.seconds["total"],
        "background_share": encodes,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ratio_torch": in_torch.seconds["total"] / seconds,
        "latents_relative_difference": float(np.abs((loops[0].latents - latents).numpy()).max() / latents.abs().max()),
    }


def _parts_table(parts: Row, runs: int) -> Table:
    table = Table("part", "seconds", "share", title=f"{parts['case']}: median of {runs}")
    for part, seconds in parts["seconds"].items():
        table.add_row(part, f"{seconds:.3f}", f"{seconds / parts['seconds']['total']:.1%}")
    table.caption = (
        f"orchestration {parts['orchestration_share']:.1%} (goal: at most 10 %); UNet row "
        f"{parts['unet_row_seconds'] * 1e3:.1f} ms (60); VAE decode {parts['seconds']['vae_decoder']:.2f} s (1.5)"
    )
    return table


def _comparison_table(rows: list[Row], runs: int) -> Table:
    table = Table("", "rows", "seconds", "ratio", title=f"beside the published method: medians of {runs}, torch once")
    for row in rows:
        table.add_section()
        table.add_row(f"{row['case']}", str(row["rows"]), f"{row['seconds']:.2f}", "")
        share = f"loop, ONNX ({row['background_share']:.0%} backgrounds)"
        goal = f"{row['ratio']:.2f} ({min(row['ratios']):.2f} to {max(row['ratios']):.2f}; goal {row['goal']})"
        table.add_row(share, str(row["rows_published"]), f"{row['seconds_published']:.2f}", goal)
        in_torch = f"{row['seconds_published_torch']:.2f}", f"{row['ratio_torch']:.2f}"
        table.add_row("loop, torch", str(row["rows_published"]), *in_torch)
    return table
