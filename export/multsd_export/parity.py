"""Compare an exported network with the torch module that it was made from."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from multsd_export.errors import ParityError
from multsd_export.networks import Inputs, Network

RELATIVE_LIMIT = 1e-4  # fp32 against fp32

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """What the comparison found."""

    relative_error: float  # the worst of all batches
    shapes: tuple[tuple[int, ...], ...]  # of the first input, one per batch
    rows_independent: bool | None  # a row has the same bits alone and in company; None where rows are never batched


def measure_parity(network: Network, module: torch.nn.Module, file: Path, batches: Iterable[Inputs]) -> Parity:
    """Run every batch through both.

    Raises:
        ParityError: the relative error of a batch exceeds RELATIVE_LIMIT, or an output is not finite.
    """
    session = open_session(file)
    errors: dict[tuple[int, ...], float] = {}
    independent: bool | None = None
    for inputs in batches:
        output = run(session, network, inputs)
        errors[tuple(inputs[0].shape)] = _checked_error(network, module, inputs, output)
        if network.batched:
            independent = independent is not False and _rows_independent(session, network, inputs, output)
    return Parity(max(errors.values()), tuple(errors), independent)


def open_session(file: Path) -> onnxruntime.InferenceSession:
    """The file in ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, network: Network, inputs: Inputs) -> Array:
    """The network's one output."""
    feed = {name: tensor.numpy() for name, tensor in zip(network.inputs, inputs, strict=True)}
    output: Array = session.run([network.output], feed)[0]
    return output


def relative_error(actual: Array, expected: Array) -> float:
    """max|actual - expected| / max|expected|; infinite where the shapes differ or a value is not finite."""
    scale = np.abs(expected).max()
    if actual.shape != expected.shape or not np.isfinite(actual).all() or not np.isfinite(scale) or scale == 0:
        return float("inf")
    return float(np.abs(actual - expected).max() / scale)


def _checked_error(network: Network, module: torch.nn.Module, inputs: Inputs, output: Array) -> float:
    with torch.no_grad():
        expected = module(*inputs).numpy()
    error = relative_error(output, expected)
    if error > RELATIVE_LIMIT:
        raise ParityError(
            f"{network.name}: the exported network differs from torch by {error:.3g} (relative) "
            f"on inputs of shape {tuple(inputs[0].shape)}; the limit is {RELATIVE_LIMIT:g}."
        )
    return error


def _rows_independent(session: onnxruntime.InferenceSession, network: Network, inputs: Inputs, output: Array) -> bool:
    """Whether the first and the last row, computed alone, have the bits that they have in the batch."""
    rows = sorted({0, len(output) - 1})
    alone = [run(session, network, tuple(tensor[row : row + 1] for tensor in inputs)) for row in rows]
    return all(np.array_equal(output[row : row + 1], one) for row, one in zip(rows, alone, strict=True))
