"""LoRA files that are fused into a checkpoint's weights, as they are named on the command line."""

import math
from dataclasses import dataclass
from pathlib import Path

from multsd_export.digests import file_digest
from multsd_export.errors import CheckpointError
from multsd_export.weights import PICKLE_SUFFIXES


@dataclass(frozen=True)
class Lora:
    """One LoRA file and how strongly it counts."""

    path: Path
    scale: float
    digest: str

    def record(self) -> dict[str, str | float]:
        """What manifests and keys keep of it."""
        return {"name": self.path.name, "scale": self.scale, "digest": f"sha256:{self.digest}"}

    def argument(self) -> str:
        """As `read_lora` takes it, from any folder."""
        return f"{self.path.absolute()}:{self.scale}"


def read_lora(text: str) -> Lora:
    """`FILE.safetensors` or `FILE.safetensors:SCALE`; the scale is 1 where none is given.

    Raises:
        CheckpointError: the file is missing or not safetensors, or the scale is not a number.
    """
    name, separator, scale = text.rpartition(".safetensors:")
    path = Path(f"{name}.safetensors") if separator else Path(text)
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(f"lora: {path} is a pickle, which can run code when it is loaded; expected .safetensors.")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"lora: expected FILE.safetensors or FILE.safetensors:SCALE, found {text}.")
    if not path.is_file():
        raise CheckpointError(f"lora: {path} does not exist.")
    return Lora(path, _scale(scale) if separator else 1.0, file_digest(path))


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise CheckpointError(f"lora: the scale is {text!r}, expected a number.")
    return scale
