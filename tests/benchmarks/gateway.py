"""What the gateway costs: `make bench-gateway`.

The real Triton serves a stand-in model that takes a fixed time. The same request, 512x512 with one mask, goes to it
straight over gRPC and through the gateway, 8 at a time, their starts spread over the model's time. Image coding, as the
gateway tells it in Server-Timing, is taken off. Beside it: how many bodies a second are refused by validation.

On a machine with other work the tail is that work's: a process that should run waits for its turn. How long is measured
too, with naps that end too late; `chrt -r 10 make bench-gateway` (as root) puts all of the benchmark before other work.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from rich.table import Table
from tritonclient.grpc.aio import InferenceServerClient

from multsd_client.request import GenerationRequest, Region
from multsd_client.shapes import Box
from multsd_client.tensors import MODEL
from multsd_client.triton import infer_inputs, model_request
from tests.benchmarks.console import wide_console
from tests.integration.conftest import ROOT
from tests.stand_in.triton import running_gateway, running_stand_in

AT_ONCE = 8
EACH = 40
WARM_UP = 5
MODEL_SECONDS = 0.5
REFUSALS = 4000
NAPS = 3000
NAP_SECONDS = 0.001
GOALS_MS = {50: 3.0, 99: 10.0}
RESULTS = ROOT / "build" / "bench"

REQUEST = GenerationRequest(
    prompt="green stripes background", regions=(Region(Box(128, 128, 384, 384), "a red circle"),), seed=1
)
CODING = ("masks", "encode")

Milliseconds = list[float]


async def measure(once: Callable[[], Awaitable[float]]) -> Milliseconds:
    """Milliseconds of each request; `once` runs one and returns the milliseconds to take off."""

    async def worker(number: int) -> Milliseconds:
        await asyncio.sleep(number * MODEL_SECONDS / AT_ONCE)
        taken = []
        for _ in range(WARM_UP + EACH):
            began = time.perf_counter()
            apart = await once()
            taken.append((time.perf_counter() - began) * 1000 - apart)
        return taken[WARM_UP:]

    return [each for taken in await asyncio.gather(*map(worker, range(AT_ONCE))) for each in taken]


async def direct(url: str) -> Milliseconds:
    """Straight to Triton; masks are drawn beforehand, as those of a gateway's request are taken off."""
    request = model_request(REQUEST, progress=False)
    async with InferenceServerClient(url, channel_args=[("grpc.max_receive_message_length", -1)]) as client:

        async def once() -> float:
            async def requests() -> Any:
                yield {"model_name": MODEL, "inputs": infer_inputs(request)}

            async for result, error in client.stream_infer(requests()):  # to its end, as the gateway does
                if error is not None:
                    raise error
                result.as_numpy("image")
            return 0.0

        return await measure(once)


async def through_gateway(url: str) -> tuple[Milliseconds, Milliseconds]:
    """Through the gateway without image coding, and the image coding."""
    body, coding = json.dumps(REQUEST.to_json()).encode(), []
    async with aiohttp.ClientSession() as session:

        async def once() -> float:
            async with session.post(f"{url}/multsd", data=body) as reply:
                await reply.read()
                reply.raise_for_status()
            stages = dict(stage.strip().split(";dur=") for stage in reply.headers["Server-Timing"].split(","))
            coding.append(sum(float(stages[name]) for name in CODING))
            return coding[-1]

        return await measure(once), coding


async def refusals(url: str) -> float:
    """Bodies a second that validation refuses."""
    body = json.dumps(REQUEST.to_json() | {"width": 1}).encode()
    left = iter(range(REFUSALS))
    async with aiohttp.ClientSession() as session:

        async def worker() -> None:
            for _ in left:
                async with session.post(f"{url}/multsd", data=body) as reply:
                    await reply.read()
                if reply.status != 400:
                    raise RuntimeError(f"expected 400, found {reply.status}")

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        return REFUSALS / (time.perf_counter() - began)


def late_naps() -> Milliseconds:
    """How much too late this process wakes up: what the machine's other work costs anybody."""
    late = []
    for _ in range(NAPS):
        began = time.perf_counter()
        time.sleep(NAP_SECONDS)
        late.append((time.perf_counter() - began - NAP_SECONDS) * 1000)
    return late


def main() -> None:
    """Run, print the table, write build/bench/gateway.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    folder = RESULTS / "gateway"
    late = late_naps()
    with running_stand_in(folder, seconds=MODEL_SECONDS) as triton, running_gateway(folder, triton.grpc) as (_, url):
        straight = asyncio.run(direct(triton.grpc))
        through, coding = asyncio.run(through_gateway(url))
        refused = asyncio.run(refusals(url))

    table = Table("ms", "p50", "p99", title=f"512x512, 1 mask, {AT_ONCE} at a time, {len(through)} requests")
    figures = {}
    measured = {"gRPC": straight, "gateway without coding": through, "image coding": coding, "late naps": late}
    for name, values in measured.items():
        figures[name] = {quantile: float(np.percentile(values, quantile)) for quantile in GOALS_MS}
        table.add_row(name, *(f"{value:.1f}" for value in figures[name].values()))
    over = {quantile: figures["gateway without coding"][quantile] - figures["gRPC"][quantile] for quantile in GOALS_MS}
    table.add_row("gateway over gRPC", *(f"{value:.1f}" for value in over.values()))
    table.add_row("goal, at most", *(f"{goal:.1f}" for goal in GOALS_MS.values()))
    console = wide_console()
    console.print(table)
    console.print(f"{refused:.0f} bodies a second refused by validation")
    _write({"milliseconds": figures, "over": over, "refused_per_second": refused})


def _write(results: dict[str, Any]) -> None:
    path: Path = RESULTS / "gateway.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
