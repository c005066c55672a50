"""Hold one served network to torch: its values at every batch size, its rows to each other, its answers to itself.

B rows of at most the largest batch. The server should be idle: rows of other clients would share the batches.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from multsd_export.checkpoint import Checkpoint
from multsd_export.engines.shapes import PIXELS
from multsd_export.errors import ServerError, TorchError
from multsd_export.networks import Inputs, Network
from multsd_export.parity import RELATIVE_LIMITS, relative_error
from multsd_export.profiles import Precision
from multsd_export.verify.reference import Reference
from multsd_export.verify.report import Check, Speed
from multsd_export.verify.server import Array, Server

# Between identical rows of one batch, relative to the largest value. Kernels may add up in another order; the open
# fault of TensorRT that this is to find (NVIDIA/TensorRT issue 4813) makes rows differ visibly.
ROW_LIMITS = {Precision.FP32: 1e-5, Precision.FP16: 1e-3}
SEED = 1  # another than the export's comparison
TORCH_ROWS = 4  # at a time, to bound torch's memory
TIMED_CALLS = 5
SETTLING_SECONDS, POLL_SECONDS = 2.0, 0.01  # until a call that was answered is in the statistics

EQUALS_TORCH = "equals torch at every batch size"
CONSISTENT = "answers A, B, A consistently"
IDENTICAL_ROWS = "computes identical rows alike"

Tensors = Mapping[str, Array]  # name -> (B, ...)


@dataclass
class ServedNetwork:
    """A network, what it computes in torch, and the server that it is held to."""

    network: Network
    reference: Reference
    server: Server
    max_batch_size: int
    cuda_graphs: bool = False  # whether this server replays it from them
    every_size: bool = False  # whether batch sizes may differ in how they are computed, as they do with CUDA graphs
    answered: int = field(default=0, init=False)  # calls

    @property
    def subject(self) -> str:
        """What a report calls it."""
        return f"{self.network.name}, CUDA graphs" if self.cuda_graphs else self.network.name

    def call(self, inputs: Tensors) -> Tensors:
        """What the server answers. Raises ServerError."""
        sent = dict(inputs)
        if "timestep" in sent:
            sent["timestep"] = sent["timestep"][:, None]  # one a row; Triton's configuration takes the axis away
        answer = self.server.infer(self.network.name, sent, self.network.outputs)
        self.answered += 1
        return answer

    def expect(self, inputs: Tensors) -> Tensors:
        """What torch computes. Raises TorchError."""
        rows = len(next(iter(inputs.values())))
        parts = [self._torch(slice_rows(inputs, first, first + TORCH_ROWS)) for first in range(0, rows, TORCH_ROWS)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.network.outputs}

    def _torch(self, inputs: Tensors) -> Tensors:
        tensors = self.reference.run(self.network.name, *(torch.from_numpy(array) for array in inputs.values()))
        return {name: each.numpy() for name, each in zip(self.network.outputs, tensors, strict=True)}


class OwnTime:
    """The seconds that the server has computed a network, read when they are those of every call that was answered.

    Triton counts a call after it has answered it, so that the statistics may be a call behind, and a small call would
    be told the seconds of the large one before it.
    """

    def __init__(self, served: ServedNetwork) -> None:
        self._served = served
        start = self._statistics()
        self._others = None if start is None else start[0] - served.answered  # calls of others, before; None: not told

    def seconds(self) -> float | None:
        """Of all calls; None from where they cannot be told on: closed, never all counted, or others call too."""
        deadline = time.monotonic() + SETTLING_SECONDS
        while self._others is not None and (found := self._statistics()) is not None:
            count, seconds = found
            expected = self._others + self._served.answered
            if count == expected:
                return seconds
            if count > expected or time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        self._others = None  # so that no further call is waited for
        return None

    def _statistics(self) -> tuple[int, float] | None:
        try:
            return self._served.server.compute_time(self._served.network.name)
        except ServerError:
            return None  # the report says why: `run`


def verify_network(served: ServedNetwork, batches: Sequence[Tensors]) -> tuple[list[Check], list[Speed]]:
    """Every check of one network.

    Args:
        batches: full batches; their rows differ, and so may the shapes of a row from batch to batch.
    """
    own_time = OwnTime(served)
    checks = [
        _answered(served, EQUALS_TORCH, lambda: _against_torch(served, batches)),
        _answered(served, CONSISTENT, lambda: _consistent(served, batches)),
    ]
    if served.max_batch_size > 1:
        checks.append(_answered(served, IDENTICAL_ROWS, lambda: _identical_rows(served, batches[0])))
    try:
        speeds = [_speed(served, own_time, slice_rows(rows, 0, size)) for rows in batches for size in _sizes(served)]
    except ServerError:
        speeds = []  # a check has failed for it
    return checks, speeds


def network_batches(
    network: Network, checkpoint: Checkpoint, max_batch_size: int, *, tile: int, largest: bool
) -> list[Tensors]:
    """Random inputs: a full batch of rows, or for a VAE its smallest picture and an oblong one.

    Args:
        tile: the longest side that a VAE is given, latent cells.
        largest: the VAE's largest picture too, which an engine is built for and a processor takes gigabytes for.
    """
    generator = torch.Generator().manual_seed(SEED)
    if network.batched:
        drawn: list[Inputs] = []
        while sum(len(inputs[0]) for inputs in drawn) < max_batch_size:
            drawn.extend(network.draw(generator))
        tensors = zip(network.inputs, zip(*drawn, strict=True), strict=True)
        return [{name: torch.cat(parts)[:max_batch_size].numpy() for name, parts in tensors}]
    scale, channels = 1, checkpoint.latent_channels
    if network.name in PIXELS:
        scale, channels = checkpoint.vae_scale_factor, 3
    smallest = min(checkpoint.window, tile)
    sides = {(smallest, smallest), (smallest, min(tile, smallest * 3 // 2))} | ({(tile, tile)} if largest else set())
    (name,) = network.inputs
    return [
        {name: torch.randn(1, channels, h * scale, w * scale, generator=generator).clamp(-1, 1).numpy()}
        for h, w in sorted(sides)
    ]


def slice_rows(inputs: Tensors, first: int, end: int) -> Tensors:
    """Rows of every tensor."""
    return {name: array[first:end] for name, array in inputs.items()}


def _answered(served: ServedNetwork, name: str, check: Callable[[], Check]) -> Check:
    """The check, failed where the server answers with an error or torch has no room."""
    try:
        return check()
    except (ServerError, TorchError) as error:
        return Check(served.subject, name, False, str(error))


def _sizes(served: ServedNetwork) -> range:
    return range(1, served.max_batch_size + 1)


def _against_torch(served: ServedNetwork, batches: Sequence[Tensors]) -> Check:
    errors = dict(_errors(served, batches))
    worst = max(errors, key=lambda key: errors[key])
    limit = RELATIVE_LIMITS[served.network.precision]
    return Check(
        served.subject,
        EQUALS_TORCH,
        errors[worst] <= limit,
        f"at most {errors[worst]:.2g} (relative, {worst}), limit {limit:g}, {len(errors)} comparisons",
        errors[worst],
    )


def _errors(served: ServedNetwork, batches: Sequence[Tensors]) -> Iterator[tuple[str, float]]:
    """The relative error of every output at every batch size; torch computes each row once."""
    for rows in batches:
        expected = served.expect(rows)
        for size in _sizes(served):
            answer = served.call(slice_rows(rows, 0, size))
            for name in served.network.outputs:
                shape = "x".join(map(str, answer[name].shape))
                yield f"{name} of shape {shape}", relative_error(answer[name], expected[name][:size])


def _identical_rows(served: ServedNetwork, rows: Tensors) -> Check:
    """The first row in every place of every batch size."""
    worst, size_of_worst = 0.0, 2
    for size in range(2, served.max_batch_size + 1):
        answer = served.call({name: np.repeat(array[:1], size, axis=0) for name, array in rows.items()})
        for output in answer.values():
            spread = relative_error(output, np.repeat(output[:1], size, axis=0))
            if spread > worst:
                worst, size_of_worst = spread, size
    limit = ROW_LIMITS[served.network.precision]
    found = f"{worst:.2g} apart (relative, batch of {size_of_worst})" if worst else "the same bits"
    return Check(served.subject, IDENTICAL_ROWS, worst <= limit, f"{found}, limit {limit:g}", worst)


def _consistent(served: ServedNetwork, batches: Sequence[Tensors]) -> Check:
    """A, then B of the same shape, then A again, and A once more after everything else: the same bits for A alone.

    A CUDA graph belongs to one batch size, so where there may be any every size is asked.
    """
    sizes = _sizes(served) if served.every_size else sorted({1, served.max_batch_size})
    firsts: list[tuple[Tensors, Tensors]] = []  # A and its answer
    for rows in batches:
        other = {key: np.flip(array, axis=-1 if array.ndim > 1 else 0) for key, array in rows.items()}
        for size in sizes:
            first = slice_rows(rows, 0, size)
            a, b, again = (served.call(inputs) for inputs in (first, slice_rows(other, 0, size), first))
            if not _equal(a, again):
                return Check(served.subject, CONSISTENT, False, f"A's second answer differs (batch of {size})")
            if _equal(a, b):
                return Check(served.subject, CONSISTENT, False, f"B is answered with A's result (batch of {size})")
            firsts.append((first, a))
    for first, a in firsts:
        if not _equal(a, served.call(first)):
            size = len(next(iter(first.values())))
            return Check(served.subject, CONSISTENT, False, f"A's last answer differs (batch of {size})")
    return Check(served.subject, CONSISTENT, True, "the same bits")


def _equal(one: Tensors, other: Tensors) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def _speed(served: ServedNetwork, own_time: OwnTime, rows: Tensors) -> Speed:
    """Medians of the same calls, so that a part is never longer than the whole."""
    calls = [_timed(served, own_time, rows) for _ in range(TIMED_CALLS)]
    told = [(seconds, of_server) for seconds, of_server in calls if of_server is not None]
    first = next(iter(rows.values()))
    return Speed(
        subject=served.subject,
        network=served.network.name,
        batch_size=len(first),
        shape=first.shape[1:],
        seconds=statistics.median(seconds for seconds, _ in told or calls),
        server_seconds=statistics.median(of_server for _, of_server in told) if told else None,
    )


def _timed(served: ServedNetwork, own_time: OwnTime, rows: Tensors) -> tuple[float, float | None]:
    """Seconds of one call, and of it the network's own where the server tells them for this call alone."""
    before = own_time.seconds()
    started = time.perf_counter()
    served.call(rows)
    seconds = time.perf_counter() - started
    after = own_time.seconds()
    return seconds, None if before is None or after is None else after - before
