from typing import Any

import diffusers
import pytest
import torch

from tests.unit.repository.tiny import EMBEDDING, WINDOW


@pytest.fixture(scope="module")
def unet() -> Any:
    """A real UNet of some thousand random weights; a module's tests may change its precision."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=WINDOW,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=EMBEDDING,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return unet.eval().requires_grad_(False)
