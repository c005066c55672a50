"""Whether the Triton of this container loads, serves or is broken: `probe.py start`, `ready` or `live`.

Triton still calls a Python model ready whose process has died, and never starts it again. So `start` notes the
processes of a server that has just become ready; `ready` and `live` fail as soon as one of them is missing. Standard
library alone: it runs on whichever Python an image has.

Exit codes: 0 yes; 1 no, with a line that says why; 2 wrong usage.
"""

from __future__ import annotations

import http.client
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

HTTP_PORT = 8000
SECONDS = 3.0
NOTE = Path("/tmp/multsd-model-processes.json")  # noqa: S108 - a memory volume of the container's own
PROCESSES = Path("/proc")
PATHS = {"start": "/v2/health/ready", "ready": "/v2/health/ready", "live": "/v2/health/live"}
GONE = ("Z", "X", "T")  # zombie, dead, stopped: proc(5)


def main(arguments: Sequence[str]) -> int:
    """The exit code of one question."""
    if len(arguments) != 1 or arguments[0] not in PATHS:
        sys.stderr.write(f"usage: probe.py {'|'.join(PATHS)}\n")
        return 2
    fault = find_fault(arguments[0])
    if fault:
        sys.stderr.write(f"{fault}\n")
    return 1 if fault else 0


def find_fault(question: str, *, port: int = HTTP_PORT, note: Path = NOTE, processes: Path = PROCESSES) -> str:
    """What is wrong, empty where nothing is. note: where the processes of a ready server are kept."""
    if fault := http_fault(port, PATHS[question]):
        return fault
    running = model_processes(processes)
    if question == "start" or (question == "ready" and not note.exists()):
        note.write_text(json.dumps(running), encoding="utf-8")
    noted = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    return missing(noted, running)


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


def model_processes(processes: Path) -> dict[str, int]:
    """How many processes run the code of each Python model. processes: /proc."""
    found: Counter[str] = Counter()
    for folder in processes.glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text(errors="replace").split("\0")
            state = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except (OSError, IndexError):  # it ended meanwhile
            continue
        if state not in GONE:
            found.update(Path(word).parent.parent.name for word in words if word.endswith("/model.py"))
    return dict(found)


def missing(noted: Mapping[str, int], running: Mapping[str, int]) -> str:
    """The models of which fewer processes run than were noted, empty where none."""
    gone = [
        f"{name} ({running.get(name, 0)} of {count})" for name, count in noted.items() if running.get(name, 0) < count
    ]
    return f"processes have ended: {', '.join(sorted(gone))}" if gone else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
