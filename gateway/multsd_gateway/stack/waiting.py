"""Ports and readiness."""

import socket
import time
from collections.abc import Mapping

import httpx

from multsd_gateway.stack.errors import PortInUseError, StartError
from multsd_gateway.stack.processes import Child

POLL_S = 0.1  # between two looks at a process that is starting


def check_ports_free(ports: Mapping[str, int], host: str) -> None:
    """Raises PortInUseError for the first port that is taken; `ports` maps the setting's name to the port."""
    for setting, port in ports.items():
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise PortInUseError(
                    f"port {port} cannot be used ({error.strerror}); choose another with {setting}=PORT"
                ) from error


def check_ports_differ(ports: Mapping[str, int]) -> None:
    """Raises PortInUseError where two settings name one port."""
    settings = {port: setting for setting, port in ports.items()}
    for setting, port in ports.items():
        if settings[port] != setting:
            raise PortInUseError(f"{setting} and {settings[port]} are both {port}; choose another for one of them")


def answers(url: str) -> bool:
    """Whether a GET is answered with success."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success  # no proxy leads to this machine
    except httpx.TransportError:
        return False


def wait_until_ready(child: Child, url: str, *, seconds: float, beside: Child | None = None) -> None:
    """Wait until `url` answers with success.

    beside: another process that has to live meanwhile.

    Raises StartError when a process ends first or time is up.
    """
    deadline = time.monotonic() + seconds
    while not answers(url):
        for each in filter(None, (child, beside)):
            if ended := each.ended():
                raise StartError(f"{each.name} {ended} while starting; from {each.log}:\n{each.log_excerpt()}")
        if time.monotonic() > deadline:
            raise StartError(f"{child.name} was not ready after {seconds:g} s; see {child.log}")
        time.sleep(POLL_S)
