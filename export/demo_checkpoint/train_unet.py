"""Third phase of the training: UNet and text encoder together, on a pool of encoded pictures.

N pictures in a pool, B rows in a batch, L = 77 tokens, (c, c) latent cells: 32 at first, then the window's 64.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel

from demo_checkpoint.networks import END_ID, MODEL_MAX_LENGTH, START_ID, UNKNOWN_ID, WINDOW, build_tokenizer
from demo_checkpoint.pictures import random_picture
from demo_checkpoint.train_vae import to_tensor
from demo_checkpoint.training_state import LearningRate

CAPTION_DROPOUT = 0.12  # rows that learn the empty prompt, which guidance moves away from
UNKNOWN_WORD = 0.08  # rows with an unknown word somewhere: it says nothing about the picture
OFFSET_NOISE = 0.1  # the noise's mean varies, or the network would read the picture's mean colour off the last step
TIMESTEP_POWER = 0.75  # t = 1000 u^0.75: somewhat more of the noisy steps, which decide colour and shape


@dataclass(frozen=True)
class Pool:
    """Encoded pictures: scaled latents (N, 4, c, c) float16, input_ids (N, L) int64, turnable (N,) bool."""

    latents: torch.Tensor
    input_ids: torch.Tensor
    turnable: torch.Tensor

    def save(self, path: Path) -> None:
        """Write the pool to one safetensors file."""
        save_file({"latents": self.latents, "input_ids": self.input_ids, "turnable": self.turnable}, path)

    @staticmethod
    def load(path: Path) -> "Pool":
        """Read what `save` wrote."""
        return Pool(**load_file(path))


@dataclass(frozen=True)
class UnetPlan:
    """How long, on what, and how fast the UNet learns."""

    small_steps: int = 2000  # at half the window: a quarter of the cost, and colours and words are learned there
    steps: int = 7500  # in all; the rest is at the window itself, or objects would come out in pieces
    seed: int = 0

    def learning_rate(self) -> LearningRate:
        """Constant for three quarters, so that a longer run can go on from a shorter one's state."""
        return LearningRate(peak=1e-3, final=2e-5, warmup=100, hold=self.steps * 3 // 4, steps=self.steps)

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


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, seed: int, cells: int, count: int) -> Pool:
    """Draw and encode count pictures; at 32 cells the same pictures as at 64, halved."""
    tokenizer = build_tokenizer()
    latents, captions, turnable = [], [], []
    for i in range(count):
        picture = random_picture(np.random.default_rng((seed, cells, i)))
        pixels = F.avg_pool2d(to_tensor([picture.pixels]), WINDOW // cells)
        latents.append((vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor).half())
        captions.append(picture.caption)
        turnable.append(picture.turnable)
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return Pool(torch.cat(latents).contiguous(), ids, torch.tensor(turnable))


def unet_batch(pool: Pool, seed: int, step: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents (B, 4, c, c) and input_ids (B, L) of a step: mirrored, turned, captions dropped or disturbed."""
    rng = np.random.default_rng((seed, 2, step))
    chosen = rng.integers(0, len(pool.latents), rows).tolist()
    latents = torch.stack([_turned(pool.latents[i], bool(pool.turnable[i]), rng) for i in chosen]).float()
    return latents, torch.stack([_disturbed(pool.input_ids[i], rng) for i in chosen])


def unet_loss(
    network: nn.Module, scheduler: DDIMScheduler, latents: torch.Tensor, input_ids: torch.Tensor, seed: int
) -> torch.Tensor:
    """The mean squared error of v at random timesteps; seed decides noise and timesteps."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(latents)
    offset = torch.randn(rows, latents.shape[1], 1, 1, generator=generator)
    noise = torch.randn(latents.shape, generator=generator) + OFFSET_NOISE * offset
    timesteps = (1000 * torch.rand(rows, generator=generator) ** TIMESTEP_POWER).long().clamp(max=999)
    noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predicted = network(noisy, timesteps, input_ids)
    return F.mse_loss(predicted.float(), scheduler.get_velocity(latents, noise, timesteps))


def _turned(latents: torch.Tensor, turnable: bool, rng: np.random.Generator) -> torch.Tensor:
    """Latents (4, c, c) mirrored left to right at random, and turned if nothing in the picture stands upright."""
    if rng.random() < 0.5:
        latents = latents.flip(-1)
    if turnable:
        latents = latents.rot90(int(rng.integers(4)), (-2, -1))
    return latents


def _disturbed(input_ids: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """input_ids (L,) as they are, or of the empty prompt, or with an unknown word put in."""
    draw = rng.random()
    if draw < CAPTION_DROPOUT:
        return torch.tensor([START_ID] + [END_ID] * (MODEL_MAX_LENGTH - 1))
    if draw < CAPTION_DROPOUT + UNKNOWN_WORD:
        length = int((input_ids != END_ID).sum())
        place = int(rng.integers(1, length + 1))
        return torch.cat([input_ids[:place], torch.tensor([UNKNOWN_ID]), input_ids[place:-1]])
    return input_ids
