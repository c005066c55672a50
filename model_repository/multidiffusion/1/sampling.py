"""The sampling loop of region-based MultiDiffusion: fuse the predictions, step once.

R regions, V views, P colours of the palette, h x w canvas and window x window views in latent cells, B rows of one
UNet call, L tokens, D embedding, Q pooled embedding.

Names and the paper's symbols (Bar-Tal et al., ICML 2023, arXiv 2302.08113):
    latents     J_t, the canvas
    noise_pred  Phi(F_i(J_t) | y_i), a row's model output
    masks       W_i, binary
    counts      sum of the masks over views and regions (eq. 5)
    palette     S_i, constant-colour images for bootstrapping, encoded (eq. 9)

The published loop takes one scheduler step per view and region and averages the results. A step is linear in
(sample, model output), and inside its mask every region sees the same canvas. So averaging the model outputs and
taking one step on the canvas gives the same picture, with any scheduler of diffusers.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conditioning import Conditioning
from row_plan import CANVAS, Regions, Row, make_plan, row_weight

Scheduler = Any  # diffusers' schedulers share methods, not a class
KEPT_ROWS = 32  # of a canvas, with embeddings and weights: two calls of the UNet, 25 MB with Stable Diffusion XL


@dataclass(frozen=True)
class UNetRows:
    """The input of some rows of a step; what the UNet makes of it is (B, 4, window, window)."""

    first: int  # the place of the first among the step's rows
    sample: Tensor  # (B, 4, window, window), scaled by the scheduler
    timestep: Tensor  # (B) float32
    encoder_hidden_states: Tensor  # (B, L, D)
    text_embeds: Tensor | None = None  # (B, Q)
    time_ids: Tensor | None = None  # (B, 6)

    def __len__(self) -> int:
        return len(self.sample)


@dataclass(frozen=True)
class Bootstrapping:
    """The first steps, in which a region sees its part of the canvas on a constant colour (eq. 9)."""

    palette: Tensor  # (P, 4, window, window) encoded colours
    choices: Tensor  # (steps, V, R) integers, the colour of each region in each view and step

    @property
    def steps(self) -> int:
        """How many steps are bootstrapped."""
        return self.choices.shape[0]


def draw_noise(height: int, width: int, *, channels: int, generator: torch.Generator) -> Tensor:
    """Unit noise of a canvas, (1, channels, height, width) float32: drawn on the CPU, the same on every device."""
    return torch.randn((1, channels, height, width), generator=generator)


def draw_bootstrapping(
    palette: Tensor, *, steps: int, views: int, regions: int, generator: torch.Generator
) -> Bootstrapping:
    """A colour for each step, view and region, as the published implementation draws them."""
    choices = torch.randint(len(palette), (steps, views, regions), generator=generator, dtype=torch.int16)
    return Bootstrapping(palette=palette, choices=choices)


class _Portion:
    """Some rows of a step, and what of them is the same in every step that has them; each is made when first wanted.

    I inputs: what the rows see, each once. Rows that differ in nothing but their texts share one.
    """

    def __init__(self, rows: tuple[Row, ...], regions: Regions, conditioning: Conditioning) -> None:
        self.rows = rows
        self._regions = regions
        self._conditioning = conditioning
        inputs = list(dict.fromkeys((row.view, row.source) for row in rows))
        places = {seen: index for index, seen in enumerate(inputs)}
        self.views = [view for view, _ in inputs]
        self.input_of_row = [places[row.view, row.source] for row in rows]
        self.on_colours = [index for index, (_, source) in enumerate(inputs) if source != CANVAS]
        self._masked = [seen for seen in inputs if seen[1] != CANVAS]

    @cached_property
    def encoder_hidden_states(self) -> Tensor:
        """(B, L, D)"""
        return self._conditioning.encoder_hidden_states[[row.embedding for row in self.rows]]

    @cached_property
    def text_embeds(self) -> Tensor | None:
        """(B, Q)"""
        given = self._conditioning.text_embeds
        return None if given is None else given[[row.embedding for row in self.rows]]

    @cached_property
    def time_ids(self) -> Tensor | None:
        """(B, 6)"""
        given = self._conditioning.time_ids
        return None if given is None else given[[row.view for row in self.rows]]

    @cached_property
    def weights(self) -> Tensor:
        """What each prediction counts: (B, 1, window, window) float64."""
        return torch.stack([row_weight(row, self._regions) for row in self.rows])[:, None]

    @cached_property
    def masks(self) -> Tensor:
        """Of the inputs that show the canvas on a colour: (I', 1, window, window) bool."""
        return torch.stack([self._regions.mask(view, region) for view, region in self._masked])[:, None]

    def colours(self, bootstrapping: Bootstrapping, step: int) -> Tensor:
        """Of the same inputs: (I', 4, window, window)."""
        views, sources = zip(*self._masked, strict=True)
        return bootstrapping.palette[bootstrapping.choices[step, list(views), list(sources)].long()]

    def crops(self, canvas: Tensor) -> Tensor:
        """Where each input lies on a canvas (1, 4, h, w): (I, 4, window, window)."""
        return torch.cat([_crop(canvas, view, self._regions) for view in self.views])


class Denoising:
    """A canvas on its way from noise to a picture. Its rows are taken and their predictions given as a UNet has room.

    A step's rows may be taken in any portions, so that rows of several canvases can share a call. Predictions are fused
    in the order of the rows, whatever the order they come in: the sum has the same bits however a step was divided.
    """

    def __init__(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        *,
        scheduler: Scheduler,
        regions: Regions,
        bootstrapping: Bootstrapping,
        generator: torch.Generator,
    ) -> None:
        """Lay out the first step.

        noise: (1, 4, h, w) unit noise.
        conditioning: of the texts that `regions` refers to.
        scheduler: fresh from `set_timesteps`, used for this canvas alone.
        generator: the noise of samplers that add some after each step.
        """
        self.latents: Tensor = noise * scheduler.init_noise_sigma  # (1, 4, h, w)
        self.step = 0  # steps done
        self.rows = 0  # predictions given
        self._noise = noise
        self._conditioning = conditioning
        self._scheduler = scheduler
        self._regions = regions
        self._bootstrapping = bootstrapping
        self._generator = generator
        self._counts = regions.counts().to(noise.dtype)
        self._plan = make_plan(regions)
        self._kept: dict[tuple[bool, int, int], _Portion] = {}
        self._begin_step()

    @property
    def finished(self) -> bool:
        """Whether all steps are done: `latents` is the picture's."""
        return self.step == len(self._scheduler.timesteps)

    @property
    def untaken(self) -> int:
        """Rows of this step that nobody has taken."""
        return len(self._rows) - self._taken

    @property
    def complete(self) -> bool:
        """Whether every row of this step has its prediction."""
        return self._fused_rows == len(self._rows)

    def take(self, count: int) -> UNetRows:
        """The inputs of this step's next rows, at most `count`, at least 1 while any is untaken."""
        first = self._taken
        portion = self._portion(first, count)
        self._taken += len(portion.rows)
        # By index, not by timestep: karras schedules repeat some.
        timestep = self._scheduler.timesteps[self.step]
        inputs = self._scheduler.scale_model_input(self._inputs(portion, timestep), timestep)  # mixed before
        self._waiting[first] = portion
        return UNetRows(
            first=first,
            sample=inputs[portion.input_of_row],
            timestep=timestep.to(torch.float32).expand(len(portion.rows)),
            encoder_hidden_states=portion.encoder_hidden_states,
            text_embeds=portion.text_embeds,
            time_ids=portion.time_ids,
        )

    def give(self, rows: UNetRows, noise_pred: Tensor) -> None:
        """The predictions (B, 4, window, window) of rows that were taken."""
        self._given[rows.first] = noise_pred
        while (prediction := self._given.pop(self._fused_rows, None)) is not None:
            portion = self._waiting.pop(self._fused_rows)
            weighted = portion.weights.to(prediction.dtype) * prediction
            for row, of_row in zip(portion.rows, weighted, strict=True):
                _crop(self._fused, row.view, self._regions).add_(of_row)
            self._fused_rows += len(prediction)
            self.rows += len(prediction)

    @property
    def total_rows(self) -> int:
        """Rows of all steps."""
        return self._plan.total(
            num_inference_steps=len(self._scheduler.timesteps), bootstrapping=self._bootstrapping.steps
        )

    def advance(self, *, estimate: bool = False) -> Tensor | None:
        """Take the scheduler's step, once the step is complete, and lay out the next.

        estimate: return what the canvas would be without noise, by this step's prediction: (1, 4, h, w).
        """
        timestep = self._scheduler.timesteps[self.step]
        fused = self._fused / self._counts
        clean = estimate_clean(self._scheduler, fused, timestep, self.latents) if estimate else None
        self.latents = step_scheduler(self._scheduler, fused, timestep, self.latents, self._generator)
        self.step += 1
        self._begin_step()
        return clean

    def _begin_step(self) -> None:
        bootstrapped = self.step < self._bootstrapping.steps
        self._rows = () if self.finished else self._plan.bootstrapped if bootstrapped else self._plan.plain
        self._taken = 0
        # By the place of their first row: portions without a prediction, and predictions until those before are fused.
        self._waiting: dict[int, _Portion] = {}
        self._given: dict[int, Tensor] = {}
        self._fused = torch.zeros_like(self.latents)
        self._fused_rows = 0

    def _portion(self, first: int, count: int) -> _Portion:
        """The next rows. Some are kept: a canvas that is painted alone has the same ones in every step."""
        rows = self._rows[first : first + count]
        key = (self._rows is self._plan.bootstrapped, first, len(rows))
        portion = self._kept.pop(key, None) or _Portion(rows, self._regions, self._conditioning)
        self._kept[key] = portion  # the last
        while sum(len(each.rows) for each in self._kept.values()) > KEPT_ROWS and len(self._kept) > 1:
            del self._kept[next(iter(self._kept))]
        return portion

    def _inputs(self, portion: _Portion, timestep: Tensor) -> Tensor:
        """What the rows of a portion see, unscaled: (I, 4, window, window)."""
        inputs = portion.crops(self.latents)
        shown = portion.on_colours
        if shown:
            colours = portion.colours(self._bootstrapping, self.step)
            noise = portion.crops(self._noise)[shown]
            backgrounds = self._scheduler.add_noise(colours, noise, timestep.expand(len(shown)))
            inputs[shown] = torch.where(portion.masks, inputs[shown], backgrounds)
        return inputs


def estimate_clean(scheduler: Scheduler, prediction: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
    """x_0 by a prediction of noise or v (1, 4, h, w) for latents x_t, before the step is taken.

    scale_model_input brings x_t of every scheduler into the form x_t = sqrt(a) x_0 + sqrt(1 - a) noise.
    """
    sample = scheduler.scale_model_input(latents, timestep)
    times = torch.arange(len(scheduler.alphas_cumprod))
    alpha = float(np.interp(float(timestep), times, scheduler.alphas_cumprod))
    clean: Tensor = alpha**0.5 * sample - (1 - alpha) ** 0.5 * prediction
    if scheduler.config.prediction_type == "epsilon":
        clean = (sample - (1 - alpha) ** 0.5 * prediction) / alpha**0.5
    return clean


def _crop(canvas: Tensor, view: int, regions: Regions) -> Tensor:
    """A view of the canvas, sharing its memory: (1, 4, window, window)."""
    top, left = regions.views[view]
    return canvas[..., top : top + regions.window, left : left + regions.window]


@cache  # a signature takes as long to read as a small step to compute
def _takes_generator(step: Callable[..., Any]) -> bool:
    return "generator" in inspect.signature(step).parameters


def step_scheduler(
    scheduler: Scheduler, noise_pred: Tensor, timestep: Tensor, latents: Tensor, generator: torch.Generator
) -> Tensor:
    """One step of the canvas: (1, 4, h, w) at the next timestep."""
    extra = {"generator": generator} if _takes_generator(type(scheduler).step) else {}
    prev_sample: Tensor = scheduler.step(noise_pred, timestep, latents, return_dict=False, **extra)[0]
    return prev_sample
