"""The real stack: a Triton server and the gateway on free loopback ports, started once for the suite.

Beside it, Tritons of their own for repositories that a test composes.
"""

import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from multsd_gateway.settings import Settings
from multsd_gateway.stack.processes import Child
from multsd_gateway.stack.settings import StackSettings
from multsd_gateway.stack.supervisor import Stack, check_repository, running_stack
from multsd_gateway.stack.triton import start_triton
from multsd_gateway.stack.waiting import wait_until_ready

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "build" / "model_repository"


def _own_ports() -> list[int]:
    """Below those that Linux gives out by default; each process of a suite has its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = list(range(11_000 + worker, 32_768, workers))
    random.shuffle(ports)
    return ports


_ports = _own_ports()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; no other test of the suite is given them before they are bound."""
    found: list[int] = []
    while len(found) < count:
        port = _ports.pop()
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


def stack_settings(logs: Path, repository: Path = REPOSITORY) -> tuple[StackSettings, Settings]:
    """Settings of a stack of its own, apart from the environment's."""
    http, grpc, metrics, gateway = free_ports(4)
    return (
        StackSettings(
            triton_http_port=http,
            triton_grpc_port=grpc,
            triton_metrics_port=metrics,
            repository=repository,
            backends=ROOT / "build" / "backends",
            logs=logs,
        ),
        Settings(host="127.0.0.1", port=gateway),
    )


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[StackSettings, Settings]:
    return stack_settings(tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="session")
def stack(settings: tuple[StackSettings, Settings]) -> Iterator[Stack]:
    """The suite's stack. `make test` composes the repository before; without it the tests fail and say so."""
    check_repository(REPOSITORY)
    with running_stack(*settings, report=lambda _: None) as running:
        yield running


@pytest.fixture(scope="session")
def gateway(stack: Stack) -> Iterator[httpx.Client]:
    """An HTTP client of the gateway."""
    with httpx.Client(base_url=stack.url, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def triton_http(stack: Stack, settings: tuple[StackSettings, Settings]) -> str:
    """host:port of the running Triton's HTTP endpoint."""
    stack.check()
    return f"127.0.0.1:{settings[0].triton_http_port}"


@pytest.fixture(scope="session")
def triton_grpc(stack: Stack, settings: tuple[StackSettings, Settings]) -> str:
    """host:port of the running Triton's gRPC endpoint."""
    stack.check()
    return f"127.0.0.1:{settings[0].triton_grpc_port}"


@contextmanager
def running_triton(settings: StackSettings, log: Path, config_name: str | None = None) -> Iterator[Child]:
    """A Triton of its own, killed at the end: how one stops is tested with `multsd-stack`."""
    child = start_triton(
        settings.repository,
        ports=settings.triton_ports,
        backends=settings.backends,
        log=log,
        config_name=config_name,
    )
    try:
        wait_until_ready(child, f"http://127.0.0.1:{settings.triton_http_port}/v2/health/ready", seconds=180)
        yield child
    finally:
        child.stop(0)


@contextmanager
def serve(repository: Path, folder: Path, config_name: str | None = None) -> Iterator[str]:
    """A Triton of its own for a repository, with its log in a folder; gives host:port of the gRPC endpoint."""
    settings, _ = stack_settings(folder, repository)
    with running_triton(settings, folder / "triton.log", config_name):
        yield f"127.0.0.1:{settings.triton_grpc_port}"
