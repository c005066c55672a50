"""The Tritons that the settings name, as one Painter."""

from __future__ import annotations

from multsd_client.headers import header_value
from multsd_gateway.balancing import BalancedPainter, Endpoint
from multsd_gateway.inference import Access, TritonPainter
from multsd_gateway.settings import Settings

AUTHORIZATION = "authorization"


def connect(settings: Settings) -> BalancedPainter:
    """A painter over every endpoint.

    Raises OSError where a file that the settings name cannot be read, ValueError for a token that no header can carry.
    """
    access = triton_access(settings)
    endpoints = [
        Endpoint(url, TritonPainter(url, silence_seconds=settings.triton_silence_seconds, access=access))
        for url in settings.triton_urls
    ]
    return BalancedPainter(endpoints, models=settings.models, probe_seconds=settings.triton_probe_seconds)


def triton_access(settings: Settings) -> Access:
    """TLS and token as the settings have them. Raises OSError, ValueError."""
    headers = {}
    if settings.triton_token_file is not None:
        token = header_value(settings.triton_token_file.read_text(encoding="utf-8"), "triton_token_file")
        header = settings.triton_token_header
        headers[header] = f"Bearer {token}" if header == AUTHORIZATION else token
    certificates = (settings.triton_root_certificates, settings.triton_certificate, settings.triton_private_key)
    for path in certificates:
        if path is not None:
            path.read_bytes()  # now, and not at the first request
    root, certificate, key = (None if path is None else str(path) for path in certificates)
    return Access(
        tls=settings.triton_tls, root_certificates=root, certificate=certificate, private_key=key, headers=headers
    )
