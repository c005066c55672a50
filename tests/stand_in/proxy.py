"""A TCP proxy that can go deaf: the connections of before stay open and say nothing more, new ones work."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Proxy:
    """Forwards bytes between clients and one server."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.listening = threading.Event()
        self._target = target_port
        self._open: set[int] = set()
        self._deaf: set[int] = set()

    def deafen(self) -> None:
        """Swallow what the server says on the connections that are open now. May be called from any thread."""
        self._deaf |= self._open

    def stop(self) -> None:
        """End `serve`. May be called from any thread."""
        self._loop.call_soon_threadsafe(self._ended.set)

    async def serve(self) -> None:
        """Forward until `stop`."""
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.listening.set()
        await self._ended.wait()
        server.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        number = id(writer)
        self._open.add(number)
        try:
            await asyncio.gather(self._copy(reader, there_writer), self._copy(there_reader, writer, number))
        except OSError:  # an end that has gone
            pass
        finally:
            self._open.discard(number)
            for each in (writer, there_writer):
                each.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int = 0) -> None:
        while content := await reader.read(65536):
            if number not in self._deaf:
                writer.write(content)
                await writer.drain()
        if number not in self._deaf:
            writer.close()


@contextmanager
def running_proxy(target_port: int) -> Iterator[Proxy]:
    """A proxy on a free port of loopback."""
    proxy = Proxy(target_port)
    thread = threading.Thread(target=lambda: asyncio.run(proxy.serve()))
    thread.start()
    try:
        if not proxy.listening.wait(10):
            raise TimeoutError("proxy: expected to listen within 10 s")
        yield proxy
    finally:
        proxy.stop()
        thread.join()
