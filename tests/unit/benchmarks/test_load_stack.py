"""The load benchmark reads the gauges of the gateway and of the model."""

import pytest

from tests.benchmarks.load_stack import sample_sum

TEXT = """# HELP multsd_gateway_requests_in_flight Requests between head and reply.
# TYPE multsd_gateway_requests_in_flight gauge
multsd_gateway_requests_in_flight{path="/metrics"} 1.0
multsd_gateway_requests_in_flight{path="/multsd"} 2.0
multsd_gateway_requests_in_flight{path="/multsd/stream"} 3.0
# HELP multsd_unet_rows_padded_total UNet rows
# TYPE multsd_unet_rows_padded_total counter
multsd_unet_rows_padded_total 8.000000
"""


def test_a_metrics_samples_are_summed_without_the_one_who_asks() -> None:
    assert sample_sum(TEXT, "multsd_gateway_requests_in_flight") == 5
    assert sample_sum(TEXT, "multsd_unet_rows_padded_total") == 8


def test_a_metric_that_is_not_there_is_no_zero() -> None:
    with pytest.raises(KeyError):
        sample_sum(TEXT, "multsd_running_requests")
