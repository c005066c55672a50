"""Triton from the `nvidia-pytriton` wheel, as an ordinary server of a model repository.

What the wheel needs is told in the functions; all of it was found by trying.
"""

import fcntl
import filecmp
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from multsd_gateway.stack.errors import PrerequisiteError
from multsd_gateway.stack.processes import Child, command_line, descendants, start_child

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LOOPBACK = "127.0.0.1"
EXIT_SECONDS = 10  # a client that keeps an HTTP connection open would hold a stopping server for its default of 30


@dataclass(frozen=True)
class TritonPorts:
    """Loopback ports; Triton's usual ones by default."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


@dataclass(frozen=True)
class TritonWheel:
    """Where the wheel's parts lie."""

    server: Path  # the executable
    backend: Path  # the Python backend's library and utilities
    stub: Path  # the Python backend's interpreter for the running Python
    libraries: Path


def find_wheel() -> TritonWheel:
    """Locate the wheel without importing it. Raises PrerequisiteError."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise PrerequisiteError("the Triton wheel is not installed; install it with `make setup`")
    package = Path(spec.origin).parent
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        have = sorted(path.name for path in root.glob("python_backend_stubs/*"))
        raise PrerequisiteError(
            f"the Triton wheel has no Python backend for Python {PYTHON}; it serves {', '.join(have) or 'none'}: "
            "choose one with `make setup PYTHON=python3.11`"
        )
    return TritonWheel(
        server=root / "bin" / "tritonserver",
        backend=root / "backends" / "python",
        stub=stub,
        libraries=package.parent / "nvidia_pytriton.libs",
    )


def check_shared_python(libraries: str) -> None:
    """The stub is linked to libpython. Raises PrerequisiteError naming the package where it is missing."""
    library = f"libpython{PYTHON}.so.1.0"
    command = [sys.executable, "-c", f"import ctypes; ctypes.CDLL({library!r})"]
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    if subprocess.run(command, env=environment, capture_output=True, check=False).returncode:
        raise PrerequisiteError(
            f"{library} is not on the loader's path; install it with `apt-get install libpython{PYTHON}`"
        )


def check_prerequisites() -> None:
    """Whether this machine can run the server at all. Raises PrerequisiteError."""
    check_shared_python(triton_environment(find_wheel())["LD_LIBRARY_PATH"])


def assemble_backends(wheel: TritonWheel, folder: Path) -> Path:
    """A backend directory with the Python backend and the stub of the running Python beside it.

    Stacks that start at the same time share one: none takes it away from another.
    """
    stub, partial = folder / "python" / wheel.stub.name, folder.with_name(f"{folder.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stub.exists() and filecmp.cmp(stub, wheel.stub)):
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(wheel.backend, partial / "python", ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy2(wheel.stub, partial / "python")
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    return folder


def triton_environment(wheel: TritonWheel) -> dict[str, str]:
    """The stub ignores PYTHONPATH and finds packages through the `python3` that is first on PATH."""
    libraries = [str(wheel.libraries), str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "PYTHONDONTWRITEBYTECODE": "1",  # model repositories are read, not written
    }


def triton_command(
    wheel: TritonWheel,
    *,
    repository: Path,
    backends: Path,
    ports: TritonPorts,
    shared_memory: str,
    config_name: str | None = None,
) -> list[str]:
    """The server's command line; everything binds to loopback."""
    return [
        str(wheel.server),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",  # each model's process starts once: configurations are complete
        "--allow-gpu-metrics=false",
        f"--backend-config=python,shm-region-prefix-name={shared_memory}",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        *(f"--{protocol}-address={LOOPBACK}" for protocol in ("http", "grpc", "metrics")),
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        *([f"--model-config-name={config_name}"] if config_name else []),
    ]


def model_processes(triton: Child) -> dict[int, str]:
    """The processes that run Triton's Python models: process id -> model. Triton starts none of them again."""
    found = {}
    for pid in descendants(triton.process.pid):
        for word in command_line(pid):
            if word.endswith("/model.py"):
                found[pid] = Path(word).parent.parent.name  # <model>/<version>/model.py
    return found


def start_triton(
    repository: Path, *, ports: TritonPorts, backends: Path, log: Path, config_name: str | None = None
) -> Child:
    """Start the server; it is ready later. Raises PrerequisiteError.

    Args:
        config_name: of the models' other configurations, taken where a model has one of that name.
    """
    wheel = find_wheel()
    environment = triton_environment(wheel)
    check_shared_python(environment["LD_LIBRARY_PATH"])
    # A name of its own: what a killed server leaves in shared memory can be told from a running one's.
    shared_memory = f"multsd_{os.getpid()}_{ports.grpc}_"
    command = triton_command(
        wheel,
        repository=repository,
        backends=assemble_backends(wheel, backends),
        ports=ports,
        shared_memory=shared_memory,
        config_name=config_name,
    )
    return start_child("triton", command, environment=environment, log=log, leftovers=shared_memory)
