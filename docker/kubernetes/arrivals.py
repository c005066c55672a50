"""A small simulation of requests that arrive at Tritons which are scaled: which numbers the autoscaling should have.

    python3 docker/kubernetes/arrivals.py                        # the table of docker/README.md, a few seconds
    python3 docker/kubernetes/arrivals.py --rows-per-second 400  # for your GPU

What yours evaluates `make bench-gpu` measures, and the dashboard's panel *UNet rows a second* shows when it is busy.
Standard library alone, and the same numbers every time. What is simulated:

- Requests arrive at random (Poisson) over four hours: quiet, more, a plateau, a burst at twice the plateau, quiet,
  a burst out of the quiet, quiet.
- Each needs as many UNet rows as one of the README's examples. A Triton evaluates `rows_per_second`, shared equally by
  the requests that it runs; more requests than it may run wait, and past its bounds they are refused.
- Both metrics are those of observability/rules.yaml, of Tritons that are taken away too. A UNet is busy for as long as
  it needs for the rows that it evaluates.
- What waits is counted as the orchestrator counts it, before it has looked at the masks: by the most rows that a
  request of that size may need, which are those of the published method.
- The gateway gives a request to the Triton with the fewest, as it does; a waiting request never moves to another.
- Kubernetes' algorithm for a target average: replicas = ceil(sum / target), the largest of all triggers, nothing within
  a tenth of the target, and the behaviour of overlays/autoscaling. Metrics are half a minute old. A new Triton takes
  `start_seconds` until it is ready; one that is taken away finishes what it holds.

It is a simulation: no cluster, no GPU, and a queue's arithmetic alone.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

# UNet rows of the README's four examples, needed and at most, and how often each is asked for.
MIX = (((125, 140), 0.50), ((310, 400), 0.30), ((1060, 2000), 0.15), ((4880, 12500), 0.05))
MEAN_ROWS = sum(needed * share for (needed, _), share in MIX)

# Hours, and how many Tritons the load would keep wholly busy then.
LOAD = ((0.5, 0.4), (0.5, 1.5), (1.0, 2.5), (0.25, 5.0), (0.75, 0.4), (0.25, 6.0), (0.75, 0.4))
HOURS = sum(hours for hours, _ in LOAD)

# model_repository/multidiffusion/config.pbtxt
MAX_RUNNING, MAX_WAITING, MAX_WAITING_ROWS = 8, 32, 8000

# overlays/autoscaling
MIN_REPLICAS, MAX_REPLICAS = 2, 8
UP_PODS, UP_SECONDS = 4, 60
DOWN_PODS, DOWN_SECONDS, DOWN_WINDOW = 1, 120, 600
SYNC_SECONDS, METRIC_AGE, TOLERANCE = 15, 30, 0.1

STEP = 1.0  # seconds


@dataclass(frozen=True)
class Policy:
    """What the number of replicas follows. None: not this trigger. replicas: fixed."""

    name: str
    waiting_seconds: float | None = None  # rows waiting per replica, at most, in seconds of its work
    busy: float | None = None  # share of the time that a replica's UNet is busy
    replicas: int | None = None


@dataclass
class Request:
    """A request, the rows that it still needs, and the most that it was taken to need."""

    arrived: float
    rows: float
    most_rows: float


@dataclass
class Triton:
    """One replica."""

    ready_at: float
    running: list[Request] = field(default_factory=list)
    waiting: deque[Request] = field(default_factory=deque)

    @property
    def held(self) -> int:
        """Requests at work and waiting."""
        return len(self.running) + len(self.waiting)

    @property
    def waiting_rows(self) -> float:
        """What the orchestrator counts as waiting."""
        return sum(each.most_rows for each in self.waiting)

    def take(self, request: Request) -> bool:
        """Whether the request is accepted."""
        if len(self.running) < MAX_RUNNING:
            self.running.append(request)
            return True
        rows = self.waiting_rows + request.most_rows
        if len(self.waiting) >= MAX_WAITING or (self.waiting and rows > MAX_WAITING_ROWS):
            return False
        self.waiting.append(request)
        return True

    def work(self, rows: float) -> tuple[list[Request], float]:
        """Evaluate rows, shared equally; the requests that are done, and how many rows there were to evaluate."""
        done, most = [], rows
        while rows > 1e-9 and self.running:
            least = min(each.rows for each in self.running)
            each_gets = min(least, rows / len(self.running))
            for request in self.running:
                request.rows -= each_gets
            rows -= each_gets * len(self.running)
            done += [each for each in self.running if each.rows <= 1e-9]
            self.running = [each for each in self.running if each.rows > 1e-9]
            while self.waiting and len(self.running) < MAX_RUNNING:
                self.running.append(self.waiting.popleft())
        return done, most - rows


@dataclass(frozen=True)
class Outcome:
    """What a policy came to."""

    finished: int
    refused: int
    seconds: Sequence[float]  # from arrival to picture, sorted
    gpu_hours: float
    changes: int  # of the number of replicas

    def quantile(self, share: float) -> float:
        """The time within which this share of the pictures was done."""
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def load_at(hours: float) -> float:
    """How many Tritons the load keeps busy."""
    for length, load in LOAD:
        if hours < length:
            return load
        hours -= length
    return 0.0


def arrivals(rows_per_second: float, seed: int) -> Iterator[Request]:
    """Every request in turn."""
    draw = random.Random(seed)  # noqa: S311 - a simulation
    busiest = max(load for _, load in LOAD) * rows_per_second / MEAN_ROWS  # requests a second
    sizes, shares = [rows for rows, _ in MIX], [share for _, share in MIX]
    time = 0.0
    while (time := time + draw.expovariate(busiest)) < HOURS * 3600:
        if draw.random() * busiest < load_at(time / 3600) * rows_per_second / MEAN_ROWS:
            yield Request(time, *draw.choices(sizes, shares)[0])


class Scaler:
    """The replicas that a policy wants, as Kubernetes would set them."""

    def __init__(self, policy: Policy, rows_per_second: float) -> None:
        self._policy = policy
        self._rows_per_second = rows_per_second
        self._samples: deque[tuple[float, float, float]] = deque()  # time, rows waiting, replicas kept busy
        self._wanted: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def see(self, now: float, waiting_rows: float, busy: float) -> None:
        """Note the metrics."""
        self._samples.append((now, waiting_rows, busy))
        while self._samples[0][0] < now - METRIC_AGE - 60:
            self._samples.popleft()

    def replicas(self, now: float, current: int) -> int:
        """How many there should be."""
        if self._policy.replicas is not None:
            return self._policy.replicas
        seen = [each for each in self._samples if each[0] <= now - METRIC_AGE]
        wanted = max([MIN_REPLICAS, *self._triggers(seen, current)] if seen else [current])
        wanted = min(wanted, MAX_REPLICAS)
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - DOWN_WINDOW:
            self._wanted.popleft()
        return self._limited(now, current, wanted)

    def _triggers(self, seen: Sequence[tuple[float, float, float]], current: int) -> Iterator[int]:
        if self._policy.waiting_seconds is not None:
            yield _average(seen[-1][1], self._policy.waiting_seconds * self._rows_per_second, current)
        if self._policy.busy is not None:
            minute = [busy for time, _, busy in seen if time > seen[-1][0] - 60]
            yield _average(sum(minute) / len(minute), self._policy.busy, current)

    def _limited(self, now: float, current: int, wanted: int) -> int:
        """Up at once, by a few a minute; down only to the most that was wanted lately, one by one."""
        seconds = UP_SECONDS if wanted > current else DOWN_SECONDS
        while self._changes and self._changes[0][0] < now - max(UP_SECONDS, DOWN_SECONDS):
            self._changes.popleft()
        lately = [change for time, change in self._changes if time > now - seconds]
        if wanted > current:
            allowed = UP_PODS - sum(change for change in lately if change > 0)
            change = min(wanted - current, max(0, allowed))
        else:
            lowest = max(each for _, each in self._wanted)
            allowed = DOWN_PODS + sum(change for change in lately if change < 0)
            change = -min(max(0, current - lowest), max(0, allowed))
        if change:
            self._changes.append((now, change))
        return current + change


def _average(total: float, target: float, current: int) -> int:
    if current and abs(total / current / target - 1) <= TOLERANCE:
        return current
    return math.ceil(total / target)


def simulate(policy: Policy, *, rows_per_second: float, start_seconds: float, seed: int = 1) -> Outcome:
    """One run of all hours, and until what was accepted is done."""
    tritons = [Triton(0.0) for _ in range(policy.replicas or MIN_REPLICAS)]
    gone: list[Triton] = []
    scaler = Scaler(policy, rows_per_second)
    coming = deque(arrivals(rows_per_second, seed))
    seconds: list[float] = []
    refused = changes = 0
    spent = now = 0.0
    while coming or any(each.held for each in (*tritons, *gone)):
        while coming and coming[0].arrived <= now:
            refused += not offer(tritons, coming.popleft(), now)
        busy = 0.0
        for triton in (*tritons, *gone):
            done, worked = triton.work(rows_per_second * STEP)
            busy += worked / (rows_per_second * STEP)
            seconds += [now + STEP - request.arrived for request in done]
        scaler.see(now, sum(triton.waiting_rows for triton in (*tritons, *gone)), busy)
        spent += (len(tritons) + len(gone)) * STEP
        gone = [each for each in gone if each.held]
        if now % SYNC_SECONDS == 0:
            count = scaler.replicas(now, len(tritons))
            changes += count != len(tritons)
            while len(tritons) < count:
                tritons.append(Triton(now + start_seconds))
            while len(tritons) > count:
                gone.append(tritons.pop())
        now += STEP
    return Outcome(len(seconds), refused, sorted(seconds), spent / 3600, changes)


def offer(tritons: Sequence[Triton], request: Request, now: float) -> bool:
    """Whether one of the Tritons takes the request, the one with the fewest first."""
    ready = sorted((each for each in tritons if each.ready_at <= now), key=lambda each: each.held)
    return any(each.take(request) for each in ready)


POLICIES = (
    Policy("always 2", replicas=2),
    Policy("always 8", replicas=8),
    Policy("waiting 5 s", waiting_seconds=5),
    Policy("waiting 20 s", waiting_seconds=20),
    Policy("busy 0.7", busy=0.7),
    Policy("busy 0.8", busy=0.8),
    Policy("waiting 5 s, busy 0.7", waiting_seconds=5, busy=0.7),
    Policy("waiting 5 s, busy 0.8", waiting_seconds=5, busy=0.8),
    Policy("waiting 5 s, busy 0.9", waiting_seconds=5, busy=0.9),
    Policy("waiting 20 s, busy 0.8", waiting_seconds=20, busy=0.8),
)


def table(*, rows_per_second: float, start_seconds: float) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| replicas follow | pictures | refused | p50 s | p95 s | p99 s | GPU hours | changes |"
    yield "|---|---|---|---|---|---|---|---|"
    for policy in POLICIES:
        outcome = simulate(policy, rows_per_second=rows_per_second, start_seconds=start_seconds)
        share = outcome.refused / (outcome.refused + outcome.finished)
        times = " | ".join(f"{outcome.quantile(share):.0f}" for share in (0.5, 0.95, 0.99))
        yield (
            f"| {policy.name} | {outcome.finished} | {share:.1%} | {times} "
            f"| {outcome.gpu_hours:.1f} | {outcome.changes} |"
        )


def _rate(text: str) -> float:
    return _number(text, "of at least 1", lambda value: 1 <= value < math.inf)


def _duration(text: str) -> float:
    return _number(text, "of at least 0", lambda value: 0 <= value < math.inf)


def _number(text: str, kind: str, allowed: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not allowed(value):
        raise argparse.ArgumentTypeError(f"expected a number {kind}, found {text!r}")
    return value


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows-per-second", type=_rate, default=150, help="UNet rows that one Triton evaluates")
    parser.add_argument("--start-seconds", type=_duration, default=180, help="until a new Triton is ready")
    given = parser.parse_args()
    for line in table(rows_per_second=given.rows_per_second, start_seconds=given.start_seconds):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
