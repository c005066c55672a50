"""Embeddings of texts that were encoded before, shared by all requests.

U texts, L tokens. The text encoder's rows do not depend on their batch, so a cached embedding is the one
that the request would have got.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Outputs = Mapping[str, Tensor]  # by name, the first dimension of each is that of the texts
Encode = Callable[[npt.NDArray[np.int32]], Awaitable[Outputs]]  # (1, L) -> the encoder's outputs
Key = tuple[str, bytes]  # encoder, ids


class EmbeddingCache:
    """The embeddings used last, at most `max_bytes` of them. Not for threads: one event loop owns it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._embeddings: OrderedDict[Key, Outputs] = OrderedDict()
        self._pending: dict[Key, asyncio.Future[Outputs]] = {}

    async def encode(self, encoder: str, input_ids: npt.NDArray[np.int32], encode: Encode) -> Outputs:
        """An encoder's outputs for texts (U, L); those not cached are asked of `encode`, one by one, all at once."""
        texts = await asyncio.gather(*(self._encode(encoder, ids[None], encode) for ids in input_ids))
        return {name: torch.cat([text[name] for text in texts]) for name in texts[0]}

    async def _encode(self, encoder: str, ids: npt.NDArray[np.int32], encode: Encode) -> Outputs:
        key = (encoder, ids.tobytes())
        if key in self._embeddings:
            self.hits += 1
            self._embeddings.move_to_end(key)
            return self._embeddings[key]
        if key in self._pending:  # another request asked for it a moment ago
            self.hits += 1
        else:
            self.misses += 1
            self._pending[key] = asyncio.ensure_future(self._encode_and_keep(key, ids, encode))
        # Shielded: a request that ends early takes the embedding from no other.
        return await asyncio.shield(self._pending[key])

    async def _encode_and_keep(self, key: Key, ids: npt.NDArray[np.int32], encode: Encode) -> Outputs:
        try:
            outputs = await encode(ids)
        finally:
            del self._pending[key]
        self._keep(key, outputs)
        return outputs

    def _keep(self, key: Key, outputs: Outputs) -> None:
        self._embeddings[key] = outputs
        self.bytes += _bytes(outputs)
        while self.bytes > self.max_bytes:
            _, oldest = self._embeddings.popitem(last=False)
            self.bytes -= _bytes(oldest)


def _bytes(outputs: Outputs) -> int:
    return sum(tensor.nbytes for tensor in outputs.values())
