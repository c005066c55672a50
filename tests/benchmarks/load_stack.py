"""The real stack under load: what its processes hold, and what its networks were asked."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import httpx
import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import model_config_pb2

from multsd_gateway.settings import PREFIX
from multsd_gateway.stack.processes import descendants
from multsd_gateway.stack.supervisor import Stack, running_stack
from tests.integration.conftest import REPOSITORY, ROOT, stack_settings

RESULTS = ROOT / "build" / "bench"
SIMULATION = Path(__file__).with_name("simulated_unet.py")
# What counts requests while they are there: 0 when nobody is.
GAUGES = (
    "multsd_gateway_requests_in_flight",
    "multsd_gateway_triton_in_flight",
    "multsd_running_requests",
    "multsd_waiting_requests",
    "multsd_waiting_rows",
)
TASKS = ("multsd_gateway_tasks", "multsd_tasks")
IDLE_SECONDS = 60.0


@dataclass(frozen=True)
class Service:
    """A running stack."""

    stack: Stack
    grpc: str

    def unet_counts(self) -> tuple[int, int, float]:
        """Rows, executions and seconds of the UNet since the start, by Triton's own statistics."""
        with grpcclient.InferenceServerClient(self.grpc) as client:
            stats = client.get_inference_statistics("unet").model_stats[0]
        return stats.inference_count, stats.execution_count, stats.inference_stats.compute_infer.ns / 1e9

    def memory(self) -> float:
        """GiB that all processes hold, shared memory counted in each."""
        return sum(_resident(pid) for pid in self._processes()) / 2**20

    def descriptors(self) -> int:
        """Open file descriptors of all processes."""
        return sum(len(list(Path(f"/proc/{pid}/fd").glob("*"))) for pid in self._processes())

    def threads(self) -> int:
        """Threads of all processes."""
        return sum(len(list(Path(f"/proc/{pid}/task").glob("*"))) for pid in self._processes())

    def tasks(self) -> float:
        """Tasks of the gateway's event loop and of the model's, by their own metrics."""
        text = self._metrics()
        return sum(sample_sum(text, name) for name in TASKS)

    def held(self) -> dict[str, float]:
        """What must not grow with the requests that were answered."""
        return {
            "GiB": self.memory(),
            "file descriptors": self.descriptors(),
            "threads": self.threads(),
            "tasks": self.tasks(),
        }

    def gauges(self) -> dict[str, float]:
        """How many requests are where, by the gateway's and the model's own metrics."""
        text = self._metrics()
        return {name: sample_sum(text, name) for name in GAUGES}

    def idle_gauges(self) -> dict[str, float]:
        """The same as soon as all are 0, or after a minute as they are."""
        ends = time.monotonic() + IDLE_SECONDS
        while any((gauges := self.gauges()).values()) and time.monotonic() < ends:
            time.sleep(0.1)
        return gauges

    def refused_by_model(self) -> float:
        """Requests that the model itself did not let in, since the start."""
        return sample_sum(self._metrics(), "multsd_requests_rejected_total")

    def padded_rows(self) -> float:
        """Rows of the UNet's calls since the start that nobody wanted."""
        return sample_sum(self._metrics(), "multsd_unet_rows_padded_total")

    def _metrics(self) -> str:
        return httpx.get(f"{self.stack.url}/metrics", timeout=30, trust_env=False).raise_for_status().text

    def _processes(self) -> list[int]:
        children = (self.stack.triton.process.pid, self.stack.gateway.process.pid)
        return [pid for child in children for pid in (child, *descendants(child))]


@contextmanager
def running_service(repository: Path = REPOSITORY, **settings: int) -> Iterator[Service]:
    """Start Triton and the gateway on free ports; settings: the gateway's, which reads them from its environment."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    stack, gateway = stack_settings(RESULTS, repository)
    environment = {f"{PREFIX}{name.upper()}": str(value) for name, value in settings.items()}
    with patch.dict(os.environ, environment), running_stack(stack, gateway, report=lambda _: None) as running:
        yield Service(running, f"127.0.0.1:{stack.triton_grpc_port}")


def simulated_repository(
    folder: Path, seconds: Mapping[str, tuple[float, float]], *, source: Path = REPOSITORY
) -> Path:
    """A composed repository with some networks replaced by a GPU's simulation: name -> (seconds a call, a row)."""
    changed_repository(folder, source=source, unet_calls_ahead="1")  # as in the profiles of GPUs
    for name, (fixed, row) in seconds.items():
        _set_parameters(folder / name / "config.pbtxt", fixed_seconds=str(fixed), row_seconds=str(row))
        shutil.copyfile(SIMULATION, folder / name / "1" / "model.py")
    return folder


def changed_repository(folder: Path, *, source: Path = REPOSITORY, **parameters: str) -> Path:
    """A composed repository with other parameters of the orchestrator."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    _set_parameters(folder / "multidiffusion" / "config.pbtxt", **parameters)
    return folder


def _set_parameters(file: Path, **parameters: str) -> None:
    config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    file.write_text(text_format.MessageToString(config))


def client(service: Service) -> httpx.AsyncClient:
    """An HTTP client of the gateway that no proxy leads astray and no limit of connections holds up."""
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None))
    return httpx.AsyncClient(base_url=service.stack.url, timeout=900, transport=transport)


def sample_sum(text: str, name: str) -> float:
    """The sum of a metric's samples in Prometheus's text format, but for those of who asks for it.

    Raises KeyError where there is none.
    """
    samples = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.labels.get("path") != "/metrics"
    ]
    if not samples:
        raise KeyError(name)
    return float(sum(samples))


def _resident(pid: int) -> int:
    """KiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)
