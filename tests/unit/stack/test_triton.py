"""The wheel's parts, found or told to be missing. Wheels are folders made here; none is imported."""

import fcntl
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from multsd_gateway.stack import triton
from multsd_gateway.stack.errors import PrerequisiteError
from multsd_gateway.stack.triton import (
    PYTHON,
    TritonPorts,
    TritonWheel,
    assemble_backends,
    check_shared_python,
    find_wheel,
    triton_command,
    triton_environment,
)

STUB = "triton_python_backend_stub"


def write_wheel(site_packages: Path, *pythons: str) -> Path:
    """The parts of an installed wheel that has stubs for `pythons`."""
    root = site_packages / "pytriton" / "tritonserver"
    backend = root / "backends" / "python"
    (backend / "__pycache__").mkdir(parents=True)
    (backend / "libtriton_python.so").write_text("library")
    (backend / "triton_python_backend_utils.py").write_text("utilities")
    (backend / "__pycache__" / "utilities.pyc").write_text("compiled")
    (site_packages / "pytriton" / "__init__.py").write_text("raise RuntimeError('imported')")
    for python in pythons:
        stub = root / "python_backend_stubs" / python / STUB
        stub.parent.mkdir(parents=True)
        stub.write_text(f"stub of {python}")
    return root


@pytest.fixture
def only_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder where packages are found."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "pytriton", raising=False)
    return tmp_path


def test_wheel_is_found_without_importing_it(only_path: Path) -> None:
    root = write_wheel(only_path, "3.8", PYTHON)
    assert find_wheel() == TritonWheel(
        server=root / "bin" / "tritonserver",
        backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / PYTHON / STUB,
        libraries=only_path / "nvidia_pytriton.libs",
    )


@pytest.mark.usefixtures("only_path")
def test_missing_wheel_is_told_with_the_command_that_installs_it() -> None:
    with pytest.raises(PrerequisiteError, match=r"the Triton wheel is not installed; install it with `make setup`"):
        find_wheel()


def test_missing_stub_is_told_with_the_pythons_that_have_one(only_path: Path) -> None:
    write_wheel(only_path, "3.9", "3.8")
    with pytest.raises(PrerequisiteError, match=f"no Python backend for Python {PYTHON}; it serves 3.8, 3.9"):
        find_wheel()


def test_missing_stub_is_told_with_the_command_that_mends_it(only_path: Path) -> None:
    write_wheel(only_path, "3.9", "3.8")
    with pytest.raises(PrerequisiteError, match="make setup PYTHON="):
        find_wheel()


def test_wheel_without_stubs_is_told_like_one_that_lacks_ours(only_path: Path) -> None:
    write_wheel(only_path)
    with pytest.raises(PrerequisiteError, match=f"no Python backend for Python {PYTHON}"):
        find_wheel()


def mathematics_library() -> Path:
    """A shared library that every interpreter has loaded."""
    loaded = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line)
    return next(Path(path) for path in loaded if Path(path).name.startswith("libm.so"))


def test_missing_libpython_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "PYTHON", "3.99")
    message = r"libpython3\.99\.so\.1\.0 is not on the loader's path; install it with `apt-get install libpython3\.99`"
    with pytest.raises(PrerequisiteError, match=message):
        check_shared_python("")


def test_libpython_is_looked_for_in_the_folders_that_triton_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "PYTHON", "3.99")
    library = tmp_path / "libpython3.99.so.1.0"
    shutil.copyfile(mathematics_library(), library)
    check_shared_python(str(tmp_path))
    library.unlink()
    with pytest.raises(PrerequisiteError):
        check_shared_python(str(tmp_path))


def wheel_in(site_packages: Path, python: str = PYTHON) -> TritonWheel:
    root = write_wheel(site_packages, python)
    return TritonWheel(
        server=root / "bin" / "tritonserver",
        backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / python / STUB,
        libraries=site_packages / "nvidia_pytriton.libs",
    )


def test_backend_folder_has_the_backend_and_the_stub_beside_it(tmp_path: Path) -> None:
    folder = assemble_backends(wheel_in(tmp_path), tmp_path / "build" / "backends")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {f"python/{name}" for name in ("libtriton_python.so", "triton_python_backend_utils.py", STUB)}
    assert {path.name for path in folder.parent.iterdir()} == {"backends", ".backends.lock"}


def test_backend_folder_is_made_once(tmp_path: Path) -> None:
    wheel = wheel_in(tmp_path)
    folder = assemble_backends(wheel, tmp_path / "backends")
    (folder / "python" / "ours").touch()
    assert assemble_backends(wheel, folder) == folder
    assert (folder / "python" / "ours").exists()


def test_backend_folder_is_made_by_one_stack_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, copy, refused = wheel_in(tmp_path), shutil.copytree, list[Path]()

    def copy_while_another_asks(source: Path, target: Path, **options: Any) -> Path:
        with (tmp_path / ".backends.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refused.append(target)
        return Path(copy(source, target, **options))

    monkeypatch.setattr(shutil, "copytree", copy_while_another_asks)
    folder = assemble_backends(wheel, tmp_path / "backends")
    assert assemble_backends(wheel, folder) == folder
    assert len(refused) == 1


def test_half_made_backend_folder_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "backends"
    (folder / "python").mkdir(parents=True)
    assemble_backends(wheel_in(tmp_path), folder)
    assert (folder / "python" / "libtriton_python.so").exists()


def test_backend_folder_of_another_python_is_made_again(tmp_path: Path) -> None:
    folder = assemble_backends(wheel_in(tmp_path / "old", "3.8"), tmp_path / "backends")
    assemble_backends(wheel_in(tmp_path / "new"), folder)
    assert (folder / "python" / STUB).read_text() == f"stub of {PYTHON}"


def test_everything_of_triton_binds_to_loopback(tmp_path: Path) -> None:
    command = triton_command(
        wheel_in(tmp_path),
        repository=tmp_path / "models",
        backends=tmp_path / "backends",
        ports=TritonPorts(1, 2, 3),
        shared_memory="mine_",
    )
    options = {name: value for name, _, value in (option.partition("=") for option in command[1:])}
    assert command[0].endswith("tritonserver")
    assert {options[f"--{protocol}-address"] for protocol in ("http", "grpc", "metrics")} == {"127.0.0.1"}
    assert [options[f"--{protocol}-port"] for protocol in ("http", "grpc", "metrics")] == ["1", "2", "3"]
    assert options["--model-repository"] == str(tmp_path / "models")
    assert options["--backend-directory"] == str(tmp_path / "backends")


def test_no_model_is_started_a_second_time_to_complete_its_configuration(tmp_path: Path) -> None:
    wheel, ports = wheel_in(tmp_path), TritonPorts()
    command = triton_command(wheel, repository=tmp_path, backends=tmp_path, ports=ports, shared_memory="mine_")
    assert "--disable-auto-complete-config" in command


def test_other_configurations_are_taken_where_they_are_named(tmp_path: Path) -> None:
    def command(config_name: str | None) -> list[str]:
        return triton_command(
            wheel_in(tmp_path / str(config_name)),
            repository=tmp_path,
            backends=tmp_path,
            ports=TritonPorts(),
            shared_memory="mine_",
            config_name=config_name,
        )

    assert "--model-config-name=cuda_graphs" in command("cuda_graphs")
    assert not any(option.startswith("--model-config-name") for option in command(None))


def test_stub_finds_the_running_pythons_packages_and_the_wheels_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = wheel_in(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    environment = triton_environment(wheel)
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.prefix) / "bin")
    libraries = environment["LD_LIBRARY_PATH"].split(os.pathsep)
    assert (libraries[0], libraries[-1]) == (str(wheel.libraries), "/somewhere")
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert "" not in triton_environment(wheel)["LD_LIBRARY_PATH"].split(os.pathsep)
