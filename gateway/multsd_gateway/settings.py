"""Everything that can be set, read once from the environment (`MULTSD_<NAME>`) into one frozen object."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "MULTSD_"


def _split(value: object) -> object:
    """The items of a comma-separated text; a JSON list of strings is read too."""
    if not isinstance(value, str):
        return value
    return tuple(item for part in value.strip(" []").split(",") if (item := part.strip(" \"'")))


def _endpoints(text: str) -> tuple[str, ...]:
    """Each host:port of a comma-separated text, once."""
    return tuple(dict.fromkeys(url for part in text.split(",") if (url := part.strip())))


def _require_endpoints(text: str) -> str:
    """gRPC takes any text for an address, and would look for a host of that name for ever. Raises ValueError."""
    urls = _endpoints(text)
    if not urls or any(url.startswith(("http://", "https://")) for url in urls):
        raise ValueError(f"expected host:port of Triton's gRPC endpoint, found {'a URL' if urls else 'nothing'}")
    return text


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Settings of the gateway; every limit has a default that a small machine survives."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=5000, ge=1, le=65535, description="Port to listen on.")
    grace_seconds: float = Field(
        default=30.0, ge=0, description="After SIGTERM requests at work may finish for this long."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe line to log."
    )
    log_format: Literal["text", "json"] = Field(default="text", description="Log lines as text or as JSON objects.")

    triton_url: Annotated[str, AfterValidator(_require_endpoints)] = Field(
        default="127.0.0.1:8001",
        description="host:port of Triton's gRPC endpoint; several with commas share the requests.",
    )
    triton_metrics_url: str = Field(
        "http://127.0.0.1:8002/metrics",
        description="Triton's metrics, which /metrics passes on; empty: only the gateway's own.",
    )
    triton_silence_seconds: float = Field(
        default=4.0, gt=0, description="Requests in flight fail after Triton has given no sign of life for this long."
    )
    triton_probe_seconds: float = Field(
        default=1.0, gt=0, description="How often each Triton is asked whether it is ready, and how long it may take."
    )
    triton_tls: bool = Field(default=False, description="Whether to speak TLS to Triton.")
    triton_root_certificates: Path | None = Field(
        default=None, description="PEM file of the authorities that Triton's certificate may come from; none: system's."
    )
    triton_certificate: Path | None = Field(default=None, description="PEM file of the gateway's own certificate.")
    triton_private_key: Path | None = Field(default=None, description="PEM file of that certificate's key.")
    triton_token_file: Path | None = Field(default=None, description="File with the token that is sent to Triton.")
    triton_token_header: str = Field(
        default="authorization",
        pattern="^[a-z0-9_-]+$",
        description="gRPC metadata that carries the token: authorization (as a bearer token), or another (as it is), "
        "such as triton-grpc-protocol-KEY of Triton's restricted protocols.",
    )
    models: Names = Field(
        default=(),
        description="Models that /readyz asks for; none: multidiffusion, the text encoders that it names, unet and "
        "vae_decoder.",
    )

    token_file: Path | None = Field(
        default=None,
        description="File of bearer tokens, [NAME:]TOKEN a line, read at start; "
        "a name may have several, so that one can be changed. None: everybody may ask.",
    )
    open_paths: Names = Field(
        default=("/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"),
        description="Paths that need no token.",
    )
    rate_per_minute: float = Field(
        default=60.0,
        gt=0,
        description="Requests for pictures a minute that each gateway process lets a token's name make; those that "
        "it then refuses for their bodies count too.",
    )
    rate_burst: int = Field(default=20, ge=1, description="Of those, how many may come at once.")
    cors_origins: Names = Field(
        default=(), description="Origins whose pages may call the API from a browser, such as https://example.org."
    )

    min_side: int = Field(default=64, ge=1, description="Shortest side of a picture, pixels.")
    max_side: int = Field(default=8192, ge=1, le=16383, description="Longest side of a picture, pixels.")
    max_pixels: int = Field(default=4 * 1024 * 1024, ge=1, description="Largest width * height.")
    max_regions: int = Field(default=32, ge=0, description="Most masks of a request.")
    max_steps: int = Field(default=200, ge=1, description="Most ddim_steps.")
    max_prompt_bytes: int = Field(default=10_000, ge=1, description="Longest prompt, bytes of UTF-8.")
    max_polygon_points: int = Field(default=1000, ge=3, description="Most points of a polygon.")
    max_body_bytes: int = Field(default=20_000_000, ge=1, description="Largest request body.")
    max_image_pixels: int = Field(default=4096 * 4096, ge=1, description="Largest mask image as sent, width * height.")
    max_mask_pixels: int = Field(
        default=32 * 1024 * 1024,
        ge=1,
        description="Most mask pixels of a request: as sent, and stretched to the picture.",
    )
    embed_parameters: bool = Field(
        default=True, description="Whether pictures carry their prompts, masks and parameters, for `multsd replay`."
    )
    max_embedded_bytes: int = Field(
        default=1_000_000, ge=1, le=1024 * 1024, description="Longest text of those in a picture; past it a warning."
    )

    max_uploaded_bytes: int = Field(
        default=200_000_000,
        ge=1,
        description="Most bytes of all bodies together that arrive or wait, half of them of one token's name; "
        "past it 503.",
    )
    body_seconds: float = Field(
        default=30.0, gt=0, description="Longest time for a request's head to arrive, and then for its body."
    )
    keep_alive_seconds: int = Field(
        default=620,
        ge=1,
        description="A connection without a request is kept for so long: for longer than the proxies before the "
        "gateway keep theirs, or they send requests into its end. nginx's are kept for 60 s, Google Cloud's for 600.",
    )
    request_seconds: float = Field(
        default=300.0, gt=0, description="Longest time from a request's arrival to its picture."
    )
    heartbeat_seconds: float = Field(
        default=15.0, gt=0, description="A stream of events that was silent for so long gets a comment line."
    )
    write_seconds: float = Field(
        default=30.0,
        gt=0,
        description="A client that takes nothing of its reply for so long is cut off. A proxy that holds a megabyte "
        "for a slow client takes more every ten seconds or so.",
    )
    max_running: int = Field(
        default=64,
        ge=1,
        description="Most requests at work in Triton at once, painted or waiting there, and never more than all "
        "Tritons take. Each holds up to max_mask_pixels bytes here.",
    )
    max_waiting: int = Field(
        default=32, ge=0, description="Requests that may be there beyond max_running; past it 503 at once."
    )
    max_waiting_rows: int = Field(
        default=8000,
        ge=1,
        description="UNet rows, by an upper bound, of all requests that wait, for each Triton; past it 503 before any "
        "mask is decoded. A single request may cost more when no other waits.",
    )
    image_threads: int = Field(default=2, ge=1, description="Pictures and mask sets decoded or encoded at once.")

    @property
    def triton_urls(self) -> tuple[str, ...]:
        """Each Triton's host:port."""
        return _endpoints(self.triton_url)
