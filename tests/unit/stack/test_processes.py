import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.stack.children import DEADLINE_S, shell, wait_for


def lives(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def pid_in(path: Path) -> int:
    """A process id that someone else writes, as a line."""
    wait_for(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def test_running_child_has_not_ended(tmp_path: Path) -> None:
    with shell("sleep 60", tmp_path) as child:
        assert child.ended() is None


@pytest.mark.parametrize("status", [0, 3])
def test_exit_is_told_with_its_status(tmp_path: Path, status: int) -> None:
    with shell(f"exit {status}", tmp_path) as child:
        child.process.wait(DEADLINE_S)
        assert child.ended() == f"exited with status {status}"


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_signal_is_told_by_its_name(tmp_path: Path, name: str) -> None:
    with shell(f"kill -{name.removeprefix('SIG')} $$", tmp_path) as child:
        child.process.wait(DEADLINE_S)
        assert child.ended() == f"was killed by {name}"


def test_both_outputs_go_to_the_log_in_a_folder_that_is_made(tmp_path: Path) -> None:
    with shell("echo $GREETING; echo bye >&2", tmp_path / "logs", GREETING="hello") as child:
        child.process.wait(DEADLINE_S)
        assert child.log.parent == tmp_path / "logs"
        assert child.log.read_text() == "hello\nbye\n"


def test_log_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "worker.log").write_text("error: of yesterday\n")
    with shell("echo today", tmp_path) as child:
        child.process.wait(DEADLINE_S)
        assert child.log_excerpt() == "today"


LOGS = [
    pytest.param("one\ntwo\nthree\n", "two\nthree", id="no error: the last lines"),
    pytest.param("error: port taken\nbye\n", "error: port taken", id="an error line"),
    pytest.param("I1124 up\nE1124 no model\nW1124 slow\nI1124 down\n", "E1124 no model", id="the server's errors"),
    pytest.param("start\nRuntimeError: no\nend\n", "RuntimeError: no", id="an exception"),
    pytest.param("E0101 1\nE0101 2\nEven so\nF0101 3\n", "E0101 2\nF0101 3", id="the last errors"),
    pytest.param("", "", id="nothing"),
]


@pytest.mark.parametrize(("text", "excerpt"), LOGS)
def test_excerpt_of_a_log_is_what_tells_of_errors(tmp_path: Path, text: str, excerpt: str) -> None:
    with shell("exit", tmp_path) as child:
        child.process.wait(DEADLINE_S)
        child.log.write_text(text)
        assert child.log_excerpt(lines=2) == excerpt


def test_log_that_is_not_utf8_is_read_all_the_same(tmp_path: Path) -> None:
    with shell("exit", tmp_path) as child:
        child.process.wait(DEADLINE_S)
        child.log.write_bytes(b"error: \xff\n")
        assert child.log_excerpt() == "error: \N{REPLACEMENT CHARACTER}"


def test_stop_lets_a_child_end_by_itself(tmp_path: Path) -> None:
    with shell("trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.01; done", tmp_path) as child:
        wait_for(lambda: child.log.read_text() == "ready\n")
        child.stop(DEADLINE_S)
        assert child.ended() == "exited with status 5"
        assert child.log.read_text() == "ready\nbye\n"


def test_stop_kills_a_child_that_ignores_sigterm(tmp_path: Path) -> None:
    with shell("trap '' TERM; echo ready; while :; do sleep 0.01; done", tmp_path) as child:
        wait_for(lambda: child.log.read_text() == "ready\n")
        started = time.monotonic()
        child.stop(0.2)
        assert time.monotonic() - started >= 0.2
        assert child.ended() == "was killed by SIGKILL"


def test_stop_ends_what_the_child_has_started(tmp_path: Path) -> None:
    with shell("sleep 60 & echo $! > $PID_FILE; exec sleep 60", tmp_path, PID_FILE=str(tmp_path / "pid")) as child:
        grandchild = pid_in(tmp_path / "pid")
        child.stop(DEADLINE_S)
        wait_for(lambda: not lives(grandchild))
        assert child.ended() == "was killed by SIGTERM"


def test_stop_of_an_ended_child_does_nothing(tmp_path: Path) -> None:
    with shell("exit 3", tmp_path) as child:
        child.process.wait(DEADLINE_S)
        child.stop(DEADLINE_S)
        assert child.ended() == "exited with status 3"


PARENT = """
import os, sys, time
from pathlib import Path
from multsd_gateway.stack.processes import start_child

folder = Path(sys.argv[1])
child = start_child("worker", ["sleep", "60"], environment=os.environ, log=folder / "log")
(folder / "pid").write_text(f"{child.process.pid}\\n")
time.sleep(60)
"""


def test_child_dies_with_its_parent_even_when_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    try:
        child = pid_in(tmp_path / "pid")
        assert lives(child)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not lives(child))
    assert not lives(child)
