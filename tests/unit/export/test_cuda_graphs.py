"""CUDA graphs of the `torch` profile: what a replay gives, which way to run is chosen, and what a capture needs.

The graphs are those of `cuda_stand_in`; that nothing in a network leaves the GPU is shown on torch's meta device.
"""

import fcntl
import itertools
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import cuda_graphs
from multsd_export.checkpoint import read_checkpoint
from multsd_export.modules import Wrapper, read_model
from multsd_export.networks import networks_of
from multsd_export.profiles import STATIC
from tests.small_checkpoints import STRUCTURES

from . import cuda_stand_in
from .cuda_stand_in import tensors

on_the_processor = pytest.mark.usefixtures("cuda_graphs_on_the_processor")
ROWS = 4
EAGER, REPLAYED = 1.0, 0.5  # seconds


class Network(nn.Module):
    """A convolution; counts its calls, which a replay is none of."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 2, 3, padding=1)
        self.calls = 0

    def forward(self, sample: Tensor) -> Tensor:
        self.calls += 1
        hidden: Tensor = self.convolution(sample)
        return hidden.mul_(2).flatten(1)


class Counting(Network):
    """What Python counts does not change in a replay."""

    def forward(self, sample: Tensor) -> Tensor:
        return super().forward(sample) + self.calls


class Reading(Network):
    """Python looks at a tensor: a capture fails there."""

    def forward(self, sample: Tensor) -> Tensor:
        return super().forward(sample) * float(sample.mean())


class Unfit(Network):
    """For its second call, which is captured, there is no memory: that leaves the capture valid."""

    def forward(self, sample: Tensor) -> Tensor:
        result = super().forward(sample)
        if self.calls > 1:
            raise torch.OutOfMemoryError("2 GiB")
        return result


class ReadingChannelsLast(Network):
    """A capture fails in that format alone, and cannot be ended."""

    def forward(self, sample: Tensor) -> Tensor:
        result = super().forward(sample)
        return result if self.convolution.weight.is_contiguous() else result * float(sample.mean())


class UnfitChannelsLast(Network):
    """A capture fails in that format alone, while another error is handled, and can be ended."""

    def forward(self, sample: Tensor) -> Tensor:
        result = super().forward(sample)
        if self.calls > 1 and not self.convolution.weight.is_contiguous():
            try:
                raise KeyError("kernel")
            except KeyError:
                raise torch.OutOfMemoryError("2 GiB")  # noqa: B904 - it has a context
        return result


class Pair(Network):
    """Two outputs."""

    def forward(self, sample: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        flat = super().forward(sample)
        return flat, flat.sum(dim=1)


class LaterWrong(Pair):
    """Only the second output is not a number, where the first is not."""

    def forward(self, sample: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        _, total = super().forward(sample)
        return sample, total


def draw(seed: int) -> list[Tensor]:
    return [torch.randn(ROWS, 3, 5, 5, generator=torch.Generator().manual_seed(seed))]


def tuned(network: Network) -> tuple[cuda_graphs.Forward, str]:
    """How the network runs, and what was told of it."""
    told: list[str] = []
    forward = cuda_graphs.autotune(network, draw(0), draw(1), told.append)
    (line,) = told
    return forward, line


def formats_of(network: Network) -> set[torch.memory_format]:
    weight = network.convolution.weight
    return {each for each in cuda_graphs.FORMATS if weight.is_contiguous(memory_format=each)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Seconds that a replay takes by its number of rows, where not REPLAYED; eager takes EAGER."""
    own: dict[int, float] = {}

    def seconds(forward: Any, inputs: list[Tensor]) -> float:
        forward(*inputs)
        return own.get(len(inputs[0]), REPLAYED) if isinstance(forward, cuda_graphs.CudaGraphs) else EAGER

    monkeypatch.setattr(cuda_graphs, "_seconds", seconds)
    return own


@on_the_processor
@pytest.mark.parametrize("kind", [Network, Pair])
def test_a_replay_gives_what_eager_gives_for_every_number_of_rows_in_any_order(kind: type[Network]) -> None:
    network = kind().eval()
    graphs = cuda_graphs.capture_all(network, draw(0))
    for seed, rows in enumerate((2, 4, 1, 3, 4, 2), start=1):
        inputs = [tensor[:rows] for tensor in draw(seed)]
        with torch.no_grad():
            expected = network(*inputs)
        before = network.calls
        replayed = graphs(*inputs)
        assert network.calls == before
        for have, want in zip(tensors(replayed), tensors(expected), strict=True):
            assert have.shape == want.shape
            assert torch.equal(have, want)


@on_the_processor
def test_a_number_of_rows_that_was_not_captured_is_an_error() -> None:
    graphs = cuda_graphs.CudaGraphs(Network(), draw(0))
    with torch.no_grad():
        graphs.capture(2)
    with pytest.raises(KeyError):
        graphs(draw(1)[0][:3])


@on_the_processor
def test_captures_keep_nothing_for_a_backward_pass() -> None:
    graphs = cuda_graphs.capture_all(Network(), draw(0))
    assert not graphs(*draw(1)).requires_grad


@on_the_processor
def test_each_number_of_rows_runs_as_is_faster(clock: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    clock |= {3: 2 * EAGER, 4: 2 * EAGER}
    reserved = iter([7 << 20, 19 << 20])  # before the graphs are captured, and after
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: next(reserved))
    network = Network().eval()
    forward, line = tuned(network)
    for rows, calls in ((1, 0), (2, 0), (3, 1), (4, 1), (2, 0)):
        inputs, before = [tensor[:rows] for tensor in draw(rows)], network.calls
        with torch.no_grad():
            result = forward(*inputs)
            assert network.calls - before == calls
            assert torch.equal(result, network(*inputs))
    assert "CUDA graphs for 2 of 4 numbers of rows, 12 MiB; " in line
    assert "1 row replayed in 500.0 ms, eager in 1000.0; 4 rows replayed in 2000.0 ms, eager in 1000.0" in line
    assert re.search(r"; measured in \d+\.\d s$", line)


@on_the_processor
def test_eager_that_is_hardly_faster_is_not_taken(clock: dict[int, float]) -> None:
    clock |= {2: 1.05 * EAGER}
    assert "CUDA graphs for 4 of 4" in tuned(Network().eval())[1]


@on_the_processor
@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ([0.8, 0.8], torch.channels_last),
        ([1.1, 0.6], torch.channels_last),
        ([0.95, 0.95], torch.contiguous_format),
        ([2.0, 0.1], torch.contiguous_format),
        (torch.OutOfMemoryError("2 GiB"), torch.contiguous_format),
    ],
    ids=["faster", "faster for few rows", "hardly faster", "slower for many rows", "does not fit"],
)
def test_the_network_is_channels_last_where_that_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float] | Exception, chosen: torch.memory_format
) -> None:
    def replayed(module: Network, _: list[Tensor]) -> list[float]:
        if torch.channels_last not in formats_of(module):
            return [1.0, 1.0]
        if isinstance(seconds, Exception):
            raise seconds
        return seconds

    network = Network().eval()
    monkeypatch.setattr(cuda_graphs, "_seconds_replayed", replayed)
    forward, line = tuned(network)
    assert formats_of(network) == {chosen}
    assert line.startswith(f"{cuda_graphs.FORMATS[chosen]}, CUDA graphs for 4 of 4")
    with torch.no_grad():
        assert torch.allclose(forward(*draw(2)), network(*draw(2)))


@on_the_processor
@pytest.mark.usefixtures("clock")
def test_networks_that_load_at_the_same_time_measure_one_after_the_other() -> None:
    told = list[str]()
    with Path(tempfile.gettempdir(), cuda_graphs.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        loading = Thread(target=cuda_graphs.autotune, args=(Network().eval(), draw(0), draw(1), told.append))
        loading.start()
        loading.join(0.2)
        assert loading.is_alive()
        assert told == []
    loading.join(30)
    assert len(told) == 1


@on_the_processor
@pytest.mark.usefixtures("clock")
def test_where_no_lock_can_be_written_a_network_loads_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert "CUDA graphs for 4 of 4" in tuned(Network().eval())[1]


@on_the_processor
@pytest.mark.usefixtures("clock")
def test_all_graphs_are_captured_before_any_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later capture must not have spoilt the memory of one before."""
    captured: list[int] = []
    capture, distance = cuda_graphs.CudaGraphs.capture, cuda_graphs._distance

    def noted(graphs: Any, rows: int) -> None:
        capture(graphs, rows)
        captured.append(rows)

    def compared(found: Any, expected: Any) -> float:
        assert captured[-ROWS:] == [4, 3, 2, 1]
        return distance(found, expected)

    monkeypatch.setattr(cuda_graphs.CudaGraphs, "capture", noted)
    monkeypatch.setattr(cuda_graphs, "_distance", compared)
    assert "CUDA graphs for 4 of 4" in tuned(Network().eval())[1]


@on_the_processor
@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            Reading,
            "CaptureError: RuntimeError: operation not permitted when stream is capturing (which torch tells as "
            "RuntimeError: CUDA error: operation failed due to a previous error during capture Search for it.)",
        ),
        (Unfit, "eager, without CUDA graphs: OutOfMemoryError: 2 GiB"),
        (Counting, "from eager, relative"),
    ],
)
def test_whatever_goes_wrong_with_a_graph_the_network_stays_eager(kind: type[Network], reason: str) -> None:
    network = kind().eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward, line = tuned(network)
    assert forward is network
    assert formats_of(network) == {torch.contiguous_format}
    assert line.startswith("eager, without CUDA graphs: ")
    assert reason in line


@on_the_processor
@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("kind", [Reading, ReadingChannelsLast])
def test_after_a_capture_that_could_not_be_ended_torch_gives_memory_back_all_the_same(kind: type[Network]) -> None:
    network = kind().eval()
    forward, line = tuned(network)
    assert forward is network
    assert formats_of(network) == {torch.contiguous_format}
    assert line.startswith("eager, without CUDA graphs: CaptureError: RuntimeError: operation not permitted")
    torch.cuda.empty_cache()
    assert cuda_stand_in.held == []


@on_the_processor
@pytest.mark.usefixtures("clock")
def test_a_torch_that_cannot_be_told_that_a_capture_is_over_leaves_the_network_eager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    network = ReadingChannelsLast().eval()
    forward, line = tuned(network)
    assert forward is network
    assert line.startswith("eager, without CUDA graphs: CaptureError: RuntimeError: operation not permitted")


@on_the_processor
@pytest.mark.usefixtures("clock")
def test_a_format_that_does_not_fit_leaves_the_graphs_of_the_other() -> None:
    network = UnfitChannelsLast().eval()
    _, line = tuned(network)
    assert formats_of(network) == {torch.contiguous_format}
    assert line.startswith("contiguous, CUDA graphs for 4 of 4")


@on_the_processor
@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("kind", [Network, LaterWrong])
def test_a_replay_that_is_not_a_number_is_not_taken(kind: type[Network]) -> None:
    network = kind().eval()
    nn.init.constant_(network.convolution.weight, float("nan"))
    forward, line = tuned(network)
    assert forward is network
    assert "nan from eager" in line


@on_the_processor
def test_seconds_are_those_of_the_fastest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.accumulate([0.0, 5.0, 0.0, 3.0])
    monkeypatch.setattr("cuda_graphs.time.perf_counter", lambda: next(ticks))
    network = Network()
    assert cuda_graphs._seconds(network, draw(0)) == 3.0
    assert network.calls == cuda_graphs.TIMED_CALLS


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation on a tensor that is elsewhere."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elsewhere: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        if any(tensor.device.type != "meta" for tensor in tensors((args, kwargs, result))):
            self.elsewhere.append(str(func))
        return result


def as_served(wrapper: type[Wrapper], folder: Path) -> nn.Module:
    """As the runner loads it: with the libraries' own choice of attention."""
    return wrapper(read_model(wrapper.model_class, folder, torch.float16)).eval()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_nothing_in_a_network_that_is_captured_leaves_its_device(structure: str, small_checkpoints: Path) -> None:
    """A copy to or from the processor cannot be captured, and reading a tensor fails on the meta device by itself."""
    checkpoint = read_checkpoint(small_checkpoints / structure)
    networks = [each for each in networks_of(checkpoint) if each.name in STATIC]
    assert networks
    for network in networks:
        module = as_served(network.wrapper, checkpoint.path / network.component).to("meta")
        inputs = [tensor.to("meta") for tensor in next(network.draw(torch.Generator().manual_seed(0)))]
        with torch.no_grad(), Watch() as watch:
            module(*inputs)
        assert watch.operations > 100
        assert watch.elsewhere == []
