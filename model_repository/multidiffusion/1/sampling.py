"""The sampling loop of region-based MultiDiffusion: fuse the predictions, step once.

R regions, V views, P colours of the palette, h x w canvas and window x window views in latent cells, B rows of one
UNet call, L tokens, D embedding, P pooled embedding.

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
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conditioning import Conditioning
from row_plan import CANVAS, Regions, Row, make_plan, row_weight

Scheduler = Any  # diffusers' schedulers share methods, not a class


@dataclass(frozen=True)
class UNetRows:
    """The input of some rows of a step; what the UNet makes of it is (B, 4, window, window)."""

    first: int  # the place of the first among the step's rows
    sample: Tensor  # (B, 4, window, window), scaled by the scheduler
    timestep: Tensor  # (B) float32
    encoder_hidden_states: Tensor  # (B, L, D)
    text_embeds: Tensor | None = None  # (B, P)
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
        rows = self._rows[first : first + count]
        self._taken += len(rows)
        # By index, not by timestep: karras schedules repeat some.
        timestep = self._scheduler.timesteps[self.step]
        sample = torch.cat([self._sample(row, timestep) for row in rows])  # (B, 4, window, window)
        texts, views = [row.embedding for row in rows], [row.view for row in rows]
        given = self._conditioning
        return UNetRows(
            first=first,
            sample=self._scheduler.scale_model_input(sample, timestep),  # after the mix with the backgrounds
            timestep=timestep.to(torch.float32).expand(len(rows)),
            encoder_hidden_states=given.encoder_hidden_states[texts],
            text_embeds=None if given.text_embeds is None else given.text_embeds[texts],
            time_ids=None if given.time_ids is None else given.time_ids[views],
        )

    def give(self, rows: UNetRows, noise_pred: Tensor) -> None:
        """The predictions (B, 4, window, window) of rows that were taken."""
        self._given[rows.first] = noise_pred
        while (prediction := self._given.pop(self._fused_rows, None)) is not None:
            for row, of_row in zip(self._rows[self._fused_rows :], prediction, strict=False):
                weight = row_weight(row, self._regions).to(of_row.dtype)
                _crop(self._fused, row.view, self._regions).add_(weight * of_row)
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
        self._given: dict[int, Tensor] = {}  # by the place of their first row, until those before are fused
        self._fused = torch.zeros_like(self.latents)
        self._fused_rows = 0

    def _sample(self, row: Row, timestep: Tensor) -> Tensor:
        """What a row sees, unscaled: (1, 4, window, window)."""
        sample = _crop(self.latents, row.view, self._regions)
        if row.source == CANVAS:
            return sample
        choice = self._bootstrapping.choices[self.step, row.view, row.source]
        colour = self._bootstrapping.palette[int(choice)]
        noise = _crop(self._noise, row.view, self._regions)
        background = self._scheduler.add_noise(colour[None], noise, timestep[None])
        mixed: Tensor = torch.where(self._regions.mask(row.view, row.source), sample, background)
        return mixed


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
