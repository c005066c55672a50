"""CUDA graphs on a processor: what is captured is repeated on the same memory, with the same numbers.

A capture keeps torch's operations with their arguments; a replay makes each of them again and writes its result to
where the first one lies. So a replay sees neither tensors at another place nor what Python reads or computes, as on a
GPU. Graphs of one pool share its memory: a replay leaves nothing of what the others gave. Reading a tensor makes a
capture invalid, and then its end raises, too, as torch's does, and leaves the allocator as if it was still under way.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {torch.ops.aten._local_scalar_dense.default}  # what Python learns of a tensor, for which it has to wait


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the operations that are made."""

    def __init__(self, graph: "Graph") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            self._graph.valid = False
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self._graph.operations.append((func, args, kwargs or {}, result))
        return result


@dataclass
class Graph:
    """In place of torch.cuda.CUDAGraph."""

    operations: list[tuple[Any, Any, Any, Any]] = field(default_factory=list)
    pool: list["Graph"] = field(default_factory=list)
    valid: bool = True  # as far as it was captured

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            for first, again in zip(tensors(result), tensors(func(*args, **kwargs)), strict=True):
                if first.data_ptr() != again.data_ptr():
                    first.copy_(again)
        for other in self.pool:
            if other is not self:
                other.forget()

    def forget(self) -> None:
        """Other results lie there now."""
        for _, args, kwargs, result in self.operations:
            given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
            for tensor in tensors(result):
                if tensor.untyped_storage().data_ptr() not in given and tensor.is_floating_point():
                    tensor.fill_(float("nan"))


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Stream:
    def wait_stream(self, _: "Stream") -> None:
        """There is but one."""


@contextmanager
def capture(graph: Graph, *, pool: list[Graph], stream: Stream, capture_error_mode: str) -> Iterator[None]:
    """In place of torch.cuda.graph."""
    assert isinstance(stream, Stream)
    assert capture_error_mode == "thread_local"
    empty_cache()
    _under_way.append(pool)
    held.append(pool)
    try:
        with Recorder(graph):
            yield
    finally:
        if not graph.valid:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nSearch for it.")
        end_allocate_to_pool(0, pool)
        release_pool(0, pool)  # by the graph, once it is gone
    graph.pool = pool
    pool.append(graph)


def empty_cache() -> None:
    if _under_way:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")


def end_allocate_to_pool(device: int, pool: list[Graph]) -> None:
    assert device == 0
    if not any(each is pool for each in _under_way):
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
    _under_way.clear()


def release_pool(device: int, pool: list[Graph]) -> None:
    assert device == 0
    assert not _under_way
    (index,) = (index for index, each in enumerate(held) if each is pool)
    del held[index]


def forget_captures() -> None:
    """None is under way."""
    _under_way.clear()
    held.clear()


_under_way: list[list[Graph]] = []  # pools
held: list[list[Graph]] = []  # pools that no graph releases
_stream = Stream()
# In torch.cuda.
STAND_INS: Mapping[str, Any] = {
    "CUDAGraph": Graph,
    "Stream": lambda: _stream,
    "current_device": lambda: 0,
    "current_stream": lambda: _stream,
    "empty_cache": empty_cache,
    "graph": capture,
    "graph_pool_handle": list,
    "stream": lambda _: nullcontext(),
    "synchronize": lambda: None,
}
# In torch._C, which has them where torch is built for CUDA.
PRIVATE_STAND_INS: Mapping[str, Any] = {
    "_cuda_endAllocateToPool": end_allocate_to_pool,
    "_cuda_releasePool": release_pool,
}
