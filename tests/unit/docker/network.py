"""What NetworkPolicies admit, as Kubernetes judges them: by labels, and by the union of all policies that hold.

https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

NAMESPACE_NAME = "kubernetes.io/metadata.name"  # which Kubernetes itself gives to every namespace


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod, or with an empty namespace an address outside the cluster."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.0.0.1"
    ports: Mapping[str, int] = field(default_factory=dict)  # of its containers, by name


def comes_in(policies: Sequence[Object], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether the target's side admits a connection. Whether the source's side does is another question."""
    return _admitted(policies, "Ingress", target, source, port, protocol, target)


def goes_out(policies: Sequence[Object], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether the source's side admits a connection. Whether the target's side does is another question."""
    return _admitted(policies, "Egress", source, target, port, protocol, target)


def _admitted(
    policies: Sequence[Object], direction: str, own: Peer, other: Peer, port: int, protocol: str, target: Peer
) -> bool:
    """Whether the policies of one end admit the other: everything does where none holds in this direction."""
    holding = [
        each
        for each in policies
        if own.namespace == each["metadata"]["namespace"]
        and _selected(each["spec"]["podSelector"], own.labels)
        and direction in _types(each["spec"])
    ]
    rules = [(each, rule) for each in holding for rule in each["spec"].get(direction.lower()) or ()]
    peers = "from" if direction == "Ingress" else "to"
    return not holding or any(
        _among_peers(rule.get(peers), other, each["metadata"]["namespace"])
        and _among_ports(rule.get("ports"), port, protocol, target)
        for each, rule in rules
    )


def _types(spec: Object) -> Sequence[str]:
    """Where none are named: Ingress, and Egress if there are rules of it."""
    return spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]


def _among_peers(peers: Sequence[Object] | None, other: Peer, namespace: str) -> bool:
    """None or an empty list: everybody."""
    return not peers or any(_is_peer(each, other, namespace) for each in peers)


def _is_peer(described: Object, other: Peer, namespace: str) -> bool:
    if "ipBlock" in described:
        block, address = described["ipBlock"], ipaddress.ip_address(other.address)
        outside = any(address in ipaddress.ip_network(each) for each in block.get("except", ()))
        return address in ipaddress.ip_network(block["cidr"]) and not outside
    if not other.namespace:
        return False
    if "namespaceSelector" in described:
        if not _selected(described["namespaceSelector"], {NAMESPACE_NAME: other.namespace}):
            return False
    elif other.namespace != namespace:
        return False
    return _selected(described.get("podSelector", {}), other.labels)


def _among_ports(ports: Sequence[Object] | None, port: int, protocol: str, target: Peer) -> bool:
    """None or an empty list: all. A name is that of the target's port."""
    return not ports or any(_is_port(each, port, protocol, target) for each in ports)


def _is_port(described: Object, port: int, protocol: str, target: Peer) -> bool:
    if described.get("protocol", "TCP") != protocol:
        return False
    named = described.get("port")
    if named is None:
        return True
    first = target.ports.get(named) if isinstance(named, str) else int(named)
    return first is not None and first <= port <= described.get("endPort", first)


def _selected(selector: Object, labels: Mapping[str, str]) -> bool:
    """An empty selector selects everything."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    return all(_fulfilled(each, labels) for each in selector.get("matchExpressions", ()))


def _fulfilled(requirement: Object, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement["key"])
    match requirement["operator"]:
        case "In":
            return value in requirement["values"]
        case "NotIn":
            return value not in requirement["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case other:
            raise ValueError(f"{other} is no operator of a selector")
