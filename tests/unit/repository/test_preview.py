"""The preview's map from latent cells to colours, fitted to the palette."""

import torch
from torch import Tensor

from preview import fit_preview


def palette(dead: float) -> tuple[Tensor, Tensor]:
    """Latents of constant pictures whose first three channels are their colours, and whose fourth hardly differs."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(20, 3, generator=generator)
    fourth = dead * torch.randn(20, 1, generator=generator)
    cells = torch.cat([2 * colours - 1, fourth], dim=1)
    return cells[:, :, None, None].expand(20, 4, 8, 8), colours


def test_a_cell_gets_the_colour_of_the_constant_picture_that_has_it() -> None:
    latents, colours = palette(dead=0.5)
    preview = fit_preview(latents, colours)
    assert preview.shape == (5, 3)
    torch.testing.assert_close(latents[:, :, 4, 4] @ preview[:-1] + preview[-1], colours, rtol=0, atol=0.01)


def test_a_channel_that_hardly_differs_in_the_palette_says_nothing_of_colour() -> None:
    preview = fit_preview(*palette(dead=1e-6))
    assert preview[3].abs().max() < 1e-3
