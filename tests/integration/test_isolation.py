"""Requests do not disturb each other, and one whose client has left stops."""

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from tests.integration.requests_and_pictures import request_body
from tests.integration.test_triton_clients import request, stream


def box_mask(height: int, width: int, left: int) -> Any:
    mask = np.zeros((1, height, width), np.uint8)
    mask[:, height // 4 : height // 2, left : left + 128] = 1
    return mask


def int32(value: int) -> Any:
    return np.array([value], np.int32)


def boxes(height: int, width: int, *lefts: int) -> Any:
    return np.concatenate([box_mask(height, width, left) for left in lefts])


def texts(*values: str) -> Any:
    return np.array([value.encode() for value in values], dtype=object)


def float32(value: float) -> Any:
    return np.array([value], np.float32)


# Sizes, masks, steps, samplers, strides, guidance and seeds differ, so rows of different kinds meet in the UNet's
# calls. None has more than half a call of rows in a step.
DIFFERENT: list[dict[str, Any]] = [
    {},
    {
        "height": int32(448),
        "width": int32(512),
        "masks": box_mask(448, 512, 200),
        "seed": np.array([4], np.uint64),
        "num_inference_steps": int32(5),
        "scheduler": texts("euler_a"),
    },
    {"height": int32(300), "width": int32(420), "masks": box_mask(300, 420, 40), "scheduler": texts("unipc")},
    {
        "height": int32(512),
        "width": int32(576),
        "masks": box_mask(512, 576, 400),
        "guidance_scale": float32(1),
        "num_inference_steps": int32(3),
        "scheduler": texts("dpmpp_2m_karras"),
    },
    {
        "height": int32(512),
        "width": int32(333),
        "masks": box_mask(512, 333, 0),
        "guidance_scale": float32(1),
        "num_inference_steps": int32(6),
        "scheduler": texts("dpmpp_2m"),
    },
    {
        "height": int32(128),
        "width": int32(64),
        "prompt": texts("a red circle"),
        "masks": None,
        "num_inference_steps": int32(7),
        "bootstrapping": int32(0),
        "scheduler": texts("euler"),
    },
    {
        "height": int32(500),
        "width": int32(640),
        "prompt": texts("yellow background", "a blue star", "a green ring"),
        "masks": boxes(500, 640, 60, 420),
        "guidance_scale": float32(1),
        "num_inference_steps": int32(2),
        "view_stride": int32(16),
        "scheduler": texts("lcm"),
    },
    {
        "height": int32(545),
        "width": int32(490),
        "prompt": texts("blue dots background", "a white cross", "a red heart"),
        "masks": boxes(545, 490, 10, 350),
        "guidance_scale": float32(1),
        "num_inference_steps": int32(4),
        "view_stride": int32(5),
    },
]
# With so many steps the UNet is what they wait for, not the VAE.
OTHERS = [
    change | {"seed": np.array([100 + i], np.uint64), "num_inference_steps": int32(8 + i % 3)}
    for i, change in enumerate(DIFFERENT * 2)
]

Painted = tuple[str, str]


def paint(triton_grpc: str, change: dict[str, Any]) -> Painted:
    """SHA-256 of the picture's bytes and of the final latents'."""
    wanted = {"return_latents": np.array([True]), "progress": np.array([True])}
    *_, final = stream(triton_grpc, request(grpcclient, **wanted, **change))
    image, latents = (hashlib.sha256(final.as_numpy(name).tobytes()).hexdigest() for name in ("image", "latents"))
    return image, latents


class Statistics:
    """Triton's own counters."""

    def __init__(self, url: str) -> None:
        self.client = grpcclient.InferenceServerClient(url)

    def unet_calls(self) -> int:
        return int(self._model("unet").inference_stats.success.count)

    def ended_requests(self) -> int:
        stats = self._model("multidiffusion").inference_stats
        return int(stats.success.count + stats.fail.count)

    @contextmanager
    def rows_a_call(self) -> Iterator[list[float]]:
        """Rows that an execution of the UNet had on average while the body ran: added to the list when it ends."""
        before, found = self._model("unet"), list[float]()
        yield found
        after = self._model("unet")
        rows, calls = after.inference_count - before.inference_count, after.execution_count - before.execution_count
        found.append(rows / calls)

    def _model(self, name: str) -> Any:
        return self.client.get_inference_statistics(name).model_stats[0]


@dataclass(frozen=True)
class Alone:
    """What each of the different requests gives while nobody else is there."""

    painted: list[Painted]
    rows_a_call: list[float]


@pytest.fixture(scope="module")
def alone(triton_grpc: str) -> Alone:
    statistics, painted, rows = Statistics(triton_grpc), [], []
    for change in DIFFERENT:
        with statistics.rows_a_call() as found:
            painted.append(paint(triton_grpc, change))
        rows += found
    return Alone(painted, rows)


def paint_together(triton_grpc: str, order: Sequence[int]) -> list[Painted]:
    """All the different requests at once, sent in that order; in their own order."""
    with ThreadPoolExecutor(len(order)) as pool:
        painted = dict(zip(order, pool.map(lambda i: paint(triton_grpc, DIFFERENT[i]), order), strict=True))
    return [painted[i] for i in range(len(order))]


@contextmanager
def load(triton_grpc: str, changes: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Have every one of these requests sent again and again while the body runs; each has to give the same bytes."""
    enough = threading.Event()

    def ask(change: dict[str, Any]) -> set[Painted]:
        painted = {paint(triton_grpc, change)}
        while not enough.is_set():
            painted.add(paint(triton_grpc, change))
        return painted

    with ThreadPoolExecutor(len(changes)) as pool:
        askers = [pool.submit(ask, change) for change in changes]
        try:
            yield
        finally:
            enough.set()
    assert [len(asker.result()) for asker in askers] == [1] * len(changes)


SHARED = 1.4  # times the rows a call of the widest request alone


def assert_shared(rows_together: float, alone: Alone) -> None:
    """Calls had so many rows that rows of different requests were in them."""
    assert rows_together > SHARED * max(alone.rows_a_call), alone.rows_a_call


def test_eight_different_requests_at_once_share_calls_and_give_the_bytes_that_each_gives_alone(
    triton_grpc: str, alone: Alone
) -> None:
    assert len(set(alone.painted)) == len(DIFFERENT) == 8
    shuffle = random.Random(0)  # noqa: S311 - an order, not a secret
    with Statistics(triton_grpc).rows_a_call() as rows:
        for _ in range(2):
            order = shuffle.sample(range(len(DIFFERENT)), len(DIFFERENT))
            assert paint_together(triton_grpc, order) == alone.painted
    assert_shared(rows[0], alone)


def test_eight_different_requests_give_the_same_bytes_while_sixteen_others_are_painted(
    triton_grpc: str, alone: Alone
) -> None:
    assert len(OTHERS) == 16
    statistics = Statistics(triton_grpc)
    with statistics.rows_a_call() as rows:
        calls = statistics.unet_calls()
        with load(triton_grpc, OTHERS):
            wait_for(lambda: statistics.unet_calls() > calls, "the others to be painted")
            painted = paint_together(triton_grpc, range(len(DIFFERENT)))
    assert painted == alone.painted
    assert_shared(rows[0], alone)


STEPS = 150
FEW = STEPS // 3  # far more than can pass between a disconnect and the next step


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def test_client_that_leaves_the_stream_stops_its_work(gateway: httpx.Client, triton_grpc: str) -> None:
    statistics = Statistics(triton_grpc)
    calls = statistics.unet_calls()
    ended = statistics.ended_requests()
    with gateway.stream("POST", "/multsd/stream", json=request_body(ddim_steps=STEPS)) as response:
        for line in response.iter_lines():
            if '"step": 3,' in line or '"step":3,' in line:
                break
    wait_for(lambda: statistics.ended_requests() > ended, "the request to end")
    assert 3 <= statistics.unet_calls() - calls < FEW


def test_client_that_leaves_a_plain_request_stops_its_work(gateway: httpx.Client, triton_grpc: str) -> None:
    statistics = Statistics(triton_grpc)
    calls = statistics.unet_calls()
    ended = statistics.ended_requests()
    leaving = httpx.Client(base_url=gateway.base_url, timeout=60)
    failures: list[Exception] = []

    def post() -> None:
        try:
            leaving.post("/multsd", json=request_body(ddim_steps=STEPS))
        except httpx.HTTPError as error:
            failures.append(error)

    thread = threading.Thread(target=post)
    thread.start()
    wait_for(lambda: statistics.unet_calls() - calls >= 3, "the first steps")
    leave(leaving)
    thread.join(timeout=60)
    assert len(failures) == 1
    wait_for(lambda: statistics.ended_requests() > ended, "the request to end")
    assert statistics.unet_calls() - calls < FEW


def leave(client: httpx.Client) -> None:
    """Shut the client's sockets down, as a process that dies does."""
    import socket

    for connection in client._transport._pool.connections:  # type: ignore[attr-defined]
        stream = connection._connection._network_stream
        stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def test_others_go_on_when_a_client_leaves(gateway: httpx.Client) -> None:
    expected = gateway.post("/multsd", json=request_body()).json()["image"]
    with gateway.stream("POST", "/multsd/stream", json=request_body(ddim_steps=STEPS, seed=1)) as response:
        next(line for line in response.iter_lines() if '"step"' in line)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(lambda: gateway.post("/multsd", json=request_body()).json()["image"])
    assert other.result() == expected
