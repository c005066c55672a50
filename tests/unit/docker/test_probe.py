"""The probe of the Triton image: loading, ready, live, a model process that has died, and what `guard` then ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from tests.unit.docker.files import DOCKER, ROOT, last, stages

PROBE = DOCKER / "triton" / "probe.py"


@pytest.fixture(scope="module")
def probe() -> Any:
    """The script as a module."""
    spec = spec_from_file_location("probe", PROBE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def server(answers: dict[str, int]) -> Iterator[int]:
    """A server with a status for each path; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.get(self.path, 404))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield running.server_address[1]
        finally:
            running.shutdown()
            thread.join()


def process(folder: Path, pid: int, words: list[str], state: str = "S", parent: int = 1) -> None:
    """A process as /proc shows it."""
    own = folder / str(pid)
    own.mkdir(parents=True, exist_ok=True)
    (own / "cmdline").write_text("\0".join([*words, ""]))
    (own / "stat").write_text(f"{pid} (a (b) c) {state} {parent} 1")


STUB = "/opt/tritonserver/backends/python/triton_python_backend_stub"
READY = {"/v2/health/ready": 200, "/v2/health/live": 200}
LOADING = {"/v2/health/ready": 400, "/v2/health/live": 200}


def serve(folder: Path, pid: int) -> Path:
    """Triton with this process id, one process of multidiffusion and two of unet, in a folder as /proc; returns it."""
    process(folder, pid, ["/opt/tritonserver/bin/tritonserver", "--model-repository=/models/repository"], parent=0)
    for child, model in ((20, "multidiffusion"), (21, "unet"), (22, "unet")):
        words = [STUB, f"/models/repository/{model}/1/model.py", "triton_python_backend_shm"]
        process(folder, child, words, parent=pid)
    return folder


@pytest.fixture
def processes(tmp_path: Path) -> Path:
    """A container's: its first is Triton."""
    return serve(tmp_path / "proc", pid=1)


def test_model_processes_are_counted_by_model(probe: Any, processes: Path) -> None:
    assert probe.model_processes(processes) == {"multidiffusion": 1, "unet": 2}


def test_what_a_model_starts_is_no_process_of_the_model(probe: Any, processes: Path) -> None:
    process(processes, 23, [STUB, "/models/repository/unet/1/model.py"], parent=22)
    assert probe.model_processes(processes) == {"multidiffusion": 1, "unet": 2}


@pytest.mark.parametrize("state", ["Z", "X", "T"])
def test_a_process_that_has_ended_or_is_stopped_does_not_count(probe: Any, processes: Path, state: str) -> None:
    process(processes, 22, [STUB, "/models/repository/unet/1/model.py"], state)
    assert probe.model_processes(processes) == {"multidiffusion": 1, "unet": 1}


def test_a_loading_server_is_live_and_not_ready(probe: Any, processes: Path, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with server(LOADING) as port:
        for question in ("start", "ready"):
            fault = probe.find_fault(question, port=port, note=note, processes=processes)
            assert fault == "/v2/health/ready: status 400"
        assert probe.find_fault("live", port=port, note=note, processes=processes) == ""
    assert not note.exists()


def test_a_ready_server_is_ready_until_a_model_process_dies(probe: Any, processes: Path, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with server(READY) as port:
        for question in ("start", "ready", "live"):
            assert probe.find_fault(question, port=port, note=note, processes=processes) == ""
        (processes / "20" / "cmdline").write_text("")
        for question in ("ready", "live"):
            fault = probe.find_fault(question, port=port, note=note, processes=processes)
            assert fault == "processes have ended: multidiffusion (0 of 1)"


def test_a_new_start_notes_anew(probe: Any, processes: Path, tmp_path: Path) -> None:
    """A memory volume outlives a container that is restarted, with what an earlier server had noted."""
    note = tmp_path / "note"
    note.write_text('{"gone": 3}')
    with server(READY) as port:
        assert probe.find_fault("live", port=port, note=note, processes=processes).startswith("processes have ended")
        assert probe.find_fault("start", port=port, note=note, processes=processes) == ""
        assert probe.find_fault("live", port=port, note=note, processes=processes) == ""


def test_ready_alone_notes_too(probe: Any, processes: Path, tmp_path: Path) -> None:
    """A health check of Docker has no start of its own."""
    note = tmp_path / "note"
    with server(READY) as port:
        assert probe.find_fault("ready", port=port, note=note, processes=processes) == ""
    assert note.exists()


@pytest.fixture
def sent(probe: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The signals that are sent, each with its process; they arrive nowhere."""
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(probe.os, "kill", lambda *signalled: signals.append(signalled))
    return signals


def test_guard_kills_a_server_whose_model_process_has_died(
    probe: Any, tmp_path: Path, sent: list[tuple[int, int]]
) -> None:
    processes = serve(tmp_path / "proc", pid=7)
    with server(READY) as port:
        assert probe.guard(port=port, note=tmp_path / "note", processes=processes) == ""
        assert sent == []
        (processes / "20" / "cmdline").write_text("")
        fault = probe.guard(port=port, note=tmp_path / "note", processes=processes)
    assert fault == "processes have ended: multidiffusion (0 of 1)"
    assert sent == [(7, signal.SIGKILL)]


def test_guard_asks_the_first_process_of_a_container_to_end(
    probe: Any, processes: Path, tmp_path: Path, sent: list[tuple[int, int]]
) -> None:
    """Nobody inside can kill it."""
    (tmp_path / "note").write_text('{"multidiffusion": 2}')
    with server(READY) as port:
        assert probe.guard(port=port, note=tmp_path / "note", processes=processes)
    assert sent == [(1, signal.SIGTERM)]


def test_guard_kills_a_server_that_is_not_ready_for_its_dead_process(
    probe: Any, tmp_path: Path, sent: list[tuple[int, int]]
) -> None:
    """As Triton says since 26.04."""
    processes, note = serve(tmp_path / "proc", pid=7), tmp_path / "note"
    note.write_text('{"multidiffusion": 2}')
    with server(LOADING) as port:
        assert probe.guard(port=port, note=note, processes=processes) == "/v2/health/ready: status 400"
    assert sent == [(7, signal.SIGKILL)]


@pytest.mark.parametrize(
    ("answers", "noted"),
    [(LOADING, None), (LOADING, '{"multidiffusion": 1, "unet": 2}'), ({"/v2/health/live": 400}, '{"unet": 3}')],
    ids=["loading", "not ready", "ending"],
)
def test_guard_leaves_a_server_that_has_lost_nothing_or_ends_by_itself(
    probe: Any, processes: Path, tmp_path: Path, sent: list[tuple[int, int]], answers: dict[str, int], noted: str | None
) -> None:
    note = tmp_path / "note"
    if noted:
        note.write_text(noted)
    with server(answers) as port:
        assert probe.guard(port=port, note=note, processes=processes)
    assert sent == []


def test_what_a_killed_server_leaves_is_removed_before_the_next_one_starts(probe: Any) -> None:
    """By a script that the base image's entry point sources: `rm` tells here what it would remove."""
    (stage,) = stages(DOCKER / "triton.Dockerfile")
    (source, target) = next(each.words() for each in stage if each.name == "COPY" and "leftovers" in each.value)
    assert target == f"/opt/nvidia/entrypoint.d/{Path(source).name}"
    command = ["bash", "-euc", 'rm() { printf "%s\\n" "$@"; }; set -f; . "$1"', "bash", str(ROOT / source)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    shared_memory = "/dev/shm/triton_python_backend_shm_region_*"  # noqa: S108
    assert ended.stdout.split() == ["-f", shared_memory, str(probe.NOTE), "-rf", "/tmp/folder??????"]  # noqa: S108


def test_a_server_that_is_away_or_silent_is_a_fault(
    probe: Any, processes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        fault = probe.find_fault("live", port=port, note=tmp_path / "note", processes=processes)
        assert "TimeoutError" in fault
    fault = probe.find_fault("live", port=port, note=tmp_path / "note", processes=processes)
    assert "ConnectionRefusedError" in fault


def test_the_script_runs_by_itself() -> None:
    ended = subprocess.run([sys.executable, "-I", str(PROBE)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "usage: probe.py start|ready|live|guard\n")


def test_the_image_asks_it_where_it_lies(probe: Any) -> None:
    (stage,) = stages(DOCKER / "triton.Dockerfile")
    copies = [each.words() for each in stage if each.name == "COPY"]
    assert ["docker/triton/probe.py", "/opt/multsd/probe.py"] in copies
    check = last(stage, "HEALTHCHECK")
    assert check is not None
    assert '["python3", "/opt/multsd/probe.py", "guard"]' in check.value
    (timeout,) = re.findall(r"--timeout=(\d+)s", check.value)
    assert int(timeout) > 2 * probe.SECONDS, "it may ask twice"
