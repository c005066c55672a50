import asyncio
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedding_cache import EmbeddingCache, Outputs

NAME = "last_hidden_state"
EMBEDDING_BYTES = 2 * 3 * 4  # (1, 2, 3) float32


class Encoder:
    """A text encoder that gives each text its first id, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def __call__(self, input_ids: npt.NDArray[np.int32]) -> dict[str, Tensor]:
        self.asked.append(int(input_ids[0, 0]))
        await asyncio.sleep(0)
        return {NAME: torch.full((1, 2, 3), float(input_ids[0, 0]))}


def ids(*texts: int) -> npt.NDArray[np.int32]:
    return np.array([[text, 0] for text in texts], dtype=np.int32)


def encode(cache: EmbeddingCache, encoder: Encoder, *texts: int) -> list[float]:
    outputs = asyncio.run(cache.encode("text_encoder", ids(*texts), encoder))
    first: list[float] = outputs[NAME][:, 0, 0].tolist()  # of (U, 2, 3)
    return first


def test_every_text_gets_its_own_embedding_in_order() -> None:
    assert encode(EmbeddingCache(10**6), Encoder(), 5, 3, 4) == [5, 3, 4]


def test_a_text_is_encoded_once() -> None:
    cache, encoder = EmbeddingCache(10**6), Encoder()
    encode(cache, encoder, 1, 2)
    assert encode(cache, encoder, 2, 3) == [2, 3]
    assert encoder.asked == [1, 2, 3]
    assert (cache.hits, cache.misses) == (1, 3)


def test_the_one_used_longest_ago_goes_when_the_bytes_are_full() -> None:
    cache, encoder = EmbeddingCache(2 * EMBEDDING_BYTES), Encoder()
    for text in (1, 2, 1, 3):  # 2 goes
        encode(cache, encoder, text)
    assert cache.bytes == 2 * EMBEDDING_BYTES
    encode(cache, encoder, 1)
    encode(cache, encoder, 2)
    assert encoder.asked == [1, 2, 3, 2]


def test_nothing_is_kept_where_nothing_may_be() -> None:
    cache, encoder = EmbeddingCache(0), Encoder()
    assert encode(cache, encoder, 1) == encode(cache, encoder, 1)
    assert cache.bytes == 0


def test_requests_at_once_for_one_text_encode_it_once() -> None:
    async def together(requests: Sequence[int]) -> list[Outputs]:
        return await asyncio.gather(*(cache.encode("text_encoder", ids(text), encoder) for text in requests))

    cache, encoder = EmbeddingCache(10**6), Encoder()
    embeddings = asyncio.run(together([7, 7, 7]))
    assert [float(each[NAME][0, 0, 0]) for each in embeddings] == [7, 7, 7]
    assert encoder.asked == [7]
    assert cache.bytes == EMBEDDING_BYTES
    assert (cache.hits, cache.misses) == (2, 1)


def test_a_request_that_is_cancelled_takes_the_embedding_from_no_other() -> None:
    async def one_leaves() -> Outputs:
        first = asyncio.ensure_future(cache.encode("text_encoder", ids(7), encoder))
        second = asyncio.ensure_future(cache.encode("text_encoder", ids(7), encoder))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    cache, encoder = EmbeddingCache(10**6), Encoder()
    assert float(asyncio.run(one_leaves())[NAME][0, 0, 0]) == 7
    assert encoder.asked == [7]


def test_a_failure_reaches_all_who_wait_and_is_not_remembered() -> None:
    async def together() -> list[Outputs | BaseException]:
        return await asyncio.gather(
            *(cache.encode("text_encoder", ids(7), fail) for _ in range(2)), return_exceptions=True
        )

    async def fail(_: npt.NDArray[np.int32]) -> Outputs:
        await asyncio.sleep(0)
        raise RuntimeError("no")

    cache, encoder = EmbeddingCache(10**6), Encoder()
    assert [str(error) for error in asyncio.run(together())] == ["no", "no"]
    assert encode(cache, encoder, 7) == [7]


def test_two_encoders_have_embeddings_of_their_own_for_the_same_ids() -> None:
    async def other(input_ids: npt.NDArray[np.int32]) -> Outputs:
        return {NAME: torch.full((len(input_ids), 2, 3), -1.0), "text_embeds": torch.ones(1, 4)}

    cache, encoder = EmbeddingCache(10**6), Encoder()
    assert encode(cache, encoder, 7) == [7]
    outputs = asyncio.run(cache.encode("text_encoder_2", ids(7), other))
    assert float(outputs[NAME][0, 0, 0]) == -1
    assert outputs["text_embeds"].shape == (1, 4)
    assert cache.bytes == 2 * EMBEDDING_BYTES + 4 * 4
