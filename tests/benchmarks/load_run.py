"""Many requests at once: `make bench-load`.

`cpu`: mixed sizes at several concurrencies on the demo checkpoint, beside the published loop, one request at a time.
`gpu`: the UNet replaced by a simulation that takes 10 ms and 1 ms a row, to see what the orchestrator adds.
`overload`: ten times what the stack can do, for a minute. `soak`: small requests, some of them cancelled at random.
"""

import hashlib
import json
import os
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from checkpoint_files import load_checkpoint
from pipeline import prepare
from tests.benchmarks.load_stack import RESULTS, Service, client, running_service, simulated_repository
from tests.benchmarks.published import onnx_networks, paint_published
from tests.benchmarks.request_cases import Case
from tests.integration.conftest import REPOSITORY

app = typer.Typer(add_completion=False, no_args_is_help=True)
console = Console()
MAX_BATCH_SIZE = 16
CALL_SECONDS, ROW_SECONDS = 0.010, 0.001  # of the simulated UNet
DECODE_SECONDS = 0.005  # of the simulated VAE
BOX = (128, 128, 384, 384)
MIXED = (
    Case(512, 512, (BOX,), steps=10, bootstrapping=2, goal=0),
    Case(512, 640, ((0, 0, 256, 512), (300, 100, 600, 400)), steps=8, bootstrapping=2, goal=0),
    Case(448, 448, (), steps=12, bootstrapping=0, goal=0),
    Case(640, 512, (BOX,), steps=8, bootstrapping=2, goal=0),
)
EQUAL = 64  # requests: of fewer, p99 is that of the first ones, which all start together
SEEDS = 3  # different pictures of the overload
ONE = Case(512, 512, (BOX,), steps=35, bootstrapping=7, goal=0)


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    status: int
    seconds: float
    picture: str  # its SHA-256


def ask(http: httpx.Client, case: Case, seed: int) -> Answer:
    """One request through the whole stack."""
    started = time.perf_counter()
    reply = http.post("/multsd", json=case.body() | {"seed": seed})
    seconds = time.perf_counter() - started
    picture = reply.json()["image"] if reply.status_code == 200 else ""
    return Answer(reply.status_code, seconds, hashlib.sha256(picture.encode()).hexdigest())


def run_all(service: Service, cases: Sequence[Case], at_once: int) -> tuple[list[Answer], float]:
    """Every case, so many at a time: the answers, and the seconds that all took."""
    with client(service) as http, ThreadPoolExecutor(at_once) as pool:
        started = time.perf_counter()
        answers = list(pool.map(lambda each: ask(http, each[1], each[0]), enumerate(cases)))
        return answers, time.perf_counter() - started


def written(name: str, figures: Any) -> None:
    """Keep figures as build/bench/NAME.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


@app.command()
def cpu(requests: Annotated[int, typer.Option(help="Of each concurrency.")] = 24) -> None:
    """Mixed sizes at concurrency 1 to 16 on the demo checkpoint."""
    cases = [MIXED[i % len(MIXED)] for i in range(requests)]
    table = Table("at once", "pictures/min", "p50 s", "p99 s", "rows a call", "outside of the UNet")
    figures: list[dict[str, float]] = []
    with running_service() as service:
        run_all(service, MIXED, 4)  # warms up
        for at_once in (1, 2, 4, 8, 16):
            rows, calls, busy = service.unet_counts()
            answers, seconds = run_all(service, cases, at_once)
            after = service.unet_counts()
            times = [answer.seconds for answer in answers if answer.status == 200]
            figures.append(
                {
                    "at_once": at_once,
                    "pictures_per_minute": 60 * len(times) / seconds,
                    "p50": statistics.median(times),
                    "p99": float(np.percentile(times, 99)),
                    "rows_per_call": (after[0] - rows) / (after[1] - calls),
                    "outside_share": 1 - (after[2] - busy) / seconds,
                }
            )
            values = figures[-1]
            table.add_row(
                str(at_once),
                f"{values['pictures_per_minute']:.1f}",
                f"{values['p50']:.2f}",
                f"{values['p99']:.2f}",
                f"{values['rows_per_call']:.1f}",
                f"{values['outside_share']:.0%}",
            )
        equal, _ = run_all(service, [MIXED[0]] * EQUAL, 8)
    equal_times = [answer.seconds for answer in equal if answer.status == 200]
    spread = float(np.percentile(equal_times, 99)) / statistics.median(equal_times)
    published = _published_per_minute(cases)
    console.print(table)
    console.print(f"the published loop on the same networks, one at a time: {published:.1f} pictures/min")
    console.print(f"{EQUAL} equal requests, 8 at once: p99 / p50 {spread:.2f} (goal 1.3)")
    written("load_cpu", {"concurrency": figures, "published_per_minute": published, "equal_p99_p50": spread})


def _published_per_minute(cases: Sequence[Case]) -> float:
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    checkpoint = load_checkpoint(REPOSITORY / "multidiffusion" / "1" / "checkpoint")
    networks = onnx_networks(REPOSITORY, threads)
    started = time.perf_counter()
    for case in cases:
        paint_published(prepare(case.parameters(checkpoint.view_stride), checkpoint), checkpoint, networks)
    return 60 * len(cases) / (time.perf_counter() - started)


@app.command()
def gpu(requests: Annotated[int, typer.Option(help="Of 512x512 and one mask.")] = 120) -> None:
    """A simulated GPU: what the orchestrator adds, and a small request beside a very large one."""
    seconds = {"unet": (CALL_SECONDS, ROW_SECONDS), "vae_decoder": (DECODE_SECONDS, 0.0)}
    repository = simulated_repository(RESULTS / "simulated_repository", seconds)
    with running_service(repository) as service:
        run_all(service, [ONE] * 8, 8)
        rows, calls, busy = service.unet_counts()
        answers, seconds_taken = run_all(service, [ONE] * requests, 8)
        after = service.unet_counts()
        rows_each = (after[0] - rows) / requests
        bound = 1 / (rows_each / MAX_BATCH_SIZE * (CALL_SECONDS + MAX_BATCH_SIZE * ROW_SECONDS))
        reached = sum(answer.status == 200 for answer in answers) / seconds_taken
        busy_share = (after[2] - busy) / seconds_taken
        idle, beside = _small_beside_large(service)
    console.print(
        f"simulation, a UNet call takes {CALL_SECONDS * 1e3:.0f} ms + {ROW_SECONDS * 1e3:.0f} ms a row: "
        f"{reached:.2f} pictures/s of {rows_each:.0f} rows at concurrency 8, bound {bound:.2f} "
        f"({reached / bound:.0%}, goal 85 %), {(after[0] - rows) / (after[1] - calls):.1f} rows a call, "
        f"the UNet busy {busy_share:.0%} of the time"
    )
    console.print(
        f"a small request takes {idle:.2f} s idle, {beside:.2f} s beside a large one ({beside / idle:.2f}, goal 2.5)"
    )
    figures = {"reached": reached, "bound": bound, "busy_share": busy_share, "idle": idle, "beside": beside}
    written("load_gpu", figures)


def _small_beside_large(service: Service) -> tuple[float, float]:
    """Seconds of a small request alone, and while one of 12 000 rows runs: medians."""
    large = Case(2048, 1024, (), steps=27, bootstrapping=0, goal=0)  # 225 views, 450 rows a step
    with client(service) as http:
        idle = statistics.median(ask(http, ONE, seed).seconds for seed in range(3))
        wide = threading.Thread(target=ask, args=(http, large, 1))
        rows = service.unet_counts()[0]
        wide.start()
        while wide.is_alive() and service.unet_counts()[0] <= rows:
            time.sleep(0.05)
        beside = statistics.median(ask(http, ONE, seed).seconds for seed in range(3))
        if not wide.is_alive():
            raise SystemExit("the large request ended before the small ones")
        wide.join()
    return idle, beside


@app.command()
def overload(seconds: Annotated[float, typer.Option(help="How long.")] = 60) -> None:
    """Ten times what the stack can do."""
    case = MIXED[0]
    with running_service() as service, client(service) as http:
        alone = [ask(http, case, seed) for seed in range(SEEDS)]
        run_all(service, [case] * 16, 8)  # memory is compared with that of a busy stack
        interval, before = statistics.median(answer.seconds for answer in alone) / 10, service.memory()
        answers: list[tuple[int, Answer]] = []
        threads: list[threading.Thread] = []
        peak, ends = before, time.monotonic() + seconds
        while time.monotonic() < ends:
            seed = len(threads) % SEEDS
            thread = threading.Thread(target=lambda seed=seed: answers.append((seed, ask(http, case, seed))))
            thread.start()
            threads.append(thread)
            peak = max(peak, service.memory())
            time.sleep(interval)
        for thread in threads:
            thread.join()
        statuses = Counter(answer.status for _, answer in answers)
        refusals = [answer.seconds for _, answer in answers if answer.status == 503]
        right = sum(answer.picture == alone[seed].picture for seed, answer in answers if answer.status == 200)
        after = service.memory()
    late = float(np.percentile(refusals, 95)) if refusals else 0.0
    console.print(f"{len(answers)} requests in {seconds:.0f} s, one every {interval:.2f} s: {dict(statuses)}")
    console.print(f"{right} of the {statuses[200]} pictures are those of the same requests alone, byte by byte")
    console.print(
        f"p95 of refusals {late * 1e3:.0f} ms (goal 250); memory {before:.2f}, peak {peak:.2f}, after {after:.2f} GiB"
    )
    figures = {"statuses": statuses, "right": right, "refusal_p95": late, "memory": [before, peak, after]}
    written("load_overload", figures)


@app.command()
def soak(requests: Annotated[int, typer.Option(help="Small ones.")] = 2000) -> None:
    """Small requests, a fifth of them cancelled at random: what is left behind."""
    case = Case(512, 512, (BOX,), steps=1, bootstrapping=0, goal=0)
    rng = random.Random(0)  # noqa: S311 - a load, not a secret
    cancelled = [rng.random() < 0.2 for _ in range(requests)]
    waits = [rng.uniform(0.01, 0.3) for _ in range(requests)]
    with running_service() as service:
        run_all(service, [case] * 40, 8)
        before = service.held()

        def once(i: int) -> int:
            if not cancelled[i]:
                return ask(http, case, i).status
            try:
                httpx.post(
                    f"{service.stack.url}/multsd", json=case.body() | {"seed": i}, timeout=waits[i], trust_env=False
                )
            except httpx.TimeoutException:
                return 0
            return 200

        with client(service) as http, ThreadPoolExecutor(8) as pool:
            statuses = Counter(pool.map(once, range(requests)))
            ask(http, case, 0)  # waits until the cancelled ones are gone
        after = service.held()
    console.print(f"{requests} requests: {dict(statuses)} (0: cancelled)")
    console.print(*(f"{name} {before[name]:.4g} -> {after[name]:.4g}" for name in before), sep=", ")
    written("load_soak", {"statuses": statuses, "before": before, "after": after})
