"""The autoscaling's numbers: the same in both overlays and the simulation, and within what the orchestrator allows."""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from typing import Any

import pytest

from tests.unit.docker.files import DOCKER, ROOT, documents
from tests.unit.docker.kustomize import KUBERNETES, build, find

SCRIPT = KUBERNETES / "arrivals.py"
KEDA = find(build(KUBERNETES / "overlays" / "autoscaling"), "ScaledObject", "multsd-triton")["spec"]
HPA = find(build(KUBERNETES / "overlays" / "autoscaling-hpa"), "HorizontalPodAutoscaler", "multsd-triton")["spec"]
RULES = documents(DOCKER / "observability" / "rules.yaml")[0]
RECORDS = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}


@pytest.fixture(scope="module")
def arrivals() -> Any:
    """The simulation as a module."""
    spec = spec_from_file_location("arrivals", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["arrivals"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_documentations_table_is_what_the_simulation_prints(arrivals: Any) -> None:
    lines = list(arrivals.table(rows_per_second=150, start_seconds=180))
    assert "\n".join(lines) in (DOCKER / "README.md").read_text()


def test_the_simulation_uses_the_overlays_numbers(arrivals: Any) -> None:
    assert (KEDA["minReplicaCount"], KEDA["maxReplicaCount"]) == (arrivals.MIN_REPLICAS, arrivals.MAX_REPLICAS)
    behaviour = KEDA["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    up, down = behaviour["scaleUp"], behaviour["scaleDown"]
    assert up["policies"] == [{"type": "Pods", "value": arrivals.UP_PODS, "periodSeconds": arrivals.UP_SECONDS}]
    assert down["policies"] == [{"type": "Pods", "value": arrivals.DOWN_PODS, "periodSeconds": arrivals.DOWN_SECONDS}]
    assert (up["stabilizationWindowSeconds"], down["stabilizationWindowSeconds"]) == (0, arrivals.DOWN_WINDOW)
    thresholds = {trigger["name"]: float(trigger["metadata"]["threshold"]) for trigger in KEDA["triggers"]}
    simulated = {(policy.waiting_seconds, policy.busy) for policy in arrivals.POLICIES}
    assert (thresholds["rows-waiting"] / 150, thresholds["tritons-busy"]) in simulated


def test_the_simulation_uses_the_orchestrators_limits(arrivals: Any) -> None:
    config = (ROOT / "model_repository" / "multidiffusion" / "config.pbtxt").read_text()
    values = {
        name: int(value) for name, value in re.findall(r'key: "(max_\w+)" value \{ string_value: "(\d+)"', config)
    }
    assert values["max_running"] == arrivals.MAX_RUNNING
    assert values["max_waiting"] == arrivals.MAX_WAITING
    assert values["max_waiting_rows"] == arrivals.MAX_WAITING_ROWS


def test_the_threshold_is_reached_long_before_requests_are_refused(arrivals: Any) -> None:
    (threshold,) = (float(each["metadata"]["threshold"]) for each in KEDA["triggers"] if each["name"] == "rows-waiting")
    assert threshold <= arrivals.MAX_WAITING_ROWS / 4


def test_both_triggers_ask_for_records_that_exist() -> None:
    assert {trigger["metadata"]["query"] for trigger in KEDA["triggers"]} <= RECORDS
    for trigger in KEDA["triggers"]:
        assert trigger["metricType"] == "AverageValue"
        assert trigger["metadata"]["ignoreNullValues"] == "false", "no answer is not an idle service"


def test_the_other_overlay_has_the_same_numbers() -> None:
    assert (HPA["minReplicas"], HPA["maxReplicas"]) == (KEDA["minReplicaCount"], KEDA["maxReplicaCount"])
    assert HPA["behavior"] == KEDA["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert HPA["scaleTargetRef"] == KEDA["scaleTargetRef"]
    targets = [each["external"]["target"]["averageValue"] for each in HPA["metrics"]]
    numbers = [float(text[:-1]) / 1000 if text.endswith("m") else float(text) for text in targets]
    assert numbers == [float(trigger["metadata"]["threshold"]) for trigger in KEDA["triggers"]]


def test_the_adapter_gives_the_metrics_that_the_autoscaler_asks_for() -> None:
    (values,) = documents(KUBERNETES / "overlays" / "autoscaling-hpa" / "adapter-values.yaml")
    rules = values["rules"]["external"]
    assert {rule["name"]["as"] for rule in rules} == {each["external"]["metric"]["name"] for each in HPA["metrics"]}
    assert {rule["metricsQuery"] for rule in rules} == {trigger["metadata"]["query"] for trigger in KEDA["triggers"]}


def test_a_triton_shares_its_rows_equally(arrivals: Any) -> None:
    triton = arrivals.Triton(0.0)
    for rows in (10, 30):
        assert triton.take(arrivals.Request(0.0, rows, rows))
    done, worked = triton.work(20)
    assert ([each.rows for each in done], worked) == ([0], 20)
    assert [each.rows for each in triton.running] == [20]
    done, worked = triton.work(50)
    assert (len(done), worked) == (1, 20)


@pytest.mark.parametrize("rows_per_second", [150, 1000])
def test_the_scaler_is_told_how_busy_tritons_are(
    arrivals: Any, rows_per_second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nv_inference_compute_infer_duration_us does: a UNet that works for a tenth of a second is busy for as long."""
    monkeypatch.setattr(arrivals, "LOAD", ((1.0, 1.5),))
    monkeypatch.setattr(arrivals, "HOURS", 1.0)
    told: list[float] = []
    monkeypatch.setattr(arrivals.Scaler, "see", lambda _self, _now, _waiting, busy: told.append(busy))
    arrivals.simulate(arrivals.Policy("", replicas=8), rows_per_second=rows_per_second, start_seconds=180)
    rows = sum(request.rows for request in arrivals.arrivals(rows_per_second, 1))
    assert sum(told) == pytest.approx(rows / rows_per_second)


def test_a_triton_refuses_past_its_bounds(arrivals: Any) -> None:
    triton = arrivals.Triton(0.0)
    count = arrivals.MAX_RUNNING + arrivals.MAX_WAITING + 1
    accepted = [triton.take(arrivals.Request(0.0, 1, 1)) for _ in range(count)]
    assert accepted == [True] * (len(accepted) - 1) + [False]
    triton = arrivals.Triton(0.0)
    most = arrivals.MAX_WAITING_ROWS
    accepted = [triton.take(arrivals.Request(0.0, most / 2, most)) for _ in range(arrivals.MAX_RUNNING + 2)]
    assert accepted == [True] * (arrivals.MAX_RUNNING + 1) + [False], "one may wait however large it is"


def test_what_waits_is_counted_as_the_readmes_published_rows(arrivals: Any) -> None:
    table = (KUBERNETES.parents[1] / "README.md").read_text()
    numbers = [
        (int(most), int(needed)) for most, needed in re.findall(r"^\| .* steps \| (\d+) \| (\d+) \|$", table, re.M)
    ]
    assert [rows for rows, _ in arrivals.MIX] == [(needed, most) for most, needed in numbers]
    triton = arrivals.Triton(0.0)
    for _ in range(arrivals.MAX_RUNNING + 2):
        triton.take(arrivals.Request(0.0, 125, 140))
    assert triton.waiting_rows == 2 * 140


def test_as_many_arrive_as_the_load_says(arrivals: Any) -> None:
    rows = sum(request.rows for request in arrivals.arrivals(150, 1))
    expected = sum(hours * 3600 * load for hours, load in arrivals.LOAD) * 150
    assert rows == pytest.approx(expected, rel=0.05)


def test_replicas_come_at_once_and_go_slowly(arrivals: Any) -> None:
    scaler = arrivals.Scaler(arrivals.Policy("", waiting_seconds=5), 150)
    counts = [2]
    for now in range(1200):
        scaler.see(now, 6000 if now < 100 else 0, 0)
        if now % arrivals.SYNC_SECONDS == 0:
            counts.append(scaler.replicas(now, counts[-1]))
    assert counts[4] == 6, "four more, as soon as the metric is old enough"
    assert max(counts) == 8
    first_down = next(number for number in range(1, len(counts)) if counts[number] < counts[number - 1])
    assert first_down * arrivals.SYNC_SECONDS >= 100 + arrivals.DOWN_WINDOW
    assert max(before - after for before, after in pairwise(counts)) == 1


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--rows-per-second", "-5", "of at least 1"),
        ("--rows-per-second", "0.001", "of at least 1"),
        ("--rows-per-second", "inf", "of at least 1"),
        ("--rows-per-second", "many", "of at least 1"),
        ("--start-seconds", "-1", "of at least 0"),
        ("--start-seconds", "nan", "of at least 0"),
    ],
)
def test_a_number_that_cannot_be_simulated_is_told(
    arrivals: Any,
    option: str,
    value: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(arrivals, "table", lambda **_: ["simulated"])
    monkeypatch.setattr(sys, "argv", ["arrivals.py", f"{option}={value}"])
    with pytest.raises(SystemExit) as raised:
        arrivals.main()
    assert raised.value.code == 2
    assert f"argument {option}: expected a number {expected}, found '{value}'" in capsys.readouterr().err
