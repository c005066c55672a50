"""How hard an engine's build tries, and what it may use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """Settings of a build that the engine depends on."""

    optimization_level: int = 3  # TensorRT's own default; 0 builds fastest, 5 searches longest
    workspace_mib: int | None = None  # the most that a kernel may use beside its tensors; None: all of the GPU's memory
