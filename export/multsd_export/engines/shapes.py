"""The ranges of shapes that an engine is built for: its optimisation profile.

Batches go from 1 to the contract's largest. The UNet's window and a prompt's tokens are static. What the VAE is given
has sides from one window (no canvas is smaller) to one tile (larger canvases are decoded in tiles).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multsd_export.errors import EngineError
from multsd_export.networks import Network

Shape = tuple[int, ...]
PIXELS = frozenset({"vae_encoder"})  # its input is a picture; everybody else's sides are in latent cells


@dataclass(frozen=True)
class ShapeRange:
    """One input's shapes. Kernels are chosen for `opt`."""

    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True)
class Sides:
    """The sides of what a VAE is given, in latent cells."""

    window: int  # the smallest, and the one that its kernels are chosen for
    tile: int  # the largest
    cell: int  # pixels per cell


def shape_ranges(
    network: Network, inputs: Sequence[Mapping[str, Any]], *, max_batch_size: int, sides: Sides
) -> dict[str, ShapeRange]:
    """The range of every input.

    The best batch is the largest: requests share the UNet's calls, and a step of most canvases has more rows than one
    call takes.

    Args:
        inputs: of the ONNX graph, each with its name and its dims, -1 where they are dynamic.

    Raises:
        EngineError: an input has a dynamic dimension that the network does not name.
    """
    scale = sides.cell if network.name in PIXELS else 1
    smallest, largest = min(sides.window, sides.tile) * scale, sides.tile * scale
    # axis -> smallest, best, largest
    known = {
        "batch": (1, max_batch_size, max_batch_size),
        "height": (smallest, smallest, largest),
        "width": (smallest, smallest, largest),
    }
    ranges = {}
    for tensor in inputs:
        axes = network.inputs[tensor["name"]]
        dims = [known.get(axes.get(index, ""), (dim,) * 3) for index, dim in enumerate(tensor["dims"])]
        if any(dim < 0 for choices in dims for dim in choices):
            raise EngineError(
                f"{network.name}: {tensor['name']} has dims {tensor['dims']}, expected -1 in {dict(axes)}."
            )
        low, best, high = zip(*dims, strict=True)
        ranges[tensor["name"]] = ShapeRange(low, best, high)
    return ranges
