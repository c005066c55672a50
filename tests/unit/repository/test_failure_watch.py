"""From a call that failed on, a network is checked until one works; after so many seconds it is given up."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from errors import NetworkError, SilentNetworkError
from failure_watch import CHECK_SECONDS, FailureWatch
from tests.jumping import JumpingLoop

SECONDS = 10.0
BROKEN = NetworkError("unet", 1, "an illegal memory access was encountered")


class Network:
    """Fails a check with what is next, and works when nothing is left."""

    def __init__(self, errors: Iterator[Exception], on_check: Callable[[int], None] = lambda _: None) -> None:
        self._errors = errors
        self._on_check = on_check
        self.checks: list[float] = []
        self.given_up: list[float] = []
        self.watch = FailureWatch(seconds=SECONDS, give_up=self._give_up)

    def _give_up(self, error: NetworkError) -> None:
        assert error is BROKEN
        self.given_up.append(asyncio.get_running_loop().time())

    async def check(self) -> None:
        self.checks.append(asyncio.get_running_loop().time())
        self._on_check(len(self.checks))
        error = next(self._errors, None)
        if error is not None:
            raise error


def run(network: Network, failures: int = 1) -> None:
    """So many calls fail at once; then a minute goes by."""

    async def scenario() -> None:
        for _ in range(failures):
            network.watch.failed(network.check)
        await asyncio.sleep(60)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("failures", [1, 20])
def test_a_network_that_fails_every_check_is_given_up_once(failures: int) -> None:
    network = Network(iter([BROKEN] * 100))
    run(network, failures)
    assert network.given_up == [pytest.approx(SECONDS, abs=CHECK_SECONDS)]
    assert len(network.checks) == pytest.approx(SECONDS / CHECK_SECONDS, abs=1)


@pytest.mark.parametrize(
    ("errors", "checks"), [([], 1), ([BROKEN] * 3, 4), ([SilentNetworkError("unet", 4, "no answer for 60 s")], 1)]
)
def test_one_that_works_again_or_hangs_is_not(errors: list[Exception], checks: int) -> None:
    network = Network(iter(errors))
    run(network)
    assert (network.given_up, len(network.checks)) == ([], checks)


def test_one_that_answers_others_meanwhile_is_not() -> None:
    network = Network(iter([BROKEN] * 100), lambda number: network.watch.answered() if number == 4 else None)
    run(network)
    assert (network.given_up, len(network.checks)) == ([], 4)


def test_the_next_failure_after_one_that_was_overcome_is_watched_anew() -> None:
    network = Network(iter([]))

    async def scenario() -> None:
        for _ in range(2):
            network.watch.failed(network.check)
            await asyncio.sleep(60)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(scenario())
    assert len(network.checks) == 2


def test_with_0_seconds_nothing_is_checked() -> None:
    network = Network(iter([BROKEN] * 100))
    network.watch = FailureWatch(seconds=0, give_up=lambda _: pytest.fail("given up"))
    run(network)
    assert network.checks == []
