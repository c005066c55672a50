"""Phases core and unet of the training: the UNet's core with the text encoder, and what lies above the core.

B rows in a batch, L = 77 tokens, (c, c) latent cells: the core's 16, then the window's 64.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextModel

from demo_checkpoint.core import POOLED, Core
from demo_checkpoint.networks import PICTURE_STD, SCALING_FACTOR, UNKNOWN, WINDOW, build_tokenizer
from demo_checkpoint.pictures import Scene, random_scene
from demo_checkpoint.scene_batches import SceneBatch, draw_latents
from demo_checkpoint.training_state import LearningRate

CAPTION_DROPOUT = 0.12  # rows that learn the empty prompt, which guidance moves away from
UNKNOWN_WORD = 0.08  # rows with an unknown word somewhere: it says nothing about the picture
EASY_IN_THE_END = 0.15  # share of the pictures: most prompts without a mask are answered by one of these
NOISY_ROWS = 0.85  # rows with a plan's `noisy` timestep at least; below, a picture of flat areas is plain to see
VEILS_END = 840  # timestep: below, an object has come out of its veil


@dataclass(frozen=True)
class UnetPlan:
    """How long, on what, and how fast one of the phases learns."""

    steps: int
    rows: int  # of a batch
    pooled: int  # cells of the window, a side, that one of the network's cells stands for
    noisy: int  # timestep
    peak: float
    easy: tuple[int, int] | None = None  # steps up to which all pictures are easy, and from which EASY_IN_THE_END are
    veiled: float = 0.0  # share of the pictures, in the end
    points: int = 4  # samples of a cell, a side, that its mean colour is taken from
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
        return 1 - self._harder(step) * (1 - EASY_IN_THE_END)

    def veiled_at(self, step: int) -> float:
        """The share of veiled pictures among those of a step."""
        return self._harder(step) * self.veiled

    def _harder(self, step: int) -> float:
        if self.easy is None:
            return 1.0
        first, second = self.easy
        return min(1.0, max(0.0, (step - first) / (second - first)))


CORE = UnetPlan(steps=1500, rows=512, pooled=POOLED, noisy=790, peak=2e-3, easy=(500, 1500), veiled=0.3, points=8)
UPPER = UnetPlan(steps=850, rows=256, pooled=1, noisy=0, peak=2e-3)


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


class UnetBatches(Dataset[tuple[SceneBatch, torch.Tensor]]):
    """A plan's batches by step: scenes, and the prompts' input_ids (B, L)."""

    def __init__(self, plan: UnetPlan) -> None:
        self.plan = plan
        self._tokenizer = build_tokenizer()

    def __len__(self) -> int:
        """The plan's steps."""
        return self.plan.steps

    def __getitem__(self, step: int) -> tuple[SceneBatch, torch.Tensor]:
        """The batch of a step, which that and the plan's seed decide."""
        scenes, captions = unet_batch(self.plan, step)
        tokens = self._tokenizer(captions, padding="max_length", return_tensors="pt")
        return SceneBatch.of(scenes), tokens.input_ids

    def from_step(self, step: int, device: torch.device, workers: int) -> Iterator[tuple[SceneBatch, torch.Tensor]]:
        """The batches from a step on, on a device, made ahead by worker processes if there are any."""
        if workers:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or the tokenizer warns in each of them
        loader: DataLoader[tuple[SceneBatch, torch.Tensor]] = DataLoader(
            self,
            batch_size=None,
            sampler=range(step, len(self)),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            prefetch_factor=4 if workers else None,
        )
        for scenes, input_ids in loader:
            yield scenes.to(device), input_ids.to(device, non_blocking=True)


def unet_batch(plan: UnetPlan, step: int) -> tuple[list[Scene], list[str]]:
    """The scenes (B) of a step, drawn afresh, and what is said of them: no picture is ever seen twice."""
    rng = np.random.default_rng((plan.seed, 2, plan.pooled, step))
    easy, veiled = plan.easy_at(step), plan.veiled_at(step)
    scenes = [random_scene(rng, easy=easy, veiled=veiled) for _ in range(plan.rows)]
    return scenes, [_disturbed(scene.caption, rng) for scene in scenes]


def unet_loss(
    network: Callable[..., torch.Tensor],
    scheduler: DDIMScheduler,
    scenes: SceneBatch,
    input_ids: torch.Tensor,
    plan: UnetPlan,
    seed: int,
) -> torch.Tensor:
    """The error of v for a batch of scenes and prompts (B, L), at timesteps and with noise that seed decides.

    Noise averaged over pooled x pooled cells has a deviation of 1 / pooled. Under a veil the network is shown what
    covers the object, and asked for what is there.
    """
    latents, shown = (SCALING_FACTOR * each for each in draw_latents(scenes, plan.cells, plan.points))
    device = latents.device
    generator = torch.Generator(device).manual_seed(seed)
    rows = len(latents)
    noise = torch.randn(latents.shape, generator=generator, device=device) / plan.pooled
    noisy_rows = torch.rand(rows, generator=generator, device=device) < NOISY_ROWS
    earliest = torch.where(scenes.veiled, VEILS_END, torch.where(noisy_rows, plan.noisy, 0))
    drawn = torch.rand(rows, generator=generator, device=device)
    timesteps = (earliest + (1000 - earliest) * drawn).long().clamp(max=999)
    return v_loss(network, scheduler, latents, shown, noise, timesteps, input_ids, plan.pooled)


def v_loss(
    network: Callable[..., torch.Tensor],
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    shown: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    input_ids: torch.Tensor,
    pooled: int,
) -> torch.Tensor:
    """The weighted squared error of v, which leads from noisy shown latents to the latents (B, 4, c, c).

    The whole UNet's error counts twice, cell by cell and pooled as the core's: what a prompt decides is in the means
    over many cells, and their share of the error cell by cell is small.
    """
    signal = scheduler.alphas_cumprod.to(latents.device)[timesteps]
    noisy = scheduler.add_noise(shown, noise, timesteps).contiguous(memory_format=torch.channels_last)
    with torch.autocast(latents.device.type, dtype=torch.bfloat16):
        predicted = network(noisy, timesteps, input_ids)
    # What has to be taken from the noisy latents to find the true ones is noise, whatever it is.
    to_noise = (signal / (1 - signal)).sqrt()[:, None, None, None]
    velocity = scheduler.get_velocity(latents, noise + to_noise * (shown - latents), timesteps)
    errors = predicted.float() - velocity
    loss = _relative(errors, signal, pooled)
    return loss if pooled == POOLED else loss + _relative(F.avg_pool2d(errors, POOLED), signal, POOLED)


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
