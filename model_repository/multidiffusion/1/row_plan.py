"""The row plan: the smallest set of UNet rows that a step needs.

R regions, V views, h x w canvas and window x window views in latent cells. A row is one latent input with one
prompt embedding; what two (view, region) pairs would compute from the same input and embedding is one row.

The prediction of a pair is  uncond + guidance * (cond - uncond), and the fused prediction is the mean of the pairs over
views and regions, weighted by the regions' masks (MultiDiffusion eq. 5 and 8). Both are linear, so each row only
needs one coefficient per region: how often its prediction counts where that region's mask is 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from views import View

CANVAS = 0  # input of a row: the canvas as it is


@dataclass(frozen=True)
class Row:
    """One UNet batch entry of a step."""

    view: int
    source: int  # CANVAS, or the region r >= 1 whose bootstrapped input the row sees
    embedding: int  # index of the prompt embedding
    coefficients: tuple[tuple[int, float], ...]  # (region, factor) of its prediction in the fused one


@dataclass(frozen=True)
class Regions:
    """What the plan is made of."""

    masks: Tensor  # (R, h, w) bool
    views: Sequence[View]
    window: int
    prompt_embedding: Sequence[int]  # (R) index of each region's embedding
    negative_embedding: Sequence[int]  # (R)
    guidance_scale: float

    def mask(self, view: int, region: int) -> Tensor:
        """Mask of a region within a view: (window, window) bool."""
        top, left = self.views[view]
        return self.masks[region, top : top + self.window, left : left + self.window]

    def counts(self) -> Tensor:
        """How many (view, region) pairs paint each cell: (h, w) float32, at least 1 where masks cover the canvas."""
        counts = torch.zeros(self.masks.shape[1:])
        regions_per_cell = self.masks.sum(dim=0)  # (h, w)
        for top, left in self.views:
            rows, columns = slice(top, top + self.window), slice(left, left + self.window)
            counts[rows, columns] += regions_per_cell[rows, columns]
        return counts


@dataclass(frozen=True)
class RowPlan:
    """The rows of both kinds of step."""

    bootstrapped: tuple[Row, ...]
    plain: tuple[Row, ...]

    def total(self, *, num_inference_steps: int, bootstrapping: int) -> int:
        """UNet rows of all steps, the first `bootstrapping` of them bootstrapped."""
        bootstrapped = min(bootstrapping, num_inference_steps)
        return bootstrapped * len(self.bootstrapped) + (num_inference_steps - bootstrapped) * len(self.plain)


def make_plan(regions: Regions) -> RowPlan:
    """The rows that a whole request needs."""
    return RowPlan(plan_rows(regions, bootstrapping=True), plan_rows(regions, bootstrapping=False))


def plan_rows(regions: Regions, *, bootstrapping: bool) -> tuple[Row, ...]:
    """The rows of one step, each (input, embedding) once, in order of their views.

    While bootstrapping a region sees its own input, except the background and regions that fill the view; afterwards
    all regions of a view see the canvas. Pairs whose mask is empty in the view need no row, and guidance 1 no
    unconditional one.
    """
    coefficients: dict[tuple[int, int, int], dict[int, float]] = {}

    def count(view: int, source: int, embedding: int, region: int, factor: float) -> None:
        of_region = coefficients.setdefault((view, source, embedding), {})
        of_region[region] = of_region.get(region, 0.0) + factor

    guidance = regions.guidance_scale
    for view in range(len(regions.views)):
        for region in range(len(regions.prompt_embedding)):
            mask = regions.mask(view, region)
            if not mask.any():
                continue
            own_input = bootstrapping and region > 0 and not bool(mask.all())
            source = region if own_input else CANVAS
            count(view, source, regions.prompt_embedding[region], region, guidance)
            if guidance != 1:
                count(view, source, regions.negative_embedding[region], region, 1 - guidance)
    return tuple(Row(*key, coefficients=tuple(factors.items())) for key, factors in coefficients.items())


def row_weight(row: Row, regions: Regions) -> Tensor:
    """Weight of a row's prediction in its view, before division by the counts: (window, window) float64."""
    weight = torch.zeros(regions.window, regions.window, dtype=torch.float64)
    for region, factor in row.coefficients:
        weight.add_(regions.mask(row.view, region), alpha=factor)
    return weight


def count_reference_rows(regions: Regions, *, num_inference_steps: int) -> int:
    """UNet rows of the published implementation: [uncond; cond] for every view, region and step."""
    return 2 * len(regions.views) * len(regions.prompt_embedding) * num_inference_steps
