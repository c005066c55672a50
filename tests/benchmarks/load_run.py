"""Many requests at once: `make bench-load`.

`cpu`: mixed sizes at several concurrencies on the demo checkpoint, beside the published loop, one request at a time.
`gpu`: the UNet replaced by a simulation that takes 10 ms and 1 ms a row, to see what the orchestrator adds; the VAE's
decoder, whose time on a processor would hide that, by one of 5 ms.
`overload`: ten times what the stack can do, for a minute, wide requests among them.
`soak`: small requests, half of them streams, some of them cancelled at random.
`deterministic`: what it costs that every call of the UNet has one size.

Each part prints its goals beside its figures, writes build/bench/load_NAME.json, and fails where a goal is missed.
"""

import asyncio
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
import typer
from rich.table import Table

from checkpoint_files import load_checkpoint
from multsd_gateway.settings import Settings
from pipeline import prepare
from tests.benchmarks.load_report import Report
from tests.benchmarks.load_requests import (
    CANCELLED,
    LOST,
    PAINTED,
    REFUSED,
    Answer,
    Wish,
    all_painted,
    ask,
    ask_all,
    not_right,
    steady_rate,
    waits_needed,
)
from tests.benchmarks.load_stack import (
    RESULTS,
    Service,
    changed_repository,
    client,
    running_service,
    simulated_repository,
)
from tests.benchmarks.published import onnx_networks, paint_published
from tests.benchmarks.request_cases import Case
from tests.integration.conftest import REPOSITORY

app = typer.Typer(add_completion=False, no_args_is_help=True)
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
ONE = Case(512, 512, (BOX,), steps=50, bootstrapping=20, goal=0)  # the HTTP API's defaults
LARGE = Case(2048, 1024, (), steps=27, bootstrapping=0, goal=0)  # 225 views, 450 rows a step
WIDE = Case(512, 1024, (), steps=20, bootstrapping=0, goal=0)  # 9 views, 360 rows
BRIEF = Case(512, 512, (BOX,), steps=1, bootstrapping=0, goal=0)
AT_ONCE = 8  # the concurrency of the goals
ALONE = 5  # requests, one after the other
ROUNDS = 3  # of equal requests: what else the machine does shows in the slowest of them
SEEDS = 3  # different pictures of overload and soak
OVERLOADED = 10  # times what the stack can do
WARM_UP_SHARE = 0.25  # of the overload's time
WIDE_SHARE = 4  # of the overload one request in so many is wide
STREAMED_SHARE, CANCELLED_SHARE = 0.5, 0.2  # of the soak
SOAK_PARTS = 10  # the first one fills pools and caches
SAMPLE_SECONDS = 0.25  # between looks at the memory

# Goals.
ROWS_A_CALL = 0.8 * MAX_BATCH_SIZE
OUTSIDE_SHARE = 0.1
P99_OVER_P50 = 1.3
OF_THE_BOUND = 0.85
SMALL_BESIDE_LARGE = 2.5
REFUSAL_P95 = 0.25  # seconds
MEMORY_GROWTH = 1.15  # times what was held before
STILL_GROWTH = 1.03  # times what was held at half of the soak: a leak goes on, a pool does not
MORE_THREADS, MORE_DESCRIPTORS, MORE_TASKS = 8, 8, 8  # than before


def run_all(service: Service, cases: Sequence[Case], at_once: int, what: str) -> tuple[list[Answer], float]:
    """Every case with a seed of its own, so many at a time: the answers, and the seconds that all took.

    Raises SystemExit where one was not painted; what: names them there.
    """

    async def run() -> tuple[list[Answer], float]:
        async with client(service) as http:
            started = time.perf_counter()
            answers = await ask_all(http, [Wish(case, seed) for seed, case in enumerate(cases)], at_once)
            return answers, time.perf_counter() - started

    answers, seconds = asyncio.run(run())
    return all_painted(answers, what), seconds


def run_alone(service: Service, cases: Sequence[Case]) -> dict[tuple[Case, int], Answer]:
    """Each case with each of the few seeds, one at a time. Raises SystemExit where one was not painted."""

    async def run() -> dict[tuple[Case, int], Answer]:
        async with client(service) as http:
            return {(case, seed): await ask(http, Wish(case, seed)) for case in cases for seed in range(SEEDS)}

    answers = asyncio.run(run())
    all_painted(list(answers.values()), "requests alone")
    return answers


@app.command()
def cpu(
    requests: Annotated[int, typer.Option(min=1, help="Of each concurrency.")] = 24,
    equal: Annotated[
        int,
        typer.Option(
            min=1, help="Equal requests of a round; of fewer, p99 is that of the first ones, which all start together."
        ),
    ] = 64,
) -> None:
    """Mixed sizes at concurrency 1 to 16 on the demo checkpoint."""
    cases = [MIXED[i % len(MIXED)] for i in range(requests)]
    with Report("load_cpu", RESULTS) as report:
        table = Table("at once", "pictures/min", "p50 s", "p99 s", "rows a call", "outside of the UNet")
        report.show(table)
        figures: list[dict[str, float]] = []
        report.keep(concurrency=figures)
        with running_service() as service:
            run_all(service, MIXED, 4, "warm-up")
            for at_once in (1, 2, 4, 8, 16):
                values = _at_concurrency(service, cases, at_once)
                figures.append(values)
                table.add_row(
                    str(at_once),
                    f"{values['pictures_per_minute']:.1f}",
                    f"{values['p50']:.2f}",
                    f"{values['p99']:.2f}",
                    f"{values['rows_per_call']:.1f}",
                    f"{values['outside_share']:.0%}",
                )
                if at_once == AT_ONCE:
                    report.at_least(f"rows a call, {at_once} at once", values["rows_per_call"], ROWS_A_CALL, "{:.1f}")
                    name = f"time outside of the UNet, {at_once} at once"
                    report.at_most(name, values["outside_share"], OUTSIDE_SHARE, "{:.1%}")
            ratios = [_p99_over_p50(service, equal) for _ in range(ROUNDS)]
        name = f"p99 / p50 of {equal} equal requests, {AT_ONCE} at once, median of {ROUNDS} rounds"
        report.at_most(name, statistics.median(ratios), P99_OVER_P50)
        report.show(f"p99 / p50 of each round of equal requests: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
        published = _published_per_minute(cases)
        report.show(f"the published loop on the same networks, one at a time: {published:.1f} pictures/min")
        report.keep(published_per_minute=published, equal_p99_p50=ratios)


def _p99_over_p50(service: Service, requests: int) -> float:
    """Of the seconds that equal requests take."""
    answers, _ = run_all(service, [MIXED[0]] * requests, AT_ONCE, "equal requests")
    times = [answer.seconds for answer in answers]
    return float(np.percentile(times, 99)) / statistics.median(times)


def _at_concurrency(service: Service, cases: Sequence[Case], at_once: int) -> dict[str, float]:
    rows, calls, busy = service.unet_counts()
    answers, seconds = run_all(service, cases, at_once, f"{at_once} at once")
    after = service.unet_counts()
    times = [answer.seconds for answer in answers]
    return {
        "at_once": at_once,
        "pictures_per_minute": 60 * len(times) / seconds,
        "p50": statistics.median(times),
        "p99": float(np.percentile(times, 99)),
        "rows_per_call": (after[0] - rows) / (after[1] - calls),
        "outside_share": 1 - (after[2] - busy) / seconds,
    }


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
def gpu(
    requests: Annotated[int, typer.Option(help="Of 512x512 and one mask.", min=3 * AT_ONCE)] = 240,
    call_ms: Annotated[float, typer.Option(min=0.1, help="Of a UNet call; the goals are for this one.")] = CALL_SECONDS
    * 1e3,
    row_ms: Annotated[float, typer.Option(min=0, help="Of each of its rows.")] = ROW_SECONDS * 1e3,
) -> None:
    """A simulated GPU: what the orchestrator adds, and a small request beside a very large one."""
    call_seconds, row_seconds = call_ms / 1e3, row_ms / 1e3
    seconds = {"unet": (call_seconds, row_seconds), "vae_decoder": (DECODE_SECONDS, 0.0)}
    repository = simulated_repository(RESULTS / "simulated_repository", seconds)
    with Report("load_gpu", RESULTS) as report:
        with running_service(repository) as service:
            run_all(service, [ONE] * AT_ONCE, AT_ONCE, "warm-up")
            rows, calls, busy = service.unet_counts()
            answers, taken = run_all(service, [ONE] * requests, AT_ONCE, "equal requests")
            after = service.unet_counts()
            rows_each = (after[0] - rows) / requests
            bound = 1 / (rows_each / MAX_BATCH_SIZE * (call_seconds + MAX_BATCH_SIZE * row_seconds))
            reached, busy_share = steady_rate(answers, AT_ONCE), (after[2] - busy) / taken
            report.show(
                f"simulation, a UNet call takes {call_ms:g} ms + {row_ms:g} ms a row, "
                f"a decoding {DECODE_SECONDS * 1e3:.0f} ms: "
                f"{reached:.2f} pictures/s of {rows_each:.0f} rows, {AT_ONCE} at once, bound {bound:.2f}, "
                f"{(after[0] - rows) / (after[1] - calls):.1f} rows a call, the UNet busy {busy_share:.0%} of the time"
            )
            report.at_least("pictures/s over the bound", reached / bound, OF_THE_BOUND, "{:.1%}")
            report.keep(reached=reached, bound=bound, busy_share=busy_share)
            alone = _time_without_unet(service)
            idle, beside = asyncio.run(_small_beside_large(service))
        report.show(
            f"a request alone: the UNet is idle for {alone['idle_share']:.1%} of the time, "
            f"{alone['idle_seconds_per_call'] * 1e3:.1f} ms a call",
            f"a small request takes {idle:.2f} s alone, {beside:.2f} s beside a large one",
        )
        report.at_most("seconds of a small request beside a large one, over alone", beside / idle, SMALL_BESIDE_LARGE)
        report.keep(idle=idle, beside=beside, alone=alone)


def _time_without_unet(service: Service) -> dict[str, float]:
    """How long the UNet is idle while requests come one after the other: share, and seconds for each of its calls."""
    _, calls, busy = service.unet_counts()
    _, seconds = run_all(service, [ONE] * ALONE, 1, "requests alone")
    _, calls_after, busy_after = service.unet_counts()
    idle = seconds - (busy_after - busy)
    return {"idle_share": idle / seconds, "idle_seconds_per_call": idle / (calls_after - calls)}


async def _small_beside_large(service: Service) -> tuple[float, float]:
    """Seconds of a small request alone, and while one of 12 000 rows runs: medians."""
    async with client(service) as http:

        async def small(what: str) -> float:
            answers = [await ask(http, Wish(ONE, seed)) for seed in range(3)]
            return statistics.median(answer.seconds for answer in all_painted(answers, what))

        idle = await small("small requests alone")
        painting = asyncio.Event()
        large = asyncio.create_task(ask(http, Wish(LARGE, 1, streamed=True), on_progress=painting.set))
        begun = asyncio.create_task(painting.wait())
        await asyncio.wait((large, begun), return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        beside = await small("small requests beside a large one")
        ended_before = large.done()
        all_painted([await large], "the large request")
        if ended_before:
            raise SystemExit("the large request ended before the small ones")
    return idle, beside


@app.command()
def overload(
    seconds: Annotated[float, typer.Option(min=1, help="How long.")] = 60,
    waiting_rows: Annotated[int, typer.Option(min=1, help="The gateway's bound of rows that wait.")] = 2000,
) -> None:
    """Ten times what the stack can do, one request in four a wide one."""
    with Report("load_overload", RESULTS) as report:
        if "max_waiting_rows" not in Settings.model_fields:
            report.show("this gateway has no bound of rows that wait")
        with running_service(max_waiting_rows=waiting_rows) as service:
            alone = run_alone(service, (MIXED[0], WIDE))
            able = [_overloading(number) for number in range(2 * AT_ONCE)]
            _, taken = run_all(service, able, AT_ONCE, "as much as the stack can do")
            interval = taken / len(able) / OVERLOADED
            asyncio.run(_overload(service, seconds * WARM_UP_SHARE, interval))  # pools and caches grow to their size
            before, refused_before = service.memory(), service.refused_by_model()
            asked, held, draining = asyncio.run(_overload(service, seconds, interval))
            by_model = service.refused_by_model() - refused_before
            gauges, after = service.idle_gauges(), service.memory()
        pictures = {key: answer.picture for key, answer in alone.items()}
        _report_overload(report, asked, pictures)
        unexplained = sum(not answer.accepted and not answer.refused_by_gateway for _, answer in asked) - by_model
        report.at_most("503s that neither gateway nor model gave at the door", unexplained, 0, "{:.0f}")
        first, second = held[: len(held) // 2], held[len(held) // 2 :]
        report.show(
            f"{len(asked)} requests in {seconds:.0f} s, one every {interval:.2f} s",
            f"memory before {before:.2f}, at most {max(first):.2f} in the first half, {max(second):.2f} in the second, "
            f"{max(draining, default=0.0):.2f} while the last were painted, after {after:.2f} GiB",
        )
        report.at_most("memory at most in the second half, over the first", max(second) / max(first), MEMORY_GROWTH)
        report.at_most("memory after, over before", after / before, MEMORY_GROWTH)
        report.at_most("requests that the gauges count at the end", sum(gauges.values()), 0, "{:.0f}")
        report.keep(memory=[before, *held, *draining, after], gauges=gauges, interval=interval)


def _overloading(number: int) -> Case:
    """The case of a request of the overload."""
    return WIDE if number % WIDE_SHARE == 1 else MIXED[0]


async def _overload(
    service: Service, seconds: float, interval: float
) -> tuple[list[tuple[Wish, Answer]], list[float], list[float]]:
    """Requests that come whether or not those before are done.

    All with their answers, the GiB held while they came, and those held while the last of them were painted.
    """
    wishes: list[Wish] = []
    tasks: list[asyncio.Task[Answer]] = []
    held: list[float] = []

    async def watch() -> None:
        while True:
            held.append(await asyncio.to_thread(service.memory))
            await asyncio.sleep(SAMPLE_SECONDS)

    async with client(service) as http:
        watching = asyncio.create_task(watch())
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            wishes.append(Wish(_overloading(len(wishes)), len(wishes) % SEEDS))
            tasks.append(asyncio.create_task(ask(http, wishes[-1])))
            await asyncio.sleep(max(0.0, len(wishes) * interval - now))
        came = len(held)
        answers = await asyncio.gather(*tasks)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return list(zip(wishes, answers, strict=True)), held[:came], held[came:]


def _report_overload(
    report: Report, asked: Sequence[tuple[Wish, Answer]], pictures: dict[tuple[Case, int], str]
) -> None:
    table = Table("requests", "sent", "painted", "refused", "lost", "other")
    for name, case in (("small", MIXED[0]), ("wide", WIDE)):
        outcomes = Counter(answer.outcome for wish, answer in asked if wish.case is case)
        other = {outcome: count for outcome, count in outcomes.items() if outcome not in (PAINTED, REFUSED, LOST)}
        table.add_row(
            name,
            str(outcomes.total()),
            *(str(outcomes[outcome]) for outcome in (PAINTED, REFUSED, LOST)),
            ", ".join(f"{outcome}: {count}" for outcome, count in other.items()),
        )
    report.show(table)
    refusals = [answer for _, answer in asked if not answer.accepted]
    reasons = Counter(re.sub(r"\d+", "N", answer.message) for answer in refusals)
    report.show(*(f"{count} refused: {reason}" for reason, count in reasons.items()))
    told = [answer.retry_after for answer in refusals if answer.retry_after is not None]
    needed = waits_needed(asked)
    report.show(
        f"seconds that refusals named: {spread(told)}",
        f"seconds until the next request like it was accepted: {spread(needed)}",
    )
    wrong = not_right(asked, pictures)
    if wrong:
        report.show(f"the first accepted request that did not finish right: {wrong[0]}")
    late = float(np.percentile([answer.seconds for answer in refusals], 95)) if refusals else float("nan")
    report.at_most("requests without an answer", sum(answer.outcome == LOST for _, answer in asked), 0, "{:.0f}")
    report.at_most("accepted requests that did not give the bytes that they give alone", len(wrong), 0, "{:.0f}")
    report.at_least("requests refused", len(refusals), 1, "{:.0f}")
    by_cost = sum(count for reason, count in reasons.items() if "rows" in reason)
    report.at_least("of them refused by what they cost, in rows", by_cost, 1, "{:.0f}")
    report.at_most("refusals without Retry-After", len(refusals) - len(told), 0, "{:.0f}")
    report.at_most("p95 of refusals, ms", late * 1e3, REFUSAL_P95 * 1e3, "{:.0f}")
    report.keep(
        outcomes=Counter(answer.outcome for _, answer in asked),
        reasons=reasons,
        refusal_p95=late,
        retry_after=told,
        waits_needed=needed,
    )


def spread(values: Sequence[float]) -> str:
    """Least, median, 95 of 100 and most, in words."""
    if not values:
        return "none"
    least, middle, many, most = (float(np.percentile(values, share)) for share in (0, 50, 95, 100))
    return f"{least:.1f} to {most:.1f}, median {middle:.1f}, 95 of 100 at most {many:.1f} ({len(values)} in all)"


@app.command()
def soak(requests: Annotated[int, typer.Option(min=SOAK_PARTS, help="Small ones.")] = 2000) -> None:
    """Small requests, half of them streams, a fifth cancelled at some time of their lives: what is left behind."""
    requests -= requests % SOAK_PARTS
    chance = random.Random(0)  # noqa: S311 - a load, not a secret
    with Report("load_soak", RESULTS) as report:
        with running_service() as service:
            alone = run_alone(service, (BRIEF,))
            once = statistics.median(answer.seconds for answer in alone.values())
            warm_up = [Wish(BRIEF, i % SEEDS, streamed=i % 2 == 0) for i in range(5 * AT_ONCE)]
            lifetime = statistics.median(answer.seconds for answer in asyncio.run(_all_painted(service, warm_up)))
            wishes = [
                Wish(
                    BRIEF,
                    i % SEEDS,
                    streamed=chance.random() < STREAMED_SHARE,
                    leaves_after=chance.uniform(0, lifetime) if chance.random() < CANCELLED_SHARE else None,
                )
                for i in range(requests)
            ]
            begun = requests // SOAK_PARTS
            answers = asyncio.run(_ask_all(service, wishes[:begun]))
            gauges_before, before = service.idle_gauges(), service.held()
            held = []
            for part in range(1, SOAK_PARTS):
                answers += asyncio.run(_ask_all(service, wishes[part * begun : (part + 1) * begun]))
                held.append(service.memory())
            gauges, after = service.idle_gauges(), service.held()
        asked = list(zip(wishes, answers, strict=True))
        report.show(
            f"a request takes {once:.2f} s alone, {lifetime:.2f} s with {AT_ONCE} at once: cancelled within that; "
            f"before: after the first {begun} requests",
            f"GiB after each {begun} more: {', '.join(f'{each:.2f}' for each in held)}",
            _outcomes(asked),
            _cancellations(asked),
        )
        wrong = not_right(asked, {key: answer.picture for key, answer in alone.items()})
        if wrong:
            report.show(f"the first request that did not finish right: {wrong[0]}")
        refused = sum(not answer.accepted for answer in answers)
        report.at_most("requests that did not give the bytes that they give alone", len(wrong) + refused, 0, "{:.0f}")
        report.at_most("memory after, over before", after["GiB"] / before["GiB"], MEMORY_GROWTH)
        report.at_most("memory after, over that at half", after["GiB"] / held[len(held) // 2], STILL_GROWTH)
        most = {"threads": MORE_THREADS, "file descriptors": MORE_DESCRIPTORS, "tasks": MORE_TASKS}
        for name, more in most.items():
            report.at_most(f"{name} after (before: {before[name]:.0f})", after[name], before[name] + more, "{:.0f}")
        for name, value in gauges.items():
            report.at_most(f"{name} after (before: {gauges_before[name]:.0f})", value, 0, "{:.0f}")
        report.keep(
            outcomes=Counter(answer.outcome for answer in answers),
            before=before | gauges_before,
            meanwhile=held,
            after=after | gauges,
        )


async def _ask_all(service: Service, wishes: Sequence[Wish]) -> list[Answer]:
    async with client(service) as http:
        return await ask_all(http, wishes, AT_ONCE)


async def _all_painted(service: Service, wishes: Sequence[Wish]) -> list[Answer]:
    return all_painted(await _ask_all(service, wishes), "warm-up")


def _outcomes(asked: Sequence[tuple[Wish, Answer]]) -> Table:
    table = Table("requests", "sent", "outcomes")
    for name, streamed in (("/multsd", False), ("/multsd/stream", True)):
        outcomes = Counter(answer.outcome for wish, answer in asked if wish.streamed is streamed)
        table.add_row(name, str(outcomes.total()), ", ".join(f"{each}: {n}" for each, n in sorted(outcomes.items())))
    return table


def _cancellations(asked: Sequence[tuple[Wish, Answer]]) -> str:
    """After which event streams were cancelled."""
    last = Counter(
        answer.events[-1] if answer.events else "before any event"
        for wish, answer in asked
        if wish.streamed and answer.outcome == CANCELLED
    )
    return f"streams cancelled, by the last event before: {dict(last)}"


@app.command()
def deterministic(
    requests: Annotated[int, typer.Option(min=1, help="With it, and as many without.")] = 48,
) -> None:
    """The same requests without and with the model's parameter `deterministic`."""
    cases = [MIXED[i % len(MIXED)] for i in range(requests)]
    with Report("load_deterministic", RESULTS) as report:
        table = Table("deterministic", "pictures/min", "p50 s", "p99 s", "rows", "padded rows", "rows a call")
        report.show(table)
        figures: list[dict[str, float]] = []
        for value in ("false", "true"):
            with running_service(changed_repository(RESULTS / "changed_repository", deterministic=value)) as service:
                run_all(service, MIXED, 4, "warm-up")
                rows, padded = service.unet_counts()[0], service.padded_rows()
                values = _at_concurrency(service, cases, AT_ONCE)
                values["padded"] = service.padded_rows() - padded
                values["rows"] = service.unet_counts()[0] - rows - values["padded"]
            figures.append(values)
            table.add_row(
                value,
                f"{values['pictures_per_minute']:.1f}",
                f"{values['p50']:.2f}",
                f"{values['p99']:.2f}",
                f"{values['rows']:.0f}",
                f"{values['padded']:.0f}",
                f"{values['rows_per_call']:.1f}",
            )
        (off, on) = (values["pictures_per_minute"] for values in figures)
        padded_share = figures[1]["padded"] / figures[1]["rows"]
        report.show(
            f"{AT_ONCE} at once: {on / off:.2f} times as many pictures a minute with it, "
            f"{padded_share:.1%} more rows by padding"
        )
        report.keep(runs=figures, pictures_ratio=on / off, padded_share=padded_share)
