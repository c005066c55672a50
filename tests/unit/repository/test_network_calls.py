"""Calls of one network: how many at a time, and how long it may be silent. Hung ones end when a test lets them."""

import asyncio

import pytest

from errors import NetworkError, SilentNetworkError
from network_calls import NetworkCalls

SECONDS = 0.05  # of silence, after which a network counts as hung
SOON = 10.0  # seconds that nothing here takes


class Network:
    """A network that answers a call when it is told to."""

    def __init__(self, *, most: int, seconds: float | None = None) -> None:
        self.calls = NetworkCalls(most=most, seconds=seconds)
        self.asked: dict[str, asyncio.Future[str]] = {}

    async def _ask(self, name: str) -> str:
        self.asked[name] = asyncio.get_running_loop().create_future()
        return await self.asked[name]

    async def call(self, name: str) -> "asyncio.Task[str]":
        calling = asyncio.create_task(self.calls.call(lambda: self._ask(name)))
        await settle()
        return calling


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def silent(calling: "asyncio.Task[str]") -> None:
    """Check that a call is given up because the network is silent."""
    done, _ = await asyncio.wait([calling], timeout=SOON)
    assert done
    assert isinstance(calling.exception(), TimeoutError)


def test_so_many_calls_are_made_at_a_time_and_the_others_in_order() -> None:
    async def scenario() -> None:
        network = Network(most=2)
        calls = [await network.call(name) for name in "abc"]
        assert list(network.asked) == ["a", "b"]
        network.asked["b"].set_result("picture")
        assert await calls[1] == "picture"
        await settle()
        assert list(network.asked) == ["a", "b", "c"]
        for name in "ac":
            network.asked[name].set_result(name)
        assert [await calls[0], await calls[2]] == ["a", "c"]

    asyncio.run(scenario())


def test_an_error_of_the_network_is_the_callers_and_frees_the_place() -> None:
    async def scenario() -> None:
        network = Network(most=1, seconds=SOON)
        first, second = [await network.call(name) for name in "ab"]
        network.asked["a"].set_exception(NetworkError("vae_decoder", 1, "out of memory"))
        with pytest.raises(NetworkError, match="out of memory"):
            await first
        await settle()
        network.asked["b"].set_result("b")
        assert await second == "b"

    asyncio.run(scenario())


def test_a_call_that_nobody_waits_for_keeps_its_place_until_it_is_answered() -> None:
    async def scenario() -> None:
        network = Network(most=2)
        left = [await network.call(name) for name in "ab"]
        for call in left:
            call.cancel()
        await settle()
        assert all(call.cancelled() for call in left)
        later = await network.call("c")
        assert list(network.asked) == ["a", "b"]
        network.asked["a"].set_result("for nobody")
        await settle()
        network.asked["c"].set_result("c")
        assert await later == "c"
        network.asked["b"].set_result("for nobody")

    asyncio.run(scenario())


def test_a_silent_network_is_given_up_also_by_those_that_found_no_place() -> None:
    async def scenario() -> None:
        network = Network(most=1, seconds=SECONDS)
        for call in [await network.call(name) for name in "abc"]:
            await silent(call)
        assert list(network.asked) == ["a"]
        await silent(await network.call("d"))
        network.asked["a"].set_result("late")
        await settle()
        awake = await network.call("e")
        network.asked["e"].set_result("e")
        assert await awake == "e"
        assert list(network.asked) == ["a", "e"]

    asyncio.run(scenario())


def test_time_begins_anew_with_each_answer_to_a_call_before() -> None:
    """What waits behind many others is not what a silent network has not answered."""

    async def scenario() -> None:
        network = Network(most=1, seconds=SOON)
        calls = [await network.call(name) for name in "abc"]
        for before, name in zip(calls, "ab", strict=False):
            ends = network.calls._patience[2].when()
            assert ends is not None
            network.asked[name].set_result(name)
            await before
            await settle()
            renewed = network.calls._patience[2].when()
            assert renewed is not None
            assert renewed > ends
        network.asked["c"].set_result("c")
        assert await calls[2] == "c"

    asyncio.run(scenario())


def test_time_begins_anew_for_those_behind_a_call_that_nobody_waits_for() -> None:
    async def scenario() -> None:
        network = Network(most=3, seconds=SOON)
        first, left, last = [await network.call(name) for name in "abc"]
        left.cancel()
        await settle()
        ends = network.calls._patience[2].when()
        assert ends is not None
        network.asked["a"].set_result("a")
        assert await first == "a"
        renewed = network.calls._patience[2].when()
        assert renewed is not None
        assert renewed > ends
        for name in "bc":
            network.asked[name].set_result(name)
        assert await last == "c"

    asyncio.run(scenario())


def test_answers_to_later_calls_do_not_excuse_that_one_has_none() -> None:
    async def scenario() -> None:
        network = Network(most=2, seconds=SECONDS)
        lost = await network.call("lost")
        number = 0
        async with asyncio.timeout(SOON):
            while not lost.done():
                later = await network.call(str(number))
                network.asked[str(number)].set_result("answer")
                assert await later == "answer"
                number += 1
        await silent(lost)
        assert number > 0

    asyncio.run(scenario())


def test_a_call_that_was_rejected_because_the_network_is_stuck_is_no_answer() -> None:
    async def scenario() -> None:
        network = Network(most=2, seconds=SECONDS)
        rejected, other = [await network.call(name) for name in "ab"]
        waiting = network.calls._patience[1].when()
        network.asked["a"].set_exception(SilentNetworkError("unet", 14, "no answer for 60 s"))
        with pytest.raises(SilentNetworkError):
            await rejected
        assert network.calls._patience[1].when() == waiting
        await silent(other)

    asyncio.run(scenario())
