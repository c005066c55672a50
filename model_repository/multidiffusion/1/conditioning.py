"""What a row is conditioned on besides its timestep.

U texts, V views, L tokens, D embedding of all text encoders, Q pooled embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from views import View


@dataclass(frozen=True)
class Conditioning:
    """The texts of a request and, where the UNet takes them, their pooled embeddings and each view's sizes."""

    encoder_hidden_states: Tensor  # (U, L, D)
    text_embeds: Tensor | None = None  # (U, Q)
    time_ids: Tensor | None = None  # (V, 6)


def join_encodings(
    encodings: Sequence[Mapping[str, Tensor]], zeroed: Sequence[bool], time_ids: Tensor | None
) -> Conditioning:
    """The outputs of every text encoder as the UNet takes them.

    encodings: last_hidden_state (U, L, D) of each encoder, text_embeds (U, Q) of those that have it.
    zeroed: (U) texts whose embeddings are zeros.
    """
    kept = ~torch.tensor(zeroed)
    hidden = torch.cat([each["last_hidden_state"] for each in encodings], dim=-1)
    pooled = [each["text_embeds"] * kept[:, None] for each in encodings if "text_embeds" in each]
    return Conditioning(hidden * kept[:, None, None], pooled[0] if pooled else None, time_ids)


def make_time_ids(height: int, width: int, *, views: Sequence[View], window: int, cell: int) -> Tensor:
    """SDXL's size conditioning of each view of a canvas of `height` x `width` cells: (V, 6), in pixels.

    Original size, crop's top left, target size (Podell et al. 2023, section 2.2): a view is a window cut out of the
    canvas, so it is conditioned as the crop that it is.
    """
    canvas = (height * cell, width * cell)
    rows = [(*canvas, top * cell, left * cell, window * cell, window * cell) for top, left in views]
    return torch.tensor(rows, dtype=torch.float32)
