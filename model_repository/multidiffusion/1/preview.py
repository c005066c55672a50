"""Previews: what a canvas that is not finished would look like, a pixel for every latent cell, without the VAE.

P colours, C latent channels, window and h x w canvas in latent cells.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from checkpoint import Checkpoint
from regions import Canvas

RIDGE = 1e-3  # of the channels' mean variance


def fit_preview(latents: Tensor, colours: Tensor) -> Tensor:
    """The affine map from a scaled latent cell to its colour that is nearest for constant pictures: ridge regression.

    A channel that hardly differs between constant pictures says nothing of colour. Least squares alone would give it
    any weight, which a painted picture, where it does differ, would show.

    latents: (P, C, window, window). colours: (P, 3) in [0, 1). Returns (C + 1, 3).
    """
    middle = latents.shape[-1] // 2
    cells = latents[:, :, middle, middle]  # away from the picture's edges
    mean, mean_colour = cells.mean(dim=0), colours.mean(dim=0)
    centred = cells - mean
    penalty = RIDGE * centred.square().mean() * len(cells) * torch.eye(cells.shape[1])
    weights: Tensor = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ (colours - mean_colour))
    return torch.cat([weights, (mean_colour - mean @ weights)[None]])


def preview_image(latents: Tensor, checkpoint: Checkpoint, canvas: Canvas) -> npt.NDArray[np.uint8]:
    """A rough picture of latents (1, 4, h, w), a pixel for every cell that the picture touches: (a, b, 3) uint8."""
    rows, columns = (slice(pixels.start // canvas.cell, -(-pixels.stop // canvas.cell)) for pixels in canvas.crop)
    cells = latents[0, :, rows, columns].permute(1, 2, 0)  # (a, b, 4)
    colours = cells @ checkpoint.preview[:-1] + checkpoint.preview[-1]
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
