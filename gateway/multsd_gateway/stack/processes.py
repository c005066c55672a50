"""Child processes that never outlive their parent, with their output in a log file."""

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the kernel's, by name
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ERROR_LINE = re.compile(r"^[EF]\d{4} |^error:|Error")  # Triton's errors and fatals, its last word, Python's exceptions
HARMLESS = "CudaDriverHelper has not been initialized"  # on every machine without a GPU
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Child:
    """A running child process."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    leftovers: str | None = None  # prefix of the files in /dev/shm that it cannot remove when it is killed

    def ended(self) -> str | None:
        """How the process ended, None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"

    def log_excerpt(self, lines: int = 10) -> str:
        """The last lines of its log that tell of errors, or simply the last where none does."""
        written = self.log.read_text(errors="replace").splitlines()
        text = [line for line in written if not line.startswith(("|", "+-"))]  # tables of models and options
        errors = [line for line in text if ERROR_LINE.search(line) and HARMLESS not in line]
        return "\n".join((errors or text)[-lines:])

    def stop(self, grace_s: float) -> None:
        """End it and everything that it started: SIGTERM, then SIGKILL after `grace_s` seconds.

        What a signal handler raises meanwhile ends the waiting, and is raised when all have ended.
        """
        try:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        finally:
            self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.leftovers:
            for path in SHARED_MEMORY.glob(f"{self.leftovers}*"):
                path.unlink(missing_ok=True)


def descendants(pid: int) -> list[int]:
    """Ids of the processes below `pid`, as the kernel knows them; none where it has ended."""
    try:
        children = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in _read(task / "children").split()]
    except FileNotFoundError:
        return []
    return [each for child in map(int, children) for each in (child, *descendants(child))]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not collected yet does not."""
    state = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return bool(state) and state[0] != "Z"


def command_line(pid: int) -> list[str]:
    """The words that a process was started with; none where it has ended."""
    return _read(Path(f"/proc/{pid}/cmdline")).split("\0")


def _read(path: Path) -> str:
    """A file of /proc, empty where its process has ended."""
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def start_child(
    name: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path, leftovers: str | None = None
) -> Child:
    """Start a process in a group of its own; it gets SIGTERM when the parent dies, however that happens."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(_die_with_parent, os.getpid()),
        )
    return Child(name=name, process=process, log=log, leftovers=leftovers)


def _die_with_parent(parent: int) -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGTERM)
