"""Two Tritons behind one gateway under a load that never pauses, and what may happen to them meanwhile."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.stand_in.triton import StandIn, running_gateway, running_stand_in

WAIT_SECONDS = 60  # for anything; a busy machine is slow


@dataclass(frozen=True)
class Reply:
    """What one request came to; status 0: no reply."""

    status: int
    seconds: float


@dataclass(frozen=True)
class Pair:
    """Two Tritons and the gateway in front of them."""

    tritons: tuple[StandIn, StandIn]
    url: str  # of the gateway

    def metric(self, name: str, triton: StandIn) -> float:
        """The gateway's metric of one Triton."""
        return metric(self.url, name, endpoint=triton.grpc)

    def wait_until(self, triton: StandIn, *, ready: bool) -> float:
        """Wait until the gateway holds it for ready or not; the seconds that it took."""
        return wait_for(lambda: self.metric("triton_ready", triton) == ready)

    def wait_until_at_work(self, triton: StandIn, *, at_work: bool = True) -> None:
        """Wait until it has requests, or has none."""
        wait_for(lambda: (self.metric("triton_in_flight", triton) > 0) == at_work)

    def check_ready(self) -> None:
        """Raises httpx.HTTPStatusError where the gateway does not call itself ready: one Triton is enough."""
        httpx.get(f"{self.url}/readyz").raise_for_status()


@contextmanager
def running_pair(folder: Path, *, seconds: float, settings: Mapping[str, str] | None = None) -> Iterator[Pair]:
    """Two stand-ins that take `seconds` a request, behind a gateway with these variables."""
    with (
        running_stand_in(folder / "first", seconds=seconds) as first,
        running_stand_in(folder / "second", seconds=seconds) as second,
        running_gateway(folder, f"{first.grpc},{second.grpc}", settings) as (_, url),
    ):
        yield Pair((first, second), url)


@contextmanager
def load(url: str, *, clients: int, body: Mapping[str, Any]) -> Iterator[list[Reply]]:
    """Clients that ask again as soon as they are answered; on the way out the last replies are waited for."""
    replies: list[Reply] = []
    over = threading.Event()

    def client() -> None:
        with httpx.Client(base_url=url, timeout=WAIT_SECONDS) as http:
            while not over.is_set():
                began = time.monotonic()
                try:
                    status = http.post("/multsd", json=body).status_code
                except httpx.TransportError:
                    status = 0
                replies.append(Reply(status, time.monotonic() - began))

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(client) for _ in range(clients)]
        try:
            yield replies
        finally:
            over.set()
    for future in futures:
        future.result()


def nothing_happens(_: Pair) -> float:
    """Both work. Returns the seconds until the gateway left one out, as all of these do: none was."""
    return 0.0


def one_is_killed(pair: Pair) -> float:
    """One is killed and started again."""
    _, victim = pair.tritons
    pair.wait_until_at_work(victim)
    victim.kill()
    seconds = pair.wait_until(victim, ready=False)
    pair.check_ready()
    victim.start()
    pair.wait_until(victim, ready=True)
    pair.wait_until_at_work(victim)
    return seconds


def one_hangs(pair: Pair) -> float:
    """One is stopped (SIGSTOP) with its connections open, and goes on when what it held has been given to the other."""
    _, victim = pair.tritons
    pair.wait_until_at_work(victim)
    os.killpg(victim.triton.process.pid, signal.SIGSTOP)
    try:
        seconds = pair.wait_until(victim, ready=False)
        pair.check_ready()
        pair.wait_until_at_work(victim, at_work=False)
    finally:
        os.killpg(victim.triton.process.pid, signal.SIGCONT)
    pair.wait_until(victim, ready=True)
    pair.wait_until_at_work(victim)
    return seconds


def one_is_broken(pair: Pair) -> float:
    """One fails every request at once, calls itself ready, and is mended when it gets no more of them."""
    _, victim = pair.tritons
    pair.wait_until_at_work(victim)
    began, last, known = time.monotonic(), time.monotonic(), 0
    with victim.broken() as failures:
        wait_for(lambda: failures.stat().st_size > 0)
        while time.monotonic() < last + 1:
            if known < (known := failures.stat().st_size):
                last = time.monotonic()
            time.sleep(0.02)
    pair.wait_until_at_work(victim)
    return last - began


def both_restart_in_turn(pair: Pair) -> float:
    """Each is asked to end, finishes what it holds, and is started again; the second when the first takes load."""
    seconds = []
    for each in pair.tritons:
        pair.wait_until_at_work(each)
        began = time.monotonic()
        each.triton.process.terminate()
        pair.wait_until(each, ready=False)
        seconds.append(time.monotonic() - began)
        each.stop()
        each.start()
        pair.wait_until(each, ready=True)
        pair.wait_until_at_work(each)
    return max(seconds)


# Each ends when both take load again.
EVENTS: Mapping[str, Callable[[Pair], float]] = {
    "nothing": nothing_happens,
    "one is killed, and started again": one_is_killed,
    "one hangs (SIGSTOP), and goes on": one_hangs,
    "one fails every request, and is mended": one_is_broken,
    "both restart, one after the other": both_restart_in_turn,
}


def wait_for_replies(replies: list[Reply], count: int) -> None:
    """Wait for so many more."""
    enough = len(replies) + count
    wait_for(lambda: len(replies) >= enough)


def wait_for(condition: Callable[[], bool]) -> float:
    """Wait until it holds; the seconds that it took. Raises TimeoutError."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > WAIT_SECONDS:
            raise TimeoutError(f"waited {WAIT_SECONDS} s")
        time.sleep(0.02)
    return time.monotonic() - began


def metric(url: str, name: str, **labels: str) -> float:
    """The sum of the gateway's samples with these labels."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == f"multsd_gateway_{name}"]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())
