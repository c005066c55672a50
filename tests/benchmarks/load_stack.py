"""The real stack under load: what its processes hold, and what its networks were asked."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from multsd_gateway.settings import Settings
from multsd_gateway.stack.processes import descendants
from multsd_gateway.stack.supervisor import Stack, running_stack
from tests.integration.conftest import REPOSITORY, ROOT, stack_settings

RESULTS = ROOT / "build" / "bench"
SIMULATION = Path(__file__).with_name("simulated_unet.py")


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

    def held(self) -> dict[str, float]:
        """What must not grow with the requests that were answered."""
        return {"GiB": self.memory(), "file descriptors": self.descriptors(), "threads": self.threads()}

    def _processes(self) -> list[int]:
        children = (self.stack.triton.process.pid, self.stack.gateway.process.pid)
        return [pid for child in children for pid in (child, *descendants(child))]


@contextmanager
def running_service(repository: Path = REPOSITORY, **settings: int) -> Iterator[Service]:
    """Start Triton and the gateway on free ports; settings: the gateway's."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    stack, gateway = stack_settings(RESULTS, repository)
    own = Settings(**{**gateway.model_dump(exclude_unset=True), **settings})
    with running_stack(stack, own, report=lambda _: None) as running:
        yield Service(running, f"127.0.0.1:{stack.triton_grpc_port}")


def simulated_repository(folder: Path, seconds: Mapping[str, tuple[float, float]]) -> Path:
    """The composed repository with some networks replaced by a GPU's simulation: name -> (seconds a call, a row)."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(REPOSITORY, folder)
    for name, (fixed, row) in seconds.items():
        file = folder / name / "config.pbtxt"
        config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
        config.parameters["fixed_seconds"].string_value = str(fixed)
        config.parameters["row_seconds"].string_value = str(row)
        file.write_text(text_format.MessageToString(config))
        shutil.copyfile(SIMULATION, folder / name / "1" / "model.py")
    file = folder / "multidiffusion" / "config.pbtxt"
    config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    config.parameters["unet_calls_ahead"].string_value = "1"  # as in the profiles of GPUs
    file.write_text(text_format.MessageToString(config))
    return folder


def client(service: Service) -> httpx.Client:
    """An HTTP client of the gateway that no proxy leads astray and no limit of connections holds up."""
    transport = httpx.HTTPTransport(limits=httpx.Limits(max_connections=None))
    return httpx.Client(base_url=service.stack.url, timeout=900, transport=transport)


def _resident(pid: int) -> int:
    """KiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)
