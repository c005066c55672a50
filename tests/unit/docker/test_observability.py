"""Scrape configuration, rules, dashboard and runbooks: every metric exists, every alert has a test and a runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from multsd_gateway.app import PATHS
from multsd_gateway.balancing import Endpoint
from multsd_gateway.metrics import Metrics
from tests.unit.docker.files import DOCKER, ROOT, documents, program
from tests.unit.docker.kustomize import KUBERNETES, build, find, pods
from tests.unit.docker.promql import labels_left, labels_shown, labels_used, metric_names

FOLDER = DOCKER / "observability"
RULES = documents(FOLDER / "rules.yaml")[0]
TESTS = documents(FOLDER / "rules-test.yaml")[0]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
RUNBOOKS = (DOCKER / "runbooks.md").read_text()
EVERY = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in EVERY if "alert" in rule}
RECORDS = {rule["record"] for rule in EVERY if "record" in rule}
EXPRESSIONS = [rule["expr"] for rule in EVERY] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]

# Of those that Triton's docs/user_guide/metrics.md names.
TRITON = {
    "nv_inference_request_success": {"model", "version"},
    "nv_inference_request_failure": {"model", "version", "reason"},
    "nv_inference_count": {"model", "version"},
    "nv_inference_exec_count": {"model", "version"},
    "nv_inference_pending_request_count": {"model", "version"},
    "nv_inference_queue_duration_us": {"model", "version"},
    "nv_inference_compute_infer_duration_us": {"model", "version"},
    "nv_gpu_utilization": {"gpu_uuid"},
    "nv_gpu_memory_total_bytes": {"gpu_uuid"},
    "nv_gpu_memory_used_bytes": {"gpu_uuid"},
}
# Of those that the docs of kube-state-metrics name.
CLUSTER = {"kube_statefulset_replicas": {"namespace", "statefulset"}}

Labels = dict[str, set[str]]


def gateway_metrics() -> Labels:
    """The gateway's samples, as it would send them, with their labels."""
    metrics = Metrics(paths=PATHS, endpoints=[Endpoint("a:1", None)])  # type: ignore[arg-type]
    metrics.requests.labels("/multsd", "200").inc()
    metrics.seconds.labels("/multsd").observe(1)
    metrics.bytes_in.labels("/multsd").inc()
    metrics.bytes_out.labels("/multsd").inc()
    metrics.in_flight.labels("/multsd").inc()
    metrics.observe_stages({"model": 1})
    return sample_labels(metrics.text().decode())


def orchestrator_metrics() -> Labels:
    """What the orchestrator's modules call metrics, with the samples of a histogram, and the labels of each."""
    sources = (ROOT / "model_repository" / "multidiffusion" / "1").glob("*.py")
    names = {name for path in sources for name in re.findall(r'"(multsd_\w+)"', path.read_text())}
    names |= {f"{name}_{suffix}" for name in names for suffix in ("bucket", "count", "sum")}
    return {name: {"le"} if name.endswith("_bucket") else set() for name in names}


def sample_labels(text: str) -> Labels:
    """The labels of every sample in Prometheus's text format, by the sample's name as it is sent.

    Not prometheus_client's parser: it gives counters of other names than `_total` that ending.
    """
    labels: Labels = {}
    for name, inside in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, flags=re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', inside))
    return labels


def target_labels(job: str) -> set[str]:
    """What Prometheus adds to the samples of a job's targets, and to their `up`."""
    (configuration,) = documents(FOLDER / "prometheus.yaml")
    (described,) = (each for each in configuration["scrape_configs"] if each["job_name"] == job)
    added = {rule["target_label"] for rule in described["relabel_configs"] if "target_label" in rule}
    return {"job", "instance"} | added


def known_labels() -> Labels:
    """Every metric that there is, with its labels in Prometheus."""
    gateway, triton = target_labels("multsd-gateway"), target_labels("multsd-triton")
    labels = {name: own | gateway for name, own in gateway_metrics().items()}
    labels |= {name: own | triton - {"phase"} for name, own in (orchestrator_metrics() | TRITON).items()}
    labels |= CLUSTER | {"up": gateway | triton}
    for rule in EVERY:
        if "record" in rule:
            labels[rule["record"]] = labels_left(rule["expr"], labels)
    return labels


def test_metric_names_are_told_from_everything_else() -> None:
    expression = 'sum by (le, a) (rate(x_total{a="b_c",d=~"e"}[5m])) / 1e6 > 0.5 and up:b == 1 or absent(z)'
    assert metric_names(expression) == {"x_total", "up:b", "z"}
    assert labels_used(expression) == {"x_total": {"le", "a", "d"}, "up:b": set(), "z": set()}
    assert labels_left(expression, {}) == {"a"}
    assert labels_left("x / y > 2", {"x": {"a", "b"}, "y": {"b"}}) == {"b"}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_label_of_an_expression_is_one_of_its_metric(expression: str) -> None:
    known = known_labels()
    for name, used in labels_used(expression).items():
        assert used <= known[name], name


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        *((target["expr"], target["legendFormat"]) for panel in DASHBOARD["panels"] for target in panel["targets"]),
        *((rule["expr"], rule["annotations"]["summary"]) for rule in EVERY if "alert" in rule),
    ],
)
def test_every_label_that_is_shown_is_left_in_the_result(expression: str, text: str) -> None:
    assert labels_shown(text) <= labels_left(expression, known_labels())


@pytest.mark.parametrize("name", sorted({name for each in EXPRESSIONS for name in metric_names(each)}))
def test_every_metric_exists(name: str) -> None:
    assert name in known_labels()


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_every_panel_shows_something_of_the_chosen_prometheus(panel: dict[str, Any]) -> None:
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])


def test_panels_do_not_cover_each_other() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_labels_that_expressions_compare_are_labels_of_their_metrics() -> None:
    """Of the gateway: paths that it serves, and statuses that are numbers."""
    for expression in EXPRESSIONS:
        for pattern in re.findall(r'path=~"([^"]+)"', expression):
            assert {path for path in PATHS if re.fullmatch(pattern, path)} == {"/multsd", "/multsd/stream"}
        for pattern in re.findall(r'status=~?"([^"]+)"', expression):
            assert re.fullmatch(r"\d{3}(\|\d{3})*", pattern)
        for pattern in re.findall(r'model="([^"]+)"', expression):
            assert (ROOT / "model_repository" / pattern / "config.pbtxt").is_file()


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_runbook_and_a_severity(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["runbook"] == f"docker/runbooks.md#{name.lower()}"
    assert f"\n## {name}\n" in RUNBOOKS
    assert "for" in alert, "one strange sample wakes nobody"


def test_every_runbook_belongs_to_an_alert() -> None:
    assert set(re.findall(r"^## (\w+)$", RUNBOOKS, flags=re.MULTILINE)) == set(ALERTS)


def other_thresholds(expression: str) -> list[str]:
    """An alert's expression with its threshold a fiftieth lower and higher, or with 1 instead of 0."""
    before, compared, threshold = expression.rpartition("> ")
    values = (0.98 * float(threshold), 1.02 * float(threshold)) if compared and float(threshold) else (1.0,)
    return [f"{before}> {value:.6g}" for value in values] if compared else []


def other_times(minutes: int) -> list[dict[str, str]]:
    """A minute earlier, a minute later."""
    return [{"for": f"{minutes - 1}m"}, {"for": f"{minutes + 1}m"}]


@pytest.mark.parametrize("name", ALERTS)
def test_the_tests_of_the_rules_notice_another_threshold_and_another_time(
    name: str, promtool: str, tmp_path: Path
) -> None:
    """Each variant of a rule fails promtool's tests of that alert, which the rule itself passes."""
    cases = [
        {**test, "alert_rule_test": own, "promql_expr_test": []}
        for test in TESTS["tests"]
        if (own := [case for case in test.get("alert_rule_test", ()) if case["alertname"] == name])
    ]
    path = tmp_path / "rules-test.yaml"
    path.write_text(yaml.safe_dump({**TESTS, "tests": cases}))

    def passes(**changes: str) -> bool:
        rules = documents(FOLDER / "rules.yaml")[0]
        (rule,) = (each for group in rules["groups"] for each in group["rules"] if each.get("alert") == name)
        rule.update(changes)
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
        ended = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
        told = ended.stdout + ended.stderr
        assert "SUCCESS" in told or f"alertname: {name}" in told, told
        return ended.returncode == 0

    expression, minutes = ALERTS[name]["expr"], int(ALERTS[name]["for"].removesuffix("m"))
    assert passes()
    variants = [*({"expr": each} for each in other_thresholds(expression)), *other_times(minutes)]
    assert [each for each in variants if passes(**each)] == []


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    fires = {
        case["alertname"] for test in TESTS["tests"] for case in test.get("alert_rule_test", ()) if case["exp_alerts"]
    }
    assert fires == set(ALERTS)


def test_every_record_is_used() -> None:
    used = {name for each in EXPRESSIONS for name in metric_names(each)}
    assert used >= RECORDS


@pytest.fixture
def promtool() -> str:
    """Prometheus's own checker."""
    found = program("promtool")
    if found is None:
        pytest.skip("promtool is not installed; Debian has it in the package prometheus")
    return found


def run(*command: str) -> str:
    """What a command prints. Fails where it fails."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_promtool_takes_the_rules_and_their_tests_pass(promtool: str) -> None:
    assert "SUCCESS" in run(promtool, "check", "rules", str(FOLDER / "rules.yaml"))
    assert "SUCCESS" in run(promtool, "test", "rules", str(FOLDER / "rules-test.yaml"))


def test_promtool_takes_every_expression_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(expressions)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(expressions)} rules found" in run(promtool, "check", "rules", str(path))


def test_promtool_takes_the_scrape_configuration(promtool: str, tmp_path: Path) -> None:
    """Debian's promtool is built without Kubernetes: its part is replaced, and the next test looks at it."""
    (configuration,) = documents(FOLDER / "prometheus.yaml")
    for job in configuration["scrape_configs"]:
        if "static_configs" in job:
            continue
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["multsd"]}}]
        job["static_configs"] = [{"targets": ["localhost:1"]}]
    path = tmp_path / "prometheus.yaml"
    path.write_text(yaml.safe_dump(configuration))
    shutil.copy(FOLDER / "rules.yaml", tmp_path)
    run(promtool, "check", "config", str(path))


def test_the_scrape_configuration_keeps_pods_and_ports_that_the_manifests_have() -> None:
    (configuration,) = documents(FOLDER / "prometheus.yaml")
    assert configuration["rule_files"] == ["rules.yaml"]
    described = pods(build(KUBERNETES / "overlays" / "cpu-demo"))
    jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
    state = jobs.pop("kube-state-metrics")
    assert state["honor_labels"] is True, "else its own namespace would take the place of the StatefulSet's"
    assert set(jobs) == set(described)
    assert "/metrics" in PATHS, "Prometheus asks for it where a job names no other"
    for name, job in jobs.items():
        (keep,) = (rule for rule in job["relabel_configs"] if rule.get("action") == "keep")
        workload, _, port = keep["regex"].partition(";")
        assert workload == name
        assert port in {each["name"] for each in described[name]["containers"][0]["ports"]}
        assert {rule.get("target_label") for rule in job["relabel_configs"]} >= {"pod", "node"}


def test_a_pod_that_builds_its_engines_is_told_by_its_phase_in_up_alone() -> None:
    (configuration,) = documents(FOLDER / "prometheus.yaml")
    (job,) = (each for each in configuration["scrape_configs"] if each["job_name"] == "multsd-triton")
    (rule,) = (each for each in job["relabel_configs"] if each.get("target_label") == "phase")
    assert rule == {"source_labels": ["__meta_kubernetes_pod_phase"], "target_label": "phase"}
    assert job["metric_relabel_configs"] == [{"regex": "phase", "action": "labeldrop"}]
    building = next(rule["expr"] for rule in EVERY if rule.get("record") == "multsd:tritons_building:count")
    assert 'phase="Pending"' in building


def test_how_many_tritons_are_wanted_is_asked_of_their_stateful_set() -> None:
    wanted = next(rule["expr"] for rule in EVERY if rule.get("record") == "multsd:tritons_wanted:max")
    asked = dict(re.findall(r'(\w+)="([^"]+)"', wanted))
    described = find(build(KUBERNETES / "overlays" / "autoscaling"), "StatefulSet", asked["statefulset"])
    assert described["metadata"]["namespace"] == asked["namespace"]


def test_every_metric_that_a_runbook_names_exists() -> None:
    named = set(re.findall(r"`((?:multsd|kube)[_:][a-z_:]+)`", RUNBOOKS))
    assert named
    assert named <= set(known_labels())


def intervals() -> set[int]:
    """Seconds between two looks, of every job and of every group of rules."""
    (configuration,) = documents(FOLDER / "prometheus.yaml")
    told = [job["scrape_interval"] for job in configuration["scrape_configs"]]
    return {int(each.removesuffix("s")) for each in [*told, *(group["interval"] for group in RULES["groups"])]}


def test_no_rate_is_taken_over_less_than_four_samples() -> None:
    """Whatever the interval of the Prometheus that takes the jobs and the rules in; of two samples rates are empty."""
    shortest = min(int(minutes) * 60 for rule in EVERY for minutes in re.findall(r"\[(\d+)m\]", rule["expr"]))
    assert max(intervals()) * 4 <= shortest


def test_a_long_queue_is_shorter_than_what_a_triton_refuses() -> None:
    """Of a GPU that evaluates 150 rows a second, as the autoscaling has it, and of one that is twice as fast."""
    seconds = float(ALERTS["MultsdLongQueue"]["expr"].rpartition(">")[2])
    config = (ROOT / "model_repository" / "multidiffusion" / "config.pbtxt").read_text()
    (rows,) = re.findall(r'"max_waiting_rows" value \{ string_value: "(\d+)"', config)
    assert seconds * 150 * 2 < int(rows)


def test_runbooks_tell_a_missing_secret_by_what_refers_to_it() -> None:
    """A volume: FailedMount, while the pod is being created. The environment: CreateContainerConfigError."""
    text = " ".join(RUNBOOKS.split())
    (mounted,) = re.findall(
        r"\*ContainerCreating\*, and an event \*FailedMount\* in [^:]+: the Secret `([\w-]+)`", text
    )
    gateway = pods(build(KUBERNETES / "overlays" / "cpu-demo"))["multsd-gateway"]
    assert mounted in [each["secret"]["secretName"] for each in gateway["volumes"] if "secret" in each]
    ((overlay, read),) = re.findall(r"\*CreateContainerConfigError\*, with `([\w-]+)`: the Secret `([\w-]+)`", text)
    (triton,) = pods(build(KUBERNETES / "overlays" / overlay))["multsd-triton"]["containers"]
    assert triton["envFrom"] == [{"secretRef": {"name": read}}]


def test_runbooks_describe_the_autoscaler_that_each_overlay_has() -> None:
    described = set(re.findall(r"`kubectl describe (scaledobject|hpa) ([\w-]+)`", RUNBOOKS))
    assert {kind for kind, _ in described} == {"scaledobject", "hpa"}
    for overlay, kind in (("autoscaling", "ScaledObject"), ("autoscaling-hpa", "HorizontalPodAutoscaler")):
        for name in (name for short, name in described if (short == "hpa") == (kind != "ScaledObject")):
            find(build(KUBERNETES / "overlays" / overlay), kind, name)


def test_prometheus_sees_every_triton_ready_between_two_restarts() -> None:
    """Else a rolling restart of many would look like one Triton that is away all the time."""
    (seconds,) = intervals()
    described = find(build(KUBERNETES / "overlays" / "autoscaling"), "StatefulSet", "multsd-triton")
    assert described["spec"]["minReadySeconds"] >= 2 * seconds
