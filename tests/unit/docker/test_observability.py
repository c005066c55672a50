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
from prometheus_client.parser import text_string_to_metric_families

from multsd_gateway.app import PATHS
from multsd_gateway.balancing import Endpoint
from multsd_gateway.metrics import Metrics
from tests.unit.docker.files import DOCKER, ROOT, documents, program
from tests.unit.docker.kustomize import KUBERNETES, build, pods

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
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_pending_request_count",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_gpu_utilization",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
}
WORDS = {"by", "and", "or", "on", "without", "unless", "le", "offset"}


def metric_names(expression: str) -> set[str]:
    """The metrics of an expression: names that are neither labels, functions nor words of the language."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without|on)\s*\([^)]*\)", " ", bare)
    names = re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)
    return set(names) - WORDS


def gateway_metrics() -> set[str]:
    """The names of the gateway's samples, as it would send them."""
    metrics = Metrics(paths=PATHS, endpoints=[Endpoint("a:1", None)])  # type: ignore[arg-type]
    metrics.requests.labels("/multsd", "200").inc()
    metrics.seconds.labels("/multsd").observe(1)
    metrics.bytes_in.labels("/multsd").inc()
    metrics.bytes_out.labels("/multsd").inc()
    metrics.in_flight.labels("/multsd").inc()
    metrics.observe_stages({"model": 1})
    families = text_string_to_metric_families(metrics.text().decode())
    return {sample.name for family in families for sample in family.samples}


def orchestrator_metrics() -> set[str]:
    """The names that the orchestrator's modules give to metrics, with the samples of a histogram."""
    sources = (ROOT / "model_repository" / "multidiffusion" / "1").glob("*.py")
    names = {name for path in sources for name in re.findall(r'"(multsd_\w+)"', path.read_text())}
    return names | {f"{name}_{suffix}" for name in names for suffix in ("bucket", "count", "sum")}


def test_metric_names_are_told_from_everything_else() -> None:
    expression = 'sum by (le, a) (rate(x_total{a="b_c",d=~"e"}[5m])) / 1e6 > 0.5 and up:b == 1 or absent(z)'
    assert metric_names(expression) == {"x_total", "up:b", "z"}


@pytest.mark.parametrize("name", sorted({name for each in EXPRESSIONS for name in metric_names(each)}))
def test_every_metric_exists(name: str) -> None:
    known = TRITON | gateway_metrics() | orchestrator_metrics() | RECORDS | {"up"}
    assert name in known


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
    assert set(jobs) == set(described)
    assert "/metrics" in PATHS, "Prometheus asks for it where a job names no other"
    for name, job in jobs.items():
        (keep,) = (rule for rule in job["relabel_configs"] if rule.get("action") == "keep")
        workload, _, port = keep["regex"].partition(";")
        assert workload == name
        assert port in {each["name"] for each in described[name]["containers"][0]["ports"]}
        assert {rule.get("target_label") for rule in job["relabel_configs"]} >= {"pod", "node"}
