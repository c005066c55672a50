"""What a verification found: checks that pass or fail, speeds, and both as a table and as JSON."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

# 2: a check may have passed: null; 3: unfinished, and server_seconds may be null; 4: a speed's subject
FORMAT = 4
REASON = 120  # characters of one in the verdict, at most
RESULTS = {True: "pass", False: "FAIL", None: "-"}


@dataclass(frozen=True)
class Check:
    """One thing that has to hold."""

    subject: str  # a network, "picture" or "repository"
    name: str
    passed: bool | None  # None: it could not be looked at, and the detail says why
    detail: str  # what was found, and what was expected
    value: float | None = None  # where it is a number


@dataclass(frozen=True)
class Speed:
    """One network at one batch size, called through gRPC by one client."""

    subject: str  # as of the network's checks: with CUDA graphs it has a name of its own
    network: str
    batch_size: int
    shape: tuple[int, ...]  # of one row of the first input
    seconds: float  # a call, from the client's side
    server_seconds: float | None  # of it the network's own time; None: not told. Both are medians of calls

    @property
    def rows_per_second(self) -> float:
        """By the client's clock."""
        return self.batch_size / self.seconds


@dataclass
class Report:
    """Everything that was found, in order."""

    facts: Mapping[str, Any]  # what was verified, and where
    checks: list[Check] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    unfinished: str | None = None  # what was being looked at when an error ended it, and the error

    @property
    def failures(self) -> list[Check]:
        """What does not hold."""
        return [check for check in self.checks if check.passed is False]

    @property
    def skipped(self) -> list[Check]:
        """What could not be looked at."""
        return [check for check in self.checks if check.passed is None]

    @property
    def passed(self) -> bool:
        """Whether all was looked at and holds."""
        return any(check.passed for check in self.checks) and not self.failures and not self.unfinished

    def verdict(self) -> str:
        """Pass or fail in one line, then a short one for each check that failed; the checks have it whole."""
        looked_at = len(self.checks) - len(self.skipped)
        told = (f"{_title(check)}: {_cut(check.detail)}" for check in self.skipped)
        skipped = f"; {len(self.skipped)} not looked at: {'; '.join(told)}" if self.skipped else ""
        if self.passed:
            return f"passed: {looked_at} checks{skipped}"
        found = f"{len(self.failures)} of {looked_at} checks"
        if self.unfinished:
            found = f"{self.unfinished}; before it {found} failed"
        return "\n  ".join([f"failed: {found}{skipped}", *_reasons(self.failures)])

    def as_json(self) -> dict[str, Any]:
        """The report's file."""
        return {
            "format": FORMAT,
            "passed": self.passed,
            "verdict": self.verdict(),
            "unfinished": self.unfinished,
            **self.facts,
            "checks": [asdict(check) for check in self.checks],
            "speeds": [{**asdict(speed), "rows_per_second": speed.rows_per_second} for speed in self.speeds],
        }

    def tables(self) -> Iterator[Table]:
        """The checks, then the speeds."""
        checks = Table("subject", "check", "result", "found", title="checks")
        for check in self.checks:
            checks.add_row(check.subject, check.name, RESULTS[check.passed], check.detail)
        yield checks
        speeds = Table("network", "row", "batch", "ms a call", "of it the network", "rows/s", title="speed, one client")
        for speed in self.speeds:
            speeds.add_row(
                speed.subject,
                "x".join(map(str, speed.shape)),
                str(speed.batch_size),
                f"{speed.seconds * 1e3:.1f}",
                "-" if speed.server_seconds is None else f"{speed.server_seconds * 1e3:.1f}",
                f"{speed.rows_per_second:.1f}",
            )
        yield speeds


def _reasons(failures: Iterable[Check]) -> Iterator[str]:
    """A line for each; a reason that several have is told once."""
    told: dict[str, str] = {}  # reason -> the first that it is told of
    for check in failures:
        first = told.setdefault(check.detail, _title(check))
        yield f"{_title(check)}: {_cut(check.detail) if first == _title(check) else f'see {first}'}"


def _title(check: Check) -> str:
    return f"{check.subject}: {check.name}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= REASON else f"{line[: REASON - 2]} …"
