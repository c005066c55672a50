"""The compose files: settings that exist, commands that parse, nothing published but the gateway, no secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from multsd_export.profiles import CUDA_GRAPHS
from multsd_gateway.settings import Settings
from tests.unit.docker.files import (
    DOCKER,
    PYPROJECT,
    ROOT,
    SETTINGS,
    arguments,
    check_command,
    documents,
    last,
    most_shared_memory,
    stages,
)

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
    assert names or document is not CPU
    assert names <= SETTINGS


def test_no_family_of_checkpoints_needs_a_setting_of_its_own() -> None:
    assert not any("MULTSD_MODELS" in file.read_text() for file in FILES)


def test_the_gateway_takes_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CPU["services"]["gateway"]["environment"].items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.triton_urls == ("triton:8001",)
    assert settings.grace_seconds >= settings.request_seconds, "requests at work may finish"


@pytest.mark.parametrize("service", ["export", "verify"])
@pytest.mark.parametrize("document", ALL)
def test_each_service_of_the_exporter_runs_a_command_line_that_it_takes(document: dict[str, Any], service: str) -> None:
    check_command("multsd-export", document["services"][service]["command"])


@pytest.mark.parametrize("service", ["export", "verify"])
def test_the_demo_checkpoint_is_where_the_image_has_it(service: str) -> None:
    (word,) = (word for word in CPU["services"][service]["command"] if word.startswith("--checkpoint="))
    path = Path(word.partition("=")[2]).relative_to("/opt/multsd")
    assert (ROOT / path / "model_index.json").is_file()
    assert "export" in {path for each in stages(DOCKER / "export.Dockerfile")[0] for path in each.words()}


@pytest.mark.parametrize("service", CPU["services"])
def test_each_service_is_built_from_a_target_that_exists(service: str) -> None:
    for document in (CPU, GPU, TORCH):
        build = document["services"].get(service, {}).get("build", {})
        dockerfile = ROOT / CPU["services"][service]["build"]["dockerfile"]
        targets = [re.fullmatch(r"\S+ AS (\w+)", stage[0].value) for stage in stages(dockerfile)]
        assert build.get("target") in (None, *(match[1] for match in targets if match))


@pytest.mark.parametrize("service", CPU["services"])
def test_each_image_has_this_versions_tag(service: str) -> None:
    for document in (CPU, GPU, TORCH):
        image = document["services"].get(service, {}).get("image")
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
    for name in ("triton", "triton-graphs", "verify"):
        assert CPU["services"][name]["networks"] == ["inside"]


def test_triton_starts_after_the_export_and_the_gateway_after_triton() -> None:
    services = CPU["services"]
    assert services["triton"]["depends_on"] == {"export": {"condition": "service_completed_successfully"}}
    assert services["gateway"]["depends_on"] == {"triton": {"condition": "service_healthy"}}
    assert last(stages(DOCKER / "triton.Dockerfile")[0], "HEALTHCHECK") is not None
    assert services["export"]["restart"] == "no"


@pytest.mark.parametrize("document", ALL)
def test_what_verifies_is_started_by_nothing_but_its_own_profile(document: dict[str, Any]) -> None:
    for name, service in document["services"].items():
        profile = CPU["services"][name].get("profiles")
        assert profile == (["verify"] if name in ("verify", "triton-graphs") else None)
        assert "profiles" not in service or document is CPU
        if profile is None:
            assert not {"verify", "triton-graphs"} & set(service.get("depends_on", ()))
    for name in ("verify", "triton-graphs"):
        assert CPU["services"][name]["restart"] == "no", "nothing of it comes back with the machine"


@pytest.mark.parametrize("document", ALL)
def test_what_verifies_waits_for_the_tritons_that_it_asks_and_both_serve_one_repository(
    document: dict[str, Any],
) -> None:
    verify = document["services"]["verify"]
    needed = CPU["services"]["verify"]["depends_on"] | verify["depends_on"]
    checkpoint, output = (
        next(word for word in document["services"]["export"]["command"] if word.startswith(option))
        for option in ("--checkpoint=", "--output=")
    )
    words = dict(word.removeprefix("--").split("=", 1) for word in verify["command"][2:])
    assert verify["command"][:2] == ["verify", output.partition("=")[2]]
    assert f"--checkpoint={words['checkpoint']}" == checkpoint
    asked = {words[name].partition(":")[0] for name in ("url", "graphs-url") if name in words}
    assert asked == set(needed) == ({"triton"} if document is CPU else {"triton", "triton-graphs"})
    assert all(each == {"condition": "service_healthy"} for each in needed.values())
    assert {words[name].partition(":")[2] for name in ("url", "graphs-url") if name in words} == {"8001"}


def test_a_second_triton_differs_in_its_cuda_graphs_alone(triton_help: str) -> None:
    command = last(stages(DOCKER / "triton.Dockerfile")[0], "CMD")
    assert command is not None
    own = CPU["services"]["triton-graphs"]["command"]
    assert set(own) == {*command.words(), f"--model-config-name={CUDA_GRAPHS}"}
    assert own[0] == "tritonserver"
    assert "--model-config-name <" in triton_help
    assert CPU["services"]["triton-graphs"]["depends_on"] == {"triton": {"condition": "service_healthy"}}
    apart = ("command", "depends_on", "profiles", "restart")
    for document in (CPU, GPU, TORCH):
        first, second = (dict(document["services"][name]) for name in ("triton", "triton-graphs"))
        for name in apart:
            first.pop(name, None)
            second.pop(name, None)
        assert second == first


@pytest.mark.parametrize("document", ALL)
def test_a_verification_reads_what_it_verifies_and_writes_its_report(document: dict[str, Any]) -> None:
    verify, export = (document["services"][name] for name in ("verify", "export"))
    volumes = {each.rsplit(":", 2)[-2 if each.endswith(":ro") else -1]: each for each in verify["volumes"]}
    assert all(each.endswith(":ro") for path, each in volumes.items() if path != "/reports")
    checkpoint = {each for each in export["volumes"] if ":/checkpoint" in each}
    assert {*verify["volumes"]} == {*checkpoint, "models:/models:ro", "reports:/reports"}
    (report,) = (word.partition("=")[2] for word in verify["command"] if word.startswith("--report="))
    assert Path(report).parent == Path("/reports")
    for stage in stages(DOCKER / "export.Dockerfile"):  # a new volume takes the owner of the image's folder
        assert any("install -d -o 1000 -g 1000 /models /reports" in each.value for each in stage if each.name == "RUN")
    assert {"models", "reports"} <= set(document["volumes"])
    assert verify.get("image", "").partition(":")[0] == "multsd-export"


def test_the_exporters_working_folder_is_one_that_its_user_may_write_to() -> None:
    for stage in stages(DOCKER / "export.Dockerfile"):
        folder = last(stage, "WORKDIR")
        assert folder is not None
        assert folder.value == "/models"
        assert any(f"-o 1000 -g 1000 {folder.value}" in each.value for each in stage if each.name == "RUN")


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


def test_a_triton_whose_model_process_has_died_can_be_killed_and_comes_back() -> None:
    """By the image's health check, which cannot kill a container's first process."""
    triton = CPU["services"]["triton"]
    assert triton["init"] is True
    assert triton["restart"] == "unless-stopped"
    assert not any("healthcheck" in document["services"]["triton"] for document in (CPU, GPU, TORCH)), "the image's"


def test_triton_has_shared_memory_for_large_pictures() -> None:
    most = most_shared_memory(Settings().max_running)
    gigabytes = {
        name: int(each["services"]["triton"]["shm_size"].removesuffix("gb"))
        for name, each in (("cpu", CPU), ("gpu", GPU), ("torch", TORCH))
    }
    assert all(size * 2**30 > most for size in gigabytes.values())


def test_the_gpu_goes_to_whoever_builds_engines_serves_or_verifies() -> None:
    served = {"triton", "triton-graphs", "verify"}  # torch is the faster for it, and engines are held to it
    for document, names in ((GPU, {"export", *served}), (TORCH, served)):
        assert {name for name, service in document["services"].items() if "deploy" in service} == names
        for name in names:
            (device,) = document["services"][name]["deploy"]["resources"]["reservations"]["devices"]
            assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_the_torch_profiles_triton_is_built_with_a_torch_for_cuda_and_has_a_tag_of_its_own() -> None:
    triton = TORCH["services"]["triton"]
    assert triton["build"]["args"] == {"TORCH_INDEX": ""}, "the default index"
    assert "TORCH_INDEX" in arguments(DOCKER / "triton.Dockerfile")
    assert triton["image"] != CPU["services"]["triton"]["image"]
    verify = TORCH["services"]["verify"]
    assert verify["build"]["args"] == {"TORCH_INDEX": ""}
    assert "TORCH_INDEX" in arguments(DOCKER / "export.Dockerfile")
    assert verify["image"] not in {CPU["services"]["verify"]["image"], GPU["services"]["verify"]["image"]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    assert not re.search(r"(?i)(password|secret|api_key|token)\s*[:=]", path.read_text())
