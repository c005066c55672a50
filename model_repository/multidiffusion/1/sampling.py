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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conditioning import Conditioning
from row_plan import CANVAS, Regions, Row, make_plan, row_weight

_Texts = dict[str, Tensor]  # by the names of UNetRows
Scheduler = Any  # diffusers' schedulers share methods, not a class
KEPT_BYTES = 24 * 2**20  # of a canvas: 75 rows of Stable Diffusion 2 with their texts, 35 of XL


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
    """Some of a step's rows, one after the other, and what they see.

    I inputs, each once: rows that differ in nothing but their texts share one. I' of them show the canvas on a colour.
    Rows are picked with `index_select`, which takes a fifth of the time that indexing takes.
    """

    def __init__(self, first: int, rows: tuple[Row, ...], regions: Regions) -> None:
        self.first = first  # the place of the first among the step's rows
        self.rows = rows
        self._regions = regions
        inputs = list(dict.fromkeys((row.view, row.source) for row in rows))
        places = {seen: index for index, seen in enumerate(inputs)}
        coloured = [(view, region) for view, region in inputs if region != CANVAS]
        self.input_of_row = torch.tensor([places[row.view, row.source] for row in rows])  # (B)
        self.input_views = [view for view, _ in inputs]
        self.on_colours = torch.tensor([places[seen] for seen in coloured], dtype=torch.int64)  # (I')
        self.coloured_views = [view for view, _ in coloured]
        self._coloured_regions = [region for _, region in coloured]

    def weights(self, dtype: torch.dtype) -> Tensor:
        """What each prediction counts: (B, 1, window, window)."""
        return torch.stack([row_weight(row, self._regions) for row in self.rows])[:, None].to(dtype)

    def texts(self, conditioning: Conditioning) -> _Texts:
        """What the rows are conditioned on besides their timestep."""
        embeddings = torch.tensor([row.embedding for row in self.rows])
        texts = {"encoder_hidden_states": conditioning.encoder_hidden_states.index_select(0, embeddings)}
        if conditioning.text_embeds is not None:
            texts["text_embeds"] = conditioning.text_embeds.index_select(0, embeddings)
        if conditioning.time_ids is not None:
            views = torch.tensor([row.view for row in self.rows])
            texts["time_ids"] = conditioning.time_ids.index_select(0, views)
        return texts

    def masks(self) -> Tensor:
        """Of the inputs that show the canvas on a colour: (I', 1, window, window) bool."""
        shown = zip(self.coloured_views, self._coloured_regions, strict=True)
        return torch.stack([self._regions.mask(view, region) for view, region in shown])[:, None]

    def colours(self, bootstrapping: Bootstrapping, step: int) -> Tensor:
        """Of the same inputs: (I', 4, window, window)."""
        choices = bootstrapping.choices[step, self.coloured_views, self._coloured_regions]
        return bootstrapping.palette.index_select(0, choices.long())


class _StepRows:
    """The rows of one kind of step, and as much as has room of what is the same of them in every such step.

    One tensor holds all that is kept of one sort. Small ones, made between large ones that do not last, would leave
    holes of many times their size in the heap.
    """

    def __init__(self, rows: tuple[Row, ...], regions: Regions, conditioning: Conditioning, dtype: torch.dtype) -> None:
        """dtype: of the predictions."""
        self._rows = rows
        self._regions = regions
        self._conditioning = conditioning
        given = {name: each for name, each in vars(conditioning).items() if each is not None}
        text_bytes = sum(each[0].nbytes for each in given.values())
        weight_bytes = regions.window**2 * dtype.itemsize
        room = len(rows) if len(rows) * (weight_bytes + text_bytes) <= KEPT_BYTES else 0
        self._texts = {name: each.new_empty(room, *each.shape[1:]) for name, each in given.items()}
        room = min(len(rows), KEPT_BYTES // weight_bytes)
        self._weights = torch.empty(room, 1, regions.window, regions.window, dtype=dtype)
        # So many of the first rows are there: a step's rows are taken, and their predictions fused, in order.
        self._texts_made = self._weights_made = 0

    def __len__(self) -> int:
        return len(self._rows)

    def portion(self, first: int, count: int) -> _Portion:
        """The rows from a place on, so many or what there are."""
        return _Portion(first, self._rows[first : first + count], self._regions)

    def texts(self, portion: _Portion) -> _Texts:
        """What the rows of a portion are conditioned on besides their timestep."""
        first, end = portion.first, portion.first + len(portion.rows)
        if end > len(self._texts["encoder_hidden_states"]):
            return portion.texts(self._conditioning)
        if end > self._texts_made:
            for name, each in portion.texts(self._conditioning).items():
                self._texts[name][first:end] = each
            self._texts_made = end
        return {name: each[first:end] for name, each in self._texts.items()}

    def weights(self, portion: _Portion) -> Tensor:
        """What each prediction of a portion counts: (B, 1, window, window)."""
        first, end = portion.first, portion.first + len(portion.rows)
        if end > len(self._weights):
            return portion.weights(self._weights.dtype)
        if end > self._weights_made:
            self._weights[first:end] = portion.weights(self._weights.dtype)
            self._weights_made = end
        return self._weights[first:end]


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
        return len(self._step_rows) - self._taken

    @property
    def complete(self) -> bool:
        """Whether every row of this step has its prediction."""
        return self._fused_rows == len(self._step_rows)

    def take(self, count: int) -> UNetRows:
        """The inputs of this step's next rows, at most `count`, at least 1 while any is untaken."""
        portion = self._step_rows.portion(self._taken, count)
        self._taken += len(portion.rows)
        # By index, not by timestep: karras schedules repeat some.
        timestep = self._scheduler.timesteps[self.step]
        inputs = self._scheduler.scale_model_input(self._inputs(portion, timestep), timestep)  # mixed before
        self._waiting[portion.first] = portion
        return UNetRows(
            first=portion.first,
            sample=inputs.index_select(0, portion.input_of_row),
            timestep=timestep.to(torch.float32).expand(len(portion.rows)),
            **self._step_rows.texts(portion),
        )

    def give(self, rows: UNetRows, noise_pred: Tensor) -> None:
        """The predictions (B, 4, window, window) of rows that were taken."""
        self._given[rows.first] = noise_pred
        while (prediction := self._given.pop(self._fused_rows, None)) is not None:
            portion = self._waiting.pop(self._fused_rows)
            weighted = self._step_rows.weights(portion) * prediction
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
        rows = () if self.finished else self._plan.bootstrapped if bootstrapped else self._plan.plain
        if self.step in (0, self._bootstrapping.steps) or self.finished:  # another kind of step, or none
            self._step_rows = _StepRows(rows, self._regions, self._conditioning, self._noise.dtype)
        self._taken = 0
        # By the place of their first row: portions without a prediction, and predictions until those before are fused.
        self._waiting: dict[int, _Portion] = {}
        self._given: dict[int, Tensor] = {}
        self._fused = torch.zeros_like(self.latents)
        self._fused_rows = 0

    def _inputs(self, portion: _Portion, timestep: Tensor) -> Tensor:
        """What the rows of a portion see, unscaled: (I, 4, window, window)."""
        inputs = self._crops(self.latents, portion.input_views)
        shown = portion.on_colours
        if len(shown):
            colours = portion.colours(self._bootstrapping, self.step)
            noise = self._crops(self._noise, portion.coloured_views)
            backgrounds = self._scheduler.add_noise(colours, noise, timestep.expand(len(shown)))
            inputs.index_copy_(0, shown, torch.where(portion.masks(), inputs.index_select(0, shown), backgrounds))
        return inputs

    def _crops(self, canvas: Tensor, views: Sequence[int]) -> Tensor:
        """These views of the canvas, one after the other: (V', 4, window, window)."""
        return torch.cat([_crop(canvas, view, self._regions) for view in views])


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
