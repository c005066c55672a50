"""Rows of all requests share the UNet's calls.

Every row has one shape, whatever the picture's size, sampler or step, so rows of any requests fit into one call of
B rows.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sampling import Denoising, UNetRows

CallUNet = Callable[[UNetRows], Awaitable[Tensor]]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A canvas whose step is not complete."""

    denoising: Denoising
    completed: asyncio.Future[None]

    @property
    def untaken(self) -> int:
        """Rows still to be taken; none once the request has failed or gone."""
        return 0 if self.completed.done() else self.denoising.untaken

    def fail(self, error: Exception) -> None:
        """End the wait with an error."""
        if not self.completed.done():
            self.completed.set_exception(error)

    def take(self, count: int) -> list[UNetRows]:
        """The next rows as a list of one; empty where the canvas cannot make them."""
        try:
            return [self.denoising.take(count)]
        except Exception as error:  # whatever it is, it belongs to this request and to no other
            self.fail(error)
            return []

    def give(self, rows: UNetRows, prediction: Tensor) -> None:
        """Hand over predictions, unless nobody wants them any more."""
        if self.completed.done():
            return
        try:
            self.denoising.give(rows, prediction)
        except Exception as error:
            self.fail(error)
            return
        if self.denoising.complete:
            self.completed.set_result(None)


_Part = tuple[_Waiting, UNetRows]


class UNetBatcher:
    """Fills each call of the UNet with whatever rows wait when it comes free. Not for threads: one event loop owns it.

    Canvases take turns row by row. One canvas alone waits for nobody, one with many rows is spread over calls, and one
    that comes later has its share of the very next call.
    """

    def __init__(self, unet: CallUNet, *, max_batch_size: int, calls: int = 1) -> None:
        """calls: at a time; as many as the UNet has instances."""
        self._unet = unet
        self._max_batch_size = max_batch_size
        self._calls = calls
        self._queue: deque[_Waiting] = deque()  # canvases with untaken rows
        self._workers: set[asyncio.Task[None]] = set()

    async def complete_step(self, denoising: Denoising) -> None:
        """Have every row of the canvas's step predicted. Raises what the UNet's call raised for one of them."""
        waiting = _Waiting(denoising, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if len(self._workers) < self._calls:
            worker = asyncio.ensure_future(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        await waiting.completed

    async def _work(self) -> None:
        while parts := self._fill():
            await self._predict(parts)
            await asyncio.sleep(0)  # canvases whose step is complete hand in their next before the call is filled

    def _fill(self) -> list[_Part]:
        """Take the next call's rows."""
        shares = share([each.untaken for each in self._queue], self._max_batch_size)
        parts = [
            (each, rows) for each, size in zip(self._queue, shares, strict=True) if size for rows in each.take(size)
        ]
        self._queue = deque(each for each in self._queue if each.untaken)
        self._queue.rotate(-1)  # rows that cannot be shared out evenly go to another next time
        return parts

    async def _predict(self, parts: Sequence[_Part]) -> None:
        """One call. Where it fails every canvas is asked for alone, so that none fails another."""
        try:
            prediction = await self._unet(join([rows for _, rows in parts]))
        except Exception as error:
            if len(parts) == 1:
                parts[0][0].fail(error)
                return
            for part in parts:
                await self._predict([part])
            return
        sizes = [len(rows) for _, rows in parts]
        for (waiting, rows), own in zip(parts, torch.split(prediction, sizes), strict=True):
            waiting.give(rows, own)


def share(wanted: Sequence[int], places: int) -> list[int]:
    """Deal out places one by one in turn, to none more than it wants."""
    shares = [0] * len(wanted)
    while places and (hungry := [i for i, want in enumerate(wanted) if shares[i] < want]):
        for i in hungry[:places]:
            shares[i] += 1
        places -= len(hungry[:places])
    return shares


def join(parts: Sequence[UNetRows]) -> UNetRows:
    """The rows of all parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    tensors = {
        field.name: torch.cat([getattr(part, field.name) for part in parts])
        for field in fields(UNetRows)
        if isinstance(getattr(parts[0], field.name), Tensor)  # a checkpoint's rows all have the same
    }
    return UNetRows(first=0, **tensors)
