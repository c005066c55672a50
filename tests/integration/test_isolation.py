"""Requests do not disturb each other, and one whose client has left stops."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as grpcclient

from tests.integration.requests_and_pictures import request_body
from tests.integration.test_triton_clients import request, stream


def box_mask(height: int, width: int, left: int) -> Any:
    mask = np.zeros((1, height, width), np.uint8)
    mask[:, height // 4 : height // 2, left : left + 128] = 1
    return mask


def int32(value: int) -> Any:
    return np.array([value], np.int32)


# Sizes, samplers, seeds and step counts differ, so rows of different kinds meet in the UNet's batches.
DIFFERENT: list[dict[str, Any]] = [
    {},
    {"seed": np.array([4], np.uint64), "scheduler": np.array([b"euler_a"], dtype=object)},
    {"height": int32(300), "width": int32(420), "masks": box_mask(300, 420, 40)},
    {"height": int32(520), "width": int32(520), "masks": box_mask(520, 520, 300), "num_inference_steps": int32(3)},
    {"guidance_scale": np.array([1], np.float32), "scheduler": np.array([b"dpmpp_2m"], dtype=object)},
]


def paint(triton_grpc: str, change: dict[str, Any]) -> tuple[bytes, bytes]:
    """Bytes of the picture and of the final latents."""
    (final,) = stream(triton_grpc, request(grpcclient, return_latents=np.array([True]), **change))
    return final.as_numpy("image").tobytes(), final.as_numpy("latents").tobytes()


def test_different_requests_at_once_give_the_bytes_that_each_gives_alone(triton_grpc: str) -> None:
    alone = [paint(triton_grpc, change) for change in DIFFERENT]
    assert len(set(alone)) == len(alone)
    shuffle = random.Random(0)  # noqa: S311 - an order, not a secret
    with ThreadPoolExecutor(len(DIFFERENT)) as pool:
        for _ in range(10):
            order = shuffle.sample(range(len(DIFFERENT)), len(DIFFERENT))
            together = dict(zip(order, pool.map(lambda i: paint(triton_grpc, DIFFERENT[i]), order), strict=True))
            assert [together[i] for i in range(len(DIFFERENT))] == alone


STEPS = 150
FEW = STEPS // 3  # far more than can pass between a disconnect and the next step


class Statistics:
    """Triton's own counters."""

    def __init__(self, url: str) -> None:
        self.client = grpcclient.InferenceServerClient(url)

    def unet_calls(self) -> int:
        return int(self._model("unet").inference_stats.success.count)

    def ended_requests(self) -> int:
        stats = self._model("multidiffusion").inference_stats
        return int(stats.success.count + stats.fail.count)

    def _model(self, name: str) -> Any:
        return self.client.get_inference_statistics(name).model_stats[0]


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
