"""The bodies that are held at once, bounded in bytes over all requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from multsd_gateway.errors import OverloadedError


class Uploads:
    """Holds at most `max_bytes` of bodies. Idle connections hold nothing: they keep nobody out.

    most_of_one: of that, how many may be one token's, so that it leaves room for the others'; None: all.
    """

    def __init__(self, max_bytes: int, most_of_one: int | None = None) -> None:
        self.max_bytes = max_bytes
        self.most_of_one = max_bytes if most_of_one is None else most_of_one
        self.bytes = 0
        self.owned: Counter[str] = Counter()  # bytes by the token's name

    @contextmanager
    def receive(self, owner: str | None = None) -> Iterator[Upload]:
        """One body, from its first byte until it is released, at the latest at the end, and nothing holds it.

        owner: the name of the token that it came with.
        """
        upload = Upload(self, owner)
        try:
            yield upload
        finally:
            upload.release()


class Upload:
    """The bytes of one body."""

    def __init__(self, uploads: Uploads, owner: str | None) -> None:
        self._uploads = uploads
        self._owner = owner
        self._data = bytearray()
        self._holders = 0
        self._released = False

    def __len__(self) -> int:
        return len(self._data)

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    def add(self, chunk: bytes) -> None:
        """Keep more of the body. Raises OverloadedError where all bodies, or the owner's, would be too many bytes."""
        if self._uploads.bytes + len(chunk) > self._uploads.max_bytes:
            raise OverloadedError("too many large requests arrive at once, try again later", reason="bytes")
        if self._owner is not None:
            if self._uploads.owned[self._owner] + len(chunk) > self._uploads.most_of_one:
                message = "too many large requests of this token's arrive at once, try again later"
                raise OverloadedError(message, reason="bytes")
            self._uploads.owned[self._owner] += len(chunk)
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
            if self._owner is not None:
                self._uploads.owned[self._owner] -= len(self._data)
            self._data = bytearray()
