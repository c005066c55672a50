"""Where the time of one request goes: `make bench`.

512x512, 1 mask, 35 steps, through the real Triton, without the gateway. Seconds inside a network are Triton's own
statistics of its model (input, inference and output of every call); the orchestration is everything else. Beside it
the published method's cost: its row count at the same seconds per row.
"""

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from rich.console import Console
from rich.table import Table

from multsd_gateway.stack.supervisor import check_repository
from multsd_gateway.stack.triton import start_triton
from multsd_gateway.stack.waiting import wait_until_ready
from tests.integration.conftest import REPOSITORY, ROOT, stack_settings
from tests.integration.test_triton_clients import request, stream

RUNS = 5
STEPS = 35
NETWORKS = ("text_encoder", "unet", "vae_decoder")
RESULTS = ROOT / "build" / "bench"


@contextmanager
def running_triton() -> Iterator[str]:
    """host:port of the gRPC endpoint of a Triton of its own."""
    check_repository(REPOSITORY)
    settings, _ = stack_settings(RESULTS)
    child = start_triton(
        REPOSITORY, ports=settings.triton_ports, backends=settings.backends, log=RESULTS / "triton.log"
    )
    try:
        wait_until_ready(child, f"http://127.0.0.1:{settings.triton_http_port}/v2/health/ready", seconds=180)
        yield f"127.0.0.1:{settings.triton_grpc_port}"
    finally:
        child.stop(40)


def network_seconds(url: str) -> dict[str, float]:
    """Seconds that each network has worked since the server started."""
    with grpcclient.InferenceServerClient(url) as client:
        stats = {name: client.get_inference_statistics(name).model_stats[0].inference_stats for name in NETWORKS}
    return {
        name: (each.compute_input.ns + each.compute_infer.ns + each.compute_output.ns) / 1e9
        for name, each in stats.items()
    }


def run_once(url: str) -> tuple[dict[str, float], dict[str, Any]]:
    """One request: seconds by part, and the orchestrator's report."""
    steps = {"num_inference_steps": np.array([STEPS], np.int32), "bootstrapping": np.array([20], np.int32)}
    inputs = request(grpcclient, **steps)
    before, started = network_seconds(url), time.perf_counter()
    (final,) = stream(url, inputs)
    total = time.perf_counter() - started
    parts = {name: after - before[name] for name, after in network_seconds(url).items()}
    parts |= {"orchestration": total - sum(parts.values()), "total": total}
    return parts, json.loads(final.as_numpy("report")[0])


def main() -> None:
    """Run, print the table, write build/bench/request.json."""
    with running_triton() as url:
        run_once(url)  # warms up
        runs = [run_once(url) for _ in range(RUNS)]
    report = runs[0][1]
    seconds = {part: statistics.median(parts[part] for parts, _ in runs) for part in runs[0][0]}
    share = statistics.median(parts["orchestration"] / parts["total"] for parts, _ in runs)
    row = seconds["unet"] / report["unet_rows"]
    reference = seconds["total"] + (report["unet_rows_reference"] - report["unet_rows"]) * row

    table = Table("part", "seconds", "share", title=f"512x512, 1 mask, {STEPS} steps, median of {RUNS}")
    for part, value in seconds.items():
        table.add_row(part, f"{value:.3f}", f"{value / seconds['total']:.1%}")
    console = Console()
    console.print(table)
    console.print(f"orchestration share {share:.1%} (goal: at most 10 %)")
    console.print(f"UNet row {row * 1e3:.1f} ms (goal: at most 60), VAE decode {seconds['vae_decoder']:.2f} s (1.5)")
    console.print(
        f"{report['unet_rows']} UNet rows against the published method's {report['unet_rows_reference']}: "
        f"{seconds['total'] / reference:.2f} of its time at the same seconds per row"
    )
    _write({"seconds": seconds, "orchestration_share": share, "unet_row_seconds": row, "report": report})


def _write(results: dict[str, Any]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = Path(RESULTS / "request.json")
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
