"""From latents to pixels: whole, or in overlapping tiles where the canvas is large.

h x w canvas in latent cells, `tile` the longest side that is decoded at once, c pixels per cell and side.
"""

from collections.abc import Awaitable, Callable

import torch
from torch import Tensor

from views import offsets

Decode = Callable[[Tensor], Awaitable[Tensor]]  # (1, 4, a, b) -> (1, 3, a * c, b * c)


async def decode(latents: Tensor, vae_decoder: Decode, *, tile: int, overlap: int, cell: int) -> Tensor:
    """Decode (1, 4, h, w) to (1, 3, h * cell, w * cell), about [-1, 1].

    A canvas with a side above `tile` is decoded in tiles that share `overlap` cells with their neighbours, where one
    fades into the other: a tile's normalisations see only itself, so neighbours differ a little.
    """
    h, w = latents.shape[-2:]
    if max(h, w) <= tile:
        return await vae_decoder(latents)
    height, width = min(tile, h), min(tile, w)
    fade = _fade(height, overlap, cell)[:, None] * _fade(width, overlap, cell)  # (height * cell, width * cell)
    total = torch.zeros(1, 3, h * cell, w * cell)
    weight = torch.zeros(h * cell, w * cell)
    for top in offsets(h, height, height - min(overlap, height // 2)):
        for left in offsets(w, width, width - min(overlap, width // 2)):
            decoded = await vae_decoder(latents[..., top : top + height, left : left + width].contiguous())
            rows = slice(top * cell, (top + height) * cell)
            columns = slice(left * cell, (left + width) * cell)
            total[..., rows, columns] += decoded * fade
            weight[rows, columns] += fade
    return total / weight


def _fade(size: int, overlap: int, cell: int) -> Tensor:
    """A tile's weight along one of its sides, for each pixel: 1 inside, falling to nearly 0 towards its ends."""
    distance = torch.arange(size * cell) + 0.5  # of a pixel's centre from the edge
    return (torch.minimum(distance, distance.flip(0)) / (overlap * cell)).clamp(max=1)
