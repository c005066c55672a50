"""Start Triton and the gateway, watch both, stop both."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from multsd_gateway.settings import Settings
from multsd_gateway.stack.errors import PrerequisiteError, ProcessEndedError
from multsd_gateway.stack.processes import Child, alive, start_child
from multsd_gateway.stack.settings import StackSettings
from multsd_gateway.stack.triton import LOOPBACK, check_prerequisites, model_processes, start_triton
from multsd_gateway.stack.waiting import POLL_S, check_ports_differ, check_ports_free, wait_until_ready

Report = Callable[[str], None]  # is told what the stack does and waits for


class StopRequestedError(Exception):
    """SIGINT or SIGTERM."""


class HurryError(StopRequestedError):
    """A second signal while the first is obeyed: whoever sent it does not want to wait."""


@dataclass(frozen=True)
class Stack:
    """A running Triton and gateway."""

    triton: Child
    gateway: Child
    url: str  # of the gateway
    models: Mapping[int, str]  # process id -> model, the processes inside Triton

    def check(self) -> None:
        """Raises ProcessEndedError when a process has ended, one inside Triton too."""
        for child in (self.triton, self.gateway):
            if ended := child.ended():
                raise ProcessEndedError(f"{child.name} {ended}; from {child.log}:\n{child.log_excerpt()}")
        for pid, model in self.models.items():
            if not alive(pid):
                log = self.triton.log
                raise ProcessEndedError(f"triton's process of the model {model} has ended; see {log}")

    def watch(self) -> None:
        """Return never: raises ProcessEndedError, or whatever a signal handler raises."""
        while True:
            self.check()
            time.sleep(POLL_S)


@contextmanager
def running_stack(settings: StackSettings, gateway: Settings, report: Report) -> Iterator[Stack]:
    """Start both processes, and stop both on the way out, the gateway first so that it can finish what runs.

    Raises StackError: a prerequisite, a port, or a process that ended or did not get ready.
    """
    check_repository(settings.repository)
    check_machine(settings, gateway)
    with _running_triton(settings, report) as triton, _running_gateway(settings, gateway, triton, report) as child:
        yield Stack(triton=triton, gateway=child, url=gateway_url(gateway), models=model_processes(triton))


def check_machine(settings: StackSettings, gateway: Settings) -> None:
    """Raises PrerequisiteError or PortInUseError: what would stop a start, known before anything is built."""
    check_prerequisites()
    own = {"MULTSD_PORT": gateway.port}
    tritons = {f"MULTSD_TRITON_{name.upper()}_PORT": port for name, port in vars(settings.triton_ports).items()}
    check_ports_differ({**own, **tritons})
    check_ports_free(own, gateway.host)
    check_ports_free(tritons, LOOPBACK)


def check_repository(repository: Path) -> None:
    """Raises PrerequisiteError where no whole repository has been composed; the manifest is written last."""
    if not (repository / "manifest.json").is_file():
        raise PrerequisiteError(f"{repository} holds no composed model repository; make one with `make export`")


def gateway_url(gateway: Settings) -> str:
    """Where this machine reaches the gateway."""
    host = LOOPBACK if gateway.host == "0.0.0.0" else gateway.host  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{gateway.port}" if ":" in host else f"http://{host}:{gateway.port}"


@contextmanager
def _running_triton(settings: StackSettings, report: Report) -> Iterator[Child]:
    started = time.monotonic()
    child = start_triton(
        settings.repository.resolve(),
        ports=settings.triton_ports,
        backends=settings.backends.resolve(),
        log=settings.logs / "triton.log",
    )
    with stopped_at_the_end(child, settings.stop_seconds, report):
        report(f"waiting for Triton to load the models of {settings.repository} (log: {child.log})")
        url = f"http://{LOOPBACK}:{settings.triton_http_port}/v2/health/ready"
        wait_until_ready(child, url, seconds=settings.start_seconds)
        report(f"Triton is ready after {time.monotonic() - started:.1f} s")
        yield child


@contextmanager
def _running_gateway(settings: StackSettings, gateway: Settings, triton: Child, report: Report) -> Iterator[Child]:
    environment = {
        **os.environ,
        "MULTSD_HOST": gateway.host,
        "MULTSD_PORT": str(gateway.port),
        "MULTSD_TRITON_URL": f"{LOOPBACK}:{settings.triton_grpc_port}",
        "MULTSD_TRITON_METRICS_URL": f"http://{LOOPBACK}:{settings.triton_metrics_port}/metrics",
    }
    command = [sys.executable, "-m", "multsd_gateway", "run"]
    child = start_child("gateway", command, environment=environment, log=settings.logs / "gateway.log")
    with stopped_at_the_end(child, settings.stop_seconds, report):
        report(f"waiting for the gateway (log: {child.log})")
        wait_until_ready(child, f"{gateway_url(gateway)}/readyz", seconds=settings.start_seconds, beside=triton)
        yield child


@contextmanager
def stopped_at_the_end(child: Child, seconds: float, report: Report) -> Iterator[None]:
    grace = seconds
    try:
        yield
    except HurryError:
        grace = 0.0
        raise
    finally:
        if child.ended() is None:
            report(f"stopping {child.name}" if grace else f"killing {child.name}")
        child.stop(grace)


@contextmanager
def stop_signals() -> Iterator[None]:
    """Within it SIGINT and SIGTERM raise StopRequestedError, a second one HurryError, and further ones nothing."""
    errors: list[type[StopRequestedError]] = [HurryError, StopRequestedError]

    def handler(number: int, _: FrameType | None) -> None:
        error = errors.pop()
        if not errors:
            for each in previous:
                signal.signal(each, signal.SIG_IGN)
        raise error(signal.Signals(number).name)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)
