"""What an engine is tied to: the TensorRT version and the GPU of the machine that builds or serves it."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from multsd_export.errors import EngineError

OLDEST = 11  # every network is strongly typed from this version on
DRIVER = "libcuda.so.1"
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
NAME_BYTES = 256
WHERE = "build engines on the GPU that serves them, in the image of docker/export.Dockerfile (--target tensorrt)"


@dataclass(frozen=True)
class Machine:
    """What has to be the same where an engine is built and where it is served."""

    tensorrt: str  # version
    gpu: str  # the first visible GPU's name
    compute_capability: str  # "9.0"

    def __str__(self) -> str:
        return f"TensorRT {self.tensorrt} on {self.gpu} (compute capability {self.compute_capability})"


def this_machine() -> Machine:
    """The machine that this runs on.

    Raises:
        EngineError: there is no TensorRT, an older one than this project uses, or no GPU; the message says where to go.
    """
    version = str(import_tensorrt().__version__)
    name, capability = gpu()
    return Machine(version, name, capability)


def import_tensorrt() -> Any:
    """The package, imported only where engines are built.

    Raises:
        EngineError: it is not there, or too old.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise EngineError(f"TensorRT cannot be imported here ({error}); {WHERE}.") from error
    if int(tensorrt.__version__.partition(".")[0]) < OLDEST:
        raise EngineError(f"TensorRT is {tensorrt.__version__}, expected {OLDEST} or later; {WHERE}.")
    return tensorrt


def gpu(driver: str = DRIVER) -> tuple[str, str]:
    """Name and compute capability of the first visible GPU, from the driver: torch may be built without CUDA.

    Raises:
        EngineError: there is no driver or no GPU.
    """
    try:
        cuda = ctypes.CDLL(driver)
    except OSError as error:
        raise EngineError(f"there is no NVIDIA driver here ({driver} cannot be loaded); {WHERE}.") from error
    version, device, major, minor = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(NAME_BYTES)
    calls: tuple[Callable[[], int], ...] = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
        lambda: cuda.cuDeviceGetName(name, NAME_BYTES, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device),
    )
    cuda.cuDriverGetVersion(ctypes.byref(version))  # answers where nothing else does
    newest = f"{version.value // 1000}.{version.value % 1000 // 10}"
    for call in calls:
        if status := call():
            said = f"the NVIDIA driver, for CUDA up to {newest}, answers with CUDA error {status}"
            raise EngineError(f"{said} (CUDA 13 needs driver 580 or newer); {WHERE}.")
    return name.value.decode(), f"{major.value}.{minor.value}"
