import json

import numpy as np
import pytest
from rich.console import Console

from tests.benchmarks.quality_metrics import PictureScore, RegionScore
from tests.benchmarks.quality_painting import VARIANTS
from tests.benchmarks.quality_report import report, tables
from tests.benchmarks.quality_requests import make_requests
from tests.benchmarks.quality_summary import FILLED, ORACLE, Result, bootstrap_mean, classes, paired_gain, summarise

MANIFEST = {"checkpoint": {"digest": "sha256:0"}, "profile": "cpu"}


def score(over_oracle: float, regions: int) -> PictureScore:
    region = RegionScore(over_oracle / 2, 0.5, over_oracle, over_oracle, over_oracle > 0.5, False)
    return PictureScore((region,) * regions, background_kept=0.9)


@pytest.fixture(scope="module")
def results() -> list[Result]:
    names = [*(each.name for each in VARIANTS), ORACLE]
    values = {**dict(zip(names, np.linspace(0.1, 1.0, len(names)).tolist(), strict=True)), FILLED: 1.0}
    return [
        Result(
            request,
            {name: score(value, len(request.regions)) for name, value in values.items()},
            seconds=dict.fromkeys(names, 1.5),
            rows=dict.fromkeys(names, 10),
        )
        for request in make_requests(12)
    ]


def test_the_interval_of_equal_values_is_a_point() -> None:
    gain = bootstrap_mean([[0.25], [0.25, 0.25], [0.25]], seed=0)
    assert (gain.mean, gain.low, gain.high) == (0.25, 0.25, 0.25)


def test_the_interval_of_many_values_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 400)
    gain = bootstrap_mean([[value] for value in values], seed=1)
    half = 1.96 * values.std() / 20
    assert gain.mean == pytest.approx(values.mean())
    assert gain.low == pytest.approx(values.mean() - half, abs=0.01)
    assert gain.high == pytest.approx(values.mean() + half, abs=0.01)


def test_regions_of_one_request_are_not_taken_for_independent() -> None:
    values = np.random.default_rng(2).normal(0, 1, 50)
    single = bootstrap_mean([[value] for value in values], seed=3)
    fourfold = bootstrap_mean([[value] * 4 for value in values], seed=3)
    assert fourfold == single


def test_the_interval_is_reproducible() -> None:
    clusters = [[0.1, 0.4], [0.2], [-0.3, 0.0, 0.6]]
    assert bootstrap_mean(clusters, seed=5) == bootstrap_mean(clusters, seed=5)


def test_a_constant_gain_is_found(results: list[Result]) -> None:
    gain = paired_gain(results, "20", "0", figure="over_oracle", seed=0)
    assert gain.mean == pytest.approx(0.18)
    assert gain.low == pytest.approx(0.18)
    assert gain.high == pytest.approx(0.18)


def test_classes_of_one_property_share_out_all_regions(results: list[Result]) -> None:
    regions = {name: summarise(results, "20", belongs)["regions"] for name, belongs in classes().items()}
    total = sum(len(result.request.regions) for result in results)
    assert regions["all"] == total
    assert regions["mask has the shape"] + regions["mask has another form"] == total
    assert regions["plain background"] + regions["textured background"] == total
    assert sum(count for name, count in regions.items() if name.endswith("mask") and name[0] not in "1") == total
    assert regions["512x512"] + regions["other sizes"] == total


def test_means_are_over_regions(results: list[Result]) -> None:
    figures = summarise(results, ORACLE, classes()["all"])
    assert figures["over_oracle"] == pytest.approx(1.0)
    assert figures["iou"] == pytest.approx(0.5)
    assert figures["colour_right"] == 1
    assert figures["shape_recognised"] == 0
    assert figures["background_kept"] == pytest.approx(0.9)


def test_the_report_is_json_and_prints(results: list[Result]) -> None:
    figures = json.loads(json.dumps(report(results, manifest=MANIFEST, num_inference_steps=35)))
    assert figures["checkpoint"]["digest"] == "sha256:0"
    assert [each["bootstrapping"] for each in figures["variants"]] == [0, 0, 7, 7, 14]
    assert len(figures["results"]) == 12
    assert figures["unet_rows"]["20"] == 120
    console = Console(width=120, record=True)
    for table in tables(figures):
        console.print(table)
    text = console.export_text()
    assert "20 % over 0 %" in text
    assert "+0.180 to +0.180" in text


def test_a_short_trial_without_some_classes_prints(results: list[Result]) -> None:
    figures = report(results[:1], manifest=MANIFEST, num_inference_steps=4)
    assert "textured background" not in [*tables(figures)[1].columns[0].cells]
