"""docker/README.md and runbooks.md: every path, image and link that they name is there; so are export/README.md's."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from multsd_gateway.settings import Settings
from tests.benchmarks import tritons
from tests.stand_in.pair import EVENTS, Reply
from tests.unit.docker.files import (
    DOCKER,
    DOCKERFILES,
    PYPROJECT,
    ROOT,
    SETTINGS,
    check_command,
    documents,
    last,
    stages,
)
from tests.unit.docker.kustomize import KUBERNETES, OVERLAYS, build, containers, find, pods

README = (DOCKER / "README.md").read_text()
RUNBOOKS = (DOCKER / "runbooks.md").read_text()
DEMO = build(KUBERNETES / "overlays" / "cpu-demo")
SLACK_MS = 500  # of one request, on a machine with two cores
GATEWAYS = "deployment/multsd-gateway"
PAGES = pytest.mark.parametrize("text", [README, RUNBOOKS], ids=["README.md", "runbooks.md"])


@PAGES
def test_every_link_leads_somewhere(text: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        assert (DOCKER / path).exists(), link
        assert not anchor or anchor in anchors((DOCKER / path).read_text() if path else text), link


@PAGES
def test_lines_are_no_longer_than_those_of_the_code(text: str) -> None:
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def anchors(text: str) -> set[str]:
    """What a link to a heading of a page ends with."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


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


def script(first_word: str) -> str:
    """The one block of commands that begins so."""
    (found,) = re.findall(rf"```sh\n({re.escape(first_word)}.*?)```", README, flags=re.DOTALL)
    return str(found)


def block(first_word: str) -> list[str]:
    """The lines of a block of commands, continued ones joined."""
    return re.sub(r"\\\n\s*", "", script(first_word)).splitlines()


def given_to_kubectl(commands: str, folder: Path) -> list[dict[str, Any]]:
    """The objects that commands give to kubectl on standard input, run in a folder without a cluster."""
    stand_in, given = folder / "programs" / "kubectl", folder / "given.yaml"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\ncase "$*" in *"-f -"*) echo ---; cat ;; esac >> "$GIVEN"\n')
    stand_in.chmod(0o755)
    variables = {
        "PATH": f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}",
        "GIVEN": str(given),
        "REGISTRY": "registry.example.org/multsd",
    }
    subprocess.run(["/bin/sh", "-euc", commands], cwd=folder, env=variables, check=True)
    return documents(given)


def test_a_cluster_takes_ten_commands_and_a_picture_one_more() -> None:
    registry, *commands = block("REGISTRY=")
    assert registry.startswith("REGISTRY=")
    assert len(commands) == 11
    assert commands[-1].startswith("curl ")
    built = [command.split() for command in commands if command.startswith("docker build")]
    assert [words[-2:] for words in built] == [["--push", "."]] * 3


@pytest.mark.parametrize("overlay", sorted(each.name for each in (DOCKER / "kubernetes" / "overlays").iterdir()))
def test_the_command_that_names_the_registry_names_it_for_every_image(tmp_path: Path, overlay: str) -> None:
    registry, *commands = block("REGISTRY=")
    commands = [each.replace("cpu-demo", overlay) for each in commands]
    if overlay != "cpu-demo":
        commands = [
            each.replace("--target cpu", "--target tensorrt").replace("-cpu ", "-tensorrt ") for each in commands
        ]
    (command,) = (each for each in commands if each.startswith("sed "))
    shutil.copytree(DOCKER, tmp_path / "docker")
    for _ in range(2):  # whoever takes up another overlay runs it again
        subprocess.run(["/bin/sh", "-ec", f"{registry}\n{command}"], cwd=tmp_path, check=True)
    pushed = {re.findall(r"-t (\S+)", each)[0] for each in commands if each.startswith("docker build")}
    if overlay == "gpu-object-storage":  # nothing is exported there
        pushed = {each for each in pushed if "multsd-export" not in each}
    name = registry.partition("=")[2].split()[0]
    built = pods(build(tmp_path / "docker" / "kubernetes" / "overlays" / overlay)).values()
    assert {container["image"] for pod in built for container in containers(pod)} == {
        image.replace("$REGISTRY", name) for image in pushed
    }
    for task in ("prepare", "verify"):
        of_task = pods(build(tmp_path / "docker" / "kubernetes" / task)).values()
        assert {each["image"].count(f"{name}/multsd-") for pod in of_task for each in containers(pod)} == {1}


def test_the_command_of_an_upgrade_gives_exporter_and_triton_the_new_release(tmp_path: Path) -> None:
    command, apply, status = block("sed -i '/name: RELEASE/")
    shutil.copytree(DOCKER, tmp_path / "docker")
    subprocess.run(["/bin/sh", "-ec", command], cwd=tmp_path, check=True)
    pod = pods(build(tmp_path / apply.split()[-1]))["multsd-triton"]
    releases = [each["value"] for part in containers(pod) for each in part["env"] if each["name"] == "RELEASE"]
    assert releases == ["2", "2"]
    for task in ("prepare", "verify"):
        for own in pods(build(tmp_path / "docker" / "kubernetes" / task)).values():
            variables = {each["name"]: each.get("value") for each in own["containers"][0]["env"]}
            assert variables["RELEASE"] == "2", task
    assert status.split()[-1] == "statefulset/multsd-triton"


def test_the_command_that_changes_the_tags_changes_those_of_every_image(tmp_path: Path) -> None:
    old = str(PYPROJECT["project"]["version"])
    shutil.copytree(DOCKER, tmp_path / "docker")
    subprocess.run(["/bin/sh", "-ec", script("sed -i 's/newTag")], cwd=tmp_path, check=True)
    kustomizations = list((tmp_path / "docker").rglob("kustomization.yaml"))
    tags = [tag for path in kustomizations for tag in re.findall(r"newTag: ([\w.-]+)", path.read_text())]
    assert tags
    assert [tag for tag in tags if not re.fullmatch(r"0\.2\.0(-cpu|-tensorrt)?", tag)] == []
    folders = [path.parent for path in kustomizations if path.parent.name != "base"]
    assert len(folders) == len(OVERLAYS) + 2
    for folder in folders:
        for name, pod in pods(build(folder)).items():
            images = [container["image"] for container in containers(pod)]
            assert [image for image in images if f":{old}" in image] == [], f"{folder.name}: {name}"


def test_the_pod_that_fills_the_checkpoints_volume_is_restricted_and_writes_to_that_claim(tmp_path: Path) -> None:
    commands = script(
        "kubectl -n multsd apply -f docker/kubernetes/overlays/gpu-tensorrt/models.yaml\nkubectl -n multsd apply -f -"
    )
    (pod,) = given_to_kubectl(commands, tmp_path)
    assert pod["kind"] == "Pod"
    name, spec = pod["metadata"]["name"], pod["spec"]
    triton = pods(build(KUBERNETES / "overlays" / "gpu-tensorrt"))["multsd-triton"]
    assert triton["securityContext"] == spec["securityContext"] | {"fsGroupChangePolicy": "OnRootMismatch"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    (volume,), (mount,) = spec["volumes"], container["volumeMounts"]
    (read,) = (each for each in triton["volumes"] if each["name"] == "checkpoint")
    assert volume["persistentVolumeClaim"]["claimName"] == read["persistentVolumeClaim"]["claimName"]
    assert "readOnly" not in volume["persistentVolumeClaim"] | mount
    image = container["image"].removeprefix("registry.example.org/multsd/")
    assert image in [each["image"] for each in triton["initContainers"]]
    *_, wait, copy, shown, deleted = commands.splitlines()
    assert wait.endswith(f"pod/{name}")
    (release,) = {each["value"] for each in triton["initContainers"][0]["env"] if each["name"] == "RELEASE"}
    assert copy.endswith(f" {name}:{mount['mountPath']}/{release}")
    assert f" exec {name} -- " in shown
    assert f" delete pod {name} " in deleted
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(pod, "1.27", strict=True)


def test_the_secret_of_the_object_storage_is_made_with_the_name_that_its_overlay_reads() -> None:
    (command,) = block("kubectl -n multsd create secret generic multsd-object-storage")
    overlay = KUBERNETES / "overlays" / "gpu-object-storage"
    (container,) = pods(build(overlay))["multsd-triton"]["containers"]
    (source,) = container["envFrom"]
    assert shlex.split(command)[6] == source["secretRef"]["name"]
    names = re.findall(r"--from-literal=(\w+)=", command)
    assert names == re.findall(r"--from-literal=(\w+)=", (overlay / "kustomization.yaml").read_text())
    (repository,) = (each for each in container["args"] if each.startswith("--model-repository="))
    (bucket,) = re.findall(r"`(s3://[\w-]+)` in `--model-repository`", " ".join(README.split()))
    assert repository.startswith(f"--model-repository={bucket}/")
    assert "AWS_DEFAULT_REGION" in {each["name"] for each in container["env"]}


def test_the_kind_of_gpu_is_in_as_many_places_as_are_told() -> None:
    (kind,) = re.findall(r"^- `(NVIDIA-\w+)` in `triton-patch.yaml` \(three places; two with", README, re.MULTILINE)
    for overlay, places in {"gpu-tensorrt": 3, "gpu-object-storage": 2}.items():
        assert (KUBERNETES / "overlays" / overlay / "triton-patch.yaml").read_text().count(kind) == places


def test_what_is_before_the_gateway_is_told_to_allow_what_the_gateway_allows() -> None:
    settings = find(DEMO, "ConfigMap", "multsd-gateway")["data"]
    assert "MULTSD_MAX_BODY_BYTES" not in settings, "the default holds"
    seconds = int(settings["MULTSD_REQUEST_SECONDS"])
    assert (
        f"up to `MULTSD_REQUEST_SECONDS` ({seconds} s) without a byte sent, so a timeout of at least {seconds + 10} s; "
        f"bodies of at least `MULTSD_MAX_BODY_BYTES` ({Settings().max_body_bytes})"
    ) in " ".join(README.split())


def test_the_commands_for_the_prometheus_operator_give_it_every_job_and_rule(tmp_path: Path) -> None:
    shutil.copytree(DOCKER / "observability", tmp_path / "docker" / "observability")
    (rule,) = given_to_kubectl(script("sed '1,/^scrape_configs:/d'"), tmp_path)
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert [rule["spec"]] == documents(DOCKER / "observability" / "rules.yaml")
    (configuration,) = documents(DOCKER / "observability" / "prometheus.yaml")
    assert yaml.safe_load((tmp_path / "scrape.yaml").read_text()) == configuration["scrape_configs"]


def test_tokens_are_changed_in_the_secret_that_gateways_mount_and_gateways_restarted() -> None:
    change, *rest = block("kubectl -n multsd create secret generic multsd-tokens --from-file=tokens --dry-run")
    (created,) = (each for each in block("REGISTRY=") if "create secret" in each)
    assert change == f"{created} --dry-run=client -o yaml | kubectl replace -f -"
    assert [line.split()[3:] for line in rest] == [["rollout", each, GATEWAYS] for each in ("restart", "status")]
    (volume,) = (each for each in pods(DEMO)["multsd-gateway"]["volumes"] if "secret" in each)
    assert f"generic {volume['secret']['secretName']} --from-file=tokens" in change


def test_the_documented_rate_of_a_token_is_that_of_all_gateways_together() -> None:
    replicas = find(DEMO, "Deployment", "multsd-gateway")["spec"]["replicas"]
    assert "MULTSD_RATE_PER_MINUTE" not in find(DEMO, "ConfigMap", "multsd-gateway")["data"], "the default holds"
    rate = Settings().rate_per_minute
    assert (
        f"`MULTSD_RATE_PER_MINUTE` ({rate:.0f}) and `MULTSD_RATE_BURST` are counted in each gateway by itself: with "
        f"the {replicas} gateways of these manifests a token may ask for up to {replicas * rate:.0f} pictures a minute."
    ) in " ".join(README.split())


def test_the_table_of_two_tritons_is_one_that_the_benchmark_may_print() -> None:
    (table,) = re.findall(r"^\| meanwhile \|.*?\n\n", README, flags=re.DOTALL | re.MULTILINE)
    header, _, *lines = table.strip().splitlines()
    names = [re.sub(r" (ms|after s)$", "", cell).replace(" ", "_") for cell in header.strip("| ").split(" | ")]
    assert names == ["meanwhile", *tritons.summary([Reply(status=200, seconds=1)], left_out=0)]
    rows = [line.strip("| ").split(" | ") for line in lines]
    assert [name for name, *_ in rows] == list(EVENTS)
    for name, *cells in rows:
        sent, failed, p50, p99, most, left_out = map(float, cells)
        assert failed == 0, name
        assert sent >= 2 * tritons.AROUND, "before the event and after it"
        assert 1000 * tritons.MODEL_SECONDS <= p50 <= p99 <= most, name
        assert most < 1000 * (tritons.MODEL_SECONDS + Settings().triton_silence_seconds) + SLACK_MS, name
        assert (left_out == 0) == (name == next(iter(EVENTS))), "an event is noticed"
        assert left_out < Settings().triton_silence_seconds, "within seconds"


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


STEPS = (ROOT / "export" / "README.md").read_text().partition("## Engines")[2].partition("\n## ")[0]
COMPOSE = [documents(DOCKER / name)[0]["services"] for name in ("compose.yaml", "compose.gpu.yaml")]


def commands(text: str) -> list[list[str]]:
    """The words of every command in the blocks of a text."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for each in blocks for line in each.replace("\\\n", " ").splitlines()]
    return [shlex.split(line.partition("  #")[0]) for line in lines]


def test_the_steps_of_engines_name_compose_files_and_dockerfiles_that_exist() -> None:
    (files,) = re.findall(r"^export COMPOSE_FILE=(\S+)$", STEPS, flags=re.MULTILINE)
    assert files.split(":") == ["docker/compose.yaml", "docker/compose.gpu.yaml"]
    built = [words for words in commands(STEPS) if words[:2] == ["docker", "build"]]
    assert len(built) == 2
    readme = [words for words in commands(README) if words[:2] == ["docker", "build"]]
    assert all(words in readme for words in built)


def test_the_steps_of_engines_start_services_with_command_lines_that_they_take() -> None:
    started = [words[3:] for words in commands(STEPS) if words[:3] == ["docker", "compose", "run"]]
    assert len(started) == 4
    for words in started:
        if "--entrypoint" in words:  # the report that was written before
            (report,) = (each.partition("=")[2] for each in COMPOSE[1]["verify"]["command"] if "--report=" in each)
            assert words[words.index("--entrypoint") + 1 :][:3] == ["cat", "verify", report]
            continue
        assert words[0] == "--rm"
        service, *line = words[1:]
        check_command("multsd-export", line or COMPOSE[1][service]["command"])


def test_without_compose_the_same_is_started_with_the_same_settings() -> None:
    runs = [words for words in commands(STEPS) if words[:2] == ["docker", "run"]]
    tritons = {words[words.index("--name") + 1]: words for words in runs if "--name" in words}
    assert set(tritons) == {"triton", "triton-graphs"}
    for name, words in tritons.items():
        image = COMPOSE[0][name]["image"]
        assert words[words.index(image) + 1 :] == COMPOSE[0][name].get("command", [])
        assert words[words.index("--shm-size") + 1] + "b" == COMPOSE[1][name]["shm_size"]
        assert f"--tmpfs {COMPOSE[0][name]['tmpfs'][0]}" in " ".join(words)
    image = COMPOSE[1]["export"]["image"]
    lines = [words[words.index(image) + 1 :] for words in runs if image in words]
    assert len(lines) == 3
    assert [COMPOSE[1][each]["command"] for each in ("export", "verify")] == [lines[0], lines[2]]
    for words in (words for words in runs if image in words):
        check_command("multsd-export", words[words.index(image) + 1 :])
        assert {"--rm", "--read-only", "--gpus"} <= set(words)
        assert f"--tmpfs {COMPOSE[0]['export']['tmpfs'][0]}" in " ".join(words)
        mounts = {words[number + 1].split(":")[1] for number, each in enumerate(words) if each == "-v"}
        assert mounts <= {"/checkpoint", "/models", "/reports"}
    volumes = {each["name"] for each in documents(DOCKER / "compose.gpu.yaml")[0]["volumes"].values()}
    named = {words[n + 1].split(":")[0] for words in runs for n, each in enumerate(words) if each == "-v"}
    assert named - {"$CHECKPOINT"} == volumes


def test_the_image_of_the_exporter_starts_it_so_that_options_follow_its_name() -> None:
    for stage in stages(DOCKER / "export.Dockerfile"):
        entry = last(stage, "ENTRYPOINT")
        assert entry is not None
        assert entry.words()[0] == "multsd-export"
        check_command("multsd-export", [*entry.words()[1:], *COMPOSE[1]["export"]["command"]])


MODELS = "kubectl -n multsd apply -f docker/kubernetes/overlays/gpu-tensorrt/models.yaml"
TASKS = {
    "prepare": f"{MODELS}\nkubectl apply -k docker/kubernetes/prepare",
    "verify": "kubectl apply -k docker/kubernetes/verify",
}


@pytest.mark.parametrize("task", TASKS)
def test_the_commands_of_a_task_wait_until_its_job_is_complete(task: str) -> None:
    lines = block(TASKS[task])
    objects = build(KUBERNETES / task)
    assert f"kubectl apply -k docker/kubernetes/{task}" in lines
    job = find(objects, "Job", f"multsd-{task}")
    (wait,) = (line.split() for line in lines if " wait " in line)
    assert wait[-1] == f"job/{job['metadata']['name']}"
    assert "--for=condition=complete" in wait
    (hours,) = (int(word[len("--timeout=") : -1]) for word in wait if re.fullmatch(r"--timeout=\d+h", word))
    assert hours * 3600 >= job["spec"].get("activeDeadlineSeconds", 0)
    for line in lines:
        if "rollout status" in line:
            find(objects, "Deployment", line.rpartition("/")[2])
    assert not any("delete" in line for line in lines), "while the Job may still run"
    text = " ".join(README.split())
    assert f"`kubectl -n multsd logs -f {wait[-1]}`" in text
    assert f"`kubectl -n multsd describe job {job['metadata']['name']}`" in text
    assert f"`kubectl delete -k docker/kubernetes/{task}`" in text


def test_the_memory_of_an_export_is_that_of_the_manifests() -> None:
    (export,) = pods(build(KUBERNETES / "overlays" / "gpu-tensorrt"))["multsd-triton"]["initContainers"]
    asked, most = (export["resources"][each]["memory"] for each in ("requests", "limits"))
    assert f"{asked} are asked for" in README
    assert f"{most} are the margin" in README
    assert f"{asked}, at most {most}, in the init container" in README
