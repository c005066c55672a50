"""Embeddings of texts that were encoded before, shared by all requests.

U texts, L tokens, D embedding. The text encoder's rows do not depend on their batch, so a cached embedding is the one
that the request would have got.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Encode = Callable[[npt.NDArray[np.int32]], Awaitable[Tensor]]  # (1, L) -> (1, L, D)


class EmbeddingCache:
    """The embeddings used last, at most `max_bytes` of them. Not for threads: one event loop owns it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._embeddings: OrderedDict[bytes, Tensor] = OrderedDict()
        self._pending: dict[bytes, asyncio.Future[Tensor]] = {}

    async def encode(self, input_ids: npt.NDArray[np.int32], encode: Encode) -> Tensor:
        """Embeddings of texts, (U, L) -> (U, L, D); those not cached are asked of `encode`, one by one, all at once."""
        return torch.cat(await asyncio.gather(*(self._encode(ids[None], encode) for ids in input_ids)))

    async def _encode(self, ids: npt.NDArray[np.int32], encode: Encode) -> Tensor:
        key = ids.tobytes()
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

    async def _encode_and_keep(self, key: bytes, ids: npt.NDArray[np.int32], encode: Encode) -> Tensor:
        try:
            embedding = await encode(ids)  # (1, L, D)
        finally:
            del self._pending[key]
        self._keep(key, embedding)
        return embedding

    def _keep(self, key: bytes, embedding: Tensor) -> None:
        self._embeddings[key] = embedding
        self.bytes += embedding.nbytes
        while self.bytes > self.max_bytes:
            _, oldest = self._embeddings.popitem(last=False)
            self.bytes -= oldest.nbytes
