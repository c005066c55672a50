"""A small reader of the Kustomize features that docker/kubernetes uses; it refuses all others.

So that manifests are tested where there is no kubectl. Where there is one, a test holds this to its output. Generated
ConfigMaps keep their plain names here: kubectl adds a digest.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tests.unit.docker.files import DOCKER, documents

Object = dict[str, Any]

KUBERNETES = DOCKER / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
# Of those that Kustomize 2.0 knows, which is inside kubectl 1.14 to 1.20: no components, no replacements, no patches.
FIELDS = {"apiVersion", "kind", "namespace", "bases", "resources", "configMapGenerator", "images", "patchesJson6902"}
CLUSTER_WIDE = {"Namespace"}


def build(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    (described,) = documents(folder / "kustomization.yaml")
    if unknown := set(described) - FIELDS:
        raise ValueError(f"{folder}: this reader knows nothing of {', '.join(sorted(unknown))}")
    objects: list[Object] = []
    for base in described.get("bases", ()):
        objects += build(folder / base)
    for resource in described["resources"]:
        objects += documents(folder / resource)
    for generator in described.get("configMapGenerator", ()):
        _generate(objects, generator)
    for patch in described.get("patchesJson6902", ()):
        _patch(objects, patch["target"], _operations(folder / patch["path"]))
    for each in objects:
        if each["kind"] not in CLUSTER_WIDE:
            each["metadata"]["namespace"] = described["namespace"]
        for image in described.get("images", ()):
            _set_image(each, image)
    return objects


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of a kind and name."""
    (found,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def pods(objects: list[Object]) -> dict[str, Object]:
    """The pod specifications of all workloads, by the workload's name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in objects
        if "template" in each.get("spec", {})
    }


def containers(pod: Object) -> list[Object]:
    """All containers of a pod."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def _operations(path: Path) -> list[Object]:
    """A patch's operations: its one document is a list."""
    operations: list[Object] = yaml.safe_load(path.read_text())
    return operations


def _generate(objects: list[Object], generator: Object) -> None:
    data = dict(literal.split("=", 1) for literal in generator["literals"])
    if generator.get("behavior", "create") == "merge":
        find(objects, "ConfigMap", generator["name"])["data"].update(data)
    else:
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data})


def _patch(objects: list[Object], target: Object, operations: list[Object]) -> None:
    for operation in operations:
        keys = [key.replace("~1", "/").replace("~0", "~") for key in operation["path"].strip("/").split("/")]
        parent: Any = find(objects, target["kind"], target["name"])
        if parent["apiVersion"] != f"{target['group']}/{target['version']}":
            raise KeyError(target["group"])
        for key in keys[:-1]:
            parent = parent[int(key) if isinstance(parent, list) else key]
        _apply(parent, keys[-1], operation)


def _apply(parent: Any, key: str, operation: Object) -> None:
    value = deepcopy(operation.get("value"))
    match operation["op"], isinstance(parent, list):
        case "add", True:
            parent.insert(len(parent) if key == "-" else int(key), value)
        case "add", False:
            parent[key] = value
        case "replace", is_list:
            if not is_list and key not in parent:
                raise KeyError(operation["path"])
            parent[int(key) if is_list else key] = value
        case "remove", is_list:
            del parent[int(key) if is_list else key]
        case other:
            raise ValueError(f"this reader knows nothing of {other[0]}")


def _set_image(described: Object, image: Object) -> None:
    for pod in pods([{**described, "spec": described.get("spec", {})}]).values():
        for container in containers(pod):
            name, _, tag = container["image"].partition(":")
            if name == image["name"]:
                container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"
