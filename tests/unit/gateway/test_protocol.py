"""Clients that ask and do not read: a real server cuts them off."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

import multsd_gateway.protocol as protocol_module
from multsd_client.tensors import ModelRequest, Picture, Preview
from multsd_gateway.app import create_app
from multsd_gateway.inference import OnProgress
from multsd_gateway.protocol import patient_protocol
from tests.jumping import JumpingLoop
from tests.unit.gateway.fakes import FakePainter, seed_request, settings

LARGE = b"x" * 16 * 1024 * 1024  # more than the kernel takes
HEAD = b"POST /multsd/stream HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n%b"


class Server:
    """What serves, and when it has cut a connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cut = asyncio.Event()
        self.cuts = 0
        self.state = ServerState()

    def connections(self) -> int:
        """How many are open."""
        return len(self.state.connections)

    def note(self) -> None:
        self.cuts += 1
        self.cut.set()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[socket.socket]:
        """A connection whose kernel holds little of what is sent to it."""
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
            yield client


def _serve(
    app: ASGIApp,
    use: Callable[[Server], Awaitable[Any]],
    *,
    write_seconds: float = 5,
    read_seconds: float = 60,
    max_body_bytes: int = 0,
    send_buffer: int | None = None,  # bytes that the kernel takes of what is sent
    **options: Any,
) -> Any:
    async def scenario() -> Any:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            if send_buffer is not None:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            server = Server(listening.getsockname()[1])
            config = uvicorn.Config(
                app,
                http=patient_protocol(
                    write_seconds, server.note, read_seconds=read_seconds, max_body_bytes=max_body_bytes
                ),
                log_config=None,
                lifespan="off",
                **options,
            )
            serving = uvicorn.Server(config)
            server.state = serving.server_state
            task = asyncio.create_task(serving.serve(sockets=[listening]))
            try:
                async with asyncio.timeout(30):
                    return await use(server)
            finally:
                serving.should_exit = True
                await task

    return asyncio.run(scenario())


class Previews(FakePainter):
    """Sends previews for as long as anybody takes them."""

    ended = False

    async def paint(self, request: ModelRequest, *, request_id: str, on_progress: OnProgress | None) -> Picture:  # noqa: ARG002
        assert on_progress is not None
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        try:
            while True:
                await on_progress(Preview(noise))
                await asyncio.sleep(0)
        finally:
            self.ended = True


def test_a_stream_that_nobody_reads_is_cut_and_its_work_ends() -> None:
    painter = Previews()
    app = create_app(settings(write_seconds=0.5), painter)
    body = json.dumps(seed_request()).encode()
    over = asyncio.Event()

    async def until_over(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        finally:
            over.set()

    async def use(server: Server) -> None:
        async with server.client() as client:
            await asyncio.get_running_loop().sock_sendall(client, HEAD % (len(body), body))
            await over.wait()
            await server.cut.wait()
        assert server.cuts == 1

    _serve(until_over, use, write_seconds=0.5)
    assert painter.ended
    assert app.state.metrics.requests.labels("/multsd/stream", "499")._value.get() == 1


async def _large(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(LARGE)(scope, receive, send)


def test_a_large_reply_that_nobody_reads_is_cut() -> None:
    async def use(server: Server) -> None:
        async with server.client() as client:
            await asyncio.get_running_loop().sock_sendall(client, HEAD % (0, b""))
            await server.cut.wait()
        assert server.cuts == 1

    _serve(_large, use, write_seconds=0.2)


@pytest.mark.parametrize("after", ["reply", "refusal", "failure", "end of what the client sends"])
def test_a_small_reply_that_nobody_reads_is_cut_where_its_connection_is_closed(after: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 40_000, "more_body": after == "failure"})
        if after == "failure":
            raise RuntimeError

    async def use(server: Server) -> None:
        async with server.client() as client:
            close = "close" if after == "reply" else "keep-alive"
            head = f"GET / HTTP/1.1\r\nHost: gateway\r\nConnection: {close}\r\n\r\n".encode()
            await asyncio.get_running_loop().sock_sendall(client, head + (b"?\r\n\r\n" if after == "refusal" else b""))
            await asyncio.sleep(0.2)
            if after.startswith("end"):
                client.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(5):
                await server.cut.wait()
        assert server.cuts == 1

    _serve(app, use, write_seconds=0.2, send_buffer=4096, timeout_keep_alive=60)


@pytest.mark.parametrize("keep_alive", [0, 60], ids=["already closing", "open"])
def test_a_client_that_reads_slowly_gets_all_of_a_large_reply(keep_alive: int) -> None:
    """Buffers are the kernel's own, which by itself calls them full until a third of up to 4 MB was taken."""
    pace, slow = 500_000, 1_500_000  # bytes a second, and how many at that pace; the others as they come

    async def use(server: Server) -> int:
        loop, taken = asyncio.get_running_loop(), 0
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            await loop.sock_sendall(client, HEAD % (0, b""))
            began = loop.time()
            while taken < len(LARGE):
                piece = await loop.sock_recv(client, 25_000 if taken < slow else 1024 * 1024)
                assert piece, "the connection was closed before"
                taken += len(piece)
                await asyncio.sleep(began + taken / pace - loop.time() if taken < slow else 0)
        return server.cuts

    assert _serve(_large, use, write_seconds=1, timeout_keep_alive=keep_alive) == 0


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without a look at the body."""
    await Response("refused", 401)(scope, receive, send)


async def _until_closed(client: socket.socket, *, sends_on: bool = False) -> bytes:
    """What it is sent. sends_on: it may send something after the end, which makes the end a reset."""
    loop, reply = asyncio.get_running_loop(), b""
    try:
        while piece := await loop.sock_recv(client, 4096):
            reply += piece
    except ConnectionResetError:
        if not sends_on:
            raise
    return reply


@pytest.mark.parametrize(
    ("requests", "drip"),
    [(0, b""), (0, b"x"), (1, b"x"), (2, b"x")],
    ids=["silent", "a byte at a time", "the second a byte at a time", "the third a byte at a time"],
)
def test_a_connection_without_a_whole_head_is_closed(requests: int, drip: bytes) -> None:
    async def use(server: Server) -> bytes:
        loop = asyncio.get_running_loop()
        async with server.client() as client:
            for _ in range(requests):
                await loop.sock_sendall(client, HEAD % (0, b""))
            closed = asyncio.create_task(_until_closed(client, sends_on=True))
            async with asyncio.timeout(5):
                while not closed.done():
                    with suppress(ConnectionError):  # it may be closed by now
                        await loop.sock_sendall(client, drip)
                    await asyncio.sleep(0.02)
            return closed.result()

    reply = _serve(_refuse, use, read_seconds=0.3, timeout_keep_alive=60)
    assert reply.count(b"HTTP/1.1 401 ") == requests
    assert b"connection: close" not in reply.lower()


def test_a_request_whose_head_is_there_may_take_longer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.5)
        await _refuse(scope, receive, send)

    async def use(server: Server) -> bytes:
        async with server.client() as client:
            await asyncio.get_running_loop().sock_sendall(client, HEAD % (0, b""))
            return await _until_closed(client)

    assert _serve(app, use, read_seconds=0.1, timeout_keep_alive=0).endswith(b"refused")


@pytest.mark.parametrize(
    ("piece", "most", "seconds"),
    [(b"x", 1024, 0.3), (b"x" * 4096, 1_000_000, 60), (b"", 0, 0.3)],
    ids=["a byte at a time", "as fast as it can", "silent"],
)
def test_a_body_that_goes_on_after_the_reply_is_taken_for_so_long_and_so_much(
    piece: bytes, most: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol_module, "MAX_DRAINED_BYTES", 500_000)
    closed = asyncio.Event()
    sent = 0

    async def use(server: Server) -> bytes:
        nonlocal sent
        loop = asyncio.get_running_loop()
        async with server.client() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await loop.sock_sendall(client, HEAD % (10**12, b""))
            reply = await _until_closed(client)  # what the server sends ends before the connection does
            with suppress(ConnectionError):
                async with asyncio.timeout(5):
                    while server.connections():
                        await loop.sock_sendall(client, piece)
                        sent += len(piece)
                        await asyncio.sleep(0 if len(piece) > 1 else 0.02)
            closed.set()
        return reply

    reply = _serve(_refuse, use, read_seconds=seconds)
    assert reply.endswith(b"refused")
    assert b"connection: close" in reply.lower()
    assert closed.is_set()
    assert sent <= most


@pytest.mark.parametrize("max_body_bytes", [0, len(LARGE)], ids=["the least", "as the limit of bodies"])
def test_a_client_that_sends_all_of_its_body_first_gets_the_reply(
    max_body_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if max_body_bytes:
        monkeypatch.setattr(protocol_module, "MAX_DRAINED_BYTES", 500_000)

    async def use(server: Server) -> bytes:
        async with server.client() as client:
            await asyncio.get_running_loop().sock_sendall(client, HEAD % (len(LARGE), LARGE))
            return await _until_closed(client)

    assert _serve(_refuse, use, max_body_bytes=max_body_bytes).endswith(b"refused")


def test_nothing_is_served_after_a_request_of_two_lengths() -> None:
    """A proxy that goes by the other one would take a second reply for that to another client's request."""

    async def use(server: Server) -> bytes:
        async with server.client() as client:
            lengths = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            hidden = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"
            await asyncio.get_running_loop().sock_sendall(
                client, b"POST /multsd HTTP/1.1\r\nHost: gateway\r\n" + lengths + hidden
            )
            return await _until_closed(client)

    replies = _serve(create_app(settings(), FakePainter()), use)
    assert replies.count(b"HTTP/1.1 ") == 1
    assert b"connection: close\r\n" in replies


def test_a_reply_to_head_has_no_body_and_none_is_counted() -> None:
    app = create_app(settings(), FakePainter())

    async def use(server: Server) -> bytes:
        loop, reply = asyncio.get_running_loop(), b""
        async with server.client() as client:
            await loop.sock_sendall(client, b"HEAD /healthz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
            while piece := await loop.sock_recv(client, 4096):
                reply += piece
        return reply

    head, end, body = _serve(app, use, write_seconds=5).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-length: 14" in head.lower()
    assert (end, body) == (b"\r\n\r\n", b"")
    assert app.state.metrics.bytes_out.labels("/healthz")._value.get() == 0


class Buffer(asyncio.Transport):
    """A connection that holds some bytes that its client takes at a pace, a second."""

    def __init__(self, size: int, pace: int) -> None:
        super().__init__()
        self._size, self._pace = size, pace
        self.closed = False
        self.aborted_at: float | None = None

    def get_write_buffer_size(self) -> int:
        return max(self._size - int(self._pace * asyncio.get_running_loop().time()), 0)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted_at = asyncio.get_running_loop().time()


class Kept(asyncio.Transport):
    """A connection that takes at once what is written. closed_at: in the event loop's time."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed_at: float | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed_at is not None

    def close(self) -> None:
        if self.closed_at is None:
            self.closed_at = asyncio.get_running_loop().time()


GET = b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "closed_at"),
    [
        ([(0, GET)], 620),
        ([(0, GET), (600, GET)], 1220),
        ([(0, GET * 2), (600, GET)], 1220),
        ([(0, GET), (600, b"G"), (610, b"E")], 630),
        ([(0, GET + b"G")], 30),
        ([(0, GET + b"G"), (29, b"E")], 30),
        ([(0, b"G"), (20, GET[1:])], 640),
        ([], 30),
    ],
    ids=[
        *("nothing more", "another request", "two at once and another", "another that does not end"),
        *("some of another at once", "that drips", "a slow head", "no request"),
    ],
)
def test_a_connection_is_kept_between_requests_and_not_in_the_middle_of_a_head(
    sent: list[tuple[float, bytes]], closed_at: float
) -> None:
    async def scenario() -> tuple[float | None, int]:
        config = uvicorn.Config(_refuse, timeout_keep_alive=620, log_config=None)
        protocol = patient_protocol(10, lambda: None, read_seconds=30)(config, ServerState(), {})
        transport, loop = Kept(), asyncio.get_running_loop()
        protocol.connection_made(transport)
        for seconds, data in sent:
            await asyncio.sleep(seconds - loop.time())
            assert transport.closed_at is None
            protocol.data_received(data)
        await asyncio.sleep(2000)
        protocol.connection_lost(None)
        return transport.closed_at, transport.written.count(b"HTTP/1.1 401 ")

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        answered = b"".join(data for _, data in sent).count(GET)
        assert runner.run(scenario()) == (closed_at, answered)


def test_a_connection_without_a_request_does_not_hold_the_servers_end() -> None:
    async def use(server: Server) -> tuple[Server, socket.socket]:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(client, GET)
        assert (await asyncio.get_running_loop().sock_recv(client, 4096)).startswith(b"HTTP/1.1 401 ")
        return server, client

    server, client = _serve(_refuse, use, timeout_keep_alive=620, timeout_graceful_shutdown=10)
    with client:
        client.setblocking(True)
        assert client.recv(4096) in (b"", b"refused")
        assert server.connections() == 0


@pytest.mark.parametrize("how", ["no further request", "most is taken while it closes"])
@pytest.mark.parametrize(("pace", "cut_at"), [(0, 10), (1, None)], ids=["takes nothing", "takes a byte a second"])
def test_a_connection_that_is_closed_with_little_left_is_cut_if_it_is_not_taken(
    pace: int, cut_at: float | None, how: str
) -> None:
    async def scenario() -> tuple[Buffer, int]:
        cuts: list[float] = []
        protocol = patient_protocol(10, lambda: cuts.append(0), read_seconds=60)(
            uvicorn.Config(_large), ServerState(), {}
        )
        transport = Buffer(100, pace)
        protocol.connection_made(transport)
        if how == "no further request":
            protocol.timeout_keep_alive_handler()
        else:
            protocol.pause_writing()
            protocol.transport.close()
            protocol.resume_writing()
        await asyncio.sleep(200)
        protocol.connection_lost(None)
        return transport, len(cuts)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        transport, cuts = runner.run(scenario())
    assert transport.closed
    assert (transport.aborted_at, cuts) == (cut_at, 0 if cut_at is None else 1)
