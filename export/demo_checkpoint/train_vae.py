"""First phase of the training: the decoder of the autoencoder.

The encoder needs none (`colour_path`): its latents are mean colours, which is what the UNet finds easiest to paint.
The decoder learns to draw sharp edges from them. It does not touch the UNet's data, so both phases may run at once.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL

from demo_checkpoint.networks import VAE_SCALE_FACTOR
from demo_checkpoint.pictures import SIDE, Pixels, random_picture
from demo_checkpoint.training_state import LearningRate, Phases

# Standard deviations, against 0.67 of the latents: the decoder bears a sampler's errors. First edges are learned; then
# flat areas have to stay flat under as much noise as a short sampling with strong guidance leaves, a new share of it in
# every picture.
LATENT_NOISE, MOST_LATENT_NOISE = 0.05, 0.3


@dataclass(frozen=True)
class VaePlan:
    """How long and how fast the decoder learns."""

    edge_steps: int = 3000
    steps: int = 4000  # in all
    seed: int = 0

    def learning_rate(self) -> Phases:
        """A larger rate would tear the built path down before the other channels have learned anything."""
        edges = LearningRate(peak=3e-4, final=2e-5, warmup=100, hold=1000, steps=self.edge_steps)
        smooth = LearningRate(peak=3e-4, final=1e-5, warmup=20, hold=300, steps=self.steps - self.edge_steps)
        return Phases((edges, smooth))

    def latent_noise(self, step: int, pictures: int) -> torch.Tensor:
        """The standard deviation of each picture's noise: (B, 1, 1, 1)."""
        if step < self.edge_steps:
            return torch.full((pictures, 1, 1, 1), LATENT_NOISE)
        return MOST_LATENT_NOISE * torch.rand(pictures, 1, 1, 1, generator=torch.Generator().manual_seed(step))


def to_tensor(pictures: list[Pixels]) -> torch.Tensor:
    """Pictures (side, side, 3) uint8 as one tensor (B, 3, side, side) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def cell_colours(pictures: torch.Tensor, factor: int = VAE_SCALE_FACTOR) -> torch.Tensor:
    """What the encoder makes of pictures (B, 3, H, W), unscaled: latents (B, 4, H / factor, W / factor)."""
    return F.pad(F.avg_pool2d(pictures, factor), (0, 0, 0, 0, 0, 1))


def vae_batch(seed: int, step: int) -> torch.Tensor:
    """The pictures (B, 3, side, side) of a step: mostly crops of 128 px, now and then whole pictures."""
    rng = np.random.default_rng((seed, 1, step))
    if step % 8 == 7:
        return to_tensor([random_picture(rng).pixels])
    if step % 8 == 3:
        return to_tensor([random_picture(rng, SIDE // 2).pixels for _ in range(2)])
    return to_tensor([_crop(random_picture(rng, SIDE // 2).pixels, rng, SIDE // 4) for _ in range(8)])


def vae_loss(
    vae: AutoencoderKL, pictures: torch.Tensor, noise: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The reconstruction's error from latents with noise of given standard deviations (B, 1, 1, 1)."""
    latents = cell_colours(pictures)
    latents = latents + noise * torch.randn(latents.shape, generator=generator)
    decoded = vae.decode(latents.contiguous(memory_format=torch.channels_last)).sample
    return F.l1_loss(decoded, pictures) + F.mse_loss(decoded, pictures)


def _crop(pixels: Pixels, rng: np.random.Generator, side: int) -> Pixels:
    y, x = rng.integers(0, len(pixels) - side + 1, 2)
    return pixels[y : y + side, x : x + side]
