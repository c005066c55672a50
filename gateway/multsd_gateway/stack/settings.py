"""Settings of the local stack, from the environment (`MULTSD_<NAME>`)."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from multsd_gateway.stack.triton import TritonPorts

BUILD = Path("build")


class StackSettings(BaseSettings):
    """Ports of Triton, and where the stack finds and leaves its files."""

    model_config = SettingsConfigDict(env_prefix="MULTSD_", frozen=True, extra="ignore")

    triton_http_port: int = Field(8000, ge=1, le=65535, description="Triton's HTTP port on loopback.")
    triton_grpc_port: int = Field(8001, ge=1, le=65535, description="Triton's gRPC port on loopback.")
    triton_metrics_port: int = Field(8002, ge=1, le=65535, description="Triton's metrics port on loopback.")
    repository: Path = Field(BUILD / "model_repository", description="The composed model repository to serve.")
    backends: Path = Field(BUILD / "backends", description="Where Triton's backend directory is put together.")
    logs: Path = Field(BUILD / "logs", description="Folder of triton.log and gateway.log.")
    start_seconds: float = Field(180, gt=0, description="Longest time for each process to get ready.")
    stop_seconds: float = Field(40, gt=0, description="Longest time for each process to end by itself.")

    @property
    def triton_ports(self) -> TritonPorts:
        """Triton's three ports."""
        return TritonPorts(self.triton_http_port, self.triton_grpc_port, self.triton_metrics_port)
