"""Run a command in a process of its own and measure it.

Linux counts the memory that the parent had when it started the child to the child's peak: the parent has to be small,
and so imports no torch.
"""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from multsd_export.errors import ExportError


@dataclass(frozen=True)
class Measured:
    """What a step took."""

    seconds: float
    peak_bytes: int  # largest resident memory


def run_measured(command: Sequence[str]) -> Measured:
    """Run to the end.

    Raises:
        ExportError: the command failed; its own output says why.
    """
    started = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ExportError(f"{' '.join(command)}: exit code {process.returncode}.")
    return Measured(time.monotonic() - started, usage.ru_maxrss * 1024)
