"""The adapter beside a Triton whose networks hang, fail or answer late, and clients that leave: who gets what."""

import asyncio
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from errors import CancelledRequestError, DeadlineError
from multsd_gateway.settings import Settings
from tests.jumping import JumpingLoop
from tests.unit.repository.orchestrator import (
    Array,
    Code,
    Network,
    Request,
    TritonError,
    contract,
    serving,
    text_encoder,
    unet,
    vae_decoder,
)

SOON = 30.0  # seconds that nothing here takes


class Held:
    """A network that answers no call before it is let go."""

    def __init__(self, network: Network, *, free: int = 0) -> None:
        """free: so many calls are answered at once."""
        self._network = network
        self._free = free
        self.calls = 0
        self.reached = asyncio.Event()  # a call waits
        self.let_go = asyncio.Event()

    async def __call__(self, inputs: Mapping[str, Array]) -> Array:
        self.calls += 1
        if self.calls > self._free:
            self.reached.set()
            await self.let_go.wait()
        return await self._network(inputs)


def sent(model: Any, *requests: Request) -> "list[asyncio.Task[None]]":
    return [asyncio.create_task(model.answer([request])) for request in requests]


async def until(condition: Any) -> None:
    """Let everything run until it holds."""
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)


def test_a_request_is_painted_and_told_its_steps() -> None:
    async def scenario() -> None:
        with serving() as (model, _, triton):
            request = Request(progress=True)
            await model.answer([request])
            assert request.answer == "picture"
            assert request.told("progress_steps") == [[step, 4] for step in (1, 2, 3, 4)]
            assert triton.metrics["multsd_unet_rows_total"].value == 8

    asyncio.run(scenario())


def test_triton_need_not_wait_for_the_answers() -> None:
    answers = 3
    with serving() as (model, _, triton):
        finals = threading.Semaphore(0)
        requests = [Request(seed=seed) for seed in range(answers)]
        for request in requests:
            send = request.sender.send

            def sent(response: Any, flags: int = 0, send: Any = send) -> None:
                send(response, flags)
                if flags:
                    finals.release()

            request.sender.send = sent  # type: ignore[method-assign]
            assert model.execute([request]) is None
        assert all(finals.acquire(timeout=SOON) for _ in requests)
        assert [request.answer for request in requests] == ["picture"] * answers
        model.finalize()
        assert not triton.log


def test_an_answer_that_cannot_be_sent_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (model, _, triton):
        request, done = Request(), threading.Event()

        def log_error(line: str) -> None:
            triton.log.append(line)
            done.set()

        def unsendable(*_: Any, **__: Any) -> None:
            raise RuntimeError("the response factory is gone")

        request.sender.send = unsendable  # type: ignore[method-assign]
        monkeypatch.setattr(triton.Logger, "log_error", log_error)
        model.execute([request])
        assert done.wait(SOON)
        assert triton.log == ["answering: RuntimeError: the response factory is gone"]
        model.finalize()


def no_utf8() -> str:
    """As Triton's Python backend reads what an HTTP client sent."""
    return b"\xff".decode()


def test_a_request_whose_id_and_parameters_are_no_utf8_is_answered_all_the_same() -> None:
    """An error in telling the error would leave its client without any answer."""

    async def scenario() -> None:
        with serving() as (model, _, triton):
            for height, answer in (64, "picture"), (1, "height: expected 64 to 65536, found 1"):
                request = Request(height=height)
                request.request_id = request.parameters = no_utf8  # type: ignore[method-assign]
                await model.answer([request])
                assert request.answer == answer
            assert not triton.log

    asyncio.run(scenario())


def test_a_unet_call_that_was_slow_refuses_no_deadline_that_can_be_met() -> None:
    async def scenario() -> None:
        with serving() as (model, _, _triton):
            model.pace.saw(2, 60.0)
            request = Request(deadline_s=SOON)
            await model.answer([request])
            assert request.answer == "picture"

    asyncio.run(scenario())


def test_a_deadline_that_cannot_be_met_is_refused_by_what_the_unet_has_lately_taken() -> None:
    async def scenario() -> None:
        with serving() as (model, _, triton):
            triton.networks["unet"] = held = Held(unet)
            for _ in range(3):
                model.pace.saw(16, 160.0)
            request = Request(deadline_s=SOON)
            await model.answer([request])
            assert request.answer.startswith("DEADLINE_EXCEEDED: deadline_s: at least 80.0 s more are needed, ")
            assert held.calls == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"bootstrapping": -1}, "INVALID_ARG: bootstrapping: expected 0 to 1000, found -1"),
        ({"scheduler": b"nope"}, "INVALID_ARG: scheduler: expected one of ddim, "),
        ({"scheduler": b"lcm", "num_inference_steps": 51}, "INVALID_ARG: num_inference_steps: expected 1 to 50 for "),
        ({"masks": np.zeros((1024, 1024), np.uint8)}, "INVALID_ARG: masks: expected shape (0, 64, 64) "),
        ({"height": 2048, "width": 2048, "view_stride": 1}, "INVALID_ARG: view_stride: expected at most 25000 pairs "),
    ],
    ids=["value", "sampler", "steps of a sampler", "masks", "pairs"],
)
def test_a_faulty_request_is_refused_before_it_waits(fields: dict[str, Any], answer: str) -> None:
    async def scenario() -> None:
        with serving(max_running=1) as (model, _, triton):
            triton.networks["unet"] = held = Held(unet)
            good = sent(model, Request())
            await held.reached.wait()
            faulty = Request(**fields)
            async with asyncio.timeout(SOON):
                await model.answer([faulty])
            assert faulty.answer.startswith(answer)
            held.let_go.set()
            await asyncio.gather(*good)

    asyncio.run(scenario())


def test_latents_alone_have_to_be_asked_for_by_their_field_too() -> None:
    async def scenario() -> None:
        with serving() as (model, _, _triton):
            request = Request(outputs=["latents"])
            await model.answer([request])
            assert request.answer.startswith("INVALID_ARG: return_latents: expected true where latents alone are asked")
            asked = Request(outputs=["latents"], return_latents=True)
            await model.answer([asked])
            assert asked.sender.final is not None
            assert list(asked.sender.final.tensors) == ["latents"]

    asyncio.run(scenario())


def test_a_network_that_overflows_is_named_and_logged() -> None:
    async def scenario() -> None:
        with serving() as (model, _, triton):

            async def overflowing(inputs: Mapping[str, Array]) -> Array:
                return np.full_like(await unet(inputs), np.nan)

            triton.networks["unet"] = overflowing
            request = Request()
            await model.answer([request])
            message = "unet: expected finite values, found others after step 1"
            assert request.answer == f"INTERNAL: {message}"
            assert triton.log == [f"request test: NotFiniteError: {message}"]

    asyncio.run(scenario())


def test_an_embedding_that_is_not_finite_fails_its_request_and_is_not_kept_for_others() -> None:
    async def scenario() -> None:
        with serving() as (model, _, triton):
            once = iter([np.float32(np.nan)])

            async def encoder(inputs: Mapping[str, Array]) -> Array:
                return await text_encoder(inputs) + next(once, np.float32(0))

            triton.networks["text_encoder"] = encoder
            first, second = Request(), Request()
            await model.answer([first])
            await model.answer([second])
            message = "text_encoder: expected finite values, found others in last_hidden_state"
            assert (first.answer, second.answer) == (f"INTERNAL: {message}", "picture")

    asyncio.run(scenario())


def test_a_deadline_that_is_over_is_told_with_its_limit() -> None:
    async def scenario() -> None:
        with serving() as (model, _, triton):
            triton.networks["unet"] = held = Held(unet)
            request = Request(deadline_s=0.01)
            await model.answer([request])
            assert request.answer == "DEADLINE_EXCEEDED: deadline_s: not done, none of its 0.01 s are left"
            held.let_go.set()

    asyncio.run(scenario())


def test_a_deadline_that_is_over_counts_before_a_client_that_has_gone() -> None:
    """A client that knows its deadline leaves at about the same time."""
    with serving() as (_, module, _triton):
        request = Request()
        request.sender.cancelled = True
        for arrived, error in ((time.monotonic() - 2, DeadlineError), (time.monotonic() + SOON, CancelledRequestError)):
            progress = module.Progress(request, request.sender, wanted=False, arrived=arrived, deadline=1)
            with pytest.raises(error):
                progress.check()


def test_a_hung_network_is_recognised_before_the_gateway_gives_a_request_up() -> None:
    assert 0 < float(contract().parameters["network_seconds"].string_value) < Settings().request_seconds / 2


def test_a_network_that_hangs_ends_the_requests_that_wait_for_it() -> None:
    async def scenario() -> None:
        with serving(network_seconds=1) as (model, _, triton):
            triton.networks["unet"] = held = Held(unet)
            requests = [Request() for _ in range(3)]
            await asyncio.gather(*sent(model, *requests))
            assert {request.answer for request in requests} == {"UNAVAILABLE: unet: no answer for 1 s"}
            held.let_go.set()
            later = Request()
            await model.answer([later])
            assert later.answer == "picture"

    asyncio.run(scenario())


@pytest.mark.parametrize("calls_ahead", [0, 1])
def test_a_unet_that_hangs_ends_all_that_run_or_wait_within_one_timeout(calls_ahead: int) -> None:
    """Each has eight rows a step: two fill a call. Those that come later end together as well."""

    async def scenario() -> None:
        with serving(network_seconds=1, unet_calls_ahead=calls_ahead, max_running=8) as (model, _, triton):
            triton.networks["unet"] = held = Held(unet)
            loop = asyncio.get_running_loop()
            for lot in (1, 2):
                requests = [Request(width=160) for _ in range(20)]
                began = loop.time()
                tasks = sent(model, *requests)
                await until(lambda: model.admission.waiting == 12)
                await asyncio.gather(*tasks)
                assert 1 <= loop.time() - began < 3
                assert {request.answer for request in requests} == {"UNAVAILABLE: unet: no answer for 1 s"}
                assert held.calls == lot * (1 + calls_ahead)
                assert model.admission.running == model.admission.waiting == 0
            held.let_go.set()
            later = Request(width=160)
            await model.answer([later])
            assert later.answer == "picture"

    asyncio.run(scenario())


def test_a_decoder_that_hangs_ends_none_that_wait_for_the_unet() -> None:
    async def scenario() -> None:
        with serving(network_seconds=1, max_running=1) as (model, _, triton):
            triton.networks["vae_decoder"] = held = Held(vae_decoder)
            first, second = Request(), Request()
            tasks = sent(model, first, second)
            await tasks[0]
            assert first.answer == "UNAVAILABLE: vae_decoder: no answer for 1 s"
            held.let_go.set()
            await tasks[1]
            assert second.answer == "picture"

    asyncio.run(scenario())


@pytest.mark.parametrize(("deterministic", "rows"), [("false", 1), ("true", 16)])
def test_a_unet_that_fails_every_call_ends_the_process(
    deterministic: str, rows: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is asked for rows of zeros, of the one size where calls have one."""
    asked: list[Array] = []

    async def broken(inputs: Mapping[str, Array]) -> Array:
        asked.append(inputs["sample"])
        raise TritonError("an illegal memory access was encountered")

    async def scenario() -> None:
        with serving(failing_seconds=3, deterministic=deterministic) as (model, _, triton):
            triton.networks["unet"] = broken
            request, ended = Request(), asyncio.get_running_loop().create_future()
            monkeypatch.setattr("os._exit", ended.set_result)
            await model.answer([request])
            assert request.answer == "INTERNAL: unet: an illegal memory access was encountered"
            assert await asyncio.wait_for(ended, SOON) == 1

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(scenario())
    checks = asked[1:]
    assert len(checks) >= 3
    assert {len(each) for each in checks} == {rows}
    assert not np.any(checks)
    assert "every call of the UNet fails, the process ends: unet: an illegal memory access" in capfd.readouterr().err


def test_a_unet_that_fails_for_what_it_was_asked_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def picky(inputs: Mapping[str, Array]) -> Array:
        if inputs["sample"].any():
            raise TritonError("out of memory")
        return await unet(inputs)

    async def scenario() -> None:
        with serving(failing_seconds=3) as (model, _, triton):
            triton.networks["unet"] = picky
            monkeypatch.setattr("os._exit", lambda _: pytest.fail("ended"))
            for _ in range(4):
                request = Request()
                await model.answer([request])
                assert request.answer == "INTERNAL: unet: out of memory"
                await asyncio.sleep(2)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.INTERNAL])  # Triton before 25.01 loses the first
def test_what_tritons_own_queue_gave_up_is_asked_no_second_time(code: Code) -> None:
    async def scenario() -> None:
        async def stuck(_: Mapping[str, Array]) -> Array:
            raise TritonError("Request timeout expired", code)

        with serving() as (model, _, triton):
            triton.networks["unet"] = held = Held(stuck)
            requests = [Request() for _ in range(3)]
            tasks = sent(model, *requests)
            await until(lambda: held.calls and len(model.batcher._open) == 3)
            held.let_go.set()
            await asyncio.gather(*tasks)
            for request in requests:
                assert request.answer.startswith("UNAVAILABLE: unet: no answer for ")
                assert request.answer.endswith(" s: Request timeout expired")
            assert held.calls <= 2  # the first, and one of those that were too late for it

    asyncio.run(scenario())


def test_a_decoder_that_hangs_keeps_nobody_from_the_other_networks() -> None:
    """However many have stopped waiting for it."""

    async def scenario() -> None:
        with serving() as (model, module, triton):
            triton.networks["vae_decoder"] = held = Held(vae_decoder)
            latents = {"latent_sample": Request().arrays["prompt"]}
            left = [
                asyncio.create_task(model.calls.call("vae_decoder", ["sample"], latents))
                for _ in range(2 * module.MOST_CALLS)
            ]
            await until(lambda: held.calls == module.MOST_CALLS)
            for call in left:
                call.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            request = Request(progress=True)
            (task,) = sent(model, request)
            await until(lambda: len(request.told("progress_steps")) == 4)
            assert held.calls == module.MOST_CALLS
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())


def test_calls_of_a_hung_unet_that_are_left_behind_are_bounded() -> None:
    async def scenario() -> None:
        with serving() as (model, module, triton):
            triton.networks["unet"] = held = Held(unet)
            inputs = {"sample": Request().arrays["seed"]}
            most = 1 + module.SPARE_CALLS
            left = [asyncio.create_task(model.calls.call("unet", ["out_sample"], inputs)) for _ in range(2 * most)]
            await until(lambda: held.calls == most)
            for call in left:
                call.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            request = Request()
            (task,) = sent(model, request)
            await until(lambda: len(model.batcher._open) == 1)
            assert held.calls == most
            held.let_go.set()
            await task
            assert request.answer == "picture"

    asyncio.run(scenario())


def test_clients_that_leave_the_queue_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        with serving(max_running=1, max_waiting=2) as (model, _, triton):
            triton.networks["unet"] = held = Held(unet)
            monkeypatch.setattr(model.admission, "_look_every", 0.001)
            first, gone, other = Request(), [Request(), Request()], Request()
            tasks = sent(model, first, *gone)
            await until(lambda: model.admission.waiting == 2)
            for request in gone:
                request.sender.cancelled = True
            async with asyncio.timeout(SOON):
                await asyncio.gather(*tasks[1:])
            assert {request.answer for request in gone} == {"CANCELLED: cancelled by the client"}
            tasks += sent(model, other)
            await until(lambda: model.admission.waiting == 1)
            held.let_go.set()
            await asyncio.gather(*tasks)
            assert first.answer == other.answer == "picture"
            assert triton.metrics["multsd_requests_cancelled_total"].value == 2

    asyncio.run(scenario())


def test_a_stream_that_is_gone_ends_its_own_request_and_not_the_one_that_makes_room() -> None:
    async def scenario() -> None:
        with serving(max_running=1) as (model, _, triton):
            triton.networks["unet"] = held = Held(unet)
            first, second, deaf = Request(), Request(progress=True), Request(progress=True)
            tasks = sent(model, first, second, deaf)
            await until(lambda: model.admission.waiting == 2)
            deaf.sender.deaf = True
            held.let_go.set()
            await asyncio.gather(*tasks)
            assert first.answer == second.answer == "picture"
            assert deaf.answer == "INTERNAL: internal error (RuntimeError)"
            assert model.admission.running == model.admission.waiting == 0

    asyncio.run(scenario())


def test_a_client_that_leaves_while_its_picture_is_decoded_counts_as_gone() -> None:
    async def scenario() -> None:
        with serving() as (model, _, triton):
            triton.networks["vae_decoder"] = held = Held(vae_decoder)
            request = Request()
            (task,) = sent(model, request)
            await asyncio.wait_for(held.reached.wait(), SOON)
            request.sender.cancelled = True
            held.let_go.set()
            await task
            assert request.answer == "CANCELLED: cancelled by the client"
            assert triton.metrics["multsd_requests_cancelled_total"].value == 1
            assert triton.metrics["multsd_picture_seconds"].value == 0

    asyncio.run(scenario())


def test_a_refusal_tells_what_is_left_of_those_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its four steps of two rows the first two are done."""

    async def scenario() -> None:
        with serving(max_running=1, max_waiting=0) as (model, _, triton):
            triton.networks["unet"] = held = Held(unet, free=2)
            monkeypatch.setattr(model.pace, "seconds", float)  # a row a second
            (task,) = sent(model, Request())
            await asyncio.wait_for(held.reached.wait(), SOON)
            refused = Request()
            await model.answer([refused])
            assert refused.answer == "UNAVAILABLE: 1 requests are running and 0 waiting; try again in 4 s"
            held.let_go.set()
            await task

    asyncio.run(scenario())


def test_texts_of_a_deterministic_deployment_are_encoded_one_by_one() -> None:
    async def scenario() -> None:
        at_work = most = 0

        async def encoder(inputs: Mapping[str, Array]) -> Array:
            nonlocal at_work, most
            at_work += 1
            most = max(most, at_work)
            await asyncio.sleep(0)
            at_work -= 1
            return await text_encoder(inputs)

        with serving(deterministic="true") as (model, _, triton):
            text_encoder = triton.networks["text_encoder"]
            triton.networks["text_encoder"] = encoder
            request = Request()
            await model.answer([request])
            assert request.answer == "picture"
            assert most == 1
            assert triton.metrics["multsd_unet_rows_padded_total"].value == 4 * 14

    asyncio.run(scenario())


def test_what_is_counted_is_told_triton_in_order_and_all_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        with serving() as (_, module, triton):
            logged: list[str] = []
            monkeypatch.setattr(triton.Logger, "log_error", logged.append)
            told: list[float] = []
            aside = module.Aside()
            batches: list[int] = []
            make = aside._make

            def counted(calls: Any) -> None:
                batches.append(len(calls))
                make(calls)

            monkeypatch.setattr(aside, "_make", counted)

            def failing(value: float) -> None:
                raise RuntimeError(f"no {value:g}")

            for value in (1.0, 2.0):
                aside.call(told.append, value)
            aside.call(failing, 3.0)
            aside.call(told.append, 4.0)
            assert not told, "not while the loop has something to do"
            await aside.done()
            assert told == [1.0, 2.0, 4.0]
            assert logged == ["metrics: RuntimeError: no 3"]
            assert batches == [4]

    asyncio.run(scenario())


def test_nothing_keeps_the_metrics_when_the_model_is_unloaded() -> None:
    async def scenario() -> None:
        with serving() as (model, _, _triton):
            await model.answer([Request()])
            metrics = weakref.ref(model.metrics)
            await model.aside.done()
            model.finalize()
            assert metrics() is None

    asyncio.run(scenario())


def test_what_is_counted_is_told_triton_without_anybody_waiting() -> None:
    async def scenario() -> None:
        with serving() as (_, module, _triton):
            aside, told = module.Aside(), list[float]()
            for value in (1.0, 2.0):  # again after the first
                aside.call(told.append, value)
                await until(lambda: len(told) == value)  # noqa: B023 - waited for here
            assert told == [1.0, 2.0]

    asyncio.run(scenario())
