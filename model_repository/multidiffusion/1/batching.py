"""Rows of all requests share the UNet's calls.

Every row has one shape, whatever the picture's size, sampler or step, so rows of any requests fit into one call of
B rows.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate

import torch
from torch import Tensor

from errors import SilentNetworkError
from sampling import Denoising, UNetRows

CallUNet = Callable[[UNetRows], Awaitable[Tensor]]
OnSilence = Callable[[SilentNetworkError], None]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A canvas whose step is not complete."""

    denoising: Denoising
    completed: asyncio.Future[None]

    @property
    def new(self) -> bool:
        """Whether nothing has been predicted of the canvas yet."""
        return self.denoising.rows == 0

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


@dataclass(frozen=True)
class _Part:
    """A canvas's rows of one call."""

    waiting: _Waiting
    rows: UNetRows


@dataclass(frozen=True)
class _Answer:
    """What the UNet made of a part."""

    part: _Part
    prediction: Tensor

    def give(self) -> None:
        """Hand it over."""
        self.part.waiting.give(self.part.rows, self.prediction)


class UNetBatcher:
    """Fills each call of the UNet with whatever rows wait when it comes free. Not for threads: one event loop owns it.

    Canvases take turns, in which each may have half of a call: small steps go out whole, so that their canvases soon
    have more rows to offer. (Were every canvas given as many rows as the others, equal ones would end their steps all
    together and leave every second call half empty.) One canvas alone waits for nobody, and one with many rows is
    spread over calls. Those that come later are the first in the next call that is filled, in half of it: the other
    half is for those that were there before, however many come.

    The way to the UNet and back takes a while, in which it is idle. Calls ahead wait at the UNet's door instead, where
    that costs nobody much: if small steps fill half of a call, which is rows enough for the UNet to work on while the
    rows of the call before come back; a whole call if only wide canvases are there; or whatever a canvas has left that
    is alone, since nobody is there to fill the call. A small step beside a wide canvas never finds more than one call
    before its own, but for a canvas's first: that may find as many as were out when it came, full or not.

    When the UNet is found silent every canvas that waits for it ends, and not only those of the call that found it:
    the others would wait as long again, one call after the other. Those that come later have a call of their own to
    try, and end together as well.
    """

    def __init__(
        self,
        unet: CallUNet,
        *,
        max_batch_size: int,
        calls: int = 1,
        ahead: int = 0,
        on_silence: OnSilence = lambda _: None,
    ) -> None:
        """calls: at a time; as many as the UNet has instances. ahead: so many more, under the conditions above.

        on_silence: is called when the UNet is found silent, once every canvas that waits for it has ended.
        """
        self._unet = unet
        self._on_silence = on_silence
        self._max_batch_size = max_batch_size
        self._calls = calls
        self._most_calls = calls + ahead
        self._queue: deque[_Waiting] = deque()  # canvases with untaken rows, whose turn is next at the front
        self._small_steps = 0  # that are not complete
        self._working = 0
        self._made = 0  # calls so far, by which they are numbered
        self._answered = 0  # the last of them that was
        self._under_way: set[asyncio.Task[list[_Answer]]] = set()  # calls
        self._open: set[_Waiting] = set()  # canvases whose step is not complete
        self._workers: set[asyncio.Task[None]] = set()  # the loop itself would forget them

    async def complete_step(self, denoising: Denoising) -> None:
        """Have every row of the canvas's step predicted. Raises what the UNet's call raised for one of them."""
        small = denoising.untaken <= turn(self._max_batch_size)
        waiting = _Waiting(denoising, asyncio.get_running_loop().create_future())
        self._open.add(waiting)
        self._queue.append(waiting)
        self._small_steps += small
        self._hire()
        try:
            await waiting.completed
        finally:
            self._open.discard(waiting)
            self._small_steps -= small

    def _hire(self) -> None:
        """Have one more worker where one is missing."""
        if self._working < self._calls or (self._working < self._most_calls and self._worth_a_call_ahead()):
            self._working += 1
            worker = asyncio.ensure_future(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    def _worth_a_call_ahead(self) -> bool:
        if len(self._open) == 1:
            return any(each.untaken for each in self._queue)
        if self._small_steps:
            return self._waiting_small_rows() >= turn(self._max_batch_size)
        return sum(each.untaken for each in self._queue) >= self._max_batch_size

    async def _work(self) -> None:
        try:
            await self._make_calls()
        except Exception as error:  # nobody foresaw it; whatever it was, no canvas waits for a worker that is gone
            for waiting in self._open:
                waiting.fail(error)
        finally:
            self._working -= 1  # at once: whoever comes next has to find out that nobody works

    async def _make_calls(self) -> None:
        """Call the UNet until nobody waits, or as one of those ahead until that is not worth it."""
        answers: deque[_Answer] = deque()
        while True:
            # One by one, so that a canvas whose step is complete hands in its next before the call is filled; once the
            # call is full without the others they have theirs while the UNet is at work.
            while answers and not self._full_of_small_steps():
                answers.popleft().give()
                await asyncio.sleep(0)
            if not answers and self._working > self._calls and not self._worth_a_call_ahead():
                return
            parts = self._fill()
            if not parts and self._queue:
                continue  # those whose turn it was could not make their rows
            if not parts:
                return
            call = asyncio.ensure_future(self._predict(parts))
            self._under_way.add(call)
            call.add_done_callback(self._under_way.discard)
            await asyncio.sleep(0)
            self._hire()
            while answers:
                answers.popleft().give()
                await asyncio.sleep(0)
            await asyncio.wait([call])
            if not call.cancelled():
                answers.extend(call.result())

    def _full_of_small_steps(self) -> bool:
        return self._waiting_small_rows() >= self._max_batch_size

    def _waiting_small_rows(self) -> int:
        return sum(each.untaken for each in self._queue if each.untaken <= turn(self._max_batch_size))

    def _fill(self) -> list[_Part]:
        """Take the next call's rows."""
        order = self._order()
        wanted = [each.untaken for each in order]
        shares = share(wanted, self._max_batch_size)
        parts = [
            _Part(each, rows) for each, size in zip(order, shares, strict=True) if size for rows in each.take(size)
        ]
        ends = [size >= min(want, turn(self._max_batch_size)) for want, size in zip(wanted, shares, strict=True)]
        turns = sorted(zip(ends, order, strict=True), key=lambda each: each[0])  # those whose turn has ended last
        self._queue = deque(each for _, each in turns if each.untaken)
        return parts

    def _order(self) -> list[_Waiting]:
        """Whose turn it is: as many of those that are new as half of a call holds, those that are not, and the rest."""
        places = self._max_batch_size // 2
        if not places:
            return list(self._queue)
        new = [each for each in self._queue if each.new]
        ends = accumulate(min(each.untaken, places) for each in new)
        first = sum(end <= places for end in ends)
        return [*new[:first], *(each for each in self._queue if not each.new), *new[first:]]

    async def _predict(self, parts: Sequence[_Part]) -> list[_Answer]:
        """One call. Where it fails every canvas is asked for alone, so that none fails another."""
        try:
            rows = join([part.rows for part in parts])
            prediction = await self._ask(rows, [part.waiting for part in parts])
            predictions = split(prediction, [len(part.rows) for part in parts])
        except SilentNetworkError:
            return []
        except Exception as error:
            if len(parts) == 1:
                parts[0].waiting.fail(error)
                return []
            answers = []
            for part in parts:
                if not part.waiting.completed.done():  # the UNet may have fallen silent at the one before
                    answers += await self._predict([part])
            return answers
        return [_Answer(part, own) for part, own in zip(parts, predictions, strict=True)]

    async def _ask(self, rows: UNetRows, canvases: Iterable[_Waiting]) -> Tensor:
        """One call of the UNet, for these canvases. If it is silent, ends them and whoever waits as they do."""
        self._made += 1
        number = self._made
        try:
            prediction = await self._unet(rows)
        except SilentNetworkError as error:
            # An answer to a call before would have begun the time of this one anew; one to a later call tells that it
            # is only this one that was lost.
            if number > self._answered:
                self._end_all(error)
            for waiting in canvases:
                waiting.fail(error)
            raise
        except Exception:
            self._answered = max(self._answered, number)  # an error is an answer, too
            raise
        self._answered = max(self._answered, number)
        return prediction

    def _end_all(self, error: SilentNetworkError) -> None:
        """End whatever waits for the UNet, and leave the other calls behind: their workers are for those that come."""
        for waiting in self._open:
            waiting.fail(error)
        for call in self._under_way - {asyncio.current_task()}:
            call.cancel()
        self._on_silence(error)


def turn(places: int) -> int:
    """Most rows of a canvas in its turn."""
    return max(1, places // 2)


def share(wanted: Sequence[int], places: int) -> list[int]:
    """Deal out places in order, to each what it wants up to a turn, and again as long as any are left."""
    shares = [0] * len(wanted)
    most = turn(places)
    while places and sum(shares) < sum(wanted):
        for i, want in enumerate(wanted):
            more = min(want - shares[i], most, places)
            shares[i] += more
            places -= more
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


def split(prediction: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """The predictions of all parts, of one call. Raises ValueError where they are not as many as the rows."""
    if len(prediction) != sum(sizes):
        raise ValueError(f"unet: expected {sum(sizes)} rows, found {len(prediction)}")
    parts: Sequence[Tensor] = torch.split(prediction, list(sizes))
    return parts


def pad(rows: UNetRows, size: int) -> UNetRows:
    """Repeat the last row until there are `size`, for a network whose arithmetic depends on the size of a call."""
    last = torch.arange(size).clamp(max=len(rows) - 1)
    tensors = {name: tensor[last] for name, tensor in vars(rows).items() if isinstance(tensor, Tensor)}
    return UNetRows(first=rows.first, **tensors)


def zeros(rows: UNetRows, size: int) -> UNetRows:
    """So many rows of the same shapes that ask for nothing."""
    tensors = {
        name: torch.zeros_like(tensor[:size]) for name, tensor in vars(rows).items() if isinstance(tensor, Tensor)
    }
    return UNetRows(first=0, **tensors)
