"""The bodies that are held at once, bounded in bytes over all requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from multsd_gateway.errors import OverloadedError


class Uploads:
    """Holds at most `max_bytes` of bodies. Idle connections hold nothing: they keep nobody out."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0

    @contextmanager
    def receive(self) -> Iterator[Upload]:
        """One body, from its first byte until it is released, at the latest at the end, and nothing holds it."""
        upload = Upload(self)
        try:
            yield upload
        finally:
            upload.release()


class Upload:
    """The bytes of one body."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._data = bytearray()
        self._holders = 0
        self._released = False

    def __len__(self) -> int:
        return len(self._data)

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    def add(self, chunk: bytes) -> None:
        """Keep more of the body. Raises OverloadedError where all bodies together would be too many bytes."""
        if self._uploads.bytes + len(chunk) > self._uploads.max_bytes:
            raise OverloadedError("too many large requests arrive at once, try again later", reason="bytes")
        self._uploads.bytes += len(chunk)
        self._data += chunk

    def hold(self) -> None:
        """Keep the bytes, also when they are released, until let_go was called as often."""
        self._holders += 1

    def let_go(self) -> None:
        """End one hold."""
        self._holders -= 1
        self._give_back()

    def release(self) -> None:
        """Let go of the bytes; what is needed of them has been read."""
        self._released = True
        self._give_back()

    def _give_back(self) -> None:
        if self._released and not self._holders:
            self._uploads.bytes -= len(self._data)
            self._data = bytearray()
