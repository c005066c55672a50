"""What the orchestrator counts, on families that remember what they are told."""

from typing import Any

from metrics import BUCKETS, COUNTER, COUNTERS, GAUGE, GAUGES, HISTOGRAM, HISTOGRAMS, ROWS, Metrics


class Metric:
    """As Triton's: a counter is incremented, a gauge set, a histogram observes."""

    def __init__(self) -> None:
        self.value = 0.0
        self.observed: list[float] = []

    def increment(self, amount: float) -> None:
        assert amount > 0
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value

    def observe(self, value: float) -> None:
        self.observed.append(value)


class Family:
    """As Triton's: refuses buckets of anything but a histogram, and a histogram without them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.buckets: list[float] | None = None
        self.metrics: dict[str, Metric] = {}

    def Metric(self, *, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:  # noqa: N802 - Triton's
        assert (buckets is not None) == (self.kind == HISTOGRAM)
        assert buckets is None or buckets == sorted(set(buckets))
        self.buckets = buckets
        return self.metrics.setdefault(",".join(labels.values()), Metric())


def made() -> tuple[Metrics, dict[str, Family]]:
    families: dict[str, Family] = {}

    def make_family(name: str, description: str, kind: str) -> Any:
        assert description
        assert name not in families
        families[name] = Family(kind)
        return families[name]

    return Metrics(make_family), families


def test_every_metric_is_there_from_the_start_at_zero() -> None:
    _, families = made()
    kinds = {name: family.kind for name, family in families.items()}
    expected = {
        **dict.fromkeys(COUNTERS, COUNTER),
        **dict.fromkeys(GAUGES, GAUGE),
        **dict.fromkeys(HISTOGRAMS, HISTOGRAM),
    }
    assert kinds == expected
    assert all(families[name].metrics[""].value == 0 for name in expected)
    assert {name: family.buckets for name, family in families.items() if family.buckets} == {
        name: list(buckets) for name, buckets in BUCKETS.items()
    }
    assert BUCKETS["multsd_unet_call_rows"] == ROWS


def test_a_calls_rows_are_observed_and_counted_apart_from_padding() -> None:
    metrics, families = made()
    for rows, padded in ((16, 0), (3, 13), (3, 13)):
        metrics.count_call(rows, padded=padded)
    assert families["multsd_unet_call_rows"].metrics[""].observed == [16, 3, 3]
    assert families["multsd_unet_rows_total"].metrics[""].value == 22
    assert families["multsd_unet_rows_padded_total"].metrics[""].value == 26


def test_gauges_are_set_and_histograms_observe() -> None:
    metrics, families = made()
    metrics.show({"multsd_running_requests": 3, "multsd_waiting_rows": 7})
    metrics.observe("multsd_step_seconds", 0.25)
    assert families["multsd_running_requests"].metrics[""].value == 3
    assert families["multsd_waiting_rows"].metrics[""].value == 7
    assert families["multsd_step_seconds"].metrics[""].observed == [0.25]


def test_changes_may_be_made_later_in_their_order() -> None:
    later: list[tuple[Any, float]] = []
    families: dict[str, Family] = {}
    metrics = Metrics(
        lambda name, _, kind: families.setdefault(name, Family(kind)),
        lambda change, value: later.append((change, value)),
    )
    metrics.show({"multsd_waiting_rows": 7})
    metrics.count_call(16, padded=0)
    metrics.observe("multsd_step_seconds", 0.25)
    metrics.show({"multsd_waiting_rows": 0})
    assert families["multsd_unet_rows_total"].metrics[""].value == 0
    for change, value in later:
        change(value)
    assert [value for _, value in later] == [7, 16, 16, 0.25, 0]
    assert families["multsd_unet_call_rows"].metrics[""].observed == [16]
    assert families["multsd_unet_rows_total"].metrics[""].value == 16
    assert families["multsd_waiting_rows"].metrics[""].value == 0
    assert families["multsd_step_seconds"].metrics[""].observed == [0.25]
