"""What the orchestrator knows of the checkpoint besides its networks.

P colours, window in latent cells.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prompts import PromptTokenizer


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder: a model on the server, and how its tokens are made."""

    model: str
    outputs: tuple[str, ...]
    tokenizer: PromptTokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained latent diffusion model, as far as it is not a network."""

    name: str
    digest: str
    window: int  # side of a view in latent cells; the UNet's only size
    view_stride: int  # latent cells
    latent_channels: int
    vae_scale_factor: int  # pixels per latent cell and side
    scaling_factor: float  # of latents against the VAE's own
    unet_max_batch_size: int
    vae_tile: int  # latent cells; a canvas with a longer side is decoded in tiles
    scheduler_config: dict[str, Any]
    text_encoders: tuple[TextEncoder, ...]  # in the order in which the UNet takes their hidden states
    time_ids: bool  # whether the UNet takes sizes and crops
    zero_empty_negatives: bool  # whether a negative prompt that says nothing has embeddings of zeros
    palette: Tensor  # (P, latent_channels, window, window) encoded constant colours, scaled
    preview: Tensor  # (latent_channels + 1, 3), a scaled latent cell followed by 1 -> its colour, about [0, 1]
