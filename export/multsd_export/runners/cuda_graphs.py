"""A network replayed from CUDA graphs: its kernels are recorded once for each number of rows, and then start together.

Started one by one from Python, the kernels of a few rows take longer to start than to run. An export copies this file
beside the runner of the `torch` profile, as `1/cuda_graphs.py` of every network. B rows.
"""

import fcntl
import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Forward = Callable[..., Any]  # tensors of B rows -> a tensor of B rows or a tuple of them

TIMED_CALLS = 2  # of which the faster one counts
# Relative, of a replay from eager: it has eager's kernels, and two for one thing differ by 1e-3 in half precision.
TOLERANCE = 5e-3
MARGIN = 0.9  # of the seconds: less is noise, for which no picture should change its last bits
FORMATS = {torch.contiguous_format: "contiguous", torch.channels_last: "channels last"}
LOCK = f"multsd-autotune-{os.getuid()}.lock"  # in the folder for temporary files


class CaptureError(RuntimeError):
    """A capture that failed, and then could not be ended: torch is not in a state to capture anything else."""


class CudaGraphs:
    """A network's graphs, one for each number of rows that was captured. Not for threads.

    All read the same inputs and share their memory, so what a call returns is a copy.
    """

    def __init__(self, forward: Forward, largest: Sequence[Tensor]) -> None:
        """forward: uses the GPU alone and draws nothing. largest: inputs of as many rows as will ever come."""
        self._forward = forward
        self._inputs = [tensor.clone() for tensor in largest]
        self._pool = torch.cuda.graph_pool_handle()
        # Its own: the end of a graph frees what cuBLAS works with on its stream.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._captured: dict[int, tuple[Any, Any]] = {}  # rows -> graph and its outputs

    def capture(self, rows: int) -> None:
        """Record a call of so many rows. The largest first, so that the others fit into its memory.

        Raises what the network or torch raises, or CaptureError with both where torch puts its own in place of that.
        """
        causes: list[Exception] = []
        try:
            self._captured[rows] = self._recorded([tensor[:rows] for tensor in self._inputs], causes)
        except Exception as error:
            _end_allocation(self._pool)
            if not causes or causes[0] is error:
                raise
            raise CaptureError(f"{_line(causes[0])} (which torch tells as {_line(error)})") from causes[0]

    def _recorded(self, inputs: Sequence[Tensor], causes: list[Exception]) -> tuple[Any, Any]:
        """A graph, and its outputs. causes: gets what is raised within the capture, whose end may raise another."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        torch.cuda.empty_cache()
        with torch.cuda.stream(current):  # a capture that fails does not go back to it
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                self._forward(*inputs)  # what a first call loads and chooses cannot be recorded
            # Triton's own threads in this process may call CUDA meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                try:
                    outputs = self._forward(*inputs)
                except Exception as error:
                    causes.append(error)
                    raise
        return graph, outputs

    def __call__(self, *inputs: Tensor) -> Any:
        """Replay the graph of as many rows. Raises KeyError where that was not captured."""
        graph, outputs = self._captured[len(inputs[0])]
        for own, given in zip(self._inputs, inputs, strict=True):
            own[: len(given)].copy_(given)
        graph.replay()
        return outputs.clone() if isinstance(outputs, Tensor) else tuple(each.clone() for each in outputs)


@torch.no_grad()
def capture_all(forward: Forward, largest: Sequence[Tensor]) -> CudaGraphs:
    """Graphs of every number of rows up to that of the largest inputs."""
    graphs = CudaGraphs(forward, largest)
    for rows in range(len(largest[0]), 0, -1):
        graphs.capture(rows)
    return graphs


@torch.no_grad()
def autotune(
    module: torch.nn.Module, largest: Sequence[Tensor], others: Sequence[Tensor], tell: Callable[[str], None]
) -> Forward:
    """The fastest way to run a network on this GPU: its memory format, and for each number of rows replayed or eager.

    Whatever goes wrong with a graph, all numbers of rows stay eager. It goes wrong, too, where a replay on inputs that
    it was not captured with gives something else than eager.

    Args:
        largest: inputs of as many rows as will ever come; what graphs are captured with.
        others: as many rows of other values.
        tell: gets a line of what was chosen and why.
    """
    with _alone():
        try:
            return _measure(module, largest, others, tell)
        except Exception as error:  # of a driver, for want of memory, or our own
            tell(f"eager, without CUDA graphs: {_line(error)}")
        finally:
            with suppress(RuntimeError):  # where a capture could not be ended, nor the allocator told that it is over
                _free_memory()
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # its annotations lack it
        return module


@contextmanager
def _alone() -> Iterator[None]:
    """While no other network of this container measures; where no lock can be written they may.

    Networks that load at the same time share a GPU, and its memory.
    """
    with ExitStack() as held:
        with suppress(OSError):
            lock = held.enter_context(Path(tempfile.gettempdir(), LOCK).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _line(error: BaseException) -> str:
    """An error's type and text in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _free_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    torch.cuda.empty_cache()


def _end_allocation(pool: Any) -> None:
    """Tell torch's allocator that a capture is over whose end failed, as torch.cuda.use_mem_pool does.

    It would never give back any memory otherwise, not even where a later call needs it.
    """
    with suppress(RuntimeError, AttributeError):  # it has been told, or torch has other names for it
        device = torch.cuda.current_device()
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)


def _measure(
    module: torch.nn.Module, largest: Sequence[Tensor], others: Sequence[Tensor], tell: Callable[[str], None]
) -> Forward:
    """What `autotune` chooses. Raises whatever goes wrong."""
    started = time.perf_counter()
    CudaGraphs(module, [tensor[:1] for tensor in largest]).capture(1)  # what fails here leaves little memory behind
    memory_format = _choose_format(module, largest)
    _free_memory()  # so that what the allocator takes from here on is the graphs'
    before = torch.cuda.memory_reserved()
    graphs = capture_all(module, largest)
    memory = torch.cuda.memory_reserved() - before
    forwards: dict[int, Forward] = {}
    seconds: dict[int, tuple[float, float]] = {}
    for rows in range(len(largest[0]), 0, -1):
        inputs = [tensor[:rows] for tensor in others]
        apart = _distance(graphs(*inputs), module(*inputs))
        if not apart <= TOLERANCE:  # nor is "not a number" near
            raise RuntimeError(f"what was replayed for {rows} rows is {apart:.2g} from eager, relative")
        replayed, eager = _seconds(graphs, inputs), _seconds(module, inputs)
        seconds[rows] = replayed, eager
        forwards[rows] = module if eager < MARGIN * replayed else graphs
    replayed_rows = sum(each is graphs for each in forwards.values())
    tell(_describe(memory_format, seconds, replayed_rows, memory, time.perf_counter() - started))

    def forward(*inputs: Tensor) -> Any:
        return forwards[len(inputs[0])](*inputs)

    return forward


def _choose_format(module: torch.nn.Module, largest: Sequence[Tensor]) -> torch.memory_format:
    """Channels last where replays of most and of a quarter of the rows are clearly faster in it.

    The module is left in the format. Raises CaptureError where a capture in either could not be ended.
    """
    if not any(parameter.dim() == 4 for parameter in module.parameters()):
        return torch.contiguous_format  # without convolutions there is no other
    usual = _seconds_replayed(module, largest)
    try:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        last = _seconds_replayed(module, largest)
        if sum(one / other for one, other in zip(last, usual, strict=True)) < MARGIN * len(usual):
            return torch.channels_last
    except CaptureError:
        raise
    except RuntimeError:
        pass  # for want of memory, or of a kernel: the other format can do without
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return torch.contiguous_format


def _seconds_replayed(forward: Forward, inputs: Sequence[Tensor]) -> list[float]:
    """Of graphs for all rows and for a quarter of them, which are gone afterwards."""
    graphs = CudaGraphs(forward, inputs)
    most = len(inputs[0])
    seconds = []
    for rows in (most, max(1, most // 4)):
        graphs.capture(rows)
        seconds.append(_seconds(graphs, [tensor[:rows] for tensor in inputs]))
    return seconds


def _seconds(forward: Forward, inputs: Sequence[Tensor]) -> float:
    """Of the fastest of a few calls."""
    taken = []
    for _ in range(TIMED_CALLS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        forward(*inputs)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _distance(found: Any, expected: Any) -> float:
    """Largest difference over largest value, of the output where it is largest; not a number where one is not."""
    pairs = [(found, expected)] if isinstance(expected, Tensor) else list(zip(found, expected, strict=True))
    return float(torch.stack([(one - other).abs().max() / other.abs().max() for one, other in pairs]).max())


def _describe(
    memory_format: torch.memory_format,
    seconds: Mapping[int, tuple[float, float]],
    replayed: int,
    memory: int,
    taken: float,
) -> str:
    """What was measured, in a line. memory: bytes of the tensors that the graphs hold."""
    times = [
        f"{rows} row{'s' if rows > 1 else ''} replayed in {seconds[rows][0] * 1e3:.1f} ms, eager in "
        f"{seconds[rows][1] * 1e3:.1f}"
        for rows in sorted({min(seconds), max(seconds)})
    ]
    of_them = f"CUDA graphs for {replayed} of {len(seconds)} numbers of rows, {memory / 2**20:.0f} MiB"
    return f"{FORMATS[memory_format]}, {of_them}; {'; '.join(times)}; measured in {taken:.1f} s"
