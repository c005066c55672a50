"""Everything that can be set, read once from the environment (`MULTSD_<NAME>`) into one frozen object."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of the gateway; every limit has a default that a small machine survives."""

    model_config = SettingsConfigDict(env_prefix="MULTSD_", frozen=True, extra="ignore")

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=5000, ge=1, le=65535, description="Port to listen on.")
    log_level: str = Field(
        default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least severe line to log."
    )

    triton_url: str = Field(default="127.0.0.1:8001", description="host:port of Triton's gRPC endpoint.")
    triton_metrics_url: str = Field(
        "http://127.0.0.1:8002/metrics", description="Triton's metrics, which /metrics passes on."
    )
    triton_silence_seconds: float = Field(
        default=4.0, gt=0, description="Requests in flight fail after Triton has given no sign of life for this long."
    )
    models: tuple[str, ...] = Field(
        default=("multidiffusion", "text_encoder", "unet", "vae_decoder"), description="Models that /readyz asks for."
    )

    min_side: int = Field(default=64, ge=1, description="Shortest side of a picture, pixels.")
    max_side: int = Field(default=8192, ge=1, le=16383, description="Longest side of a picture, pixels.")
    max_pixels: int = Field(default=4 * 1024 * 1024, ge=1, description="Largest width * height.")
    max_regions: int = Field(default=32, ge=0, description="Most masks of a request.")
    max_steps: int = Field(default=200, ge=1, description="Most ddim_steps.")
    max_prompt_characters: int = Field(default=4000, ge=1, description="Longest prompt.")
    max_body_bytes: int = Field(default=20_000_000, ge=1, description="Largest request body.")
    max_image_pixels: int = Field(default=4096 * 4096, ge=1, description="Largest mask image as sent, width * height.")
    max_mask_pixels: int = Field(
        default=32 * 1024 * 1024,
        ge=1,
        description="Most mask pixels of a request: as sent, and stretched to the picture.",
    )

    max_uploaded_bytes: int = Field(
        default=200_000_000, ge=1, description="Most bytes of all bodies together that arrive or wait; past it 503."
    )
    body_seconds: float = Field(default=30.0, gt=0, description="Longest time for a body to arrive.")
    request_seconds: float = Field(
        default=300.0, gt=0, description="Longest time from a request's arrival to its picture."
    )
    max_running: int = Field(default=8, ge=1, description="Requests at work in Triton at once.")
    max_waiting: int = Field(default=32, ge=0, description="Requests that may wait for those; past it 503 at once.")
    image_threads: int = Field(default=2, ge=1, description="Pictures and mask sets decoded or encoded at once.")
