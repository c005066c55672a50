"""Networks that hang and processes that die while requests are at work: who ends, who goes on, what readiness tells."""

import os
import runpy
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from multsd_gateway.stack.processes import Child, descendants
from multsd_gateway.stack.triton import model_processes
from tests.integration.conftest import REPOSITORY, ROOT, running_triton, stack_settings
from tests.integration.requests_and_pictures import request_body
from tests.integration.test_supervision import gateway_apart, ready_again

FAILING = 2  # seconds after which a UNet that fails every call is given up
SILENCE = 6  # seconds after which a network counts as hung; a call takes less than one


HANGING_MODEL = '''
"""The network as it was, but it does not return while there is a file `hang` in its folder, and fails with `fail`."""
import time
from pathlib import Path

import runner


class TritonPythonModel(runner.TritonPythonModel):
    def execute(self, requests):
        while Path(__file__).with_name("hang").exists():
            time.sleep(0.02)
        if Path(__file__).with_name("fail").exists():
            raise RuntimeError("an illegal memory access was encountered")
        return super().execute(requests)
'''


def composed(folder: Path, **parameters: str) -> Path:
    """The suite's repository with other parameters, and networks that can be made to hang or to fail."""
    repository = Path(shutil.copytree(REPOSITORY, folder / "repository"))
    for network in ("unet", "vae_decoder"):
        version = repository / network / "1"
        (version / "model.py").rename(version / "runner.py")
        (version / "model.py").write_text(HANGING_MODEL)
    file = repository / "multidiffusion" / "config.pbtxt"
    config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    file.write_text(text_format.MessageToString(config))
    return repository


@dataclass(frozen=True)
class Served:
    """A Triton of its own, and a gateway that runs apart from it."""

    triton: Child
    http_port: int  # of Triton
    gateway: httpx.Client
    repository: Path

    @contextmanager
    def hung(self, network: str) -> Iterator[None]:
        """Have a network not answer for as long as the body runs."""
        file = self.repository / network / "1" / "hang"
        file.touch()
        try:
            yield
        finally:
            file.unlink()

    def kill(self, model: str) -> None:
        """Kill the process of a model."""
        (pid,) = [pid for pid, name in model_processes(self.triton).items() if name == model]
        os.kill(pid, signal.SIGKILL)


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    repository = composed(folder, network_seconds=str(SILENCE), failing_seconds=str(FAILING))
    settings, gateway_settings = stack_settings(folder, repository)
    with (
        running_triton(settings, folder / "triton.log") as server,
        gateway_apart(settings, gateway_settings, folder / "gateway.log") as gateway,
    ):
        ready_again(gateway)
        yield Served(server, settings.triton_http_port, gateway, settings.repository)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("failures")) as running:
        yield running


@contextmanager
def under_way(gateway: httpx.Client, steps: int) -> Iterator[Iterator[str]]:
    """A request that streams, after its first step: the lines that are still to come."""
    with gateway.stream("POST", "/multsd/stream", json=request_body(ddim_steps=steps)) as response:
        lines = response.iter_lines()
        next(line for line in lines if '"step"' in line)
        yield lines


def asked(pool: ThreadPoolExecutor, gateway: httpx.Client, steps: int) -> "Future[httpx.Response]":
    return pool.submit(gateway.post, "/multsd", json=request_body(ddim_steps=steps))


def check_unavailable(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert int(response.headers["Retry-After"]) > 0


def check_ended_unavailable(lines: Iterator[str]) -> None:
    rest = list(lines)
    assert "event: error" in rest
    assert "event: result" not in rest
    assert any('"status": 503' in line or '"status":503' in line for line in rest), rest[-4:]


def test_a_unet_that_hangs_ends_its_requests_until_it_wakes(served: Served) -> None:
    gateway = served.gateway
    with ThreadPoolExecutor(11) as pool, under_way(gateway, steps=190) as lines:
        with served.hung("unet"):
            began = time.monotonic()
            plain = [asked(pool, gateway, steps=4) for _ in range(11)]  # 4 fill a call, and 8 run at a time
            check_ended_unavailable(lines)
            for each in plain:
                check_unavailable(each.result(timeout=5 * SILENCE))
            assert time.monotonic() - began < 2 * SILENCE
            answer = gateway.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["missing"] == ["unet"]
        ready_again(gateway)
        assert gateway.post("/multsd", json=request_body()).status_code == 200


def test_a_decoder_that_hangs_ends_those_that_wait_for_it_and_no_other(served: Served) -> None:
    gateway = served.gateway
    with ThreadPoolExecutor(1) as pool, under_way(gateway, steps=190) as lines:
        with served.hung("vae_decoder"):
            check_unavailable(asked(pool, gateway, steps=1).result(timeout=5 * SILENCE))
            assert gateway.get("/readyz").json()["missing"] == ["vae_decoder"]
            later = [next(line for line in lines if '"step"' in line) for _ in range(3)]
            assert len(set(later)) == 3
        ready_again(gateway)
        assert gateway.post("/multsd", json=request_body()).status_code == 200


def test_a_request_whose_network_hangs_ends_at_its_deadline(served: Served) -> None:
    """Not only when the network counts as hung."""
    with served.hung("unet"):
        began = time.monotonic()
        reply = served.gateway.post("/multsd", json=request_body(deadline_s=2))
        assert reply.status_code == 504, reply.text
        assert time.monotonic() - began < SILENCE


def ask_guard(served: Served, folder: Path) -> str:
    """What the image's health check finds wrong, which sees no process but this server's."""
    processes = folder / "proc"
    processes.mkdir(exist_ok=True)
    for pid in (served.triton.process.pid, *descendants(served.triton.process.pid)):
        if not (processes / str(pid)).is_symlink():
            (processes / str(pid)).symlink_to(f"/proc/{pid}")
    guard = runpy.run_path(str(ROOT / "docker" / "triton" / "probe.py"))["guard"]
    return str(guard(port=served.http_port, note=folder / "note", processes=processes))


@pytest.mark.parametrize("model", ["multidiffusion", "unet"])
def test_a_model_that_dies_under_requests_ends_them_soon_and_the_health_check_ends_its_server(
    tmp_path: Path, model: str
) -> None:
    with serving(tmp_path) as served, ThreadPoolExecutor(1) as pool:
        gateway = served.gateway
        assert ask_guard(served, tmp_path) == ""
        with under_way(gateway, steps=190) as lines:
            plain = asked(pool, gateway, steps=190)
            next(line for line in lines if '"step"' in line)
            served.kill(model)
            check_ended_unavailable(lines)
            check_unavailable(plain.result(timeout=30))
        answer = gateway.get("/readyz")
        assert answer.status_code == 503
        # Or every model: this Triton itself may end with a decoupled model's process.
        assert model in answer.json()["missing"]
        if served.triton.ended() is None:
            assert ask_guard(served, tmp_path)
        served.triton.process.wait(timeout=10)


def test_a_unet_that_fails_every_call_ends_the_orchestrator_for_which_the_health_check_ends_its_server(
    tmp_path: Path,
) -> None:
    """As a GPU whose context is lost does, while Triton calls itself ready."""
    with serving(tmp_path) as served:
        assert ask_guard(served, tmp_path) == ""
        (served.repository / "unet" / "1" / "fail").touch()
        reply = served.gateway.post("/multsd", json=request_body())
        assert reply.status_code == 500
        assert "unet: " in reply.json()["message"]
        ends = time.monotonic() + 30
        while "multidiffusion (0 of 1)" not in (told := ask_guard(served, tmp_path)) and served.triton.ended() is None:
            assert time.monotonic() < ends, told
            time.sleep(0.2)
        served.triton.process.wait(timeout=10)
        assert "every call of the UNet fails, the process ends" in (tmp_path / "triton.log").read_text()
