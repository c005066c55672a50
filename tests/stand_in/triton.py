"""The real Triton with the stand-in model, and the gateway in front of it as a process of its own."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from multsd_gateway.stack.processes import Child, start_child
from multsd_gateway.stack.triton import TritonPorts, start_triton
from multsd_gateway.stack.waiting import wait_until_ready
from tests.integration.conftest import ROOT, free_ports

CONTRACT = ROOT / "model_repository" / "multidiffusion" / "config.pbtxt"


@dataclass
class StandIn:
    """A Triton whose only model is the stand-in. Its ports stay its own: it may end and be started again."""

    folder: Path  # of its repository and its log
    seconds: float  # that a request takes
    ports: TritonPorts = field(default_factory=lambda: TritonPorts(*free_ports(3)))
    triton: Child = field(init=False)

    @property
    def grpc(self) -> str:
        """host:port of its gRPC endpoint."""
        return f"127.0.0.1:{self.ports.grpc}"

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.triton = start_triton(
            compose(self.folder / "repository", seconds=self.seconds),
            ports=self.ports,
            backends=ROOT / "build" / "backends",
            log=self.folder / "triton.log",
        )
        wait_until_ready(self.triton, f"http://127.0.0.1:{self.ports.http}/v2/health/ready", seconds=60)

    def stop(self) -> None:
        """Ask it to end, which it does when its requests are done, and wait for it."""
        self.triton.stop(20)

    @contextmanager
    def broken(self) -> Iterator[Path]:
        """Have it fail every request at once for as long as the body runs. The file has a byte for each of them."""
        file = self.folder / "repository" / "multidiffusion" / "1" / "fail"
        file.touch()
        try:
            yield file
        finally:
            file.unlink()

    def kill(self) -> None:
        """End it at once, with all processes of it."""
        os.killpg(self.triton.process.pid, signal.SIGKILL)
        self.triton.stop(0)


def compose(folder: Path, *, seconds: float) -> Path:
    """A repository in `folder`: the public contract over the stand-in, which takes `seconds` a request."""
    config = text_format.Parse(CONTRACT.read_text(), model_config_pb2.ModelConfig())
    config.parameters["seconds"].string_value = str(seconds)
    model = folder / "multidiffusion"
    (model / "1").mkdir(parents=True, exist_ok=True)
    (model / "config.pbtxt").write_text(text_format.MessageToString(config))
    for file in Path(__file__).with_name("model.py"), CONTRACT.with_name("1") / "background.py":
        shutil.copy(file, model / "1" / file.name)
    return folder


@contextmanager
def running_stand_in(folder: Path, *, seconds: float) -> Iterator[StandIn]:
    """A running stand-in on free ports of loopback, stopped on the way out."""
    stand_in = StandIn(folder, seconds)
    try:
        stand_in.start()
        yield stand_in
    finally:
        if "triton" in vars(stand_in):
            stand_in.stop()


@contextmanager
def running_gateway(
    folder: Path, triton: str, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[Child, str]]:
    """A gateway process in front of Triton, and its URL. triton: host:port, several with commas."""
    (port,) = free_ports(1)
    environment = {
        **os.environ,
        "MULTSD_PORT": str(port),
        "MULTSD_TRITON_URL": triton,
        "MULTSD_MODELS": '["multidiffusion"]',
        **(settings or {}),
    }
    command = [sys.executable, "-m", "multsd_gateway", "run"]
    child = start_child("gateway", command, environment=environment, log=folder / f"gateway-{port}.log")
    try:
        wait_until_ready(child, f"http://127.0.0.1:{port}/readyz", seconds=60)
        yield child, f"http://127.0.0.1:{port}"
    finally:
        child.stop(20)
