"""What the region-fidelity benchmark writes: tables for a person, build/bench/quality.json for a program."""

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from tests.benchmarks.quality_painting import GUIDANCE_SCALE, VARIANTS
from tests.benchmarks.quality_requests import SEED, Request
from tests.benchmarks.quality_summary import FILLED, GAINS, ORACLE, Result, classes, paired_gain, summarise

PACKAGES = ("diffusers", "numpy", "onnxruntime", "pillow", "scipy", "tokenizers", "torch")
PAINTED = {variant.name: variant.title for variant in VARIANTS}
TITLES = {**PAINTED, FILLED: "masks filled", ORACLE: "oracle"}
COLUMNS = {
    "iou": "IoU",
    "over_oracle": "IoU / oracle's",
    "shape_iou": "IoU with oracle",
    "colour_right": "colour right",
    "shape_recognised": "shape recognised",
    "background_kept": "background kept",
}
GAIN_FIGURES = ("over_oracle", "iou", "shape_iou", "colour_right")


def report(results: Sequence[Result], *, manifest: dict[str, Any], num_inference_steps: int) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    return {
        "seed": SEED,
        "requests": len(results),
        "num_inference_steps": num_inference_steps,
        "guidance_scale": GUIDANCE_SCALE,
        "variants": [
            {
                "name": each.name,
                "masked": each.masked,
                "bootstrapping": round(each.bootstrapping * num_inference_steps),
                "draw": each.draw.__name__,
            }
            for each in VARIANTS
        ],
        "checkpoint": manifest["checkpoint"],
        "profile": manifest["profile"],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "classes": class_figures(results),
        "gains": gains(results),
        "seconds": {each.name: sum(result.seconds[each.name] for result in results) for each in VARIANTS},
        "unet_rows": {each.name: sum(result.rows[each.name] for result in results) for each in VARIANTS},
        "results": [_row(result) for result in results],
    }


def class_figures(results: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """Class -> variant -> figure."""
    return {
        name: {variant: summarise(results, variant, belongs) for variant in TITLES}
        for name, belongs in classes().items()
    }


def gains(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The paired gains and their 95 % intervals."""
    return [
        {
            "variant": better,
            "over": worse,
            "figure": figure,
            **asdict(paired_gain(results, better, worse, figure=figure, seed=SEED)),
        }
        for better, worse in GAINS
        for figure in GAIN_FIGURES
    ]


def tables(figures: dict[str, Any]) -> list[Table]:
    """All regions by variant; classes by variant; classes at 20 %; gains."""
    return [
        _variants_table(figures),
        _ratio_table(figures),
        _class_table(figures, "20"),
        _gains_table(figures),
    ]


def _variants_table(figures: dict[str, Any]) -> Table:
    everything = figures["classes"]["all"]
    regions = everything["20"]["regions"]
    title = f"{figures['requests']} requests, {regions} regions, {figures['num_inference_steps']} steps"
    table = Table("painted with", *COLUMNS.values(), title=title)
    for variant, name in TITLES.items():
        table.add_row(name, *(f"{everything[variant][figure]:.2f}" for figure in COLUMNS))
    return table


def _ratio_table(figures: dict[str, Any]) -> Table:
    table = Table("class", "regions", *PAINTED.values(), title="IoU / oracle's IoU")
    for name, by_variant in _not_empty(figures).items():
        ratios = (f"{by_variant[variant]['over_oracle']:.2f}" for variant in PAINTED)
        table.add_row(name, str(by_variant["20"]["regions"]), *ratios)
    return table


def _class_table(figures: dict[str, Any], variant: str) -> Table:
    table = Table("class", "regions", *COLUMNS.values(), title=f"bootstrapping {TITLES[variant]}")
    for name, by_variant in _not_empty(figures).items():
        of_class = by_variant[variant]
        table.add_row(name, str(of_class["regions"]), *(f"{of_class[figure]:.2f}" for figure in COLUMNS))
    return table


def _gains_table(figures: dict[str, Any]) -> Table:
    table = Table("gain", "figure", "mean", "95 % interval", title="paired, over all regions")
    for gain in figures["gains"]:
        pair = f"{TITLES[gain['variant']]} over {TITLES[gain['over']]}"
        interval = f"{gain['low']:+.3f} to {gain['high']:+.3f}"
        table.add_row(pair, COLUMNS[gain["figure"]], f"{gain['mean']:+.3f}", interval)
    return table


def _not_empty(figures: dict[str, Any]) -> dict[str, Any]:
    """Classes that hold any region, which in a short trial not all do."""
    return {name: each for name, each in figures["classes"].items() if each["20"]["regions"]}


def _row(result: Result) -> dict[str, Any]:
    request = result.request
    return {
        **describe(request),
        "scores": {variant: asdict(score) for variant, score in result.scores.items()},
        "seconds": dict(result.seconds),
        "unet_rows": dict(result.rows),
    }


def describe(request: Request) -> dict[str, Any]:
    """A request without its masks, which the seed makes."""
    return {
        "index": request.index,
        "seed": request.seed,
        "height": request.height,
        "width": request.width,
        "prompts": list(request.prompts),
        "masks": [
            {"kind": each.placed.kind, "fits": each.fits, "pixels": int(each.mask.sum())} for each in request.regions
        ],
    }
