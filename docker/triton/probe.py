"""Whether the Triton of this container loads, serves or is broken: `probe.py start`, `ready`, `live` or `guard`.

Triton never starts a Python model's process again that has died, and is live all the same; up to 26.03 it even calls
itself ready. So `start` notes the processes of a server that has just become ready; `ready` and `live` fail as soon as
one of them is missing. `guard` asks what `ready` asks and kills such a server, for Docker, which starts again what has
ended and leaves alone what is unhealthy; it knows only processes that were noted. Standard library alone: it runs on
whichever Python an image has.

Exit codes: 0 yes; 1 no, with a line that says why; 2 wrong usage.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HTTP_PORT = 8000
SECONDS = 3.0
NOTE = Path("/tmp/multsd-model-processes.json")  # noqa: S108 - a memory volume of the container's own
PROCESSES = Path("/proc")
PATHS = {"start": "/v2/health/ready", "ready": "/v2/health/ready", "live": "/v2/health/live"}
GUARD = "guard"
FIRST_PROCESS = 1  # of a container: nobody inside can kill it
GONE = ("Z", "X", "T")  # zombie, dead, stopped: proc(5)


def main(arguments: Sequence[str]) -> int:
    """The exit code of one question."""
    if len(arguments) != 1 or arguments[0] not in (*PATHS, GUARD):
        sys.stderr.write(f"usage: probe.py {'|'.join((*PATHS, GUARD))}\n")
        return 2
    fault = guard() if arguments[0] == GUARD else find_fault(arguments[0])
    if fault:
        sys.stderr.write(f"{fault}\n")
    return 1 if fault else 0


def find_fault(question: str, *, port: int = HTTP_PORT, note: Path = NOTE, processes: Path = PROCESSES) -> str:
    """What is wrong, empty where nothing is. note: where the processes of a ready server are kept."""
    if fault := http_fault(port, PATHS[question]):
        return fault
    if question == "start" or (question == "ready" and not note.exists()):
        note.write_text(json.dumps(model_processes(processes)), encoding="utf-8")
    return lost_processes(note, processes)


def lost_processes(note: Path, processes: Path) -> str:
    """Of which models fewer processes run than were noted, empty where of none."""
    noted = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    return missing(noted, model_processes(processes))


def guard(*, port: int = HTTP_PORT, note: Path = NOTE, processes: Path = PROCESSES) -> str:
    """What `ready` finds wrong; a server that lives and has lost a model's process is ended."""
    fault = find_fault("ready", port=port, note=note, processes=processes)
    if fault and not http_fault(port, PATHS["live"]) and lost_processes(note, processes):
        end_server(processes)
    return fault


def end_server(processes: Path) -> None:
    """Kill Triton: asked to end, it would first wait for requests that the dead process never answers."""
    for each in filter(is_server, running(processes)):
        os.kill(each.pid, signal.SIGTERM if each.pid == FIRST_PROCESS else signal.SIGKILL)


def http_fault(port: int, path: str) -> str:
    """Why a GET on loopback is not answered with 200, empty where it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{path}: {type(error).__name__}: {error}"
    finally:
        connection.close()
    return "" if status == 200 else f"{path}: status {status}"


class Process(NamedTuple):
    """One that runs, as /proc shows it."""

    pid: int
    parent: int
    words: list[str]


def model_processes(processes: Path) -> dict[str, int]:
    """How many of Triton's own children run the code of each Python model. processes: /proc."""
    found: Counter[str] = Counter()
    everything = list(running(processes))
    servers = {each.pid for each in filter(is_server, everything)}
    for each in everything:
        if each.parent in servers:  # what a model starts itself has its command line for a moment
            found.update(Path(word).parent.parent.name for word in each.words if word.endswith("/model.py"))
    return dict(found)


def is_server(process: Process) -> bool:
    """Whether it is Triton."""
    return Path(process.words[0]).name == "tritonserver"


def running(processes: Path) -> Iterator[Process]:
    """Every process that has not ended."""
    for folder in processes.glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text(errors="replace").split("\0")
            state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if state not in GONE:
            yield Process(int(folder.name), int(parent), words)


def missing(noted: Mapping[str, int], running: Mapping[str, int]) -> str:
    """The models of which fewer processes run than were noted, empty where none."""
    gone = [
        f"{name} ({running.get(name, 0)} of {count})" for name, count in noted.items() if running.get(name, 0) < count
    ]
    return f"processes have ended: {', '.join(sorted(gone))}" if gone else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
