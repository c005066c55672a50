"""Compare an exported network with the torch module that it was made from."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from multsd_export.errors import ParityError
from multsd_export.networks import Inputs, Network
from multsd_export.onnx_runtime import onnxruntime
from multsd_export.profiles import Precision

# Against torch in float32, on the weights of the graph.
RELATIVE_LIMITS = {Precision.FP32: 1e-4, Precision.FP16: 1e-2}

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """What the comparison found."""

    relative_error: float  # the worst of all batches and outputs
    shapes: tuple[tuple[int, ...], ...]  # of the first input, one per batch
    rows_independent: bool | None  # a row has the same bits alone and in company; None where rows are never batched


def measure_parity(network: Network, module: torch.nn.Module, file: Path, batches: Iterable[Inputs]) -> Parity:
    """Run every batch through both.

    Args:
        module: in float32.

    Raises:
        ParityError: the relative error of an output exceeds the precision's limit, or is not finite.
    """
    session = open_session(file)
    errors: dict[tuple[int, ...], float] = {}
    independent: bool | None = None
    for inputs in batches:
        outputs = run(session, network, inputs)
        errors[tuple(inputs[0].shape)] = _checked_error(network, module, inputs, outputs)
        if network.batched:
            independent = independent is not False and _rows_independent(session, network, inputs, outputs)
    return Parity(max(errors.values()), tuple(errors), independent)


def open_session(file: Path) -> onnxruntime.InferenceSession:
    """The file in ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, network: Network, inputs: Inputs) -> list[Array]:
    """The network's outputs, in their order."""
    feed = {name: tensor.numpy() for name, tensor in zip(network.inputs, inputs, strict=True)}
    outputs: list[Array] = session.run(list(network.outputs), feed)
    return outputs


def relative_error(actual: Array, expected: Array) -> float:
    """max|actual - expected| / max|expected|; infinite where the shapes differ or a value is not finite."""
    scale = np.abs(expected).max()
    if actual.shape != expected.shape or not np.isfinite(actual).all() or not np.isfinite(scale) or scale == 0:
        return float("inf")
    return float(np.abs(actual - expected).max() / scale)


def _checked_error(network: Network, module: torch.nn.Module, inputs: Inputs, outputs: list[Array]) -> float:
    """The largest error of all outputs."""
    with torch.no_grad():
        result = module(*inputs)
    expected = [result] if isinstance(result, torch.Tensor) else list(result)
    limit = RELATIVE_LIMITS[network.precision]
    errors = [relative_error(have, want.numpy()) for have, want in zip(outputs, expected, strict=True)]
    if max(errors) > limit:
        raise ParityError(
            f"{network.name}: {network.outputs[errors.index(max(errors))]} of the exported network differs from torch "
            f"by {max(errors):.3g} (relative) on inputs of shape {tuple(inputs[0].shape)}; the limit is {limit:g}."
        )
    return max(errors)


def _rows_independent(
    session: onnxruntime.InferenceSession, network: Network, inputs: Inputs, outputs: list[Array]
) -> bool:
    """Whether the first and the last row, computed alone, have the bits that they have in the batch."""
    rows = sorted({0, len(inputs[0]) - 1})
    alone = {row: run(session, network, tuple(tensor[row : row + 1] for tensor in inputs)) for row in rows}
    return all(
        np.array_equal(output[row : row + 1], one)
        for row in rows
        for output, one in zip(outputs, alone[row], strict=True)
    )
