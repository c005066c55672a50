"""Which Triton a request goes to, and when it goes to another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from multsd_client.retries import SHORTEST_DEADLINE_S
from multsd_client.tensors import ModelRequest, Picture, Progress, Queued, Update
from multsd_gateway.balancing import AVOIDED_SECONDS, FAILURES, BalancedPainter, Endpoint
from multsd_gateway.errors import InvalidRequestError, ModelFailedError, ModelUnavailableError
from multsd_gateway.inference import ModelDescription, OnProgress
from multsd_gateway.limits import narrowed
from tests.jumping import JumpingLoop
from tests.unit.gateway.fakes import FakePainter, settings

REQUEST = ModelRequest(prompts=("a",), height=2, width=3, num_inference_steps=2)
FAILED = ModelFailedError("unet: an illegal memory access was encountered")
FULL, AWAY = ModelUnavailableError("queue full", retry_after=9), ModelUnavailableError("connection refused")


async def _paint(painter: BalancedPainter, told: list[Update] | None = None) -> Picture:
    async def on_progress(progress: Update) -> None:
        if told is not None:
            told.append(progress)

    return await painter.paint(REQUEST, request_id="job", on_progress=None if told is None else on_progress)


def _with(fakes: list[FakePainter], use: Callable[[BalancedPainter], Awaitable[Any]], *, probe: float = 60.0) -> Any:
    async def scenario() -> Any:
        endpoints = [Endpoint(str(number), fake) for number, fake in enumerate(fakes)]
        painter = BalancedPainter(endpoints, models=["multidiffusion"], probe_seconds=probe)
        try:
            return await asyncio.wait_for(use(painter), timeout=10)
        finally:
            await painter.close()

    return asyncio.run(scenario())


def test_requests_in_turn_go_to_each_in_turn() -> None:
    fakes = [FakePainter(), FakePainter(), FakePainter()]

    async def use(painter: BalancedPainter) -> None:
        for _ in range(6):
            await _paint(painter)

    _with(fakes, use)
    assert [len(fake.requests) for fake in fakes] == [2, 2, 2]


def test_requests_at_once_go_to_the_least_busy() -> None:
    fakes = [FakePainter(forever=True), FakePainter(forever=True)]

    async def use(painter: BalancedPainter) -> list[int]:
        asked = [asyncio.ensure_future(_paint(painter)) for _ in range(5)]
        await asyncio.sleep(0)
        await fakes[1].started.wait()
        busy = [each.in_flight for each in painter.endpoints]
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert [each.in_flight for each in painter.endpoints] == [0, 0]
        return busy

    assert sorted(_with(fakes, use)) == [2, 3]


def test_one_that_is_away_costs_no_request() -> None:
    fakes = [FakePainter(error=ModelUnavailableError("away")), FakePainter()]

    async def use(painter: BalancedPainter) -> None:
        for _ in range(4):
            await _paint(painter)

    _with(fakes, use)
    assert len(fakes[1].requests) == 4


def test_after_an_answer_nothing_is_tried_again() -> None:
    fakes = [FakePainter(error=ModelUnavailableError("away")), FakePainter()]
    told: list[Update] = []

    async def use(painter: BalancedPainter) -> None:
        with pytest.raises(ModelUnavailableError):
            await _paint(painter, told)

    _with(fakes, use)
    assert [len(fake.requests) for fake in fakes] == [1, 0]
    assert told == [Progress(1, 2), Progress(2, 2)]


def test_one_that_only_waited_may_wait_elsewhere() -> None:
    fakes = [FakePainter(error=ModelUnavailableError("away"), updates=(Queued(3),)), FakePainter()]
    told: list[Update] = []

    _with(fakes, lambda painter: _paint(painter, told))

    assert told == [Queued(3), Progress(1, 2), Progress(2, 2)]


def test_what_another_would_not_do_better_is_not_tried_again() -> None:
    fakes = [FakePainter(error=InvalidRequestError([])), FakePainter()]

    async def use(painter: BalancedPainter) -> None:
        with pytest.raises(InvalidRequestError):
            await _paint(painter)

    _with(fakes, use)
    assert fakes[1].requests == []


def test_what_a_model_failed_on_one_other_may_try() -> None:
    fakes = [FakePainter(error=FAILED), FakePainter()]

    _with(fakes, _paint)
    assert [len(fake.requests) for fake in fakes] == [1, 1]


def test_what_fails_everywhere_is_tried_twice() -> None:
    fakes = [FakePainter(error=FAILED) for _ in range(3)]

    async def use(painter: BalancedPainter) -> None:
        with pytest.raises(ModelFailedError):
            await _paint(painter)

    _with(fakes, use)
    assert [len(fake.requests) for fake in fakes] == [1, 1, 0]


@pytest.mark.parametrize("others", [[], [FULL]])
def test_a_failure_that_no_other_mends_is_told(others: list[Exception]) -> None:
    fakes = [FakePainter(error=FAILED), *(FakePainter(error=error) for error in others)]

    async def use(painter: BalancedPainter) -> None:
        with pytest.raises(ModelFailedError, match="illegal memory access"):
            await _paint(painter)

    _with(fakes, use)


def test_after_an_answer_a_failure_is_told() -> None:
    fakes = [FakePainter(error=FAILED, updates=(Progress(1, 2),)), FakePainter()]

    async def use(painter: BalancedPainter) -> None:
        with pytest.raises(ModelFailedError):
            await _paint(painter, [])

    _with(fakes, use)
    assert fakes[1].requests == []


def test_one_that_fails_again_and_again_comes_last_until_it_paints() -> None:
    """It is always the least busy: it fails at once."""
    broken, good = FakePainter(error=FAILED), FakePainter()

    async def scenario() -> None:
        painter = BalancedPainter(
            [Endpoint("broken", broken), Endpoint("good", good)], models=["multidiffusion"], probe_seconds=60
        )
        for _ in range(20):
            await _paint(painter)
        assert len(broken.requests) == FAILURES
        await asyncio.sleep(AVOIDED_SECONDS + 1)
        for _ in range(4):
            await _paint(painter)
        assert len(broken.requests) == FAILURES + 1, "one more is enough to avoid it again"
        await asyncio.sleep(AVOIDED_SECONDS + 1)
        broken.error = None
        for _ in range(4):
            await _paint(painter)
        assert len(broken.requests) == FAILURES + 3, "it takes its turns again"
        await painter.close()

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(scenario())


def test_when_all_are_away_each_is_tried_once() -> None:
    fakes = [FakePainter(error=ModelUnavailableError(f"{number} is away")) for number in range(3)]

    async def use(painter: BalancedPainter) -> None:
        with pytest.raises(ModelUnavailableError, match="0 is away"):
            await _paint(painter)

    _with(fakes, use)
    assert [len(fake.requests) for fake in fakes] == [1, 1, 1]


@pytest.mark.parametrize("fault", [{"not_ready": ["multidiffusion"]}, {"forever": True}], ids=["not ready", "hung"])
def test_one_that_is_not_ready_or_hangs_gets_no_request_until_it_is_back(fault: dict[str, Any]) -> None:
    broken, good = FakePainter(**fault), FakePainter()

    async def until(painter: BalancedPainter, *, ready: bool) -> None:
        while painter.endpoints[0].ready is not ready:  # noqa: ASYNC110 - the probe tells nobody
            await asyncio.sleep(0.01)

    async def use(painter: BalancedPainter) -> None:
        await painter.describe()
        await until(painter, ready=False)
        for _ in range(3):
            await _paint(painter)
        assert (len(broken.requests), len(good.requests)) == (0, 3)
        broken.not_ready, broken.forever = [], False
        await until(painter, ready=True)
        for _ in range(2):
            await _paint(painter)
        assert (len(broken.requests), len(good.requests)) == (1, 4)

    _with([broken, good], use, probe=0.05)


def test_a_probe_that_meets_something_unforeseen_has_failed_and_the_next_one_is_made(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Odd(FakePainter):
        broken = True
        probes = 0

        async def missing(self, models: Sequence[str]) -> list[str]:
            self.probes += 1
            if self.broken:
                raise KeyError(object())  # as gRPC's own, no two of which read alike
            return await super().missing(models)

    odd, good = Odd(), FakePainter()

    async def until(true: Callable[[], bool]) -> None:
        while not true():  # noqa: ASYNC110 - the probe tells nobody
            await asyncio.sleep(0.01)

    async def use(painter: BalancedPainter) -> None:
        await painter.describe()
        await until(lambda: odd.probes >= 3)
        assert [each.ready for each in painter.endpoints] == [False, True]
        odd.broken = False
        await until(lambda: painter.endpoints[0].ready)

    _with([odd, good], use, probe=0.02)
    assert caplog.text.count("Traceback") == 1, "once, and not with every probe"
    assert "Triton 0: the probe failed: KeyError" in caplog.text


def test_a_probe_asks_one_that_is_ready_what_it_has_and_one_that_does_not_tell_stays_ready() -> None:
    class Asked(FakePainter):
        def __init__(self, **fields: Any) -> None:
            super().__init__(**fields)
            self.asked = asyncio.Event()

        async def describe(self) -> ModelDescription:
            self.asked.set()
            return await super().describe()

    fakes = [Asked(), Asked(error=AWAY), Asked(not_ready=["multidiffusion"])]

    async def use(painter: BalancedPainter) -> list[bool]:
        painter.start()
        await asyncio.gather(*(fake.asked.wait() for fake in fakes[:2]))
        return [each.ready for each in painter.endpoints]

    assert _with(list(fakes), use) == [True, True, False]
    assert not fakes[2].asked.is_set()


@pytest.mark.parametrize(
    "asked",
    [
        *({"num_inference_steps": 100}, {"bootstrapping": 100}, {"preview_every": 100}, {"scheduler": "lcm"}),
        *(
            {"height": 20},
            {"prompts": ("a", "b", "c")},
            {"prompts": ("\u00e4" * 9,)},
            {"negative_prompts": ("b" * 17,)},
        ),
        *({"masks": np.zeros((3, 2, 3), np.uint8)}, {"view_stride": 9}),
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_of_tritons_with_other_limits_one_that_takes_the_request_is_asked(asked: dict[str, Any]) -> None:
    """As while one release is replaced by another."""

    class Telling(FakePainter):
        def __init__(self, **told: str) -> None:
            super().__init__()
            self.told = ModelDescription(frozenset(), told)

        def descriptions(self) -> tuple[ModelDescription, ...]:
            return (self.told,)

    small = Telling(
        max_steps="50",
        samplers="ddim",
        max_pixels="30",
        max_regions="2",
        max_prompt_bytes="16",
        max_mask_pixels="12",
        window="8",
    )
    large = Telling(
        max_steps="200",
        samplers="ddim,lcm",
        max_pixels="90",
        max_regions="4",
        max_prompt_bytes="99",
        max_mask_pixels="18",
        window="9",
    )

    async def use(painter: BalancedPainter) -> None:
        for _ in range(4):
            await painter.paint(replace(REQUEST, **asked), request_id="job", on_progress=None)

    _with([small, large], use)
    assert (len(small.requests), len(large.requests)) == (0, 4)


def _limited(max_steps: int, error: Exception | None = None) -> FakePainter:
    return FakePainter(error=error, description=ModelDescription(frozenset(), {"max_steps": str(max_steps)}))


@pytest.mark.parametrize(
    ("steps", "asked"), [(100, [1, 1, 0]), (10, [1, 1, 1])], ids=["two could do it", "all could do it"]
)
def test_what_is_refused_now_is_not_given_to_one_that_would_refuse_it_for_good(steps: int, asked: list[int]) -> None:
    fakes = [_limited(200, FULL), _limited(150, AWAY), _limited(50, None if steps <= 50 else InvalidRequestError([]))]

    async def use(painter: BalancedPainter) -> ModelUnavailableError | None:
        try:
            await painter.paint(replace(REQUEST, num_inference_steps=steps), request_id="job", on_progress=None)
        except ModelUnavailableError as error:
            return error
        return None

    error = _with(fakes, use)
    assert [len(fake.requests) for fake in fakes] == asked
    assert error is (FULL if steps == 100 else None)


def test_what_none_could_do_is_refused_for_good() -> None:
    fakes = [_limited(50, InvalidRequestError([])), _limited(50, InvalidRequestError([]))]

    async def use(painter: BalancedPainter) -> None:
        with pytest.raises(InvalidRequestError):
            await painter.paint(replace(REQUEST, num_inference_steps=100), request_id="job", on_progress=None)

    _with(fakes, use)
    assert sum(len(fake.requests) for fake in fakes) == 1


def test_one_that_is_ready_and_has_not_told_counts_as_unknown_and_one_that_is_away_not_at_all() -> None:
    class Telling(FakePainter):
        def descriptions(self) -> tuple[ModelDescription, ...]:
            return (ModelDescription(frozenset(), {"max_steps": "100"}),)

    class Silent(FakePainter):
        def descriptions(self) -> tuple[ModelDescription, ...]:
            return ()

    async def use(painter: BalancedPainter) -> None:
        assert narrowed(settings(), painter.descriptions()).max_steps == settings().max_steps
        painter.endpoints[1].ready = False
        assert narrowed(settings(), painter.descriptions()).max_steps == 100

    _with([Telling(), Silent()], use)


@pytest.mark.parametrize("errors", [(FULL, AWAY), (AWAY, FULL), (ModelUnavailableError("full", retry_after=30), FULL)])
def test_a_full_model_tells_more_than_one_that_is_away(errors: tuple[ModelUnavailableError, ...]) -> None:
    fakes = [FakePainter(error=error) for error in errors]

    async def use(painter: BalancedPainter) -> ModelUnavailableError:
        with pytest.raises(ModelUnavailableError) as caught:
            await _paint(painter)
        return caught.value

    error = _with(fakes, use)
    assert (str(error), error.retry_after) == ("queue full", 9)
    assert [len(fake.requests) for fake in fakes] == [1, 1]


def test_one_known_to_be_away_is_not_tried_while_another_is_ready() -> None:
    fakes = [FakePainter(error=FULL), FakePainter(error=AWAY, not_ready=["multidiffusion"])]

    async def use(painter: BalancedPainter) -> ModelUnavailableError:
        painter.endpoints[1].ready = False
        with pytest.raises(ModelUnavailableError) as caught:
            await _paint(painter)
        return caught.value

    error = _with(fakes, use)
    assert (str(error), error.retry_after) == ("queue full", 9)
    assert [len(fake.requests) for fake in fakes] == [1, 0]


def test_the_first_that_is_ready_and_tells_describes_the_model() -> None:
    told = [ModelDescription(frozenset(), {"window": window}) for window in ("64", "128", "96")]
    fakes = [FakePainter(description=each) for each in told]

    async def use(painter: BalancedPainter) -> list[ModelDescription]:
        found = [await painter.describe() for _ in range(3)]
        painter.endpoints[0].ready = False
        found.append(await painter.describe())
        fakes[1].error = AWAY
        found.append(await painter.describe())
        fakes[2].error = FULL
        with pytest.raises(ModelUnavailableError, match="queue full"):
            await painter.describe()
        return found

    assert _with(fakes, use) == [told[0]] * 3 + [told[1], told[2]]


def test_where_none_is_ready_any_may_be_back() -> None:
    fakes = [FakePainter(), FakePainter()]

    async def use(painter: BalancedPainter) -> None:
        for endpoint in painter.endpoints:
            endpoint.ready = False
        await _paint(painter)

    _with(fakes, use)
    assert sum(len(fake.requests) for fake in fakes) == 1


@pytest.mark.parametrize(
    ("told", "known"),
    [
        (("ddim,euler", "ddim,lcm"), ("ddim", "euler", "lcm")),
        (("ddim", ""), None),  # whoever does not tell may have any
    ],
)
def test_samplers_are_those_of_all_tritons_together(told: tuple[str, str], known: tuple[str, ...] | None) -> None:
    fakes = [FakePainter(description=ModelDescription(frozenset(), {"samplers": names})) for names in told]

    async def use(painter: BalancedPainter) -> tuple[str, ...] | None:
        return painter.samplers()

    assert _with(fakes, use) == known


def test_the_service_is_ready_where_one_triton_is() -> None:
    async def use(painter: BalancedPainter) -> list[str]:
        return await painter.missing(["multidiffusion", "unet"])

    async def needed(painter: BalancedPainter) -> list[str]:
        return await painter.missing([])

    sdxl = ModelDescription(frozenset(), {"text_encoders": "text_encoder,text_encoder_2"})
    fakes = [
        FakePainter(not_ready=["text_encoder_2"], description=sdxl),
        FakePainter(not_ready=["unet", "vae_decoder"]),
    ]
    assert _with(fakes, needed) == ["text_encoder_2"]
    assert _with([FakePainter(not_ready=["unet"]), FakePainter()], use) == []
    assert _with([FakePainter(not_ready=["unet", "multidiffusion"]), FakePainter(not_ready=["unet"])], use) == ["unet"]


def test_the_next_triton_gets_what_is_left_of_the_time() -> None:
    class Slow(FakePainter):
        async def paint(self, request: ModelRequest, *, request_id: str, on_progress: OnProgress | None) -> Picture:
            await asyncio.sleep(12)
            return await super().paint(request, request_id=request_id, on_progress=on_progress)

    slow, good = Slow(error=AWAY), FakePainter()

    async def scenario(deadline: float | None) -> float | None:
        painter = BalancedPainter(
            [Endpoint("0", slow), Endpoint("1", good)], models=["multidiffusion"], probe_seconds=60.0
        )
        try:
            await painter.paint(replace(REQUEST, deadline_s=deadline), request_id="job", on_progress=None)
        finally:
            await painter.close()
        return good.requests[-1].deadline_s

    for deadline, left in ((30.0, 18.0), (12.0, SHORTEST_DEADLINE_S), (None, None)):
        with asyncio.Runner(loop_factory=JumpingLoop) as runner:
            assert runner.run(scenario(deadline)) == left


def test_what_tritons_that_are_ready_have_told_is_known() -> None:
    told = [ModelDescription(frozenset(), {"window": window}) for window in ("64", "128")]
    fakes = [FakePainter(description=each) for each in told]

    async def use(painter: BalancedPainter) -> list[tuple[ModelDescription, ...]]:
        both = painter.descriptions()
        painter.endpoints[0].ready = False
        return [both, painter.descriptions()]

    assert _with(fakes, use) == [tuple(told), (told[1],)]
