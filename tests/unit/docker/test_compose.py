"""The compose files: settings that exist, commands that parse, nothing published but the gateway, no secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from multsd_gateway.settings import Settings
from tests.unit.docker.files import DOCKER, PYPROJECT, ROOT, SETTINGS, arguments, check_command, documents, last, stages

FILES = [DOCKER / name for name in ("compose.yaml", "compose.gpu.yaml", "compose.torch.yaml")]


def read(path: Path) -> dict[str, Any]:
    """The one document of a compose file."""
    (document,) = documents(path)
    return document


CPU, GPU, TORCH = (read(path) for path in FILES)
ALL = [pytest.param(document, id=name) for document, name in ((CPU, "cpu"), (GPU, "gpu"), (TORCH, "torch"))]


@pytest.mark.parametrize("document", ALL)
def test_every_environment_variable_is_a_setting(document: dict[str, Any]) -> None:
    names = {name for service in document["services"].values() for name in service.get("environment", {})}
    assert names
    assert names <= SETTINGS


def test_the_gateway_takes_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CPU["services"]["gateway"]["environment"].items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.triton_urls == ("triton:8001",)
    assert settings.grace_seconds >= settings.request_seconds, "requests at work may finish"


@pytest.mark.parametrize("document", ALL)
def test_the_export_service_runs_a_command_line_that_the_exporter_takes(document: dict[str, Any]) -> None:
    words = document["services"]["export"]["command"]
    check_command("multsd-export", words)


def test_the_demo_checkpoint_is_where_the_image_has_it() -> None:
    (word,) = (word for word in CPU["services"]["export"]["command"] if word.startswith("--checkpoint="))
    path = Path(word.partition("=")[2]).relative_to("/opt/multsd")
    assert (ROOT / path / "model_index.json").is_file()
    assert "export" in {path for each in stages(DOCKER / "export.Dockerfile")[0] for path in each.words()}


@pytest.mark.parametrize("service", CPU["services"])
def test_each_service_is_built_from_a_target_that_exists(service: str) -> None:
    for document in (CPU, GPU, TORCH):
        build = document["services"][service].get("build", {})
        dockerfile = ROOT / CPU["services"][service]["build"]["dockerfile"]
        targets = [re.fullmatch(r"\S+ AS (\w+)", stage[0].value) for stage in stages(dockerfile)]
        assert build.get("target") in (None, *(match[1] for match in targets if match))


@pytest.mark.parametrize("service", CPU["services"])
def test_each_image_has_this_versions_tag(service: str) -> None:
    for document in (CPU, GPU, TORCH):
        image = document["services"][service].get("image")
        assert image is None or image.partition(":")[2].split("-")[0] == PYPROJECT["project"]["version"]


@pytest.mark.parametrize("service", CPU["services"])
def test_each_service_is_hardened(service: str) -> None:
    described = CPU["services"][service]
    assert described["read_only"] is True
    assert described["cap_drop"] == ["ALL"]
    assert described["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "user", "cap_add", "pid", "ipc"} & set(described)


def test_only_the_gateway_is_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in CPU["services"].items() if "ports" in service}
    assert published == {"gateway": [f"127.0.0.1:{Settings().port}:{Settings().port}"]}
    assert not any("ports" in service for other in (GPU, TORCH) for service in other["services"].values())
    assert CPU["networks"]["inside"] == {"internal": True}
    assert CPU["services"]["triton"]["networks"] == ["inside"]


def test_triton_starts_after_the_export_and_the_gateway_after_triton() -> None:
    services = CPU["services"]
    assert services["triton"]["depends_on"] == {"export": {"condition": "service_completed_successfully"}}
    assert services["gateway"]["depends_on"] == {"triton": {"condition": "service_healthy"}}
    assert last(stages(DOCKER / "triton.Dockerfile")[0], "HEALTHCHECK") is not None
    assert services["export"]["restart"] == "no"


def test_triton_serves_what_the_export_writes() -> None:
    command = last(stages(DOCKER / "triton.Dockerfile")[0], "CMD")
    assert command is not None
    for document in (CPU, GPU, TORCH):
        (output,) = (w.partition("=")[2] for w in document["services"]["export"]["command"] if "--output=" in w)
        assert f"--model-repository={output}" in command.words()
    assert "models:/models" in CPU["services"]["export"]["volumes"]
    assert CPU["services"]["triton"]["volumes"] == ["models:/models:ro"]


def test_a_stop_waits_longer_than_the_longest_request() -> None:
    command = last(stages(DOCKER / "triton.Dockerfile")[0], "CMD")
    assert command is not None
    (exit_seconds,) = (int(word.partition("=")[2]) for word in command.words() if "exit-timeout" in word)
    request = float(CPU["services"]["gateway"]["environment"]["MULTSD_REQUEST_SECONDS"])
    grace = float(CPU["services"]["gateway"]["environment"]["MULTSD_GRACE_SECONDS"])
    stop = {name: int(CPU["services"][name]["stop_grace_period"].rstrip("s")) for name in ("triton", "gateway")}
    assert request < exit_seconds < stop["triton"]
    assert request < grace < stop["gateway"]


def test_triton_has_shared_memory_for_large_pictures() -> None:
    """A picture of the largest size, its masks and a decoded canvas in float32, for every request at work."""
    most = Settings().max_pixels * (3 + 3 * 4) + Settings().max_mask_pixels
    gigabytes = {
        name: int(each["services"]["triton"]["shm_size"].removesuffix("gb"))
        for name, each in (("cpu", CPU), ("gpu", GPU), ("torch", TORCH))
    }
    assert all(size * 2**30 > most * Settings().max_running for size in gigabytes.values())


def test_the_gpu_goes_to_whoever_builds_engines_and_whoever_serves() -> None:
    for document, names in ((GPU, {"export", "triton"}), (TORCH, {"triton"})):
        assert {name for name, service in document["services"].items() if "deploy" in service} == names
        for name in names:
            (device,) = document["services"][name]["deploy"]["resources"]["reservations"]["devices"]
            assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_the_torch_profiles_triton_is_built_with_a_torch_for_cuda_and_has_a_tag_of_its_own() -> None:
    triton = TORCH["services"]["triton"]
    assert triton["build"]["args"] == {"TORCH_INDEX": ""}, "the default index"
    assert "TORCH_INDEX" in arguments(DOCKER / "triton.Dockerfile")
    assert triton["image"] != CPU["services"]["triton"]["image"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    assert not re.search(r"(?i)(password|secret|api_key|token)\s*[:=]", path.read_text())
