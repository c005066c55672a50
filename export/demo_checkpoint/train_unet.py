"""Second and third phase of the training: the UNet's core with the text encoder, then what lies above the core.

B rows in a batch, L = 77 tokens, (c, c) latent cells: the core's 16, then the window's 64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from demo_checkpoint.core import POOLED, Core
from demo_checkpoint.networks import PICTURE_STD, SCALING_FACTOR, UNKNOWN, WINDOW
from demo_checkpoint.pictures import random_picture
from demo_checkpoint.train_vae import cell_colours, to_tensor
from demo_checkpoint.training_state import LearningRate

CAPTION_DROPOUT = 0.12  # rows that learn the empty prompt, which guidance moves away from
UNKNOWN_WORD = 0.08  # rows with an unknown word somewhere: it says nothing about the picture
PIXELS_A_CELL = 2
EASY_IN_THE_END = 0.15  # share of the pictures: most prompts without a mask are answered by one of these
NOISY_ROWS = 0.85  # rows with a plan's `noisy` timestep at least; below, a picture of flat areas is plain to see


@dataclass(frozen=True)
class UnetPlan:
    """How long, on what, and how fast one of the phases learns."""

    steps: int
    rows: int  # of a batch
    pooled: int  # cells of the window, a side, that one of the network's cells stands for
    noisy: int  # timestep
    peak: float
    easy: tuple[int, int] | None = None  # steps up to which all pictures are easy, and from which EASY_IN_THE_END are
    seed: int = 0

    @property
    def cells(self) -> int:
        """The side of the latents."""
        return WINDOW // self.pooled

    def learning_rate(self) -> LearningRate:
        """Constant for three fifths, so that a longer run can go on from a shorter one's state."""
        return LearningRate(peak=self.peak, final=1e-5, warmup=100, hold=self.steps * 3 // 5, steps=self.steps)

    def easy_at(self, step: int) -> float:
        """The share of easy pictures among those of a step."""
        if self.easy is None:
            return EASY_IN_THE_END
        first, second = self.easy
        harder = min(1.0, max(0.0, (step - first) / (second - first)))
        return (1 - harder) + harder * EASY_IN_THE_END


CORE = UnetPlan(steps=8000, rows=32, pooled=POOLED, noisy=400, peak=2e-3, easy=(1000, 3000))
UPPER = UnetPlan(steps=3000, rows=16, pooled=1, noisy=0, peak=2e-3)


class TextToLatents(nn.Module):
    """UNet, or its core, and text encoder as the one network that is trained."""

    def __init__(self, unet: UNet2DConditionModel | Core, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Predict v (B, 4, c, c) of noisy latents (B, 4, c, c) at timesteps (B,) for prompts (B, L)."""
        prompt_embeds = self.text_encoder(input_ids).last_hidden_state  # (B, L, D)
        predicted: torch.Tensor = self.unet(latents, timesteps, prompt_embeds).sample
        return predicted


def unet_batch(plan: UnetPlan, step: int) -> tuple[torch.Tensor, list[str]]:
    """The unscaled latents (B, 4, c, c) and captions of a step, drawn afresh: no picture is ever seen twice.

    A cell's mean colour needs no more than 2x2 pixels, each of them anti-aliased.
    """
    rng = np.random.default_rng((plan.seed, 2, plan.pooled, step))
    easy = plan.easy_at(step)
    pictures = [random_picture(rng, PIXELS_A_CELL * plan.cells, easy=easy) for _ in range(plan.rows)]
    latents = cell_colours(to_tensor([picture.pixels for picture in pictures]), PIXELS_A_CELL)
    return latents, [_disturbed(picture.caption, rng) for picture in pictures]


def unet_loss(
    network: Callable[..., torch.Tensor],
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    input_ids: torch.Tensor,
    plan: UnetPlan,
    seed: int,
) -> torch.Tensor:
    """The weighted squared error of v at random timesteps; seed decides noise and timesteps.

    Noise averaged over pooled x pooled cells has a deviation of 1 / pooled. The whole UNet's error counts twice, cell
    by cell and pooled as the core's: what a prompt decides is in the means over many cells, and their share of the
    error cell by cell is small.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(latents)
    noise = torch.randn(latents.shape, generator=generator) / plan.pooled
    earliest = torch.where(torch.rand(rows, generator=generator) < NOISY_ROWS, plan.noisy, 0)
    timesteps = (earliest + (1000 - earliest) * torch.rand(rows, generator=generator)).long().clamp(max=999)
    noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predicted = network(noisy, timesteps, input_ids)
    signal = scheduler.alphas_cumprod[timesteps]
    errors = predicted.float() - scheduler.get_velocity(latents, noise, timesteps)
    loss = _relative(errors, signal, plan.pooled)
    return loss if plan.pooled == POOLED else loss + _relative(F.avg_pool2d(errors, POOLED), signal, POOLED)


def _relative(errors: torch.Tensor, signal: torch.Tensor, pooled: int) -> torch.Tensor:
    """The mean square of errors (B, 4, c, c) relative to the best linear guess's.

    That makes every timestep teach as much as any other although v is small where noise is large (Karras et al. 2022,
    appendix B.6). signal: the share (B,) of the latents' variance in the noisy ones.
    """
    variance = (PICTURE_STD * SCALING_FACTOR) ** 2
    return (errors.square().mean((1, 2, 3)) * (signal * pooled**2 + (1 - signal) / variance)).mean()


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
