"""What the orchestrator knows of the checkpoint: the files that the export lays beside this module.

P colours, window and h x w in latent cells.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from prompts import PromptTokenizer


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
    tokenizer: PromptTokenizer
    palette: Tensor  # (P, latent_channels, window, window) encoded constant colours, scaled


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read settings.json, scheduler_config.json, tokenizer.json and palette.safetensors."""
    settings = json.loads((folder / "settings.json").read_text())
    tokenizer = PromptTokenizer(
        tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json")),
        max_length=settings["max_length"],
        pad_token_id=settings["pad_token_id"],
    )
    return Checkpoint(
        name=settings["name"],
        digest=settings["digest"],
        window=settings["window"],
        view_stride=settings["view_stride"],
        latent_channels=settings["latent_channels"],
        vae_scale_factor=settings["vae_scale_factor"],
        scaling_factor=settings["scaling_factor"],
        unet_max_batch_size=settings["unet_max_batch_size"],
        vae_tile=settings["vae_tile"],
        scheduler_config=json.loads((folder / "scheduler_config.json").read_text()),
        tokenizer=tokenizer,
        palette=load_file(folder / "palette.safetensors")["latents"],
    )
