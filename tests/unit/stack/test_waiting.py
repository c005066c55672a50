import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from multsd_gateway.stack.errors import PortInUseError, StartError
from multsd_gateway.stack.waiting import answers, check_ports_differ, check_ports_free, wait_until_ready
from tests.unit.stack.children import shell

LOOPBACK = "127.0.0.1"


class Getting(BaseHTTPRequestHandler):
    """Ready at the third look."""

    looks = 0

    def do_GET(self) -> None:
        type(self).looks += 1
        self.send_response(200 if self.looks >= 3 else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def served() -> Iterator[str]:
    """The address of something that gets ready."""

    class Handler(Getting):
        """Counts for itself."""

    with HTTPServer((LOOPBACK, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://{LOOPBACK}:{server.server_port}/ready"
        server.shutdown()
        thread.join()


@contextmanager
def listening() -> Iterator[int]:
    """A port of this machine that is taken."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port: int = server.getsockname()[1]
        yield port


def free_port() -> int:
    with listening() as port:
        return port


def test_taken_port_is_named_with_the_setting_that_chooses_another() -> None:
    with listening() as port, pytest.raises(PortInUseError) as refusal:
        check_ports_free({"MULTSD_PORT": free_port(), "MULTSD_TRITON_GRPC_PORT": port}, LOOPBACK)
    assert f"port {port} cannot be used (Address already in use)" in str(refusal.value)
    assert "choose another with MULTSD_TRITON_GRPC_PORT=PORT" in str(refusal.value)


def test_free_port_stays_free() -> None:
    port = free_port()
    check_ports_free({"MULTSD_PORT": port}, LOOPBACK)
    with socket.create_server((LOOPBACK, port)) as server:
        assert server.getsockname() == (LOOPBACK, port)


def test_two_settings_of_one_port_are_both_named() -> None:
    with pytest.raises(PortInUseError) as caught:
        check_ports_differ({"MULTSD_PORT": 8000, "MULTSD_TRITON_GRPC_PORT": 8001, "MULTSD_TRITON_HTTP_PORT": 8000})
    assert str(caught.value) == (
        "MULTSD_PORT and MULTSD_TRITON_HTTP_PORT are both 8000; choose another for one of them"
    )


def test_address_of_another_machine_cannot_be_used() -> None:
    with pytest.raises(PortInUseError, match=r"port 5000 cannot be used \(.+\); choose another with MULTSD_PORT=PORT"):
        check_ports_free({"MULTSD_PORT": 5000}, "192.0.2.1")


def test_only_success_is_an_answer() -> None:
    with served() as url:
        assert [answers(url) for _ in range(3)] == [False, False, True]
    assert not answers(url)


def test_waiting_ends_when_the_address_answers(tmp_path: Path) -> None:
    with served() as url, shell("sleep 60", tmp_path, name="triton") as child:
        wait_until_ready(child, url, seconds=20)
        assert answers(url)
        assert child.ended() is None


def test_process_that_ends_while_starting_is_told_with_its_log(tmp_path: Path) -> None:
    url = f"http://{LOOPBACK}:{free_port()}/"
    with shell("echo error: no model; exit 4", tmp_path, name="triton") as child, pytest.raises(StartError) as failure:
        wait_until_ready(child, url, seconds=20)
    assert str(failure.value) == f"triton exited with status 4 while starting; from {child.log}:\nerror: no model"


def test_process_beside_that_ends_is_told_too(tmp_path: Path) -> None:
    url = f"http://{LOOPBACK}:{free_port()}/"
    with (
        shell("sleep 60", tmp_path, name="gateway") as child,
        shell("kill -KILL $$", tmp_path, name="triton") as beside,
        pytest.raises(StartError, match=r"^triton was killed by SIGKILL while starting"),
    ):
        wait_until_ready(child, url, seconds=20, beside=beside)


def test_waiting_has_an_end(tmp_path: Path) -> None:
    url = f"http://{LOOPBACK}:{free_port()}/"
    with shell("sleep 60", tmp_path, name="gateway") as child, pytest.raises(StartError) as failure:
        wait_until_ready(child, url, seconds=0.2)
    assert str(failure.value) == f"gateway was not ready after 0.2 s; see {child.log}"
