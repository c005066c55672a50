"""Serve a rehearsed repository on a real Triton and paint one small picture: `make rehearse FAMILY=sd15`.

A row for the rehearsal's table goes to standard output and to its `table.md`.
"""

import argparse
import re
import sys
import time
from pathlib import Path

import httpx

from multsd_gateway.stack.supervisor import Stack, running_stack
from tests.integration.conftest import stack_settings
from tests.integration.requests_and_pictures import picture, request_body

GIB = 2**30
STEPS = 2
SIDE = 512  # pixels


def main() -> None:
    """Command line: the rehearsal's folder."""
    parser = argparse.ArgumentParser(description="Serve a rehearsed repository and paint one small picture.")
    parser.add_argument("folder", type=Path, help="such as build/rehearsal/sd15")
    folder = parser.parse_args().folder
    stack, gateway = stack_settings(folder / "logs", folder / "model_repository_fp32")
    with running_stack(stack, gateway, report=lambda line: print(line, file=sys.stderr)) as running:  # noqa: T201
        row = painted_row(running)
    with (folder / "table.md").open("a", encoding="utf-8") as table:
        table.write(row)
    print(row, end="")  # noqa: T201


def painted_row(stack: Stack) -> str:
    """Paint one picture of noise, look at its size, and say what it took."""
    body = request_body(SIDE, SIDE, ddim_steps=STEPS, bootstrapping=0, regions=0)
    started = time.monotonic()
    reply = httpx.post(f"{stack.url}/multsd", json=body, timeout=600, trust_env=False).raise_for_status().json()
    seconds = time.monotonic() - started
    if picture(reply).shape != (SIDE, SIDE, 3):
        raise SystemExit(f"rehearsal: the picture is {picture(reply).shape}, expected {(SIDE, SIDE, 3)}")
    peak = sum(peak_bytes(pid) for pid in stack.models)
    return (
        f"| served: {SIDE}x{SIDE}, {STEPS} steps, {reply['unet_rows']} UNet rows | fp32 |  | "
        f"{peak / GIB:.2f} GiB | {seconds:.0f} s |  |  |  |\n"
    )


def peak_bytes(pid: int) -> int:
    """The largest resident memory of a running process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
