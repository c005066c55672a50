"""What the orchestrator tells of itself among Triton's own metrics."""

from collections.abc import Callable, Mapping
from typing import Any

COUNTER, GAUGE, HISTOGRAM = "COUNTER", "GAUGE", "HISTOGRAM"  # Triton's names of the kinds

# Triton's family of one name: (name, description, kind) -> what makes metrics of labels. It has to outlive them.
MakeFamily = Callable[[str, str, str], Any]
Change = Callable[[float], object]  # of a metric


def at_once(change: Change, value: float) -> None:
    """Make a change now."""
    change(value)


COUNTERS = {
    "multsd_unet_rows_total": "UNet rows evaluated, those of requests that were not finished too",
    "multsd_unet_rows_reference_total": "UNet rows that the published method takes for the same steps",
    "multsd_unet_rows_padded_total": "UNet rows that were repeated to give a call its fixed size",
    "multsd_embedding_cache_hits_total": "Texts whose embedding was cached",
    "multsd_embedding_cache_misses_total": "Texts that had to be encoded",
    "multsd_requests_rejected_total": "Requests that were refused because too much waited",
    "multsd_requests_cancelled_total": "Requests whose client went away",
    "multsd_requests_expired_total": "Requests whose deadline passed or could not be met",
}
GAUGES = {
    "multsd_running_requests": "Requests that are painted",
    "multsd_waiting_requests": "Requests that wait for a place",
    "multsd_waiting_rows": "UNet rows, by an upper bound, of the requests that wait",
    "multsd_tasks": "Tasks of the orchestrator's event loop when one of the others last changed",
}

# With one below each usual largest batch, so that a quantile of full calls is not far from full.
ROWS = (1.0, 2.0, 4.0, 6.0, 7.0, 8.0, 10.0, 12.0, 14.0, 15.0, 16.0, 24.0, 31.0, 32.0, 48.0, 63.0, 64.0)
SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
HISTOGRAMS = {
    "multsd_unet_call_rows": "UNet rows that shared a call",
    "multsd_step_seconds": "A request's step, its waiting for the UNet included",
    "multsd_first_step_seconds": "From a request's arrival to the end of its first step",
    "multsd_picture_seconds": "From a request's arrival to its picture",
}
BUCKETS = {name: ROWS if name.endswith("_rows") else SECONDS for name in HISTOGRAMS}


class Metrics:
    """Every metric under its name, from the start: a rate needs the zero before the first event."""

    def __init__(self, make_family: MakeFamily, make: Callable[[Change, float], None] = at_once) -> None:
        """make: makes a change, in the order of the calls, perhaps later."""
        self._make = make
        kinds = ((COUNTER, COUNTERS), (GAUGE, GAUGES), (HISTOGRAM, HISTOGRAMS))
        self._families = {
            name: make_family(name, description, kind)
            for kind, descriptions in kinds
            for name, description in descriptions.items()
        }
        self._metrics = {
            name: family.Metric(labels={}, **({"buckets": list(BUCKETS[name])} if name in BUCKETS else {}))
            for name, family in self._families.items()
        }

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter."""
        if amount:
            self._make(self._metrics[name].increment, amount)

    def show(self, values: Mapping[str, float]) -> None:
        """Set gauges."""
        for name, value in values.items():
            self._make(self._metrics[name].set, value)

    def observe(self, name: str, value: float) -> None:
        """Add to a histogram."""
        self._make(self._metrics[name].observe, value)

    def count_call(self, rows: int, *, padded: int) -> None:
        """A call of the UNet that so many rows shared, and so many more that nobody wanted."""
        self.observe("multsd_unet_call_rows", rows)
        self.count("multsd_unet_rows_total", rows)
        self.count("multsd_unet_rows_padded_total", padded)
