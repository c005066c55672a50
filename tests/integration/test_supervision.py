"""Processes that die: the local stack stops as a whole; a gateway that runs apart outlives its Triton."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from multsd_gateway.settings import Settings
from multsd_gateway.stack.processes import SHARED_MEMORY, alive, command_line, descendants, start_child
from multsd_gateway.stack.settings import StackSettings
from multsd_gateway.stack.triton import model_processes
from multsd_gateway.stack.waiting import wait_until_ready
from tests.integration.conftest import REPOSITORY, running_triton, stack_settings
from tests.integration.requests_and_pictures import request_body


def start_stack(logs: Path, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """Start a verb of `multsd-stack` on ports of its own."""
    stack, gateway = stack_settings(logs)
    environment = {
        "MULTSD_PORT": str(gateway.port),
        "MULTSD_TRITON_HTTP_PORT": str(stack.triton_http_port),
        "MULTSD_TRITON_GRPC_PORT": str(stack.triton_grpc_port),
        "MULTSD_TRITON_METRICS_PORT": str(stack.triton_metrics_port),
        "MULTSD_REPOSITORY": str(REPOSITORY),
        "MULTSD_BACKENDS": str(stack.backends),
        "MULTSD_LOGS": str(logs),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "multsd_gateway.stack.cli", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, environment


def serve(logs: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """Start `multsd-stack serve` and wait until it says that it is ready."""
    process, environment = start_stack(logs, "serve")
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("ready:"):
            return process, environment
    raise AssertionError(f"serve ended: {lines}")


def child_named(process: subprocess.Popen[str], word: str) -> int:
    """The child whose command line holds `word`."""
    for pid in descendants(process.pid):
        if any(word in each for each in command_line(pid)):
            return pid
    raise AssertionError(word)


@pytest.mark.parametrize(
    ("victim", "status", "message"),
    [
        ("bin/tritonserver", 1, "triton was killed by SIGKILL"),
        ("multsd_gateway", 1, "gateway was killed by SIGKILL"),
        ("/unet/1/model.py", 1, "triton's process of the model unet has ended"),
        (None, 0, "stopped by SIGTERM"),
    ],
    ids=["triton dies", "gateway dies", "a model's process dies", "SIGTERM"],
)
def test_local_stack_stops_as_a_whole_and_leaves_no_process(
    tmp_path: Path, victim: str | None, status: int, message: str
) -> None:
    process, _ = serve(tmp_path)
    family = descendants(process.pid)
    assert len(family) >= 6  # Triton with a stub for each Python model, and the gateway
    if victim:
        os.kill(child_named(process, victim), signal.SIGKILL)
    else:
        process.terminate()
    _, stderr = process.communicate(timeout=90)
    assert message in stderr
    assert process.returncode == status
    assert not [pid for pid in family if alive(pid)]
    assert not list(SHARED_MEMORY.glob(f"multsd_{process.pid}_*"))


def test_proxy_of_the_environment_does_not_come_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    request, picture = tmp_path / "request.json", tmp_path / "demo.jpg"
    request.write_text(json.dumps(request_body()))
    process = start_stack(tmp_path, "demo", "--request", str(request), "--output", str(picture))[0]
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert picture.read_bytes().startswith(b"\xff\xd8")


def test_ports_in_use_are_named_with_their_setting(tmp_path: Path) -> None:
    process, environment = serve(tmp_path)
    try:
        second = subprocess.run(
            [sys.executable, "-m", "multsd_gateway.stack.cli", "serve"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        process.terminate()
        process.communicate(timeout=90)
    assert second.returncode == 1
    assert f"port {environment['MULTSD_PORT']} cannot be used" in second.stderr
    assert "MULTSD_PORT=PORT" in second.stderr


@contextmanager
def gateway_apart(settings: StackSettings, gateway: Settings, log: Path) -> Iterator[httpx.Client]:
    environment = {
        **os.environ,
        "MULTSD_PORT": str(gateway.port),
        "MULTSD_TRITON_URL": f"127.0.0.1:{settings.triton_grpc_port}",
    }
    child = start_child("gateway", [sys.executable, "-m", "multsd_gateway", "run"], environment=environment, log=log)
    try:
        wait_until_ready(child, f"http://127.0.0.1:{gateway.port}/healthz", seconds=60)
        with httpx.Client(base_url=f"http://127.0.0.1:{gateway.port}", timeout=120) as client:
            yield client
    finally:
        child.stop(20)


def test_gateway_outlives_triton_and_serves_again(tmp_path: Path) -> None:
    settings, gateway_settings = stack_settings(tmp_path)
    with gateway_apart(settings, gateway_settings, tmp_path / "gateway.log") as gateway:
        assert gateway.get("/readyz").status_code == 503
        assert gateway.post("/multsd", json=request_body()).status_code == 503

        with running_triton(settings, tmp_path / "first.log") as first:
            ready_again(gateway)
            with (
                ThreadPoolExecutor(1) as pool,
                gateway.stream("POST", "/multsd/stream", json=request_body(ddim_steps=150)) as other,
            ):
                events = other.iter_lines()
                next(line for line in events if '"step"' in line)
                plain = pool.submit(gateway.post, "/multsd", json=request_body(ddim_steps=150))
                next(line for line in events if '"step"' in line)
                os.killpg(first.process.pid, signal.SIGKILL)
                killed = time.monotonic()
                response = plain.result()
                assert time.monotonic() - killed < 5
                assert response.status_code == 503, response.text
                assert int(response.headers["Retry-After"]) > 0
                assert any(line == "event: error" for line in events)
            assert gateway.get("/readyz").status_code == 503

        with running_triton(settings, tmp_path / "second.log"):
            ready_again(gateway)
            assert gateway.post("/multsd", json=request_body()).status_code == 200


@pytest.mark.parametrize("model", ["multidiffusion", "unet"])
def test_dead_model_process_is_unavailable_until_triton_is_started_anew(tmp_path: Path, model: str) -> None:
    settings, gateway_settings = stack_settings(tmp_path)
    with gateway_apart(settings, gateway_settings, tmp_path / "gateway.log") as gateway:
        with running_triton(settings, tmp_path / "first.log") as first:
            ready_again(gateway)
            (pid,) = [pid for pid, name in model_processes(first).items() if name == model]
            os.kill(pid, signal.SIGKILL)
            response = gateway.post("/multsd", json=request_body())
            assert response.status_code == 503, response.text
            assert int(response.headers["Retry-After"]) > 0
            assert gateway.get("/readyz").json()["missing"] == [model]
            assert gateway.get("/readyz").status_code == 503

        with running_triton(settings, tmp_path / "second.log"):
            ready_again(gateway)
            assert gateway.post("/multsd", json=request_body()).status_code == 200


def test_model_process_that_dies_while_nobody_asks_for_a_picture_is_not_ready(tmp_path: Path) -> None:
    settings, gateway_settings = stack_settings(tmp_path)
    with (
        gateway_apart(settings, gateway_settings, tmp_path / "gateway.log") as gateway,
        running_triton(settings, tmp_path / "triton.log") as served,
    ):
        ready_again(gateway)
        for _ in range(20):  # the model answers probes meanwhile
            assert gateway.get("/readyz").status_code == 200
            time.sleep(0.5)
        (pid,) = [pid for pid, name in model_processes(served).items() if name == "multidiffusion"]
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while (response := gateway.get("/readyz")).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert response.json()["missing"] == ["multidiffusion"]
        time.sleep(5)
        assert gateway.get("/readyz").status_code == 503


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_during_the_start_leaves_one_sentence_and_no_process(tmp_path: Path, number: signal.Signals) -> None:
    process = start_stack(tmp_path, "serve")[0]
    assert process.stderr is not None
    assert "waiting for Triton" in process.stderr.readline()
    family = descendants(process.pid)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=90)
    assert stderr.splitlines()[-1] == f"stopped by {number.name}"
    assert "Traceback" not in stderr
    assert process.returncode == 0
    assert not [pid for pid in family if alive(pid)]


def test_interrupted_demo_ends_without_a_picture_or_a_traceback(tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(request_body(ddim_steps=190)))
    picture = tmp_path / "demo.jpg"
    process = start_stack(tmp_path, "demo", "--request", str(request), "--output", str(picture))[0]
    assert process.stderr is not None
    assert any("waiting for the gateway" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=90)
    assert "stopped by SIGINT" in stderr
    assert "Traceback" not in stderr
    assert process.returncode == 130
    assert not picture.exists()


def ready_again(gateway: httpx.Client) -> None:
    deadline = time.monotonic() + 20
    while (response := gateway.get("/readyz")).status_code != 200:
        assert time.monotonic() < deadline, response.text
        time.sleep(0.1)


FAULTY_MODEL = '''
"""The network as it was, except that it fails on pictures 640 pixels wide."""
import runner
import triton_python_backend_utils as pb_utils


class TritonPythonModel(runner.TritonPythonModel):
    def execute(self, requests):
        return [self._one(request) for request in requests]

    def _one(self, request):
        if pb_utils.get_input_tensor_by_name(request, "latent_sample").shape()[-1] == 80:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("this size fails on purpose"))
        return super().execute([request])[0]
'''


@pytest.fixture
def faulty_repository(tmp_path: Path) -> Path:
    """The suite's repository with a VAE decoder that fails on some pictures."""
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY, repository)
    version = repository / "vae_decoder" / "1"
    (version / "model.py").rename(version / "runner.py")
    (version / "model.py").write_text(FAULTY_MODEL)
    return repository


def test_network_that_fails_ends_only_the_requests_that_used_it(tmp_path: Path, faulty_repository: Path) -> None:
    settings, gateway_settings = stack_settings(tmp_path, faulty_repository)
    with (
        running_triton(settings, tmp_path / "triton.log"),
        gateway_apart(settings, gateway_settings, tmp_path / "gateway.log") as gateway,
        ThreadPoolExecutor(3) as pool,
    ):
        ready_again(gateway)
        widths = (512, 640, 520)
        replies = list(pool.map(lambda width: gateway.post("/multsd", json=request_body(width)), widths))
        assert [reply.status_code for reply in replies] == [200, 500, 200]
        assert replies[1].json()["message"] == "vae_decoder: this size fails on purpose"
        assert gateway.post("/multsd", json=request_body()).status_code == 200
