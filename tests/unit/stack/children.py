"""Children of this test run: small shells that end, wait, or refuse to stop."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from multsd_gateway.stack.processes import Child, start_child

DEADLINE_S = 20  # a busy machine is slow to start a process


@contextmanager
def shell(script: str, folder: Path, *, name: str = "worker", **environment: str) -> Iterator[Child]:
    """A child that runs `script`, logs into `folder`, and is gone afterwards."""
    log = folder / f"{name}.log"
    child = start_child(name, ["sh", "-c", script], environment=os.environ | environment, log=log)
    try:
        yield child
    finally:
        child.process.kill()
        child.process.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
