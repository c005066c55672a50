"""Calls in processes of their own: their results, failures and ends. No sleeps: what never answers only waits."""

import os
import signal
import subprocess
import sys
from multiprocessing import active_children

import pytest

from tests.benchmarks.processes import Apart, CallError, call_apart
from tests.unit.docker.files import ROOT


def process_and(value: object) -> tuple[int, object]:
    return os.getpid(), value


def fail(text: str) -> None:
    raise ValueError(text)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(code: int) -> None:
    os._exit(code)


def wait_forever(*_: object) -> None:
    while True:
        signal.pause()


def test_a_result_comes_from_a_process_that_is_gone_then() -> None:
    process, value = call_apart(process_and, [1, 2])
    assert process != os.getpid()
    assert value == [1, 2]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_what_the_function_raises_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CallError, match=r"^ValueError: wrong$"):
        call_apart(fail, "wrong")
    assert "in fail" in capfd.readouterr().err


def test_a_process_that_is_killed_is_told() -> None:
    with pytest.raises(CallError, match="ended by signal 9"):
        call_apart(be_killed)
    with pytest.raises(CallError, match=r"ended by exit\(3\)"):
        call_apart(leave, 3)


def test_a_process_that_does_not_answer_is_ended() -> None:
    with pytest.raises(CallError, match=r"no result within 0\.1 s"):
        call_apart(wait_forever, seconds=0.1)
    assert not active_children()


def test_calls_run_at_the_same_time_and_end_with_the_block() -> None:
    with Apart(wait_forever), Apart(process_and, 1) as other:
        assert other.result()[1] == 1
    assert not active_children()


BEGIN_AND_WAIT = """
from tests.benchmarks.processes import Apart
from tests.unit.benchmarks.test_processes import process_and, wait_forever
if __name__ == "__main__":
    with Apart(process_and, 1) as answering, Apart(wait_forever) as waiting:
        print(answering.result()[1], flush=True)
        waiting.result()
"""


def test_a_process_ends_with_the_one_that_has_begun_it() -> None:
    command = [sys.executable, "-c", BEGIN_AND_WAIT]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "1\n"
        parent.kill()
        rest, _ = parent.communicate(timeout=60)  # until nobody has the pipe any more
        assert rest == ""
