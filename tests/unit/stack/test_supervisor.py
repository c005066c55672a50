import os
import signal
from pathlib import Path

import pytest

from multsd_gateway.settings import Settings
from multsd_gateway.stack.errors import PrerequisiteError, ProcessEndedError
from multsd_gateway.stack.settings import StackSettings
from multsd_gateway.stack.supervisor import (
    HurryError,
    Stack,
    StopRequestedError,
    check_repository,
    gateway_url,
    running_stack,
    stop_signals,
    stopped_at_the_end,
)
from tests.unit.stack.children import shell, wait_for


def test_stack_of_two_running_processes_is_well(tmp_path: Path) -> None:
    with shell("sleep 60", tmp_path, name="triton") as triton, shell("sleep 60", tmp_path, name="gateway") as gateway:
        Stack(triton, gateway, "http://localhost", models={}).check()
        assert (triton.ended(), gateway.ended()) == (None, None)


@pytest.mark.parametrize("ended", ["triton", "gateway"])
def test_watching_ends_when_either_process_does_and_tells_why(tmp_path: Path, ended: str) -> None:
    scripts = {"triton": "sleep 60", "gateway": "sleep 60"} | {ended: "echo error: out of memory; exit 2"}
    with (
        shell(scripts["triton"], tmp_path, name="triton") as triton,
        shell(scripts["gateway"], tmp_path, name="gateway") as gateway,
        pytest.raises(ProcessEndedError) as failure,
    ):
        Stack(triton, gateway, "http://localhost", models={}).watch()
    log = tmp_path / f"{ended}.log"
    assert str(failure.value) == f"{ended} exited with status 2; from {log}:\nerror: out of memory"


def test_repository_without_a_manifest_is_told_with_the_command_that_makes_one(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    with pytest.raises(PrerequisiteError, match=f"{tmp_path} holds no composed model repository; .* `make export`"):
        check_repository(tmp_path)


def test_nothing_is_started_without_a_repository(tmp_path: Path) -> None:
    told: list[str] = []
    settings = StackSettings(repository=tmp_path / "none", logs=tmp_path / "logs")
    with pytest.raises(PrerequisiteError), running_stack(settings, Settings(), told.append):
        pass
    assert told == []
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(("host", "reached"), [("0.0.0.0", "127.0.0.1"), ("192.0.2.7", "192.0.2.7")])  # noqa: S104
def test_gateway_is_reached_where_it_listens(host: str, reached: str) -> None:
    assert gateway_url(Settings(host=host, port=5000)) == f"http://{reached}:5000"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_a_second_to_hurry_and_all_is_as_before_afterwards(number: signal.Signals) -> None:
    former = signal.getsignal(number)
    with stop_signals():
        with pytest.raises(StopRequestedError, match=number.name):
            os.kill(os.getpid(), number)
        with pytest.raises(HurryError, match=number.name):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the third one disturbs nobody
        assert signal.getsignal(number) is signal.SIG_IGN
    assert signal.getsignal(number) is former


def test_a_second_signal_kills_what_the_first_waits_for(tmp_path: Path) -> None:
    script = "trap '%s' TERM; echo ready; while :; do sleep 0.01; done"
    told: list[str] = []
    with (
        shell(script % "", tmp_path, name="outer") as outer,
        shell(script % "kill -INT $PPID", tmp_path, name="inner") as inner,  # the second, as soon as it is asked to end
    ):
        for child in (outer, inner):
            wait_for(lambda log=child.log: log.read_text() == "ready\n")  # type: ignore[misc]
        with (
            stop_signals(),
            pytest.raises(HurryError),
            stopped_at_the_end(outer, 60, told.append),
            stopped_at_the_end(inner, 60, told.append),
        ):
            os.kill(os.getpid(), signal.SIGINT)
        assert (outer.ended(), inner.ended()) == ("was killed by SIGKILL", "was killed by SIGKILL")
    assert told == ["stopping inner", "killing outer"]


def test_ended_process_of_a_model_is_told_by_the_models_name(tmp_path: Path) -> None:
    with shell("sleep 60", tmp_path) as triton, shell("sleep 60", tmp_path) as gateway:
        stack = Stack(triton, gateway, "http://localhost", models={2**22 + 1: "unet"})  # above the kernel's largest id
        with pytest.raises(ProcessEndedError, match="triton's process of the model unet has ended"):
            stack.check()
