"""From the figures of single pictures to means by class, and gains with their confidence intervals.

N requests; a result holds every variant's score of one request. All means of regions weigh every region alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from demo_checkpoint.language import PLAIN
from tests.benchmarks.quality_masks import KINDS
from tests.benchmarks.quality_metrics import PictureScore
from tests.benchmarks.quality_requests import Region, Request

FILLED, ORACLE = "filled", "oracle"  # what is drawn, not painted, by name among the variants
RESAMPLES = 10_000
CONFIDENCE = 0.95
GAINS = (("20", "0"), ("20", "text"), ("20", "20_fixed"), ("40", "20"))
FIGURES = ("iou", "oracle_iou", "over_oracle", "shape_iou", "colour_right", "shape_recognised")
Belongs = Callable[[Request, Region], bool]


@dataclass(frozen=True)
class Result:
    """One request, as every variant painted it."""

    request: Request
    scores: Mapping[str, PictureScore]  # by the variant's name
    seconds: Mapping[str, float]
    rows: Mapping[str, int]  # UNet rows


@dataclass(frozen=True)
class Gain:
    """How much higher one variant's mean is than another's on the same requests, and its confidence interval."""

    mean: float
    low: float
    high: float


def classes() -> dict[str, Belongs]:
    """Every class of regions, by name; a region is in several."""
    kinds = {f"{kind} mask": _of_kind(kind) for kind in KINDS}
    return {
        "all": _any,
        **kinds,
        "mask has the shape": lambda _, region: region.fits,
        "mask has another form": lambda _, region: not region.fits,
        "plain background": lambda request, _: request.ground.texture == PLAIN,
        "textured background": lambda request, _: request.ground.texture != PLAIN,
        "512x512": lambda request, _: request.height == request.width,
        "other sizes": lambda request, _: request.height != request.width,
        **{f"{count} mask{'s' * (count > 1)}": _of_count(count) for count in (1, 2, 3, 4)},
    }


def summarise(results: Sequence[Result], variant: str, belongs: Belongs) -> dict[str, float]:
    """Means over a class's regions, and of the background over its requests; only `regions` where it is empty."""
    regions = [
        asdict(score)
        for result in results
        for region, score in zip(result.request.regions, result.scores[variant].regions, strict=True)
        if belongs(result.request, region)
    ]
    if not regions:
        return {"regions": 0}
    grounds = [
        result.scores[variant].background_kept
        for result in results
        if any(belongs(result.request, region) for region in result.request.regions)
    ]
    means = {figure: float(np.mean([score[figure] for score in regions])) for figure in FIGURES}
    return {"regions": len(regions), **means, "background_kept": float(np.mean(grounds))}


def paired_gain(results: Sequence[Result], better: str, worse: str, *, figure: str, seed: int) -> Gain:
    """The mean gain over all regions; regions of one request share a picture, so requests are what is resampled."""
    differences = [
        [
            getattr(a, figure) - getattr(b, figure)
            for a, b in zip(result.scores[better].regions, result.scores[worse].regions, strict=True)
        ]
        for result in results
    ]
    return bootstrap_mean(differences, seed=seed)


def bootstrap_mean(clusters: Sequence[Sequence[float]], *, seed: int) -> Gain:
    """The mean over all clusters' values with its percentile interval; whole clusters are drawn, with replacement."""
    sums = np.array([np.sum(cluster) for cluster in clusters])  # (N)
    sizes = np.array([len(cluster) for cluster in clusters])  # (N)
    drawn = np.random.default_rng(seed).integers(0, len(clusters), (RESAMPLES, len(clusters)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)  # (RESAMPLES)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Gain(float(sums.sum() / sizes.sum()), float(low), float(high))


def _any(_request: Request, _region: Region) -> bool:
    return True


def _of_kind(kind: str) -> Belongs:
    return lambda _, region: region.placed.kind == kind


def _of_count(count: int) -> Belongs:
    return lambda request, _: len(request.regions) == count
