"""First phase of the training: the autoencoder.

Its first three latent channels are held to the mean colour of each 8x8 cell. That makes the latents of a flat area
constant and linear in its colour, which is what the UNet finds easiest to paint; the fourth channel is free to say
where inside a cell an edge runs.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL

from demo_checkpoint.networks import VAE_SCALE_FACTOR
from demo_checkpoint.pictures import SIDE, Pixels, random_picture
from demo_checkpoint.training_state import LearningRate

LATENT_NOISE = 0.05  # standard deviation, against about 0.6 of the latents: the decoder bears a sampler's errors
KL_WEIGHT = 1e-4  # only so that the unused parts of the posterior stay small
COLOUR_WEIGHT = 1.0


@dataclass(frozen=True)
class VaePlan:
    """How long and how fast the autoencoder learns."""

    steps: int = 1600
    seed: int = 0

    def learning_rate(self) -> LearningRate:
        """2e-3 is about the largest rate at which so small a network still learns steadily."""
        return LearningRate(peak=2e-3, final=5e-5, warmup=50, hold=50, steps=self.steps)


def to_tensor(pictures: list[Pixels]) -> torch.Tensor:
    """Pictures (side, side, 3) uint8 as one tensor (B, 3, side, side) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def vae_batch(seed: int, step: int) -> torch.Tensor:
    """The pictures (B, 3, side, side) of a step: mostly crops of 128 px, now and then whole pictures.

    Group normalisation sees the whole input, so the network must meet inputs in which an object is everything and
    inputs in which it is next to nothing; many small ones, because a batch of few colours teaches colours badly.
    """
    rng = np.random.default_rng((seed, 1, step))
    if step % 8 == 7:
        return to_tensor([random_picture(rng).pixels])
    if step % 8 == 3:
        return to_tensor([random_picture(rng, SIDE // 2).pixels for _ in range(2)])
    return to_tensor([_crop(random_picture(rng, SIDE // 2).pixels, rng, SIDE // 4) for _ in range(8)])


def vae_loss(vae: AutoencoderKL, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Reconstruction from slightly noisy latents, with mean colours in the first three latent channels."""
    posterior = vae.encode(pictures).latent_dist
    noise = LATENT_NOISE * torch.randn(posterior.mean.shape, generator=generator)
    decoded = vae.decode(posterior.mean + noise).sample
    colours = F.avg_pool2d(pictures, VAE_SCALE_FACTOR)
    reconstruction = F.l1_loss(decoded, pictures) + F.mse_loss(decoded, pictures)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    loss: torch.Tensor = reconstruction + KL_WEIGHT * kl + COLOUR_WEIGHT * F.mse_loss(posterior.mean[:, :3], colours)
    return loss


def _crop(pixels: Pixels, rng: np.random.Generator, side: int) -> Pixels:
    y, x = rng.integers(0, len(pixels) - side + 1, 2)
    return pixels[y : y + side, x : x + side]
