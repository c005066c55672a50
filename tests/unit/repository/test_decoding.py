"""Tiled decoding: equal to decoding whole where tiles agree, and fading where they do not."""

import asyncio

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from decoding import decode

CELL = 8


class Decoder:
    """Each cell becomes 8x8 pixels of its first three channels, plus an offset of the call's own."""

    def __init__(self, offsets: tuple[float, ...] = (0.0,)) -> None:
        self.offsets = offsets
        self.calls: list[tuple[int, int]] = []

    async def __call__(self, latents: Tensor) -> Tensor:
        offset = self.offsets[len(self.calls) % len(self.offsets)]
        self.calls.append((latents.shape[-2], latents.shape[-1]))
        return F.interpolate(latents[:, :3], scale_factor=CELL, mode="nearest") + offset


def decoded(latents: Tensor, decoder: Decoder, tile: int = 16, overlap: int = 4) -> Tensor:
    return asyncio.run(decode(latents, decoder, tile=tile, overlap=overlap, cell=CELL))


def canvas(height: int, width: int) -> Tensor:
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))


def test_a_canvas_up_to_the_tile_is_decoded_whole() -> None:
    decoder = Decoder()
    decoded(canvas(16, 9), decoder)
    assert decoder.calls == [(16, 9)]


@pytest.mark.parametrize(("height", "width"), [(17, 16), (40, 33), (16, 100), (8, 50)])
def test_tiles_that_agree_give_the_whole_picture(height: int, width: int) -> None:
    latents, decoder = canvas(height, width), Decoder()
    whole = F.interpolate(latents[:, :3], scale_factor=CELL, mode="nearest")
    torch.testing.assert_close(decoded(latents, decoder), whole)
    assert len(decoder.calls) > 1
    assert set(decoder.calls) == {(min(16, height), min(16, width))}


def test_a_long_canvas_is_decoded_in_few_tiles_as_high_as_it_is() -> None:
    decoder = Decoder()
    decoded(canvas(8, 28), decoder)
    assert decoder.calls == [(8, 16)] * 2


def test_tiles_that_differ_fade_into_each_other_without_a_step() -> None:
    picture = decoded(torch.zeros(1, 4, 16, 28), Decoder(offsets=(0.0, 1.0)))  # two tiles, 4 cells shared
    line = picture[0, 0, 64]  # (28 * CELL)
    assert line[: 12 * CELL].abs().max() == 0
    assert (line[16 * CELL :] - 1).abs().max() == 0
    steps = line.diff()
    assert steps.min() >= 0
    assert steps.max() < 2 / (4 * CELL)
