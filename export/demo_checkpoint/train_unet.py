"""Third phase of the training: UNet and text encoder together.

B rows in a batch, L = 77 tokens, (c, c) latent cells: 32 at first, then the window's 64.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from demo_checkpoint.networks import UNKNOWN, WINDOW
from demo_checkpoint.pictures import random_picture
from demo_checkpoint.train_vae import cell_colours, to_tensor
from demo_checkpoint.training_state import LearningRate

CAPTION_DROPOUT = 0.12  # rows that learn the empty prompt, which guidance moves away from
UNKNOWN_WORD = 0.08  # rows with an unknown word somewhere: it says nothing about the picture
# Noise is also added to the whole picture and to smooth patches: on pictures of large flat areas white noise hides
# nothing, so that the network would read layout and colours off the last step instead of from the prompt.
OFFSET_NOISE, PATCH_NOISE = 0.1, 0.12
PATCHES = 8  # in each direction
PIXELS_A_CELL = 2
NOISY_ROWS = 0.6  # rows with a timestep of NOISY at least: below it a picture of flat areas is plain to see, and the
NOISY = 880  # prompt no longer needed


@dataclass(frozen=True)
class UnetPlan:
    """How long, on what, and how fast the UNet learns."""

    small_steps: int = 1000  # at half the window: a quarter of the cost, and colours and words are learned there
    steps: int = 3900  # in all; the rest is at the window itself, or objects would come out in pieces
    seed: int = 0

    def learning_rate(self) -> LearningRate:
        """Constant for four fifths, so that a longer run can go on from a shorter one's state."""
        return LearningRate(peak=1e-3, final=2e-5, warmup=100, hold=self.steps * 4 // 5, steps=self.steps)

    def cells(self, step: int) -> int:
        """The side of a step's latents."""
        return WINDOW // 2 if step < self.small_steps else WINDOW

    def rows(self, step: int) -> int:
        """The batch of a step."""
        return 32 if step < self.small_steps else 16


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
    network: nn.Module, scheduler: DDIMScheduler, latents: torch.Tensor, input_ids: torch.Tensor, seed: int
) -> torch.Tensor:
    """The mean squared error of v at random timesteps; seed decides noise and timesteps."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(latents)
    noise = _uneven_noise(latents.shape, generator)
    earliest = torch.where(torch.rand(rows, generator=generator) < NOISY_ROWS, NOISY, 0)
    timesteps = (earliest + (1000 - earliest) * torch.rand(rows, generator=generator)).long().clamp(max=999)
    noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predicted = network(noisy, timesteps, input_ids)
    return F.mse_loss(predicted.float(), scheduler.get_velocity(latents, noise, timesteps))


def _uneven_noise(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """White noise (B, 4, c, c) with an offset a row and channel, and smooth patches."""
    rows, channels, height, width = shape
    offset = OFFSET_NOISE * torch.randn(rows, channels, 1, 1, generator=generator)
    patches = PATCH_NOISE * torch.randn(rows, channels, PATCHES, PATCHES, generator=generator)
    smooth = F.interpolate(patches, (height, width), mode="bilinear", align_corners=False)
    return torch.randn(shape, generator=generator) + offset + smooth


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
