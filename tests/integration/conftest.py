"""The real stack: a Triton server and the gateway on free loopback ports, started once for the suite.

Beside it, Tritons of their own for repositories that a test composes.
"""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from multsd_gateway.settings import Settings
from multsd_gateway.stack.settings import StackSettings
from multsd_gateway.stack.supervisor import Stack, check_repository, running_stack
from multsd_gateway.stack.triton import start_triton
from multsd_gateway.stack.waiting import wait_until_ready

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "build" / "model_repository"
Serve = Callable[[Path, Path], AbstractContextManager[str]]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held at once, so they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


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


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Serves a repository, with its log in a folder; gives host:port of the gRPC endpoint.

    A Triton takes seconds to stop. It does so while the module's next test runs; at the end all have stopped.
    """
    stops: list[Future[None]] = []
    with ThreadPoolExecutor() as executor:

        @contextmanager
        def served(repository: Path, folder: Path) -> Iterator[str]:
            settings, _ = stack_settings(folder, repository)
            log = folder / "triton.log"
            child = start_triton(repository, ports=settings.triton_ports, backends=settings.backends, log=log)
            try:
                wait_until_ready(child, f"http://127.0.0.1:{settings.triton_http_port}/v2/health/ready", seconds=180)
                yield f"127.0.0.1:{settings.triton_grpc_port}"
            finally:
                stops.append(executor.submit(child.stop, 40))

        yield served
    for stop in stops:
        stop.result()
