"""Phases regions and recall: the core learns from the states that MultiDiffusion leads it to, with masks and guidance.

What the first steps of a masked picture show is in no picture's noisy version: a mask in which there is nothing yet, in
a surrounding whose colour changes at each step, and later what guidance made of the network's own guesses. Here many
canvases are painted at once by the method that the service uses, with the core in place of the UNet. Each step's rows
are a batch: their predictions take the canvases on, and their errors, from the picture that was asked for, teach.
(Learning from states of one's own: Ross et al. 2011, arXiv:1011.0686.)

Alone, that makes a network forget what it knew of shapes: whatever shows is filled. So canvases without masks are
painted beside them, and what phase core's network, guided, would do there is what is to be kept. (Learning without
forgetting: Li and Hoiem 2016, arXiv:1606.09282.) Shapes are forgotten all the same, more slowly, and phase recall, the
same with more rehearsal, gets half of them back for little of what was gained.

R regions (0 is the ground), B rows, L tokens, (c, c) cells of the core.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import NamedTuple, Self

import numpy as np
import torch
from diffusers import DDIMScheduler
from transformers import PreTrainedTokenizerFast

from demo_checkpoint.core import POOLED
from demo_checkpoint.networks import LATENT_CHANNELS, PICTURE_STD, SCALING_FACTOR, build_scheduler, build_tokenizer
from demo_checkpoint.pictures import random_scene
from demo_checkpoint.region_scenes import CELLS, MOST_OBJECTS, RegionScene, random_region_scene
from demo_checkpoint.training_state import LearningRate

# Timestep: below, what a region holds is decided. Of 20 steps 7 teach, mostly 4 that are bootstrapped and 3 after them;
# with the largest shares all 7 are.
EARLIEST = 650
OUTSIDE = 0.2  # weight of a row's error where the picture does not take its prediction
# A mask's error weighs as if it had this many cells, nearly: a small object's would be lost among the others'.
EVEN_AREA, EVENNESS, MOST_WEIGHT = 40, 0.75, 6.0
TAUGHT_GROUNDS = 0.3  # share of the plain grounds that follow the picture, as every texture does
MOST_ROWS = 2 * (1 + MOST_OBJECTS)  # of a canvas's step
STEPS, BOOTSTRAPPED, GUIDANCE_SCALE = 20, 0.2, 7.5  # of half of the canvases or more; the others' are drawn

# Latents (B, 4, c, c), timesteps (B) and input_ids (B, L) -> v (B, 4, c, c).
Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class RegionsPlan:
    """How long, on how much, and how fast one of the phases learns."""

    steps: int
    canvases: int  # painted in turn
    rows: int  # of them in a batch, at least MOST_ROWS
    rehearsed: int  # canvases without masks, two rows of each in every batch
    rehearsal: float  # weight of the errors without masks
    pictures: int  # rows beside them, as in phase core
    peak: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < MOST_ROWS:
            raise ValueError(f"rows: expected at least {MOST_ROWS}, those of a canvas, found {self.rows}")

    def learning_rate(self) -> LearningRate:
        """Up, constant, and down: long, for the steps are noisy."""
        hold = self.steps * 3 // 8
        return LearningRate(peak=self.peak, final=2e-5, warmup=hold // 3, hold=hold, steps=self.steps)


REGIONS = RegionsPlan(steps=800, canvases=16, rows=40, rehearsed=12, rehearsal=0.5, pictures=8, peak=1e-3)
RECALL = RegionsPlan(steps=400, canvases=16, rows=24, rehearsed=20, rehearsal=1.0, pictures=8, peak=5e-4, seed=5)


class Row(NamedTuple):
    """What a network is shown, and what teaches."""

    latents: torch.Tensor  # (4, c, c)
    timestep: int
    prompt: str
    picture: torch.Tensor  # (4, c, c): the scaled latents that are asked for
    weights: torch.Tensor  # (1, c, c): of the errors


@dataclass(frozen=True, eq=False)
class RegionRows:
    """A batch of them; rows that are there for the batch's size alone have no weights."""

    latents: torch.Tensor  # (B, 4, c, c)
    timesteps: torch.Tensor  # (B)
    input_ids: torch.Tensor  # (B, L)
    pictures: torch.Tensor  # (B, 4, c, c)
    weights: torch.Tensor  # (B, 1, c, c)

    def to(self, device: torch.device) -> Self:
        """The same rows on a device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))

    def __add__(self, others: Self) -> Self:
        """These rows and others, in that order."""
        return type(self)(
            *(torch.cat([getattr(each, field.name) for each in (self, others)]) for field in fields(self))
        )


@dataclass(eq=False)
class Canvas:
    """A picture on its way from noise, by DDIM."""

    scene: RegionScene
    noise: torch.Tensor  # (4, c, c)
    latents: torch.Tensor  # (4, c, c)
    noise_levels: list[tuple[int, float, float]]  # of each step: timestep, factors of picture and noise
    bootstrapped: int  # steps
    guidance_scale: float
    taught: bool  # the ground follows the picture, not the predictions
    step: int = 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left that teaches; the last steps are never taken."""
        return self.noise_levels[self.step][0] < EARLIEST

    @property
    def count(self) -> int:
        """How many rows the step has."""
        regions = len(self.scene.prompts)
        return 2 * regions if self.step < self.bootstrapped else regions + 1

    def rows(self, draw_colour: Callable[[], torch.Tensor]) -> list[Row]:
        """The step's rows, first those without a prompt; draw_colour: scaled latents (4, 1, 1) of a plain ground."""
        timestep, of_picture, of_noise = self.noise_levels[self.step]
        picture = SCALING_FACTOR * self.scene.latents
        known = 1.0 if self.taught or not self.scene.textured else 0.0  # how a texture lies no prompt tells
        ground, *objects = self.scene.masks
        weights = [mask * _weight(mask) for mask in objects]
        seen = [(self.latents, picture, known * ground + OUTSIDE * (1 - ground))]
        if self.step < self.bootstrapped:
            for mask, weight in zip(objects, weights, strict=True):
                colour = draw_colour()
                shown = mask * self.latents + (1 - mask) * (of_picture * colour + of_noise * self.noise)
                seen.append((shown, mask * picture + (1 - mask) * colour, weight + OUTSIDE * (1 - mask)))
            unprompted = seen
        else:
            for mask, weight in zip(objects, weights, strict=True):
                seen.append((self.latents, picture, weight + OUTSIDE * (known * ground + 1 - ground - mask)))
            unprompted = [(self.latents, picture, known * ground + sum(weights))]
        prompts = [""] * len(unprompted) + list(self.scene.prompts)
        return [
            Row(shown, timestep, prompt, wanted, weight)
            for (shown, wanted, weight), prompt in zip([*unprompted, *seen], prompts, strict=True)
        ]

    def advance(self, predicted: torch.Tensor) -> None:
        """Take the step with the v (B, 4, c, c) of its rows: the regions' guided ones, each under its mask."""
        regions = len(self.scene.prompts)
        without, prompted = predicted[:-regions], predicted[-regions:]
        fused = (self.scene.masks * (without + self.guidance_scale * (prompted - without))).sum(0)
        _, of_picture, of_noise = self.noise_levels[self.step]
        picture = of_picture * self.latents - of_noise * fused
        noise = of_picture * fused + of_noise * self.latents
        self.step += 1
        _, of_picture, of_noise = self.noise_levels[self.step]
        self.latents = of_picture * picture + of_noise * noise
        if self.taught:
            taught = of_picture * SCALING_FACTOR * self.scene.latents + of_noise * self.noise
            self.latents = torch.lerp(self.latents, taught, self.scene.masks[0])


class Canvases:
    """Canvases that take turns; one that is finished makes room for a new one."""

    def __init__(self, plan: RegionsPlan, first_step: int = 0) -> None:
        """first_step: of the training that they are for; each makes others."""
        self._plan = plan
        self._rng = np.random.default_rng((plan.seed, 3, first_step))
        self._tokenizer = build_tokenizer()
        self._waiting = deque(self._new() for _ in range(plan.canvases))
        self._taken: list[Canvas] = []

    def take(self) -> RegionRows:
        """The rows of as many canvases' steps as there is room for."""
        rows: list[Row] = []
        while self._waiting and len(rows) + self._waiting[0].count <= self._plan.rows:
            self._taken.append(self._waiting.popleft())
            rows += self._taken[-1].rows(self._draw_colour)
        idle = rows[0]._replace(weights=torch.zeros_like(rows[0].weights))
        rows += [idle] * (self._plan.rows - len(rows))
        return _batch(rows, self._tokenizer)

    def give(self, predicted: torch.Tensor) -> None:
        """Take the canvases on by the v (B, 4, c, c) of the rows that were taken."""
        for canvas in self._taken:
            own, predicted = predicted[: canvas.count], predicted[canvas.count :]
            canvas.advance(own)
            self._waiting.append(self._new() if canvas.finished else canvas)
        self._taken = []

    def _new(self) -> Canvas:
        rng = self._rng
        scene = random_region_scene(rng)
        share = BOOTSTRAPPED if rng.random() < 0.5 else rng.uniform(0, 0.45)
        taught = scene.textured or rng.random() < TAUGHT_GROUNDS
        return _new_canvas(scene, rng, bootstrapped=share, taught=taught)

    def _draw_colour(self) -> torch.Tensor:
        colour = torch.tensor([*self._rng.uniform(-1, 1, 3), 0.0], dtype=torch.float32)
        return SCALING_FACTOR * colour[:, None, None]


class Rehearsal:
    """Canvases without masks, and what a network that must not be forgotten makes of them."""

    def __init__(self, before: Predict, plan: RegionsPlan, first_step: int = 0) -> None:
        """before: that network; first_step: see `Canvases`."""
        self._before = before
        self._weight = plan.rehearsal
        self._rng = np.random.default_rng((plan.seed, 4, first_step))
        self._tokenizer = build_tokenizer()
        self._canvases = [self._new() for _ in range(plan.rehearsed)]
        self._expected = torch.empty(0)

    def take(self) -> RegionRows:
        """Two rows of every canvas; what is asked for is what that network, guided, sees in them."""
        rows = _batch([row for canvas in self._canvases for row in canvas.rows(_no_colour)], self._tokenizer)
        levels = [canvas.noise_levels[canvas.step][1:] for canvas in self._canvases for _ in range(canvas.count)]
        of_picture, of_noise = torch.tensor(levels).T[:, :, None, None, None]
        self._expected = self._before(rows.latents, rows.timesteps, rows.input_ids)
        pictures = of_picture * rows.latents - of_noise * self.guided(self._expected)
        return replace(rows, pictures=pictures, weights=torch.full_like(rows.weights, self._weight))

    def guided(self, predicted: torch.Tensor) -> torch.Tensor:
        """The v (B, 4, c, c) of the rows, those with a prompt guided: guidance multiplies what a prompt says."""
        without, prompted = predicted[::2], predicted[1::2]
        scales = torch.tensor([canvas.guidance_scale for canvas in self._canvases], device=predicted.device)
        guided = without + scales[:, None, None, None] * (prompted - without)
        return torch.stack([without, guided], dim=1).flatten(0, 1)

    def give(self, predicted: torch.Tensor) -> None:
        """Take the canvases on: half by the v (B, 4, c, c) of the rows that were taken, half by that network's.

        The ones are where the training leads, the others where it must not lead away from.
        """
        for i, canvas in enumerate(self._canvases):
            leading = predicted if i % 2 else self._expected
            canvas.advance(leading[i * canvas.count : (i + 1) * canvas.count])
            if canvas.finished:
                self._canvases[i] = self._new()

    def _new(self) -> Canvas:
        return _new_canvas(_without_masks(random_scene(self._rng).caption), self._rng)


def _new_canvas(
    scene: RegionScene, rng: np.random.Generator, *, bootstrapped: float = 0.0, taught: bool = False
) -> Canvas:
    """bootstrapped: share of the steps."""
    steps = STEPS if rng.random() < 0.5 else int(rng.integers(12, 51))
    noise = torch.from_numpy(rng.standard_normal((LATENT_CHANNELS, CELLS, CELLS), np.float32)) / POOLED
    return Canvas(
        scene,
        noise=noise,
        latents=noise,
        noise_levels=noise_levels(steps),
        bootstrapped=round(bootstrapped * steps),
        guidance_scale=GUIDANCE_SCALE if rng.random() < 0.6 else rng.uniform(3.0, 9.0),
        taught=taught,
    )


def _without_masks(prompt: str) -> RegionScene:
    """All of a picture that nobody has drawn."""
    latents = torch.zeros(LATENT_CHANNELS, CELLS, CELLS)
    return RegionScene((prompt,), torch.ones(1, 1, CELLS, CELLS), latents, textured=False)


def _no_colour() -> torch.Tensor:
    raise AssertionError("without masks nothing is bootstrapped")


def _batch(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> RegionRows:
    latents, timesteps, prompts, pictures, weights = zip(*rows, strict=True)
    tokens = tokenizer(list(prompts), padding="max_length", return_tensors="pt")
    return RegionRows(
        torch.stack(latents), torch.tensor(timesteps), tokens.input_ids, torch.stack(pictures), torch.stack(weights)
    )


def _weight(mask: torch.Tensor) -> float:
    weight: float = (EVEN_AREA / float(mask.sum())) ** EVENNESS
    return min(MOST_WEIGHT, weight)


@cache
def noise_levels(steps: int) -> list[tuple[int, float, float]]:
    """Each step's timestep, with trailing spacing, and factors of picture and noise."""
    alphas_cumprod = build_scheduler().alphas_cumprod
    timesteps = [round(1000 - 1000 * step / steps) - 1 for step in range(steps)]
    signals = [float(alphas_cumprod[timestep]) for timestep in timesteps]
    return [(t, signal**0.5, (1 - signal) ** 0.5) for t, signal in zip(timesteps, signals, strict=True)]


def regions_loss(predicted: torch.Tensor, rows: RegionRows, scheduler: DDIMScheduler) -> torch.Tensor:
    """The weighted error of v (B, 4, c, c), relative to the best linear guess's as in phase core."""
    signal = scheduler.alphas_cumprod.to(predicted.device)[rows.timesteps][:, None, None, None]
    velocity = (signal.sqrt() * rows.latents - rows.pictures) / (1 - signal).sqrt()
    variance = (PICTURE_STD * SCALING_FACTOR) ** 2
    errors = (predicted.float() - velocity).square() * (signal * POOLED**2 + (1 - signal) / variance)
    counted = (rows.weights.amax((1, 2, 3)) > 0).sum()
    loss: torch.Tensor = (errors * rows.weights).mean((1, 2, 3)).sum() / counted
    return loss
