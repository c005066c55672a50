"""Muon and AdamW as one optimizer."""

import pytest
import torch
from torch import nn

from demo_checkpoint.optimizer import MuonAndAdamW

LAYOUTS = (torch.contiguous_format, torch.channels_last)


class Parts(nn.Module):
    def __init__(self, layout: torch.memory_format) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv2d(4, 6, 3)
        self.hidden = nn.Conv2d(6, 8, 3)
        self.narrow = nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8, 8)
        self.embeddings = nn.Embedding(5, 8)
        for conv in (self.conv_in, self.hidden, self.narrow):
            conv.weight.data = conv.weight.data.contiguous(memory_format=layout)


def step(parts: Parts, optimizer: MuonAndAdamW) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    generator = torch.Generator().manual_seed(1)
    for weight in parts.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_direction_of_a_hidden_weight_moves_alike(layout: torch.memory_format) -> None:
    parts = Parts(layout)
    before = parts.hidden.weight.detach().clone()
    step(parts, MuonAndAdamW(parts, weight_decay=0.0))

    moved = (parts.hidden.weight.detach() - before).flatten(1)  # (8, 54)
    sizes = torch.linalg.svdvals(moved)
    expected = 0.1 * 0.2 * 54**0.5  # the rate, as large as AdamW's update of a matrix of that shape
    assert ((0.6 * expected < sizes) & (sizes < 1.3 * expected)).all()  # five iterations: roughly orthogonal


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", ["conv_in", "embeddings"])
def test_the_other_weights_move_as_adamw_moves_them(layout: torch.memory_format, part: str) -> None:
    parts = Parts(layout)
    weight = parts.get_parameter(f"{part}.weight")
    before = weight.detach().clone()
    step(parts, MuonAndAdamW(parts, weight_decay=0.0))

    moved = (weight.detach() - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-3, atol=0)


def test_the_layout_in_memory_changes_no_update() -> None:
    plain, last = (Parts(layout) for layout in LAYOUTS)
    for parts in (plain, last):
        step(parts, MuonAndAdamW(parts, weight_decay=0.01))

    for one, other in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)  # iterations in bfloat16, in another order


def test_frozen_weights_stay() -> None:
    parts = Parts(torch.channels_last)
    parts.hidden.requires_grad_(False)
    before = parts.hidden.weight.detach().clone()
    step(parts, MuonAndAdamW(parts, weight_decay=0.01))

    assert torch.equal(parts.hidden.weight, before)
