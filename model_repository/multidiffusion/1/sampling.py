"""The sampling loop of region-based MultiDiffusion: fuse the predictions, step once.

R regions, V views, P colours of the palette, h x w canvas and window x window views in latent cells, B rows of one
UNet call, L tokens, D embedding.

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
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from row_plan import CANVAS, Regions, Row, plan_rows, row_weight

Scheduler = Any  # diffusers' schedulers share methods, not a class


@dataclass(frozen=True)
class UNetRows:
    """What the loop asks of the UNet; it is sent the prediction (B, 4, window, window)."""

    step: int  # steps done so far
    sample: Tensor  # (B, 4, window, window), scaled by the scheduler
    timestep: Tensor  # (B) float32
    encoder_hidden_states: Tensor  # (B, L, D)


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


def denoise(
    noise: Tensor,
    prompt_embeds: Tensor,
    *,
    scheduler: Scheduler,
    regions: Regions,
    bootstrapping: Bootstrapping,
    max_batch_size: int,
    generator: torch.Generator,
) -> Generator[UNetRows, Tensor, Tensor]:
    """Paint a canvas: yields the rows that the UNet is to predict, returns the denoised latents (1, 4, h, w).

    noise: (1, 4, h, w) unit noise.
    prompt_embeds: (E, L, D), the embeddings that `regions` refers to.
    scheduler: fresh from `set_timesteps`, used for this canvas alone.
    generator: the noise of samplers that add some after each step.
    """
    latents: Tensor = noise * scheduler.init_noise_sigma
    counts = regions.counts().to(noise.dtype)
    plans = {phase: plan_rows(regions, bootstrapping=phase) for phase in (True, False)}

    for step, timestep in enumerate(scheduler.timesteps):  # by index: karras schedules repeat timesteps
        bootstrapped = step < bootstrapping.steps
        fused = torch.zeros_like(latents)
        inputs = _RowInputs(latents, noise, scheduler, timestep, regions, bootstrapping, step)
        for first in range(0, len(plans[bootstrapped]), max_batch_size):
            rows = plans[bootstrapped][first : first + max_batch_size]
            noise_pred = yield inputs.of(rows, prompt_embeds)  # (B, 4, window, window)
            for row, prediction in zip(rows, noise_pred, strict=True):
                _crop(fused, row.view, regions).add_(row_weight(row, regions).to(noise.dtype) * prediction)
        latents = step_scheduler(scheduler, fused / counts, timestep, latents, generator)
    return latents


@dataclass(frozen=True)
class _RowInputs:
    """The inputs of one step's rows."""

    latents: Tensor  # (1, 4, h, w)
    noise: Tensor  # (1, 4, h, w)
    scheduler: Scheduler
    timestep: Tensor
    regions: Regions
    bootstrapping: Bootstrapping
    step: int

    def of(self, rows: Sequence[Row], prompt_embeds: Tensor) -> UNetRows:
        """One UNet call. The mix with the backgrounds comes before the scheduler's scaling."""
        sample = torch.cat([self._sample(row) for row in rows])  # (B, 4, window, window)
        return UNetRows(
            step=self.step,
            sample=self.scheduler.scale_model_input(sample, self.timestep),
            timestep=self.timestep.to(torch.float32).expand(len(rows)),
            encoder_hidden_states=prompt_embeds[[row.embedding for row in rows]],
        )

    def _sample(self, row: Row) -> Tensor:
        """What a row sees, unscaled: (1, 4, window, window)."""
        sample = _crop(self.latents, row.view, self.regions)
        if row.source == CANVAS:
            return sample
        colour = self.bootstrapping.palette[int(self.bootstrapping.choices[self.step, row.view, row.source])]
        noise = _crop(self.noise, row.view, self.regions)
        background = self.scheduler.add_noise(colour[None], noise, self.timestep[None])
        mixed: Tensor = torch.where(self.regions.mask(row.view, row.source), sample, background)
        return mixed


def _crop(canvas: Tensor, view: int, regions: Regions) -> Tensor:
    """A view of the canvas, sharing its memory: (1, 4, window, window)."""
    top, left = regions.views[view]
    return canvas[..., top : top + regions.window, left : left + regions.window]


def step_scheduler(
    scheduler: Scheduler, noise_pred: Tensor, timestep: Tensor, latents: Tensor, generator: torch.Generator
) -> Tensor:
    """One step of the canvas: (1, 4, h, w) at the next timestep."""
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if takes_generator else {}
    prev_sample: Tensor = scheduler.step(noise_pred, timestep, latents, return_dict=False, **extra)[0]
    return prev_sample
