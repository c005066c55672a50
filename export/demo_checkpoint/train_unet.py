"""Third phase of the training: UNet and text encoder together.

B rows in a batch, L = 77 tokens, (c, c) latent cells: few at first, then the window's 64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from demo_checkpoint.networks import PICTURE_STD, SCALING_FACTOR, UNKNOWN, WINDOW
from demo_checkpoint.pictures import random_picture
from demo_checkpoint.train_vae import cell_colours, to_tensor
from demo_checkpoint.training_state import LearningRate

CAPTION_DROPOUT = 0.12  # rows that learn the empty prompt, which guidance moves away from
UNKNOWN_WORD = 0.08  # rows with an unknown word somewhere: it says nothing about the picture
PIXELS_A_CELL = 2
NOISY_ROWS = 0.85  # rows with a timestep of NOISY at least; below, a picture of flat areas is plain to see and only
NOISY = 250  # edges are left to paint


@dataclass(frozen=True)
class Stage:
    """So many steps on pictures of one size."""

    steps: int
    cells: int  # the side of the latents
    rows: int  # of a batch


@dataclass(frozen=True)
class UnetPlan:
    """How long, on what, and how fast the UNet learns.

    Words, colours and the parts of shapes are learned on small latents, where a picture costs a seventh or a third as
    much; the rest is at the window itself, or large objects would come out in pieces.
    """

    stages: tuple[Stage, ...] = (Stage(4000, WINDOW // 4, 32), Stage(4500, WINDOW // 2, 32), Stage(2000, WINDOW, 16))
    seed: int = 0

    @property
    def steps(self) -> int:
        """In all."""
        return sum(stage.steps for stage in self.stages)

    def learning_rate(self) -> LearningRate:
        """Constant for four fifths, so that a longer run can go on from a shorter one's state."""
        return LearningRate(peak=1e-3, final=2e-5, warmup=100, hold=self.steps * 4 // 5, steps=self.steps)

    def stage(self, step: int) -> Stage:
        """The stage of a step, counted from 0; the last one for any later step."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]


class TextToLatents(nn.Module):
    """UNet and text encoder as the one network that is trained."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Predict v (B, 4, c, c) of noisy latents (B, 4, c, c) at timesteps (B,) for prompts (B, L)."""
        prompt_embeds = self.text_encoder(input_ids).last_hidden_state  # (B, L, D)
        predicted: torch.Tensor = self.unet(latents, timesteps, prompt_embeds).sample
        return predicted


def unet_batch(seed: int, step: int, cells: int, rows: int) -> tuple[torch.Tensor, list[str]]:
    """The unscaled latents (B, 4, c, c) and captions of a step, drawn afresh: no picture is ever seen twice.

    A cell's mean colour needs no more than 2x2 pixels, each of them anti-aliased.
    """
    rng = np.random.default_rng((seed, 2, step))
    pictures = [random_picture(rng, PIXELS_A_CELL * cells) for _ in range(rows)]
    latents = cell_colours(to_tensor([picture.pixels for picture in pictures]), PIXELS_A_CELL)
    return latents, [_disturbed(picture.caption, rng) for picture in pictures]


def unet_loss(
    network: Callable[..., torch.Tensor],
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    input_ids: torch.Tensor,
    seed: int,
) -> torch.Tensor:
    """The weighted squared error of v at random timesteps; seed decides noise and timesteps.

    A row's error counts relative to what the best linear guess from the noisy latents would leave (Karras et al. 2022,
    appendix B.6), so that every timestep teaches as much as any other although v is small where noise is large.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(latents)
    noise = torch.randn(latents.shape, generator=generator)
    earliest = torch.where(torch.rand(rows, generator=generator) < NOISY_ROWS, NOISY, 0)
    timesteps = (earliest + (1000 - earliest) * torch.rand(rows, generator=generator)).long().clamp(max=999)
    noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predicted = network(noisy, timesteps, input_ids)
    errors = F.mse_loss(predicted.float(), scheduler.get_velocity(latents, noise, timesteps), reduction="none")
    variance = (PICTURE_STD * SCALING_FACTOR) ** 2
    signal: torch.Tensor = scheduler.alphas_cumprod[timesteps]
    return (errors.mean((1, 2, 3)) * (signal + (1 - signal) / variance)).mean()


def _disturbed(caption: str, rng: np.random.Generator) -> str:
    """A caption as it is, or the empty one, or one with an unknown word put in."""
    draw = rng.random()
    if draw < CAPTION_DROPOUT:
        return ""
    if draw < CAPTION_DROPOUT + UNKNOWN_WORD:
        words = caption.split()
        words.insert(int(rng.integers(0, len(words) + 1)), UNKNOWN)
        return " ".join(words)
    return caption
