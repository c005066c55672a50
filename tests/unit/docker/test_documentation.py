"""docker/README.md and runbooks.md: every path, image and link that they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from multsd_gateway.settings import Settings
from tests.unit.docker.files import DOCKER, DOCKERFILES, PYPROJECT, ROOT, SETTINGS, stages

README = (DOCKER / "README.md").read_text()
RUNBOOKS = (DOCKER / "runbooks.md").read_text()
PAGES = pytest.mark.parametrize("text", [README, RUNBOOKS], ids=["README.md", "runbooks.md"])


@PAGES
def test_every_link_leads_somewhere(text: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        assert (DOCKER / path).exists(), link
        assert not anchor or f"## {anchor}\n" in text.lower(), link


@PAGES
def test_every_setting_that_is_named_exists(text: str) -> None:
    assert set(re.findall(r"`(MULTSD_\w+)`", text)) <= SETTINGS


def test_every_path_in_a_command_exists() -> None:
    paths = set(re.findall(r"(?<![\w/-])((?:docker|client)/[\w./-]+)", README))
    assert len(paths) > 5
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_build_command_has_its_file_and_target() -> None:
    commands = re.findall(r"^docker build -f (\S+)(?: --target (\w+))? -t (\S+) \.$", README, flags=re.MULTILINE)
    assert {Path(file).name for file, _, _ in commands} == {path.name for path in DOCKERFILES}
    for file, target, tag in commands:
        targets = {stage[0].value.partition(" AS ")[2] for stage in stages(ROOT / file)}
        assert target in targets
        assert re.search(rf":{re.escape(PYPROJECT['project']['version'])}(-{target})?$", tag)


def test_each_file_of_the_folder_is_told_of() -> None:
    for path in DOCKER.iterdir():
        if path.suffix != ".dockerignore" and path.name not in ("README.md", "__pycache__"):
            assert path.name in README, path.name


def test_the_times_of_draining_are_those_of_the_manifests() -> None:
    manifests = {name: (DOCKER / "kubernetes" / "base" / f"{name}.yaml").read_text() for name in ("triton", "gateway")}
    pods = {name: re.findall(r"terminationGracePeriodSeconds: (\d+)", text)[0] for name, text in manifests.items()}
    settings = (DOCKER / "kubernetes" / "base" / "kustomization.yaml").read_text()
    gateway = re.findall(r"MULTSD_GRACE_SECONDS=(\d+)", settings)[0]
    triton = re.findall(r"--exit-timeout-secs=(\d+)", manifests["triton"])[0]
    longest = f"{Settings().request_seconds:.0f}"
    assert (
        f"the longest request takes {longest} s, the gateway has {gateway} s and its pod {pods['gateway']} s; "
        f"Triton has {triton} s and its pod {pods['triton']} s"
    ) in " ".join(README.split())
